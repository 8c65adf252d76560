"""Accelerate needs nothing but `attach`: the prepared model and optimizer, or the raw ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from test_passive import state as everything
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset
from trainer_worker import run_on_two_processes
from training import mlp, run_page_script

from inrank_monitor import SpectrumTracker, attach, open_run

pytestmark = pytest.mark.usefixtures("one_thread")
BATCHES, ACCUMULATED = 10, 3  # an epoch is four steps, the last one of a single batch


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """Accelerate keeps one state a process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Loop:
    """A training by Accelerate: two epochs of accumulated batches, dropout and a schedule."""

    def __init__(self, kind: type[Optimizer] = AdamW, precision: str = "no") -> None:
        self.accelerator = Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=ACCUMULATED, rng_types=["generator"]
        )
        torch.manual_seed(3)
        self.raw_model = nn.Sequential(mlp(6, 8), nn.Dropout(0.2), mlp(8, 5))
        self.raw_optimizer = kind(self.raw_model.parameters(), lr=0.02)  # type: ignore[call-arg]
        generator = torch.Generator().manual_seed(1)
        loader = DataLoader(TensorDataset(torch.randn(4 * BATCHES, 6, generator=generator)), batch_size=4)
        scheduler = torch.optim.lr_scheduler.StepLR(self.raw_optimizer, 2, gamma=0.5)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            self.raw_model, self.raw_optimizer, loader, scheduler
        )
        self.losses: list[float] = []
        self.steps = 0

    def watch(self, directory: Path, prepared: bool = True, **options: Any) -> SpectrumTracker:
        pair = (self.model, self.optimizer) if prepared else (self.raw_model, self.raw_optimizer)
        return attach(*pair, directory, **{"every": 1, "tensorboard": False} | options)

    def epoch(self, tracker: SpectrumTracker | None = None) -> None:
        for (inputs,) in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = (self.model(inputs) - 1).square().mean()
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())
            if self.accelerator.sync_gradients:
                self.steps += 1
                if tracker:
                    tracker.log(loss=loss)
                    assert tracker.step_count == self.steps

    def everything(self) -> dict[str, Any]:
        found = everything(self.raw_model, self.raw_optimizer, self.losses)
        return found | {"schedule": self.scheduler.state_dict()}


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "raw"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_training_is_the_same_bit_for_bit_and_steps_are_counted_once(
    tmp_path: Path, kind: type[Optimizer], precision: str, prepared: bool
) -> None:
    plain = Loop(kind, precision)
    plain.epoch()
    plain.epoch()
    expected = plain.everything()
    loop = Loop(kind, precision)
    tracker = loop.watch(tmp_path, prepared)
    loop.epoch(tracker)
    loop.epoch(tracker)
    found = loop.everything()
    tracker.close()
    assert found == loop.everything()  # nor does closing change anything
    assert not [key for key in expected if found[key] != expected[key]]
    run = open_run(tmp_path)
    assert run.measurements["step"].unique().tolist() == list(range(1, 9))
    assert run.scalars[run.scalars["name"] == "loss"]["step"].tolist() == list(range(1, 9))
    assert run.matrices.index.tolist() == ["0.0.weight", "2.0.weight"]
    assert run.events.empty


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_run_goes_on_from_a_saved_state(tmp_path: Path, kind: type[Optimizer]) -> None:
    whole = Loop(kind)
    with whole.watch(tmp_path / "whole") as tracker:
        whole.epoch(tracker)
        whole.accelerator.save_state(tmp_path / "state")
        whole.epoch(tracker)

    cut = Loop(kind)
    with cut.watch(tmp_path / "parts") as tracker:
        cut.epoch(tracker)
        tracker.flush()
        cut.epoch(tracker)  # lost: these steps come after the checkpoint

    later = Loop(kind)
    later.accelerator.load_state(tmp_path / "state")
    # Adam's own counter tells the step; SGD has none, so it must be told
    tracker = later.watch(tmp_path / "parts", resume=True if kind is AdamW else 4)
    assert tracker.step_count == later.steps + 4
    later.steps = 4
    with tracker:
        later.epoch(tracker)
    one, other = (open_run(tmp_path / name) for name in ("whole", "parts"))
    assert other.events[["step", "kind"]].to_numpy().tolist() == [[4, "resumed"]]
    assert one.measurements.drop(columns="time").equals(other.measurements.drop(columns="time"))
    for name in one.matrices.index:
        assert one.singular_values(name).equals(other.singular_values(name))


def test_steps_that_its_gradient_scaler_skips_are_not_counted(tmp_path: Path) -> None:
    Accelerator(cpu=True)
    model = mlp(6, 8, 5)
    # what `prepare` makes for fp16 on a GPU; it replaces `step` of the optimizer around each call of it
    optimizer = AcceleratedOptimizer(AdamW(model.parameters()), scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    with attach(model, optimizer, tmp_path, every=1, tensorboard=False) as tracker:
        skipped = []
        for step in range(6):
            loss = model(torch.randn(4, 6)).square().mean() * (float("inf") if step in (1, 4) else 1.0)
            assert optimizer.scaler is not None
            optimizer.scaler.scale(loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            skipped.append(optimizer.step_was_skipped)
    assert skipped == [False, True, False, False, True, False]
    assert tracker.step_count == 4
    assert open_run(tmp_path).measurements["step"].unique().tolist() == [1, 2, 3, 4]


def test_several_prepared_optimizers_may_be_given(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = mlp(6, 8, 5)
    pair = [SGD(model[0].parameters(), lr=0.1), AdamW(model[2].parameters())]
    model, *optimizers = accelerator.prepare(model, *pair)
    with attach(model, optimizers, tmp_path, every=1, tensorboard=False) as tracker:
        for _ in range(3):
            accelerator.backward(model(torch.randn(4, 6)).square().mean())
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert tracker.step_count == 3


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path: Path) -> None:
    first, second = run_on_two_processes("accelerate", tmp_path)
    assert [first["steps"], second["steps"]] == [6, 6]
    for found in (first, second):
        assert all(torch.equal(value, first["plain"][key]) for key, value in found["together"].items())
    update = first["together"]["0.weight"].double() - first["first"]["0.weight"].double()
    expected = np.linalg.svd(update.numpy(), compute_uv=False)
    run = open_run(tmp_path / "together")
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(run.singular_values("0.weight").loc[6], expected, atol=1e-6 * expected[0])


@pytest.mark.slow
def test_the_script_runs_and_goes_on_when_run_again(tmp_path: Path) -> None:
    for steps in (128, 256):
        assert "2.weight" in run_page_script("accelerate_loop", tmp_path)
        run = open_run(tmp_path)
        assert run.status == "finished"
        assert run.measurements["step"].max() == run.info["ended"]["step"] == steps
        assert run.measurements["numerical_rank"].notna().all()
    assert open_run(tmp_path).events["kind"].tolist() == ["resumed"]
