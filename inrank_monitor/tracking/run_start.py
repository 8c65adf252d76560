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
from torch.nn.parameter import UninitializedParameter

from inrank_monitor.distributed import Processes, Share, share_out, squared_norms
from inrank_monitor.matrices import Adapter, Coverage, InitialWeights, Matrix, local, unwrap
from inrank_monitor.matrices import initial_weights as w0
from inrank_monitor.ranks import Kind, null_rank
from inrank_monitor.runs import (
    RUN_FILE,
    SCHEMA_VERSION,
    SCHEMAS,
    WEIGHTS_FILE,
    Lock,
    existing_segments,
    write_json,
)
from inrank_monitor.tracking.snapshot import RankOptions


@dataclass
class StartedRun:
    """A run directory that is ours to write, or, on other processes than the main one, to measure for.

    Attributes:
        directory: its path.
        processes: that train together.
        share: what this process measures.
        info: what run.json holds; `save` writes it again.
        initial: W0 of this process's share.
        lock: held by the main process until the run is closed.
        step: where to go on; 0 for a new run.
        resumed: whether an earlier process wrote to it.
        running: running rank of each matrix at `step`.
    """

    directory: Path
    processes: Processes
    share: Share
    info: dict[str, Any]
    initial: InitialWeights
    lock: Lock | None
    step: int
    resumed: bool
    running: np.ndarray

    @property
    def segment(self) -> int:
        """Number of the streams that this process writes."""
        return int(self.info["segments"][-1]["segment"])

    def save(self) -> None:
        """Write run.json, on the main process."""
        if self.processes.is_main:
            write_json(self.directory / RUN_FILE, self.info)

    def release(self) -> None:
        """Let the run be taken up by somebody else."""
        if self.lock is not None:
            self.lock.release()


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
    processes: Processes,
) -> StartedRun:
    """Begin a new run in `directory`, or go on with the one there. Called on every process.

    Args:
        directory: made if need be; all processes must see it where they write W0 to disk.
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
        processes: that train together.

    Raises:
        FileExistsError: there is a run, and `resume` is False.
        ValueError: the run there is of another model or has other options, or its W0 is damaged.
        RuntimeError: another process is writing it.
        OSError: the directory cannot be written.
    """
    share = share_out(model, matrices, processes)
    held: list[Lock] = []
    exists = processes.on_main(lambda: open_directory(directory, resume, held))
    lock = held[0] if held else None
    try:
        if exists:
            return _resume(directory, processes, share, matrices, options, resume, optimizer_steps, lock)
        initial, norms = _take(directory, processes, share, matrices, keep)
        info = {
            "schema_version": SCHEMA_VERSION,
            "id": uuid.uuid4().hex,
            "created": time.time(),
            "model": _describe_model(model),
            "matrices": [describe_matrix(matrix, norm, options) for matrix, norm in zip(matrices, norms, strict=True)],
            "coverage": [asdict(row) for row in coverage],
            "options": {**asdict(options), **settings},
            "optimizer_steps": optimizer_steps or 0,
            "processes": processes.count,
            "initial_weights": {"keep": keep, "sha256": processes.collect(initial.content_hash)},
            "segments": [{"segment": 0, "resume_step": None, "time": time.time(), "versions": versions()}],
            "ended": None,
        }
        running = np.zeros(len(matrices), dtype=np.int64)
        started = StartedRun(directory, processes, share, info, initial, lock, 0, False, running)
        processes.on_main(started.save)
        return started
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def open_directory(directory: Path, resume: bool | int, held: list[Lock]) -> bool:
    """Take the lock; whether there is a run to go on with."""
    exists = (directory / RUN_FILE).exists()
    if exists and resume is False:
        raise FileExistsError(
            f"{directory} holds a run already: go on with it by resume=True, or choose another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held.append(Lock(directory))
    except OSError as error:
        raise type(error)(error.errno, f"cannot write the run directory: {error.strerror}", str(directory)) from None
    if not exists:
        for table in SCHEMAS:  # what a process left that died before it wrote run.json
            for stale in directory.glob(f"{table}-*.arrows"):
                stale.unlink()
    return exists


def _weights_file(directory: Path, processes: Processes) -> Path:
    """Where this process keeps its share of W0."""
    file = directory / WEIGHTS_FILE
    return file if processes.is_main else file.with_stem(f"{file.stem}-{processes.number:03d}")


def _take(
    directory: Path, processes: Processes, share: Share, matrices: Sequence[Matrix], keep: w0.Keep
) -> tuple[InitialWeights, list[float]]:
    """W0 of the share, and ‖W0‖_F of every matrix."""
    taken: list[InitialWeights] = []

    def take() -> dict[int, float]:
        directory.mkdir(parents=True, exist_ok=True)  # on the disk of another machine, maybe
        taken.append(w0.take([matrices[place] for place in share.held], keep, _weights_file(directory, processes)))
        return squared_norms(matrices, taken[0], share)

    squares = processes.everywhere(take)
    return taken[0], [sum(own.get(place, 0.0) for own in squares) ** 0.5 for place in range(len(matrices))]


def _resume(
    directory: Path,
    processes: Processes,
    share: Share,
    matrices: Sequence[Matrix],
    options: RankOptions,
    resume: bool | int,
    optimizer_steps: int | None,
    lock: Lock | None,
) -> StartedRun:
    info = processes.on_main(lambda: _info_to_resume(directory, matrices, options, processes.count))
    hashes = info["initial_weights"]["sha256"]
    own_hash = hashes[processes.number] if isinstance(hashes, list) else hashes
    loaded: list[InitialWeights] = []

    def load() -> bool | None:
        loaded.append(w0.load(_weights_file(directory, processes), own_hash))
        return _is_at_start([matrices[place] for place in share.held], loaded[0])

    at_start = [here for here in processes.everywhere(load) if here is not None]
    step, running, info = processes.on_main(
        lambda: _step_to_resume(directory, info, resume, all(at_start) if at_start else None, optimizer_steps)
    )
    started = StartedRun(directory, processes, share, info, loaded[0], lock, step, True, running)
    processes.on_main(started.save)
    return started


def _info_to_resume(directory: Path, matrices: Sequence[Matrix], options: RankOptions, count: int) -> dict[str, Any]:
    """run.json, if it is of the same matrices, options and number of processes."""
    from inrank_monitor.runs import open_run  # pandas, which a new run does not need

    info = open_run(directory).info
    check_same(directory, info, matrices, options)
    if info["initial_weights"]["keep"] == "checkpoint":
        raise ValueError(f"{directory} was scanned from checkpoints: go on with it by `inrank-monitor scan --resume`")
    if info["initial_weights"]["keep"] != "disk":
        raise ValueError(f"{directory} kept W0 in memory (initial_weights), which is gone: it cannot be continued")
    if (there := info.get("processes", 1)) != count:
        raise ValueError(
            f"{directory} was begun on {there} process{'es' * (there > 1)}, each of which kept its share of W0: "
            f"it cannot be continued on {count}"
        )
    return info


def _step_to_resume(
    directory: Path, info: dict[str, Any], resume: bool | int, at_start: bool | None, optimizer_steps: int | None
) -> tuple[int, np.ndarray, dict[str, Any]]:
    """Where to go on, the running ranks there, and run.json with a segment more."""
    from inrank_monitor.runs import open_run

    run = open_run(directory)
    measured = run.measurements
    if resume is not True:
        step = resume
    elif at_start:
        step = 0
    elif optimizer_steps:
        step = optimizer_steps - int(info["optimizer_steps"])
    elif measured.empty and at_start is False:
        raise ValueError(f"{directory} has logged nothing yet and the weights are not W0: say the step by resume=N")
    else:
        step = run.summary().step
    ranks = measured[measured["step"] <= step].groupby("matrix", observed=False)["running_rank"].max()
    segment = 1 + max(
        [entry["segment"] for entry in info["segments"]]
        + [number for table in SCHEMAS for number in existing_segments(directory, table)]
    )
    info["segments"].append({"segment": segment, "resume_step": step, "time": time.time(), "versions": versions()})
    info["ended"] = None
    return step, ranks.fillna(0).to_numpy(dtype=np.int64), info


def _is_at_start(matrices: Sequence[Matrix], initial: InitialWeights) -> bool | None:
    """Whether the weights are W0 to the bit: the training begins again, whatever the log says. None: there are none."""
    begun = {matrix.parameter: matrix for matrix in matrices if matrix.has_start}.values()

    def is_equal(matrix: Matrix) -> bool:
        return torch.equal(local(matrix.read()).cpu(), initial.of(matrix.parameter, torch.device("cpu")))

    # All factors are read, equal or not: an adapter's in shards are gathered, which every process must do.
    equal = [is_equal(matrix) for matrix in begun if matrix.in_factors]
    found = all(equal) and all(is_equal(matrix) for matrix in begun if not matrix.in_factors)
    return found if begun else None


def check_same(directory: Path, info: dict[str, Any], matrices: Sequence[Matrix], options: RankOptions) -> None:
    """The run in the directory watches these matrices with these options."""
    there = [(entry["name"], entry["rows"], entry["cols"]) for entry in info["matrices"]]
    here = [(matrix.name, matrix.rows, matrix.cols) for matrix in matrices]
    if there != here:
        first = next((pair for pair in zip(there, here, strict=False) if pair[0] != pair[1]), None)
        detail = f"{first[0]} there, {first[1]} here" if first else f"{len(there)} matrices there, {len(here)} here"
        raise ValueError(f"{directory} holds a run of another model ({detail}); choose another directory")
    for name, value in asdict(options).items():
        begun = info["options"].get(name, getattr(RankOptions(), name))
        if begun != value:
            raise ValueError(f"{directory} was begun with {name}={begun!r}, got {value!r}")


def _describe_model(model: nn.Module) -> dict[str, Any]:
    inner = unwrap(model)
    sized = [parameter for parameter in inner.parameters() if not isinstance(parameter, UninitializedParameter)]
    return {
        "class": type(inner).__name__,
        "parameters": sum(parameter.numel() for parameter in sized),
        "device": str(next(inner.parameters()).device),
    }


def describe_matrix(matrix: Matrix, norm: float, options: RankOptions) -> dict[str, Any]:
    """What run.json says of a matrix; `norm` is ‖W0‖_F."""
    kind: Kind = "factors" if matrix.in_factors else "gaussian"
    fixed = {"adapter_rank": matrix.module.capacity} if isinstance(matrix.module, Adapter) else {}
    null = null_rank(
        matrix.rows,
        matrix.cols,
        options.threshold,
        options.buffer_rank,
        options.definition,
        kind,
        None if options.density else options.leading,
        fixed.get("adapter_rank"),
    )
    fields = ("name", "parameter", "part", "kind", "rows", "cols")
    return {field: getattr(matrix, field) for field in fields} | {"null_rank": null, "initial_norm": norm} | fixed


def versions() -> dict[str, str]:
    """Versions of what a run depends on, for run.json."""
    found = {"python": platform.python_version()}
    for package in ("inrank-monitor", "torch", "numpy", "pyarrow", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
