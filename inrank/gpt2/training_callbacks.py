"""What `inrank train` hangs into the Trainer: an end of the first phase, a clock, a line of progress."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inrank.gpt2.checkpoints import Progress, checkpoint_at, write_progress
from inrank.gpt2.memory import peak_memory
from inrank.gpt2.trainer_setup import wait_for_all
from inrank.growth.trainer_callback import InRankCallback
from inrank_monitor import TrackerCallback

LINES_WITHOUT_TERMINAL = 5


class StopAt(TrainerCallback):
    """Ends training after a step, with a checkpoint; the learning rate schedule stays that of the whole training."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop after the step."""
        if state.global_step >= self._step:
            control.should_training_stop = control.should_save = True


class Clock(TrainerCallback):
    """Counts the seconds of training, and marks a checkpoint as whole once everything else is in it.

    Must be the last callback: the others have set up before its clock starts, and have saved before its mark.

    Args:
        before: what earlier parts of the same training took.
    """

    def __init__(self, before: Progress) -> None:
        self._before, self._seconds = before, 0.0
        self._began = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the clock; a checkpoint that is about to be written is not part of the training."""
        if args.device.type == "cuda" and (control.should_save or control.should_training_stop):
            torch.cuda.synchronize(args.device)
        self._seconds = time.perf_counter() - self._began

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint, once every process has written its part."""
        wait_for_all()
        if args.should_save:
            peak = max(self._before.peak_memory, peak_memory(args.device))
            progress = Progress(self._before.seconds + self._seconds, peak)
            write_progress(checkpoint_at(Path(args.output_dir), state.global_step), progress)
        wait_for_all()
        self._began = time.perf_counter() - self._seconds


class ProgressLine(TrainerCallback):
    """A bar on a terminal, a line now and then elsewhere.

    Args:
        label: method, seed and phase.
        first: step from which this phase starts.
        last: step at which it ends.
        growing: whose ranks to show, or None.
        quiet: print nothing.
    """

    def __init__(self, label: str, first: int, last: int, growing: InRankCallback | None, quiet: bool) -> None:
        self._label, self._first, self._last = label, first, last
        self._growing, self._quiet = growing, quiet
        self._loss = ""
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        self._quiet = self._quiet or not state.is_world_process_zero
        self._bar = tqdm(
            total=self._last,
            initial=state.global_step,
            desc=self._label,
            unit="step",
            dynamic_ncols=True,
            disable=self._quiet or not sys.stderr.isatty(),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the loss for the line."""
        if logs and "loss" in logs:
            self._loss = f"loss {logs['loss']:.2f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step is done."""
        step = state.global_step
        self._bar.update()
        if not self._bar.disable and (step % 10 == 0 or step == self._last):
            self._bar.set_postfix_str(self._describe())
        every = max(1, (self._last - self._first) // LINES_WITHOUT_TERMINAL)
        if self._bar.disable and not self._quiet and ((step - self._first) % every == 0 or step == self._last):
            print(f"{self._label}: step {step}/{self._last}  {self._describe()}", file=sys.stderr, flush=True)

    def _describe(self) -> str:
        controller = self._growing.controller if self._growing else None
        ranks = list(controller.ranks.values()) if controller else []
        parts = [self._loss, f"mean rank {sum(ranks) / len(ranks):.1f}" if ranks else ""]
        return ", ".join(part for part in parts if part)

    def close(self) -> None:
        """Leave the terminal as it should be, also when training raised."""
        if self._bar is not None:
            self._bar.close()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The bar stays."""
        self.close()


class Factorized(TrainerCallback):
    """Notes in the run's log that the model has been factorized, when the second phase begins."""

    def __init__(self, tracker: TrackerCallback, step: int, message: str) -> None:
        self._tracker, self._step, self._message = tracker, step, message

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the event, unless this is a later part of the phase."""
        if self._tracker.tracker is not None and state.global_step == self._step:
            self._tracker.tracker.event("factorized", None, self._message)
