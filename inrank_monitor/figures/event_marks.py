"""What happened during a run, as markers on figures that are drawn over steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.names import plotly_text, shorten
from inrank_monitor.figures.style import INK
from inrank_monitor.figures.tables import spread

MOST_MARKS = 300
# Colours of their own: a legend that holds lines and events repeats none.
_KINDS = {
    "rank_grown": ("rank grown", "triangle-up", "#5E8C00"),
    "non_finite": ("not finite", "x", "#C2185B"),
    "diverged": ("diverged", "cross", "#7B1E1E"),
    "error": ("error", "x", "#D32F2F"),
    "snapshot_skipped": ("snapshot left out", "diamond-open", "#8D6E63"),
    "stopped_moving": ("stopped moving", "square-open", "#A1762B"),
    "rank_collapsed": ("rank collapsed", "triangle-down", "#8E44AD"),
    "norm_exploded": ("norm exploded", "star", "#E6399B"),
    "spike": ("one direction takes over", "star-triangle-up", "#7C5CFF"),
    "resumed": ("resumed", "circle-open", "#00838F"),
}


def event_look(kind: str) -> tuple[str, str, str]:
    """Words, marker and colour of a kind of event."""
    return _KINDS.get(kind, (kind.replace("_", " "), "diamond", INK))


def mark_events(figure: go.Figure, events: pd.DataFrame) -> go.Figure:
    """Add a marker at each event's step along the lower edge of a figure over steps; the same figure.

    Of more than 300 events of a kind the first, the last and an even choice between them are drawn.
    """
    if events.empty or not figure.data:
        return figure
    for kind, rows in events.groupby("kind", sort=False):
        words, symbol, colour = event_look(str(kind))
        rows = rows.iloc[spread(len(rows), MOST_MARKS)]
        figure.add_scatter(
            x=rows["step"].to_numpy(),
            y=np.full(len(rows), 0.03),
            yaxis="y99",
            mode="markers",
            marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 1.5, "color": colour}},
            name=plotly_text(words),
            text=_labels(rows, words),
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(
        yaxis99={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}, showlegend=True
    )
    return figure


def mark_events_on_heatmap(figure: go.Figure, events: pd.DataFrame) -> go.Figure:
    """Mark each matrix's events on its row of `rank_heatmap`, in the first column at or after the step.

    Events of no matrix stand in the top row.
    """
    if events.empty or not figure.data or figure.data[0].type != "heatmap":
        return figure
    columns, names = list(figure.data[0].x), list(figure.data[0].y)
    steps, here = np.array(columns, dtype=np.int64), set(names)
    for kind, rows in events.groupby("kind", sort=False):
        words, symbol, colour = event_look(str(kind))
        labels = [plotly_text(name) if isinstance(name, str) and name else names[0] for name in rows["matrix"]]
        rows = rows.assign(label=labels)
        rows = rows[rows["label"].isin(here)]
        rows = rows.iloc[spread(len(rows), MOST_MARKS)]
        if rows.empty:
            continue
        places = np.minimum(np.searchsorted(steps, rows["step"].to_numpy()), len(steps) - 1)
        figure.add_scatter(
            x=[columns[place] for place in places],
            y=rows["label"].tolist(),
            mode="markers",
            # an open symbol has no outline of its own, and would be white on the legend's white
            marker={
                "symbol": symbol.removesuffix("-open"),
                "size": 8,
                "color": "white",
                "line": {"width": 1.2, "color": colour},
            },
            name=plotly_text(words),
            text=_labels(rows, words),
            hovertemplate="%{text}<extra></extra>",
            showlegend=True,
        )
    return figure


def _labels(rows: pd.DataFrame, words: str) -> list[str]:
    """Hover texts: a message's last line is the one that says what happened."""
    labels = []
    for step, name, message in zip(rows["step"], rows["matrix"], rows["message"], strict=True):
        last = (str(message).strip().splitlines() or [""])[-1]
        where = f"<br>{plotly_text(shorten(name, 60))}" if isinstance(name, str) and name else ""
        labels.append(f"<b>{plotly_text(words)}</b>, step {int(step)}{where}<br>{plotly_text(shorten(last, 100))}")
    return labels
