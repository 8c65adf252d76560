"""The measurements of one snapshot, as the event file and the sinks get them, and the flat scalars drawn from them.

Tags are `intrinsic_rank/h.0.mlp.c_fc.weight` for one matrix, `intrinsic_rank/h.all.mlp.c_fc.weight` for the mean over
matrices that differ only in their numbers, `mean/intrinsic_rank` for the mean over all. The event file also has
`intrinsic_rank_by_role/q/median`: mean, median, min and max over the matrices of a role, and over all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from inrank_monitor.ranks import OF_SOME_MATRICES
from inrank_monitor.runs import FLOAT_METRICS, INTEGER_METRICS

METRICS = (*INTEGER_METRICS, *FLOAT_METRICS, "rank_over_null_rank")
TAGS = (
    "running_rank",
    "intrinsic_rank",
    "explained_ratio",
    "signal_rank",
    "stable_rank",
    "relative_norm",
    "rank_over_null_rank",
)
CURVES = ("intrinsic_rank", "rank_over_null_rank")
ROLE_TAGS = ("intrinsic_rank", "signal_rank", "relative_norm", "rank_over_null_rank")
STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "min": np.min,
    "max": np.max,
}
MOST_CURVES = 32  # matrices with curves of their own: hundreds of charts freeze a page
_NUMBER = re.compile(r"(?<![^.\[])\d+(?![^.\]])")


@dataclass(frozen=True)
class Measurements:
    """One snapshot: the matrices whose update is finite, in the tracker's order.

    Attributes:
        step: optimizer steps since attach.
        time: unix seconds.
        names: of the matrices.
        metrics: (matrices,) floats by column of `run.measurements`; NaN where there is none, or it is not known.
        singular_values: one descending array a matrix.
        watched: number of matrices that the tracker watches, measured here or not.
    """

    step: int
    time: float
    names: Sequence[str]
    metrics: Mapping[str, np.ndarray]
    singular_values: Sequence[np.ndarray]
    watched: int

    @classmethod
    def of(
        cls, step: int, when: float, columns: Mapping[str, Any], names: Sequence[str], null_ranks: Sequence[int]
    ) -> Self:
        """From the columns of a snapshot's record batch; `names` and `null_ranks` are of every watched matrix."""
        rows = np.flatnonzero(np.isfinite(columns["spectral_norm"])).tolist()  # a rank may be unknown, the update not
        places = [int(columns["matrix"][row]) for row in rows]
        metrics = {
            name: np.array([np.nan if columns[name][row] is None else columns[name][row] for row in rows], dtype=float)
            for name in (*INTEGER_METRICS, *FLOAT_METRICS)
        }
        nulls = np.array([max(null_ranks[place], 1) for place in places], dtype=float)
        return cls(
            step=step,
            time=when,
            names=[names[place] for place in places],
            metrics={**metrics, "rank_over_null_rank": metrics["intrinsic_rank"] / nulls},
            singular_values=[np.asarray(columns["singular_values"][row]) for row in rows],
            watched=len(names),
        )

    def scalars(self, curves: Sequence[str] = CURVES, matrices: Container[str] | None = None) -> dict[str, float]:
        """What suits a page of charts: the mean of each of `TAGS` over all matrices, and curves a matrix.

        Args:
            curves: the metrics that have curves of their own; any of `METRICS`.
            matrices: names of the matrices that have them. Default: every matrix of at most 32, else one curve for
                matrices that differ only in their numbers (`h.all.mlp.c_fc.weight`).

        Returns:
            Finite values by tag.
        """
        values = {f"mean/{tag}": _mean(tag, self.metrics[tag]) for tag in TAGS}
        if matrices is None and self.watched > MOST_CURVES:
            values |= self._by_group(curves)
        else:
            values |= self.by_matrix(curves, matrices)
        return _finite(values)

    def by_matrix(self, curves: Sequence[str] = TAGS, matrices: Container[str] | None = None) -> dict[str, float]:
        """Finite values by `metric/matrix`, for all matrices or those named."""
        return _finite(
            {
                f"{curve}/{name}": float(self.metrics[curve][row])
                for row, name in enumerate(self.names)
                if matrices is None or name in matrices
                for curve in curves
            }
        )

    def by_role(self, roles: Sequence[str]) -> dict[str, float]:
        """Mean, median and extremes over all matrices of each of `TAGS`, and over those of a role of some.

        Args:
            roles: of each matrix, in the order of `names`.

        Returns:
            Finite values by `metric_by_role/role/statistic`; where there is one role only, that of all matrices.
        """
        groups = {"all": np.arange(len(roles))} if roles else {}
        known = dict.fromkeys(roles)
        if len(known) > 1:
            groups |= {role: np.flatnonzero([role == other for other in roles]) for role in known}
        return _finite(
            {
                f"{tag}_by_role/{role.replace(' ', '_')}/{name}": _of_known(tag, self.metrics[tag][rows], statistic)
                for role, rows in groups.items()
                for tag in (TAGS if role == "all" else ROLE_TAGS)
                for name, statistic in STATISTICS.items()
            }
        )

    def _by_group(self, curves: Sequence[str]) -> dict[str, float]:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(self.names):
            groups[_NUMBER.sub("all", name)].append(row)  # and not "*", which some loggers refuse
        return {
            f"{curve}/{group}": _mean(curve, self.metrics[curve][rows])
            for group, rows in groups.items()
            for curve in curves
        }


def _mean(metric: str, values: np.ndarray) -> float:
    return _of_known(metric, values, np.mean)


def _of_known(metric: str, values: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> float:
    """Over the matrices; NaN of none, and where one of them has a value that its cut spectrum does not tell."""
    finite = values[np.isfinite(values)]
    if metric not in OF_SOME_MATRICES and len(finite) < len(values):
        return float("nan")
    return float(statistic(finite)) if finite.size else float("nan")


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in values.items() if np.isfinite(value)}
