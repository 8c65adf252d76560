"""LightningCallback: the tracker inside Lightning's Trainer.

    from inrank_monitor import LightningCallback

    Trainer(callbacks=[LightningCallback("runs/first", every=50)]).fit(model, data)

W0 is the weights as training begins, after the sanity check of the validation. A Trainer that resumes a checkpoint
(`fit(ckpt_path=...)`), or is told to fit on, resumes the run at the step where the checkpoint, or the first fit, was.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer

from inrank_monitor.runs import local_path
from inrank_monitor.tracking import SpectrumTracker, attach


def _uses_older_name() -> bool:
    """Whether this script has `pytorch_lightning`, the older name of the same package, rather than `lightning`."""
    if "lightning.pytorch" in sys.modules:
        return False
    return "pytorch_lightning" in sys.modules or bool(not find_spec("lightning") and find_spec("pytorch_lightning"))


if TYPE_CHECKING or not _uses_older_name():
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    from pytorch_lightning import Callback, LightningModule, Trainer

_Phase = Literal["step", "validation", "epoch"]


class LightningCallback(Callback):
    """Attaches a tracker when training begins, logs what the module logs, and closes it when training ends.

    Where several processes train, all of them measure and the main one writes. With `fast_dev_run` everything runs, in
    a temporary directory that the process removes when it ends.

    Args:
        directory: of the run.
        counts: which of the module's optimizers counts the steps, by its place in `configure_optimizers`. Default: the
            last one: a GAN that steps two in turn makes one step a round, measured when both are done.
        options: as for `inrank_monitor.attach`: `every=`, `include=`, ...

    Attributes:
        tracker: None before training begins.

    Raises:
        TypeError: at once: `attach` has no such option.
        ValueError, FileExistsError, ...: at the beginning of training, as `attach`; a new training refuses a directory
            that holds a run.
    """

    def __init__(self, directory: str | Path, *, counts: int = -1, **options: Any) -> None:
        super().__init__()
        inspect.signature(attach).bind(None, None, directory, **options)
        if isinstance(counts, bool) or not isinstance(counts, int):
            raise TypeError(f"counts must be the place of an optimizer, got {counts!r}")
        self.directory, self._counts, self._options = local_path(directory), counts, options
        self._given = str(Path(directory))
        self.tracker: SpectrumTracker | None = None
        self._watching = False
        self._step: int | None = None  # where the checkpoint, or the last fit, was
        self._logged = 0
        self._phases: dict[str, _Phase] = {}

    @property
    def state_key(self) -> str:
        """Tells the callbacks of two runs in one Trainer apart."""
        return f"{type(self).__qualname__}{{'directory': {self._given!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """The tracker's step, for the checkpoint."""
        step = self.tracker.step_count if self._watching and self.tracker is not None else self._step
        return {} if step is None else {"step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where the checkpoint was."""
        self._step = int(state_dict["step"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What the checkpoint is not going to repeat must be on disk with it."""
        if self.tracker is not None:
            self.tracker.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, at the checkpoint's step if training resumes."""
        self._phases = {}
        options = dict(self._options)
        if options.get("distributed") is False and not trainer.is_global_zero:
            return  # the main process watches alone; otherwise all of them do
        directory = self.directory
        if trainer.fast_dev_run:  # which leaves nothing behind: no logs, no checkpoints
            directory, options["resume"] = self._temporary_directory(trainer), False
        elif trainer.global_step > 0:
            options["resume"] = True if self._step is None else self._step
        self.tracker = attach(pl_module, self._in_order(trainer.optimizers, pl_module), directory, **options)
        if trainer.global_step > 0 and self.tracker.step_count == 0:
            self._begin_late(trainer, self.tracker)
        self._watching, self._logged = True, self.tracker.step_count

    def _begin_late(self, trainer: Trainer, tracker: SpectrumTracker) -> None:
        """A run that a resumed training begins has the training's steps too, where Lightning counts them alike."""
        tracker.step_count = trainer.global_step if len(trainer.optimizers) == 1 else self._step or 0
        message = f"watching begins at Lightning's step {trainer.global_step}: W0 is the weights of that step"
        tracker.event("began_late", None, message)

    def _in_order(self, optimizers: Sequence[Optimizer], pl_module: LightningModule) -> list[Optimizer]:
        """The one that counts is the last, as `attach` wants it."""
        if not any(optimizer.param_groups for optimizer in optimizers):  # Lightning puts an empty one in place of none
            name = f"{type(pl_module).__name__}.configure_optimizers"
            raise ValueError(
                f"{name} gives no optimizer that could count the steps: call inrank_monitor.attach instead"
            )
        if not -len(optimizers) <= self._counts < len(optimizers):
            raise ValueError(f"counts must be the place of one of {len(optimizers)} optimizers, got {self._counts}")
        chosen = optimizers[self._counts]
        return [optimizer for optimizer in optimizers if optimizer is not chosen] + [chosen]

    def _temporary_directory(self, trainer: Trainer) -> Path:
        """One for all processes, which the main one removes when it ends: `tracker.summary()` may read it before."""
        path = tempfile.mkdtemp(prefix="inrank-monitor-") if trainer.is_global_zero else ""
        if path:
            # unlike weakref.finalize also where multiprocessing has started this process, and ends it
            Finalize(self, shutil.rmtree, (path,), {"ignore_errors": True}, exitpriority=0)
        return Path(trainer.strategy.broadcast(path))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the module's numbers of this step, as often as Lightning logs them."""
        self._notice(trainer, "step")
        if not self._watching or self.tracker is None:
            return
        every, step = 1 if trainer.fast_dev_run else trainer.log_every_n_steps, self.tracker.step_count
        if every and step // every > self._logged // every:
            self._log(trainer, "step")
            self._logged = step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the numbers of a validation within training."""
        self._log(trainer, "validation")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of the epoch before: only now are they complete."""
        self._log(trainer, "epoch")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last snapshot and mark the run finished."""
        self._log(trainer, "epoch")
        self._end(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Mark the run interrupted: an error, Ctrl-C, a signal that ends the job."""
        self._end(exception)

    def _end(self, error: BaseException | None) -> None:
        if self._watching and self.tracker is not None:
            self._watching, self._step = False, self.tracker.step_count
            self.tracker.__exit__(None if error is None else type(error), error, None)

    def _notice(self, trainer: Trainer, phase: _Phase) -> dict[str, Any]:
        """The Trainer's metrics. They keep their last value for ever, so a name belongs where it first appeared."""
        metrics: dict[str, Any] = trainer.callback_metrics
        for name in metrics:
            self._phases.setdefault(name, phase)
        return metrics

    def _log(self, trainer: Trainer, phase: _Phase) -> None:
        metrics = self._notice(trainer, phase)
        if self._watching and self.tracker is not None:
            self.tracker.log(
                {
                    name: value
                    for name, value in metrics.items()
                    # Lightning has `loss` and `loss_step` where both steps and epochs are logged
                    if self._phases[name] == phase and f"{name}_step" not in metrics
                }
            )
