"""How the strength of an update is spread over its singular values, and which part of it the rank holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.names import plotly_text
from inrank_monitor.figures.strength import Curve, Strength, kernel_curve, profile
from inrank_monitor.figures.style import GRID, NEUTRAL, STRENGTH, empty_figure, logarithmic, new_figure, rgba
from inrank_monitor.figures.tables import buffer_rank_of, known_ranks, select_steps, spectra, spread
from inrank_monitor.ranks import Definition, RankRule, intrinsic_rank

Kind = Literal["density", "count", "profile"]
MOST_ROWS = 40
SOLID, FAINT = rgba(STRENGTH, 0.85), rgba(STRENGTH, 0.24)


def spectrum_density(
    singular_values: pd.DataFrame,
    steps: int | Iterable[int] | None = None,
    rank: int | Mapping[int, int] | None = None,
    *,
    name: str = "",
    kind: Kind = "density",
    log: bool = False,
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    null: np.ndarray | None = None,
    size: int | None = None,
    measured: int | None = None,
) -> go.Figure:
    """Density of σ_i / Σσ at chosen steps; the part that the rank holds is solid (paper, Figure 1).

    Each step is a row. `kind` says what is drawn in it:

    * `"density"`: each value weighs its own strength, so the solid area of a row is the share of the total
      strength that the first r values carry.
    * `"count"`: each value weighs the same; the solid area is r / q. To compare with the law that noise
      follows.
    * `"profile"`: σ_i / Σσ against its index i, up to r + b of the largest rank.

    Rows are scaled to one height each: compare shapes and filled shares, not heights. A zero or non-finite
    update is a row that says so.

    Args:
        singular_values: `run.singular_values(name)`: index step, descending values in columns 1..q.
        steps: measured steps. Default: the first and the last that have something to draw. Above 40, evenly
            thinned.
        rank: the rank to fill, or one for each step. Default: the intrinsic rank by the options below.
        name: the matrix, for the title.
        kind: one of the three above.
        log: logarithmic σ axis (index axis for `"profile"`); values below 1e-7 σ₁ are then left out.
        threshold: α.
        buffer_rank: b of eq. 7. Default: the table's own, else what fits `size` or as many values as there are.
        definition: `"paper"` or `"reference"`.
        null: `null_singular_values(rows, cols)`: the same curve for noise of that shape, dotted.
        size: min(rows, cols), where zeros beyond q are part of the spectrum (a product of factors).
        measured: how many values were measured, where the others are estimates of their density: the figure says so,
            as it does where only the leading values were kept, whose shares are then of their own sum.

    Raises:
        ValueError: a step that was not measured, an unknown kind, or an option out of range.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if not len(singular_values.index):
        return empty_figure("no measurements yet", plotly_text(name))
    found = spectra(singular_values)
    if all(values is None for values in found.values()):
        return empty_figure("no finite measurement yet", plotly_text(name))
    telling = [step for step, values in found.items() if values is not None and values[0] > 0]
    if not telling:
        return empty_figure("no update yet: all singular values are 0", plotly_text(name))
    chosen = select_steps(found, steps, [min(telling), max(telling)])
    buffer_rank = buffer_rank or buffer_rank_of(singular_values, size)
    rows = []
    rule = RankRule(threshold, buffer_rank, definition)
    for step in (chosen[i] for i in spread(len(chosen), MOST_ROWS)):
        values = found[step]
        known = None if values is None else known_ranks(singular_values, values, rule)
        if isinstance(rank, Mapping):
            held = int(rank.get(step, 0))
        elif rank is not None or values is None:
            held = rank or 0
        else:
            held = int(intrinsic_rank(values, threshold, buffer_rank, definition, size))
            held = 0 if known is not None and held > known else held
        rows.append(_row(step, values, held, known is None))
    last = max((row.rank + buffer_rank for row in rows if isinstance(row, Strength)), default=1)
    figure = _draw(rows, plotly_text(name), _View(kind, log, last), null)
    if measured is not None and any(isinstance(row, Strength) and len(row.shares) > measured for row in rows):
        _say(figure, f"Values after the {measured} largest are estimated (stochastic Lanczos quadrature).")
    elif any(isinstance(row, Strength) and not row.whole for row in rows):
        _say(figure, f"Of the {singular_values.attrs['leading']} leading values alone, as shares of their own sum.")
    return figure


def _row(step: int, values: np.ndarray | None, rank: int, whole: bool) -> Strength | str:
    """The row of a step, or what to write in its place."""
    if values is None:
        return f"step {step}: not finite"
    if values.sum() <= 0:
        return f"step {step}: no update yet"
    return Strength(step, values / values.sum(), min(max(rank, 0), len(values)), whole)


@dataclass(frozen=True)
class _View:
    """What of a row is drawn: by which curve, on which axis, over how many indices of a profile."""

    kind: Kind
    log: bool
    last: int

    def curve(self, row: Strength) -> Curve:
        """Of a row's values."""
        return (
            profile(row, self.last) if self.kind == "profile" else kernel_curve(row, self.kind == "density", self.log)
        )


