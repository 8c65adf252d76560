"""A line for each matrix: what rank_evolution and explained_ratio_evolution share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.names import plotly_text, short_names
from inrank_monitor.figures.style import CATEGORIES, add_lines, category, legend_entry, rgba, side_legend, symbol
from inrank_monitor.figures.tables import RANK_COLUMNS, column_title, is_held, numbers, thin

MOST_POINTS = 60_000
MARKERS_UP_TO = 40
FEW_LINES = 10


def add_matrix_lines(
    figure: go.Figure,
    tables: Mapping[str, pd.DataFrame],
    column: str,
    *,
    groups: Mapping[str, str] | None = None,
    log_steps: bool = False,
) -> dict[str, str]:
    """Draw a line a matrix and return the colour that each got.

    Args:
        figure: drawn into.
        tables: matrix name -> its rows of the measurements, sorted by step.
        column: the column to draw.
        groups: matrix name -> group; None: every matrix has a colour and a legend entry of its own.
        log_steps: leave out step 0, which Plotly would draw at the left edge of a logarithmic axis.
    """
    if column in RANK_COLUMNS:
        figure.update_layout(meta={"customdata": "null rank"})
    if log_steps:
        tables = {name: rows[rows["step"] > 0] for name, rows in tables.items()}
    looks = _own_looks(list(tables)) if groups is None else _group_looks(list(tables), groups)
    short = short_names(tables)
    limit = max(MOST_POINTS // max(len(tables), 1), 50)
    few = len(tables) <= FEW_LINES
    places = {} if few else _places(tables, column)
    lines = []
    for name, rows in tables.items():
        colour, alpha, marker, group = looks[name]
        values = numbers(rows[column])
        kept = thin(values, limit, by_ratio=log_steps)
        lines.append(
            {
                "x": rows["step"].to_numpy()[kept],
                "y": values[kept],
                "mode": _mode(values[kept], few or marker != "circle"),
                "line": {"color": rgba(colour, alpha), "width": 1.8, "shape": "hv" if is_held(column) else "linear"},
                "marker": {"symbol": marker, "size": 5},
                "name": plotly_text(short[name]),
                "legendgroup": plotly_text(group),
                "showlegend": groups is None,
                "meta": [plotly_text(name)],
                "customdata": numbers(rows["null_rank"])[kept].astype(np.float32) if column in RANK_COLUMNS else None,
                "text": None if few else places[name][kept].tolist(),
                "hovertemplate": _hover(column, None if few else len(tables)),
            }
        )
    add_lines(figure, lines)
    if few:
        hover_together(figure)
    if groups is not None:
        labels = short_names([look[3] for look in looks.values()], width=24)
        for group, label in labels.items():
            colour, marker = next((look[0], look[2]) for look in looks.values() if look[3] == group)
            style: dict[str, object] = {"line": {"color": colour, "width": 3}}
            if marker != "circle":  # the colour is there already: only the marker tells the groups apart
                style |= {"mode": "lines+markers", "marker": {"symbol": marker, "size": 7}}
            legend_entry(figure, plotly_text(label), plotly_text(group), **style)
        if len(labels) < len(tables):
            title = {"text": "fainter: earlier in the model", "side": "top", "font": {"size": 12}}
            figure.update_layout(legend_title=title)
    if (len(tables) if groups is None else len({look[3] for look in looks.values()})) > 8:
        side_legend(figure)
    return {name: rgba(look[0], look[1]) for name, look in looks.items()}


def _mode(values: np.ndarray, telling: bool) -> str:
    """With markers where they tell something: few lines' steps, a group, or a value that stands alone.

    They cost a browser more than all lines do.
    """
    alone = len(values) == 1 or bool(np.isnan(values).any())
    return "lines+markers" if len(values) <= MARKERS_UP_TO and (telling or alone) else "lines"


def _hover(column: str, lines: int | None) -> str:
    """Of few lines, which are told together, one line of text; of many the nearest, and which it is among them."""
    if lines is None:
        null = " (null rank %{customdata})" if column in RANK_COLUMNS else ""
        return f"%{{meta[0]}} <b>%{{y:.4~g}}</b>{null}<extra></extra>"
    value = f"<b>%{{meta[0]}}</b><br>step %{{x}}<br>{column_title(column)} %{{y:.4~g}}: place %{{text}} of {lines}"
    return value + ("<br>null rank %{customdata}" if column in RANK_COLUMNS else "") + "<extra></extra>"


def _places(tables: Mapping[str, pd.DataFrame], column: str) -> dict[str, np.ndarray]:
    """Of each matrix, the place of its value among all at the step, the highest first; empty where there is none."""
    steps = np.concatenate([rows["step"].to_numpy() for rows in tables.values()])
    values = pd.Series(numbers(pd.concat([rows[column] for rows in tables.values()])))
    places = values.groupby(steps).rank(ascending=False, method="min")
    words = places.map(lambda place: "" if np.isnan(place) else f"{place:.0f}").to_numpy()
    ends = np.cumsum([len(rows) for rows in tables.values()])
    return dict(zip(tables, np.split(words, ends[:-1]), strict=True))


def hover_together(figure: go.Figure, of: str = "step %{x}") -> None:
    """The pointer tells every line where it stands, under a heading."""
    figure.update_layout(hovermode="x unified", xaxis_unifiedhovertitle_text=of)


Look = tuple[str, float, str, str]


def _own_looks(names: list[str]) -> dict[str, Look]:
    return {name: (category(i), 1.0, symbol(i), name) for i, name in enumerate(names)}


def _group_looks(names: list[str], groups: Mapping[str, str]) -> dict[str, Look]:
    """Colour by group; within a group more ink for later matrices.

    A group's colour is by its place in `groups`: it keeps it whichever matrices are drawn, and from panel to panel.
    """
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(groups.get(name, name), []).append(name)
    places = {group: i for i, group in enumerate(dict.fromkeys([*groups.values(), *members]))}
    looks = {}
    for group, inside in members.items():
        i = places[group]
        for depth, name in enumerate(inside):
            alpha = 1.0 if len(inside) == 1 else 0.35 + 0.65 * depth / (len(inside) - 1)
            looks[name] = (category(i), alpha, symbol(i), group)
    return looks


def flat_line(figure: go.Figure, height: float, label: str) -> None:
    """A thin horizontal line across the plot; its label stands in the right margin, clear of the curves."""
    figure.add_hline(y=height, line={"color": CATEGORIES[1], "width": 1.2, "dash": "dot"})
    figure.add_annotation(
        x=1.005,
        xref="paper",
        xanchor="left",
        y=height,
        text=label,
        showarrow=False,
        font_size=12,
    )
    figure.update_layout(margin_r=70)
