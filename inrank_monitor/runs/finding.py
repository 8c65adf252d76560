"""Where runs are below a folder: in folders of any names, as trainings and experiments leave them."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

from inrank_monitor.runs.log import RUN_FILE

MOST_LEVELS = 6  # folders on the way from the folder to a run, the run's own among them
MOST_FOLDERS = 10_000  # looked into: what is meant is a folder of runs, and not a whole disk
_SETTLED_SECONDS = 10.0


def find_runs(directory: Path) -> tuple[dict[str, Path], bool]:
    """The directories below a folder that hold something named like a run's file.

    Nothing is looked for inside a run, behind a symbolic link, or in a hidden folder; a link to a run is one.

    Returns:
        Paths by their names, which are relative, with `/` between folders; and whether there were too many folders to
        look into all of them.
    """
    found: dict[str, Path] = {}
    level, looked = [(directory, "")], 0
    for depth in range(MOST_LEVELS):
        below: list[tuple[Path, str]] = []
        for folder, prefix in level:
            if looked == MOST_FOLDERS:
                return found, True
            looked += 1
            for path, is_link in _directories(folder):
                if os.path.lexists(path / RUN_FILE):
                    found[f"{prefix}{path.name}"] = path
                elif not is_link and depth < MOST_LEVELS - 1:
                    below.append((path, f"{prefix}{path.name}/"))
        level = below
    return found, False


def _directories(folder: Path) -> list[tuple[Path, bool]]:
    """Directories in a folder, and links, by name, and which are links; of one that cannot be read: none."""
    try:
        changed = folder.stat().st_mtime_ns
        # what changes twice within a tick of the disk's clock has the same time before and after
        settled = time.time() - changed / 1e9 > _SETTLED_SECONDS
        return (_scan if settled else _scan.__wrapped__)(folder, changed)
    except OSError:
        return []


@lru_cache(maxsize=2 * MOST_FOLDERS)
def _scan(folder: Path, changed: int) -> list[tuple[Path, bool]]:
    """`_directories`, once for each state of a folder."""
    with os.scandir(folder) as entries:
        kept = [(entry.name, entry.is_symlink()) for entry in entries if _may_lead_to_runs(entry)]
    return [(folder / name, is_link) for name, is_link in sorted(kept)]


def _may_lead_to_runs(entry: os.DirEntry[str]) -> bool:
    """Hidden folders do not, which are no user's runs but a tool's files (`.git`, `.ipynb_checkpoints`)."""
    try:
        return not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir())
    except OSError:
        return False
