"""The same quantity in several runs: a line a run, or mean and spread of those that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.curves import Curve
from inrank_monitor.figures.names import plotly_text
from inrank_monitor.figures.run_lines import Look, add_lines
from inrank_monitor.figures.style import NEUTRAL, category, empty_figure, logarithmic, new_figure, side_legend
from inrank_monitor.figures.tables import (
    RANK_COLUMNS,
    check_column,
    column_title,
    is_held,
    matrix_names,
    names_meant,
    numbers,
)
from inrank_monitor.ranks import OF_SOME_MATRICES


class Alignment(Protocol):
    """How runs are laid over each other; see `inrank_monitor.runs.align`."""

    @property
    def title(self) -> str:
        """Of the axis."""
        ...

    def place(self, run: str, steps: np.ndarray) -> np.ndarray:
        """Where the steps of a run lie on it."""
        ...


Align = Literal["step", "share"] | Alignment
_WORDS = ("step", "share")
_NOTE = 0.09  # height of a note, of the axis


@dataclass(frozen=True)
class _ByStep:
    """By step, or by share of each run's last one."""

    align: str
    last: Mapping[str, float]

    @property
    def title(self) -> str:
        return "step" if self.align == "step" else "share of training so far"

    def place(self, run: str, steps: np.ndarray) -> np.ndarray:
        return steps / max(self.last[run], 1.0) if self.align == "share" else steps


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
    matrix: str | Sequence[str] | None = None,
    *,
    align: Align = "step",
    groups: Mapping[str, Sequence[str]] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """One matrix in several runs over steps, over the share of each run's training so far, or any other alignment.

    Args:
        runs: run name -> its measurements.
        column: any numeric column of them.
        matrix: name of the matrix, also as a table prints it; runs that have none of that name are left out. Several:
            the mean over these. None: the mean over all matrices.
        align: `"step"`, `"share"`: each run's own last measured step is 1, or an `inrank_monitor.runs.align`.
        groups: label -> names of runs: a group of several is drawn as its mean, within a band of one standard
            deviation to both sides. Default: a line a run.
        log_x: logarithmic x axis, which hides what is not above 0.
        log_y: the same of the y axis.

    Raises:
        ValueError: an unknown column or way to align, or a name that several matrices could have.
    """
    rows = {name: _rows(measurements, column, matrix) for name, measurements in runs.items()}
    axis = _alignment(align, runs)
    curves: dict[str, Curve] = {}
    nulls: dict[str, float] = {}
    for name, one in rows.items():
        values = numbers(one[column]) if len(one) else np.array([])
        if not np.isfinite(values).any():
            continue
        steps = one["step"].to_numpy(dtype=np.float64)
        curves[name] = Curve.of(axis.place(name, steps), values, is_held(column), log_x)
        null = numbers(one["null_rank"])
        if column in RANK_COLUMNS and np.isfinite(null).any():
            nulls[name] = float(null[np.isfinite(null)][-1])
    if not any(np.isfinite(curve.y).any() for curve in curves.values()):
        return empty_figure("no finite measurement yet" if matrix is None else "no run has measured this matrix yet")
    figure = new_figure("", axis.title, column_title(column))
    places = add_lines(figure, curves, groups or {name: [name] for name in runs}, Look(column_title(column), log_y))
    _add_null_lines(figure, nulls, places, log_y)
    _finish(figure, log_x, log_y, many=len(set(places.values())))
    if column != "explained_ratio" and not log_y:
        figure.update_yaxes(rangemode="tozero")
    return figure


def _rows(measurements: pd.DataFrame, column: str, matrix: str | Sequence[str] | None) -> pd.DataFrame:
    if measurements.empty:
        return measurements
    check_column(measurements, column)
    if matrix is None:
        return mean_over_matrices(measurements, column)
    if not isinstance(matrix, str):
        return mean_over_matrices(measurements[measurements["matrix"].isin(list(matrix))], column)
    names = names_meant(matrix, matrix_names(measurements))
    if len(names) > 1:
        raise ValueError(f"matrix must be one matrix, {matrix!r} could be {', '.join(names[:4])}")
    return measurements[measurements["matrix"].isin(names)].sort_values("step")


