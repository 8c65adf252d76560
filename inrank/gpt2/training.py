"""One training of `inrank train`, in this process: model, Trainer, the two phases, and what came of it.

The Trainer runs once for the growing phase and once for the plain low-rank phase. Between the two lies a checkpoint on
disk, from which the second begins as any resumed training does, whether it was interrupted there or not; so
DistributedDataParallel wraps each phase anew, and the learning rate and the order of the data go on.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from inrank.demand import TrainingBatches, factorize
from inrank.gpt2.checkpoints import (
    Progress,
    drop_torn,
    last_checkpoint,
    read_progress,
    step_of,
    write_factorized,
)
from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.memory import peak_memory
from inrank.gpt2.models import TARGETS
from inrank.gpt2.settings import TWO_PHASES, Settings
from inrank.gpt2.text import Corpus
from inrank.gpt2.trainer_setup import (
    first_model,
    group_factors,
    is_main_process,
    make_trainer,
    on_main_process,
    resumed_model,
    training_arguments,
)
from inrank.gpt2.training_callbacks import Clock, Factorized, ProgressLine, StopAt
from inrank.growth.trainer_callback import InRankCallback
from inrank.layers import load_weights
from inrank_monitor import TrackerCallback
from inrank_monitor.runs import write_json

FACTORIZATION_FILE = "factorization.json"
_LOSS_WINDOWS = 32  # of the test text, on which the loss before and after a factorization is measured


@dataclass(frozen=True)
class Training:
    """Where, with what and on what a training runs; `every` steps a snapshot, None to let the tracker choose."""

    directory: Path
    settings: Settings
    corpus: Corpus
    device: str = "auto"
    quiet: bool = False
    every: int | None = None

    @property
    def growing(self) -> Path:
        """Checkpoints of the first phase, or of the only one."""
        return self.directory / "checkpoints"

    @property
    def factorized(self) -> Path:
        """Checkpoints of the second phase."""
        return self.directory / "checkpoints-factorized"

    @property
    def label(self) -> str:
        """For the line of progress."""
        return f"{self.settings.method}, seed {self.settings.seed}"


def train(training: Training) -> tuple[nn.Module, Progress]:
    """Train from wherever the directory says it got to: the trained model, in eval mode, and what it took."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    settings = training.settings
    if not settings.two_phases:
        return _fit(training, training.growing, settings.steps, training.label)
    if last_checkpoint(training.factorized) is None:
        phase = "dense" if settings.dense_first else "growing"
        _fit(training, training.growing, settings.phase_steps, f"{training.label}, {phase}")
        _factorize_checkpoint(training)
    on_main_process(lambda: shutil.rmtree(training.growing, ignore_errors=True))  # of no use any more
    return _fit(training, training.factorized, settings.steps, f"{training.label}, factorized")


def _fit(training: Training, folder: Path, stop: int, label: str) -> tuple[nn.Module, Progress]:
    """Train to a step in one Trainer, from the last checkpoint in its folder on if there is one."""
    settings = training.settings
    arguments = training_arguments(settings, folder, training.device)
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        model, before = resumed_model(checkpoint), read_progress(checkpoint)
        if step_of(checkpoint) >= stop:
            load_weights(model, checkpoint)
            return model.to(arguments.device).eval(), before
    else:
        model, seconds = first_model(settings, training.corpus, arguments.device)
        before = Progress(seconds)
    on_main_process(lambda: drop_torn(folder))
    first = settings.phase_steps if folder == training.factorized else 0
    tracker = _watch(training)
    growing = _growing(training, tracker) if folder == training.growing else None
    line = ProgressLine(label, first, stop, growing, training.quiet)
    event = Factorized(tracker, first, _factorization_message(training)) if first else None
    callbacks = [tracker, growing, event, StopAt(stop), line, Clock(before)]
    trainer = make_trainer(model, arguments, training.corpus, settings, callbacks)
    if first and settings.dense_first:
        group_factors(trainer, settings.factor_lr)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except BaseException as error:  # the Trainer has no hook for that
        line.close()
        tracker.close(type(error).__name__)
        if growing is not None:
            growing.detach()
        raise
    return model.eval(), read_progress(last_checkpoint(folder))


def _watch(training: Training) -> TrackerCallback:
    """The run that the dashboard shows is the training's own directory."""
    settings = training.settings
    return TrackerCallback(
        training.directory,
        every=training.every,
        threshold=settings.threshold,
        buffer_rank=settings.buffer_rank,
        definition=settings.rule_definition,
        resume=0,  # a training that was interrupted before its first checkpoint begins anew
    )


def _growing(training: Training, tracker: TrackerCallback) -> InRankCallback | None:
    """What grows the ranks; a method of two phases stops at T by itself."""
    settings = training.settings
    if settings.dense_first or settings.method not in ("inrank", *TWO_PHASES):
        return None
    return InRankCallback(
        threshold=settings.threshold,
        every=settings.steps_between_checks,
        definition=settings.rule_definition,
        tracker=tracker,
        seed=settings.seed,
    )


def _factorize_checkpoint(training: Training) -> None:
    """On the checkpoint of step T: its factorized twin begins the second phase (Algorithm 3, lines 4 to 6, or ours)."""
    settings = training.settings
    source = last_checkpoint(training.growing)
    assert source is not None
    arguments = training_arguments(settings, training.factorized, training.device)
    model = resumed_model(source)
    load_weights(model, source)
    trainer = make_trainer(model, arguments, training.corpus, settings, [])  # it groups the optimizer's parameters
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(settings.steps, optimizer)
    for each, file in ((optimizer, "optimizer.pt"), (scheduler, "scheduler.pt")):
        each.load_state_dict(torch.load(source / file, map_location="cpu", weights_only=True))
    windows = training.corpus.test_windows(settings.context, _LOSS_WINDOWS)
    measuring = 0.0

    def loss() -> float:
        nonlocal measuring
        began = time.perf_counter()
        value = mean_loss(model, windows, settings.batch_size)
        measuring += time.perf_counter() - began
        return value

    began = time.perf_counter()
    options: dict[str, Any] = {}
    if settings.dense_first:
        batches = TrainingBatches(trainer.get_train_dataloader(), settings.batch_size, settings.seed)
        options = {"targets": TARGETS, "budget": settings.budget, "allocation": settings.allocation}
        options |= {"calibration": batches, "factor_lr": settings.factor_lr, "scheduler": scheduler}
    report = factorize(model, optimizer, gain=settings.layer_gain, loss=loss, **options)
    before = read_progress(source)
    seconds = before.seconds + time.perf_counter() - began - measuring
    progress = Progress(seconds, max(before.peak_memory, peak_memory(arguments.device)))

    def keep() -> None:
        write_json(training.directory / FACTORIZATION_FILE, {"step": settings.phase_steps, **asdict(report)})
        write_factorized(source, training.factorized, model, optimizer, scheduler, progress)

    on_main_process(keep)
    if not training.quiet and is_main_process():
        print(f"{training.label}, factorized after step {settings.phase_steps}:\n{report}", flush=True)


def read_factorization(directory: Path) -> dict[str, Any] | None:
    """The report of a training's factorization, or None if it had none."""
    file = directory / FACTORIZATION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _factorization_message(training: Training) -> str:
    report = read_factorization(training.directory) or {}
    ranks = [layer["rank"] for layer in report["layers"]]
    return (
        f"{len(ranks)} layers to plain U V of rank {min(ranks)} to {max(ranks)}, "
        f"loss {report['loss_before']:.4f} -> {report['loss_after']:.4f}"
    )
