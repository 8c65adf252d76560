"""A file that only grows, and by whole pieces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import pyarrow as pa


class AppendFile:
    """A file that grows by whole pieces: what a failed write leaves of one is cut off again."""

    def __init__(self, path: Path, exclusive: bool = False) -> None:
        self._file = path.open("x+b" if exclusive else "w+b", buffering=0)
        self._end = 0

    @classmethod
    def begin(cls, path: Path, start: bytes | pa.Buffer, exclusive: bool = False) -> Self:
        """A new file that holds `start`.

        Args:
            path: of the file.
            start: its first bytes.
            exclusive: leave a file alone that is there already.

        Raises:
            FileExistsError: `exclusive`, and there is one.
            OSError: the disk refused it; the file is not there then.
        """
        file = cls(path, exclusive)
        try:
            file.append(start)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    def content(self) -> bytes:
        """All that was appended, even if the path leads elsewhere by now."""
        return os.pread(self._file.fileno(), self._end, 0)

    def append(self, data: bytes | pa.Buffer) -> None:
        """Write all of `data` or nothing.

        Raises:
            OSError: the disk refused it.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            os.ftruncate(self._file.fileno(), self._end)
            self._file.seek(self._end)
            raise
        self._end = self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
