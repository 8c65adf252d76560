"""What a page in Chromium looks like: where things stand, what is cut or covered, how well text is seen."""

from __future__ import annotations

import re
from typing import Any

# Of every figure its box, its texts (box, fill), the boxes of its buttons, and the looks of its legend's entries.
_LOOK = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const box = one => {
    const { left, top, right, bottom } = one.getBoundingClientRect();
    return [left, top, right, bottom];
  };
  const seen = [...plot.querySelectorAll('svg.main-svg text')].filter(one =>
    one.textContent.trim() && !one.closest('.hoverlayer') && getComputedStyle(one).visibility !== 'hidden');
  const entry = one => {
    const shape = one.querySelector('.legendlines path, .legendpoints path, .legendfill path');
    const style = shape && getComputedStyle(shape);
    return style && [style.fill, style.fillOpacity, style.stroke, style.strokeOpacity].join(' ');
  };
  return {
    box: box(plot),
    texts: seen.map(one => ({text: one.textContent, box: box(one), fill: getComputedStyle(one).fill,
                             opacity: +getComputedStyle(one).fillOpacity * +getComputedStyle(one).opacity})),
    buttons: box(plot.querySelector('.modebar')),
    legend: [...plot.querySelectorAll('.legend .traces')].map(entry),
  };
})"""
_BACKGROUND = "getComputedStyle(document.querySelector('.stApp')).backgroundColor"
_ROW = """() => [...document.querySelectorAll('.st-key-choices .stHorizontalBlock > *')]
  .map(one => one.getBoundingClientRect().top + one.getBoundingClientRect().height)"""


def figures(page: Any) -> list[dict[str, Any]]:
    """What of each figure a reader sees."""
    return list(page.evaluate(_LOOK))


def lower_edges_of_controls(page: Any) -> list[float]:
    """Where each control in the row of a view ends, in pixels from the top."""
    return list(page.evaluate(_ROW))


def poorly_seen(figure: dict[str, Any], background: str) -> list[str]:
    """Texts with less than 4.5:1 on the page."""
    found = []
    for text in figure["texts"]:
        ratio = contrast(text["fill"], background)
        if ratio < 4.5 or text["opacity"] < 1:
            found.append(f"{text['text']!r} has {ratio:.1f}:1")
    return found


def covered(figure: dict[str, Any]) -> list[str]:
    """Texts that are cut at the figure's edge, lie over one another, or under the buttons."""
    texts, edge = figure["texts"], figure["box"]
    found = [f"{one['text']!r} is cut" for one in texts if not _inside(one["box"], edge)]
    found += [f"{one['text']!r} is under the buttons" for one in texts if _overlap(one["box"], figure["buttons"])]
    for place, one in enumerate(texts):
        found += [
            f"{one['text']!r} lies over {other['text']!r}"
            for other in texts[place + 1 :]
            if _overlap(one["box"], other["box"])
        ]
    return found


def background(page: Any) -> str:
    """The page's colour."""
    return str(page.evaluate(_BACKGROUND))


def contrast(one: str, other: str) -> float:
    """The web's contrast ratio of two colours written as `rgb(r, g, b)`."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _inside(box: list[float], edge: list[float]) -> bool:
    return box[0] >= edge[0] - 1 and box[1] >= edge[1] - 1 and box[2] <= edge[2] + 1 and box[3] <= edge[3] + 1


def _overlap(one: list[float], other: list[float]) -> bool:
    """By more than two pixels: a text's box is higher than its letters."""
    return min(one[2], other[2]) - max(one[0], other[0]) > 2 and min(one[3], other[3]) - max(one[1], other[1]) > 3
