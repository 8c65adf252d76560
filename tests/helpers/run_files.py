"""Run directories written row by row, so that what a reader must return is known; no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inrank_monitor.runs.log import (
    DIRECTION_METRICS,
    FLOAT_METRICS,
    INTEGER_METRICS,
    RUN_FILE,
    SCHEMA_VERSION,
    WEIGHT_METRICS,
    RunLog,
    write_json,
)

NAMES = ("encoder.weight", "attn.c_attn.weight[q]")


def info(*segments: tuple[int, int | None], ended: str | None = "finished", names: tuple[str, ...] = NAMES) -> Any:
    """What run.json holds; `segments` are (number, resume step)."""
    matrix = {"part": None, "kind": "Linear", "rows": 4, "cols": 3, "null_rank": 2, "initial_norm": 1.5}
    return {
        "schema_version": SCHEMA_VERSION,
        "id": "0",
        "created": 1.0e9,
        "model": {"class": "Net", "parameters": 24, "device": "cpu"},
        "matrices": [{"name": name, "parameter": name, **matrix} for name in names],
        "coverage": [{"parameter": name, "shape": [4, 3], "watched": True, "note": "4×3"} for name in names],
        "options": {"threshold": 0.9, "buffer_rank": 2, "definition": "paper", "leading": None},
        "optimizer_steps": 0,
        "initial_weights": {"keep": "disk", "sha256": ""},
        "segments": [
            {"segment": number, "resume_step": step, "time": 1.0e9, "versions": {}}
            for number, step in segments or [(0, None)]
        ],
        "ended": ended and {"status": ended, "reason": "", "time": 1.0e9, "step": 9},
    }


def measurement(step: int, rows: int = 2, mark: float = 0.0, values: int = 3) -> dict[str, Any]:
    """Columns of one snapshot; every number depends on the step and the row. `mark` tells segments apart."""
    index = np.arange(rows)
    columns: dict[str, Any] = {"step": [step] * rows, "time": [1.0e9 + step] * rows, "matrix": index}
    columns |= {name: step + index + place for place, name in enumerate(INTEGER_METRICS)}
    columns |= {name: step + 0.25 * index + place + mark for place, name in enumerate(FLOAT_METRICS)}
    spectra = [np.arange(values, 0, -1) * (step + row + 0.5) + mark for row in index]
    return columns | {"singular_values": [spectrum.astype(np.float32) for spectrum in spectra]}


def scalar(step: int, value: float | None = None, name: str = "loss") -> dict[str, Any]:
    """Columns of one scalar."""
    return {"step": [step], "time": [1.0e9], "name": [name], "value": [1 / (step + 1) if value is None else value]}


def event(step: int, message: str = "the weights hold NaN") -> dict[str, Any]:
    """Columns of one event."""
    return {"step": [step], "time": [1.0e9], "kind": ["non_finite"], "matrix": [NAMES[0]], "message": [message]}


def loss_ranks(step: int, rows: int = 2) -> dict[str, Any]:
    """Columns of one result of ranks by loss, a row a matrix."""
    numbers = {"loss": 1.5, "loss_at_ranks": 1.5 + 0.001 * step, "tolerance": 0.01, "evaluations": 10 + step}
    same = {"step": step, "time": 1.0e9 + step, **numbers, "uniform_rank": step + 2}
    ranks = {"matrix": list(NAMES[:rows]), "rank": [step + row for row in range(rows)]}
    return {name: [value] * rows for name, value in same.items()} | ranks


def loss_curve(step: int) -> dict[str, Any]:
    """Columns of two evaluations, at one rank for all and at others."""
    same = {"step": [step] * 2, "time": [1.0e9 + step] * 2}
    return {**same, "mean_rank": [step + 0.5, 3.0], "uniform_rank": [None, 3], "loss": [1.5, 1.6]}


def width_plan(step: int) -> dict[str, Any]:
    """Columns of one plan of two feed-forward blocks."""
    same = {"step": [step] * 2, "time": [1.0e9 + step] * 2, "full_width": [64] * 2, "unit_parameters": [32] * 2}
    return same | {"block": ["h.0.mlp", "h.1.mlp"], "width": [40 + step, 8]}


def weight(step: int) -> dict[str, Any]:
    """Columns of one matrix's own spectrum."""
    columns: dict[str, Any] = {"step": [step], "time": [1.0e9 + step], "matrix": [1]}
    columns |= {name: [step + 0.5 * place] for place, name in enumerate(WEIGHT_METRICS)}
    return columns | {"singular_values": [np.array([3.0, 2.0, 1.0], dtype=np.float32) * step]}


def directions(step: int) -> dict[str, Any]:
    """Columns of one matrix's directions."""
    columns: dict[str, Any] = {"step": [step], "time": [1.0e9 + step], "matrix": [1], "since": [step - 1]}
    columns |= {name: [step + 0.5 * place] for place, name in enumerate(DIRECTION_METRICS)}
    return columns | {"intruder_dimensions": [step + 3]}


MAKERS = {
    "measurements": measurement,
    "weights": weight,
    "directions": directions,
    "scalars": scalar,
    "events": event,
    "loss_ranks": loss_ranks,
    "loss_curve": loss_curve,
    "width_plans": width_plan,
}


def write_tables(directory: Path, steps: range, segment: int = 0, mark: float = 0.0) -> None:
    """One batch a step in every table of one segment."""
    log = RunLog(directory, segment)
    for step in steps:
        log.append("measurements", measurement(step, mark=mark))
        log.append("scalars", scalar(step, mark or None))
        log.append("events", event(step, f"segment {segment}"))
        log.append("loss_ranks", loss_ranks(step))
        log.append("loss_curve", loss_curve(step))
        log.append("width_plans", width_plan(step))
        log.append("weights", weight(step))
        log.append("directions", directions(step))
    log.close()


def write_run(directory: Path, steps: range = range(1, 4), **options: Any) -> Path:
    """A finished run with one segment."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RUN_FILE, info(**options))
    write_tables(directory, steps)
    return directory


def edit(directory: Path, **changes: Any) -> None:
    """Change keys of run.json; None removes one."""
    content = json.loads((directory / RUN_FILE).read_text(encoding="utf-8")) | changes
    write_json(directory / RUN_FILE, {key: value for key, value in content.items() if value != "REMOVED"})
