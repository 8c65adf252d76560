"""How a run ends, whoever ends it: the loop, the end of the process, or the last reference that goes."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from functools import partial
from typing import Protocol

from inrank_monitor.tracking.recorder import NoRecorder, Recorder
from inrank_monitor.tracking.started_run import StartedRun

logger = logging.getLogger("inrank_monitor")


class _Closable(Protocol):
    def close_alone(self, reason: str | None) -> None: ...


class Ending:
    """The one end of a run.

    Args:
        tracker: closed at exit if the script forgets; one that is dropped unclosed still ends its run.
        started: the run.
        recorder: that writes it.
    """

    def __init__(self, tracker: _Closable, started: StartedRun, recorder: Recorder | NoRecorder) -> None:
        self._end = partial(_end, started, recorder)
        self._at_exit = partial(_close_at_exit, weakref.ref(tracker), recorder.process)
        atexit.register(self._at_exit)
        self._dropped = weakref.finalize(tracker, self._end, "finished", "never closed", None)
        self._dropped.atexit = False

    def end(self, status: str, reason: str, step: int) -> None:
        """Write what is left and how the run ended."""
        atexit.unregister(self._at_exit)
        self._dropped.detach()
        self._end(status, reason, step)


def _end(started: StartedRun, recorder: Recorder | NoRecorder, status: str, reason: str, step: int | None) -> None:
    if os.getpid() != recorder.process:  # a forked child, which has inherited everything but the run
        return
    lost = recorder.close()
    if lost:
        logger.error("%s: %d batches could not be written and are lost", started.directory, lost)
    try:
        started.end(status, reason, step)
    except OSError as error:
        logger.error("%s: run.json could not be closed: %s", started.directory, error)
    started.forget_model()


def _close_at_exit(reference: weakref.ref[_Closable], process: int) -> None:
    tracker = reference()
    if tracker is not None and os.getpid() == process:
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        tracker.close_alone(type(error).__name__ if error is not None else None)
