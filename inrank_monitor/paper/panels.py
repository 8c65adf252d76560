"""The kinds of figures that the paper has, over any runs and matrices: a panel each, by its title.

rank-evolution      Figures 5 to 7: a line a matrix, null ranks dashed, a panel a run
spectrum-evolution  Figures 3 and 8 to 15: every singular value over steps, a panel a run and matrix
spectrum-density    Figure 1: how the strength is spread at two steps, the part that the rank holds filled
explained-ratio     eq. 7 against the rank, early, in the middle and late
ratio-evolution     eq. 7 at the rank so far, over steps, a panel a run
loss                what was logged, a panel a run
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor import figures
from inrank_monitor.matrices.roles import matrix_groups
from inrank_monitor.naming import select_names, unknown
from inrank_monitor.paper.options import KINDS, PAPER_FIGURES
from inrank_monitor.ranks import null_singular_values
from inrank_monitor.report import early_middle_late, matrix_table, telling_matrices
from inrank_monitor.runs import Run

OF_RUNS = ("rank-evolution", "ratio-evolution", "loss")
# What is not the same for all figures, and whose it is: asked of another, it would change nothing.
_ONLY_OF = {
    "steps": ("spectrum-density", "explained-ratio"),
    "column": ("rank-evolution",),
    "log": ("spectrum-evolution", "spectrum-density"),
    "log_steps": ("rank-evolution", "spectrum-evolution", "ratio-evolution", "loss"),
    "noise": ("spectrum-evolution", "spectrum-density", "explained-ratio"),
}
MOST_PANELS = 24
_OWN_COLOURS = 6  # so many matrices have a colour and a legend entry each; more are coloured by role


@dataclass(frozen=True)
class PaperOptions:
    """How the panels are drawn.

    Attributes:
        steps: of densities and explained ratios. Default: those that tell most.
        column: of `rank-evolution`, any column of the measurements.
        log: logarithmic σ axis.
        log_steps: logarithmic step axis.
        noise: also what noise of the same shape would have.
    """

    steps: tuple[int, ...] | None = None
    column: str = "intrinsic_rank"
    log: bool = False
    log_steps: bool = False
    noise: bool = False


def paper_panels(
    kind: str | int,
    runs: Sequence[Run],
    matrices: str | Iterable[str] | None = None,
    options: PaperOptions | None = None,
    *,
    titles: Sequence[str] | None = None,
) -> dict[str, go.Figure]:
    """The panels of a figure of the paper, for `inrank_monitor.figures.save_figure`.

    Args:
        kind: one of `KINDS`, or a number of the paper's figures.
        runs: as `open_run` gives them.
        matrices: names or globs. Default: all of them; where each has its own panel, those with the highest and the
            lowest rank over null rank of the first run, or of a run that has none of these.
        options: how they are drawn.
        titles: of the panels, in their order. Default: what tells them apart, the run, the matrix or both.

    Raises:
        ValueError: an unknown kind, an option that the kind has no use for, a matrix or step that is not there, too
            many panels, or too few titles.
    """
    kind = _kind(kind)
    if not runs:
        raise ValueError("at least one run is needed")
    asked = None if matrices is None else [matrices] if isinstance(matrices, str) else list(matrices)
    options = options or PaperOptions()
    _check(kind, asked, options)
    if kind in OF_RUNS:
        groups = None if kind == "loss" else _groups(runs, asked)
        panels = {title: _of_run(kind, run, asked, groups, options) for title, run in _by_name(runs).items()}
        panels = panels if len(panels) > 1 else {"": next(iter(panels.values()))}
    else:
        panels = _of_matrices(kind, runs, asked, options)
    if titles is None:
        return panels
    if len(titles) != len(panels) or len(set(titles)) != len(titles):
        raise ValueError(f"titles must be {len(panels)} different ones, a panel each, got {list(titles)}")
    return dict(zip(titles, panels.values(), strict=True))


def _kind(given: str | int) -> str:
    """A kind by its name, or by the number of one of the paper's figures."""
    kind = PAPER_FIGURES.get(str(given), str(given))
    if kind not in KINDS:
        known = f"{', '.join(KINDS)}, or the number of one of the paper's figures: {', '.join(PAPER_FIGURES)}"
        raise ValueError(f"figure must be one of {known}, got {given!r}")
    return kind


def _check(kind: str, matrices: list[str] | None, options: PaperOptions) -> None:
    """Raise a ValueError for what the kind has no use for."""
    if kind == "loss" and matrices is not None:
        raise ValueError("matrices have no meaning for the figure loss")
    for name, kinds in _ONLY_OF.items():
        if getattr(options, name) != getattr(PaperOptions(), name) and kind not in kinds:
            what = "quantity" if name == "column" else name
            raise ValueError(f"{what} has no meaning for the figure {kind}, only for {', '.join(kinds)}")


