"""scan(): the tracker's measurements, taken from checkpoints that are on disk already.

tensors → matrices → update → spectrum → metrics → log: an ordinary run directory, some matrices at a time, so that the
memory it takes does not grow with the model. A scan that was killed, or for which there are new checkpoints, goes on
where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from tqdm import tqdm

from inrank_monitor.checkpoints.adapters import WatchedAdapter, is_adapter
from inrank_monitor.checkpoints.choosing import Chosen, Saved, find_checkpoints
from inrank_monitor.checkpoints.files import Checkpoint
from inrank_monitor.checkpoints.model import WatchedModel
from inrank_monitor.checkpoints.opening import TRAINER_STATE, open_checkpoint, read_json
from inrank_monitor.checkpoints.start import Source, start_scan
from inrank_monitor.checkpoints.watching import watch_checkpoint
from inrank_monitor.distributed import Share
from inrank_monitor.matrices import InitialWeights, Parts, no_weights
from inrank_monitor.ranks import Definition
from inrank_monitor.runs import RunOptions, local_path
from inrank_monitor.spectra import SpectrumMethod, SpectrumPool
from inrank_monitor.tracking import Measuring, Recorder, ScalarRow, Snapshot, StartedRun, merged, take_snapshot

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

logger = logging.getLogger("inrank_monitor")
_NOT_LOGGED = ("step", "epoch", "total_flos")
_GROUP = 4  # matrices a worker that are handed out together


def scan(
    checkpoints: Sequence[str | Path],
    directory: str | Path,
    *,
    steps: Sequence[int] | None = None,
    key: str | None = None,
    model: nn.Module | None = None,
    config: str | Path | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    leading: int | None = None,
    embeddings: bool = False,
    split_parts: bool = True,
    parts: Mapping[str, Parts] | None = None,
    tensorboard: bool | Literal["matrices"] = True,
    workers: int | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Run:
    """Measure ΔW = W_t − W0 of every weight matrix in checkpoints; W0 is the first of them.

    Steps are the checkpoints' own. Which parameters were frozen is not known: their updates are zero. Weights that were
    saved in half precision are rounded, and so is what is measured.

    Args:
        checkpoints: files or folders: safetensors, `torch.save`, sharded with an index, PEFT's LoRA adapters; a folder
            of checkpoints (a Trainer's output) stands for all of them, in order.
        directory: of the run; made if need be.
        steps: one for each checkpoint; default: from the names.
        key: of the state dict in `torch.save` files, where it is not clear; dotted.
        model: the model itself (its weights do not matter), for names, kinds and ties as a tracker sees them. Default:
            the one that a config.json beside the first checkpoint describes, else by names and shapes alone.
        config: a config.json that lies elsewhere.
        include: as `attach`, like the following.
        exclude: globs over matrix names.
        threshold: α.
        buffer_rank: b of eq. 7; default: what fits each matrix.
        definition: of the explained ratio.
        leading: only this many singular values.
        embeddings: watch embeddings too.
        split_parts: q, k, v as matrices of their own.
        parts: as `attach`; where no model is given, only this splits what is not split by torch or GPT-2 themselves.
        tensorboard: write an event file, as `attach` says.
        workers: spectra at a time; default: as many as torch has threads.
        resume: go on with the scan in `directory`, with the checkpoints that it has not measured.
        progress: show a progress bar.

    Returns:
        The run, as `open_run` gives it.

    Raises:
        ValueError: an argument is wrong, or a checkpoint is damaged, of another model or of a kind that must be
            converted first.
        FileNotFoundError: a checkpoint is missing.
        FileExistsError: `directory` holds a run and `resume` is False.
    """
    from inrank_monitor.runs import open_run

    if isinstance(checkpoints, str | Path):
        raise TypeError(f"checkpoints must be a list of paths, got {checkpoints!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    options = RunOptions(
        threshold=threshold,
        buffer_rank=buffer_rank,
        definition=definition,
        leading=leading,
        include=include,
        exclude=exclude,
        embeddings=embeddings,
        split_parts=split_parts,
        parts=parts,
        initial_weights="checkpoint",
        tensorboard=tensorboard,
    )
    path = local_path(directory)
    chosen = find_checkpoints(checkpoints, steps, key)
    logger.info("%s", chosen)
    source, remarks = _watch(chosen, key, model, None if config is None else local_path(config, "config"), options)
    started, todo = start_scan(path, source, options, resume)
    first = chosen.saved[0]
    notes = [f"W0 is {first.path.name}, at step {first.step}"] if source.watched.begins_at_first else []
    notes += [source.watched.note, chosen.note, *remarks]
    notes += [f"left out: {path.name}, {reason}" for path, reason in chosen.skipped]
    _Scan(started, source, SpectrumPool(workers)).run(todo, notes, progress)
    return open_run(started.directory)


def _watch(
    chosen: Chosen, key: str | None, model: nn.Module | None, config: Path | None, options: RunOptions
) -> tuple[Source, list[str]]:
    """The first checkpoint and what is watched, once every checkpoint has been opened, and found to be of its kind.

    Also a remark on each checkpoint that does not hold all of it in these shapes.
    """
    saved = chosen.saved
    if not saved:
        raise ValueError(f"there is no checkpoint whose step is known:\n{chosen}")
    kinds = {is_adapter(one.path): one for one in saved}
    if len(kinds) == 2:
        raise ValueError(
            f"{kinds[True].path} is an adapter and {kinds[False].path} holds whole weights: scan them into two runs "
            "(an adapter's update needs no base model)"
        )
    first = open_checkpoint(saved[0].path, key)
    if True in kinds:
        if model is not None or config is not None:
            raise ValueError("an adapter says itself which layers it is for: give neither model nor config")
        watched: WatchedModel = WatchedAdapter(first, options.selection)
    else:
        watched = watch_checkpoint(first, model, config, **options.selection)
    if watched.begins_at_first and len(saved) < 2:
        raise ValueError(f"a scan needs W0 and one more checkpoint at least, got {saved[0].path} alone:\n{chosen}")
    remarks = []
    for one in saved[1:]:
        opened = open_checkpoint(one.path, key)
        if not watched.places(opened):
            raise ValueError(f"{one.path} has none of the matrices of {saved[0].path}: is it of another model?")
        if other := watched.differing(first, opened):
            many = f"{len(other)} of {len(watched.matrices)} matrices"
            remarks.append(f"{one.path.name} has {many} in other shapes or not at all ({', '.join(other[:3])})")
    return Source(saved, key, first, watched), remarks


class _Scan:
    """One scan under way: `run` measures, and closes the run however that ends."""

    def __init__(self, started: StartedRun, source: Source, pool: SpectrumPool) -> None:
        self._started, self._source, self._watched = started, source, source.watched
        options, nothing = started.options, Share([], {})
        method = SpectrumMethod(options.leading, options.density)
        self._measuring = Measuring(source.watched.matrices, nothing, no_weights(), method, pool)
        self._recorder = Recorder(started)

    def run(self, todo: Sequence[Saved], notes: Sequence[str], progress: bool) -> None:
        """Measure these checkpoints, in order."""
        step, status, reason = self._started.step, "interrupted", ""
        first_step = self._source.saved[0].step
        try:
            self._say(step if self._started.resumed else first_step, notes)
            with tqdm(
                total=len(todo) * len(self._watched.matrices), unit="matrix", disable=None if progress else True
            ) as bar:
                for one in todo:
                    bar.set_description(f"step {one.step}")
                    self._record(one, max(step, first_step), bar)
                    step = one.step
            status = "finished"
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise
        finally:
            self._close(status, reason, step)

    def _say(self, step: int, notes: Sequence[str]) -> None:
        if self._started.resumed:
            self._recorder.event(step, "resumed", None, f"taken up at step {step}")
        else:
            self._recorder.event(step, "scan", None, "; ".join(notes))
        if message := self._started.not_finite:
            self._recorder.event(step, "non_finite_start", None, message)
            logger.warning("%s: %s", self._started.directory, message)
        for note in notes:
            logger.info(note)

    def _record(self, one: Saved, before: int, bar: tqdm[Any]) -> None:
        checkpoint = open_checkpoint(one.path, self._source.key)
        snapshot = self._measure(one, checkpoint, bar)
        if rows := _trainer_scalars(one.path, before, one.step):
            self._recorder.scalars(rows)
        self._recorder.snapshot(lambda: snapshot)  # last: a step that is measured is not read again
        self._recorder.drain()
        if self._recorder.failure:
            raise self._recorder.failure

    def _measure(self, one: Saved, checkpoint: Checkpoint, bar: tqdm[Any]) -> Snapshot:
        """One checkpoint's snapshot, some parameters at a time."""
        at_first, here = self._watched.places(self._source.first), self._watched.places(checkpoint)
        parts = [Snapshot(one.step, time.time())]
        for group in self._groups():
            starts: dict[str, Tensor] = {}
            present = []
            for place in group:
                matrix = self._watched.matrices[place]
                name = matrix.parameter
                if name not in here:
                    problem = ("parameter_gone", matrix.name, f"{one.path.name} does not hold it as numbers")
                    parts[0].problems.append(problem)
                    continue
                present.append(place)
                if name not in starts:
                    self._watched.fill(matrix, self._source.first, at_first[name])
                    starts[name] = self._watched.start(matrix)
                    self._watched.fill(matrix, checkpoint, here[name])
            initial, share = InitialWeights(starts.__getitem__), Share(present, {})
            parts.append(take_snapshot(one.step, replace(self._measuring, share=share, initial=initial)).finish())
            bar.update(len(group))
        return merged(parts)

    def _groups(self) -> Iterator[list[int]]:
        """Places of matrices, those of one parameter together, enough to keep every worker busy."""
        group: list[int] = []
        matrices, full = self._watched.matrices, _GROUP * self._measuring.pool.workers
        for place, matrix in enumerate(matrices):
            if len(group) >= full and matrix.parameter != matrices[place - 1].parameter:
                yield group
                group = []
            group.append(place)
        if group:
            yield group

    def _close(self, status: str, reason: str, step: int) -> None:
        self._measuring.pool.close()
        self._recorder.close()
        self._started.end(status, reason, step)


def _trainer_scalars(path: Path, after: int, until: int) -> list[ScalarRow]:
    """What a Trainer logged (loss, learning rate, evaluations) after one step and until another, if it left that."""
    file = path / TRAINER_STATE
    if not file.is_file():
        return []
    when = file.stat().st_mtime
    return [
        (int(entry["step"]), when, name, float(value))
        for entry in read_json(file).get("log_history") or []
        if isinstance(entry, dict) and after < int(entry.get("step", -1)) <= until
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in _NOT_LOGGED and not name.startswith("train_")
    ]
