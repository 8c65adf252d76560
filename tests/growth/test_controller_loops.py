"""The controller in loops that do not stand still: another optimizer, another layer, a wrapper."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from helpers.training import mlp
from torch import nn
from torch.optim import AdamW

import inrank


def begin(**options: Any) -> tuple[nn.Sequential, AdamW, inrank.RankController]:
    model = mlp(16, 24, 24, 8)
    inrank.convert(model, targets=["0", "2"], buffer_rank=4)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, inrank.RankController(model, optimizer, rule=lambda seen: seen.rank + 1, **options)


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()


def test_ranks_grow_on_under_an_optimizer_made_anew() -> None:
    model, optimizer, controller = begin(every=3)
    controller.attach()
    train(model, optimizer, 4)
    second = AdamW(model.parameters(), lr=1e-2)
    train(model, second, 8)
    assert controller.step_count == 12
    assert sorted({growth.step for growth in controller.history}) == [3, 6, 9, 12]
    assert controller._fresh.step == 12  # the new columns are looked after under the new one, too
    controller.detach()
    train(model, second, 3)
    assert controller.step_count == 12


def test_a_layer_that_was_replaced_grows_no_more() -> None:
    model, optimizer, controller = begin(every=1)
    controller.attach()
    train(model, optimizer, 2)
    dead = model[2]
    model[2] = nn.Linear(24, 24)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    train(model, optimizer, 2)
    assert [growth.step for growth in controller.history if growth.name == "2"] == [1, 2]
    assert [growth.step for growth in controller.history if growth.name == "0"] == [1, 2, 3, 4]
    assert dead.rank == 4  # type: ignore[union-attr]


def test_a_controller_that_nobody_holds_lives_with_its_optimizer() -> None:
    model, optimizer, controller = begin(every=1)
    controller.attach()
    del controller
    gc.collect()
    train(model, optimizer, 2)
    assert model[0].rank == 4  # type: ignore[union-attr]


def test_a_wrapper_whose_step_may_do_more_is_refused_with_what_to_do() -> None:
    model, optimizer, _ = begin(every=1)
    wrapper = type("Lookahead", (), {"optimizer": optimizer, "step": optimizer.step})()
    for refuse in (lambda: inrank.RankController(model, wrapper), lambda: inrank.factorize(model, wrapper)):
        with pytest.raises(TypeError, match=r"got Lookahead.*give the optimizer inside, and call step\(\)"):
            refuse()
