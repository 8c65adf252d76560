"""The run directory on disk: schemas, writer.

A table is a sequence of Arrow IPC streams, `measurements-000.arrows`, -001 after a resume, and so on. A batch is
appended whole; what a failed write leaves of one is cut off again, and the batch is kept and tried at the next write.
Each row carries the CRC-32 of its batch, so that damage is noticed and never read as data. `run.json` is replaced
atomically.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from inrank_monitor.files import replaced
from inrank_monitor.runs.append_file import AppendFile
from inrank_monitor.runs.claim import Claim, SegmentTakenError

SCHEMA_VERSION = 2
RUN_FILE, WEIGHTS_FILE, TENSORBOARD_DIR = "run.json", "initial_weights.safetensors", "tensorboard"
CHECKSUM = "checksum"

INTEGER_METRICS = (
    "intrinsic_rank",
    "running_rank",
    "energy_rank",
    "numerical_rank",
    "layer_rank",
    "capacity",
    "signal_rank",
)
FLOAT_METRICS = (
    "explained_ratio",
    "stable_rank",
    "effective_rank",
    "spectral_norm",
    "frobenius_norm",
    "nuclear_norm",
    "relative_norm",
    "error_bound",
    "signal_share",
)


WEIGHT_METRICS = ("spectral_norm", "frobenius_norm", "stable_rank", "condition", "tail_exponent")
DIRECTION_METRICS = (
    "left_overlap",
    "right_overlap",
    "left_angle",
    "right_angle",
    "left_initial_overlap",
    "right_initial_overlap",
)


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([("step", pa.int64()), ("time", pa.float64()), *fields, (CHECKSUM, pa.uint32())])


def _measurements(integers: Sequence[str], floats: Sequence[str]) -> pa.Schema:
    return _schema(
        ("matrix", pa.int32()),  # place in run.json's list
        *((name, pa.int32()) for name in integers),
        *((name, pa.float64()) for name in floats),
        ("singular_values", pa.list_(pa.float32())),
    )


SCHEMAS: dict[str, pa.Schema] = {
    "measurements": _measurements(INTEGER_METRICS, FLOAT_METRICS),
    "weights": _schema(
        ("matrix", pa.int32()),
        *((name, pa.float64()) for name in WEIGHT_METRICS),
        ("singular_values", pa.list_(pa.float32())),
    ),
    "directions": _schema(
        ("matrix", pa.int32()),
        ("since", pa.int64()),
        *((name, pa.float64()) for name in DIRECTION_METRICS),
        ("intruder_dimensions", pa.int32()),
    ),
    "scalars": _schema(("name", pa.string()), ("value", pa.float64())),
    "events": _schema(("kind", pa.string()), ("matrix", pa.string()), ("message", pa.string())),
    "loss_ranks": _schema(
        ("matrix", pa.string()),
        ("rank", pa.int32()),
        ("loss", pa.float64()),
        ("loss_at_ranks", pa.float64()),
        ("tolerance", pa.float64()),
        ("evaluations", pa.int32()),
        ("uniform_rank", pa.int32()),  # null where it was not looked for
    ),
    "loss_curve": _schema(  # a row an evaluation of a result above, which has the same time
        ("mean_rank", pa.float64()),
        ("uniform_rank", pa.int32()),  # null where not all matrices had one rank
        ("loss", pa.float64()),
    ),
    "width_plans": _schema(  # a row a feed-forward block and plan
        ("block", pa.string()),
        ("width", pa.int32()),
        ("full_width", pa.int32()),
        ("unit_parameters", pa.int64()),  # weights of one hidden unit
    ),
}
# What earlier versions wrote, name by name, since the lists above may grow: never changed, only added to.
_VERSION_1 = _measurements(
    ("intrinsic_rank", "running_rank", "energy_rank", "numerical_rank", "layer_rank", "capacity"),
    (
        "explained_ratio",
        "stable_rank",
        "effective_rank",
        "spectral_norm",
        "frobenius_norm",
        "nuclear_norm",
        "relative_norm",
        "error_bound",
    ),
)
EARLIER_SCHEMAS: dict[str, tuple[pa.Schema, ...]] = {"measurements": (_VERSION_1,)}


def storable(text: object) -> str:
    """The text as UTF-8 can hold it: names of files, and so messages, may have bytes in them that are none."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def batch_checksum(batch: pa.RecordBatch) -> int:
    """CRC-32 of a batch's serialised content, its checksum column left out."""
    return zlib.crc32(batch.drop_columns([CHECKSUM]).serialize())


