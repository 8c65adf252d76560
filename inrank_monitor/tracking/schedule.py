"""At which steps to measure, and the overhead budget.

Time is an argument (seconds from any clock), so that tests never sleep. A schedule sees the measured cost of every
snapshot and is asked once a step; asking costs well under a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

GRACE_SECONDS = 60.0
_MIN_RATIO = 1.05
SPENDABLE = 0.75
_FURTHEST = 1000


class Schedule(Protocol):
    """What a tracker asks of a schedule."""

    def due(self, step: int, elapsed: float, spent: float) -> bool:
        """Whether to measure after this step.

        Args:
            step: optimizer steps since attach, from 1 on.
            elapsed: seconds of wall time since attach.
            spent: seconds of it that the tracker took.
        """
        ...

    def measured(self, step: int, cost: float) -> None:
        """A snapshot was taken after this step and took `cost` seconds."""
        ...


class Every:
    """Every `interval` steps, whatever it costs; the first measured step is `interval`."""

    def __init__(self, interval: int) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"every must be an integer of at least 1, got {interval!r}")
        self.interval = interval

    def due(self, step: int, elapsed: float, spent: float) -> bool:
        """Whether the interval divides the step."""
        return step % self.interval == 0

    def measured(self, step: int, cost: float) -> None:
        """Nothing to learn."""


class Where:
    """At the steps for which a function of the step is true."""

    def __init__(self, chosen: Callable[[int], bool]) -> None:
        if not callable(chosen):
            raise TypeError(f"schedule must be a function step -> bool or a Schedule, got {chosen!r}")
        self.chosen = chosen

    def due(self, step: int, elapsed: float, spent: float) -> bool:
        """Whether the function says so."""
        return bool(self.chosen(step))

    def measured(self, step: int, cost: float) -> None:
        """Nothing to learn."""


class Automatic:
    """Dense early, geometric later, inside a budget: `max_overhead` of the wall time.

    Ranks move first, so early snapshots are worth most, when little has been earned to pay for them. Until a minute of
    training has passed the budget is that of the whole minute, laid out in equal ratios over the steps that the minute
    will hold; afterwards what has been earned is spent, at steps 5 % apart or more. A snapshot is taken if it and a
    last one at the end are both within three quarters of the budget: the last quarter is for what the tracker cannot
    see of its own cost, caches that it empties and cores that its thread takes. The first step is always measured: it
    tells the cost.

    Args:
        max_overhead: the tracker's share of wall time, in (0, 1].
    """

    def __init__(self, max_overhead: float = 0.01) -> None:
        if not isinstance(max_overhead, int | float) or not 0 < max_overhead <= 1:
            raise ValueError(f"max_overhead must be in (0, 1], got {max_overhead}")
        self.max_overhead = max_overhead
        self._last_step = 0
        self._cost = 0.0
        self._snapshots = 0

    def due(self, step: int, elapsed: float, spent: float) -> bool:
        """Whether the step is far enough from the last measured one, and the budget allows it."""
        if self._snapshots == 0:
            return True
        if step < self._last_step * _MIN_RATIO or step <= self._last_step:
            return False
        left = SPENDABLE * self.max_overhead * max(elapsed, GRACE_SECONDS) - spent - self._cost
        if left < self._cost:
            return False
        if elapsed >= GRACE_SECONDS:
            return True
        affordable = left / max(self._cost, 1e-9)
        last = max(self._last_step, 1)
        ahead = step * GRACE_SECONDS / max(elapsed, 1e-9) / last
        return bool(step >= last * ahead ** (1 / affordable))

    def measured(self, step: int, cost: float) -> None:
        """Follow the cost: the first value, then an average that forgets (the first one includes start-up)."""
        self._cost = cost if self._snapshots < 2 else 0.7 * self._cost + 0.3 * cost
        self._snapshots += 1
        self._last_step = step


class Meetings:
    """At which steps several processes ask the schedule of the one that decides: ahead, since asking means waiting.

    The first step is the first meeting. At each one the next is planned: the first step at which the schedule will be
    due if steps go on taking as long as they have since the last one. There it is asked again, with the true time.
    """

    def __init__(self) -> None:
        self._left: tuple[int, float] | None = None

    def plan(self, schedule: Schedule, step: int, elapsed: float, spent: float) -> int:
        """The next meeting after this one, which ends at these seconds; the deciding process calls it.

        Args:
            schedule: of that process; `due` is asked about steps to come, and must not change by it.
            step: of this meeting.
            elapsed: seconds since attach.
            spent: seconds of it that the tracker took.
        """
        before, self._left = self._left, (step, elapsed)
        if before is None:  # how long a step takes is not known yet
            return step + 1
        pace = (elapsed - before[1]) / max(step - before[0], 1)
        ahead = range(step + 1, step + _FURTHEST + 1)
        return next((at for at in ahead if schedule.due(at, elapsed + (at - step) * pace, spent)), ahead[-1])


def make_schedule(
    every: int | None, schedule: Schedule | Callable[[int], bool] | None, max_overhead: float
) -> Schedule:
    """The schedule that `attach`'s arguments ask for.

    Raises:
        ValueError: both `every` and `schedule`, or a number out of range.
        TypeError: `schedule` is neither a function nor a Schedule.
    """
    if every is not None and schedule is not None:
        raise ValueError("give every or schedule, not both")
    automatic = Automatic(max_overhead)
    if every is not None:
        return Every(every)
    if schedule is None:
        return automatic
    if hasattr(schedule, "due") and hasattr(schedule, "measured"):
        return schedule
    return Where(schedule)
