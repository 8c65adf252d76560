"""The demo: transformers' GPT-2, trained from scratch on real text with the tracker attached by its one line.

`train` is the example to copy from. Around it is what a program needs that can be stopped at any moment and
taken up again with the same result to the bit: options and tokenizer are kept (`options`), and so are
model, optimizer, learning rate schedule and random generators (`training`).
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inrank_monitor.console import typed
from inrank_monitor.demo.options import (
    REPORT_FILE,
    DemoOptions,
    Kept,
    check_directory,
    start_directory,
)
from inrank_monitor.demo.text import DemoError, Text, Tokens, read_text, tokenize
from inrank_monitor.demo.training import Training, find_device
from inrank_monitor.runs import RUN_FILE, TENSORBOARD_DIR

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker

LINES_WITHOUT_TERMINAL = 10
# Ranks by loss in a few seconds; docs/loss-ranks.md says what more of either gives.
BY_LOSS_EVALUATIONS, BY_LOSS_WINDOWS = 80, 16


@dataclass(frozen=True)
class DemoResult:
    """What a demo run ended with; `validation_loss` is in nats a token."""

    steps: int
    validation_loss: float

    @property
    def perplexity(self) -> float:
        """exp(validation_loss)."""
        return math.exp(self.validation_loss)


def train(
    training: Training, tokens: Tokens, options: DemoOptions, tracker: SpectrumTracker, progress: _Progress
) -> None:
    """Train from the step reached so far to the last one."""
    model, optimizer, scheduler = training.model, training.optimizer, training.scheduler
    model.train()
    for step in range(training.step + 1, options.steps + 1):
        inputs, targets = tokens.batch(options.batch_size, options.context, training.data_order)
        logits = model(input_ids=inputs.to(training.device)).logits
        loss = cross_entropy(logits.flatten(0, 1), targets.to(training.device).flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # the tracker sees this by itself, and measures when it is due
        tracker.log(loss=loss, lr=scheduler.get_last_lr()[0])
        scheduler.step()
        optimizer.zero_grad()
        training.step = step
        if step % options.checkpoint_every == 0 or step == options.steps:
            tracker.flush()  # what the checkpoint is not going to repeat must be on disk before it
            training.save(options)
        progress.update(step, loss)


@torch.no_grad()
def validation_loss(training: Training, tokens: Tokens, options: DemoOptions, windows: int | None = None) -> float:
    """Mean cross-entropy in nats a token of the held-out text, or of so many of its windows."""
    training.model.eval()
    inputs, targets = (part[:windows] for part in tokens.validation_windows(options.context))
    total = 0.0
    for first in range(0, len(inputs), options.batch_size):
        rows = slice(first, first + options.batch_size)
        logits = training.model(input_ids=inputs[rows].to(training.device)).logits
        expected = targets[rows].to(training.device).flatten()
        total += float(cross_entropy(logits.flatten(0, 1).float(), expected, reduction="sum"))
    return total / targets.numel()


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; and a line a snapshot on stdout if asked for."""

    def __init__(self, options: DemoOptions, first: int, tracker: SpectrumTracker) -> None:
        from tqdm import tqdm

        self._options, self._tracker, self._reported = options, tracker, len(tracker.finished_steps)
        self._bar = tqdm(
            total=options.steps,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            disable=options.quiet or not sys.stderr.isatty(),
        )

    def update(self, step: int, loss: Tensor) -> None:
        """One step is done."""
        self._bar.update()
        self.report()
        last = step == self._options.steps
        finished = self._tracker.finished_steps
        measured = f"last measured {finished[-1]}" if finished else "none measured yet"
        if not self._bar.disable and (step % 10 == 0 or last):  # reading the loss waits for the device
            self._bar.set_postfix_str(f"loss {float(loss.detach()):.2f}, {measured}")
        now_and_then = last or step % max(1, self._options.steps // LINES_WITHOUT_TERMINAL) == 0
        if self._bar.disable and now_and_then and not self._options.quiet:
            line = f"step {step}/{self._options.steps}  loss {float(loss.detach()):.2f}, {measured}"
            print(line, file=sys.stderr, flush=True)

    def report(self) -> None:
        """Name the snapshots that have come to disk since the last time."""
        if self._options.report_steps:
            for step in self._tracker.finished_steps[self._reported :]:
                print(f"snapshot {step}", flush=True)
                self._reported += 1

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()


def run_demo(options: DemoOptions) -> DemoResult:
    """Train, watch and report; see the module's text.

    Raises:
        DemoError: an option, the text or the directory will not do; no run was touched.
        KeyboardInterrupt: stopped by hand; the run is closed as interrupted and can be resumed.
    """
    _require_extra()
    device = find_device(options.device)
    text = read_text(options.text)
    check_directory(options)
    kept = Kept.read(options.directory) if options.resume else None
    if kept:
        kept.check(options, text)
    tokens = tokenize(text, options.vocabulary, options.context, kept.tokenizer if kept else None)
    _say(options, _describe_text(text, tokens))
    training = Training(options, tokens.vocabulary, device)
    if kept:
        training.load(options)
    else:
        start_directory(options, Kept(options.kept(), text.sha256, tokens.tokenizer))
    _say(options, _describe_training(options, tokens, training))
    result = _train_watched(training, tokens, options)
    _say(options, _ending(options, tokens, result))
    return result


def _train_watched(training: Training, tokens: Tokens, options: DemoOptions) -> DemoResult:
    from inrank_monitor import attach, open_run

    resume = (options.directory / RUN_FILE).exists()
    evaluated = False
    if resume and training.step == options.steps:
        before = open_run(options.directory)
        if before.status == "finished":
            return DemoResult(training.step, validation_loss(training, tokens, options))
        evaluated = "validation_loss" in set(before.scalars["name"])  # killed between that and the end
    tracker = attach(
        training.model,
        training.optimizer,
        options.directory,
        every=options.every,
        threshold=options.threshold,
        buffer_rank=options.buffer_rank,
        tensorboard=options.tensorboard,
        resume=training.step if resume else False,
    )
    with tracker, _Progress(options, training.step, tracker) as progress:
        train(training, tokens, options, tracker, progress)
        loss = validation_loss(training, tokens, options)
        if not evaluated:
            tracker.log(validation_loss=loss)
            _say(options, f"Ranks by loss: at most {BY_LOSS_EVALUATIONS} evaluations of the held-out text's beginning")
            tracker.ranks_by_loss(
                lambda: validation_loss(training, tokens, options, BY_LOSS_WINDOWS),
                max_evaluations=BY_LOSS_EVALUATIONS,
                progress=False if options.quiet else None,
            )
    progress.report()
    return DemoResult(training.step, loss)


def _require_extra() -> None:
    missing = [name for name in ("transformers", "tokenizers") if find_spec(name) is None]
    if missing:
        raise DemoError(f"the demo needs {' and '.join(missing)}: {typed('pip', 'install', 'inrank-monitor[gpt2]')}")


def _say(options: DemoOptions, text: str) -> None:
    if not options.quiet:
        print(text, flush=True)


def _describe_text(text: Text, tokens: Tokens) -> str:
    line = f"Text   {text.name}: {len(tokens.train):,} tokens to train on, {len(tokens.validation):,} held out"
    return line + (f" (the first {len(text.content):,} characters of the file)" if text.shortened else "")


def _describe_training(options: DemoOptions, tokens: Tokens, training: Training) -> str:
    size = sum(parameter.numel() for parameter in training.model.parameters())
    lines = [
        f"Model  GPT-2 from scratch: {size:,} parameters, layers {options.layers}, "
        f"width {options.width}, heads {options.head_count}, vocabulary {tokens.vocabulary}; "
        f"on {training.device}",
        f"Run    {options.output}; watch it live with: {_dashboard(options)}",
    ]
    if training.step == options.steps:
        lines.append(f"Nothing is left to train: the run is at its last step, {training.step}.")
    elif options.resume:
        lines.append(f"Resumed at step {training.step}" if training.step else "No checkpoint yet: from step 0")
    return "\n".join(lines)


def _ending(options: DemoOptions, tokens: Tokens, result: DemoResult) -> str:
    from inrank_monitor import open_run
    from inrank_monitor.report import report_table, write_html

    run = open_run(options.directory)
    report = options.directory / REPORT_FILE
    write_html(run, report)
    lines = [
        "",
        report_table(run).rstrip(),
        "",
        f"Held-out text  loss {result.validation_loss:.3f}, perplexity {result.perplexity:.1f} "
        f"(guessing blindly: {tokens.vocabulary})",
        f"Report         {report}",
        f"Dashboard      {_dashboard(options)}",
    ]
    if options.tensorboard:
        lines.append(f"TensorBoard    {typed('tensorboard', '--logdir', options.directory / TENSORBOARD_DIR)}")
    return "\n".join(lines)


def _dashboard(options: DemoOptions) -> str:
    return typed("inrank-monitor", "dashboard", options.directory.parent)


def main(args: argparse.Namespace) -> int:
    """Run the demo with the arguments of `add_arguments`: 0, or 2 after bad input, 130 if stopped by hand."""
    given = {option.name: getattr(args, option.name) for option in fields(DemoOptions) if hasattr(args, option.name)}
    output = given.get("output", DemoOptions.output)
    try:
        options = DemoOptions(**given)
        if options.resume and (kept := Kept.read(options.directory)):
            options = DemoOptions(**(kept.options | given))
        run_demo(options)
    except DemoError as error:
        print(f"inrank-monitor demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resume = f"Go on with: {typed('inrank-monitor', 'demo', '--output', output, '--resume')}"
        print("\nStopped.", resume if Kept.path(Path(output)).exists() else "", file=sys.stderr)
        return 130
    return 0
