"""Each singular value over steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.lines import MARKERS_UP_TO
from inrank_monitor.figures.names import plotly_text
from inrank_monitor.figures.style import add_lines, empty_figure, logarithmic, more_ink, new_figure, step_axis
from inrank_monitor.figures.tables import geometric, thin

MOST_LINES = 32
MOST_POINTS = 9_000  # a figure: of 32 lines one for every other pixel of its width
THINNED = "thinned: of each line the first, the last and the extreme points"


def spectrum_evolution(
    singular_values: pd.DataFrame,
    name: str = "",
    count: int | None = None,
    log: bool = False,
    *,
    log_steps: bool = False,
) -> go.Figure:
    """Each σ_i of the cumulative update over steps, darker is stronger (paper, Figures 3 and 8–15).

    Of more than `count` values, all leading ones are drawn and ever fewer of the rest; the first and the
    last stay. Of more snapshots than a figure has room for, those stay that shape a line, and the figure says so. On a
    dark page read "more ink" for "darker".

    Args:
        singular_values: `run.singular_values(name)`: index step, descending values in columns 1..q. Rows of
            NaN (a non-finite update) are gaps.
        name: the matrix, for the title.
        count: at most so many lines. Default: 32.
        log: logarithmic σ axis; zeros are left out.
        log_steps: logarithmic step axis, which hides step 0.

    Raises:
        ValueError: `count` below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not len(singular_values.index):
        return empty_figure("no measurements yet", plotly_text(name))
    values = singular_values.to_numpy(dtype=np.float64, copy=True)
    values[~np.isfinite(values)] = np.nan
    if np.isnan(values).all():
        return empty_figure("no finite measurement yet", plotly_text(name))
    if log:
        values[values <= 0] = np.nan
        if np.isnan(values).all():
            return empty_figure("all singular values are 0: a logarithmic axis cannot show them", plotly_text(name))
    figure = new_figure(plotly_text(name), "step", "singular value σ of ΔW")
    steps = singular_values.index.to_numpy()
    shown = steps > 0 if log_steps else np.full(len(steps), True)
    if _add_values(figure, steps[shown], values[shown], count or MOST_LINES, log_steps):
        figure.update_xaxes(title_text=f"step<br><i>{THINNED}</i>")
    step_axis(figure, steps, log_steps)
    figure.update_yaxes(**(logarithmic(values[shown]) if log else {"rangemode": "tozero"}))
    return figure


def _add_values(figure: go.Figure, steps: np.ndarray, values: np.ndarray, lines: int, log_steps: bool) -> bool:
    """Draw the lines; whether some of their points were left out."""
    total = values.shape[1]
    chosen = geometric(total, lines)
    limit = max(MOST_POINTS // len(chosen), 50)
    # The strongest last, so that they lie on top.
    add_lines(figure, (_line(i, steps, values, limit, log_steps) for i in reversed(chosen.tolist())))
    if len(chosen) > 1:
        _add_scale(figure, total)
    return len(steps) > limit


def _line(i: int, steps: np.ndarray, values: np.ndarray, limit: int, log_steps: bool) -> dict[str, object]:
    total = values.shape[1]
    kept = thin(values[:, i], limit, by_ratio=log_steps)
    return {
        "x": steps[kept],
        "y": values[kept, i],
        "mode": "lines+markers" if len(kept) == 1 else "lines",
        "line": {"color": more_ink(_position(i, total)), "width": 1.6 if len(steps) <= MARKERS_UP_TO else 1.2},
        "marker": {"size": 5},
        "name": f"σ{i + 1}",
        "meta": [i + 1],
        "showlegend": False,
        "hovertemplate": f"σ<sub>%{{meta[0]}}</sub> of {total} = %{{y:.4~g}}<br>step %{{x}}<extra></extra>",
    }


def _position(index: int, total: int) -> float:
    """0 for σ₁ to 1 for σ_q, by the logarithm of the index: the strong ones are told apart."""
    return float(np.log(index + 1) / np.log(total)) if total > 1 else 0.0


def _add_scale(figure: go.Figure, total: int) -> None:
    """A colour bar that says which ink is which index, in place of a legend of dozens of entries."""
    marks = [m for m in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if m * 2 < total] + [total]
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        hoverinfo="skip",
        showlegend=False,
        marker={
            "color": [0],
            "cmin": 0,
            "cmax": 1,
            "colorscale": [[i / 10, more_ink(1 - i / 10)] for i in range(11)],
            "showscale": True,
            "colorbar": {
                "title": {"text": "index of σ", "side": "right"},
                "tickvals": [1 - _position(m - 1, total) for m in marks],
                "ticktext": [str(m) for m in marks],
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
    )
