"""The ranks of all rules side by side: on one spectrum, and on the loss against the rank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.names import plotly_text
from inrank_monitor.figures.style import (
    CATEGORIES,
    NEUTRAL,
    STRENGTH,
    category,
    empty_figure,
    logarithmic,
    new_figure,
)
from inrank_monitor.figures.tables import geometric

MOST_POINTS, HEIGHT = 600, 560  # the legend has a line a rule
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "hexagon", "x")


def spectrum_with_ranks(
    values: np.ndarray,
    ranks: Mapping[str, float],
    *,
    name: str = "",
    edge: float | None = None,
    null: np.ndarray | None = None,
) -> go.Figure:
    """Singular values against their index, with the rank of every rule marked on the curve.

    Both axes are logarithmic. Of more than 600 values the later ones are thinned. A rank of 0 or one that is not known
    is in the legend alone; one between two indices lies on the line between their values.

    Args:
        values: of one step, descending.
        ranks: by rule, in the order of the legend; NaN: not known.
        name: of the matrix, for the title.
        edge: of noise's bulk, a dashed line; None or NaN: none.
        null: expected values of noise of that shape, with the same Σσ², dotted.
    """
    title = plotly_text(name)
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return empty_figure("no update to draw: all singular values are 0 or not finite", title)
    figure = new_figure(title, "index i of σ", "singular value σ of ΔW", HEIGHT)
    _add_values(figure, values, "σ of ΔW", {"color": STRENGTH, "width": 2})
    if null is not None and len(null):
        scale = np.sqrt(np.square(values).sum() / np.square(np.asarray(null)[: len(values)]).sum())
        _add_values(
            figure, np.asarray(null) * scale, "noise of the same shape", {"color": NEUTRAL, "width": 1.6, "dash": "dot"}
        )
    if edge is not None and np.isfinite(edge):
        figure.add_scatter(
            x=[1, len(values)],
            y=[edge, edge],
            mode="lines",
            line={"color": CATEGORIES[1], "width": 1.6, "dash": "dash"},
            name="edge of noise",
            hovertemplate="edge of noise %{y:.4~g}<extra></extra>",
        )
    index = np.arange(1, len(values) + 1)
    heights = {rule: float(np.interp(rank, index, values)) for rule, rank in ranks.items()}
    _mark(figure, ranks, heights, "σ %{y:.4~g}")
    figure.update_xaxes(**logarithmic(np.array([1.0, max(len(values), 2)])))
    figure.update_yaxes(**logarithmic(values), range=[np.log10(_lowest(values)) - 0.05, np.log10(values[0]) + 0.1])
    return figure


def _lowest(values: np.ndarray) -> float:
    """Where the axis ends: rounding leaves values far below all others."""
    return float(values[values > 1e-7 * values[0]].min())


def _add_values(figure: go.Figure, values: np.ndarray, name: str, line: dict[str, object]) -> None:
    kept = geometric(len(values), MOST_POINTS)
    figure.add_scatter(
        x=kept + 1,
        y=values[kept],
        mode="lines" if len(kept) > 1 else "markers",
        line=line,
        name=name,
        hovertemplate=f"{name}: i = %{{x}}, %{{y:.4~g}}<extra></extra>",
    )


def _mark(figure: go.Figure, ranks: Mapping[str, float], heights: Mapping[str, float], told: str) -> None:
    """A marker for each rule, where there is a curve to set it on; no colour of the lines is among them."""
    for place, (rule, rank) in enumerate(ranks.items()):
        words = f"{rank:.3g}" if np.isfinite(rank) else "not known"
        shown = rank >= 1 and np.isfinite(heights[rule])
        figure.add_scatter(
            x=[rank if shown else None],
            y=[heights[rule] if shown else None],
            mode="markers",
            marker={
                "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                "size": 11,
                "color": category(len(CATEGORIES) + place),
                "line": {"width": 1, "color": "white"},
            },
            name=f"{plotly_text(rule)}: {words}",
            hovertemplate=f"{plotly_text(rule)}: rank {words}<br>{told}<extra></extra>",
        )


def loss_against_rank(
    curve: pd.DataFrame, ranks: Mapping[str, float], *, tolerance: float | None = None, of: str = "all matrices"
) -> go.Figure:
    """The loss with one rank for all matrices, against that rank, and the ranks of the rules on it.

    Only what was evaluated is a point; a mark between two points lies on the line between them, and a rank outside of
    them is in the legend alone. Points off the line are evaluations at ranks of each matrix's own, at their mean.

    Args:
        curve: rows of one result of `run.loss_curve`, in the order of evaluation: the first is the model as it is.
        ranks: by rule, as in `spectrum_with_ranks`.
        tolerance: how far the loss may rise, a dashed line.
        of: whose ranks these are, for the axis.
    """
    alike = curve[curve["uniform_rank"].notna()].assign(rank=lambda rows: rows["uniform_rank"].astype(float))
    alike = alike.drop_duplicates("rank").sort_values("rank")
    alike = alike[alike["rank"] > 0]
    if not len(alike):
        return empty_figure("no evaluation of the loss is kept: ranks_by_loss takes and keeps them")
    figure = new_figure("", f"rank of {of}", "loss", HEIGHT)
    x, y = alike["rank"].to_numpy(dtype=float), alike["loss"].to_numpy(dtype=float)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": STRENGTH, "width": 2},
        marker={"size": 6},
        name="one rank for all",
        hovertemplate="all matrices at rank %{x}: loss %{y:.5~g}<extra></extra>",
    )
    own = curve[curve["uniform_rank"].isna()]
    figure.add_scatter(
        x=own["mean_rank"].to_numpy(dtype=float),
        y=own["loss"].to_numpy(dtype=float),
        mode="markers",
        marker={"color": NEUTRAL, "size": 5, "opacity": 0.6},
        name="ranks of their own, at their mean",
        hovertemplate="mean rank %{x:.4~g}: loss %{y:.5~g}<extra></extra>",
    )
    if tolerance is not None:
        figure.add_scatter(
            x=[x[0], x[-1]],
            y=[float(curve["loss"].iloc[0]) + tolerance] * 2,
            mode="lines",
            line={"color": CATEGORIES[1], "width": 1.6, "dash": "dash"},
            name=f"the loss as it is + {tolerance:g}",
            hoverinfo="skip",
        )
    heights = {rule: float(np.interp(rank, x, y, left=np.nan, right=np.nan)) for rule, rank in ranks.items()}
    _mark(figure, ranks, heights, "loss %{y:.5~g}")
    figure.update_xaxes(**logarithmic(x))
    return figure
