"""W0 + U V: its gradients are those of the dense form, growth changes no output, unused columns stay zero."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers.active import converted, fill, grow, train
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear
from torch.optim import SGD, Adadelta, Adafactor, Adam, AdamW, Optimizer, RMSprop
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inrank import InRankLinear, LowRankLinear, convert, factorize

pytestmark = pytest.mark.numeric

CONVOLUTION = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def layer_of(kind: str, bias: bool = True, **options: Any) -> tuple[InRankLinear, Tensor]:
    """A converted layer in float64 with values in U, and inputs for it."""
    layer: nn.Module
    if kind == "Conv1D":
        from transformers.pytorch_utils import Conv1D

        layer = Conv1D(9, 14)
    elif kind == "Conv2d":
        layer = nn.Conv2d(3, 9, (2, 3), bias=bias, **CONVOLUTION)  # type: ignore[arg-type]
    else:
        layer = nn.Linear(14, 9, bias=bias)
    model = nn.Sequential(layer.double())
    convert(model, "0", buffer_rank=2, kinds=[kind], max_rank=6, **options)
    inputs = torch.randn(4, 3, 8, 9) if kind == "Conv2d" else torch.randn(5, 3, 14)
    return fill(model[0], scale=1.0), inputs.double()


def dense_form(layer: InRankLinear, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The ordinary layer's own function with the dense weight."""
    if layer.origin != "Conv2d":
        return linear(inputs, weight, bias)
    return conv2d(inputs, weight.view(9, 3, 2, 3), bias, **CONVOLUTION)  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", [1, "match"])
@pytest.mark.parametrize("start", ["zero", "kaiming"])
@pytest.mark.parametrize(("kind", "bias"), [("Linear", True), ("Linear", False), ("Conv1D", True), ("Conv2d", False)])
def test_output_and_gradients_are_those_of_the_dense_form(kind: str, bias: bool, start: str, gain: Any) -> None:
    layer, inputs = layer_of(kind, bias, initialization=start, gain=gain)
    assert (layer.gain == 1) == (gain == 1)
    inputs.requires_grad_(True)
    output = layer(inputs)
    wanted = torch.randn_like(output)
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(output, [inputs, *parameters], wanted)
    product = layer.gain * (layer.U @ layer.V)
    weight = product if layer.initial_weight is None else layer.initial_weight + product
    expected_output = dense_form(layer, inputs, weight, layer.bias)
    expected = torch.autograd.grad(expected_output, [inputs, *parameters], wanted)
    assert len(parameters) == (3 if bias else 2)
    torch.testing.assert_close(output, expected_output)
    for one, two in zip(found, expected, strict=True):
        if one.shape in (layer.U.shape, layer.V.shape):  # the dense form knows no unused columns: U = 0 there and V = 0
            assert two.any()
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_low_rank_output_and_gradients_are_those_of_the_product(gain: float) -> None:
    for kind in ("Linear", "Conv1D", "Conv2d"):
        layer, inputs = layer_of(kind)
        low = LowRankLinear(
            torch.randn(9, 3).double(),
            torch.randn(3, layer.cols).double(),
            layer.bias,
            gain=gain,
            origin=layer.origin,
            convolution=layer.convolution,
        )
        output = low(inputs)
        wanted = torch.randn_like(output)
        found = torch.autograd.grad(output, list(low.parameters()), wanted)
        expected_output = dense_form(layer, inputs, gain * (low.U @ low.V), low.bias)
        torch.testing.assert_close(output, expected_output)
        expected = torch.autograd.grad(expected_output, list(low.parameters()), wanted)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Conv2d"])
def test_growth_changes_no_output(kind: str) -> None:
    layer, inputs = layer_of(kind)
    single = copy.deepcopy(layer).float()
    for rank in (3, 6):
        before, before_single = layer(inputs), single(inputs.float())
        places = grow(layer, rank)
        grow(single, rank)
        assert layer.rank == rank
        assert places == ({3: 4, 6: 5}[rank], min(rank + 2, 8))
        scale = before.abs().max()
        # exact but for the order in which a wider product sums its zeros
        assert (layer(inputs) - before).abs().max() <= 1e-15 * scale
        assert (single(inputs.float()) - before_single).abs().max() <= 1e-6 * scale
        assert (layer.V[layer.used - 1] != 0).all()
        fill(layer), fill(single)


def test_new_columns_learn_at_once() -> None:
    model = converted(14, 9, rank=1, max_rank=6)
    optimizer = SGD(model.parameters(), lr=0.5)
    first, last = grow(model[0], 4)
    assert (first, last) == (3, 6)
    train(model, optimizer, 1)
    assert (model[0].U[:, first:last].abs().amax(0) > 0).all()
    assert not model[0].U[:, last:].any()


def _muon(model: nn.Module) -> Optimizer:
    return torch.optim.Muon([p for p in model.parameters() if p.ndim == 2 and p.requires_grad], lr=0.01)


