"""Files that are whole at any moment: written beside their place, then put there; an error names the place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Where to write the new file, which takes the place of `path` when the block has ended without an error.

    Args:
        path: at any moment the whole old file or the whole new one.
        temporary: the new one until then, in the same directory (default: `path.tmp`); it is gone afterwards.

    Raises:
        OSError: it cannot be written; the old one is left as it was.
    """
    beside = temporary or path.with_name(f"{path.name}.tmp")
    with named_after(path, beside):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            if beside.exists():
                beside.unlink()


@contextmanager
def named_after(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of the block on `temporary`, or on what is in it, name `path`: who reads them knows no other."""
    try:
        yield
    except OSError as error:
        given = os.fspath(error.filename) if error.filename is not None else ""
        if isinstance(given, str) and given.startswith(str(temporary)):
            error.filename = f"{path}{given.removeprefix(str(temporary))}"
            error.filename2 = None  # of a replacement: where to
        raise
