"""A training that logs and of which no step is counted: a loop that calls nothing, or steps another optimizer."""

from __future__ import annotations

import logging
from pathlib import Path

from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.recorder import Recorder

logger = logging.getLogger("inrank_monitor")
_CALLS_AT_START = 200  # of log: more than anybody accumulates gradients over
_CALLS = 20


class Standing:
    """How often a loop has logged at one step.

    Args:
        start: the step at which the run began or goes on.
    """

    def __init__(self, start: int) -> None:
        self._start = self._step = start
        self.calls = 0
        self._said: set[int] = set()

    def is_at_start(self, step: int) -> bool:
        """Whether no step has been counted."""
        return step == self._start

    def logged(self, step: int) -> bool:
        """Count a call of `log`; whether there have been so many at this step that it is worth a look."""
        if step != self._step:
            self._step, self.calls = step, 0
        self.calls += 1
        return self.calls % (_CALLS_AT_START if self.is_at_start(step) else _CALLS) == 0

    def say(self, step: int, recorder: Recorder | NoRecorder, directory: Path, counts_itself: bool) -> None:
        """Say, once a step, what is wrong and what to do.

        Args:
            step: that stands.
            recorder: that gets the event.
            directory: of the run.
            counts_itself: the loop is to call `tracker.step()`, as no optimizer was given.
        """
        if step in self._said:
            return
        self._said.add(step)
        what = "no step was counted and nothing measured"
        if not self.is_at_start(step):
            what = f"no step has been counted since step {step}, although the weights changed"
        calls = f"; log was called {self.calls} times" if self.calls else ""
        advice = "give attach the optimizer that the loop steps, or None and call tracker.step() after each step"
        if counts_itself:
            advice = "attach was given no optimizer: call tracker.step() after each step"
        message = f"{what}{calls}: {advice}"
        logger.warning("%s: %s", directory, message)
        recorder.event(step, "no_steps", None, message)
