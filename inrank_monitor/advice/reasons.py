"""Why a run, or a matrix of it, gets no advice: it diverged, it was too short, or its spectrum looks like noise.

A rank that the loss has confirmed was measured, and not read off a spectrum: it stands where the spectrum says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

LEAST_STEPS = 20  # twice what counts as first steps: under Adam an early update is close to a matrix of signs
NOT_MEASURED = "no update measured"
# Verdicts on a spectrum: of the first two there is no update to advise on, of the others its ranks say nothing.
NO_UPDATE = ("not finite", "has not moved")
NOTHING_STANDS_OUT = ("like noise", "flatter than noise")  # one too thin to tell may well have structure
_LOSSES = ("loss", "train/loss", "train_loss")
_LEAST_VALUES = 10  # of a loss, at either end: chance alone puts all of one above all of the other once in 180 000


def run_reason(run: Run) -> str | None:
    """Why no matrix of a run gets advice, whatever the ranks come from; None if nothing speaks against it."""
    return _diverged(run.scalars) or _too_short(run)


def matrix_reason(step: object, verdict: str) -> str | None:
    """Why a matrix gets no advice, whatever its rank comes from.

    Args:
        step: of its newest measurement; NA if there is none.
        verdict: on that.
    """
    if pd.isna(step):  # type: ignore[call-overload]
        return NOT_MEASURED
    return verdict if verdict in NO_UPDATE else None


def spectrum_reason(verdict: str) -> str | None:
    """Why a rank that was read off the newest spectrum is no advice, by the verdict on that."""
    return verdict if verdict in NOTHING_STANDS_OUT else None


def _too_short(run: Run) -> str | None:
    if run.options.initial_weights == "checkpoint":  # what its steps count is the files' own affair
        return None
    step = run.summary().step
    return f"too short: {step} steps, where {LEAST_STEPS} are the least" if step < LEAST_STEPS else None


def _diverged(scalars: pd.DataFrame) -> str | None:
    """By the logged loss: it is not finite at the end, or ended above where it began.

    The last tenth is compared with the first, and only of a loss that is above zero throughout: others, of policies
    say, are no measure of progress.
    """
    name = next((name for name in _LOSSES if (scalars["name"] == name).any()), None)
    if name is None:
        return None
    rows = scalars[scalars["name"] == name].sort_values("step", kind="stable")
    values, steps = rows["value"].to_numpy(dtype=float), rows["step"].to_numpy()
    finite = np.isfinite(values)
    if not finite[-1]:
        first = np.flatnonzero(finite)[-1] + 1 if finite.any() else 0
        return f"diverged: {name} is not finite since step {steps[first]}"
    window = max(_LEAST_VALUES, len(values) // 10)
    if len(values) < 2 * window or not values[finite].min() > 0:
        return None
    values = np.where(finite, values, np.inf)
    first, last = values[:window], values[-window:]
    if np.quantile(last, 0.1, method="lower") <= np.quantile(first, 0.9, method="higher"):
        return None
    return f"diverged: {name} ended at {np.median(last):.4g}, above the {np.median(first):.4g} of its beginning"
