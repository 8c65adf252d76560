"""The explained ratio g of eq. 7: against the rank, and over steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.lines import add_matrix_lines, flat_line, hover_together
from inrank_monitor.figures.names import plotly_text
from inrank_monitor.figures.style import NEUTRAL, empty_figure, logarithmic, more_ink, new_figure, step_axis
from inrank_monitor.figures.tables import (
    buffer_rank_of,
    by_matrix,
    geometric,
    known_ranks,
    matrix_names,
    numbers,
    select_steps,
    spectra,
)
from inrank_monitor.ranks import Definition, RankRule, intrinsic_rank
from inrank_monitor.ranks import explained_ratio_curve as ratio_of_each_rank

MOST_RANKS = 600


def explained_ratio_curve(
    singular_values: pd.DataFrame,
    step: int | Iterable[int] | None = None,
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    null: np.ndarray | None = None,
    *,
    size: int | None = None,
    name: str = "",
    log_rank: bool = True,
) -> go.Figure:
    """g(r) against r at one or several steps; α is a horizontal line, the least rank that reaches it a ring.

    A zero update has g = 1 everywhere and no ring; a non-finite one is left out; of a cut spectrum the curve ends
    where its values do, at r + b, and a ring beyond is not drawn. Several steps are drawn in
    one blue, the latest with most ink. Of spectra above 600 values, ranks are thinned; the first, the last,
    the marked one and the lowest g stay.

    Args:
        singular_values: `run.singular_values(name)`: index step, descending values in columns 1..q.
        step: measured step or steps. Default: the last one that is finite and not zero.
        threshold: α.
        buffer_rank: b of eq. 7. Default: the table's own, else what fits `size` or as many values as there are.
        definition: `"paper"` or `"reference"`.
        null: `null_singular_values(rows, cols)`, for the same curve of noise, dashed.
        size: min(rows, cols), where zeros beyond q are part of the spectrum (a product of factors).
        name: the matrix, for the title.
        log_rank: logarithmic rank axis, on which the first few ranks have room.

    Raises:
        ValueError: a step that was not measured, or an option out of range.
    """
    if not len(singular_values.index):
        return empty_figure("no measurements yet", plotly_text(name))
    found = spectra(singular_values)
    finite = {at: values for at, values in found.items() if values is not None}
    if not finite:
        return empty_figure("no finite measurement yet", plotly_text(name))
    telling = [at for at, values in finite.items() if values[0] > 0]
    steps = select_steps(found, step, [max(telling or finite)])
    rule = RankRule(threshold, buffer_rank or buffer_rank_of(singular_values, size), definition)
    figure = new_figure(plotly_text(name), "rank r", "explained ratio g(r)")
    lowest = 0.0
    for position, at in enumerate(steps):
        if at in finite:
            ink = more_ink((len(steps) - 1 - position) / max(len(steps) - 1, 1) * 0.75)
            ratio = _ratio(finite[at], rule, size, known_ranks(singular_values, finite[at], rule))
            _add_curve(figure, ratio, f"step {at}", ink)
            lowest = min(lowest, float(ratio.curve.min(initial=0.0)))
    if null is not None:
        _add_curve(figure, _ratio(np.asarray(null), rule, size), "noise", NEUTRAL, dash="dash")
    flat_line(figure, threshold, f"α = {threshold:g}")
    hover_together(figure, "rank %{x}")
    if log_rank:
        figure.update_xaxes(**logarithmic(np.array([1.0, size or singular_values.shape[1]])))
    figure.update_yaxes(range=[max(lowest, -0.5) - 0.04, 1.06])
    return figure


@dataclass(frozen=True)
class _Ratio:
    """g(1..q) of one spectrum, and its intrinsic rank: the least that reaches α; None: it is not known."""

    curve: np.ndarray
    rank: int | None
    threshold: float


def _ratio(values: np.ndarray, rule: RankRule, size: int | None, known: int | None = None) -> _Ratio:
    curve = np.asarray(ratio_of_each_rank(values, rule.buffer_rank, rule.definition, size))
    rank = int(intrinsic_rank(values, rule.threshold, rule.buffer_rank, rule.definition, size))
    if known is None:
        return _Ratio(curve, rank, rule.threshold)
    return _Ratio(curve[:known], rank if rank <= known else None, rule.threshold)


def _add_curve(figure: go.Figure, ratio: _Ratio, label: str, colour: str, dash: str = "solid") -> None:
    """A curve and the ring at its intrinsic rank."""
    curve, rank = ratio.curve, ratio.rank
    extremes = [max((rank or 0) - 1, 0), int(curve.argmin()), int(curve.argmax())] if len(curve) else []
    kept = np.union1d(geometric(len(curve), MOST_RANKS), extremes).astype(int)
    figure.add_scatter(
        x=kept + 1,
        y=curve[kept],
        mode="lines+markers" if len(kept) == 1 else "lines",
        line={"color": colour, "width": 2, "dash": dash},
        name=f"{label}: rank {rank if rank is not None else 'not known'}",
        legendgroup=label,
        hovertemplate=f"{label}: g = %{{y:.4f}}<extra></extra>",
    )
    if rank:
        figure.add_scatter(
            x=[rank],
            y=[curve[rank - 1]],
            mode="markers",
            marker={"symbol": "circle-open", "size": 12, "color": colour, "line": {"width": 2.5}},
            name=f"{label}: intrinsic rank",
            legendgroup=label,
            showlegend=False,
            hovertemplate=f"{label}: least rank with g ≥ {ratio.threshold:g}<extra></extra>",
        )


def explained_ratio_evolution(
    measurements: pd.DataFrame,
    threshold: float = 0.9,
    matrices: Iterable[str] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    log_steps: bool = False,
) -> go.Figure:
    """Explained ratio at the rank reached so far, over steps: below α, that matrix's rank grows.

    Args:
        measurements: `run.measurements`, or some rows of it.
        threshold: α, drawn as a line.
        matrices: names to draw, also as tables print them, or globs. Default: all that are in the table.
        groups: as in `rank_evolution`.
        log_steps: logarithmic step axis, which hides step 0.

    Raises:
        ValueError: a matrix that was never measured.
    """
    if measurements.empty:
        return empty_figure("no measurements yet")
    tables = by_matrix(measurements, matrix_names(measurements, matrices))
    values = [numbers(rows["explained_ratio"]) for rows in tables.values()]
    together = np.concatenate(values) if values else np.array([])
    if not np.isfinite(together).any():
        return empty_figure("no finite measurement yet")
    figure = new_figure("", "step", "explained ratio g at the rank so far")
    step_axis(figure, measurements["step"].to_numpy(), log_steps)
    add_matrix_lines(figure, tables, "explained_ratio", groups=groups, log_steps=log_steps)
    flat_line(figure, threshold, f"α = {threshold:g}")
    lowest = float(np.nanmin(together))
    # g has no lower bound; far below zero it only says "not explained", so the axis ends there.
    figure.update_yaxes(range=[min(max(lowest, -0.5), threshold - 0.1) - 0.04, 1.06])
    return figure
