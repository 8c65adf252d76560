"""How a scan's run directory begins: a new one, or one that a scan has left and that is taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from inrank_monitor.checkpoints.choosing import Saved
from inrank_monitor.checkpoints.files import Checkpoint
from inrank_monitor.checkpoints.model import WatchedModel
from inrank_monitor.distributed import initial_norm
from inrank_monitor.matrices import InitialWeights
from inrank_monitor.runs import RunOptions
from inrank_monitor.tracking import StartedRun, add_segment, check_same, first_info, open_directory


class Source(NamedTuple):
    """What a scan reads.

    Attributes:
        saved: the checkpoints, in order.
        key: of the state dict in them, where it was given.
        first: the first of them, opened.
        watched: the matrices that it holds.
    """

    saved: Sequence[Saved]
    key: str | None
    first: Checkpoint
    watched: WatchedModel


def start_scan(directory: Path, source: Source, options: RunOptions, resume: bool) -> tuple[StartedRun, list[Saved]]:
    """Begin a run in `directory` or take up the scan there; the run, and the checkpoints that are still to be measured.

    Raises:
        FileExistsError: there is a run, and `resume` is False.
        ValueError: the run there is no scan, or one of another model, another W0 or with other options; or a checkpoint
            lies before what has been measured.
        RuntimeError: another process is writing it.
        OSError: the directory cannot be written.
    """
    lock, exists = open_directory(directory, resume)
    saved, watched = source.saved, source.watched
    try:
        info = _describe(source, options)
        measured = list(saved[1:] if watched.begins_at_first else saved)
        started = StartedRun(directory, watched, options, info, lock, saved[0].step)
        done: set[int] = set()
        if exists:
            started, done = _take_up(started)
        todo = [one for one in measured if one.step not in done]
        if todo and done and todo[0].step < max(done):
            raise ValueError(f"{todo[0].path} is at step {todo[0].step}, but {directory} is at {max(done)} already")
        started.begin()
    except BaseException:
        lock.release()
        raise
    return started, todo


def _describe(source: Source, options: RunOptions) -> dict[str, Any]:
    """What run.json holds at the start."""
    watched, first = source.watched, source.first
    places = watched.places(first)
    owners = {matrix.parameter: matrix for matrix in watched.matrices}

    def start(parameter: str) -> Tensor:
        watched.fill(owners[parameter], first, places[parameter])
        return watched.start(owners[parameter])

    initial = InitialWeights(start)
    norms = [initial_norm(matrix, initial) for matrix in watched.matrices]
    where = {"keep": options.initial_weights, "path": str(first.path.resolve()), "step": source.saved[0].step}
    return first_info(watched, options, norms, where)


def _take_up(new: StartedRun) -> tuple[StartedRun, set[int]]:
    """The scan that is there, once it has been found to be this one, and the steps that it has measured."""
    from inrank_monitor.runs import open_run, running_ranks

    directory = new.directory
    run = open_run(directory)
    there, here = run.info.get("initial_weights", {}), new.info["initial_weights"]
    if there.get("keep") != here["keep"]:
        raise ValueError(f"{directory} holds the run of a tracker, not of a scan: choose another directory")
    check_same(directory, run.info, new.watched, new.options)
    pairs = zip(run.info["matrices"], new.info["matrices"], strict=True)  # an older version wrote fewer entries
    if there["step"] != here["step"] or not all(old.items() <= now.items() for old, now in pairs):
        raise ValueError(
            f"{directory} was begun with another W0 ({there['path']}, step {there['step']}) than "
            f"{here['path']}, step {here['step']}"
        )
    measured = run.measurements
    done = {int(step) for step in measured["step"].unique()}
    last = max(done, default=there["step"])
    add_segment(run.info, directory, last)
    running = running_ranks(measured)
    return StartedRun(directory, new.watched, new.options, run.info, new.lock, last, True, running), done
