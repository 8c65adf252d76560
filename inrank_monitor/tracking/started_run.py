"""A run directory that is ours to write: how it is opened, what run.json says at the start, how it ends."""

from __future__ import annotations

import math
import platform
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from inrank_monitor.matrices import Adapter, Matrix, layer_of
from inrank_monitor.ranks import Kind, null_rank
from inrank_monitor.runs import (
    RUN_FILE,
    SCHEMA_VERSION,
    SCHEMAS,
    Claim,
    Lock,
    RunOptions,
    existing_segments,
    write_json,
)
from inrank_monitor.tracking.holders import holder_of
from inrank_monitor.tracking.watched import Watched


@dataclass
class StartedRun:
    """A run that has begun or been taken up, a tracker's or a scan's.

    Attributes:
        directory: its path.
        watched: the matrices of which model.
        options: of the run.
        info: what run.json holds; `save` writes it again.
        lock: held until the run is closed; None on a process that does not write it.
        step: where to go on; of W0 in a new run.
        resumed: whether an earlier process wrote to it.
        running: running rank of each matrix at `step`.
        claim: on the directory, for file systems without locks; None before `begin`, and where `lock` is None.
    """

    directory: Path
    watched: Watched
    options: RunOptions
    info: dict[str, Any]
    lock: Lock | None
    step: int = 0
    resumed: bool = False
    running: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    claim: Claim | None = None

    def __post_init__(self) -> None:
        if not self.resumed:
            self.running = np.zeros(len(self.watched.matrices), dtype=np.int64)

    @property
    def segment(self) -> int:
        """Number of the streams that this process writes."""
        return int(self.info["segments"][-1]["segment"])

    @property
    def resume_step(self) -> int | None:
        """Where an interrupted run is taken up; None for a new one."""
        return self.step if self.resumed else None

    @property
    def norms(self) -> list[float]:
        """‖W0‖_F, one a matrix; NaN where W0 is not finite."""
        norms = [entry["initial_norm"] for entry in self.info["matrices"]]
        return [math.nan if norm is None else norm for norm in norms]

    @property
    def not_finite(self) -> str:
        """What is to be said of matrices whose W0 holds NaN or infinity; empty where there are none."""
        names = [entry["name"] for entry in self.info["matrices"] if entry["initial_norm"] is None]
        which = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"W0 holds NaN or infinity, so that no update has a spectrum: {which}" if names else ""

    @property
    def null_ranks(self) -> list[int]:
        """One a matrix."""
        return [entry["null_rank"] for entry in self.info["matrices"]]

    def begin(self) -> None:
        """Claim the directory and write run.json, on the process that writes the run."""
        if self.lock is not None:
            self.claim = Claim(self.directory)
        self.save()

    def save(self) -> None:
        """Write run.json, on the process that writes the run."""
        if self.lock is not None:
            write_json(self.directory / RUN_FILE, self.info)

    def go_elsewhere(self) -> None:
        """Leave the directory to another process that writes there, and go on in one beside it.

        Raises:
            OSError: there is no room for it.
        """
        assert self.lock is not None
        assert self.claim is not None
        new = self.directory.with_name(f"{self.directory.name}-{self.claim.token[:8]}")
        new.mkdir()
        self.lock.release()
        self.lock, self.claim, self.directory = Lock(new), Claim(new), new
        self.info["initial_weights"] |= {"keep": "memory"}  # the file stays behind, and may be the other's by now
        self.save()

    def take_next_segment(self) -> None:
        """Write other streams: the present ones are of somebody who wrote to the directory before it was ours."""
        taken = {number for table in SCHEMAS for number in existing_segments(self.directory, table)}
        self.info["foreign_segments"] = [*self.info.get("foreign_segments", []), self.segment]
        self.info["segments"][-1]["segment"] = 1 + max(taken)
        self.save()

    def end(self, status: str, reason: str, step: int | None) -> None:
        """Write how the run ended, and let it be taken up by somebody else.

        Raises:
            OSError: run.json could not be written; the run is let go all the same.
        """
        self.info["ended"] = {"status": status, "reason": reason, "time": time.time(), "step": step}
        try:
            self.save()
        finally:
            if self.claim is not None:
                self.claim.release()
            if self.lock is not None:
                self.lock.release()

    def forget_model(self) -> None:
        """Keep nothing of the model alive."""
        self.watched = replace(self.watched, matrices=(), model=None)


