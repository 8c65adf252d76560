"""What the optimizer of a dense model knows goes over to the factors, exactly where that is linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import untouched
from helpers.dense import image_batches, image_loss, text_step, trained_gpt2, trained_small
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, SequentialLR

from inrank import factorize
from inrank_monitor import attach, open_run

pytestmark = pytest.mark.numeric
MLP = [f"transformer.h.{block}.mlp.{name}" for block in range(2) for name in ("c_fc", "c_proj")]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda parameters: AdamW(parameters, lr=0.0, amsgrad=True),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.0),
    "SGD": lambda parameters: SGD(parameters, lr=0.0, momentum=0.9, dampening=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.0, centered=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.0),
}
LINEAR = {"exp_avg", "momentum_buffer", "grad_avg"}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layer", ["Linear", "Conv1D", "Conv2d"])
def test_averages_of_gradients_go_over_exactly(kind: str, layer: str) -> None:
    """A twin whose factors have stood where they are from the start, and have seen the same losses, knows the same."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    make = {"Linear": lambda: nn.Linear(7, 5), "Conv1D": lambda: Conv1D(5, 7), "Conv2d": lambda: nn.Conv2d(7, 5, 1)}
    model = nn.Sequential(make[layer]()).double()
    directions = torch.randn(6, *model[0].weight.shape).double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for direction in directions:
        optimizer.zero_grad()
        (model[0].weight * direction).sum().backward()
        optimizer.step()
    squares = {
        key: value.mT if layer == "Conv1D" else value.flatten(1)
        for key, value in optimizer.state[model[0].weight].items()
        if key not in LINEAR and isinstance(value, torch.Tensor) and value.ndim > 1
    }
    report = factorize(model, optimizer, targets="0", ranks=3)
    assert report.reset == ()
    U, V, gain = model[0].U, model[0].V, model[0].gain
    twin = OPTIMIZERS[kind]([U, V])
    twin.load_state_dict({"state": {}, "param_groups": twin.state_dict()["param_groups"]})
    for direction in directions:
        twin.zero_grad()
        (model[0].stored_weight * direction).sum().backward()
        twin.step()
    for factor in (U, V):
        carried, expected = optimizer.state[factor], twin.state[factor]
        assert set(carried) == set(expected)
        for key in LINEAR & set(carried):
            torch.testing.assert_close(carried[key], expected[key], rtol=1e-12, atol=1e-14)
        if "step" in carried:
            assert carried["step"] == expected["step"] == 6
    u, v = U.detach().numpy(), V.detach().numpy()
    for key, value in squares.items():
        left = gain**2 * np.einsum("ij,kj->ik", value.numpy(), v**2)
        right = gain**2 * np.einsum("ik,ij->kj", u**2, value.numpy())
        np.testing.assert_allclose(optimizer.state[U][key].numpy(), left, rtol=1e-12)
        np.testing.assert_allclose(optimizer.state[V][key].numpy(), right, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adamax,  # a maximum is no average
        lambda parameters: torch.optim.RMSprop(parameters, momentum=0.5),  # whose momentum is of steps
        torch.optim.ASGD,
    ],
)
def test_an_unknown_state_begins_anew_and_that_is_said(make: Any, tmp_path: Any) -> None:
    model, _ = trained_gpt2(1)
    optimizer = make(model.parameters())
    text_step(model, optimizer, 0)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False) as tracker:
        report = factorize(model, optimizer, ranks=3, tracker=tracker)
        assert list(report.reset) == MLP
        assert "optimizer state begun anew: transformer.h.0.mlp.c_fc" in str(report)
        factors = {id(model.get_submodule(name).U) for name in MLP}
        assert not factors & {id(parameter) for parameter in optimizer.state}
        text_step(model, optimizer, 1)
    events = open_run(tmp_path / "run").events
    assert "begun anew" in events[events["kind"] == "factorized"]["message"].item()


def test_a_gradient_that_is_being_accumulated_goes_over() -> None:
    model, optimizer = trained_small()
    optimizer.zero_grad()
    image_loss(model.eval(), image_batches()[0]).backward()
    gradient = model.head.weight.grad.clone()
    factorize(model, optimizer, targets="head", ranks=10)  # full rank: the gradients of factors are those of the weight
    accumulated = model.head.U.grad.clone(), model.head.V.grad.clone()
    torch.testing.assert_close(accumulated[0], model.head.gain * gradient @ model.head.V.mT)
    optimizer.zero_grad()
    image_loss(model, image_batches()[0]).backward()
    torch.testing.assert_close(accumulated, (model.head.U.grad, model.head.V.grad))


def test_groups_and_their_options_stay() -> None:
    model, optimizer = trained_gpt2(2)
    weights = [model.get_submodule(name).weight for name in MLP]
    rest = [value for value in model.parameters() if all(value is not weight for weight in weights)]
    groups = [{"params": [weights[0], *rest[:3], weights[3]], "lr": 0.01}, {"params": [*rest[3:], *weights[1:3]]}]
    optimizer = AdamW(groups, lr=0.02)
    factorize(model, optimizer, ranks=2)
    names = {id(value): name for name, value in model.named_parameters()}
    first, second = ([names[id(value)] for value in group["params"]] for group in optimizer.param_groups)
    assert first == [f"{MLP[0]}.U", f"{MLP[0]}.V", *first[2:5], f"{MLP[3]}.U", f"{MLP[3]}.V"]
    assert second[-4:] == [f"{name}.{factor}" for name in MLP[1:3] for factor in "UV"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    assert sorted(first + second) == sorted(name for name, _ in model.named_parameters())


def test_a_learning_rate_of_their_own_follows_the_scheduler() -> None:
    def schedulers(optimizer: Optimizer) -> Any:
        return SequentialLR(
            optimizer,
            [LambdaLR(optimizer, lambda step: 0.5**step), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)],
            milestones=[4],
        )

    for make in (schedulers, lambda one: OneCycleLR(one, 0.01, 10), lambda one: LambdaLR(one, lambda t: 0.9**t)):
        model, optimizer = trained_gpt2(1)
        scheduler: Any = make(optimizer)
        for step in range(9):
            text_step(model, optimizer, step)
            scheduler.step()
            if step == 2:
                with (
                    untouched(model, optimizer),
                    pytest.raises(ValueError, match=r"new parameter groups.*give scheduler"),
                ):
                    factorize(model, optimizer, ranks=2, factor_lr=3.0)
                factorize(model, optimizer, ranks=2, factor_lr=3.0, scheduler=scheduler)
        old, new = optimizer.param_groups
        assert new["lr"] == pytest.approx(3 * old["lr"])
        assert [id(value) for value in new["params"]] == [
            id(value) for name in MLP for value in (model.get_submodule(name).U, model.get_submodule(name).V)
        ]
        assert new["betas"] == old["betas"]
        assert len(scheduler.get_last_lr()) == 2
