"""The command `inrank-monitor figure`: a figure of the paper from one run or several."""

from __future__ import annotations

import argparse

from inrank_monitor.console import add_output

EXAMPLES = (
    "figure runs/demo --figure rank-evolution --output ranks.pdf",
    "figure runs/kaiming runs/zero --figure spectrum-evolution --matrices hidden --width double --output figure3.pdf",
    "figure runs/demo --figure spectrum-density --steps 1 500 --log --output density.svg --output density.csv",
)
KINDS = (
    "rank-evolution",
    "spectrum-evolution",
    "spectrum-density",
    "explained-ratio",
    "ratio-evolution",
    "loss",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories; each has panels of its own")
    parser.add_argument(
        "--figure",
        choices=KINDS,
        required=True,
        help="rank-evolution (the paper's Figures 5-7), spectrum-evolution (3, 8-15), spectrum-density (1), "
        "explained-ratio (eq. 7 against the rank), ratio-evolution (over steps), loss",
    )
    add_output(
        parser,
        "FILE",
        "write it: FILE.pdf, .svg or .png as drawn, FILE.csv what is drawn; may be repeated",
        action="append",
        required=True,
    )
    parser.add_argument("--matrices", nargs="+", metavar="NAME", help="names or globs (default: all, or the telling)")
    parser.add_argument("--steps", nargs="+", type=int, metavar="STEP", help="of a density or an explained ratio")
    parser.add_argument(
        "--quantity", metavar="COLUMN", help="of rank-evolution: a column of the measurements (default: intrinsic_rank)"
    )
    parser.add_argument(
        "--width",
        type=_width,
        metavar="WIDTH",
        help="single (3.25 in), double (6.75 in) or inches (default: single for one panel, double for several)",
    )
    parser.add_argument("--columns", type=int, metavar="N", help="panels in a row (default: what fits)")
    parser.add_argument("--titles", nargs="+", metavar="TITLE", help="of the panels, in their order")
    parser.add_argument("--log", action="store_true", help="logarithmic axis of singular values")
    parser.add_argument("--log-steps", action="store_true", help="logarithmic axis of steps")
    parser.add_argument("--noise", action="store_true", help="draw noise of the same shape beside it")


def _width(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def run(options: argparse.Namespace) -> int:
    """Draw and write; the exit code."""
    from inrank_monitor.figures import FORMATS, check_matplotlib, inches_of, save_figure
    from inrank_monitor.paper.panels import PaperOptions, paper_panels
    from inrank_monitor.runs import open_run, output_file

    files = [(given, output_file(given)) for given in options.output]
    for given, path in files:
        suffix = path.suffix.lower().removeprefix(".")
        if suffix not in (*FORMATS, "csv"):
            raise ValueError(f"--output must end in .pdf, .svg, .png or .csv, got {given}")
        if suffix != "csv":
            check_matplotlib()
    if options.columns is not None and options.columns < 1:
        raise ValueError(f"--columns must be at least 1, got {options.columns}")
    if options.width is not None:
        inches_of(options.width)
    look = PaperOptions(
        steps=tuple(options.steps) if options.steps else None,
        column=options.quantity or "intrinsic_rank",
        log=options.log,
        log_steps=options.log_steps,
        noise=options.noise,
    )
    opened = [open_run(path) for path in options.runs]
    panels = paper_panels(options.figure, opened, options.matrices, look, titles=options.titles)
    width = options.width or ("single" if len(panels) == 1 else "double")
    figures = panels if len(panels) > 1 or options.titles else next(iter(panels.values()))
    for given, path in files:
        save_figure(figures, path, width=width, columns=options.columns)
        print(f"wrote {given}")
    return 0
