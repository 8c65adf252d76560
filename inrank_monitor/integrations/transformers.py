"""TrackerCallback: the tracker inside transformers' Trainer, and so inside TRL's.

    from inrank_monitor import TrackerCallback

    Trainer(model, args, train_dataset=data, callbacks=[TrackerCallback("runs/first")]).train()

W0 is the weights as training begins, and steps are the Trainer's own: `checkpoint-500` is step 500 of the run. A
training that resumes from a checkpoint resumes the run at the checkpoint's step, wherever the checkpoint lies.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inrank_monitor.runs import local_path
from inrank_monitor.tracking import SpectrumTracker, attach

_NOT_LOGGED = ("epoch", "total_flos")
_SUMMARY = (
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
)  # of the whole training


class TrackerCallback(TrainerCallback):
    """Attaches a tracker when training begins, logs what the Trainer logs, and closes it when training ends.

    As a context manager around `train()` it also closes the run of a training that raises, for which the Trainer has
    no hook; otherwise such a run ends with the process, or when the callback begins another training.

    Under torchrun every process measures its share of the matrices, and the main one writes the run; with
    `distributed=False` the main one measures alone. A step that fp16 makes the optimizer skip is a step here, as it is
    to the Trainer.

    Args:
        directory: of the run.
        options: as for `inrank_monitor.attach`: `every=`, `include=`, ... `resume=True` lets a training that was
            killed before its first checkpoint begin again in the directory, if it begins from the same weights.

    Attributes:
        tracker: None before training begins, and on a process that does not watch.

    Raises:
        TypeError: there is no such option.
        ValueError, FileExistsError, ...: at the beginning of training, as `attach`; a new training refuses a directory
            that holds a run.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        inspect.signature(attach).bind(None, None, directory, **options)  # a misspelt option is found here
        self.directory, self._options = local_path(directory), options
        self.tracker: SpectrumTracker | None = None
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Attach, at the checkpoint's step if training resumes."""
        # auto_find_batch_size begins a training again that ran out of memory: that is the same run, from its start
        retried = self._training and args.auto_find_batch_size
        self.close("training began again")
        if self._options.get("distributed") is False and not state.is_world_process_zero:
            return
        options = dict(self._options)
        if state.global_step > 0 or retried:
            options["resume"] = state.global_step
        tracker = attach(model, None, self.directory, **options)
        if tracker.step_count != state.global_step:
            self._begin_late(tracker, state)
        self.tracker, self._training = tracker, True

    def _begin_late(self, tracker: SpectrumTracker, state: TrainerState) -> None:
        """A run that a resumed training begins has the Trainer's steps too; a new training cannot go on with one."""
        if state.global_step == 0:
            tracker.close("another training was begun in its directory")
            raise ValueError(
                f"training begins at step 0, but its weights are not those that the run in {self.directory} began "
                f"with, which is at step {tracker.step_count}: resume from a checkpoint, or choose another directory"
            )
        tracker.step_count = state.global_step
        message = f"watching begins at step {state.global_step}: W0 is the weights of that step"
        tracker.event("began_late", None, message)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step, and measure if one is due."""
        if self.tracker is not None:
            self.tracker.step()

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
        logs = logs or {}
        left_out = (*_NOT_LOGGED, *_SUMMARY) if "total_flos" in logs else _NOT_LOGGED
        numbers = {name: value for name, value in logs.items() if hasattr(value, "__float__")}
        self.tracker.log({name: value for name, value in numbers.items() if name not in left_out})

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last snapshot where training ends here: load_best_model_at_end is about to replace the weights."""
        if self.tracker is not None and (control.should_training_stop or state.global_step >= state.max_steps):
            self.tracker.measure()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take a snapshot where training may end here: early stopping looks at the evaluation after an epoch."""
        if self.tracker is not None and args.load_best_model_at_end and args.eval_strategy == "epoch":
            self.tracker.measure()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What the checkpoint is not going to repeat must be on disk with it."""
        if self.tracker is not None:
            self.tracker.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the run finished; its last snapshot is of the trained weights, whatever has replaced them since."""
        if self.tracker is not None and args.load_best_model_at_end and state.best_model_checkpoint:
            best = Path(state.best_model_checkpoint).name
            message = f"the model now holds the weights of {best}; the snapshot of this step is of the trained ones"
            self.tracker.event("best_model_loaded", None, message)
        self.close()

    def close(self, reason: str | None = None) -> None:
        """Close the tracker, where training raised before its end; at exit it closes itself.

        Args:
            reason: why the training was interrupted, if it was.
        """
        self._training = False
        if self.tracker is not None:
            self.tracker.close(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._training = False
        if self.tracker is not None:
            self.tracker.__exit__(kind, error, trace)
