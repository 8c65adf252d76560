"""From runs on disk to a figure in a file, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from inrank_monitor.figures import FORMATS, check_matplotlib, inches_of, save_figure
from inrank_monitor.paper.panels import PaperOptions, paper_panels
from inrank_monitor.runs import Run, open_run

Source = Run | str | os.PathLike[str]


def paper_figure(
    figure: str | int,
    runs: Source | Sequence[Source],
    *files: str | os.PathLike[str],
    matrices: str | Iterable[str] | None = None,
    steps: Iterable[int] | None = None,
    quantity: str | None = None,
    log: bool = False,
    log_steps: bool = False,
    noise: bool = False,
    width: str | float | None = None,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
) -> list[Path]:
    """Write a figure of the paper over runs of one's own: vectors at column width, or its numbers as CSV.

    Panels of one quantity share the y axis; the legend has each series once. Nothing is written where anything that is
    asked for is wrong.

    Args:
        figure: `"rank-evolution"` (the paper's Figures 5 to 7), `"spectrum-evolution"` (3, 8 to 15),
            `"spectrum-density"` (1), `"explained-ratio"`, `"ratio-evolution"`, `"loss"`; or the paper's number.
        runs: one or several, by their directories or as `open_run` gives them.
        files: at least one; the suffix says how: .pdf, .svg, .png (300 dots an inch) or .csv.
        matrices: names or globs. Default: all of them; where each has its own panel, those with the highest and the
            lowest rank over null rank of the first run.
        steps: of a density or an explained ratio. Default: those that tell most.
        quantity: of `"rank-evolution"`: a column of the measurements. Default: intrinsic_rank.
        log: logarithmic σ axis.
        log_steps: logarithmic step axis.
        noise: also what noise of the same shape would have.
        width: `"single"` (3.25 in), `"double"` (6.75 in) or inches. Default: single for one panel, double for several.
        columns: panels in a row. Default: what fits.
        titles: of the panels, in their order. Default: the run, the matrix or both.

    Returns:
        The files.

    Raises:
        ValueError: an argument that does not fit; it is named.
        FileNotFoundError: there is no such run.
        ModuleNotFoundError: Matplotlib is missing; a CSV needs none.
    """
    paths = [Path(file) for file in files]
    _check(paths, width, columns)
    opened = [
        run if isinstance(run, Run) else open_run(Path(run))
        for run in ([runs] if isinstance(runs, Run | str | os.PathLike) else runs)
    ]
    look = PaperOptions(
        steps=tuple(steps) if steps is not None else None,
        column=quantity or "intrinsic_rank",
        log=log,
        log_steps=log_steps,
        noise=noise,
    )
    panels = paper_panels(figure, opened, matrices, look, titles=titles)
    drawn = panels if len(panels) > 1 or titles else next(iter(panels.values()))
    width = width if width is not None else "single" if len(panels) == 1 else "double"
    return [save_figure(drawn, path, width=width, columns=columns) for path in paths]


def _check(paths: list[Path], width: str | float | None, columns: int | None) -> None:
    """Raise for what is wrong whatever the runs hold."""
    if not paths:
        raise ValueError("at least one file is needed, which ends in .pdf, .svg, .png or .csv")
    for path in paths:
        suffix = path.suffix.lower().removeprefix(".")
        if suffix not in (*FORMATS, "csv"):
            raise ValueError(f"output must end in .pdf, .svg, .png or .csv, got {path.name}")
        if suffix != "csv":
            check_matplotlib()
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if width is not None:
        inches_of(width)
