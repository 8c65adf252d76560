"""Adding a result to a run that is on disk, beside whatever else may be writing it.

In a stream of its own, of a number that no segment has: the run may be live, or be taken up later. Where it is taken
up at an earlier step than the result's, the result no longer counts, as all that was logged past that step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from inrank_monitor.runs.append_file import AppendFile
from inrank_monitor.runs.lock import Lock
from inrank_monitor.runs.log import SCHEMAS, existing_segments, make_batch, segment_path
from inrank_monitor.runs.run_file import read_info

_ATTEMPTS = 100


def add_tables(path: Path, tables: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Add rows to tables of a run, one stream a table; a table without rows is left alone.

    Args:
        path: of the run.
        tables: columns by the table's name, as `SCHEMAS` has them.

    Raises:
        OSError: it cannot be written.
    """
    lock = None
    with suppress(RuntimeError):  # a live process writes it: its numbers are in run.json already
        lock = Lock(path)
    try:
        for _ in range(_ATTEMPTS):  # another that writes a result may take the same number
            taken = [entry["segment"] for entry in read_info(path)["segments"]]
            taken += [number for table in SCHEMAS for number in existing_segments(path, table)]
            with suppress(FileExistsError):
                for table, rows in tables.items():
                    if not rows["time"]:
                        continue
                    content = SCHEMAS[table].serialize().to_pybytes() + make_batch(table, rows).serialize().to_pybytes()
                    AppendFile.begin(segment_path(path, table, 1 + max(taken)), content, exclusive=True).close()
                return
        raise OSError(f"no number is free for another stream of {next(iter(tables))} in {path}")
    finally:
        if lock is not None:
            lock.release()
