"""Models of each kind go on in factors: GPT-2, gated, vision transformer, convolution; resumed, averaged, scheduled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import gpt2
from helpers.dense import Small, image_batches, image_loss, llama, photos, text_batches, vit
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inrank import factorize

pytestmark = pytest.mark.numeric


def _of_mapping(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class Kind:
    """A model, its batches, their loss, and what becomes factors."""

    make: Callable[[], nn.Module]
    batches: Sequence[Any]
    loss: Callable[[Any, Any], Tensor] = _of_mapping
    targets: str | Sequence[str] = "*.mlp.*"


KINDS = {
    "GPT-2": Kind(lambda: gpt2(layers=2, dropout=0.1).double(), text_batches(3)),
    "Llama": Kind(lambda: llama().double(), text_batches(3)),
    "ViT": Kind(lambda: vit().double(), [each | {"pixel_values": each["pixel_values"].double()} for each in photos(3)]),
    "convolution": Kind(lambda: Small().double(), image_batches(3), image_loss, ["conv", "up", "head"]),
}


class Training:
    """AdamW at a falling rate, over accumulated and clipped gradients."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.model = kind, kind.make().train()
        self.optimizer: Optimizer = AdamW(self.model.parameters(), lr=5e-3)
        self.scheduler = LambdaLR(self.optimizer, lambda step: 0.97**step)
        self.steps = 0

    def step(self) -> float:
        torch.manual_seed(self.steps)  # dropout
        losses = []
        for place in range(2):
            loss = self.kind.loss(self.model, self.kind.batches[(self.steps + place) % 3]) / 2
            loss.backward()
            losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.steps += 1
        return sum(losses)

    def factorize(self, **options: Any) -> Any:
        options |= {"targets": self.kind.targets, "factor_lr": 2.0, "scheduler": self.scheduler}
        return factorize(self.model, self.optimizer, **options)

    @property
    def state(self) -> Any:
        return copy.deepcopy([one.state_dict() for one in (self.model, self.optimizer, self.scheduler)])

    def load(self, state: Any, steps: int) -> None:
        for one, content in zip((self.model, self.optimizer, self.scheduler), state, strict=True):
            one.load_state_dict(content)
        self.steps = steps


@pytest.mark.parametrize("name", KINDS)
def test_it_goes_on_in_factors_and_is_resumed_bit_for_bit(name: str) -> None:
    kind = KINDS[name]
    training = Training(kind)
    before = [training.step() for _ in range(12)]
    training.model.eval()
    losses = [np.mean([kind.loss(training.model, batch).item() for batch in kind.batches])]
    report = training.factorize(budget=0.6, calibration=kind.batches, batch_loss=kind.loss)
    losses.append(np.mean([kind.loss(training.model, batch).item() for batch in kind.batches]))
    training.model.train()
    assert (report.loss_before, report.loss_after) == pytest.approx(tuple(losses), rel=1e-12)
    assert f"({losses[1] - losses[0]:+.4f})" in str(report)
    assert not report.reset
    for _ in range(4):
        training.step()
    state = training.state
    after = [training.step() for _ in range(12)]
    assert np.mean(after[-3:]) < np.mean(before[-3:])
    old, new = training.optimizer.param_groups
    assert new["lr"] == pytest.approx(2 * old["lr"])
    assert old["lr"] == pytest.approx(5e-3 * 0.97**28)

    again = Training(kind)
    again.factorize(ranks=report.ranks)
    again.load(state, 16)
    assert [again.step() for _ in range(12)] == after
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, training.model.state_dict()[key]), key


def test_an_average_that_is_made_anew_follows_the_factors() -> None:
    """Of factors U and V each: the documented way; one that was made of the dense model is refused by torch."""
    training = Training(KINDS["Llama"])
    decay = 0.9
    stale = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(3):
        training.step()
        stale.update_parameters(training.model)
    training.factorize(budget=0.5, calibration=KINDS["Llama"].batches)
    with pytest.raises(RuntimeError, match=r"size of tensor|must match"):
        stale.update_parameters(training.model)
    averaged = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged.update_parameters(training.model)  # the first is a copy
    expected = {name: value.detach().clone() for name, value in training.model.named_parameters()}
    for _ in range(4):
        training.step()
        averaged.update_parameters(training.model)
        for name, value in training.model.named_parameters():
            expected[name].lerp_(value.detach(), 1 - decay)
    for name, value in averaged.module.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-15)
    assert any(name.endswith("mlp.up_proj.U") for name in expected)
