"""One legend below all panels: each series once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from inrank_monitor.figures.paper.traces import line_style
from inrank_monitor.figures.paper.words import TEXT, colour, marker, plain_words

LINE, LETTER, HANDLE = 0.135, 0.052, 0.42  # inches: an entry's height, a letter's width, the sample and its gaps


def add_legend(sheet: Any, figures: Sequence[go.Figure], inches: float) -> float:
    """Below the panels, in as many columns as fit; how many inches it is high."""
    entries: dict[str, Any] = {}
    for figure in figures:
        for trace in _listed(figure):
            entries.setdefault(plain_words(trace.name), trace)
    if not entries:
        return 0.0
    wide = max(map(len, entries)) * LETTER + HANDLE
    columns = min(max(int(inches // wide), 1), len(entries))
    sheet.legend(
        [_sample(trace) for trace in entries.values()],
        list(entries),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=6.5,
        labelcolor=TEXT,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
        labelspacing=0.3,
    )
    return LINE * -(-len(entries) // columns) + 0.1


def _listed(figure: go.Figure) -> list[Any]:
    """The traces that Plotly's legend would have."""
    shown = [
        t
        for t in figure.data
        if t.type != "heatmap" and t.name and t.showlegend is not False and t.visible is not False
    ]
    if figure.layout.showlegend is False:
        return []
    asked = figure.layout.showlegend or any(trace.showlegend for trace in shown)
    return shown if asked or len(figure.data) > 1 else []


def _is_point(trace: Any) -> bool:
    """Whether only a marker is seen of a line: it has one point."""
    return "markers" in (trace.mode or "") and len(trace.x) == 1 and trace.x[0] is not None


def _sample(trace: Any) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if trace.fill == "toself":
        return Patch(color=colour(trace.fillcolor), linewidth=0)
    mode = trace.mode or "lines"
    symbol, hollow = marker(trace.marker.symbol if isinstance(trace.marker.symbol, str) else None)
    if "lines" in mode and not _is_point(trace):
        style = {
            name: value for name, value in line_style(trace).items() if name not in ("drawstyle", "solid_capstyle")
        }
        tells_apart = "markers" in mode and symbol != "o"
        return Line2D([], [], **style, marker=symbol if tells_apart else None, markersize=3)
    given = trace.marker.color[0] if isinstance(trace.marker.color, list | tuple) else trace.marker.color
    given = given if given is not None else trace.line.color
    face, edge = colour(given) or TEXT, colour(trace.marker.line.color)
    return Line2D(
        [], [], linestyle="none", marker=symbol, markersize=4, color=face,
        markerfacecolor="none" if hollow else face, markeredgecolor=edge or face,
    )  # fmt: skip
