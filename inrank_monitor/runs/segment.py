"""Reads one Arrow stream of a run as far as it is whole, and goes on from there next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from inrank_monitor.runs.log import CHECKSUM, EARLIER_SCHEMAS, SCHEMAS, batch_checksum


class Segment:
    """One stream: `table-NNN.arrows`.

    Attributes:
        batches: what was read, whole and undamaged, as it was written: by the present schema or an earlier one.
        damaged: batches whose checksum or structure is wrong.
        unread: bytes at the end that make no whole batch (yet).
    """

    def __init__(self, path: Path, table: str, number: int) -> None:
        self.path, self.table, self.number = path, table, number
        self.batches: list[pa.RecordBatch] = []
        self.damaged = 0
        self.unread = 0
        self._offset = 0
        self._begun = False
        self._schemas = (SCHEMAS[table], *EARLIER_SCHEMAS.get(table, ()))  # a stream is of one: which, a batch tells

    def read(self) -> bool:
        """Take in what is new; whether there was anything."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:  # removed while it was open: what was read stays
            return False
        if not data:
            return False
        source = pa.BufferReader(data)
        before = len(self.batches)
        whole = 0
        try:
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
        """Keep a message's batch, or count it as damaged. The schema is ours, whatever the stream's header says."""
        if not self._begun:
            self._begun = True
            self.damaged += message.type != "schema"
            return
        for schema in self._schemas:
            batch = _batch(message, schema)
            if batch is not None:
                self.batches.append(batch)
                self._schemas = (schema,)
                return
        self.damaged += 1


def _batch(message: Any, schema: pa.Schema) -> pa.RecordBatch | None:
    """The message as a batch of this schema; None where it is none, or damaged."""
    try:
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        if batch.column(CHECKSUM)[0].as_py() != batch_checksum(batch):
            return None
    except (OSError, IndexError, ValueError, TypeError, pa.ArrowException):
        return None
    return batch