@dataclass(frozen=True)
class _Ridge:
    """A row's curve at its place, scaled so that it and noise's stay below the row above."""

    row: Strength
    curve: Curve
    noise: Curve | None
    baseline: float

    @property
    def scale(self) -> float:
        """Of the heights."""
        top = max(float(curve.height.max(initial=0.0)) for curve in (self.curve, self.noise) if curve is not None)
        return 0.88 / top if top > 0 else 0.0


def _draw(rows: list[Strength | str], title: str, view: _View, null: np.ndarray | None) -> go.Figure:
    height = 150 + (130 if len(rows) <= 3 else 46) * len(rows)
    titles = {"density": "σ / Σσ", "count": "σ / Σσ", "profile": "index i of σ<sub>i</sub>"}
    figure = new_figure(title, titles[view.kind], "", height=min(max(height, 300), 1000))
    figure.update_layout(meta={"customdata": "density" if view.kind != "profile" else "share of the strength"})
    noise = None if null is None else view.curve(Strength(-1, np.asarray(null, dtype=np.float64) / np.sum(null), 0))
    ridges = [_Ridge(row, view.curve(row), noise, -float(i)) for i, row in enumerate(rows) if isinstance(row, Strength)]
    for ridge in ridges:
        first = ridge is ridges[0]
        _add_fills(figure, ridge, in_legend=first)
        _add_outline(figure, ridge, view.kind)
        if ridge.noise is not None:
            _add_noise(figure, ridge, ridge.noise, in_legend=first)
    _finish(figure, rows, view)
    return figure


def _add_fills(figure: go.Figure, ridge: _Ridge, in_legend: bool) -> None:
    """Below the curve: what the rank holds, and the rest."""
    row, curve, baseline = ridge.row, ridge.curve, ridge.baseline
    parts = [("the rest", FAINT, np.ones_like(curve.held)), ("held by the rank", SOLID, curve.held)]
    for legend, colour, where in parts:
        if not where.any():
            continue
        x, height = curve.x[where], curve.height[where] * ridge.scale
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]).astype(np.float32),
            y=np.concatenate([baseline + height, np.full(len(x), baseline)]).astype(np.float32),
            fill="toself",
            mode="lines",
            fillcolor=colour,
            line={"width": 0, "color": colour},
            name=legend,
            legendgroup=legend,
            showlegend=in_legend,
            hoverinfo="skip",
            meta=[row.step],
        )


def _add_outline(figure: go.Figure, ridge: _Ridge, kind: Kind) -> None:
    row, curve = ridge.row, ridge.curve
    held = f"rank {row.rank} holds {row.held:.1%} of the strength" if row.whole else row.text
    label = f"step {row.step}<br>{held}"
    figure.add_scatter(
        x=curve.x.astype(np.float32),
        y=(ridge.baseline + curve.height * ridge.scale).astype(np.float32),
        mode="lines",
        line={"color": STRENGTH, "width": 1.4},
        name=f"step {row.step}",
        showlegend=False,
        customdata=curve.height.astype(np.float32),
        meta=[row.step, row.rank, row.held],
        hovertemplate=label
        + ("<br>σ / Σσ = %{x:.3~g}" if kind != "profile" else "<br>i = %{x:.0f}")
        + "<extra></extra>",
    )


def _add_noise(figure: go.Figure, ridge: _Ridge, noise: Curve, in_legend: bool) -> None:
    figure.add_scatter(
        x=noise.x.astype(np.float32),
        y=(ridge.baseline + noise.height * ridge.scale).astype(np.float32),
        mode="lines",
        line={"color": NEUTRAL, "width": 1.6, "dash": "dot"},
        name="noise of the same shape",
        legendgroup="noise",
        showlegend=in_legend,
        customdata=noise.height.astype(np.float32),
        hoverinfo="skip",
    )


def _say(figure: go.Figure, note: str) -> None:
    """Below the axis: which of the values are not measured."""
    axis = figure.layout.xaxis.title.text
    figure.update_xaxes(title_text=f"{axis}<br><i>{note}</i>")


def _visible(outline: go.Scatter) -> np.ndarray:
    """Where an outline rises above its baseline: the least values trail off over empty decades."""
    height = np.asarray(outline.customdata)
    seen: np.ndarray = np.asarray(outline.x)[height >= 0.004 * height.max()]
    return seen


def _finish(figure: go.Figure, rows: list[Strength | str], view: _View) -> None:
    """Rows labelled with their step and, where there is room, what the rank holds."""
    roomy = len(rows) <= 14
    texts = []
    for row in rows:
        if isinstance(row, str):
            texts.append(row)
        elif roomy:
            texts.append(f"step {row.step}<br>{row.text}")
        else:
            texts.append(f"step {row.step}")
    figure.update_yaxes(
        tickvals=[-float(i) for i in range(len(rows))],
        ticktext=texts,
        range=[-len(rows) + 0.9, 1.0],
        gridcolor=GRID,
        ticks="",
    )
    if view.log:
        visible = np.concatenate([_visible(trace) for trace in figure.data if trace.customdata is not None])
        figure.update_xaxes(**logarithmic(visible), range=np.log10([visible.min(), visible.max()]).tolist())
    elif view.kind != "profile":
        figure.update_xaxes(rangemode="tozero")
