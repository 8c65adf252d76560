"""How a tracker's run begins: a new one, or an interrupted one that is taken up at a step.

Everything that can be wrong with the directory is found here, before the first step, and raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from inrank_monitor.distributed import Processes, Share, squared_norms
from inrank_monitor.matrices import InitialWeights, Matrix, initial_weights, load_later, local, no_weights
from inrank_monitor.runs import WEIGHTS_FILE, Lock, RunOptions
from inrank_monitor.spectra import SpectrumMethod, SpectrumPool
from inrank_monitor.tracking.beside import Beside
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.started_run import StartedRun, add_segment, check_same, first_info, open_directory
from inrank_monitor.tracking.structure import Structure
from inrank_monitor.tracking.watched import Watched


class Resumption(NamedTuple):
    """Where to go on, if there is a run.

    Attributes:
        wanted: False refuses a directory that holds a run; True goes on at step 0 if the weights are W0, else at the
            step that the optimizer's own counter tells, else at the last one logged; a number goes on at that step.
            Without a run there a new one begins.
        optimizer_steps: the optimizer's own counter (Adam's `step`), or None if it has none.
    """

    wanted: bool | int
    optimizer_steps: int | None


class RunStart(NamedTuple):
    """What a run begins from; the same on every process but for its share.

    Attributes:
        training: what run.json says of it; see `trained_with`.
    """

    directory: Path
    watched: Watched
    options: RunOptions
    share: Share
    training: Mapping[str, Any] = MappingProxyType({})

    @property
    def processes(self) -> Processes:
        """That train together."""
        return self.share.processes

    @property
    def held(self) -> list[Matrix]:
        """The matrices of which this process keeps W0, or a part of it."""
        return [self.watched.matrices[place] for place in self.share.held]

    @property
    def weights_file(self) -> Path:
        """Where this process keeps it."""
        file = self.directory / WEIGHTS_FILE
        return file if self.processes.is_main else file.with_stem(f"{file.stem}-{self.processes.number:03d}")


def start_run(start: RunStart, resumption: Resumption) -> tuple[StartedRun, Measuring]:
    """Begin a new run, or go on with the one in the directory. Called on every process.

    Returns:
        The run, and what this process measures of it.

    Raises:
        FileExistsError: there is a run, and `resumption.wanted` is False.
        ValueError: the run there is of another model or has other options, or its W0 is damaged.
        RuntimeError: another process is writing it.
        OSError: the directory cannot be written.
    """
    held: list[Lock] = []

    def open_here() -> bool:
        lock, exists = open_directory(start.directory, resumption.wanted)
        held.append(lock)
        return exists

    exists = start.processes.on_main(open_here)
    lock = held[0] if held else None
    try:
        started, initial = _resume(start, resumption, lock) if exists else _begin(start, resumption, lock)
        start.processes.on_main(started.begin)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    method = SpectrumMethod(start.options.leading, start.options.density)
    model = start.watched.model
    structure = None if model is None else Structure(model)
    measuring = Measuring(start.watched.matrices, start.share, initial, method, SpectrumPool(), structure)
    if start.options.asks_beside:
        of_weights = SpectrumMethod(start.options.leading, start.options.density)
        measuring.beside = Beside("weight" in start.options.of, start.options.directions, of_weights)
    return started, measuring


def begin_anew(started: StartedRun, measuring: Measuring) -> None:
    """Take the weights as they are now for W0, of a run that has measured nothing yet. Called on every process."""
    measuring.initial = no_weights()  # lets go of the file
    if measuring.beside is not None:
        measuring.beside.begin_anew()
    start = RunStart(started.directory, started.watched, started.options, measuring.share)
    measuring.initial, norms, where = _take_weights(start)
    for entry, norm in zip(started.info["matrices"], norms, strict=True):
        entry["initial_norm"] = norm
    started.info["initial_weights"] = where
    start.processes.on_main(started.save)


def take_up_at(started: StartedRun, step: int) -> None:
    """Go on at another step than the one at which the run was taken up a moment ago."""
    started.info["segments"][-1]["resume_step"] = step
    started.step, started.running = _ranks_at(started.directory, step)
    started.save()


def _begin(start: RunStart, resumption: Resumption, lock: Lock | None) -> tuple[StartedRun, InitialWeights]:
    initial, norms, where = _take_weights(start)
    info = first_info(start.watched, start.options, norms, where)
    info["training"] = dict(start.training)
    info |= {"optimizer_steps": resumption.optimizer_steps or 0, "processes": start.processes.count}
    return StartedRun(start.directory, start.watched, start.options, info, lock), initial


def _take_weights(start: RunStart) -> tuple[InitialWeights, list[float], dict[str, Any]]:
    """W0 of this process's share; the norm of every matrix; and what run.json says of where W0 is."""
    keep = start.options.initial_weights
    taken: list[InitialWeights] = []

    def take() -> dict[int, float]:
        start.directory.mkdir(parents=True, exist_ok=True)  # on the disk of another machine, maybe
        taken.append(initial_weights.take(start.held, keep, start.weights_file))  # type: ignore[arg-type] # no scan
        return squared_norms(start.watched.matrices, taken[0], start.share)

    squares = start.processes.everywhere(take)
    norms = [sum(own.get(place, 0.0) for own in squares) ** 0.5 for place in range(len(start.watched.matrices))]
    return taken[0], norms, {"keep": keep, "sha256": start.processes.collect(taken[0].content_hash)}


