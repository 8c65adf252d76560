from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.run_files import MAKERS, event, measurement, scalar

from inrank_monitor.runs import lock as run_lock
from inrank_monitor.runs.lock import LOCK_FILE, Lock, is_locked
from inrank_monitor.runs.log import (
    CHECKSUM,
    SCHEMAS,
    AppendFile,
    RunLog,
    batch_checksum,
    make_batch,
    segment_path,
    write_json,
)
from inrank_monitor.runs.segment import Segment


def read_back(directory: Path, table: str, segment: int = 0) -> list[pa.RecordBatch]:
    reader = Segment(segment_path(directory, table, segment), table, segment)
    reader.read()
    assert (reader.damaged, reader.unread) == (0, 0)
    return reader.batches


class Disk:
    """Stands before a file and takes only so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self.room = file, room

    def write(self, data: Sequence[int]) -> int:
        part = data[: min(self.room, 1000)]
        if len(data) and not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(part)
        return int(self._file.write(part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill(monkeypatch: pytest.MonkeyPatch, room: int) -> list[Disk]:
    """From now on every file that a log opens has this much room."""
    disks: list[Disk] = []
    plain = AppendFile.__init__

    def limited(self: AppendFile, path: Path, exclusive: bool = False) -> None:
        plain(self, path, exclusive)
        disks.append(Disk(self._file, room))
        self._file = disks[-1]  # type: ignore[assignment]

    monkeypatch.setattr(AppendFile, "__init__", limited)
    return disks


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_table_reads_back_as_it_was_written(tmp_path: Path, table: str) -> None:
    log = RunLog(tmp_path, 3)
    written = [MAKERS[table](step) for step in (1, 2, 50)]
    for columns in written:
        log.append(table, columns)
    log.close()
    batches = read_back(tmp_path, table, 3)
    assert [batch.schema for batch in batches] == [SCHEMAS[table]] * 3
    for batch, columns in zip(batches, written, strict=True):
        for name, values in columns.items():
            assert np.array_equal(np.concatenate([batch.column(name).to_pylist()]), np.concatenate([values])), name


def test_nulls_nan_empty_spectra_and_any_text_survive(tmp_path: Path) -> None:
    columns = measurement(1)
    columns["intrinsic_rank"] = [None, 7]
    columns["spectral_norm"] = np.array([math.nan, math.inf])
    columns["singular_values"] = [[], np.array([2.5, 0.0], dtype=np.float32)]
    texts = ["", "σ → ∞", "two\nlines", "🙂", "x" * 100_000]
    log = RunLog(tmp_path, 0)
    log.append("measurements", columns)
    for text in texts:
        log.append("events", event(1, text) | {"matrix": [None]})
    log.close()
    (batch,) = read_back(tmp_path, "measurements")
    assert batch.column("intrinsic_rank").to_pylist() == [None, 7]
    assert np.array_equal(batch.column("spectral_norm").to_numpy(), [math.nan, math.inf], equal_nan=True)
    assert batch.column("singular_values").to_pylist() == [[], [2.5, 0.0]]
    events = read_back(tmp_path, "events")
    assert [batch.column("message")[0].as_py() for batch in events] == texts
    assert {batch.column("matrix")[0].as_py() for batch in events} == {None}


def test_every_row_carries_the_checksum_of_its_batch() -> None:
    batch = make_batch("measurements", measurement(4, rows=3))
    assert batch.column(CHECKSUM).to_pylist() == [batch_checksum(batch)] * 3
    other = make_batch("measurements", measurement(4, rows=3, mark=1e-9))
    assert batch_checksum(other) != batch_checksum(batch)


def test_a_refused_write_leaves_whole_batches_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = fill(monkeypatch, room=6000)
    log = RunLog(tmp_path, 0)
    written: list[int] = []
    refused = 0
    for step in range(1, 9):
        try:
            log.append("measurements", measurement(step), lambda step=step: written.append(step))
        except OSError:
            refused += 1
    on_disk = [batch.column("step")[0].as_py() for batch in read_back(tmp_path, "measurements")]
    assert 1 <= len(on_disk) < 8
    assert on_disk == written == list(range(1, 1 + len(written)))
    assert log.waiting == refused == 8 - len(written)
    disks[0].room = 10**9
    log.flush()
    log.close()
    assert written == list(range(1, 9))
    assert log.waiting == log.dropped == 0
    assert [batch.column("step")[0].as_py() for batch in read_back(tmp_path, "measurements")] == written


def test_a_stream_whose_schema_was_refused_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = fill(monkeypatch, room=100)
    log = RunLog(tmp_path, 0)
    with pytest.raises(OSError, match="No space"):
        log.append("scalars", scalar(1))
    monkeypatch.undo()
    log.flush()
    log.close()
    disks[0].close()
    assert len(read_back(tmp_path, "scalars")) == 1


def test_what_waits_for_the_disk_is_bounded_and_what_is_dropped_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = fill(monkeypatch, room=2000)
    one = make_batch("measurements", measurement(1)).nbytes
    log = RunLog(tmp_path, 0, max_pending=3 * one)
    for step in range(1, 21):
        with pytest.raises(OSError, match="No space"):
            log.append("measurements", measurement(step))
    assert (log.waiting, log.dropped) == (3, 17)
    disks[-1].room = 10**9
    log.flush()
    log.close()
    assert [batch.column("step")[0].as_py() for batch in read_back(tmp_path, "measurements")] == [18, 19, 20]


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": "σ"})

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="No space"):
            write_json(path, {"a": 2})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "σ"}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_one_writer_holds_the_lock_and_readers_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: None)
    assert is_locked(tmp_path) is None
    lock = Lock(tmp_path)
    assert is_locked(tmp_path) is True
    with pytest.raises(RuntimeError, match=f"{tmp_path}.*choose another"):
        Lock(tmp_path)
    assert is_locked(tmp_path) is True
    lock.release()
    assert is_locked(tmp_path) is False
    Lock(tmp_path).release()


def test_a_reader_that_looks_does_not_refuse_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / LOCK_FILE).touch()
    with (tmp_path / LOCK_FILE).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        # the writer waits: in that time the reader is done
        monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        Lock(tmp_path).release()


def test_a_released_lock_is_free_although_a_forked_worker_inherited_it(tmp_path: Path) -> None:
    # What a data loader's worker does: it has a copy of every open file and outlives the run.
    lock = Lock(tmp_path)
    inherited = os.dup(lock._file.fileno())  # the same open file description, as after a fork
    try:
        lock.release()
        assert is_locked(tmp_path) is False
    finally:
        os.close(inherited)
