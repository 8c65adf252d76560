"""The processes that train together: one of them writes the run, all of them measure.

What they tell each other is small Python objects, over a gloo group of their own, so that nothing here touches the
training's communication or its streams. An error on one process is raised on all: nobody waits for one that has left.
Where a user may have forgotten some of the processes (`attach`, `close`), they first meet in torch.distributed's store,
which unlike a collective can be waited on for a limited time.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

logger = logging.getLogger("inrank_monitor")
_T = TypeVar("_T")
_MEETING_SECONDS, _SILENT_SECONDS = 300.0, 10.0
_PATIENCE = timedelta(hours=1)  # at most twice what torch's own groups wait, so that training gives up before we do
_attached = [0]  # how often all processes have; it tells the meetings of one tracker from those of another


class ProcessesLostError(RuntimeError):
    """The other processes of the tracker cannot be reached any more, or do not do what this one does."""


class Processes:
    """This process alone: what it tells itself, it knows.

    Attributes:
        number: of this process, from 0 on.
        count: how many there are.
    """

    number, count = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run."""
        return self.number == 0

    def tell(self, value: _T) -> _T:
        """The main process's value, on every process."""
        return value

    def collect(self, value: _T) -> list[_T]:
        """Every process's value, by number, on every process."""
        return [value]

    def gather(self, value: _T) -> list[_T]:
        """Every process's value, by number, on the main process; nothing on the others."""
        return [value]

    def everywhere(self, action: Callable[[], _T]) -> list[_T]:
        """Do it on every process; what came of it, by number, on every process.

        Raises:
            Exception: whatever `action` raised on the first process on which it did; the others name that process.
        """
        return [action()]

    def on_main(self, action: Callable[[], _T]) -> _T:
        """Do it on the main process; what came of it, on every process.

        Raises:
            Exception: whatever `action` raised there, on every process.
        """
        return action()

    def agree(self, ready: bool) -> bool:
        """Whether every process is ready."""
        return ready

    def meet(self, call: str) -> None:
        """Wait until every process does this; `call` names it.

        Raises:
            ProcessesLostError: one of them has left, or does not within five minutes.
        """

    def close(self, reason: str | None = None) -> None:
        """Nothing more will be said; `reason` tells the others why, if it is before the end."""


class Together(Processes):
    """All processes of torch.distributed's default group; every method is called on each of them, in the same order.

    Raises:
        ProcessesLostError: not every process made one within five minutes.
    """

    def __init__(self) -> None:
        self.number, self.count = dist.get_rank(), dist.get_world_size()
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._prefix = f"inrank_monitor/{_attached[0]}"
        self._meetings = itertools.count()
        try:
            self.meet("attach")
        except ProcessesLostError as error:
            advice = (
                "call it on every process (one run is written, the spectra are shared out), "
                "or give distributed=False to watch this process alone"
            )
            raise ProcessesLostError(f"{error}: {advice}") from None
        _attached[0] += 1
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def tell(self, value: _T) -> _T:
        """See `Processes`."""
        held = [value]
        self._reach(lambda: dist.broadcast_object_list(held, 0, group=self._group))
        return held[0]

    def collect(self, value: _T) -> list[_T]:
        """See `Processes`."""
        values: list[Any] = [None] * self.count
        self._reach(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def gather(self, value: _T) -> list[_T]:
        """See `Processes`."""
        values: list[Any] | None = [None] * self.count if self.is_main else None
        self._reach(lambda: dist.gather_object(value, values, 0, group=self._group))
        return values or []

    def everywhere(self, action: Callable[[], _T]) -> list[_T]:
        """See `Processes`."""
        own, error = _attempt(action)
        found = self.collect((own, _portable(error)))
        if error:
            raise error
        for number, (_, other) in enumerate(found):
            if other:
                raise type(other)(f"process {number}: {other}")
        return [value for value, _ in found]

    def on_main(self, action: Callable[[], _T]) -> _T:
        """See `Processes`."""
        own, error = _attempt(action) if self.is_main else (None, None)
        value: Any
        value, other = self.tell((own, _portable(error)))
        if failure := error or other:
            raise failure
        return value  # type: ignore[no-any-return]

    def agree(self, ready: bool) -> bool:
        """See `Processes`."""
        votes = torch.tensor([ready], dtype=torch.int32, device="cpu")
        self._reach(lambda: dist.all_reduce(votes, dist.ReduceOp.MIN, group=self._group))
        return bool(votes)

    def meet(self, call: str) -> None:
        """See `Processes`."""
        here = f"{self._prefix}/{next(self._meetings)}/"
        began, pause, said = time.monotonic(), 0.001, False
        self._reach(lambda: self._store.set(f"{here}{self.number}", call))
        for other in range(self.count):
            while not self._reach(lambda key=f"{here}{other}": self._store.check([key])):
                if left := self._reach(self._who_left):
                    raise ProcessesLostError(left)
                waited = time.monotonic() - began
                who = f"{call} was called on process {self.number}, but not on process {other} of {self.count}"
                if waited > _MEETING_SECONDS:
                    raise ProcessesLostError(f"{who} within {_MEETING_SECONDS:.0f} s")
                if waited > _SILENT_SECONDS and not said:
                    said = True
                    logger.warning("%s so far: waiting for it", who)
                time.sleep(pause)
                pause = min(2 * pause, 0.2)

    def _reach(self, communicate: Callable[[], _T]) -> _T:
        """Do it; what torch.distributed says of processes that have gone becomes one kind of error."""
        if not dist.is_initialized():
            raise ProcessesLostError("torch.distributed was shut down: close the tracker before destroy_process_group")
        try:
            return communicate()
        except RuntimeError as error:
            left = _attempt(self._who_left)[0] or f"another process cannot be reached: {str(error).split('. ')[0]}"
            raise ProcessesLostError(left) from error

    def _who_left(self) -> str | None:
        """What a process said as it left, if one has."""
        key = f"{self._prefix}/left"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def close(self, reason: str | None = None) -> None:
        """See `Processes`."""
        if not dist.is_initialized():
            return
        farewell = f"process {self.number} has left" + (f": {reason}" if reason else "")
        _attempt(lambda: self._store.set(f"{self._prefix}/left", farewell))
        dist.destroy_process_group(self._group)
        self._group = None  # the last reference: only now are the connections closed, and those who wait hear of it


def training_processes(distributed: bool | None) -> Processes:
    """The processes to watch with.

    Args:
        distributed: None takes all processes of torch.distributed if there are several, False this one alone.

    Raises:
        ValueError: True, and torch.distributed is not initialised.
    """
    initialised = dist.is_available() and dist.is_initialized()
    if distributed and not initialised:
        raise ValueError("distributed=True needs torch.distributed: call init_process_group before attach")
    if distributed is False or not initialised or dist.get_world_size() == 1:
        return Processes()
    return Together()


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """The error as another process can raise it: of the nearest built-in type, with its message."""
    if error is None:
        return None
    kind: type[Any] = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    try:
        portable: Exception = kind(str(error))
    except TypeError:  # UnicodeDecodeError, say, which wants more than a message
        portable = RuntimeError(str(error))
    return portable
