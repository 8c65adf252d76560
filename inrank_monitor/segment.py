"""Reads one Arrow stream of a run as far as it is whole, and goes on from there next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from inrank_monitor.run_log import CHECKSUM, SCHEMAS, batch_checksum


class Segment:
    """One stream: `table-NNN.arrows`.

    Attributes:
        batches: what was read, whole and undamaged.
        damaged: batches whose checksum or structure is wrong.
        unread: bytes at the end that make no whole batch (yet).
    """

    def __init__(self, path: Path, table: str, number: int) -> None:
        self.path, self.table, self.number = path, table, number
        self.batches: list[pa.RecordBatch] = []
        self.damaged = 0
        self.unread = 0
        self._offset = 0
        self._schema: pa.Schema | None = None

    def read(self) -> bool:
        """Take in what is new; whether there was anything."""
        if self.path.stat().st_size <= self._offset:
            return False
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        source = pa.BufferReader(data)
        before = len(self.batches)
        whole = 0
        try:
            if self._schema is None:
                self._schema = pa.ipc.read_schema(source)
                whole = source.tell()
                if not self._schema.equals(SCHEMAS[self.table]):
                    raise pa.ArrowInvalid("another schema")
            while whole < len(data):
                message = pa.ipc.read_message(source)
                whole = source.tell()
                self._take(message)
        except (EOFError, OSError, pa.ArrowException):
            pass  # a torn tail: `unread` says how much
        self._offset += whole
        self.unread = len(data) - whole
        return len(self.batches) > before

    def _take(self, message: Any) -> None:
        try:
            batch = pa.ipc.read_record_batch(message, self._schema)
            batch.validate(full=True)
            stored = batch.column(CHECKSUM)[0].as_py()
            if stored != batch_checksum(batch):
                raise pa.ArrowInvalid("checksum")
        except (OSError, IndexError, pa.ArrowException):
            self.damaged += 1
        else:
            self.batches.append(batch)
