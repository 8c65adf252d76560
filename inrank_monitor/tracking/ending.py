"""How a run ends, whoever ends it: the loop, the end of the process, or the last reference that goes."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from functools import partial
from typing import Protocol

from inrank_monitor.tracking.exits import Exits
from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.recorder import Recorder
from inrank_monitor.tracking.scalars import Scalars
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
        scalars: that wait for the recorder.
    """

    def __init__(
        self, tracker: _Closable, started: StartedRun, recorder: Recorder | NoRecorder, scalars: Scalars
    ) -> None:
        self._exits = Exits()
        self._end = partial(_end, started, recorder, scalars, self._exits)
        self._at_exit = partial(_close_at_exit, weakref.ref(tracker), recorder.process, self._exits)
        atexit.register(self._at_exit)
        self._dropped = weakref.finalize(tracker, _drop, self._end, self._exits)
        self._dropped.atexit = False

    def goes_on(self) -> None:
        """A step was counted: whatever has been raised so far has not ended the training."""
        self._exits.goes_on()

    def end(self, status: str, reason: str, step: int) -> None:
        """Write what is left and how the run ended."""
        atexit.unregister(self._at_exit)
        self._dropped.detach()
        self._end(status, reason, step)


def _drop(end: partial[None], exits: Exits) -> None:
    reason = exits.reason(dropped=True)
    end("interrupted" if reason else "finished", reason or "never closed", None)


def _end(
    started: StartedRun,
    recorder: Recorder | NoRecorder,
    scalars: Scalars,
    exits: Exits,
    status: str,
    reason: str,
    step: int | None,
) -> None:
    exits.close()
    if os.getpid() != recorder.process:  # a forked child, which has inherited everything but the run
        return
    scalars.flush(wait=True)
    lost = recorder.close()
    if lost:
        logger.error("%s: %d batches could not be written and are lost", started.directory, lost)
    try:
        started.end(status, reason, step)
    except OSError as error:
        logger.error("%s: run.json could not be closed: %s", started.directory, error)
    started.forget_model()


def _close_at_exit(reference: weakref.ref[_Closable], process: int, exits: Exits) -> None:
    tracker = reference()
    if tracker is not None and os.getpid() == process:
        tracker.close_alone(exits.reason())
