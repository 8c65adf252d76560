"""How a run directory begins: a new one, or an interrupted one that is taken up at a step.

Everything that can be wrong with the arguments or the directory is found here, before the first step, and raised.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from inrank_monitor import initial_weights as w0
from inrank_monitor.initial_weights import InitialWeights
from inrank_monitor.matrices import Coverage, Matrix, unwrap
from inrank_monitor.null_model import Kind, null_rank
from inrank_monitor.run_log import (
    RUN_FILE,
    SCHEMA_VERSION,
    SCHEMAS,
    WEIGHTS_FILE,
    Lock,
    existing_segments,
    write_json,
)
from inrank_monitor.snapshot import RankOptions


@dataclass
class StartedRun:
    """A run directory that is ours to write.

    Attributes:
        directory: its path.
        info: what run.json holds; `save` writes it again.
        initial: W0.
        lock: held until the run is closed.
        step: where to go on; 0 for a new run.
        resumed: whether an earlier process wrote to it.
        running: running rank of each matrix at `step`.
    """

    directory: Path
    info: dict[str, Any]
    initial: InitialWeights
    lock: Lock
    step: int
    resumed: bool
    running: np.ndarray

    @property
    def segment(self) -> int:
        """Number of the streams that this process writes."""
        return int(self.info["segments"][-1]["segment"])

    def save(self) -> None:
        """Write run.json."""
        write_json(self.directory / RUN_FILE, self.info)


def start_run(
    directory: Path,
    model: nn.Module,
    matrices: Sequence[Matrix],
    coverage: Coverage,
    options: RankOptions,
    keep: w0.Keep,
    resume: bool | int,
    optimizer_steps: int | None,
    settings: dict[str, Any],
) -> StartedRun:
    """Begin a new run in `directory`, or go on with the one there.

    Args:
        directory: made if need be.
        model: for its name and size.
        matrices: what is watched.
        coverage: of all parameters.
        options: of the ranks.
        keep: where W0 is kept.
        resume: False refuses a directory that holds a run; True goes on at step 0 if the weights are W0, else at the
            step that the optimizer's own counter tells, else at the last one logged; a number goes on at that step.
            Without a run there a new one begins.
        optimizer_steps: the optimizer's own counter (Adam's `step`), or None if it has none.
        settings: the other arguments, for run.json.

    Raises:
        FileExistsError: there is a run, and `resume` is False.
        ValueError: the run there is of another model or has other options, or its W0 is damaged.
        RuntimeError: another process is writing it.
        OSError: the directory cannot be written.
    """
    exists = (directory / RUN_FILE).exists()
    if exists and resume is False:
        raise FileExistsError(
            f"{directory} holds a run already: go on with it by resume=True, or choose another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = Lock(directory)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write the run directory: {error.strerror}", str(directory)) from None
    try:
        if exists:
            return _resume(directory, matrices, options, resume, optimizer_steps, lock)
        return _new(directory, model, matrices, coverage, options, keep, optimizer_steps, settings, lock)
    except BaseException:
        lock.release()
        raise


def _new(
    directory: Path,
    model: nn.Module,
    matrices: Sequence[Matrix],
    coverage: Coverage,
    options: RankOptions,
    keep: w0.Keep,
    optimizer_steps: int | None,
    settings: dict[str, Any],
    lock: Lock,
) -> StartedRun:
    for table in SCHEMAS:  # what a process left that died before it wrote run.json
        for stale in directory.glob(f"{table}-*.arrows"):
            stale.unlink()
    initial = w0.take(matrices, keep, directory / WEIGHTS_FILE)
    info = {
        "schema_version": SCHEMA_VERSION,
        "id": uuid.uuid4().hex,
        "created": time.time(),
        "model": _describe_model(model),
        "matrices": [_describe_matrix(matrix, initial, options) for matrix in matrices],
        "coverage": [asdict(row) for row in coverage],
        "options": {**asdict(options), **settings},
        "optimizer_steps": optimizer_steps or 0,
        "initial_weights": {"keep": keep, "sha256": initial.content_hash},
        "segments": [{"segment": 0, "resume_step": None, "time": time.time(), "versions": _versions()}],
        "ended": None,
    }
    started = StartedRun(directory, info, initial, lock, 0, False, np.zeros(len(matrices), dtype=np.int64))
    started.save()
    return started


def _resume(
    directory: Path,
    matrices: Sequence[Matrix],
    options: RankOptions,
    resume: bool | int,
    optimizer_steps: int | None,
    lock: Lock,
) -> StartedRun:
    from inrank_monitor.run import open_run  # pandas, which a new run does not need

    run = open_run(directory)
    _check_same(directory, run.info, matrices, options)
    if run.info["initial_weights"]["keep"] != "disk":
        raise ValueError(f"{directory} kept W0 in memory (initial_weights), which is gone: it cannot be continued")
    initial = w0.load(directory / WEIGHTS_FILE, run.info["initial_weights"]["sha256"])
    measured = run.measurements
    if resume is not True:
        step = resume
    elif _is_at_start(matrices, initial):
        step = 0
    elif optimizer_steps:
        step = optimizer_steps - int(run.info["optimizer_steps"])
    else:
        step = run.summary().step
    ranks = measured[measured["step"] <= step].groupby("matrix", observed=False)["running_rank"].max()
    info = run.info
    segment = 1 + max(
        [entry["segment"] for entry in info["segments"]]
        + [number for table in SCHEMAS for number in existing_segments(directory, table)]
    )
    info["segments"].append({"segment": segment, "resume_step": step, "time": time.time(), "versions": _versions()})
    info["ended"] = None
    started = StartedRun(directory, info, initial, lock, step, True, ranks.fillna(0).to_numpy(dtype=np.int64))
    started.save()
    return started


def _is_at_start(matrices: Sequence[Matrix], initial: InitialWeights) -> bool:
    """Whether the weights are W0 to the bit: the training begins again, whatever the log says."""
    dense = {matrix.parameter: matrix for matrix in matrices if not matrix.in_factors}.values()
    return bool(dense) and all(
        torch.equal(matrix.read().cpu(), initial.of(matrix.parameter, torch.device("cpu"))) for matrix in dense
    )


def _check_same(directory: Path, info: dict[str, Any], matrices: Sequence[Matrix], options: RankOptions) -> None:
    """The run in the directory watches these matrices with these options."""
    there = [(entry["name"], entry["rows"], entry["cols"]) for entry in info["matrices"]]
    here = [(matrix.name, matrix.rows, matrix.cols) for matrix in matrices]
    if there != here:
        first = next((pair for pair in zip(there, here, strict=False) if pair[0] != pair[1]), None)
        detail = f"{first[0]} there, {first[1]} here" if first else f"{len(there)} matrices there, {len(here)} here"
        raise ValueError(f"{directory} holds a run of another model ({detail}); choose another directory")
    for name, value in asdict(options).items():
        if info["options"].get(name) != value:
            raise ValueError(f"{directory} was begun with {name}={info['options'].get(name)!r}, got {value!r}")


def _describe_model(model: nn.Module) -> dict[str, Any]:
    inner = unwrap(model)
    return {
        "class": type(inner).__name__,
        "parameters": sum(parameter.numel() for parameter in inner.parameters()),
        "device": str(next(inner.parameters()).device),
    }


def _describe_matrix(matrix: Matrix, initial: InitialWeights, options: RankOptions) -> dict[str, Any]:
    kind: Kind = "factors" if matrix.in_factors else "gaussian"
    norm = 0.0
    if not matrix.in_factors:
        norm = float(torch.linalg.vector_norm(matrix.view(initial.of(matrix.parameter, torch.device("cpu"))).float()))
    null = null_rank(
        matrix.rows,
        matrix.cols,
        options.threshold,
        options.buffer_rank,
        options.definition,
        kind,
        options.leading,
    )
    fields = ("name", "parameter", "part", "kind", "rows", "cols")
    return {**{field: getattr(matrix, field) for field in fields}, "null_rank": null, "initial_norm": norm}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("inrank-monitor", "torch", "numpy", "pyarrow", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
