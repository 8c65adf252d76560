"""The gain κ of W = W0 + κ U V: one step of Adam moves W as far as in dense training."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inrank
from inrank.layers.factored_layer import FactoredLayer
from inrank.layers.gain import check_gain, matching_gain

pytestmark = pytest.mark.numeric

ROWS, COLS = 256, 64


def dense() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(COLS, ROWS, bias=False))


def factored(model: nn.Module) -> FactoredLayer:
    layer = next(module for module in model.modules() if isinstance(module, FactoredLayer))
    assert isinstance(layer, FactoredLayer)
    return layer


def weight_of(model: nn.Module) -> Tensor:
    return next(model.children()).weight.detach().clone()  # type: ignore[union-attr,operator]


def step_length(model: nn.Module, lr: float = 1e-4) -> float:
    """‖W₁ − W₀‖_F of one step of Adam whose signs know nothing of the factors: what the formula is made for."""
    generator = torch.Generator().manual_seed(3)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    before = weight_of(model)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return float((weight_of(model) - before).norm())


@pytest.mark.parametrize("rank", [2, 16, 48])
def test_the_first_step_of_a_converted_layer_is_as_long_as_the_dense_one(rank: int) -> None:
    model = dense()
    expected = step_length(copy.deepcopy(model))
    inrank.convert(model, "0", initial_rank=rank, buffer_rank=8)
    assert step_length(model) == pytest.approx(expected, rel=0.05)  # a finite sample of signs


@pytest.mark.parametrize("rank", [2, 16, 48])
def test_the_first_step_of_a_factorized_layer_is_as_long_as_the_dense_one(rank: int) -> None:
    model = dense()
    expected = step_length(copy.deepcopy(model))
    inrank.convert(model, "0", buffer_rank=8)
    inrank.factorize(model, ranks=rank)
    assert step_length(model) == pytest.approx(expected, rel=0.05)


def test_without_a_gain_the_step_of_a_thin_layer_is_several_times_too_short() -> None:
    model = dense()
    expected = step_length(copy.deepcopy(model))
    inrank.convert(model, "0", initial_rank=2, buffer_rank=2, gain=1)
    assert step_length(model) < expected / 3


def test_the_gain_is_undone_by_factors_that_are_smaller_by_its_root() -> None:
    plain, matched = dense(), dense()
    inrank.convert(plain, "0", buffer_rank=8, gain=1)
    inrank.convert(matched, "0", buffer_rank=8)
    one, other = factored(plain), factored(matched)
    torch.testing.assert_close(other.V * math.sqrt(other.gain), one.V)
    inrank.factorize(plain, ranks=5, gain=1)
    inrank.factorize(matched, ranks=5)
    torch.testing.assert_close(one.weight, other.weight)


@pytest.mark.parametrize("gain", [1, 0.25, 40.0])
def test_a_gain_that_is_given_is_the_layers_gain_before_and_after_factorizing(gain: float) -> None:
    model = dense()
    inrank.convert(model, "0", buffer_rank=8, gain=gain)
    assert factored(model).gain == gain
    inrank.factorize(model, gain=gain)
    assert factored(model).gain == gain


def test_forward_weight_and_update_factors_agree_on_the_gain() -> None:
    model = dense().double()
    inrank.convert(model, "0", buffer_rank=8)
    layer: Any = factored(model)
    with torch.no_grad():
        layer.U[:, :10] = torch.randn(ROWS, 10, dtype=torch.float64)
    inputs = torch.randn(7, COLS, dtype=torch.float64)
    torch.testing.assert_close(model(inputs), inputs @ layer.weight.T)
    left, right = layer.update_factors()
    torch.testing.assert_close(layer.initial_weight + left @ right, layer.weight)
    assert layer.gain != 1


def test_the_gain_travels_in_the_state_dict() -> None:
    model, other = dense(), dense()
    inrank.convert(model, "0", buffer_rank=8, gain=7.5)
    inrank.convert(other, "0", buffer_rank=8)
    other.load_state_dict(model.state_dict())
    assert factored(other).gain == 7.5
    for each in (model, other):
        inrank.factorize(each, ranks=3, gain=2.5 if each is model else "match")
    other.load_state_dict(model.state_dict())
    assert factored(other).gain == 2.5


def test_the_formula_is_that_of_equal_steps() -> None:
    # p ‖B‖² + q ‖A‖² with A = 0 and k rows of norm 1 in B: κ = q / k
    assert matching_gain(ROWS, COLS, 0.0, 4.0) == COLS / 4
    assert matching_gain(3, 5, 2.0, 7.0) == pytest.approx(15 / (3 * 7 + 5 * 2))
    assert matching_gain(3, 5, 0.0, 0.0) == 1


@pytest.mark.parametrize("gain", [0, -1.0, float("nan"), float("inf"), "adam", True, None])
def test_a_gain_that_is_none_is_refused_before_anything_changes(gain: Any) -> None:
    model = dense()
    with pytest.raises(ValueError, match="gain must be a positive number or 'match', got"):
        inrank.convert(model, "0", gain=gain)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="gain must be"):
        check_gain(gain)
