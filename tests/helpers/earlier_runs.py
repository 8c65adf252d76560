"""A run as version 1 wrote it, for what reads it today; its schema stands here name by name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.null_model import null_rank
from inrank_monitor.runs.log import RUN_FILE, write_json

INTEGERS = ("intrinsic_rank", "running_rank", "energy_rank", "numerical_rank", "layer_rank", "capacity")
FLOATS = (
    "explained_ratio",
    "stable_rank",
    "effective_rank",
    "spectral_norm",
    "frobenius_norm",
    "nuclear_norm",
    "relative_norm",
    "error_bound",
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("time", pa.float64()),
        ("matrix", pa.int32()),
        *((name, pa.int32()) for name in INTEGERS),
        *((name, pa.float64()) for name in FLOATS),
        ("singular_values", pa.list_(pa.float32())),
        ("checksum", pa.uint32()),
    ]
)
NAMES = ("block.weight", "head.weight", "adapter.weight")
SHAPES = ((32, 48), (10, 96), (32, 32))
STEPS = (0, 1, 12, 40)


def spectrum(place: int, step: int, leading: int | None = None) -> np.ndarray | None:
    """Of a matrix at a step: noise with one direction, thin noise, a product of four columns. None: not finite."""
    if step == 40 and place == 1:
        return None
    rows, cols = SHAPES[place]
    generator = np.random.default_rng([place, step])
    matrix = generator.standard_normal((rows, cols))
    matrix[0] += 12.0 if place == 0 else 0.0
    if place == 2:
        matrix = generator.standard_normal((rows, 4)) @ generator.standard_normal((4, cols))
    values = np.linalg.svd(matrix * step, compute_uv=False)[: 4 if place == 2 else None]
    return values[:leading].astype(np.float32)


def norm(place: int, step: int) -> float:
    """‖ΔW‖_F of the whole update."""
    values = spectrum(place, step)
    return np.nan if values is None else float(np.linalg.norm(values.astype(np.float64)))


def columns(step: int, running: np.ndarray, leading: int | None) -> dict[str, Any]:
    """One snapshot as version 1 drew it: from the leading values as if they were all."""
    rows: dict[str, list[Any]] = {name: [] for name in (*INTEGERS, *FLOATS, "singular_values")}
    for place, shape in enumerate(SHAPES):
        values = spectrum(place, step, leading)
        size = min(shape) if place == 2 and leading is None else None
        taken = np.full(1, np.nan) if values is None else values
        rank = int(rank_metrics.intrinsic_rank(taken, 0.9, 4, size=size))
        at = max(int(running[place]), 1)
        running[place] = max(running[place], rank)
        whole = np.array(norm(place, step))
        found: dict[str, Any] = {
            "intrinsic_rank": rank,
            "running_rank": int(running[place]),
            "energy_rank": int(rank_metrics.energy_rank(taken, 0.9, whole)),
            "numerical_rank": int(rank_metrics.numerical_rank(taken, *shape)),
            "explained_ratio": float(rank_metrics.explained_ratio(taken, at, 4, size=size))
            if values is not None
            else 0,
            "stable_rank": float(rank_metrics.stable_rank(taken, whole)),
            "effective_rank": float(rank_metrics.effective_rank(taken)),
            "spectral_norm": float(taken[0]),
            "frobenius_norm": float(whole),
            "nuclear_norm": float(taken.sum()),
            "relative_norm": float(whole),
            "error_bound": 0.0,
        }
        if values is None:
            found = dict.fromkeys(INTEGERS) | dict.fromkeys(FLOATS, np.nan)
        found |= {"layer_rank": 4, "capacity": 4} if place == 2 else {"layer_rank": None, "capacity": None}
        for name, value in (found | {"singular_values": [] if values is None else values}).items():
            rows[name].append(value)
    count = len(SHAPES)
    return {"step": [step] * count, "time": [1e9 + step] * count, "matrix": list(range(count)), **rows}


def batch(table: dict[str, Any]) -> pa.RecordBatch:
    """With the checksum that version 1 gave it."""
    arrays = [pa.array(table[field.name], field.type) for field in SCHEMA if field.name != "checksum"]
    count = len(arrays[0])
    empty = pa.RecordBatch.from_arrays([*arrays, pa.array([0] * count, pa.uint32())], schema=SCHEMA)
    checksum = zlib.crc32(empty.drop_columns(["checksum"]).serialize())
    return pa.RecordBatch.from_arrays([*arrays, pa.array([checksum] * count, pa.uint32())], schema=SCHEMA)


def write_earlier_run(directory: Path, steps: Sequence[int] = STEPS, leading: int | None = None) -> Path:
    """A finished run of version 1."""
    directory.mkdir(parents=True)
    running = np.zeros(len(SHAPES), dtype=np.int64)
    with (directory / "measurements-000.arrows").open("wb") as file:
        file.write(SCHEMA.serialize())
        for step in steps:
            file.write(batch(columns(step, running, leading)).serialize())
    matrices = [
        {
            **{"name": name, "parameter": name, "part": None, "kind": "Linear", "initial_norm": 1.0},
            **{"rows": rows, "cols": cols, "null_rank": null_rank(rows, cols, 0.9, 4, leading=leading)},
        }
        for name, (rows, cols) in zip(NAMES, SHAPES, strict=True)
    ]
    matrices[2] |= {"adapter_rank": 4, "null_rank": null_rank(32, 32, 0.9, 4, kind="factors", rank=4)}
    info = {
        "schema_version": 1,
        "id": "earlier",
        "created": 1.0e9,
        "model": {"class": "Net", "parameters": 3000, "device": "cpu"},
        "matrices": matrices,
        "coverage": [{"parameter": name, "shape": [4, 3], "watched": True, "note": ""} for name in NAMES],
        "options": {"threshold": 0.9, "buffer_rank": 4, "definition": "paper", "leading": leading},
        "optimizer_steps": 0,
        "initial_weights": {"keep": "disk", "sha256": ""},
        "segments": [{"segment": 0, "resume_step": None, "time": 1.0e9, "versions": {}}],
        "ended": {"status": "finished", "reason": "", "time": 1.0e9, "step": 40},
    }
    write_json(directory / RUN_FILE, info)
    return directory


def as_version_1(directory: Path) -> None:
    """Turn a run's first segment into what version 1 would have written."""
    path = directory / "measurements-000.arrows"
    with pa.ipc.open_stream(path) as reader:
        tables = [each.select(SCHEMA.names).to_pydict() for each in reader]
    with path.open("wb") as file:
        file.write(SCHEMA.serialize())
        for table in tables:
            file.write(batch(table).serialize())
    info = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
    write_json(directory / RUN_FILE, info | {"schema_version": 1})
