"""One panel's axes as Plotly has them, and the lines and words that are drawn into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from inrank_monitor.figures.paper.traces import THINNER
from inrank_monitor.figures.paper.words import DASHES, TEXT, colour, is_words, plain_words

MOST_TICKS = 7
_PLACES = {"left": "left", "center": "center", "right": "right", "top": "top", "middle": "center", "bottom": "bottom"}


def set_scales(axes: Any, x: Any, y: Any) -> None:
    """Logarithmic where Plotly's axis is, before anything is drawn."""
    for given, scale in ((x, axes.set_xscale), (y, axes.set_yscale)):
        if given.type == "log":
            scale("log")


def finish_axis(axes: Any, which: str, given: list[Any]) -> None:
    """Title, limits and ticks of an axis.

    Args:
        axes: Matplotlib's, drawn into.
        which: `"x"` or `"y"`.
        given: Plotly's axis, and those of other panels that share it: the limits hold all of them.
    """
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}label")(plain_words(given[0].title.text))
    _set_limits(axes, which, given)
    categories = axis.__dict__.get("inrank_categories")
    if any(one.tickvals is not None for one in given):
        _set_ticks(axes, which, given, categories)
    elif categories is not None:
        axis.set_ticks(range(len(categories)), labels=[plain_words(one) for one in categories])
    if given[0].type == "log":
        axis.set_minor_locator(_nothing())
    if given[0].visible is False:
        axis.set_visible(False)


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _set_limits(axes: Any, which: str, given: list[Any]) -> None:
    low, high = getattr(axes, f"get_{which}lim")()
    ranges = [one.range for one in given if one.range is not None]
    if len(ranges) == len(given):
        pairs = np.array([[float(end) for end in one] for one in ranges])
        if given[0].type == "log":
            pairs = 10.0**pairs
        falls = bool(pairs[0, 0] > pairs[0, 1])
        low, high = (pairs.max(), pairs.min()) if falls else (pairs.min(), pairs.max())
    elif given[0].type != "log" and given[0].rangemode in ("tozero", "nonnegative") and low <= high:
        low = 0.0 if given[0].rangemode == "tozero" and low > 0 else low
        low = 0.0 if low < 0 <= _least(axes, which) else low
    if given[0].autorange == "reversed":
        low, high = high, low
    getattr(axes, f"set_{which}lim")(low, high)


def _least(axes: Any, which: str) -> float:
    """The least value drawn."""
    return float(getattr(axes.dataLim, f"{which}0")) if np.isfinite(axes.dataLim.get_points()).all() else 0.0


def _set_ticks(axes: Any, which: str, given: list[Any], categories: list[str] | None) -> None:
    """Plotly's ticks; on a shared axis those of all panels, as many as there is room for."""
    texts: dict[Any, str] = {}
    for one in given:
        values = one.tickvals if one.tickvals is not None else ()
        words = one.ticktext if one.ticktext is not None else [v if isinstance(v, str) else f"{v:g}" for v in values]
        texts |= dict(zip(values, words, strict=True))
    places = {tick: categories.index(str(tick)) if categories and str(tick) in categories else tick for tick in texts}
    ticks = [tick for tick in texts if not is_words([places[tick]])]
    if given[0].type == "log":
        low, high = sorted(getattr(axes, f"get_{which}lim")())
        ticks = sorted(tick for tick in ticks if low <= tick <= high)
        decades = [tick for tick in ticks if np.isclose(np.log10(tick) % 1, [0, 1]).any()]
        ticks = ticks if len(ticks) <= MOST_TICKS else decades
        ticks = ticks[:: -(-len(ticks) // MOST_TICKS) or 1]
    axis = getattr(axes, f"{which}axis")
    labels = [plain_words(texts[tick]) for tick in ticks]
    axis.set_ticks([places[tick] for tick in ticks], labels=labels)
    if which == "y" and any("\n" in label for label in labels):  # a row's words stand on its line, clear of the x axis
        for label in axis.get_ticklabels():
            label.set_verticalalignment("bottom")


def draw_shape(axes: Any, shape: Any) -> None:
    """A straight line or a rectangle.

    Raises:
        ValueError: another shape.
    """
    style = {"color": colour(shape.line.color) or TEXT, "linewidth": (shape.line.width or 1.5) * THINNER}
    style |= {"linestyle": DASHES.get(shape.line.dash or "solid", "-"), "zorder": 1.9}
    across, up = "domain" in str(shape.xref) or shape.xref == "paper", "domain" in str(shape.yref)
    if shape.type == "line" and across and shape.y0 == shape.y1:
        axes.axhline(shape.y0, **style)
    elif shape.type == "line" and (up or shape.yref == "paper") and shape.x0 == shape.x1:
        axes.axvline(shape.x0, **style)
    elif shape.type == "line":
        axes.plot([shape.x0, shape.x1], [shape.y0, shape.y1], **style)
    elif shape.type == "rect":
        face = {"color": colour(shape.fillcolor) or "none", "linewidth": 0, "zorder": 0.5, "alpha": shape.opacity}
        if across:
            axes.axhspan(shape.y0, shape.y1, **face)
        else:
            axes.axvspan(shape.x0, shape.x1, **face)
    else:
        raise ValueError(f"a shape of type {shape.type!r} cannot be drawn on paper")


def with_notes_in_rows(figure: go.Figure) -> go.Figure:
    """The figure with the notes at the left end of its rows moved into the rows' labels, where they hide no curve."""
    axis = figure.layout.yaxis
    notes = [one for one in figure.layout.annotations if one.xref == "paper" and one.x == 0 and one.yref in (None, "y")]
    if axis.ticktext is None or not notes:
        return figure
    texts = list(axis.ticktext)
    for note in notes:
        row = max(range(len(texts)), key=lambda at: (axis.tickvals[at] <= note.y, axis.tickvals[at]))
        texts[row] += "<br>" + str(note.text).replace("directions ", "").replace("direction ", "")
    kept = [one for one in figure.layout.annotations if one not in notes]
    moved = go.Figure(figure).update_layout(yaxis_ticktext=texts)
    moved.layout.annotations = kept
    return moved


def draw_note(axes: Any, note: Any) -> None:
    """Words in the panel, or in its margin."""
    from matplotlib.transforms import blended_transform_factory

    if note.visible is False or not note.text:
        return
    sides = [
        axes.transAxes if "paper" in str(ref) or "domain" in str(ref) else axes.transData
        for ref in (note.xref or "x", note.yref or "y")
    ]
    place = [  # Plotly's notes lie at the logarithm of what they belong to
        10.0**at if side is axes.transData and scale == "log" else at
        for at, side, scale in zip((note.x, note.y), sides, (axes.get_xscale(), axes.get_yscale()), strict=True)
    ]
    axes.annotate(
        plain_words(note.text),
        place,
        xycoords=blended_transform_factory(*sides),
        xytext=((note.xshift or 0) * THINNER, (note.yshift or 0) * THINNER),
        textcoords="offset points",
        ha=_PLACES.get(note.xanchor or "center", "center"),
        va=_PLACES.get(note.yanchor or "middle", "center"),
        fontsize=6.5,
        color=TEXT,
        zorder=9,
    )


def axis_of(figure: go.Figure, name: str | None) -> Any:
    """`"y3"` -> the figure's `yaxis3`."""
    name = name or "x"
    return figure.layout[f"{name[0]}axis{name[1:]}"]
