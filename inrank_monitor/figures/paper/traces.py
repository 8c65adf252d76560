"""Plotly's traces drawn by Matplotlib: lines, markers, areas, error bars, heat maps, scales of colours."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import get_colorscale

from inrank_monitor.figures.paper.words import DASHES, TEXT, colour, is_words, marker, plain_words, values, whole_name

THINNER = 0.55  # a line of so many pixels on the page is as many times this in points
_LEGEND_ONLY = "legendonly"


def draw_trace(axes: Any, trace: Any, place: int, before: Any | None = None) -> None:
    """Draw one trace; in an SVG its line is a group whose id says panel, place and series.

    Args:
        axes: Matplotlib's; its label is the number of its panel.
        trace: Plotly's.
        place: its number; later ones lie on top.
        before: the trace before it, down to which `fill="tonexty"` fills.

    Raises:
        ValueError: of a type that is not drawn here.
    """
    if trace.visible is False or trace.visible == _LEGEND_ONLY:
        return
    if trace.type == "heatmap":
        _draw_heatmap(axes, trace)
    elif trace.type in ("scatter", "scattergl"):
        _draw_scatter(axes, trace, place, before)
    else:
        raise ValueError(f"a trace of type {trace.type!r} cannot be drawn on paper")


def _draw_scatter(axes: Any, trace: go.Scatter, place: int, before: go.Scatter | None) -> None:
    order = 2 + place / 1000
    x, y = positions(axes.xaxis, trace.x), positions(axes.yaxis, trace.y)
    if not len(x) or not np.isfinite(x).any():
        if trace.marker.showscale:
            _add_scale(axes, trace.marker, trace.marker.colorbar)
        return
    if trace.fill not in (None, "none"):
        _fill(axes, trace, (x, y), order, before)
    mode = trace.mode or "lines"
    if "lines" in mode and trace.line.width != 0:
        series = re.sub(r"\W+", "-", plain_words(whole_name(trace))).strip("-")
        axes.plot(x, y, **line_style(trace), zorder=order, gid=f"panel-{axes.get_label()}-{place}-{series}")
    if "markers" in mode:
        axes.scatter(x, y, **_marker_style(trace, len(x)), zorder=order)
    if trace.error_y.array is not None:
        width = values(trace.error_y.array)
        axes.errorbar(x, y, width, fmt="none", ecolor=line_style(trace)["color"], elinewidth=0.6, zorder=order)


def positions(axis: Any, given: Any) -> np.ndarray:
    """Where values lie on an axis; categories, by their order of appearance, at 0, 1, 2 and so on."""
    if not is_words(given):
        return values(given)
    known: list[str] = axis.__dict__.setdefault("inrank_categories", [])
    known += [one for one in dict.fromkeys(map(str, given)) if one not in known]
    return np.array([known.index(str(one)) for one in given], dtype=np.float64)


def line_style(trace: go.Scatter) -> dict[str, Any]:
    """Colour, width, dash and step of a line."""
    return {
        "color": colour(trace.line.color) or TEXT,
        "linewidth": (trace.line.width or 1.8) * THINNER,
        "linestyle": DASHES.get(trace.line.dash or "solid", "-"),
        "drawstyle": "steps-post" if trace.line.shape == "hv" else "default",
        "alpha": trace.opacity,
        "solid_capstyle": "butt",
    }


def _marker_style(trace: go.Scatter, count: int) -> dict[str, Any]:
    """Symbol, size and colours of markers; those on a line are small, so that they do not hide it."""
    symbol, hollow = marker(trace.marker.symbol if isinstance(trace.marker.symbol, str) else None)
    given = trace.marker.color if trace.marker.color is not None else trace.line.color
    faces: Any = [colour(one) for one in given] if isinstance(given, list | tuple) else colour(given) or TEXT
    size = trace.marker.size if isinstance(trace.marker.size, int | float) else 6
    edge = colour(trace.marker.line.color) or faces
    style = {
        "marker": symbol,
        "s": (size * (0.42 if "lines" in (trace.mode or "") else 0.5)) ** 2,
        "edgecolors": edge,
        "linewidths": (trace.marker.line.width or (1.2 if hollow else 0)) * THINNER,
        "alpha": trace.marker.opacity if isinstance(trace.marker.opacity, int | float) else trace.opacity,
    }
    if symbol == "_":  # it has no face
        return style | {"c": faces, "linewidths": 1, "edgecolors": None}
    if hollow:
        return style | {"facecolors": "none"}
    return style | {("c" if isinstance(faces, list) else "facecolors"): faces}


def _fill(
    axes: Any, trace: go.Scatter, points: tuple[np.ndarray, np.ndarray], order: float, before: go.Scatter | None
) -> None:
    x, y = points
    style = {"color": colour(trace.fillcolor) or colour(trace.line.color), "linewidth": 0, "zorder": order}
    if trace.fill == "toself":
        axes.fill(x, y, **style)
    elif trace.fill == "tozeroy":
        axes.fill_between(x, y, 0, **style)
    elif trace.fill == "tonexty" and before is not None:
        lower = np.interp(x, values(before.x), values(before.y), left=np.nan, right=np.nan)
        axes.fill_between(x, y, lower, **style)
    else:
        raise ValueError(f"an area filled {trace.fill!r} cannot be drawn on paper")


def _draw_heatmap(axes: Any, trace: go.Heatmap) -> None:
    z = np.array([values(row) for row in trace.z])
    x = positions(axes.xaxis, trace.x) if trace.x is not None else np.arange(z.shape[1], dtype=float)
    y = positions(axes.yaxis, trace.y) if trace.y is not None else np.arange(z.shape[0], dtype=float)
    image = axes.pcolormesh(
        x,
        y,
        np.ma.masked_invalid(z),
        cmap=_colours(trace.colorscale),
        vmin=trace.zmin,
        vmax=trace.zmax,
        shading="nearest",
        edgecolors="white" if trace.xgap else "none",
        linewidth=0.3 if trace.xgap else 0,
        rasterized=z.size > 5000,  # so many rectangles would make a file of megabytes
    )
    if trace.showscale is not False:
        _finish_bar(axes.figure.colorbar(image, ax=axes, aspect=25, pad=0.02), trace.colorbar)


def _add_scale(axes: Any, given: Any, bar: Any) -> None:
    """A scale of colours that belongs to no image: which ink means which index."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(given.cmin, given.cmax), _colours(given.colorscale))
    # one beside the last panel says it for all that share its rows
    axes.inrank_scale = lambda panels: _finish_bar(
        axes.figure.colorbar(mappable, ax=panels, aspect=25, pad=0.02, fraction=0.08), bar
    )


def _finish_bar(bar: Any, given: Any) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=1.5, width=0.4, labelsize=6.5, colors=TEXT)
    bar.set_label(plain_words(given.title.text), fontsize=7, color=TEXT)
    if given.tickvals is not None:
        bar.set_ticks(list(given.tickvals), labels=[plain_words(one) for one in given.ticktext or given.tickvals])


def _colours(given: Any) -> Any:
    """A scale of colours: Plotly's by name, or stops from 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = get_colorscale(given) if isinstance(given, str) else given
    return LinearSegmentedColormap.from_list("scale", [(float(at), colour(one)) for at, one in stops])
