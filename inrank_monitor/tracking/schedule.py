"""At which steps to measure, and the overhead budget.

Time is an argument (seconds from any clock), so that tests never sleep. A schedule sees the measured cost of every
snapshot and is asked once a step; asking costs a microsecond or two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from inrank_monitor.tracking.automatic import Automatic

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
