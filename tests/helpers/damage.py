"""Reads a small log with each byte cut off or damaged; run as a process, so that a crash is seen from outside.

`python damage.py DIRECTORY few|others` prints {"files": how many, "wrong": [complaints], "bytes": most held at once}.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from helpers.run_files import info, write_tables

from inrank_monitor.runs.log import CHECKSUM, RUN_FILE, SCHEMAS, write_json
from inrank_monitor.runs.segment import Segment

PATTERNS = (0x01, 0x80, 0xFF, 0x20)
_READS = 2  # the second one as `refresh` does it
_BATCHES = 2
_SPARE_BYTES = 1 << 30


def damaged_copies(data: bytes, patterns: str) -> Iterator[tuple[str, bytes]]:
    """(what was done, content): each byte changed, by one pattern ("few") or by all others ("others").

    With "few" also cut at every offset, and with tails that a crash leaves.
    """
    for offset in range(len(data)):
        for number, pattern in enumerate(PATTERNS):
            if (number == offset % len(PATTERNS)) == (patterns == "few"):
                changed = bytearray(data)
                changed[offset] ^= pattern
                yield f"byte {offset} xor {pattern:#x}", bytes(changed)
    if patterns == "others":
        return
    for offset in range(len(data)):
        yield f"cut at {offset}", data[:offset]
    for length in (1, 7, 8, 64, 4096):
        yield f"{length} zeros at the end", data + bytes(length)
        yield f"{length} bytes 0xff at the end", data + b"\xff" * length
    for offset in range(0, len(data) - 16, 16):
        yield f"16 zeros at {offset}", data[:offset] + bytes(16) + data[offset + 16 :]


def content(batch: pa.RecordBatch) -> bytes:
    """What a reader shows of a batch, NaN and all; with the names, since damage could swap columns."""
    shown = [name for name in batch.schema.names if name != CHECKSUM]
    return repr([(name, batch.column(name).to_pylist()) for name in shown]).encode()


def boundaries(data: bytes) -> set[int]:
    """Where a file may be cut without a trace: it is then what a shorter run leaves."""
    source = pa.BufferReader(data)
    found = {0}
    while source.tell() < len(data):
        pa.ipc.read_message(source)
        found.add(source.tell())
    return found


def complaint(path: Path, table: str, truth: list[bytes], silent: bool) -> str | None:
    """What is wrong with the reader's answer to a damaged file, or None; `silent`: it need not notice."""
    segment = Segment(path, table, 0)
    try:
        for _ in range(_READS):
            segment.read()
        found = [content(batch) for batch in segment.batches]
    except Exception as error:
        return f"raised {error!r}"
    if any(batch not in truth for batch in found):
        return "returned rows that were never written"
    if found != [batch for batch in truth if batch in found]:
        return "returned rows twice or out of order"
    if len(found) < len(truth) and not (segment.damaged or segment.unread or silent):
        return f"left out {len(truth) - len(found)} batches without saying so"
    return None


def sweep(directory: Path, table: str, patterns: str) -> tuple[int, list[str]]:
    """How many damaged copies of one table were read, and the complaints."""
    original = directory / f"{table}-000.arrows"
    data = original.read_bytes()
    whole = Segment(original, table, 0)
    whole.read()
    truth = [content(batch) for batch in whole.batches]
    assert len(truth) == _BATCHES
    copy, ends = directory / "copy.arrows", boundaries(data)
    wrong, files = [], 0
    for what, changed in damaged_copies(data, patterns):
        copy.write_bytes(changed)
        files += 1
        silent = what.startswith("cut") and len(changed) in ends
        if found := complaint(copy, table, truth, silent):
            wrong.append(f"{table}, {what}: {found}")
    return files, wrong


def main(directory: Path, patterns: str) -> None:
    """Sweep every table with little memory to spare, and print what was found."""
    write_json(directory / RUN_FILE, info())
    write_tables(directory, range(1, 1 + _BATCHES))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPARE_BYTES, used + _SPARE_BYTES))
    answers = [sweep(directory, table, patterns) for table in SCHEMAS]
    files, wrong = sum(answer[0] for answer in answers), [line for answer in answers for line in answer[1]]
    print(json.dumps({"files": files, "wrong": wrong, "bytes": pa.default_memory_pool().max_memory()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
