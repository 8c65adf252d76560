"""Paths as users give them: `~` expanded, made absolute at once, since a loop may change its working directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Two letters at least: `C:\runs` is a path. One slash is enough, which is what pathlib leaves of two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]")


def local_path(given: str | os.PathLike[str], argument: str = "directory") -> Path:
    """The absolute path that is meant; links stay as they are.

    Args:
        given: absolute or relative, `~` for the home directory.
        argument: how an error calls it.

    Raises:
        TypeError: it is no path.
        ValueError: it is empty, an address such as `s3://bucket/run`, or of a user whom nobody knows.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a path, got {given!r}")
    if not text or "\0" in text:
        raise ValueError(f"{argument} must be a path, got {text!r}")
    if found := _ADDRESS.match(text):
        scheme = found[1].lower()
        advice = (
            "give the path alone"
            if scheme == "file"
            else "give a path on a disk of this machine (or one that is mounted), and copy the finished run"
        )
        raise ValueError(f"{argument} must be a local path, got the address {text!r}: {advice}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{argument} is {text!r}: {error}") from None


def local_name(given: str, argument: str) -> str:
    """The same path as `local_path` as it was given, relative maybe: for commands that print it to be typed again.

    Raises:
        ValueError: as `local_path`.
    """
    local_path(given, argument)
    return os.path.expanduser(given)


def output_file(given: str | os.PathLike[str], argument: str = "--output") -> Path:
    """The absolute path of a file that is going to be written: what would fail in the end is said before the work.

    Raises:
        ValueError: as `local_path`.
        FileNotFoundError, NotADirectoryError, IsADirectoryError: no file can be there.
    """
    path = local_path(given, argument)
    if path.is_dir():
        raise IsADirectoryError(f"{argument} must be a file, got the directory {given}")
    if not path.parent.is_dir():
        error = NotADirectoryError if path.parent.exists() else FileNotFoundError
        raise error(f"{argument} {given} cannot be written: there is no directory {Path(given).expanduser().parent}")
    return path