def open_directory(directory: Path, resume: bool | int) -> tuple[Lock, bool]:
    """Take the lock; and whether there is a run to go on with.

    Raises:
        FileExistsError: there is a run, and `resume` is False.
        RuntimeError: another process is writing it, or a tracker of this one.
        OSError: the directory cannot be written.
    """
    exists = (directory / RUN_FILE).exists()
    if holder := holder_of(directory):
        raise (FileExistsError if exists and resume is False else RuntimeError)(f"{directory}: {holder}")
    if exists and resume is False:
        raise FileExistsError(
            f"{directory} holds a run already: go on with it by resume=True, or choose another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = Lock(directory)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write the run directory: {error.strerror}", str(directory)) from None
    if not exists:
        for table in SCHEMAS:  # what a process left that died before it wrote run.json
            for stale in directory.glob(f"{table}-*.arrows"):
                stale.unlink()
    return lock, exists


def first_info(
    watched: Watched, options: RunOptions, norms: Sequence[float], initial_weights: dict[str, Any]
) -> dict[str, Any]:
    """What run.json holds when a run begins.

    Args:
        watched: what is measured.
        options: of the run.
        norms: ‖W0‖_F, one a matrix.
        initial_weights: where W0 is.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "id": uuid.uuid4().hex,
        "created": time.time(),
        "model": {"class": watched.kind, "parameters": watched.size, "device": watched.device},
        "matrices": [
            describe_matrix(matrix, norm, options) for matrix, norm in zip(watched.matrices, norms, strict=True)
        ],
        "coverage": [asdict(row) for row in watched.coverage],
        "options": options.to_json(),
        "optimizer_steps": 0,
        "initial_weights": initial_weights,
        "segments": [_segment(0, None)],
        "ended": None,
    }


def add_segment(info: dict[str, Any], directory: Path, step: int) -> None:
    """Let run.json say that the run is taken up at a step, in streams of its own."""
    taken = [entry["segment"] for entry in info["segments"]]
    taken += [number for table in SCHEMAS for number in existing_segments(directory, table)]
    info["segments"].append(_segment(1 + max(taken), step))
    info["ended"] = None


def check_same(directory: Path, info: dict[str, Any], watched: Watched, options: RunOptions) -> None:
    """Raise a ValueError unless the run in the directory watches these matrices with these options."""
    there = [(entry["name"], entry["rows"], entry["cols"]) for entry in info["matrices"]]
    here = [(matrix.name, matrix.rows, matrix.cols) for matrix in watched.matrices]
    if there != here:
        first = next((pair for pair in zip(there, here, strict=False) if pair[0] != pair[1]), None)
        detail = f"{first[0]} there, {first[1]} here" if first else f"{len(there)} matrices there, {len(here)} here"
        raise ValueError(f"{directory} holds a run of another model ({detail}); choose another directory")
    begun_with = RunOptions.from_json(info["options"])
    shapes = [(matrix.rows, matrix.cols) for matrix in watched.matrices]
    if all(options.rule.buffer_rank_of(*shape) == begun_with.rule.buffer_rank_of(*shape) for shape in shapes):
        begun_with = replace(begun_with, buffer_rank=options.buffer_rank)  # the same numbers, said otherwise
    for name, given, begun in options.differences(begun_with):
        raise ValueError(f"{directory} was begun with {name}={begun!r}, got {given!r}")


def describe_matrix(matrix: Matrix, norm: float, options: RunOptions) -> dict[str, Any]:
    """What run.json says of a matrix."""
    kind: Kind = "factors" if matrix.in_factors else "gaussian"
    fixed = layer_of(matrix)
    fixed |= {"adapter_rank": matrix.module.capacity} if isinstance(matrix.module, Adapter) else {}
    rule = options.rule
    buffer_rank = rule.buffer_rank_of(matrix.rows, matrix.cols)
    null = null_rank(
        matrix.rows,
        matrix.cols,
        rule.threshold,
        buffer_rank,
        rule.definition,
        kind,
        rank=fixed.get("adapter_rank"),
    )
    fields = ("name", "parameter", "part", "kind", "rows", "cols")
    numbers = {
        "buffer_rank": buffer_rank,
        "null_rank": null,
        "initial_norm": norm if math.isfinite(norm) else None,
    }
    return {field: getattr(matrix, field) for field in fields} | numbers | fixed


def _segment(number: int, resume_step: int | None) -> dict[str, Any]:
    return {"segment": number, "resume_step": resume_step, "time": time.time(), "versions": _versions()}


def _versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    found = {"python": platform.python_version()}
    for package in ("inrank-monitor", "torch", "numpy", "pyarrow", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
