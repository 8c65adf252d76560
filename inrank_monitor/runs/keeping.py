"""Rename and delete runs of a folder; what is being written or is no run is refused, and no link is followed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inrank_monitor.runs.claim import WRITER_FILE
from inrank_monitor.runs.folder import RunFolder
from inrank_monitor.runs.lock import LOCK_FILE, Lock, is_locked
from inrank_monitor.runs.log import RUN_FILE, SCHEMAS, TENSORBOARD_DIR, WEIGHTS_FILE
from inrank_monitor.runs.log_files import SILENT_SECONDS, silent_seconds
from inrank_monitor.runs.notes import NOTES_FILE
from inrank_monitor.runs.run import is_run
from inrank_monitor.runs.run_file import read_info

_TABLE = re.compile(rf"({'|'.join(SCHEMAS)})-\d+\.arrows")
_TEMPORARY = re.compile(rf"({'|'.join(map(re.escape, (RUN_FILE, WEIGHTS_FILE, NOTES_FILE)))})\..*tmp")
# Deleted in this order: as long as run.json is there, the rest of a deletion that failed can be asked for again.
_LAST = (RUN_FILE, LOCK_FILE)


@dataclass(frozen=True)
class Contents:
    """What is in a run directory.

    Attributes:
        own: names that the tracker, or this package beside it, has written.
        others: all other names: checkpoints, a model, a program's options.
        size: bytes of all of it, links not followed.
    """

    own: tuple[str, ...]
    others: tuple[str, ...]
    size: int


def contents(folder: RunFolder, name: str) -> Contents:
    """What deleting a run would take.

    Raises:
        OSError, ValueError: as `delete_run`, but for a run that is being written.
    """
    path = _own_path(folder, name)
    names = sorted(entry.name for entry in os.scandir(path))
    own = tuple(each for each in names if _is_own(each))
    return Contents(own, tuple(each for each in names if not _is_own(each)), _size(path))


def delete_run(folder: RunFolder, name: str, *, everything: bool = False) -> tuple[str, ...]:
    """Delete a run: what the tracker has written, and its directory if that is all that there is in it.

    Args:
        folder: that the run is in.
        name: of the run there.
        everything: also what else is in its directory: checkpoints, a model.

    Returns:
        What is left in the directory, by name.

    Raises:
        PermissionError, FileNotFoundError: as `RunFolder.path_of`.
        ValueError: it is being written, its run.json cannot be read or is not one of ours, it is behind a symbolic
            link or the folder itself, or with `everything` another run is inside of it. Nothing has been deleted.
        OSError: a file cannot be deleted; run.json is among the last, so that the rest can be deleted again.
    """
    path = _own_path(folder, name)
    with _not_written(path, name):
        inside = contents(folder, name)
        if everything and (other := _run_inside(path)):
            raise ValueError(f"{name!r} has another run inside, {other}: delete that first")
        leaving = (*inside.own, *(inside.others if everything else ()))
        for each in sorted(leaving, key=lambda each: (each in _LAST, _LAST.index(each) if each in _LAST else 0)):
            _remove(path / each)
    left = tuple(sorted(entry.name for entry in os.scandir(path)))
    if not left:
        path.rmdir()
    return left


def rename_run(folder: RunFolder, name: str, new: str) -> str:
    """Give a run another name, in the same folder or in one below it, which is made.

    Args:
        folder: that the run is in.
        name: of the run there.
        new: its new name, with `/` between folders.

    Returns:
        The new name.

    Raises:
        PermissionError, FileNotFoundError: as `RunFolder.path_of`.
        FileExistsError: there is something of that name.
        ValueError: the name cannot be one, lies inside a run, or the run may not be touched, as for `delete_run`.
        OSError: the directory cannot be renamed; it is as it was.
    """
    path = _own_path(folder, name)
    new = "/".join(part.strip() for part in new.split("/"))
    if bad := [part for part in new.split("/") if part.startswith(".") or not part.isprintable() or len(part) > 200]:
        raise ValueError(f"{bad[0][:40]!r} cannot be a name: it is hidden, too long, or not to be printed")
    target = folder.place_of(new)
    if target.parent.resolve() != target.parent:
        raise PermissionError(f"{new!r} is behind a symbolic link")
    if os.path.lexists(target):
        raise FileExistsError(f"there is a {new!r} in {folder.path} already")
    for parent in target.parents[: len(target.parents) - len(folder.path.parents) - 1]:
        if is_run(parent):
            raise ValueError(f"{new!r} would be inside the run {parent.name!r}")
    with _not_written(path, name):
        made = _make_folders(target.parent)
        try:
            path.rename(target)  # what came between takes its place only if it is an empty directory
        except OSError:
            for parent in made:
                parent.rmdir()
            raise
    return new


def _own_path(folder: RunFolder, name: str) -> Path:
    """The directory of a run that may be changed.

    Raises:
        OSError, ValueError: as `delete_run`.
    """
    path = folder.path_of(name)
    if path == folder.path:
        raise ValueError(f"{name!r} is the folder that was opened: open the one that it is in")
    if path.resolve() != path:
        raise ValueError(f"{name!r} is a symbolic link, or behind one: only what is in the folder itself is changed")
    try:
        read_info(path)
    except ValueError as error:
        raise ValueError(f"{error}. It may be no run of ours: delete or rename it by hand") from None
    return path


@contextmanager
def _not_written(path: Path, name: str) -> Iterator[None]:
    """Nobody writes the run, and nobody begins to until the block has ended.

    Raises:
        ValueError: somebody writes it, or may do so: on another machine a lock may say nothing.
    """
    locked = is_locked(path)
    recent = silent_seconds(path) < SILENT_SECONDS
    unsure = locked is None or (path / WRITER_FILE).exists()
    if locked or (not read_info(path)["ended"] and unsure and recent):
        raise ValueError(f"{name!r} is live: a process writes it; stop that first (or wait two minutes if it is gone)")
    if locked is None:  # no locks here
        yield
        return
    try:
        lock = Lock(path)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is live: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _is_own(name: str) -> bool:
    own = (RUN_FILE, WEIGHTS_FILE, LOCK_FILE, WRITER_FILE, NOTES_FILE, TENSORBOARD_DIR)
    return name in own or bool(_TABLE.fullmatch(name) or _TEMPORARY.fullmatch(name))


def _remove(path: Path) -> None:
    """A file, a link, or a directory with what is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of the files below; one that goes away meanwhile counts nothing."""
    size = 0
    for root, _, files in os.walk(path):
        for file in files:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(root, file)).st_size
    return size


def _run_inside(path: Path) -> str | None:
    """The first directory below a run's that is one, too."""
    for root, folders, files in os.walk(path):
        folders.sort()
        if root != str(path) and RUN_FILE in files:
            return os.path.relpath(root, path)
    return None


def _make_folders(path: Path) -> list[Path]:
    """Make a directory and those above it that are missing; what was made, the deepest first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir()
    return missing