def _by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name; of one name that several have, the later are numbered."""
    named: dict[str, Run] = {}
    for run in runs:
        name, number = run.name, 1
        while name in named:
            number += 1
            name = f"{run.name} ({number})"
        named[name] = run
    return named


def _of_run(
    kind: str, run: Run, matrices: list[str] | None, groups: dict[str, str] | None, options: PaperOptions
) -> go.Figure:
    if kind == "loss":
        return figures.loss_curve(run.scalars, log_steps=options.log_steps)
    names = figures.matrix_names(run.measurements, matrices)
    if kind == "ratio-evolution":
        figure = figures.explained_ratio_evolution(
            run.measurements, run.threshold, names, groups=groups, log_steps=options.log_steps
        )
    else:
        figure = figures.rank_evolution(
            run.measurements, options.column, names, events=run.events, groups=groups, log_steps=options.log_steps
        )
    if groups and len({groups[name] for name in names}) < len(names):
        pale = {"color": figures.rgba(figures.NEUTRAL, 0.4), "width": 3}
        figure.add_scatter(x=[None], y=[None], mode="lines", name="paler: earlier", line=pale)
    return figure


def _groups(runs: Sequence[Run], matrices: list[str] | None) -> dict[str, str] | None:
    """Matrix -> what it is coloured by, the same in all panels; None: each has a colour of its own."""
    names = [name for run in runs for name in figures.matrix_names(run.measurements, matrices)]
    names = list(dict.fromkeys(names))
    if len(names) <= _OWN_COLOURS:
        return dict(zip(names, names, strict=True)) if len(runs) > 1 else None
    roles = [matrix_groups(run.matrices)["role"].to_dict() for run in runs]
    return {name: next(str(found[name]) for found in roles if name in found) for name in names}


def _of_matrices(
    kind: str, runs: Sequence[Run], asked: list[str] | None, options: PaperOptions
) -> dict[str, go.Figure]:
    named, first = _by_name(runs), _telling(runs[0])
    chosen = [(run, title, name) for title, run in named.items() for name in _names(run, asked or _own(run, first))]
    if len(chosen) > MOST_PANELS:
        raise ValueError(f"{len(chosen)} panels are more than {MOST_PANELS}: choose fewer matrices or runs")
    short = figures.short_names([name for _, _, name in chosen], width=28)
    several_runs, several_names = len(runs) > 1, len(short) > 1
    panels: dict[str, go.Figure] = {}
    for run, title, name in chosen:
        parts = ([title] if several_runs else []) + ([short[name]] if several_names or not several_runs else [])
        panels[": ".join(parts)] = _of_matrix(kind, run, name, options)
    if kind == "explained-ratio" and len(panels) > 1:
        for figure in panels.values():
            _rank_at_ring(figure)
    return panels


def _telling(run: Run) -> list[str]:
    return telling_matrices(matrix_table(run)) or [str(run.matrices.index[0])]


def _own(run: Run, first: list[str]) -> list[str]:
    """The first run's telling matrices, as far as a run has them; its own where it has none of them."""
    return [name for name in first if name in run.matrices.index] or _telling(run)


def _rank_at_ring(figure: go.Figure) -> None:
    """The ranks stand at their rings and no more in the legend, where panels with other ranks share the entries."""
    rings: dict[int, float] = {}
    for trace in figure.data:
        if trace.mode == "markers":
            rings.setdefault(int(trace.x[0]), float(trace.y[0]))
        else:
            trace.name = trace.legendgroup
    before, lower = 0.0, 0
    for rank in sorted(rings):
        lower = lower + 1 if rank < 1.5 * before else 0  # so near that the words would lie on each other
        before = rank
        figure.add_annotation(
            x=float(np.log10(rank)),
            y=rings[rank],
            text=str(rank),
            xanchor="left",
            yanchor="top",
            xshift=6,
            yshift=-5 - 14 * lower,
            showarrow=False,
        )


def _names(run: Run, asked: Iterable[str]) -> list[str]:
    """The run's matrices that are meant, in the order asked.

    Raises:
        ValueError: there is none of a name, or it could be several.
    """
    present = [str(name) for name in run.matrices.index]
    found: list[str] = []
    for text in asked:
        try:
            meant = select_names(text, present)
        except LookupError as error:
            raise ValueError(str(error)) from None
        if not meant:
            raise ValueError(f"{run.name} has no such matrix: {unknown(text, present)}")
        found += [name for name in meant if name not in found]
    return found


def _of_matrix(kind: str, run: Run, name: str, options: PaperOptions) -> go.Figure:
    values = run.singular_values(name)
    rows, cols = run.matrices.loc[[name], ["rows", "cols"]].to_numpy(dtype=int)[0].tolist()
    mine = run.measurements[run.measurements["matrix"].astype(str) == name]
    in_factors = bool(mine["layer_rank"].notna().any())
    # noise of a layer held in factors is another one than that of a dense matrix, which is drawn here
    noise = options.noise and not in_factors
    if kind == "spectrum-evolution":
        figure = figures.spectrum_evolution(values, log=options.log, log_steps=options.log_steps)
        return figures.mark_noise_over_steps(figure, values, (rows, cols)) if noise else figure
    size = min(rows, cols) if in_factors and run.leading is None else None
    null = null_singular_values(rows, cols)[: run.leading] if noise else None
    if kind == "explained-ratio":
        steps = options.steps or early_middle_late(values)
        return figures.explained_ratio_curve(
            values, steps, run.threshold, run.buffer_rank, run.definition, null, size=size
        )
    figure = figures.spectrum_density(
        values,
        options.steps,
        _layer_ranks(mine),
        log=options.log,
        threshold=run.threshold,
        buffer_rank=run.buffer_rank,
        definition=run.definition,
        null=null,
        size=size,
        measured=run.measured,
    )
    return figures.mark_noise_in_density(figure, values, (rows, cols)) if noise else figure


def _layer_ranks(mine: pd.DataFrame) -> dict[int, int] | None:
    """The rank that a low-rank layer holds at each step; None for a dense matrix, which holds none."""
    held = mine["layer_rank"].dropna()
    if not len(held):
        return None
    steps = mine["step"].loc[held.index]
    return dict(zip(steps.astype(int), held.astype(int), strict=True))
