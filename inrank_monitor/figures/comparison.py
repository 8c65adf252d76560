"""The same quantity in several runs: a line a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.lines import MARKERS_UP_TO
from inrank_monitor.figures.names import plotly_text, shorten
from inrank_monitor.figures.style import NEUTRAL, category, empty_figure, new_figure, side_legend, step_axis
from inrank_monitor.figures.tables import (
    RANK_COLUMNS,
    check_column,
    column_title,
    is_held,
    matrix_names,
    names_meant,
    numbers,
    thin,
)
from inrank_monitor.ranks import OF_SOME_MATRICES

Align = Literal["step", "share"]
MOST_POINTS = 20_000
DASHES = ("solid", "dot", "dashdot", "longdash")


def mean_over_matrices(measurements: pd.DataFrame, column: str) -> pd.DataFrame:
    """step, `column` and null_rank, each the mean over the matrices measured at that step.

    An update that is not finite is left out. Where a cut spectrum does not tell the value of one, there is no mean.
    """
    values = pd.DataFrame(
        {
            "step": measurements["step"].to_numpy(),
            column: numbers(measurements[column]),
            "null_rank": numbers(measurements["null_rank"]),
        }
    )
    means = values.groupby("step", as_index=False).mean()
    if column in OF_SOME_MATRICES or "stable_rank" not in measurements:
        return means
    unknown = np.isnan(values[column]) & np.isfinite(numbers(measurements["stable_rank"]))
    return means.assign(**{column: means[column].mask(means["step"].isin(set(values["step"][unknown])))})


def run_comparison(
    runs: Mapping[str, pd.DataFrame],
    column: str = "intrinsic_rank",
    matrix: str | None = None,
    *,
    align: Align = "step",
    log_steps: bool = False,
) -> go.Figure:
    """One matrix in several runs over steps, or over the share of each run's training so far.

    Args:
        runs: run name -> its measurements.
        column: any numeric column of them.
        matrix: name of the matrix, also as a table prints it; runs that have none of that name are left out. None: the
            mean over all matrices.
        align: `"step"`, or `"share"`: each run's own last measured step is 1.
        log_steps: logarithmic step axis, which hides step 0; with `"share"` it has no effect.

    Raises:
        ValueError: an unknown column or way to align, or a name that several matrices could have.
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
        line = _Line(name, _aligned(rows["step"], measurements["step"].max(), align), values)
        _add_run(figure, line.thinned(limit), column, position)
        null = numbers(rows["null_rank"])
        if column in RANK_COLUMNS and np.isfinite(null).any():
            nulls.setdefault(round(float(null[np.isfinite(null)][-1])), []).append(position)
    if not figure.data:
        return empty_figure("no finite measurement yet" if matrix is None else "no run has measured this matrix yet")
    for null_rank, positions in sorted(nulls.items()):
        _add_null_line(figure, null_rank, category(positions[0]) if len(positions) == 1 < len(runs) else NEUTRAL)
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
    names = names_meant(matrix, matrix_names(measurements))
    if len(names) > 1:
        raise ValueError(f"matrix must be one matrix, {matrix!r} could be {', '.join(names[:4])}")
    return measurements[measurements["matrix"].isin(names)].sort_values("step")


@dataclass(frozen=True)
class _Line:
    """A quantity of one run over its steps, or over the share of its training."""

    name: str
    x: np.ndarray
    values: np.ndarray

    def thinned(self, limit: int) -> _Line:
        """At most about so many points; the first, the last and all extremes stay."""
        kept = thin(self.values, limit)
        return _Line(self.name, self.x[kept], self.values[kept])


def _aligned(steps: pd.Series, last: float, align: Align) -> np.ndarray:
    """Where the steps of a run lie on the axis, of which `last` is the last."""
    x = steps.to_numpy(dtype=np.float64)
    return x / max(float(last), 1.0) if align == "share" else x


def _add_null_line(figure: go.Figure, null_rank: int, colour: str) -> None:
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


def _add_run(figure: go.Figure, line: _Line, column: str, position: int) -> None:
    """The run's line in the look of its position among the runs."""
    figure.add_scatter(
        x=line.x,
        y=line.values,
        mode="lines+markers" if len(line.x) <= MARKERS_UP_TO else "lines",
        line={
            "color": category(position),
            "dash": DASHES[position // 6 % len(DASHES)],
            "width": 1.8,
            "shape": "hv" if is_held(column) else "linear",
        },
        marker={"size": 5},
        name=plotly_text(shorten(line.name, 40)),
        meta=[plotly_text(line.name)],
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
            line = _Line(run, _aligned(rows["step"], rows["step"].max(), align), numbers(rows["value"]))
            _add_run(figure, line.thinned(max(MOST_POINTS // len(runs), 50)), name, position)
    if not figure.data:
        return empty_figure(f"no run has logged {plotly_text(name)}")
    figure.update_layout(showlegend=True, yaxis_title_text=plotly_text(name))
    return figure
