"""Whether a run has enough points for a curve, and what to pass to `attach` if it has not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inrank_monitor.runs.log_files import Status
from inrank_monitor.runs.options import RunOptions

ENOUGH, WANTED = 12, 20  # snapshots: those that the default takes in 200 steps, and in two minutes
_EARLY = 200
_SPENDABLE = (
    0.75  # of `max_overhead`, by the automatic schedule; it may borrow from ten minutes, at five times the rate
)
_DEAR = 0.1


def too_few_points(
    status: Status, options: RunOptions, measurements: pd.DataFrame, scalars: pd.DataFrame
) -> str | None:
    """A sentence or two if a run is too sparsely measured to show how its ranks moved, else None.

    A run needs 12 snapshots, or as many as it has steps. One that is live is given 200 steps first, and one that is
    measured at a fixed interval its end.

    Args:
        status: of the run.
        options: that it is watched with.
        measurements: `run.measurements`.
        scalars: `run.scalars`, among them the tracker's own cost.
    """
    taken = int(measurements["step"].nunique())
    steps = max((int(table["step"].max()) for table in (measurements, scalars) if len(table)), default=0)
    early = status == "live" and (steps < _EARLY or options.every is not None)
    if taken >= min(ENOUGH, steps) or early or options.initial_weights == "checkpoint":
        return None
    so_far = " so far" if status == "live" else ""
    found = f"Only {_count(taken, 'snapshot')} in {_count(steps, 'step')}{so_far}: too few for a curve."
    interval = _interval(steps)
    cost, step_seconds = _snapshot_seconds(scalars), _step_seconds(measurements, scalars)
    if cost is None or step_seconds is None:
        return f"{found} Pass every={interval} to attach."
    share = cost / (cost + interval * step_seconds)
    found += f" One takes {_duration(cost)}. Pass every={interval} to attach ({100 * share:.2g} % of the time)"
    if options.every is not None:
        return f"{found}, or leave every out."
    budget = _budget(cost, steps * step_seconds)
    found += f" or max_overhead={budget:g}." if options.max_overhead < budget <= 1 else "."
    if share < _DEAR:
        return found
    between = _duration(cost / (_SPENDABLE * options.max_overhead))
    return (
        f"{found} {100 * options.max_overhead:.3g} % of the time buys one in {between}; leading=K or include=PATTERN "
        "makes them cheaper: `inrank-monitor plan` says how much."
    )


def _interval(steps: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... that gives as many snapshots as are wanted."""
    most = max(steps // WANTED, 1)
    power = 10 ** (len(str(most)) - 1)
    return int(max(digit * power for digit in (1, 2, 5) if digit * power <= most))


def _budget(cost: float, seconds: float) -> float:
    """The `max_overhead`, of one digit, that buys as many snapshots as are wanted in a run of so many seconds."""
    lent = min(max(5 * seconds, 300), 600)
    least = WANTED * cost / (_SPENDABLE * max(seconds, lent))
    power = 10.0 ** np.floor(np.log10(least))
    return float(round(power * np.ceil(least / power - 1e-9), 12))


def _snapshot_seconds(scalars: pd.DataFrame) -> float | None:
    """What a snapshot costs: the median of the tracker's seconds between two, or up to the only one."""
    own = scalars.loc[scalars["name"] == "tracker_seconds", "value"].to_numpy(dtype=float)
    between = np.diff(own)
    between = between[between > 0]  # a resumed run counts anew
    known = between if len(between) else own[own > 0]
    return float(np.median(known)) if len(known) else None


def _step_seconds(measurements: pd.DataFrame, scalars: pd.DataFrame) -> float | None:
    """The median over what was logged, so that a pause does not count."""
    both = pd.concat([measurements[["step", "time"]], scalars[["step", "time"]]])
    times = both.groupby("step")["time"].max().sort_index()
    steps = np.diff(times.index.to_numpy(dtype=float))
    seconds = np.diff(times.to_numpy(dtype=float)) / steps
    seconds = seconds[seconds > 0]
    return float(np.median(seconds)) if len(seconds) else None


def _duration(seconds: float) -> str:
    for unit, length, most in (("ms", 1e-3, 0.1), ("s", 1, 100), ("min", 60, 6000), ("h", 3600, np.inf)):
        if seconds < most:
            return f"{seconds / length:.2g} {unit}"
    raise AssertionError(f"no duration: {seconds}")


def _count(many: int, what: str) -> str:
    return f"{many} {what}{'s' * (many != 1)}"
