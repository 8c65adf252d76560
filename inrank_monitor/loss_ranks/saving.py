"""Writing a result into a run that is on disk, beside whatever else may be writing it.

In a stream of its own, of a number that no segment has: the run may be live, or be taken up later. Where it is taken
up at an earlier step than the result's, the result no longer counts, as all that was logged past that step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from inrank_monitor.runs import (
    SCHEMAS,
    AppendFile,
    Lock,
    existing_segments,
    make_batch,
    read_info,
    segment_path,
)

TABLE, CURVE = "loss_ranks", "loss_curve"
_ATTEMPTS = 100


def step_of(path: Path) -> int:
    """The last step that is known of a run."""
    from inrank_monitor.runs import open_run  # pandas

    return open_run(path).summary().step


def saved_in(path: Path, columns: Mapping[str, Sequence[Any]], curve: Mapping[str, Sequence[Any]]) -> None:
    """Add the rows to the run's tables, ranks and what was evaluated for them.

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
                for table, rows in ((TABLE, columns), (CURVE, curve)):
                    if not rows["time"]:
                        continue
                    content = SCHEMAS[table].serialize().to_pybytes() + make_batch(table, rows).serialize().to_pybytes()
                    AppendFile.begin(segment_path(path, table, 1 + max(taken)), content, exclusive=True).close()
                return
        raise OSError(f"no number is free for another {TABLE} stream in {path}")
    finally:
        if lock is not None:
            lock.release()
