"""The same quantity in several runs: a line a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.lines import MARKERS_UP_TO
from inrank_monitor.figures.names import plotly_text, shorten
from inrank_monitor.figures.style import NEUTRAL, category, empty_figure, new_figure, side_legend, step_axis
from inrank_monitor.figures.tables import RANK_COLUMNS, check_column, column_title, numbers, thin

Align = Literal["step", "share"]
MOST_POINTS = 20_000
DASHES = ("solid", "dot", "dashdot", "longdash")


def mean_over_matrices(measurements: pd.DataFrame, column: str) -> pd.DataFrame:
    """step, `column` and null_rank, each the mean over the matrices measured at that step; NaN is left out."""
    values = pd.DataFrame(
        {
            "step": measurements["step"].to_numpy(),
            column: numbers(measurements[column]),
            "null_rank": numbers(measurements["null_rank"]),
        }
    )
    return values.groupby("step", as_index=False).mean()


def run_comparison(
    runs: Mapping[str, pd.DataFrame],
    column: str = "running_rank",
    matrix: str | None = None,
    *,
    align: Align = "step",
    log_steps: bool = False,
) -> go.Figure:
    """One matrix in several runs over steps, or over the share of each run's training so far.

    Args:
        runs: run name -> its measurements.
        column: any numeric column of them.
        matrix: name of the matrix; runs that have none of that name are left out. None: the mean over all matrices.
        align: `"step"`, or `"share"`: each run's own last measured step is 1.
        log_steps: logarithmic step axis, which hides step 0; with `"share"` it has no effect.

    Raises:
        ValueError: an unknown column or way to align.
    """
    if align not in get_args(Align):
        raise ValueError(f"align must be one of {get_args(Align)}, got {align!r}")
    figure = new_figure("", "step" if align == "step" else "share of training so far", column_title(column))
    log_steps = log_steps and align == "step"
    limit = max(MOST_POINTS // max(len(runs), 1), 50)
    nulls: dict[int, list[int]] = {}
    for position, (name, measurements) in enumerate(runs.items()):
        rows = _rows(measurements, column, matrix)
        rows = rows[rows["step"] > 0] if log_steps else rows
        values = numbers(rows[column]) if len(rows) else np.array([])
        if not np.isfinite(values).any():
            continue
        steps = rows["step"].to_numpy(dtype=np.float64)
        x = steps / max(float(measurements["step"].max()), 1.0) if align == "share" else steps
        _add_run(figure, x, values, name, position, column, limit)
        null = numbers(rows["null_rank"])
        if column in RANK_COLUMNS and np.isfinite(null).any():
            nulls.setdefault(round(float(null[np.isfinite(null)][-1])), []).append(position)
    if not figure.data:
        return empty_figure("no finite measurement yet" if matrix is None else "no run has measured this matrix yet")
    for null_rank, positions in sorted(nulls.items()):
        colour = category(positions[0]) if len(positions) == 1 < len(runs) else NEUTRAL
        figure.add_hline(y=null_rank, line={"color": colour, "width": 1.2, "dash": "dash"})
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="right",
            yanchor="bottom",
            y=null_rank,
            text=f"null rank {null_rank}",
            showarrow=False,
        )
    if align == "step":
        step_axis(figure, np.concatenate([np.asarray(trace.x) for trace in figure.data]), log_steps)
    if column != "explained_ratio":
        figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
    if len(runs) > 8:
        side_legend(figure)
    return figure


def _rows(measurements: pd.DataFrame, column: str, matrix: str | None) -> pd.DataFrame:
    if measurements.empty:
        return measurements
    check_column(measurements, column)
    if matrix is None:
        return mean_over_matrices(measurements, column)
    return measurements[measurements["matrix"] == matrix].sort_values("step")


def _add_run(
    figure: go.Figure, x: np.ndarray, values: np.ndarray, name: str, position: int, column: str, limit: int
) -> None:
    kept = thin(values, limit)
    staircase = column in (*RANK_COLUMNS, "capacity")
    figure.add_scatter(
        x=x[kept],
        y=values[kept],
        mode="lines+markers" if len(kept) <= MARKERS_UP_TO else "lines",
        line={
            "color": category(position),
            "dash": DASHES[position // 6 % len(DASHES)],
            "width": 1.8,
            "shape": "hv" if staircase else "linear",
        },
        marker={"size": 5},
        name=plotly_text(shorten(name, 40)),
        meta=[plotly_text(name)],
        hovertemplate=f"<b>%{{meta[0]}}</b><br>at %{{x:.4~g}}<br>{column_title(column)} %{{y:.4~g}}<extra></extra>",
    )


def loss_comparison(runs: Mapping[str, pd.DataFrame], name: str = "loss", *, align: Align = "step") -> go.Figure:
    """One logged scalar in several runs, in the colours of `run_comparison`.

    Args:
        runs: run name -> its scalars.
        name: of the scalar; runs that have not logged it are left out.
        align: as in `run_comparison`.
    """
    figure = new_figure("", "step" if align == "step" else "share of training so far", plotly_text(name))
    for position, (run, scalars) in enumerate(runs.items()):
        rows = scalars[scalars["name"] == name].sort_values("step", kind="stable")
        if len(rows):
            steps = rows["step"].to_numpy(dtype=np.float64)
            x = steps / max(float(steps.max()), 1.0) if align == "share" else steps
            _add_run(figure, x, numbers(rows["value"]), run, position, name, max(MOST_POINTS // len(runs), 50))
    if not figure.data:
        return empty_figure(f"no run has logged {plotly_text(name)}")
    figure.update_layout(showlegend=True, yaxis_title_text=plotly_text(name))
    return figure
