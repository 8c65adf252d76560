"""Plotly's words, colours, dashes and markers as Matplotlib calls them."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np

TEXT = "#111111"  # near-black: pure black flickers beside thin lines on a screen
DASHES: dict[str, Any] = {
    "solid": "-",
    "dot": (0, (1, 1.5)),
    "dash": (0, (4, 2)),
    "longdash": (0, (7, 2)),
    "dashdot": (0, (4, 1.5, 1, 1.5)),
    "longdashdot": (0, (7, 1.5, 1, 1.5)),
}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "x": "X",
    "cross": "P",
    "triangle-up": "^",
    "triangle-down": "v",
    "star": "*",
    "star-triangle-up": "^",
    "hexagon": "h",
    "line-ew": "_",
}
_RGBA = re.compile(r"rgba?\(([^)]*)\)")
_SUBSCRIPT = re.compile(r"<sub>(.*?)</sub>")
_SUPERSCRIPT = re.compile(r"<sup>(.*?)</sup>")


def plain_words(text: str | None) -> str:
    """Plotly's text without its tags; `<br>` is a new line, `<sub>` and `<sup>` are set as mathematics."""
    if not text:
        return ""
    lines = str(text).replace("$", r"\$").replace("<br>", "\n")
    for tag, sign in ((_SUBSCRIPT, "_"), (_SUPERSCRIPT, "^")):
        lines = tag.sub(lambda found, sign=sign: rf"$\mathregular{{{sign}{{{found[1]}}}}}$", lines)
    return html.unescape(re.sub(r"</?(?:b|i|em|strong|span)\b[^>]*>", "", lines))


def colour(given: Any) -> Any:
    """A colour of Plotly's (a name, `#rrggbb`, `rgb(…)` or `rgba(…)`) as Matplotlib takes it; None stays None."""
    if given is None:
        return None
    if found := _RGBA.fullmatch(str(given).replace(" ", "")):
        parts = [float(part) for part in found[1].split(",")]
        return (*(part / 255 for part in parts[:3]), parts[3] if len(parts) > 3 else 1.0)
    return str(given)


def marker(given: Any) -> tuple[str, bool]:
    """A symbol of Plotly's as a marker, and whether it is only an outline."""
    name = str(given or "circle")
    return _MARKERS.get(name.removesuffix("-open"), "o"), name.endswith("-open")


def values(given: Any) -> np.ndarray:
    """A trace's numbers as float64, what is missing as NaN.

    Raises:
        ValueError: they are words.
    """
    if given is None:
        return np.array([])
    return np.array([np.nan if one is None else one for one in given], dtype=np.float64)


def is_words(given: Any) -> bool:
    """Whether a trace's numbers are categories, by their names."""
    return given is not None and any(isinstance(one, str) for one in given)


def whole_name(trace: Any) -> str | None:
    """A trace's whole name, which it may keep beside the short one of the legend."""
    meta = trace.meta
    is_name = isinstance(meta, list | tuple) and len(meta) == 1 and isinstance(meta[0], str)
    name: str | None = meta[0] if is_name else trace.name
    return name
