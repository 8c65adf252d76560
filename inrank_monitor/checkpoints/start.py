"""How a scan's run directory begins: a new one, or one that a scan has left and that is taken up again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from inrank_monitor.checkpoints.files import Checkpoint
from inrank_monitor.checkpoints.model import WatchedModel
from inrank_monitor.checkpoints.steps import Saved
from inrank_monitor.distributed import initial_norm
from inrank_monitor.matrices import InitialWeights
from inrank_monitor.runs import RUN_FILE, SCHEMA_VERSION, Lock, write_json
from inrank_monitor.tracking import RankOptions, check_same, describe_matrix, open_directory, versions

KEEP = "checkpoint"  # where run.json says that W0 is


@dataclass
class ScanRun:
    """A scan's run directory that is ours to write.

    Attributes:
        directory: its path.
        info: what run.json holds; `save` writes it again.
        lock: held until the run is closed.
        step: of W0, or the last one measured.
        resumed: whether an earlier process wrote to it.
        running: running rank of each matrix at `step`.
    """

    directory: Path
    info: dict[str, Any]
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


def start_scan(
    directory: Path,
    saved: Sequence[Saved],
    watched: WatchedModel,
    first: Checkpoint,
    options: RankOptions,
    resume: bool,
) -> tuple[ScanRun, list[Saved]]:
    """Begin a run in `directory` or take up the scan there; the run, and the checkpoints that are still to be measured.

    Raises:
        FileExistsError: there is a run, and `resume` is False.
        ValueError: the run there is no scan, or one of another model, another W0 or with other options; or a checkpoint
            lies before what has been measured.
        RuntimeError: another process is writing it.
        OSError: the directory cannot be written.
    """
    held: list[Lock] = []
    exists = open_directory(directory, resume, held)
    lock = held[0]
    try:
        info = _describe(saved[0], watched, first, options)
        measured = list(saved[1:] if watched.begins_at_first else saved)
        if exists:
            started, done = _take_up(directory, info, watched, options, lock)
        else:
            running = np.zeros(len(watched.matrices), dtype=np.int64)
            started = ScanRun(directory, info, lock, saved[0].step, False, running)
            done = set()
        todo = [one for one in measured if one.step not in done]
        if todo and done and todo[0].step < max(done):
            raise ValueError(f"{todo[0].path} is at step {todo[0].step}, but {directory} is at {max(done)} already")
        started.save()
    except BaseException:
        lock.release()
        raise
    return started, todo


def _describe(first_saved: Saved, watched: WatchedModel, first: Checkpoint, options: RankOptions) -> dict[str, Any]:
    """What run.json holds at the start."""
    places = watched.places(first)
    owners = {matrix.parameter: matrix for matrix in watched.matrices}

    def start(parameter: str) -> Tensor:
        watched.fill(owners[parameter], first, places[parameter])
        return watched.start(owners[parameter])

    initial = InitialWeights(start)
    return {
        "schema_version": SCHEMA_VERSION,
        "id": uuid.uuid4().hex,
        "created": time.time(),
        "model": {"class": watched.kind, "parameters": watched.size, "device": "cpu"},
        "matrices": [describe_matrix(matrix, initial_norm(matrix, initial), options) for matrix in watched.matrices],
        "coverage": [asdict(row) for row in watched.coverage],
        "options": {**asdict(options), "initial_weights": KEEP},
        "optimizer_steps": 0,
        "initial_weights": {"keep": KEEP, "path": str(first.path.resolve()), "step": first_saved.step},
        "segments": [{"segment": 0, "resume_step": None, "time": time.time(), "versions": versions()}],
        "ended": None,
    }


def _take_up(
    directory: Path, info: dict[str, Any], watched: WatchedModel, options: RankOptions, lock: Lock
) -> tuple[ScanRun, set[int]]:
    """The scan that is there, once it has been found to be this one, and the steps that it has measured."""
    from inrank_monitor.runs import open_run

    run = open_run(directory)
    there = run.info.get("initial_weights", {})
    if there.get("keep") != KEEP:
        raise ValueError(f"{directory} holds the run of a tracker, not of a scan: choose another directory")
    check_same(directory, run.info, watched.matrices, options)
    if there["step"] != info["initial_weights"]["step"] or run.info["matrices"] != info["matrices"]:
        raise ValueError(
            f"{directory} was begun with another W0 ({there['path']}, step {there['step']}) than "
            f"{info['initial_weights']['path']}, step {info['initial_weights']['step']}"
        )
    measured = run.measurements
    done = {int(step) for step in measured["step"].unique()}
    ranks = measured.groupby("matrix", observed=False)["running_rank"].max()
    segment = 1 + max(entry["segment"] for entry in run.info["segments"])
    last = max(done, default=there["step"])
    run.info["segments"].append({"segment": segment, "resume_step": last, "time": time.time(), "versions": versions()})
    run.info["ended"] = None
    running = ranks.fillna(0).to_numpy(dtype=np.int64)
    return ScanRun(directory, run.info, lock, last, True, running), done
