"""Whether a run has diverged, by what was logged and measured: then its ranks are those of no training."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

DIVERGED = "diverged"
_LOSSES = ("loss", "train/loss", "train_loss")
_ANY_LOSS = re.compile(r"(^|[^a-z])loss$", re.IGNORECASE)
_LEAST_VALUES = 10  # of a loss, at either end: chance alone puts all of one above all of the other once in 180 000


@dataclass(frozen=True)
class Divergence:
    """When a run left the path, and how that is known.

    Attributes:
        step: the first one of which it is known.
        text: `diverged: loss is not finite since step 30`.
        everywhere: whether it speaks of all matrices, and not of a few that are not finite.
    """

    step: int
    text: str
    everywhere: bool = True


def find_divergence(scalars: pd.DataFrame, measurements: pd.DataFrame) -> Divergence | None:
    """By a loss if it tells, else by the matrices: the newest measurement of one is not finite; None if neither.

    Args:
        scalars: `run.scalars`.
        measurements: `run.measurements`, or recomputed.
    """
    return loss_divergence(scalars) or _not_finite(measurements)


def loss_divergence(scalars: pd.DataFrame) -> Divergence | None:
    """By the logged losses: one is not finite at the end, or that of training ended above where it began.

    The last tenth is compared with the first, and only of a loss that is above zero throughout: others, of policies
    say, are no measure of progress.
    """
    logged = [str(name) for name in scalars["name"].unique()]
    training = next((name for name in _LOSSES if name in logged), None)
    others = sorted(name for name in logged if name not in _LOSSES and _ANY_LOSS.search(name))
    for name in [training, *others] if training else others:
        rows = scalars[scalars["name"] == name].sort_values("step", kind="stable")
        values, steps = rows["value"].to_numpy(dtype=float), rows["step"].to_numpy()
        finite = np.isfinite(values)
        if not finite[-1]:
            first = int(steps[np.flatnonzero(finite)[-1] + 1 if finite.any() else 0])
            return Divergence(first, f"{DIVERGED}: {name} is not finite since step {first}")
        if name == training and (found := _risen(name, values, steps)):
            return found
    return None


def _risen(name: str, values: np.ndarray, steps: np.ndarray) -> Divergence | None:
    """A loss of training that ended above where it began."""
    finite = np.isfinite(values)
    window = max(_LEAST_VALUES, len(values) // 10)
    if len(values) < 2 * window or not values[finite].min() > 0:
        return None
    values = np.where(finite, values, np.inf)
    first, last = values[:window], values[-window:]
    height = np.quantile(first, 0.9, method="higher")
    if np.quantile(last, 0.1, method="lower") <= height:
        return None
    since = np.flatnonzero(values[:-window] <= height)[-1] + 1
    text = f"{DIVERGED}: {name} ended at {np.median(last):.4g}, above the {np.median(first):.4g} of its beginning"
    return Divergence(int(steps[since]), text)


def _not_finite(measurements: pd.DataFrame) -> Divergence | None:
    """By the matrices, whose newest measurement counts: what was not finite for a while is an event."""
    newest = measurements.drop_duplicates("matrix", keep="last")
    bad = newest[~np.isfinite(newest["spectral_norm"].to_numpy(dtype=float))]
    if bad.empty:
        return None
    rows = measurements[measurements["matrix"].isin(bad["matrix"])]
    fine = rows[np.isfinite(rows["spectral_norm"].to_numpy(dtype=float))].groupby("matrix", observed=True)["step"].max()
    last_fine = rows["matrix"].astype(str).map({str(name): step for name, step in fine.items()}).fillna(-1)
    step = int(rows.loc[rows["step"] > last_fine, "step"].min())
    count = f"{len(bad)} of {len(newest)} matrices" if len(newest) > 1 else "the matrix"
    return Divergence(step, f"not finite: {count} since step {step}", everywhere=2 * len(bad) > len(newest))


def with_divergence(events: pd.DataFrame, diverged: Divergence | None) -> pd.DataFrame:
    """What happened in a run, and that it diverged: for figures that mark events over steps."""
    if diverged is None:
        return events
    row = {"step": diverged.step, "time": np.nan, "kind": DIVERGED, "matrix": None, "message": diverged.text}
    mark = pd.DataFrame([row], columns=list(events.columns))
    return mark if events.empty else pd.concat([events, mark.astype(events.dtypes.to_dict())], ignore_index=True)
