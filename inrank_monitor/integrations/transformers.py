"""TrackerCallback: the tracker inside transformers' Trainer.

    from inrank_monitor import TrackerCallback

    Trainer(model, args, train_dataset=data, callbacks=[TrackerCallback("runs/first")]).train()

W0 is the weights as training begins. A Trainer that resumes a checkpoint resumes the run at the checkpoint's step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inrank_monitor.attaching import attach
from inrank_monitor.run_log import RUN_FILE, write_json
from inrank_monitor.tracker import SpectrumTracker

_STEP_FILE = "inrank_monitor.json"  # in a checkpoint: the tracker's own step
_NOT_LOGGED = ("epoch", "total_flos")


class TrackerCallback(TrainerCallback):
    """Attaches a tracker when training begins, logs what the Trainer logs, and closes it when training ends.

    Under torchrun only the main process watches. Where an optimizer step is skipped (fp16), the tracker counts on
    without it, so its steps can fall behind the Trainer's.

    Args:
        directory: of the run.
        options: as for `inrank_monitor.attach`: `every=`, `include=`, ...

    Attributes:
        tracker: None before training begins, and on other processes than the main one.

    Raises:
        ValueError, FileExistsError, ...: at the beginning of training, as `attach`; a new training refuses a directory
            that holds a run.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        self.directory, self._options = Path(directory), options
        self.tracker: SpectrumTracker | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Attach, at the checkpoint's step if training resumes."""
        self.close("training began again")
        if not state.is_world_process_zero:
            return
        options = dict(self._options)
        if state.global_step > 0 and (self.directory / RUN_FILE).exists():
            options["resume"] = _tracked_step(args, state)
        self.tracker = attach(model, optimizer, self.directory, **options)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the Trainer's numbers as scalars: loss, learning_rate, grad_norm, eval_..., what you log yourself."""
        if self.tracker is None:
            return
        chosen = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, int | float) and name not in _NOT_LOGGED and not name.startswith("train_")
        }
        self.tracker.log(**chosen)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What the checkpoint is not going to repeat must be on disk with it."""
        if self.tracker is not None:
            self.tracker.flush()
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if folder.is_dir():
                write_json(folder / _STEP_FILE, {"step": self.tracker.step_count})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last snapshot and mark the run finished."""
        self.close()

    def close(self, reason: str | None = None) -> None:
        """Close the tracker, where training raised before its end; at exit it closes itself.

        Args:
            reason: why the training was interrupted, if it was.
        """
        if self.tracker is not None:
            self.tracker.close(reason)


def _tracked_step(args: TrainingArguments, state: TrainerState) -> int:
    """The tracker's step at the checkpoint, or the Trainer's if nothing is known (it resumes from elsewhere)."""
    file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _STEP_FILE
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError):
        return int(state.global_step)
