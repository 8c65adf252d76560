"""The code with which a script exits: Python tells no exit handler of it, so `sys.exit` is listened to.

Other loggers do so too. It does what it did, and it is put back when the last run is closed.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any, NoReturn

try:
    from _sitebuiltins import Quitter  # the `exit` and `quit` of a script that does not import sys
except ImportError:
    Quitter = None  # type: ignore[assignment]


class ExitCodes:
    """What `sys.exit`, `exit` and `quit` were last called with, by thread, while anybody listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners = 0
        self._said: dict[int, tuple[Any]] = {}
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # owner, attribute, what was there, ours

    def open(self) -> None:
        """Listen; each call wants a `close`."""
        with self._lock:
            self._listeners += 1
            if not self._replaced:
                self._replace(sys, "exit")
                if Quitter is not None:
                    self._replace(Quitter, "__call__")

    def _replace(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def leave(*arguments: Any, **named: Any) -> NoReturn:
            given = arguments[int(owner is not sys) :]
            self._said[threading.get_ident()] = (given[0] if given else named.get("code"),)
            return original(*arguments, **named)

        setattr(owner, name, leave)
        self._replaced.append((owner, name, original, leave))

    def close(self) -> None:
        """Listen no more, unless others do; what somebody else has put in our place stays."""
        with self._lock:
            self._listeners -= 1
            if self._listeners:
                return
            for owner, name, original, ours in self._replaced:
                if getattr(owner, name) is ours:
                    setattr(owner, name, original)
            self._replaced = []

    def of(self, thread: int | None) -> tuple[Any] | None:
        """The code of a thread's last call, in a tuple; None if there was none."""
        return self._said.get(thread or 0)

    def forget(self) -> None:
        """What was said has ended nothing."""
        if self._said:
            self._said.clear()


exit_codes = ExitCodes()
