"""A training that logs and of which no step is counted: a loop that calls nothing, or steps another optimizer."""

from __future__ import annotations

import logging
from pathlib import Path

from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.recorder import Recorder

logger = logging.getLogger("inrank_monitor")
_CALLS = 200  # of log at the step where the run began: more than anybody accumulates gradients over


class Standing:
    """Whether the run is still at the step where it began.

    Args:
        start: that step.
    """

    def __init__(self, start: int) -> None:
        self._start, self._calls, self._said = start, 0, False

    def is_at(self, step: int) -> bool:
        """Whether no step has been counted."""
        return step == self._start

    def logged(self, step: int) -> bool:
        """Count a call of `log`; whether there have been too many for a run that stands."""
        if step != self._start:
            return False
        self._calls += 1
        return self._calls == _CALLS

    def say(self, recorder: Recorder | NoRecorder, directory: Path, counts_itself: bool) -> None:
        """Say, once, what is wrong and what to do.

        Args:
            recorder: that gets the event.
            directory: of the run.
            counts_itself: the loop is to call `tracker.step()`, as no optimizer was given.
        """
        if self._said:
            return
        self._said = True
        advice = (
            "attach was given no optimizer: call tracker.step() after each step"
            if counts_itself
            else "the optimizer that attach was given never stepped: give it the one that the loop steps, "
            "or None and call tracker.step()"
        )
        calls = f"; log was called {self._calls} times" if self._calls else ""
        message = f"no step was counted and nothing measured{calls}: {advice}"
        logger.warning("%s: %s", directory, message)
        recorder.event(self._start, "no_steps", None, message)
