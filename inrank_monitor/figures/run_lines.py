"""Lines of runs and of groups of runs: the mean, a band of one standard deviation, what was smoothed lightly behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from inrank_monitor.figures.curves import Curve, MeanCurve, mean_and_spread
from inrank_monitor.figures.lines import MARKERS_UP_TO
from inrank_monitor.figures.names import plotly_text, shorten
from inrank_monitor.figures.style import CATEGORIES, NEUTRAL, category, legend_entry, rgba

MOST_POINTS = 20_000
DASHES = ("solid", "dot", "dashdot", "longdash")
BAND, BEHIND = 0.2, 0.3  # opacity


@dataclass(frozen=True)
class Look:
    """What all lines of a figure share.

    Attributes:
        quantity: in words, for the hover.
        log_y: whether what is not above 0 is left out.
        smoothing: weight of the exponential mean.
    """

    quantity: str
    log_y: bool = False
    smoothing: float = 0.0


def add_lines(
    figure: go.Figure, curves: Mapping[str, Curve], groups: Mapping[str, Sequence[str]], look: Look
) -> dict[str, int]:
    """Draw each group of runs, a run alone as its line, several as mean and spread.

    Args:
        figure: drawn into.
        curves: run name -> its curve; runs without one are left out.
        groups: label -> names of runs; its place among the groups is its colour.
        look: of all of them.

    Returns:
        The place of the group of each run that is drawn.
    """
    limit = max(MOST_POINTS // max(len(groups), 1), 50)
    places: dict[str, int] = {}
    banded = False
    for place, (label, names) in enumerate(groups.items()):
        members = [name for name in names if name in curves]
        if not members:
            continue
        places |= dict.fromkeys(members, place)
        raw = mean_and_spread([curves[name] for name in members])
        if look.smoothing:
            _add_behind(figure, raw.mean.thinned(limit), label, place, look)
        smoothed = mean_and_spread([curves[name].smoothed(look.smoothing) for name in members])
        drawn = (smoothed if look.smoothing else raw).thinned(limit)
        if len(members) > 1:
            banded = True
            _add_band(figure, drawn, label, place, look)
        _add_line(figure, drawn, label, place, look)
    if banded:
        square = {"symbol": "square", "size": 12, "color": rgba(NEUTRAL, 2 * BAND)}
        _key(figure, "± standard deviation over a group's runs", square)
    if look.smoothing and places:
        legend_entry(figure, "as logged", "as logged", line={"color": rgba(NEUTRAL, 2 * BEHIND), "width": 1.2})
    return places


def _key(figure: go.Figure, name: str, marker: Mapping[str, object]) -> None:
    figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=dict(marker), hoverinfo="skip")


def _dash(place: int) -> str:
    return DASHES[place // len(CATEGORIES) % len(DASHES)]


def _positive(values: np.ndarray, look: Look) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(values > 0, values, np.nan) if look.log_y else values


def _add_line(figure: go.Figure, drawn: MeanCurve, label: str, place: int, look: Look) -> None:
    """The line of a run or of a group's mean, in the look of its place."""
    x, several = drawn.mean.x, drawn.count > 1
    name = shorten(label, 44) + (f" ({drawn.count} runs)" if several else "")
    value = "%{y:.4~g}" + (" ± %{customdata:.3~g}" if several else "")
    figure.add_scatter(
        x=x,
        y=_positive(drawn.mean.y, look),
        mode="lines+markers" if len(x) <= MARKERS_UP_TO else "lines",
        line={
            "color": category(place),
            "dash": _dash(place),
            "width": 1.8,
            "shape": "hv" if drawn.mean.held else "linear",
        },
        marker={"size": 5},
        name=plotly_text(name),
        legendgroup=plotly_text(label),
        meta=[plotly_text(label)],
        customdata=drawn.deviation if several else None,
        hovertemplate=f"<b>%{{meta[0]}}</b><br>at %{{x:.4~g}}<br>{look.quantity} {value}<extra></extra>",
    )


def _add_behind(figure: go.Figure, raw: Curve, label: str, place: int, look: Look) -> None:
    """What was logged, behind its smoothed line."""
    figure.add_scatter(
        x=raw.x,
        y=_positive(raw.y, look),
        mode="lines",
        line={"color": rgba(category(place), BEHIND), "width": 1.2},
        name=plotly_text(f"{label}, as logged"),
        legendgroup=plotly_text(label),
        showlegend=False,
        hoverinfo="skip",
    )


def _add_band(figure: go.Figure, drawn: MeanCurve, label: str, place: int, look: Look) -> None:
    """One standard deviation to both sides: a closed outline for each stretch without a gap."""
    mean = drawn.mean.y
    low, high = mean - drawn.deviation, mean + drawn.deviation
    if look.log_y:  # what reaches down to 0 ends at the lowest mean
        positive = mean[mean > 0]
        high = np.where(mean > 0, high, np.nan)
        low = np.where(low > 0, low, np.minimum(positive.min(), high) if len(positive) else np.nan)
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    for part in _stretches(np.isfinite(low) & np.isfinite(high)):
        x, below = _staircase(drawn.mean.x[part], low[part], drawn.mean.held)
        _, above = _staircase(drawn.mean.x[part], high[part], drawn.mean.held)
        xs += [x, x[::-1], np.array([np.nan])]
        ys += [above, below[::-1], np.array([np.nan])]
    if not xs:
        return
    figure.add_scatter(
        x=np.concatenate(xs)[:-1],
        y=np.concatenate(ys)[:-1],
        mode="lines",
        line={"width": 0, "color": rgba(category(place), BAND)},
        fill="toself",
        fillcolor=rgba(category(place), BAND),
        name=plotly_text(f"{label}, ± standard deviation"),
        legendgroup=plotly_text(label),
        showlegend=False,
        hoverinfo="skip",
    )


def _stretches(known: np.ndarray) -> Iterator[slice]:
    """Where it is true without a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    for start, end in edges.reshape(-1, 2).tolist():
        yield slice(start, end)


def _staircase(x: np.ndarray, y: np.ndarray, held: bool) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a staircase, where values hold until the next one."""
    return (np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]) if held else (x, y)
