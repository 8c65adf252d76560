"""Why a run, or a matrix of it, gets no advice: it diverged, it was too short, or its spectrum looks like noise.

A rank that the loss has confirmed was measured, and not read off a spectrum: it stands where the spectrum says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from inrank_monitor.runs import loss_divergence

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

LEAST_STEPS = 20  # twice what counts as first steps: under Adam an early update is close to a matrix of signs
NOT_MEASURED = "no update measured"
# Verdicts on a spectrum: of the first two there is no update to advise on, of the others its ranks say nothing.
NO_UPDATE = ("not finite", "has not moved")
NOTHING_STANDS_OUT = ("like noise", "flatter than noise")  # one too thin to tell may well have structure


def run_reason(run: Run) -> str | None:
    """Why no matrix of a run gets advice, whatever the ranks come from; None if nothing speaks against it."""
    diverged = loss_divergence(run.scalars)
    return diverged.text if diverged else _too_short(run)


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