def _adafactor(model: nn.Module) -> Optimizer:
    return Adafactor([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda model: AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    "adam, fused": lambda model: Adam(model.parameters(), lr=0.01, weight_decay=0.1, fused=True),
    "adam, amsgrad": lambda model: Adam(model.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True),
    "adadelta": lambda model: Adadelta(model.parameters(), weight_decay=0.1),
    "rmsprop": lambda model: RMSprop(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adafactor": _adafactor,
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = _muon


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
@pytest.mark.usefixtures("one_thread")
def test_unused_columns_stay_exactly_zero_and_used_ones_all_train(make: Callable[[nn.Module], Optimizer]) -> None:
    model = converted(14, 20, 9, rank=1, max_rank=6, dtype=torch.float32)
    optimizer = make(model)
    start = [layer.U.detach().clone() for layer in model if isinstance(layer, InRankLinear)]
    frozen = [layer.initial_weight.clone() for layer in model if isinstance(layer, InRankLinear)]  # type: ignore[union-attr]
    for part in range(2):
        train(model, optimizer, 50, first=50 * part)
        for layer in (model[0], model[2]):
            assert layer.used < layer.capacity
            assert not layer.U[:, layer.used :].any()
            assert not layer.V[layer.used :].any()
            assert (layer.U[:, : layer.used].abs().amax(0) > 0).all()
        grow(model[0], 3)
        grow(model[2], 4)
    for layer, U, W0 in zip((model[0], model[2]), start, frozen, strict=True):
        assert (layer.U - U)[:, :3].abs().amin() > 0
        assert torch.equal(layer.initial_weight, W0)


@pytest.mark.parametrize("training", [True, False])
def test_an_averaged_copy_sees_all_columns_that_grow(training: bool) -> None:
    """Its output is that of the dense weights W0 + κ Ū V̄, with the factors averaged by hand."""
    model = converted(14, 9, rank=1, max_rank=6)
    layer = model[0]
    optimizer = SGD(model.parameters(), lr=0.3)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8)).train(training)
    mean: dict[str, Tensor] = {}

    def update() -> None:
        averaged.update_parameters(model)
        for name, value in model.named_parameters():
            mean[name] = 0.8 * mean[name] + 0.2 * value.detach() if name in mean else value.detach().clone()

    for rank in (1, 3, 6):
        if rank > 1:
            grow(layer, rank)
        train(model, optimizer, 5, first=5 * rank, after=update)
    inputs = torch.randn(6, 14).double()
    weight = mean["0.initial_weight"] + layer.gain * (mean["0.U"] @ mean["0.V"])
    beyond = mean["0.U"][:, 3:] @ mean["0.V"][3:]
    assert beyond.norm() > 1e-6  # what a copy with the columns of its birth would miss
    torch.testing.assert_close(averaged(inputs), linear(inputs, weight, mean["0.bias"]))


def test_a_copy_keeps_its_own_rank_and_grows_by_itself() -> None:
    model = converted(14, 9, rank=1, max_rank=6)
    other = copy.deepcopy(model)
    inputs = torch.randn(6, 14).double()
    grow(model[0], 5)
    fill(model[0])
    assert other[0].rank == 1
    assert other[0].used == 3
    torch.testing.assert_close(other(inputs), linear(inputs, other[0].weight, other[0].bias))
    train(other, AdamW(other.parameters(), lr=0.01), 10)
    assert other[0].rank == 1
    assert not other[0].U[:, 3:].any()
    assert not other[0].V[3:].any()
    before = other(inputs)
    assert grow(other[0], 3) == (3, 5)
    assert model[0].rank == 5
    torch.testing.assert_close(other(inputs), before)
    train(other, SGD(other.parameters(), lr=0.1), 1)
    assert (other[0].U[:, 3:5].abs().amax(0) > 0).all()


def test_a_functional_call_uses_the_parameters_that_it_is_given() -> None:
    layer, inputs = layer_of("Linear")
    given = {name: torch.randn_like(value) for name, value in layer.named_parameters()}
    U, V = given["U"][:, : layer.used], given["V"][: layer.used]
    expected = linear(inputs, given["initial_weight"] + layer.gain * (U @ V), given["bias"])
    torch.testing.assert_close(functional_call(layer, given, (inputs,)), expected)


def test_the_update_is_shown_as_far_as_it_is_used() -> None:
    for gain in (1, 2.5):
        layer, _ = layer_of("Linear", gain=gain)
        U, V = layer.update_factors()
        assert (U.shape, V.shape) == ((9, 4), (4, 14))
        torch.testing.assert_close(U @ V, gain * (layer.U @ layer.V))
        torch.testing.assert_close(layer.weight, layer.initial_weight + gain * (layer.U @ layer.V))
        assert [factor.data_ptr() for factor in layer.used_factors()] == [layer.U.data_ptr(), layer.V.data_ptr()]
        assert (layer.rows, layer.cols, layer.capacity) == (9, 14, 8)
        assert repr(layer) == f"InRankLinear(9×14, rank=2, capacity=8, gain={gain}, from Linear)"


def test_becoming_low_rank_keeps_the_object_and_its_hooks() -> None:
    model = converted(14, 9)
    layer, calls = model[0], []
    layer.register_forward_hook(lambda *_: calls.append(1))
    factorize(model, gain=1)
    assert model[0] is layer
    assert type(layer) is LowRankLinear
    model(torch.randn(2, 14).double())
    assert calls == [1]
    assert [name for name, _ in layer.named_parameters()] == ["bias", "U", "V"]
    assert repr(layer) == "LowRankLinear(9×14, rank=2, capacity=2, gain=1, from Linear)"
    assert not hasattr(layer, "buffer_rank")


def loaded(into: nn.Module, state: dict[str, Any]) -> nn.Module:
    into.load_state_dict(state)
    return into


@pytest.mark.parametrize(
    "options", [{}, {"initial_rank": 4}, {"max_rank": 3}, {"buffer_rank": 4}, {"buffer_rank": 1}, {"gain": 1}]
)
def test_a_state_dict_loads_whatever_the_ranks_and_goes_on_growing_alike(options: dict[str, Any]) -> None:
    model = converted(14, 9, rank=1, max_rank=6)
    train(model, SGD(model.parameters(), lr=0.1), 3)
    grow(model[0], 4)
    train(model, SGD(model.parameters(), lr=0.1), 3)
    other = nn.Sequential(nn.Linear(14, 9)).double()
    convert(other, "0", **{"buffer_rank": 2} | options)
    parameters = dict(other.named_parameters())
    loaded(other, model.state_dict())
    assert dict(other.named_parameters()).keys() == parameters.keys()
    assert all(parameters[name] is value for name, value in other.named_parameters())
    for name in ("rank", "used", "capacity", "buffer_rank", "max_rank", "gain"):
        assert getattr(other[0], name) == getattr(model[0], name), name
    inputs = torch.randn(3, 14).double()
    assert torch.equal(other(inputs), model(inputs))
    rows = torch.randn(2, 14)
    assert other[0].grow(6, None, rows) == model[0].grow(6, None, rows) == (6, 8)
    for each in (model, other):
        train(each, SGD(each.parameters(), lr=0.1), 2)
    assert torch.equal(other(inputs), model(inputs))


def test_a_factorized_state_dict_loads_whatever_the_rank() -> None:
    model, other = converted(14, 9, rank=4), converted(14, 9, rank=1)
    factorize(model)
    factorize(other)
    loaded(other, model.state_dict())
    assert other[0].rank == 4
    inputs = torch.randn(3, 14).double()
    assert torch.equal(other(inputs), model(inputs))


def test_state_dicts_of_other_models_are_refused() -> None:
    def plain(*sizes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(*sizes)).double()

    def low(*sizes: int, **options: Any) -> nn.Module:
        model = converted(*sizes, **options)
        factorize(model)
        return model

    not_converted = re.escape("0.weight is (9, 14): the state dict is of a model that is not converted")
    tiny = re.escape("0.weight is (1, 2): the state dict is of a model that is not converted")
    cases: list[tuple[nn.Module, nn.Module, str]] = [
        (converted(14, 9), plain(14, 9), not_converted),
        (low(14, 9), plain(14, 9), not_converted),
        (converted(2, 1, rank=1), plain(2, 1), tiny),
        (plain(14, 9), converted(14, 9), "size mismatch for 0.weight"),
        (plain(14, 9), low(14, 9), "size mismatch for 0.weight"),
        (converted(14, 9), low(14, 9), "0.weight: one of the two is factorized"),
        (low(14, 9), converted(14, 9), "0.weight: one of the two is factorized"),
        (converted(14, 9, initialization="kaiming"), low(14, 9), "0.weight: one of the two is factorized"),
        (converted(14, 9), converted(15, 9), "size mismatch for 0.V"),
        (low(14, 9), low(14, 8, rank=3), "size mismatch for 0.U"),
        (converted(14, 9), converted(14, 9, initialization="kaiming"), "Missing key.*0.initial_weight"),
        (converted(14, 9, initialization="kaiming"), converted(14, 9), "Unexpected key.*0.initial_weight"),
    ]
    for model, source, message in cases:
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(source.state_dict())
        with pytest.raises(RuntimeError, match=message) if "key" not in message else nullcontext():
            model.load_state_dict(source.state_dict(), strict=False)
    without = {name: value for name, value in converted(14, 9).state_dict().items() if name != "0.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*0.weight"):
        converted(14, 9).load_state_dict(without)


def test_a_state_dict_of_an_averaged_copy_brings_the_rank_that_its_columns_have_grown_to() -> None:
    model = nn.Sequential(nn.Linear(16, 12))
    convert(model, "0", buffer_rank=2)
    average = AveragedModel(model)
    layer: Any = model[0]
    layer.grow(5, None, torch.randn(3, 16))
    average.update_parameters(model)
    fresh = nn.Sequential(nn.Linear(16, 12))
    convert(fresh, "0", buffer_rank=2)
    fresh.load_state_dict(average.module.state_dict())
    restored: Any = fresh[0]
    assert (restored.rank, restored.used) == (5, 7)
