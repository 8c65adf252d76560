"""A folder of runs, opened for others to look at: which names may be opened, and which are refused.

A name is a path from the folder down to a run, with `/` between folders. What leads out of the folder (`..`, absolute
paths, symbolic links) is refused, and so is a run whose own files lead out of it or are no plain files.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from inrank_monitor.runs.finding import MOST_FOLDERS, MOST_LEVELS, find_runs
from inrank_monitor.runs.lock import LOCK_FILE
from inrank_monitor.runs.log import RUN_FILE, SCHEMAS
from inrank_monitor.runs.notes import NOTES_FILE
from inrank_monitor.runs.paths import local_path
from inrank_monitor.runs.run import is_run, open_run
from inrank_monitor.runs.summary import RunSummary

_TABLES = tuple(f"{table}-" for table in SCHEMAS)


class RunFolder:
    """The runs below a directory, at most six folders down; a directory that is a run itself is a folder of that run.

    Attributes:
        path: of the directory, resolved.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = local_path(directory).resolve()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def names(self) -> list[str]:
        """The runs that may be opened, the newest first."""
        return self._listing()[0]

    def refused(self) -> dict[str, str]:
        """Runs in the folder that may not be opened, and why."""
        return self._listing()[1]

    def _listing(self) -> tuple[list[str], dict[str, str]]:
        kept: list[tuple[float, str]] = []
        refused = {}
        candidates, cut = ({self.path.name: self.path}, False) if is_run(self.path) else find_runs(self.path)
        for name, path in candidates.items():
            try:
                if problem := _problem(self.path, path, *_times(path)):
                    refused[name] = problem
                else:
                    kept.append((_created(path / RUN_FILE, (path / RUN_FILE).stat().st_mtime_ns), name))
            except OSError:
                continue  # it went away while we looked
        if cut:
            refused[self.path.name] = f"it holds more than {MOST_FOLDERS:,} folders; runs in the others are not found"
        return [name for _, name in sorted(kept, key=lambda entry: (-entry[0], entry[1]))], refused

    def path_of(self, name: str) -> Path:
        """The directory of a run.

        Raises:
            PermissionError: the name leads out of the folder, or the run's files do.
            FileNotFoundError: there is no such run.
        """
        path = self.path if is_run(self.path) and name == self.path.name else self.place_of(name)
        if problem := check_run(self.path, path):
            raise PermissionError(problem)
        if not is_run(path):
            raise FileNotFoundError(f"there is no run {name!r} in {self.path}")
        return path

    def place_of(self, name: str) -> Path:
        """Where a run of that name is or would be.

        Raises:
            PermissionError: it is no name of a run in this folder.
        """
        parts = name.split("/")
        bad = any(part in ("", ".", "..") or Path(part).name != part or "\\" in part or "\0" in part for part in parts)
        if bad or len(parts) > MOST_LEVELS:
            raise PermissionError(f"{name!r} is not the name of a run in {self.path}")
        return self.path.joinpath(*parts)

    def stamp(self, name: str) -> tuple[tuple[str, int, int], ...]:
        """Names, sizes and times of a run's files: as long as it is the same, so is what is read from them.

        Raises:
            OSError: it is refused, or is not there.
        """
        path = self.path if is_run(self.path) and name == self.path.name else self.place_of(name)
        if problem := _problem(self.path, path, *_times(path)):
            raise PermissionError(problem)
        with os.scandir(path) as entries:
            files = sorted((entry.name, entry.stat()) for entry in entries if _is_read(entry.name, NOTES_FILE))
        return tuple((file, state.st_size, state.st_mtime_ns) for file, state in files)


def check_run(folder: Path, path: Path) -> str | None:
    """Why a directory of a folder may not be opened as a run: it, or what a reader opens in it, leads elsewhere.

    Args:
        folder: resolved.
        path: below it, as its name says.
    """
    resolved = path.resolve()
    if not resolved.is_relative_to(folder):
        return f"{path.name!r} is a link that leads out of {folder}, or is behind one"
    try:
        with os.scandir(path) as entries:
            read = [entry for entry in entries if _is_read(entry.name, LOCK_FILE, NOTES_FILE)]
            for entry in sorted(read, key=lambda entry: entry.name):
                file = path / entry.name
                if entry.is_symlink() and file.resolve().parent != resolved:
                    return f"{entry.name} in {path.name!r} is a link that leads out of the run"
                # A pipe would block whoever opens it.
                if file.exists() and not stat.S_ISREG(file.stat().st_mode):
                    return f"{entry.name} in {path.name!r} is not a plain file"
    except (FileNotFoundError, NotADirectoryError):
        return None  # there is nothing to open
    return None


@lru_cache(maxsize=4096)
def _problem(folder: Path, path: Path, *changed: int) -> str | None:
    """`check_run`, once for each state of a directory: what is opened is checked again."""
    return check_run(folder, path)


def _times(path: Path) -> tuple[int, int]:
    """When a directory, or the link to one, was last changed (nanoseconds)."""
    return path.lstat().st_mtime_ns, path.stat().st_mtime_ns


def _is_read(name: str, *others: str) -> bool:
    """Whether a reader opens a file of that name in a run."""
    return name == RUN_FILE or name in others or (name.startswith(_TABLES) and name.endswith(".arrows"))


@lru_cache(maxsize=4096)
def _created(file: Path, changed: int) -> float:
    """When the run began; of a run.json that cannot be read, when it was last changed (nanoseconds)."""
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["created"])
    except (ValueError, KeyError, TypeError):
        return changed / 1e9


def list_runs(directory: str | Path) -> list[RunSummary]:
    """The runs below a directory, newest first, each named by its path from there; one that cannot be opened is left
    out.
    """
    return read_runs(directory)[0]


def read_runs(directory: str | Path) -> tuple[list[RunSummary], dict[str, str]]:
    """`list_runs`, and why others cannot be opened, by name."""
    folder = local_path(directory)
    found, cut = find_runs(folder)
    summaries, problems = [], {}
    for name, path in found.items():
        try:
            if not is_run(path):  # a pipe would block
                raise ValueError(f"{RUN_FILE} is not a plain file")
            summaries.append(replace(open_run(path).summary(), name=name))
        except (ValueError, OSError) as error:
            problems[name] = str(error)
    if cut:
        problems[folder.name] = f"it holds more than {MOST_FOLDERS:,} folders; runs in the others are not found"
    return sorted(summaries, key=lambda summary: summary.created, reverse=True), problems