def _resume(start: RunStart, resumption: Resumption, lock: Lock | None) -> tuple[StartedRun, InitialWeights]:
    info = start.processes.on_main(lambda: _info_to_resume(start))
    hashes = info["initial_weights"]["sha256"]
    own_hash = hashes[start.processes.number] if isinstance(hashes, list) else hashes
    loaded: list[InitialWeights] = []

    def load() -> bool | None:
        loaded.append(load_later(start.directory, info, initial_weights.load(start.weights_file, own_hash)))
        return is_at_start(start.held, loaded[0])

    answers = [here for here in start.processes.everywhere(load) if here is not None]
    at_start = all(answers) if answers else None

    def take_up() -> tuple[int, np.ndarray, dict[str, Any]]:
        step, running = _step_to_resume(start.directory, info, resumption, at_start)
        add_segment(info, start.directory, step)
        return step, running, info

    step, running, info = start.processes.on_main(take_up)
    return StartedRun(start.directory, start.watched, start.options, info, lock, step, True, running), loaded[0]


def _info_to_resume(start: RunStart) -> dict[str, Any]:
    """run.json, if it is of the same matrices, options and number of processes."""
    from inrank_monitor.runs import open_run  # pandas, which a new run does not need

    directory, count = start.directory, start.processes.count
    info = open_run(directory).info
    check_same(directory, info, start.watched, start.options)
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
    directory: Path, info: dict[str, Any], resumption: Resumption, at_start: bool | None
) -> tuple[int, np.ndarray]:
    """Where to go on, and the running ranks there."""
    from inrank_monitor.runs import open_run

    run = open_run(directory)
    measured = run.measurements
    if resumption.wanted is not True:
        step = resumption.wanted
    elif at_start:
        step = 0
    elif resumption.optimizer_steps:
        step = resumption.optimizer_steps - int(info["optimizer_steps"])
    elif measured.empty and at_start is False:
        raise ValueError(f"{directory} has logged nothing yet and the weights are not W0: say the step by resume=N")
    else:
        step = run.summary().step
    return _ranks_at(directory, step)


def _ranks_at(directory: Path, step: int) -> tuple[int, np.ndarray]:
    """The step, and the running ranks there."""
    from inrank_monitor.runs import open_run, running_ranks

    measured = open_run(directory).measurements
    return step, running_ranks(measured[measured["step"] <= step])


def is_at_start(matrices: Sequence[Matrix], initial: InitialWeights) -> bool | None:
    """Whether the weights are W0 to the bit: the training begins again, whatever the log says. None: there are none."""
    begun = {matrix.parameter: matrix for matrix in matrices if matrix.has_start}.values()

    def is_equal(matrix: Matrix) -> bool:
        return torch.equal(local(matrix.read()).cpu(), initial.of(matrix.parameter, torch.device("cpu")))

    # All factors are read, equal or not: an adapter's in shards are gathered, which every process must do.
    equal = [is_equal(matrix) for matrix in begun if matrix.in_factors]
    found = all(equal) and all(is_equal(matrix) for matrix in begun if not matrix.in_factors)
    return found if begun else None
