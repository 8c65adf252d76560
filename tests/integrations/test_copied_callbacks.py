"""Callbacks that are copied or saved while they hold a tracker: the copy is quiet, and the training has one run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from helpers.trainers import STEPS, trainer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

import inrank
from inrank_monitor import LightningCallback, TrackerCallback, open_run
from inrank_monitor.tracking import SpectrumTracker


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = pytest.mark.parametrize("copied", [copy.deepcopy, pickled])


def small() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=8))


class Copies(TrainerCallback):
    """Copies another callback at each step, and lets the copy hear what the Trainer says."""

    def __init__(self, other: TrainerCallback, copied: Callable[[Any], Any]) -> None:
        self._other, self._copied = other, copied
        self.made: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.made.append(self._copied(self._other))
        for made in self.made:
            made.on_optimizer_step(args, state, control)
            made.on_log(args, state, control, logs={"loss": 100.0, "text": "x", "numpy": np.float32(1)})
            made.on_save(args, state, control)


@WAYS
def test_a_copy_of_the_trainers_callback_is_quiet(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    watching = TrackerCallback(tmp_path / "run", every=1, tensorboard=False)
    copies = Copies(watching, copied)
    trainer(small(), tmp_path / "out", watching, copies, save_strategy="no").train()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == list(range(1, STEPS + 1))
    assert 100.0 not in run.scalars["value"].tolist()
    other = copies.made[0].tracker
    assert isinstance(other, SpectrumTracker)
    assert other.step_count == 2
    assert "c_attn" in other.summary()
    copies.made[0].close()


@WAYS
def test_a_copy_of_the_growing_callback_holds_a_closed_tracker(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    watching = TrackerCallback(tmp_path / "run", tensorboard=False)
    growing = inrank.InRankCallback(tracker=watching)
    watching.tracker = _open(tmp_path / "run")
    other = copied(growing)
    assert other._events._watched.tracker.step_count == 0
    other._events.event("mine", None, "nothing")
    other._events.pass_on()
    watching.tracker.close("a test")
    assert open_run(tmp_path / "run").events.empty


def _open(directory: Path) -> SpectrumTracker:
    from inrank_monitor import attach

    return attach(nn.Linear(4, 4), None, directory, tensorboard=False)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LightningCopies(lightning.Callback):
    def __init__(self, other: lightning.Callback, copied: Callable[[Any], Any]) -> None:
        self._other, self._copied = other, copied
        self.made: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 2:
            self.made.append(self._copied(self._other))
        for made in self.made:
            made.on_train_batch_end(trainer, module, outputs, batch, index)
            made.on_train_epoch_start(trainer, module)


@WAYS
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
def test_a_copy_of_lightnings_callback_is_quiet(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    watching = LightningCallback(tmp_path / "run", every=1, tensorboard=False)
    copies = LightningCopies(watching, copied)
    fit = lightning.Trainer(
        max_steps=5, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watching, copies],
        default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    fit.fit(Module(), torch.utils.data.DataLoader([torch.randn(6) for _ in range(20)], batch_size=4))  # type: ignore[arg-type]
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4, 5]
    assert run.scalars.loc[run.scalars["name"] == "loss", "step"].tolist() == [1, 2, 3, 4, 5]
    (other, *_) = copies.made
    assert other.tracker.step_count == 2
    other.on_train_end(fit, None)
    assert other.directory == watching.directory
    assert other.state_key == watching.state_key
