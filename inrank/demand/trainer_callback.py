"""FactorizeCallback: dense first, then low rank, inside transformers' Trainer.

    callback = inrank.FactorizeCallback(at=0.25, budget=0.45)
    Trainer(model, args, train_dataset=data, callbacks=[callback]).train()

It acts after a step, when the gradients have been dealt with, the schedule has gone on, and before the next forward
pass. A checkpoint holds what was done beside the weights: give `train(resume_from_checkpoint=...)` a dense model as at
the start, and the callback brings it to the checkpoint's ranks before its weights are loaded.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from inrank.demand.choosing_ranks import Wanted
from inrank.demand.dense_then_low_rank import DenseThenLowRank
from inrank.demand.factor_groups import split_off
from inrank.demand.factorize import factorize
from inrank.demand.moment import At, Moment, check_at
from inrank.demand.training_batches import TrainingBatches
from inrank.growth import Factorization
from inrank.growth.trainer_callback import checkpoint_folder, nothing_to_resume
from inrank.layers import layers_of, low_ranks_in
from inrank_monitor.runs import local_path, write_json

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

STATE_FILE = "inrank_factorization.json"
_OWN = "inrank_{}"  # of optimizer and scheduler files with parameter groups that the Trainer does not make


class FactorizeCallback(TrainerCallback):
    """Calls `inrank.factorize` once in a training, keeps what it did in the Trainer's checkpoints, and takes it up.

    Best models are counted anew from the factorization on: `load_best_model_at_end` chooses among the factorized ones.

    Args:
        at: an integer: after this step; a share in (0, 1) of the Trainer's steps; `"settled"`, or an `inrank.Settled`:
            when the ranks that `tracker` measures have settled.
        every: steps between looks at the ranks.
        calibration: batches, iterated over when the moment has come. Default: 24 of the training set, drawn by the
            Trainer's seed beside its own data loader. The evaluation set is never touched.
        tracker: an `inrank_monitor.TrackerCallback` (anywhere in the Trainer's callbacks) or a `SpectrumTracker`: its
            run gets the events.
        resume_from: the checkpoint that training resumes from, if it is not in the Trainer's `output_dir`.
        options: as for `inrank.factorize`: targets, ranks or budget, allocation, batch_loss, truncation, factor_lr, ...

    Attributes:
        report: what the factorization did; None before.

    Raises:
        ValueError, TypeError: an option out of range, or one that there is not. At the beginning of training, what
            `inrank.DenseThenLowRank` refuses, and a training on several processes, whose DistributedDataParallel the
            Trainer does not wrap anew.
        FileNotFoundError: at the beginning of a resumed training: its checkpoint does not say what was done.
    """

    def __init__(
        self,
        *,
        at: At = 0.25,
        every: int = 25,
        calibration: Iterable[Any] | None = None,
        tracker: Any = None,
        resume_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        inspect.signature(factorize).bind(None, None, **options)
        check_at(at)
        Moment(1, every=every)
        self._at, self._every, self._tracker = at, every, tracker
        self._calibration, self._options = calibration, options
        self._wanted = Wanted(**{each.name: options[each.name] for each in fields(Wanted) if each.name in options})
        self._resume_from = None if resume_from is None else local_path(resume_from, "resume_from")
        self._loading: RemovableHandle | None = None
        self._moment: DenseThenLowRank | None = None

    @property
    def report(self) -> Factorization | None:
        """What the factorization did; None before."""
        return None if self._moment is None else self._moment.report

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Be there when a checkpoint is loaded into the model, which comes before training begins."""
        rate = self._options.get("factor_lr", 1.0)
        prepare = partial(_prepare, optimizer=optimizer, scheduler=lr_scheduler, factor_lr=rate)
        self._loading = model.register_load_state_dict_pre_hook(prepare)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Check everything now; take up the checkpoint's state if training resumes."""
        self._ignore_loading()
        if args.world_size > 1:
            raise ValueError(
                "FactorizeCallback trains on one process: on several the Trainer's DistributedDataParallel would have "
                "to be wrapped anew; use inrank train under torchrun, or inrank.DenseThenLowRank in a loop of your own"
            )
        options = {"scheduler": lr_scheduler, "calibration": self._calibration, **self._options}
        if self._calibration is None and self._options.get("loss") is None and self._wanted.wants_batches:
            seed = args.seed if args.data_seed is None else args.data_seed
            options["calibration"] = TrainingBatches(train_dataloader, args.train_batch_size, seed)
        resumes = state.global_step > 0
        content = self._read(args, state) if resumes else None
        if not resumes and layers_of(model):
            raise ValueError("the model is factorized or converted already: FactorizeCallback takes a dense one")
        moment = DenseThenLowRank(
            model,
            optimizer,
            at=self._at,
            total_steps=state.max_steps,
            every=self._every,
            tracker=self._tracker,
            **options,
        )
        if content is not None:
            moment.load_state_dict(content)
            self._load_groups(self._folder(args, state), model, optimizer, lr_scheduler)
        self._moment = moment

    def _load_groups(self, folder: Path, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
        """Optimizer and scheduler of a checkpoint with parameter groups of its own, which the Trainer has left out."""
        if not (folder / _OWN.format(OPTIMIZER_NAME)).is_file():
            return
        load = partial(torch.load, map_location="cpu", weights_only=True)
        saved = load(folder / _OWN.format(OPTIMIZER_NAME))
        inner = optimizer.optimizer
        if len(inner.param_groups) < len(saved["param_groups"]):
            factors = [factor for layer in layers_of(model).values() for factor in (layer.U, layer.V)]
            split_off(inner, factors, self._options.get("factor_lr", 1.0), [scheduler])
        optimizer.load_state_dict(saved)
        scheduler.load_state_dict(load(folder / _OWN.format(SCHEDULER_NAME)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Factorize, if the moment has come."""
        assert self._moment is not None
        self._moment.step_count = state.global_step - 1
        if self._moment.step() is not None:  # what was best was another model
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write what was done into the checkpoint."""
        if self._moment is None or not args.should_save:
            return
        folder = checkpoint_folder(args, state)
        write_json(folder / STATE_FILE, self._moment.state_dict())
        if self.report is not None and self._options.get("factor_lr", 1.0) != 1:
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME):  # else the Trainer would load them into groups of its own
                if (folder / name).is_file():
                    (folder / name).replace(folder / _OWN.format(name))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so if the moment never came."""
        self.detach()

    def detach(self) -> None:
        """Let go of the model; the Trainer has no hook for a training that raised, so call it then."""
        self._ignore_loading()
        if self._moment is not None:
            self._moment.detach()

    def _ignore_loading(self) -> None:
        if self._loading is not None:
            self._loading.remove()
        self._loading = None

    def _folder(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(self._resume_from or checkpoint_folder(args, state))

    def _read(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        folder = self._folder(args, state)
        if not (folder / STATE_FILE).is_file():
            raise nothing_to_resume(folder, STATE_FILE, state.global_step, FactorizeCallback)
        content: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return content


def _prepare(
    model: nn.Module, state: dict[str, Any], prefix: str, *_: Any, optimizer: Any, scheduler: Any, factor_lr: float
) -> None:
    """Before a state dict is loaded: dense layers of which it holds factors become factors of the same ranks."""
    there = layers_of(model)
    ranks = {name: rank for name, rank in low_ranks_in(state).items() if name not in there}
    if ranks:
        rate = factor_lr if optimizer is not None else 1.0
        factorize(model, optimizer, ranks=ranks, factor_lr=rate, scheduler=scheduler)
