"""Ranks over steps: a line a matrix, and a heat map of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.lines import FEW_LINES, add_matrix_lines
from inrank_monitor.figures.names import plotly_text, short_names
from inrank_monitor.figures.style import INK, NEUTRAL, SEQUENTIAL, empty_figure, legend_entry, new_figure, step_axis
from inrank_monitor.figures.tables import (
    RANK_COLUMNS,
    by_matrix,
    check_column,
    column_title,
    matrix_names,
    numbers,
    spread,
)

MOST_CELLS = 200_000
LAYER_COLUMNS = ("layer_rank", "capacity")


def rank_evolution(
    measurements: pd.DataFrame,
    column: str = "intrinsic_rank",
    matrices: Iterable[str] | None = None,
    *,
    events: pd.DataFrame | None = None,
    groups: Mapping[str, str] | None = None,
    log_steps: bool = False,
) -> go.Figure:
    """Rank of each matrix over steps, its null rank dashed (paper, Figures 5–7).

    A null rank that several matrices share is one neutral dashed line; one that belongs to a single matrix
    has that matrix's colour. Only ranks of the growth rule have a null rank, so for other columns no dashed
    line is drawn. Lines of more points than a screen shows are thinned; the first, the last and all extremes
    stay.

    Args:
        measurements: `run.measurements`, or some rows of it; `run.weights` and `run.directions` too.
        column: any numeric column of it.
        matrices: names to draw, also as tables print them, or globs. Default: all that are in the table.
        events: `run.events`; its `rank_grown` rows become triangles on the lines.
        groups: matrix name -> group (`families` makes some). A group has one colour and one legend entry,
            and within it later matrices have more ink.
        log_steps: logarithmic step axis, which hides step 0.

    Raises:
        ValueError: an unknown column, or a matrix that was never measured.
    """
    if measurements.empty:
        return empty_figure("no measurements yet")
    check_column(measurements, column)
    names = matrix_names(measurements, matrices)
    tables = by_matrix(measurements, names)
    if column in LAYER_COLUMNS:  # dense matrices have none: no line, no legend entry, no null rank
        tables = {name: rows for name, rows in tables.items() if np.isfinite(numbers(rows[column])).any()}
        if not tables:
            return empty_figure("no low-rank layer among these matrices")
    if not any(np.isfinite(numbers(rows[column])).any() for rows in tables.values()):
        return empty_figure("no finite measurement yet")
    figure = new_figure("", "step", column_title(column))
    colours = add_matrix_lines(figure, tables, column, groups=groups, log_steps=log_steps)
    if column in RANK_COLUMNS:
        _add_null_lines(figure, tables, colours)
    if events is not None and not events.empty:
        _add_growth(figure, tables, column, events, colours)
    step_axis(figure, measurements["step"].to_numpy(), log_steps)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _add_null_lines(figure: go.Figure, tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str]) -> None:
    """One dashed line for each distinct null rank."""
    owners: dict[int, list[str]] = {}
    for name, rows in tables.items():
        null = numbers(rows["null_rank"])
        if np.isfinite(null).any():
            owners.setdefault(int(null[np.isfinite(null)][-1]), []).append(name)
    steps = np.concatenate([rows["step"].to_numpy() for rows in tables.values()])
    positive = steps[steps > 0]
    ends = sorted({int(positive.min() if len(positive) else steps.min()), int(steps.max())})
    # Beyond a few, the values are in the hover. One entry says what dashes mean, in a colour that no line has.
    entry = "null rank" + (f" {', '.join(map(str, sorted(owners)))}" if 0 < len(owners) <= 3 else "")
    own = {rank for rank, names in owners.items() if len(names) == 1 < len(tables)}
    for position, (null_rank, names) in enumerate(sorted(owners.items())):
        whose = plotly_text(names[0]) if len(names) == 1 else f"{len(names)} matrices"
        figure.add_scatter(
            x=ends,
            y=[null_rank] * len(ends),
            mode="lines" if len(ends) > 1 else "markers",
            line={"dash": "dash", "width": 1.5, "color": colours[names[0]] if null_rank in own else NEUTRAL},
            marker={"symbol": "line-ew-open", "size": 18},
            name=entry,
            showlegend=position == 0 and not own,
            legendgroup="null rank",
            meta=["null rank", null_rank],
            hovertemplate=f"null rank {null_rank}<br>{whose}<extra></extra>",
            hoverinfo="skip" if len(tables) <= FEW_LINES else None,  # each line tells its own
        )
    if own:
        legend_entry(figure, entry, "null rank", showlegend=True, line={"dash": "dash", "width": 1.5, "color": NEUTRAL})


def _add_growth(
    figure: go.Figure,
    tables: Mapping[str, pd.DataFrame],
    column: str,
    events: pd.DataFrame,
    colours: Mapping[str, str],
) -> None:
    """A triangle on the line of its matrix at each step at which the rank grew."""
    grown = events[(events["kind"] == "rank_grown") & events["matrix"].isin(list(tables))]
    if grown.empty:
        return
    heights, labels = [], []
    for step, name, message in zip(grown["step"], grown["matrix"], grown["message"], strict=True):
        rows = tables[name]
        before = int(np.searchsorted(rows["step"].to_numpy(), step, side="right")) - 1
        heights.append(numbers(rows[column])[max(before, 0)])
        labels.append(f"<b>{plotly_text(name)}</b><br>step {int(step)}<br>{plotly_text(message)}")
    figure.add_scatter(
        x=grown["step"].to_numpy(),
        y=np.array(heights),
        mode="markers",
        marker={
            "symbol": "triangle-up",
            "size": 10,
            "color": [colours[name] for name in grown["matrix"]],
            "line": {"width": 1, "color": "white"},
        },
        name="rank grown",
        legendgroup="rank grown",
        showlegend=False,
        text=labels,
        hovertemplate="%{text}<extra></extra>",
    )
    look = {"symbol": "triangle-up", "size": 10, "color": INK}
    legend_entry(figure, "rank grown", "rank grown", mode="markers", marker=look, showlegend=True)


def rank_heatmap(
    measurements: pd.DataFrame,
    column: str = "intrinsic_rank",
    relative_to_null: bool = False,
    *,
    matrices: Iterable[str] | None = None,
) -> go.Figure:
    """Every matrix (row, in model order) at every measured step (column); blank: not finite.

    Columns are snapshots, equally wide whatever the steps between them, so that the dense early ones stay
    visible. With `relative_to_null`, cells are rank over null rank and the scale reaches at least 1, which
    is noise. Beyond 200,000 cells snapshots are left out, evenly; the first, the last and that with the
    largest value stay.

    Raises:
        ValueError: an unknown column, a matrix that was never measured, or `relative_to_null` for what is no
            rank.
    """
    if measurements.empty:
        return empty_figure("no measurements yet")
    check_column(measurements, column)
    if relative_to_null and column not in RANK_COLUMNS:
        raise ValueError(f"relative_to_null needs one of the columns {list(RANK_COLUMNS)}, got {column!r}")
    names = matrix_names(measurements, matrices)
    rows = measurements[measurements["matrix"].isin(names)]
    grid = _grid(rows, column, names)
    if relative_to_null:
        grid = replace(grid, values=grid.values / np.where(grid.null > 0, grid.null, np.nan))
    if not np.isfinite(grid.values).any():
        return empty_figure("no finite measurement yet")
    return _draw_heatmap(grid.thinned(), column, relative_to_null)


@dataclass(frozen=True)
class _Grid:
    """A column and the null ranks, matrix × step; NaN where there is no finite measurement."""

    names: list[str]
    steps: np.ndarray
    values: np.ndarray
    null: np.ndarray

    def thinned(self) -> _Grid:
        """As many steps as can be drawn, that of the largest value among them."""
        kept = _thin_columns(self.values)
        return _Grid(self.names, self.steps[kept], self.values[:, kept], self.null[:, kept])


def _grid(rows: pd.DataFrame, column: str, names: list[str]) -> _Grid:
    steps = np.unique(rows["step"].to_numpy())
    return _Grid(names, steps, *(_matrix_by_step(rows, each, names, steps) for each in (column, "null_rank")))


def _matrix_by_step(rows: pd.DataFrame, column: str, names: list[str], steps: np.ndarray) -> np.ndarray:
    """Matrix × step array of a column, NaN where there is no finite measurement."""
    place = {name: i for i, name in enumerate(names)}
    grid = np.full((len(names), len(steps)), np.nan)
    at = rows["matrix"].astype(str).map(place).to_numpy(dtype=int)
    grid[at, np.searchsorted(steps, rows["step"].to_numpy())] = numbers(rows[column])
    return grid


def _thin_columns(values: np.ndarray) -> np.ndarray:
    limit = max(MOST_CELLS // len(values), 24)
    largest = int(np.unravel_index(np.nanargmax(values), values.shape)[1])
    return np.unique(np.append(spread(values.shape[1], limit), largest))


def _draw_heatmap(grid: _Grid, column: str, relative: bool) -> go.Figure:
    names, values = grid.names, grid.values
    labels = [str(int(step)) for step in grid.steps]
    short = short_names(names, width=34)
    what = column_title(column)
    title = f"{what} / null rank" if relative else what
    top = max(float(np.nanmax(values)), 1.0) if relative else float(np.nanmax(values))
    figure = new_figure("", "step (one column a snapshot)", "", height=_height(len(names)))
    figure.add_heatmap(
        x=labels,
        y=[plotly_text(name) for name in names],
        z=values.astype(np.float32),
        customdata=grid.null.astype(np.float32),
        zmin=min(float(np.nanmin(values)), 0.0) if column != "explained_ratio" else 0.0,
        zmax=1.0 if column == "explained_ratio" else max(top, 1e-12),
        colorscale=SEQUENTIAL,
        colorbar={
            "title": {"text": title, "side": "right"},
            "thickness": 14,
            "outlinewidth": 0,
            **(noise_ticks(top) if relative else {}),
        },
        hoverongaps=False,
        hovertemplate="<b>%{y}</b><br>step %{x}<br>" + title + " %{z:.3~g}<br>null rank %{customdata}<extra></extra>",
    )
    ticks = spread(len(labels), 12)
    figure.update_xaxes(type="category", tickvals=[labels[i] for i in ticks], tickangle=0, showgrid=False)
    shown = spread(len(names), 60)
    figure.update_yaxes(
        type="category",
        autorange="reversed",
        tickvals=[plotly_text(names[i]) for i in shown],
        ticktext=[plotly_text(short[names[i]]) for i in shown],
        tickfont_size=11,
        showgrid=False,
    )
    return figure


def noise_ticks(top: float) -> dict[str, list[float] | list[str]]:
    """Quarters up to 1, which is marked as noise; wider steps beyond."""
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] + [x for x in (1.5, 2.0, 3.0, 5.0, 10.0) if x <= top]
    ticks = ticks if top < 3 else [x for x in ticks if x >= 1 or x == 0]
    return {"tickvals": ticks, "ticktext": ["1 = noise" if x == 1 else f"{x:g}" for x in ticks]}


def _height(rows: int) -> int:
    """Pixels: a readable row each, until the figure is as tall as a screen."""
    return int(min(max(340, 130 + 15 * rows), 1000))
