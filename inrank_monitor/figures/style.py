"""One look for every figure: template, palettes, and the figure that says why there is nothing to draw.

Backgrounds are transparent and all lines have contrast on white as well as on near-black, so that a figure sits
on a light and on a dark page alike. Text has 4.5:1 on white; no one grey has that on both, so that the dashboard
writes in its page's own colour. Categories take the colours of Okabe and Ito (2008) without its yellow
and black, which vanish on one of the two; order takes cividis, or more and less ink of one blue.
"""

from __future__ import annotations

import colorsys
from collections.abc import Hashable, Iterable, Mapping
from functools import cache

import numpy as np
import plotly.graph_objects as go

BLUE = "#0072B2"
# Between that blue and the paler one of the same palette: as clear on black as on white.
STRENGTH = "#1C86C8"
CATEGORIES = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "cross", "star", "hexagon")
INK = "#6c7178"
NEUTRAL = "#8c8c8c"
GRID = "rgba(128,128,128,0.22)"
SEQUENTIAL = "cividis"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
HEIGHT = 420

_AXIS = {
    "gridcolor": GRID,
    "linecolor": GRID,
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": GRID,
    "automargin": True,
    "title": {"standoff": 10},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "title": {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "pad": {"b": 12},
            "font": {"size": 15},
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(CATEGORIES),
        "margin": {"l": 72, "r": 24, "t": 48, "b": 64},  # less, and Plotly draws all twice: once to see that it is
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "namelength": -1,
            "bgcolor": "white",
            "font": {"color": "#1d2329", "size": 13},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": BLUE},
        "colorscale": {"sequential": SEQUENTIAL},
    }
)


def rgba(colour: str, alpha: float) -> str:
    """`"#0072B2"`, 0.5 -> `"rgba(0,114,178,0.5)"`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:.3g})"


def more_ink(position: float) -> str:
    """Blue from full (position 0, the strongest) to faint (position 1): darker is stronger."""
    return rgba(STRENGTH, 1.0 - 0.85 * min(max(position, 0.0), 1.0))


def new_figure(title: str, x_title: str, y_title: str, height: int = HEIGHT) -> go.Figure:
    """An empty figure in the common look; `uirevision` keeps a reader's zoom when the data are refreshed."""
    layout = {
        "template": TEMPLATE,
        "title": {"text": title},
        "height": height,
        "uirevision": "keep",
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {"title": {"text": y_title}},
    }
    return go.Figure(layout=layout if title else layout | {"margin": {"t": 32}})


def add_lines(figure: go.Figure, lines: Iterable[Mapping[str, object]]) -> None:
    """Add many scatter traces at once, each given by its properties: a third of the time of `add_scatter` for each."""
    figure.add_traces([{"type": "scatter", **line} for line in lines])


def logarithmic(values: np.ndarray) -> dict[str, object]:
    """Settings of a logarithmic axis over `values` (those above 0), with ticks in plain numbers.

    Plotly labels the ticks between powers of ten with one digit, which reads like a count.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return {"type": "log"}
    low, high = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    decades = high - low
    leading = (1, 2, 3, 4, 5, 6, 8) if decades <= 1 else (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 4 else (1,)
    ticks = [digit * 10.0**power for power in range(low, high + 1, max(decades // 8, 1)) for digit in leading]
    return {"type": "log", "tickvals": ticks, "ticktext": [_plain(tick) for tick in ticks], "tickangle": 0}


def _plain(value: float) -> str:
    return f"{value:.0f}" if 1 <= value < 1e6 else f"{value:g}"


def step_axis(figure: go.Figure, steps: np.ndarray, log_steps: bool) -> None:
    """The step axis: from 0, or logarithmic and then without step 0."""
    figure.update_xaxes(**(logarithmic(steps.astype(float)) if log_steps else {"rangemode": "nonnegative"}))


def empty_figure(message: str, title: str = "") -> go.Figure:
    """A figure without axes that says in one line why it is empty."""
    figure = new_figure(title, "", "", height=220)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(text=message, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font_size=14)
    return figure


def side_legend(figure: go.Figure) -> None:
    """Many entries: a legend that scrolls at the right does not push the plot away."""
    figure.update_layout(legend={"orientation": "v", "x": 1.01, "y": 1, "yref": "paper", "yanchor": "top"})


def category(position: int) -> str:
    """The colour of the n-th category; none comes twice, and from the seventh on `symbol` helps to tell them apart."""
    return CATEGORIES[position] if position < len(CATEGORIES) else _further_colour(position - len(CATEGORIES))


@cache
def _further_colour(number: int) -> str:
    """Hues by the golden ratio, in turn dark, light and between: at least 3:1 on white and on near-black."""
    hue, wanted = (0.765 + 0.6180339887 * number) % 1.0, (0.14, 0.27, 0.2)[number % 3]
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _luminance(colorsys.hls_to_rgb(hue, middle, 0.6)) < wanted else (low, middle)
    return "#" + "".join(f"{round(255 * part):02X}" for part in colorsys.hls_to_rgb(hue, low, 0.6))


def _luminance(colour: tuple[float, float, float]) -> float:
    """Relative luminance of the web's contrast rule."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def symbol(position: int) -> str:
    """The marker of the n-th category: another one for each round through the colours."""
    return SYMBOLS[(position // len(CATEGORIES)) % len(SYMBOLS)]


def legend_entry(figure: go.Figure, name: str, group: Hashable, **style: object) -> None:
    """A legend entry that stands for a whole group of lines, drawn by a trace without points."""
    look = {"mode": "lines", **style}
    figure.add_scatter(x=[None], y=[None], name=name, legendgroup=str(group), hoverinfo="skip", **look)
