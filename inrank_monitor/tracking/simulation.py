"""A training on paper: which steps a schedule measures, and what that costs, without a training or a clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from inrank_monitor.tracking.schedule import Schedule


@dataclass(frozen=True)
class Simulated:
    """What came of it.

    Attributes:
        first: the step before the first one.
        last: the last step.
        steps: measured, ascending; the last one's snapshot, which closing takes, is among them.
        times: seconds since attach at the end of each snapshot.
        spent: seconds that the tracker had taken by then.
    """

    first: int
    last: int
    steps: tuple[int, ...]
    times: tuple[float, ...]
    spent: tuple[float, ...]

    @property
    def share(self) -> float:
        """Of the time, the tracker's, at the end."""
        return self.spent[-1] / self.times[-1]

    @property
    def largest_ratio(self) -> float:
        """Between a measured step and the one before it."""
        return max((later / earlier for earlier, later in pairwise(self.steps)), default=math.inf)

    def until(self, seconds: float) -> int:
        """How many snapshots so many seconds hold."""
        return sum(time <= seconds for time in self.times)


def simulate(
    schedule: Schedule,
    seconds: float,
    step_seconds: Callable[[int], float],
    cost: Callable[[int, int], float],
    first: int = 0,
    attaching: float = 0.0,
) -> Simulated:
    """Train for so many seconds, and measure when the schedule says so, and at the end.

    Args:
        schedule: a new one; it is asked and told as a tracker does.
        seconds: of wall time; the last step ends after them.
        step_seconds: of the step of this number.
        cost: seconds of a snapshot, by how many were taken before it and by its step.
        first: the step at which a resumed run takes up.
        attaching: seconds that attach took.
    """
    elapsed = spent = attaching
    steps: list[int] = []
    times: list[float] = []
    costs: list[float] = []
    step = first
    while elapsed < seconds or step == first:
        step += 1
        elapsed += step_seconds(step)
        due = schedule.due(step, elapsed, spent)
        if due or elapsed >= seconds:
            took = cost(len(steps), step)
            elapsed, spent = elapsed + took, spent + took
            schedule.measured(step, took)
            steps.append(step)
            times.append(elapsed)
            costs.append(spent)
    return Simulated(first, step, tuple(steps), tuple(times), tuple(costs))
