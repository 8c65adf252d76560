"""Modules that are replaced are measured no more; layers that are unfrozen join the run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import mlp
from helpers.truth import TrueLoop, assert_rows_are_true, events, rows
from torch import nn
from torch.optim import SGD

import inrank
from inrank_monitor import attach, open_run


def replace(model: nn.Sequential) -> None:
    model[2] = nn.Linear(32, 8)


def remove(model: nn.Sequential) -> None:
    del model[2]


def nest(model: nn.Sequential) -> None:
    model[2] = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 8))


def convert(model: nn.Sequential) -> None:
    inrank.convert(model, targets=["2"], buffer_rank=2)


def adapt(model: nn.Sequential) -> None:
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["2"], r=2))


@pytest.mark.parametrize("change", [replace, remove, nest, convert, adapt])
def test_a_layer_that_is_no_longer_the_models_is_measured_no_more(
    tmp_path: Path, change: Callable[[nn.Sequential], None]
) -> None:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=5, tensorboard=False)
    loop.run(5)
    change(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loop.optimizer = SGD(model.parameters(), lr=0.1)
    loop.run(20)
    tracker.close()
    assert list(rows(tmp_path / "run", "2.weight")) == [5]
    (message,) = events(tmp_path / "run", "parameter_gone")
    assert message.startswith("2.weight ")
    assert "attach anew" in message
    if change is not adapt:  # there the other layer has another name in the model's own list
        assert list(rows(tmp_path / "run", "0.weight")) == [5, 10, 15, 20, 25]


def test_merging_and_adapting_again_begins_other_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted(base: nn.Module) -> Any:
        return peft.get_peft_model(base, peft.LoraConfig(target_modules=["0", "2"], r=2))

    model = adapted(mlp(16, 32, 8))
    optimizer = SGD(model.parameters(), lr=0.1)
    tracker = attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False)
    for step in range(6):
        if step == 3:
            model = adapted(model.merge_and_unload())
            optimizer = SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [1, 2, 3]


def test_a_layer_that_is_only_wrapped_is_measured_on(tmp_path: Path) -> None:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=1, tensorboard=False)
    loop.run(1)
    model[2] = nn.Sequential(model[2])
    loop.run(1)
    tracker.close()
    assert list(rows(tmp_path / "run", "2.weight")) == [1, 2]


def freeze(model: nn.Sequential, *places: int) -> None:
    for place in places:
        model[place].requires_grad_(False)


@pytest.mark.parametrize("held", ["from the start", "added", "another optimizer"])
def test_an_unfrozen_layer_joins_with_what_it_is_then_as_its_start(tmp_path: Path, held: str) -> None:
    model = mlp(16, 32, 24, 8)
    freeze(model, 2, 4)
    trained = model.parameters() if held == "from the start" else model[0].parameters()
    loop = TrueLoop(model, SGD(trained, lr=0.1))
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=5, tensorboard=True)
    for place in (4, 2):
        loop.run(7)
        model[place].requires_grad_(True)
        if held == "added":
            loop.optimizer.add_param_group({"params": list(model[place].parameters())})
        elif held == "another optimizer":
            loop.optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loop.run(7)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [5, 10, 15, 20, 21])
    assert list(rows(tmp_path / "run", "4.weight")) == [10, 15, 20, 21]
    assert list(rows(tmp_path / "run", "2.weight")) == [15, 20, 21]
    run = open_run(tmp_path / "run")
    assert list(run.matrices.index) == ["0.weight", "4.weight", "2.weight"]
    assert run.coverage.set_index("parameter").loc["4.weight", "watched"]
    assert [row.watched for row in tracker.coverage if row.parameter == "2.weight"] == [True]
    first, second = events(tmp_path / "run", "unfrozen")
    assert first.startswith("4.weight was unfrozen after step 7")
    assert second.startswith("2.weight was unfrozen after step 14")
    norm = float(loop.start["4.weight"].norm())
    assert run.matrices.loc["4.weight", "initial_norm"] == pytest.approx(norm)


def test_a_run_with_an_unfrozen_layer_is_resumed_frozen_or_not(tmp_path: Path) -> None:
    model = mlp(16, 32, 24, 8)
    freeze(model, 2)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=2, tensorboard=False)
    loop.run(4)
    model[2].requires_grad_(True)
    loop.run(4)
    tracker.close()
    for frozen in (False, True):
        model[2].requires_grad_(not frozen)
        tracker = attach(model, loop.optimizer, tmp_path / "run", every=2, tensorboard=False, resume=loop.step)
        model[2].requires_grad_(True)
        loop.run(4)
        tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [2, 4, 6, 8, 10, 12, 14, 16])
    assert list(rows(tmp_path / "run", "2.weight")) == [6, 8, 10, 12, 14, 16]


def test_a_layer_unfrozen_between_two_processes_joins_as_the_run_is_taken_up(tmp_path: Path) -> None:
    model = mlp(16, 32, 24, 8)
    freeze(model, 2)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    attach(model, loop.optimizer, tmp_path / "run", every=2, tensorboard=False).close()
    model[2].requires_grad_(True)
    for _ in range(2):
        tracker = attach(model, loop.optimizer, tmp_path / "run", every=2, tensorboard=False, resume=loop.step)
        loop.run(4)
        tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [2, 4, 6, 8])
    assert list(rows(tmp_path / "run", "2.weight")) == [2, 4, 6, 8]
    (message,) = events(tmp_path / "run", "unfrozen")
    assert message.startswith("2.weight was unfrozen after step 0")


def test_patterns_and_parts_hold_for_what_joins(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.last = nn.Linear(16, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen = self.first(inputs)[:, None]
            return self.last(self.attention(seen, seen, seen)[0])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Block()
    model.attention.requires_grad_(False)
    model.last.requires_grad_(False)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=1, include=["first*"], tensorboard=False)
    loop.run(2)
    model.requires_grad_(True)
    loop.run(2)
    tracker.close()
    assert list(open_run(tmp_path / "run").matrices.index) == ["first.weight"]
    freeze_again = copy.deepcopy(model)
    freeze_again.attention.requires_grad_(False)
    loop = TrueLoop(freeze_again, SGD(freeze_again.parameters(), lr=0.1))
    tracker = attach(freeze_again, loop.optimizer, tmp_path / "whole", every=1, tensorboard=False)
    loop.run(2)
    freeze_again.requires_grad_(True)
    loop.run(2)
    tracker.close()
    joined = set(open_run(tmp_path / "whole").matrices.index) - {"first.weight", "last.weight"}
    assert joined == {f"attention.in_proj_weight[{part}]" for part in "qkv"} | {"attention.out_proj.weight"}


def test_a_frozen_weight_whose_gradient_a_growth_rule_wants_does_not_join(tmp_path: Path) -> None:
    model = mlp(16, 32, 32, 8)
    inrank.convert(model, targets=["2"], buffer_rank=4)
    optimizer = SGD(model.parameters(), lr=1e-2)
    tracker = attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False)
    model[2].initial_weight.requires_grad_(True)  # type: ignore[union-attr]
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    tracker.close()
    assert not events(tmp_path / "run", "unfrozen")
