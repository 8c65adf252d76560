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
# The paper's figures by their numbers; 2 and 4 are not of a run's spectra, see `inrank reproduce`.
PAPER_FIGURES = {
    "1": "spectrum-density",
    "3": "spectrum-evolution",
    **dict.fromkeys(("5", "6", "7"), "rank-evolution"),
    **dict.fromkeys(map(str, range(8, 16)), "spectrum-evolution"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories; each has panels of its own")
    parser.add_argument(
        "--figure",
        choices=(*KINDS, *PAPER_FIGURES),
        metavar="FIGURE",
        required=True,
        help="rank-evolution (the paper's Figures 5-7), spectrum-evolution (3, 8-15), spectrum-density (1), "
        "explained-ratio (eq. 7 against the rank), ratio-evolution (over steps), loss; or the paper's number",
    )
    add_output(
        parser,
        "FILE",
        "write it: FILE.pdf, FILE.svg or FILE.png the figure, FILE.csv the numbers drawn; may be repeated",
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
    from inrank_monitor.paper.writing import paper_figure
    from inrank_monitor.runs import output_file

    files = [output_file(given) for given in options.output]
    paper_figure(
        options.figure,
        options.runs,
        *files,
        matrices=options.matrices,
        steps=options.steps,
        quantity=options.quantity,
        log=options.log,
        log_steps=options.log_steps,
        noise=options.noise,
        width=options.width,
        columns=options.columns,
        titles=options.titles,
    )
    for given in options.output:
        print(f"wrote {given}")
    return 0