def _alignment(align: Align, runs: Mapping[str, pd.DataFrame]) -> Alignment:
    if not isinstance(align, str):
        return align
    if align not in _WORDS:
        raise ValueError(f"align must be one of {_WORDS} or an alignment, got {align!r}")
    return _ByStep(align, {name: float(table["step"].max()) if len(table) else 0.0 for name, table in runs.items()})


def _add_null_lines(figure: go.Figure, nulls: Mapping[str, float], places: Mapping[str, int], log_y: bool) -> None:
    """The rank of noise, dashed: in the colour of the line that has it alone, else grey."""
    owners: dict[int, set[int]] = {}
    for name, null_rank in nulls.items():
        owners.setdefault(round(null_rank), set()).add(places[name])
    shown = sorted(null_rank for null_rank in owners if null_rank > 0 or not log_y)
    for null_rank in shown:
        lines = owners[null_rank]
        alone = len(lines) == 1 < len(set(places.values()))
        colour = category(next(iter(lines))) if alone else NEUTRAL
        figure.add_hline(y=null_rank, line={"color": colour, "width": 1.2, "dash": "dash"})
    for near in _near(shown):
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="right",
            yanchor="bottom",
            y=np.log10(near[-1]) if log_y else near[-1],  # Plotly's notes, unlike its lines, lie at exponents
            text=f"null rank {', '.join(map(str, near))}",
            showarrow=False,
        )


def _near(values: Sequence[int]) -> list[list[int]]:
    """Ascending values in groups of those so close to each other that their notes would overlap."""
    groups: list[list[int]] = []
    for value in values:
        if groups and value - groups[-1][-1] < _NOTE * values[-1]:
            groups[-1].append(value)
        else:
            groups.append([value])
    return groups


def loss_comparison(
    runs: Mapping[str, pd.DataFrame],
    name: str | Callable[[pd.DataFrame], pd.DataFrame] = "loss",
    *,
    title: str | None = None,
    align: Align = "step",
    groups: Mapping[str, Sequence[str]] | None = None,
    smoothing: float = 0.0,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """One logged scalar in several runs, in the colours of `run_comparison`.

    Args:
        runs: run name -> its scalars.
        name: of the scalar, or what picks its rows out of a run's; runs that have not logged it are left out.
        title: of the axis. Default: the name.
        align: as in `run_comparison`.
        groups: as in `run_comparison`.
        smoothing: weight of the exponential mean, in [0, 1); what was logged stays lightly behind.
        log_x: as in `run_comparison`.
        log_y: as in `run_comparison`.
    """
    said = plotly_text(title or (name if isinstance(name, str) else "value"))
    tables = {
        run: scalars[scalars["name"] == name] if isinstance(name, str) else name(scalars)
        for run, scalars in runs.items()
    }
    axis = _alignment(align, tables)
    curves = {
        run: Curve.of(axis.place(run, rows["step"].to_numpy(dtype=np.float64)), numbers(rows["value"]), False, log_x)
        for run, rows in tables.items()
        if len(rows)
    }
    if not any(len(curve.x) for curve in curves.values()):
        return empty_figure(f"no run has logged {said}")
    figure = new_figure("", axis.title, said)
    look = Look(said, log_y, smoothing)
    places = add_lines(figure, curves, groups or {run: [run] for run in runs}, look)
    _finish(figure, log_x, log_y, many=len(set(places.values())))
    return figure


def _finish(figure: go.Figure, log_x: bool, log_y: bool, many: int) -> None:
    """Axes and legend."""
    for wanted, update, part in ((log_x, figure.update_xaxes, "x"), (log_y, figure.update_yaxes, "y")):
        if wanted:
            values = [np.asarray(trace[part], dtype=np.float64) for trace in figure.data if trace[part] is not None]
            update(**logarithmic(np.concatenate(values)))
    if not log_x:
        figure.update_xaxes(rangemode="nonnegative")
    figure.update_layout(showlegend=True)
    if many > 8:
        side_legend(figure)
