"""Run directories of any size whose spectra decay as a power law, with the metrics that belong to them; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.null_model import null_rank
from inrank_monitor.runs.lock import LOCK_FILE
from inrank_monitor.runs.log import (
    FLOAT_METRICS,
    INTEGER_METRICS,
    RUN_FILE,
    SCHEMA_VERSION,
    RunLog,
    write_json,
)

THRESHOLD, BUFFER_RANK = 0.9, 8
_LAYERS = (("attn.c_attn", "q"), ("attn.c_attn", "k"), ("attn.c_attn", "v"), ("attn.c_proj", None), ("mlp.c_fc", None))


def names_of(count: int) -> list[str]:
    """So many names of a GPT-2's matrices."""
    names = []
    for place in range(count):
        layer, part = _LAYERS[place % len(_LAYERS)]
        names.append(f"h.{place // len(_LAYERS)}.{layer}.weight" + (f"[{part}]" if part else ""))
    return names


def made_info(
    names: list[str], rows: int, cols: int, created: float, ended: str | None, buffer_rank: int = BUFFER_RANK
) -> dict[str, Any]:
    """What run.json holds."""
    null = null_rank(rows, cols, THRESHOLD, buffer_rank)
    shape = {"rows": rows, "cols": cols, "null_rank": null, "initial_norm": 1.0, "kind": "Conv1D"}
    matrices = [
        {"name": name, "parameter": name.split("[")[0], "part": name[-2] if name.endswith("]") else None, **shape}
        for name in names
    ]
    coverage = [{"parameter": name, "shape": [rows, cols], "watched": True, "note": f"{rows}×{cols}"} for name in names]
    coverage.append({"parameter": "ln_f.weight", "shape": [cols], "watched": False, "note": "a vector"})
    return {
        "schema_version": SCHEMA_VERSION,
        "id": str(created),
        "created": created,
        "model": {"class": "Net", "parameters": len(names) * rows * cols, "device": "cpu"},
        "matrices": matrices,
        "coverage": coverage,
        "options": {"threshold": THRESHOLD, "buffer_rank": buffer_rank, "definition": "paper", "leading": None},
        "optimizer_steps": 0,
        "initial_weights": {"keep": "disk", "sha256": ""},
        "segments": [{"segment": 0, "resume_step": None, "time": created, "versions": {}}],
        "ended": ended and {"status": ended, "reason": "", "time": created, "step": 0},
    }


class Snapshots:
    """Columns of one snapshot after another, as a tracker would log them."""

    def __init__(self, matrices: int, size: int, seed: int = 0, buffer_rank: int = BUFFER_RANK) -> None:
        self._random = np.random.default_rng(seed)
        self._running = np.zeros(matrices, dtype=np.int64)
        self._decay = self._random.uniform(0.4, 1.6, (matrices, 1))
        self._index = np.arange(1, size + 1)
        self._buffer_rank = buffer_rank

    def at(self, step: int, not_finite: Iterable[int] = ()) -> dict[str, Any]:
        """One snapshot; `not_finite`: places of matrices whose update holds NaN."""
        count, bad = len(self._running), list(not_finite)
        noise = self._random.uniform(0.95, 1.05, (count, len(self._index)))
        spectra = -np.sort(-(self._index ** -(self._decay + 0.1 * np.cos(step / 50)) * noise * step), axis=1)
        spectra = spectra.astype(np.float32)
        ranks = rank_metrics.intrinsic_rank(spectra, THRESHOLD, self._buffer_rank)
        at = np.clip(self._running, 1, len(self._index))
        good = ~np.isin(np.arange(count), bad)
        self._running[good] = np.maximum(self._running, ranks)[good]
        floats = {name: np.ones(count) for name in FLOAT_METRICS} | {
            "explained_ratio": rank_metrics.explained_ratio(spectra, at, self._buffer_rank),
            "stable_rank": rank_metrics.stable_rank(spectra),
            "effective_rank": rank_metrics.effective_rank(spectra),
            "frobenius_norm": rank_metrics.frobenius_norm(spectra),
            "spectral_norm": spectra[:, 0].astype(np.float64),
            "error_bound": np.zeros(count),
        }
        whole = {name: np.asarray(ranks) for name in INTEGER_METRICS} | {"running_rank": self._running.copy()}
        columns: dict[str, Any] = {"step": [step] * count, "time": [1e9 + step] * count, "matrix": np.arange(count)}
        columns |= {name: np.where(good, values, np.nan) for name, values in floats.items()}
        columns |= {
            name: [int(value) if fine else None for value, fine in zip(values, good, strict=True)]
            for name, values in whole.items()
        }
        columns |= {name: [None] * count for name in ("layer_rank", "capacity")}
        spectrum = [row if fine else row[:0] for row, fine in zip(spectra, good, strict=True)]
        return columns | {"singular_values": spectrum}


def make_run(
    directory: Path,
    matrices: int = 5,
    steps: Iterable[int] = range(0, 50, 10),
    shape: tuple[int, int] = (24, 16),
    *,
    names: list[str] | None = None,
    created: float = 1e9,
    ended: str | None = "finished",
    not_finite: Callable[[int], Iterable[int]] = lambda step: (),
    seed: int = 0,
    buffer_rank: int = BUFFER_RANK,
) -> Path:
    """Write a whole run. Step 0 is a zero update."""
    directory.mkdir(parents=True)
    (directory / LOCK_FILE).touch()
    names = names or names_of(matrices)
    write_json(directory / RUN_FILE, made_info(names, *shape, created, ended, buffer_rank))
    log = RunLog(directory, 0)
    for _ in append_steps(log, len(names), steps, shape, not_finite, seed, buffer_rank):
        pass
    log.close()
    return directory


def append_steps(
    log: RunLog,
    matrices: int,
    steps: Iterable[int],
    shape: tuple[int, int],
    not_finite: Callable[[int], Iterable[int]] = lambda step: (),
    seed: int = 0,
    buffer_rank: int = BUFFER_RANK,
) -> Iterator[int]:
    """Write snapshots, losses and events one by one; yields each step once it is on disk."""
    snapshots = Snapshots(matrices, min(shape), seed, buffer_rank)
    for step in steps:
        bad = list(not_finite(step))
        log.append("measurements", snapshots.at(step, bad))
        both = {"step": [step] * 2, "time": [1e9 + step] * 2, "name": ["loss", "tracker_overhead"]}
        log.append("scalars", both | {"value": [5 / (1 + step / 20), 0.01]})
        if bad:
            event = {"step": [step], "time": [1e9 + step], "kind": ["non_finite"], "matrix": [None]}
            log.append("events", event | {"message": ["the weights hold NaN or infinity"]})
        yield step
