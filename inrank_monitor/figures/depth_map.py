"""All matrices on one map: how deep in the model, and which kind they are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.names import plotly_text, shorten
from inrank_monitor.figures.ranks import noise_ticks
from inrank_monitor.figures.style import CATEGORIES, SEQUENTIAL, empty_figure, new_figure
from inrank_monitor.figures.tables import spread
from inrank_monitor.naming import common_pattern

ROW, MARGINS, LEAST, MOST = 30, 120, 300, 760  # pixels


def depth_map(
    values: pd.Series, places: pd.DataFrame, title: str, *, relative: bool = False, marked: Sequence[str] = ()
) -> go.Figure:
    """One quantity of every matrix: kinds are rows, depths are columns; blank: not known.

    Where several matrices share a cell (experts, say), its colour is their median; the hover has the range. Each cell's
    `customdata` holds how many there are, the lowest, the highest, and their name or a glob for all of them.

    Args:
        values: by matrix, NaN where there is none.
        places: depth and kind by matrix, ordered categories, as `depth_and_kind` has them.
        title: of the quantity.
        relative: whether values are ranks over null ranks: the scale reaches at least 1, which is noise.
        marked: matrices whose cells get a ring, the unusual ones.
    """
    values = values.reindex(places.index).astype("Float64").astype(float)
    if not np.isfinite(values).any():
        return empty_figure("no finite measurement at this step")
    depths, kinds = (places[name].cat.remove_unused_categories() for name in ("depth", "kind"))
    columns, rows = [[str(label) for label in each.cat.categories] for each in (depths, kinds)]
    cell = kinds.cat.codes.to_numpy().astype(int) * len(columns) + depths.cat.codes.to_numpy()
    grid, about = _cells(values.to_numpy(), cell, [str(name) for name in places.index], (len(rows), len(columns)))
    top = float(np.nanmax(grid))
    figure = new_figure("", "depth", "", height=int(min(max(LEAST, MARGINS + ROW * len(rows)), MOST)))
    figure.add_heatmap(
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        z=grid.astype(np.float32),
        customdata=about,
        zmin=min(float(np.nanmin(grid)), 0.0),
        zmax=max(top, 1.0 if relative else 1e-12),
        colorscale=SEQUENTIAL,
        xgap=1 if len(columns) <= 200 else 0,
        ygap=1,
        colorbar={
            "title": {"text": plotly_text(title), "side": "right"},
            "thickness": 14,
            "outlinewidth": 0,
            **(noise_ticks(max(top, 1.0)) if relative else {}),
        },
        hoverongaps=False,
        hovertemplate="<b>%{customdata[3]}</b><br>" + plotly_text(title) + " %{z:.3~g}%{customdata[4]}<extra></extra>",
    )
    _mark(figure, places.index.isin(list(marked)), cell, len(columns))
    _axes(figure, columns, rows)
    return figure


def _cells(
    values: np.ndarray, cell: np.ndarray, names: list[str], shape: tuple[int, int]
) -> tuple[np.ndarray, list[list[list[object] | None]]]:
    """The median of each cell, and what is said of it."""
    grid = np.full(shape[0] * shape[1], np.nan)
    about: list[list[object] | None] = [None] * len(grid)
    order = np.argsort(cell, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        known = values[places][np.isfinite(values[places])]
        at, inside = int(cell[places[0]]), [names[place] for place in places]
        low, high = (float(known.min()), float(known.max())) if len(known) else (np.nan, np.nan)
        grid[at] = float(np.median(known)) if len(known) else np.nan
        more = f"<br>the median of {len(inside)}: from {low:.3g} to {high:.3g}" if len(inside) > 1 else ""
        about[at] = [len(inside), low, high, plotly_text(common_pattern(inside)), more]
    lines = [about[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    return grid.reshape(shape), lines


def _mark(figure: go.Figure, marked: np.ndarray, cell: np.ndarray, columns: int) -> None:
    places = np.unique(cell[marked])
    if len(places):
        figure.add_scatter(
            x=places % columns,
            y=places // columns,
            mode="markers",
            marker={
                "symbol": "circle",
                "size": 9,
                "color": "white",
                "line": {"width": 2, "color": CATEGORIES[1]},
            },
            name="unusual",
            hoverinfo="skip",
            showlegend=True,
        )


def _axes(figure: go.Figure, columns: list[str], rows: list[str]) -> None:
    """Cells are placed by number, so that a label may be cut; ticks only where there is room for them."""
    shown = spread(len(columns), 24 if max(map(len, columns)) <= 4 else 10)
    figure.update_xaxes(
        tickvals=shown.tolist(),
        ticktext=[plotly_text(shorten(columns[place], 18)) for place in shown],
        range=[-0.5, len(columns) - 0.5],
        tickangle=0 if max(len(columns[place]) for place in shown) <= 4 else None,
        showgrid=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[plotly_text(shorten(row, 30)) for row in rows],
        range=[len(rows) - 0.5, -0.5],
        tickfont_size=12,
        showgrid=False,
    )
