"""The advisory lock of a run directory.

The kernel drops it when a process dies, however it dies: it tells a live run from an interrupted one.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: a reader goes by the age of the files there
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock"
_ATTEMPTS = 20


class Lock:
    """Held by the process that writes a run; several readers may ask for it."""

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] = (directory / LOCK_FILE).open("ab")
        for attempt in range(_ATTEMPTS if fcntl is not None else 0):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:  # a reader that looks, a child of a killed process that is about to end: wait
                if attempt < _ATTEMPTS - 1:
                    time.sleep(0.05)
            except OSError:
                return  # a file system without locks
        if fcntl is not None:
            self._file.close()
            raise RuntimeError(f"another process is writing the run {directory}: choose another directory")

    def release(self) -> None:
        """Let the run be taken up by somebody else, even if a forked child still holds the file."""
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def is_locked(directory: Path) -> bool | None:
    """Whether a live process writes this run; None where that cannot be told."""
    if fcntl is None or not (directory / LOCK_FILE).exists():
        return None
    with (directory / LOCK_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
    return False
