"""Signals wait while the model is not itself, and are let through while the caller's loss is running.

A KeyboardInterrupt may come between any two instructions, also between those that put the weights back. So the handlers
of this thread's signals are held back, and called where they can do no harm.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class HeldSignals:
    """The Python handlers of all signals, wrapped; nothing in a thread that no signal interrupts."""

    def __init__(self) -> None:
        self._before: dict[int, Handler] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._is_open = False

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in signal.valid_signals()}
            self._before = {number: handler for number, handler in found.items() if callable(handler)}
            try:
                for number in self._before:
                    signal.signal(number, self._take)
            except BaseException:  # one came in the midst of this
                self._put_back()
                raise
        return self

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *raised: object) -> None:
        self._put_back()
        waiting, self._waiting = self._waiting, []
        for number, frame in waiting:
            self._before[number](number, frame)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._is_open:
            self._waiting.append((number, frame))
            return
        self._is_open = False  # its handler may raise; until the weights are back no second one shall
        self._before[number](number, frame)
        self._is_open = True

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Call what has waited and what comes, as if nothing were held."""
        self._is_open = True
        try:
            while self._waiting:
                self._take(*self._waiting.pop(0))
            yield
        finally:
            self._is_open = False
