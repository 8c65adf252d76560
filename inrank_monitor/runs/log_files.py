"""The files of a run directory: run.json and the streams, read as far as they are whole, and only what is new.

Reading never writes, and never runs or unpickles anything. What cannot be read is left out and named in `problems`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from inrank_monitor.runs import run_file
from inrank_monitor.runs.earlier import completed
from inrank_monitor.runs.lock import is_locked
from inrank_monitor.runs.log import RUN_FILE, SCHEMAS, existing_segments
from inrank_monitor.runs.notes import NOTES_FILE
from inrank_monitor.runs.segment import Segment

Status = Literal["live", "finished", "interrupted"]
SILENT_SECONDS = 120.0  # without locks, a run is live while its files are younger than this


def silent_seconds(directory: Path) -> float:
    """For how long a run has written nothing; what its reader notes beside it does not count."""
    files = [path for path in directory.iterdir() if not path.name.startswith(NOTES_FILE)]
    return time.time() - max(path.stat().st_mtime for path in files)


class LogFiles:
    """One run directory as record batches.

    Args:
        path: of the directory.

    Attributes:
        info: what run.json holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = {}
        self._info_text: str | None = None
        self._segments: dict[Path, Segment] = {}
        self._completed_batches: dict[Path, list[pa.RecordBatch]] = {}

    def refresh(self) -> bool:
        """Read what is new; whether there was anything.

        Raises:
            FileNotFoundError, ValueError: as `open_run`.
        """
        changed = self._read_info()
        foreign = self._foreign
        for table in SCHEMAS:
            for number, path in existing_segments(self.path, table).items():
                if number not in foreign and path not in self._segments:
                    self._segments[path] = Segment(path, table, number)
        for segment in self._segments.values():
            changed |= segment.read()
        return changed

    def _read_info(self) -> bool:
        text = run_file.read_text(self.path)
        if text == self._info_text:
            return False
        info = run_file.parse(text, self.path / RUN_FILE)
        if info["id"] != self.info.get("id"):  # another run has taken the place of this one
            self._segments.clear()
        self.info, self._info_text = info, text
        self._completed_batches.clear()  # more matrices may be known now
        kept = [segment for segment in self._segments.values() if segment.number not in self._foreign]
        self._segments = {segment.path: segment for segment in kept}
        return True

    @property
    def _foreign(self) -> list[int]:
        """Numbers of streams that another writer has left in the directory."""
        foreign: list[int] = self.info.get("foreign_segments", [])
        return foreign

    @property
    def status(self) -> Status:
        """`live` while a process writes it, `finished` once closed, `interrupted` otherwise."""
        if self.info["ended"]:
            return "finished" if self.info["ended"]["status"] == "finished" else "interrupted"
        locked = is_locked(self.path)
        if locked is None:
            locked = silent_seconds(self.path) < SILENT_SECONDS
        return "live" if locked else "interrupted"

    @property
    def problems(self) -> list[str]:
        """What could not be read, in sentences; an unfinished batch of a live run is none."""
        live = self.status == "live"
        newest = self.info["segments"][-1]["segment"] if self.info["segments"] else 0
        found = []
        for segment in self._segments.values():
            if segment.damaged:
                found.append(f"{segment.path.name}: {segment.damaged} damaged batches were left out.")
            if segment.unread and not (live and segment.number == newest):
                found.append(
                    f"{segment.path.name}: the last {segment.unread} bytes are torn or damaged; "
                    f"{len(segment.batches)} batches before them were read."
                )
        return found

    def batches(self, table: str) -> list[pa.RecordBatch]:
        """The batches that count, by the present schema: a segment ends where a later one resumed."""
        resumed_at = {entry["segment"]: entry["resume_step"] for entry in self.info["segments"]}
        kept = []
        for segment in sorted(self._segments.values(), key=lambda segment: segment.number):
            if segment.table != table:
                continue
            later = [step for number, step in resumed_at.items() if number > segment.number and step is not None]
            end = min(later, default=None)
            for batch in self._completed(segment):
                if end is not None and (steps := batch.column("step").to_numpy()).max() > end:
                    batch = batch.filter(pa.array(steps <= end))
                if batch.num_rows:
                    kept.append(batch)
        return kept

    def _completed(self, segment: Segment) -> list[pa.RecordBatch]:
        """A stream's batches by the present schema; those of an earlier version are completed once."""
        if segment.table != "measurements":
            return segment.batches
        kept = self._completed_batches.setdefault(segment.path, [])
        kept += [completed(batch, self.info) for batch in segment.batches[len(kept) :]]
        return kept