def make_batch(table: str, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """A record batch of `table` from its columns without `checksum`, which is added."""
    schema = SCHEMAS[table]
    arrays = [pa.array(columns[field.name], field.type) for field in schema if field.name != CHECKSUM]
    rows = len(arrays[0])
    batch = pa.RecordBatch.from_arrays([*arrays, pa.array([0] * rows, pa.uint32())], schema=schema)
    return pa.RecordBatch.from_arrays([*arrays, pa.array([batch_checksum(batch)] * rows, pa.uint32())], schema=schema)


def segment_path(directory: Path, table: str, segment: int) -> Path:
    """`directory/table-000.arrows`."""
    return directory / f"{table}-{segment:03d}.arrows"


def existing_segments(directory: Path, table: str) -> dict[int, Path]:
    """The table's streams in a directory, by number; other files are left alone."""
    found = {path.stem.removeprefix(f"{table}-"): path for path in directory.glob(f"{table}-*.arrows")}
    return {int(number): path for number, path in sorted(found.items()) if number.isascii() and number.isdigit()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step: a reader sees the old one or the new one."""
    with replaced(path) as temporary:
        # names of files may hold what is no text, which JSON can escape and UTF-8 cannot write
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_text(text if _is_text(text) else json.dumps(content, indent=1), encoding="utf-8")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class RunLog:
    """Writes the tables of one run; used by one thread.

    Args:
        directory: of the run; exists, and its lock is held.
        segment: number of the streams to write.
        max_pending: bytes of unwritten batches that are kept while the disk refuses them.
        claim: looked at before each batch.
    """

    def __init__(self, directory: Path, segment: int, max_pending: int = 256 << 20, claim: Claim | None = None) -> None:
        self.directory = directory
        self._segment, self._claim = segment, claim
        self._streams: dict[str, AppendFile] = {}
        self._pending: list[tuple[str, pa.RecordBatch, Callable[[], None]]] = []
        self._max_pending = max_pending
        self.dropped = 0

    def append(
        self, table: str, columns: Mapping[str, Sequence[Any]], written: Callable[[], None] = lambda: None
    ) -> None:
        """Take a batch, then write all that waits; `written` is called once this one is in the file.

        Raises:
            OSError: the disk refused a batch. It stays in line, and so do the later ones; once more than
                `max_pending` bytes wait, the oldest are dropped and counted in `dropped`.
            OtherWriterError, SegmentTakenError: the directory is another's; nothing is lost, see `go_on_in`.
        """
        self._pending.append((table, make_batch(table, columns), written))
        while len(self._pending) > 1 and sum(batch.nbytes for _, batch, _ in self._pending) > self._max_pending:
            self._pending.pop(0)
            self.dropped += 1
        self.flush()

    def flush(self) -> None:
        """Write what waits, in order.

        Raises:
            OSError: the disk refuses it still.
            OtherWriterError, SegmentTakenError: as `append`.
        """
        if self._claim is not None:
            self._claim.check()
        while self._pending:
            table, batch, written = self._pending[0]
            self._stream(table).append(batch.serialize())
            self._pending.pop(0)
            written()

    def _stream(self, table: str) -> AppendFile:
        """The table's file, begun with its schema: the first message of an Arrow stream."""
        if table not in self._streams:
            path = segment_path(self.directory, table, self._segment)
            try:
                self._streams[table] = AppendFile.begin(path, SCHEMAS[table].serialize(), exclusive=True)
            except FileExistsError as error:
                raise SegmentTakenError(f"{path} is there already") from error
        return self._streams[table]

    def go_on_in(self, directory: Path, segment: int, claim: Claim | None) -> None:
        """Write other streams from now on, which begin with all that was written so far.

        Raises:
            OSError: one of them cannot be written; what it held, and all later ones, stay where they were.
        """
        self.directory, self._segment, self._claim = directory, segment, claim
        for table, stream in self._streams.items():
            path = segment_path(directory, table, segment)
            self._streams[table] = AppendFile.begin(path, stream.content(), exclusive=True)
            stream.close()

    @property
    def waiting(self) -> int:
        """Batches that are not on disk."""
        return len(self._pending)

    def close(self) -> None:
        """Close the files; what still waits is lost, and the caller has said so."""
        for stream in self._streams.values():
            stream.close()
