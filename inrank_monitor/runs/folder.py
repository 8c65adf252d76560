"""A folder of runs, opened for others to look at: which names may be opened, and which are refused.

A name is one step down from the folder, never a path. What leads out of the folder (`..`, absolute paths, symbolic
links) is refused, and so is a run whose own files lead out of it or are no plain files.
"""

from __future__ import annotations

import json
import os
import stat
from functools import lru_cache
from pathlib import Path

from inrank_monitor.runs.lock import LOCK_FILE
from inrank_monitor.runs.log import RUN_FILE, SCHEMAS
from inrank_monitor.runs.paths import local_path
from inrank_monitor.runs.run import is_run, open_run
from inrank_monitor.runs.summary import RunSummary


class RunFolder:
    """The runs directly below a directory; a directory that is a run itself is a folder of that one run.

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
        for path in self._candidates():
            try:
                self._check(path)
                kept.append((_created(path / RUN_FILE, (path / RUN_FILE).stat().st_mtime_ns), path.name))
            except PermissionError as error:
                refused[path.name] = str(error.strerror or error)
            except OSError:
                continue  # it went away while we looked
        return [name for _, name in sorted(kept, key=lambda entry: (-entry[0], entry[1]))], refused

    def _candidates(self) -> list[Path]:
        if is_run(self.path):
            return [self.path]
        try:
            with os.scandir(self.path) as entries:
                return sorted(self.path / entry.name for entry in entries if _holds_run(self.path / entry.name))
        except OSError:
            return []

    def path_of(self, name: str) -> Path:
        """The directory of a run.

        Raises:
            PermissionError: the name leads out of the folder, or the run's files do.
            FileNotFoundError: there is no such run.
        """
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
            raise PermissionError(f"{name!r} is not the name of a run in {self.path}")
        path = self.path if is_run(self.path) and name == self.path.name else self.path / name
        self._check(path)
        if not is_run(path):
            raise FileNotFoundError(f"there is no run {name!r} in {self.path}")
        return path

    def stamp(self, name: str) -> tuple[tuple[str, int, int], ...]:
        """Names, sizes and times of a run's files: as long as it is the same, so is what is read from them.

        Raises:
            OSError: as `path_of`.
        """
        path = self.path_of(name)
        files = [path / RUN_FILE, *sorted(file for table in SCHEMAS for file in path.glob(f"{table}-*.arrows"))]
        return tuple((file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files)

    def _check(self, path: Path) -> None:
        """Raise a PermissionError unless the directory and what a reader opens in it are inside the folder."""
        resolved = path.resolve()
        if resolved != self.path and resolved.parent != self.path:
            raise PermissionError(f"{path.name!r} is a link that leads out of {self.path}")
        tables = [file for table in SCHEMAS for file in path.glob(f"{table}-*.arrows")]
        for file in (path / RUN_FILE, path / LOCK_FILE, *tables):
            if file.is_symlink() and file.resolve().parent != resolved:
                raise PermissionError(f"{file.name} in {path.name!r} is a link that leads out of the run")
            # A pipe would block whoever opens it.
            if file.exists() and not stat.S_ISREG(file.stat().st_mode):
                raise PermissionError(f"{file.name} in {path.name!r} is not a plain file")


@lru_cache(maxsize=4096)
def _created(file: Path, changed: int) -> float:
    """When the run began; of a run.json that cannot be read, when it was last changed (nanoseconds)."""
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["created"])
    except (ValueError, KeyError, TypeError):
        return changed / 1e9


def _holds_run(path: Path) -> bool:
    """Whether there is something named like a run's file, a plain file or not."""
    try:
        return path.is_dir() and os.path.lexists(path / RUN_FILE)
    except OSError:
        return False


def list_runs(directory: str | Path) -> list[RunSummary]:
    """The runs directly below a directory, newest first; one that cannot be opened is left out."""
    summaries = []
    folder = local_path(directory)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_run(path):
            try:
                summaries.append(open_run(path).summary())
            except (ValueError, OSError):
                continue
    return sorted(summaries, key=lambda summary: summary.created, reverse=True)
