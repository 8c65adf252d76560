"""Mixed precision by `torch.amp.GradScaler` in a loop of one's own: nothing but `attach`, and nothing changes."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.everything import state as everything
from helpers.training import mlp, run_page_script
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from inrank_monitor import SpectrumTracker, attach, open_run

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
OVERFLOWS = (3, 4, 9)
STEPS = 14


class Loop:
    """float16 autocast, a scaler, two accumulated batches a step, clipping; the gradients of some steps overflow."""

    def __init__(self, kind: type[Optimizer] = AdamW, **options: Any) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(mlp(6, 8), nn.Dropout(0.2), mlp(8, 5))
        self.optimizer = kind(self.model.parameters(), lr=0.02, **options)  # type: ignore[call-arg]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=4)
        self.losses: list[float] = []

    def step(self, number: int, tracker: SpectrumTracker | None = None) -> None:
        generator = torch.Generator().manual_seed(number)
        self.optimizer.zero_grad()
        for part in range(2):
            inputs = torch.randn(4, 6, generator=generator)
            with torch.autocast("cpu", torch.float16):
                loss = (self.model(inputs) - 1).float().square().mean() / 2
            scaled = self.scaler.scale(loss)
            (scaled * float("inf") if number in OVERFLOWS and part else scaled).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(loss.item())
        if tracker:
            tracker.log(loss=loss, scale=self.scaler.get_scale())

    def train(self, steps: range, tracker: SpectrumTracker | None = None) -> None:
        for number in steps:
            self.step(number, tracker)

    def everything(self) -> dict[str, Any]:
        return everything(self.model, self.optimizer, self.losses) | {"scaler": self.scaler.state_dict()}

    def watch(self, directory: Path, **options: Any) -> SpectrumTracker:
        return attach(self.model, self.optimizer, directory, every=1, tensorboard=False, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(AdamW, {}), (AdamW, {"fused": True}), (SGD, {"momentum": 0.9}), (SGD, {"momentum": 0.9, "fused": True})],
    ids=["adamw", "fused adamw", "sgd", "fused sgd"],
)
def test_training_is_the_same_bit_for_bit_and_skipped_steps_do_not_count(
    tmp_path: Path, kind: type[Optimizer], options: dict[str, Any]
) -> None:
    plain, loop = Loop(kind, **options), Loop(kind, **options)
    plain.train(range(STEPS))
    expected = plain.everything()
    loop = Loop(kind, **options)
    with loop.watch(tmp_path) as tracker:
        loop.train(range(STEPS), tracker)
        found = loop.everything()
        assert tracker.step_count == STEPS - len(OVERFLOWS)
    # `found_inf` is what the scaler hands a fused optimizer, and takes back
    assert not [key for key in expected if found[key] != expected[key]]
    run = open_run(tmp_path)
    assert run.measurements["step"].unique().tolist() == list(range(1, STEPS - len(OVERFLOWS) + 1))
    assert run.measurements["numerical_rank"].notna().all()
    assert run.events.empty
    scales = run.scalars[run.scalars["name"] == "scale"]["value"].tolist()
    assert scales[OVERFLOWS[0]] == scales[OVERFLOWS[0] - 1] / 2


def test_a_skipped_step_leaves_the_spectra_as_they_were(tmp_path: Path) -> None:
    loop = Loop()
    with loop.watch(tmp_path) as tracker:
        loop.train(range(OVERFLOWS[0]))
        before = loop.model[0][0].weight.detach().clone()  # type: ignore[index]
        loop.train(range(OVERFLOWS[0], OVERFLOWS[1] + 1))
        assert torch.equal(loop.model[0][0].weight, before)  # type: ignore[index]
        assert tracker.step_count == OVERFLOWS[0]
        loop.train(range(OVERFLOWS[1] + 1, OVERFLOWS[1] + 2))
        assert tracker.step_count == OVERFLOWS[0] + 1
    norms = open_run(tmp_path).measurements.groupby("step")["frobenius_norm"].sum()
    assert norms.is_unique


def test_a_run_goes_on_at_adams_own_counter_whatever_was_skipped(tmp_path: Path) -> None:
    loop = Loop()
    with loop.watch(tmp_path) as tracker:
        loop.train(range(8), tracker)
        kept = [copied(part.state_dict()) for part in (loop.model, loop.optimizer, loop.scaler)]
        tracker.flush()
        loop.train(range(8, 11), tracker)
    later = Loop()
    for part, saved in zip((later.model, later.optimizer, later.scaler), kept, strict=True):
        part.load_state_dict(saved)
    with later.watch(tmp_path, resume=True) as tracker:
        assert tracker.step_count == 8 - 2
        later.train(range(8, STEPS), tracker)
    assert later.everything()["optimizer"]["state"][0]["step"] == as_bytes(float(STEPS - 3))
    assert open_run(tmp_path).measurements["step"].unique().tolist() == list(range(1, STEPS - 2))


def test_of_several_optimizers_with_one_scaler_the_last_ones_steps_count(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    first, last = SGD(model[0].parameters(), lr=0.1), AdamW(model[2].parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    counts = []
    with attach(model, [first, last], tmp_path, every=1, tensorboard=False) as tracker:
        for step in range(5):
            loss = model(torch.randn(4, 6)).square().mean()
            scaler.scale(loss).backward()
            overflowing = {1: model[0], 3: model[2]}.get(step)
            for parameter in chain([] if overflowing is None else overflowing.parameters()):
                assert parameter.grad is not None
                parameter.grad.fill_(float("inf"))
            for optimizer in (first, last):
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
            counts.append(tracker.step_count)
    assert counts == [1, 2, 3, 3, 4]


@pytest.mark.slow
def test_the_script_runs_and_goes_on_when_run_again(tmp_path: Path) -> None:
    for steps in (120, 240):
        assert "2.weight" in run_page_script("plain_loop", tmp_path)
        run = open_run(tmp_path)
        assert run.status == "finished"
        assert run.measurements["step"].max() == run.info["ended"]["step"] == steps
        assert run.measurements["numerical_rank"].notna().all()
    assert open_run(tmp_path).events["kind"].tolist() == ["resumed"]


def copied(state: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, state)
    return result


def as_bytes(value: float) -> tuple[str, tuple[int, ...], bytes]:
    """As `everything` shows a number in a tensor."""
    tensor = torch.tensor(value)
    return str(tensor.dtype), (), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
