"""Who writes a run directory, by what is in it: for file systems whose locks do nothing, or stay on one machine.

Whoever begins to write leaves a token in the file `writer`, and looks before each batch whether it is still there. One
that finds another's has lost the directory, and goes on in one of its own.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

WRITER_FILE = "writer"


class OtherWriterError(Exception):
    """Another process has begun to write this run."""


class SegmentTakenError(Exception):
    """A stream that should be begun is there already: somebody wrote to the directory before it was claimed."""


class Claim:
    """This process's claim on a run directory; the last one that is made holds.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.token = uuid.uuid4().hex
        self._file = directory / WRITER_FILE
        self._text = f"{self.token} process {os.getpid()} on {socket.gethostname()}\n"
        self._file.write_text(self._text, encoding="utf-8")

    def check(self) -> None:
        """Make sure that nobody else has claimed the directory since; costs a read of some bytes.

        Raises:
            OtherWriterError: somebody has.
        """
        try:
            text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return  # a disk that is gone is no other writer
        if text.endswith("\n") and text != self._text:
            who = text.partition(" ")[2].strip() or "another process"
            raise OtherWriterError(f"{who} writes {self._file.parent} too, whose file system has no locks")

    def release(self) -> None:
        """Take the token away, if it is still ours."""
        try:
            self.check()
            self._file.unlink(missing_ok=True)
        except (OSError, OtherWriterError):
            return
