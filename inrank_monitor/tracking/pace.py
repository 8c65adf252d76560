"""When the next snapshot is due, and what the tracker has cost so far.

The schedule decides on the main process. Where several processes train together they meet to hear of it, at steps that
the main one foretells, since asking means waiting.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from inrank_monitor.distributed import Processes
from inrank_monitor.tracking.schedule import Meetings, Schedule


class _Thread(Protocol):
    @property
    def seconds(self) -> float: ...


def now() -> float:
    """Seconds of the clock by which costs are counted."""
    return time.perf_counter()


class Pace:
    """Wall time since attach, the tracker's share of it, and the schedule that keeps that small.

    Args:
        schedule: of the main process.
        processes: that train together.
        threads: beside the loop, whose processor time counts too.
        began: when attaching did, by `now`, in seconds.
    """

    def __init__(self, schedule: Schedule, processes: Processes, threads: Sequence[_Thread], began: float) -> None:
        self._schedule, self._processes, self._threads = schedule, processes, threads
        self._meetings, self._meeting = Meetings(), 0
        self._began, self._in_loop = began, 0.0
        self.spend(began)
        self._told = self.seconds

    @property
    def seconds(self) -> float:
        """What the tracker has cost so far: attaching, measuring, and its threads' processor time."""
        return self._in_loop + sum(thread.seconds for thread in self._threads)

    @property
    def overhead(self) -> float:
        """`seconds` as a share of the wall time since attach."""
        return self.seconds / max(now() - self._began, 1e-9)

    def is_meeting(self, step: int) -> bool:
        """Whether the schedule is asked at this step; always, on a process that trains alone."""
        return step >= self._meeting

    def is_due(self, step: int) -> bool:
        """Whether to measure after this step; every process asks."""
        due = partial(self._schedule.due, step, now() - self._began, self.seconds)
        return self._processes.on_main(due)

    def plan_meeting(self, step: int) -> None:
        """Where several processes train, at which step they next ask the main one's schedule."""
        if self._processes.count > 1:
            plan = partial(self._meetings.plan, self._schedule, step, now() - self._began, self.seconds)
            self._meeting = self._processes.on_main(plan)

    def spend(self, since: float) -> None:
        """Count the loop's time since then as the tracker's."""
        self._in_loop += now() - since

    def measured(self, step: int) -> None:
        """Tell the schedule what a snapshot after this step cost, with what the thread has done since the last one."""
        cost, self._told = self.seconds - self._told, self.seconds
        self._schedule.measured(step, cost)
