"""Which trackers of this process still write a run: a cell of a notebook that is run again meets the one before."""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Protocol


class _Holder(Protocol):
    step_count: int

    @property
    def path(self) -> Path: ...


_holders: weakref.WeakKeyDictionary[_Holder, float] = weakref.WeakKeyDictionary()  # since when, in unix seconds


def hold(tracker: _Holder) -> None:
    """This tracker writes its run from now on."""
    _holders[tracker] = time.time()


def let_go(tracker: _Holder) -> None:
    """It writes no more."""
    _holders.pop(tracker, None)


def holder_of(directory: Path) -> str:
    """Which tracker of this process writes the run in a directory, and what to do; empty if none does."""
    there = directory.resolve()
    for tracker, since in list(_holders.items()):
        if tracker.path.resolve() == there:
            clock = time.strftime("%H:%M:%S", time.localtime(since))
            return (
                f"a tracker of this process, attached at {clock} and now at step {tracker.step_count}, is writing it "
                "(a cell that was run again?): call its close() first; then go on with its run by resume=True, or "
                "choose another directory"
            )
    return ""
