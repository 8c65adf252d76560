"""What the user logged, over steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.names import plotly_text, shorten
from inrank_monitor.figures.style import category, empty_figure, new_figure, step_axis
from inrank_monitor.figures.tables import numbers, thin

MOST_POINTS = 2000
OWN_SCALARS = ("tracker_seconds", "tracker_overhead")


def loss_curve(scalars: pd.DataFrame, names: Iterable[str] | None = None, *, log_steps: bool = False) -> go.Figure:
    """Logged scalars over steps: those named like a loss share the first panel, the others have their own.

    Beyond 2000 points a curve is thinned; the first, the last and all extremes stay.

    Args:
        scalars: `run.scalars`, long: step, name, value.
        names: which to draw. Default: all but the tracker's own cost.
        log_steps: logarithmic step axis, which hides step 0.

    Raises:
        ValueError: a name that was not logged.
    """
    if scalars.empty:
        return empty_figure("no scalars logged yet")
    logged = [str(name) for name in scalars["name"].unique()]
    wanted = [n for n in logged if n not in OWN_SCALARS] if names is None else list(names)
    for name in wanted:
        if name not in logged:
            raise ValueError(f"no scalar named {name!r} was logged, only {logged}")
    if not wanted:
        return empty_figure("no scalars logged yet")
    losses = [name for name in wanted if "loss" in name.lower()]
    panels = ([losses] if losses else []) + [[name] for name in wanted if name not in losses]
    figure = new_figure("", "step", "", height=170 + 130 * len(panels) + (100 if len(panels) == 1 else 0))
    figure.update_layout(hovermode="x")
    drawn = 0
    for row, panel in enumerate(panels):
        for name in panel:
            rows = scalars[(scalars["name"] == name) & ((scalars["step"] > 0) | (not log_steps))]
            _add_scalar(figure, rows, name, row, drawn)
            drawn += 1
    _stack(figure, panels, scalars["step"].to_numpy(), log_steps)
    return figure


def _add_scalar(figure: go.Figure, rows: pd.DataFrame, name: str, row: int, position: int) -> None:
    rows = rows.sort_values("step", kind="stable")
    values = numbers(rows["value"])
    kept = thin(values, MOST_POINTS)
    figure.add_scatter(
        x=rows["step"].to_numpy()[kept],
        y=values[kept],
        mode="lines+markers" if len(kept) <= 30 else "lines",
        line={"color": category(position), "width": 1.6},
        marker={"size": 5},
        name=plotly_text(shorten(name, 40)),
        meta=[plotly_text(name)],
        yaxis="y" if row == 0 else f"y{row + 1}",
        hovertemplate="%{meta[0]} %{y:.5~g}<extra></extra>",
    )


def _stack(figure: go.Figure, panels: list[list[str]], steps: np.ndarray, log_steps: bool) -> None:
    """One y axis above the other over one shared step axis."""
    gap = 0.06
    share = (1 - gap * (len(panels) - 1)) / len(panels)
    tops = 1 - np.arange(len(panels)) * (share + gap)
    for row, panel in enumerate(panels):
        title = "loss" if len(panel) > 1 else shorten(panel[0], 22)
        figure.update_layout(
            {
                f"yaxis{row + 1 if row else ''}": {
                    "domain": [max(float(tops[row]) - share, 0.0), float(tops[row])],
                    "title": {"text": plotly_text(title)},
                    "anchor": "x",
                }
            }
        )
    bottom = "y" if len(panels) == 1 else f"y{len(panels)}"
    figure.update_xaxes(anchor=bottom)
    _show_constants(figure)
    step_axis(figure, steps, log_steps)
    figure.update_layout(showlegend=any(len(panel) > 1 for panel in panels))


def _show_constants(figure: go.Figure) -> None:
    """Give a panel that holds one value an axis from zero: Plotly's own, ±1, would show a learning rate as 0."""
    axes: dict[str, set[float]] = {}
    for trace in figure.data:
        axes.setdefault(trace.yaxis, set()).update(np.asarray(trace.y, dtype=float).tolist())
    for axis, values in axes.items():
        if len(values) == 1:
            figure.update_layout({f"yaxis{axis.removeprefix('y')}": {"rangemode": "tozero"}})
