"""The gradient of W itself: what it is, that nobody else sees it, and the start of Algorithm 2 from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import converted, fill, gpt2, gpt2_loss, grow, state_of, untouched
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.optim import SGD

import inrank
from inrank import InRankLinear, convert, initialize_from_gradient
from inrank.growth.dense_gradient import DenseGradient, outside_spans
from inrank.layers.model_layers import growing_layers_of

pytestmark = pytest.mark.numeric


def batch(seed: int, width: int = 14) -> Tensor:
    return torch.randn(8, width, generator=torch.Generator().manual_seed(seed)).double()


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    loss: Tensor = (model(batch(seed)) - 1).square().mean()
    return loss


def true_gradients(model: nn.Sequential, seeds: list[int]) -> dict[str, Tensor]:
    """By autograd, of dense weights that are leaves of their own, summed over batches."""
    weights = {name: layer.weight.detach().requires_grad_(True) for name, layer in growing_layers_of(model).items()}
    total: Any = 0
    for seed in seeds:
        hidden = batch(seed)
        for place, module in enumerate(model):
            inside = isinstance(module, InRankLinear)
            hidden = linear(hidden, weights[str(place)], module.bias) if inside else module(hidden)
        total = total + (hidden - 1).square().mean()
    return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))


def test_the_first_factors_are_singular_vectors_of_the_first_gradient() -> None:
    model = converted(14, 20, 9, rank=2, buffer_rank=2, gain=1)
    for layer in (model[0], model[2]):
        with torch.no_grad():
            layer.U.zero_()
    expected = true_gradients(model, [0])
    assert initialize_from_gradient(model, lambda: loss_of(model).backward(), scale=0.1) == ["0", "2"]
    for name, gradient in expected.items():
        layer = model.get_submodule(name)
        left, values, right = np.linalg.svd(gradient.numpy())
        U, V = layer.U.detach().numpy()[:, :4], layer.V.detach().numpy()[:4]
        # U V = −ε² Σ u vᵀ over the leading r + b, whatever signs the two decompositions chose
        np.testing.assert_allclose(U @ V, -0.01 * left[:, :4] @ right[:4], atol=1e-10)
        np.testing.assert_allclose(U.T @ U, 0.01 * np.eye(4), atol=1e-12)
        np.testing.assert_allclose(V @ V.T, 0.01 * np.eye(4), atol=1e-12)
        np.testing.assert_allclose(U.T @ gradient.numpy() @ V.T, -0.01 * np.diag(values[:4]), atol=1e-12)
        assert not layer.U[:, 4:].any()
        assert not layer.V[4:].any()


def test_the_update_points_downhill() -> None:
    model = converted(14, 20, 9)
    with torch.no_grad():
        model[0].U.zero_(), model[2].U.zero_()
    start = loss_of(model).item()
    gradients = true_gradients(model, [0])
    initialize_from_gradient(model, lambda: loss_of(model).backward(), scale=1e-3)
    slope = 0.0
    for name, gradient in gradients.items():
        layer = model.get_submodule(name)
        slope += (gradient * (layer.weight - layer.initial_weight)).sum().item()
    assert slope < 0
    assert loss_of(model).item() - start == pytest.approx(slope, rel=1e-3)  # to first order: ε² = 1e-6
    assert loss_of(model).item() < start


def test_several_backward_calls_add_up_and_any_factors_do() -> None:
    model = converted(14, 20, 9)  # U V is not zero: the gradient is that at W0 + U V
    expected = true_gradients(model, [0, 1, 2])

    def backward() -> None:
        loss_of(model, 0).backward()
        (loss_of(model, 1) + loss_of(model, 2)).backward()

    initialize_from_gradient(model, backward, scale=0.1)
    for name, gradient in expected.items():
        left, _, right = np.linalg.svd(gradient.numpy())
        layer = model.get_submodule(name)
        product = (layer.gain * (layer.U @ layer.V)).detach().numpy()
        np.testing.assert_allclose(product, -0.01 * left[:, :4] @ right[:4], atol=1e-10)


def test_a_gpt2_starts_from_its_language_model_loss() -> None:
    model = gpt2(layers=2)
    convert(model, buffer_rank=4)
    before = gpt2_loss(model).item()
    names = initialize_from_gradient(model, lambda: gpt2_loss(model).backward(), scale=0.3)
    assert len(names) == 4
    assert gpt2_loss(model).item() < before


def test_convolutions_start_from_the_gradient_of_their_matrix_view() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3)).double()
    images = torch.randn(3, 2, 7, 7).double()
    gradient = torch.autograd.grad(model(images).square().mean(), model[0].weight)[0].flatten(1).numpy()
    convert(model, "0", kinds=["Conv2d"], initial_rank=1, buffer_rank=2)
    initialize_from_gradient(model, lambda: model(images).square().mean().backward(), scale=1.0)
    left, _, right = np.linalg.svd(gradient)
    np.testing.assert_allclose(
        (model[0].weight - model[0].initial_weight).detach().numpy(), -left[:, :3] @ right[:3], atol=1e-9
    )


def test_other_gradients_frozen_w0_modes_and_random_state_are_as_before() -> None:
    model = converted(14, 20, 9)
    loss_of(model, 5).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    copies = {name: None if value is None else value.clone() for name, value in gradients.items()}
    biases = [model[0].bias.detach().clone(), model[2].initial_weight.clone()]
    random = torch.get_rng_state()
    initialize_from_gradient(model, lambda: loss_of(model).backward())
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.named_parameters():
        assert value.grad is gradients[name]
        assert value.grad is None or torch.equal(value.grad, copies[name])
        assert value.requires_grad == ("initial" not in name)
    assert torch.equal(model[0].bias, biases[0])
    assert torch.equal(model[2].initial_weight, biases[1])


def _nowhere(model: nn.Module) -> None: ...


def _first_layer_only(model: Any) -> None:
    model[0](batch(0)).square().mean().backward()


def _overflow(model: nn.Module) -> None:
    (loss_of(model) * float("inf")).backward()


def _fails(model: nn.Module) -> None:
    loss_of(model).backward()
    raise ZeroDivisionError("no batch")


REFUSED: list[tuple[Callable[[nn.Module], Any], type[Exception], str]] = [
    (_nowhere, ValueError, "gradient of '0' was not computed: backward"),
    (_first_layer_only, ValueError, "gradient of '2' was not computed: backward"),
    (_overflow, ValueError, "gradient of '0' is not finite"),
    (_fails, ZeroDivisionError, "no batch"),
]


@pytest.mark.parametrize(("backward", "error", "message"), REFUSED)
def test_a_backward_that_gives_no_gradient_changes_nothing(backward: Any, error: Any, message: str) -> None:
    model = converted(14, 20, 9)
    loss_of(model, 3).backward()
    with untouched(model), pytest.raises(error, match=message):
        initialize_from_gradient(model, lambda: backward(model))
    assert not any(value._post_accumulate_grad_hooks for value in (model[0].initial_weight, model[2].initial_weight))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "small"])
def test_a_scale_out_of_range_is_named(scale: Any) -> None:
    model = converted(14, 9)
    with untouched(model), pytest.raises(ValueError, match=f"scale must be a positive number, got {scale!r}"):
        initialize_from_gradient(model, lambda: None, scale=scale)


def test_a_model_without_w0_or_not_converted_is_refused() -> None:
    model: nn.Module = nn.Sequential(nn.Linear(3, 4))
    with untouched(model), pytest.raises(ValueError, match=r"no InRankLinear layer: call inrank.convert first"):
        initialize_from_gradient(model, lambda: None)
    model = converted(14, 9, initialization="kaiming")
    with untouched(model), pytest.raises(ValueError, match=r"'0' has no W0 \(initialization='kaiming'\)"):
        initialize_from_gradient(model, lambda: None)


def test_the_sums_are_autograds_and_no_optimizer_sees_them() -> None:
    model = converted(14, 20, 9)
    layers = growing_layers_of(model)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)  # W0 is among the parameters
    frozen = {name: layer.initial_weight.clone() for name, layer in layers.items()}
    gradients = DenseGradient(layers)
    expected: dict[str, Tensor] = {}
    with gradients:
        assert gradients.is_open
        for step in range(3):
            optimizer.zero_grad()
            for seed in (2 * step, 2 * step + 1):
                for name, gradient in true_gradients(model, [seed]).items():
                    expected[name] = expected[name] + gradient if name in expected else gradient
                loss_of(model, seed).backward()
            assert all(layer.initial_weight.grad is None for layer in layers.values())
            optimizer.step()
    found = gradients.pop()
    assert sorted(found) == ["0", "2"]
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
        assert torch.equal(layers[name].initial_weight, frozen[name])
        assert not layers[name].initial_weight.requires_grad
    assert gradients.pop() == {}
    assert not gradients.is_open


def test_taking_the_gradient_changes_no_other() -> None:
    found = []
    for watched in (False, True):
        model = converted(14, 20, 9)
        gradients = DenseGradient(growing_layers_of(model))
        if watched:
            gradients.open()
        loss_of(model).backward()
        found.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None)
        assert gradient is None or torch.equal(gradient, found[1][name])


def test_half_precision_gradients_are_summed_in_float32() -> None:
    model = converted(14, 9, dtype=torch.bfloat16)
    gradients = DenseGradient(growing_layers_of(model))
    with gradients:
        for _ in range(3):
            (model(batch(0).bfloat16()) - 1).square().mean().backward()
    total = gradients.pop()["0"]
    assert total.dtype == torch.float32
    with gradients:
        (model(batch(0).bfloat16()) - 1).square().mean().backward()
    assert torch.equal(total, 3 * gradients.pop()["0"])


def test_opening_anew_forgets_and_states_travel() -> None:
    model = converted(14, 9)
    one = DenseGradient(growing_layers_of(model))
    one.open()
    loss_of(model, 0).backward()
    one.open()
    assert one.pop() == {}
    loss_of(model, 1).backward()
    state = one.state_dict()
    other = DenseGradient(growing_layers_of(model))
    other.load_state_dict(state)
    torch.testing.assert_close(other.pop()["0"], true_gradients(model, [1])["0"])
    loss_of(model, 2).backward()
    torch.testing.assert_close(state["0"], true_gradients(model, [1])["0"])
    one.close()
    one.close()
    inrank.factorize(model)
    one.close()


def test_what_lies_outside_the_spans_is_out_of_reach() -> None:
    model = converted(14, 20, rank=2, buffer_rank=1)
    U, V = (factor.detach() for factor in model[0].update_factors())
    gradient = torch.randn(20, 14).double()
    outside = outside_spans(gradient, U, V)
    assert (U.mT @ outside).abs().max() < 1e-12
    assert (outside @ V.mT).abs().max() < 1e-12
    left, right = np.linalg.qr(U.numpy())[0], np.linalg.qr(V.mT.numpy())[0]
    expected = (np.eye(20) - left @ left.T) @ gradient.numpy() @ (np.eye(14) - right @ right.T)
    np.testing.assert_allclose(outside.numpy(), expected, atol=1e-12)
    again = outside_spans(outside, U, V)
    torch.testing.assert_close(again, outside)


def test_zero_columns_span_nothing() -> None:
    gradient = torch.randn(20, 14).double()
    U, V = torch.randn(20, 3).double(), torch.randn(3, 14).double()
    zero_U, zero_V = torch.cat([U, torch.zeros(20, 2)], 1), torch.cat([V, V[:1] * 2, torch.zeros(1, 14)])
    torch.testing.assert_close(outside_spans(gradient, zero_U, zero_V), outside_spans(gradient, U, V))
    torch.testing.assert_close(outside_spans(gradient, 0 * U, 0 * V), gradient)


def test_gradients_reach_a_layer_through_a_growth() -> None:
    model = converted(14, 9, rank=1, max_rank=6)
    with DenseGradient(growing_layers_of(model)) as gradients:
        loss = loss_of(model)
        loss.backward()
        grow(model[0], 4)
        fill(model[0])
        expected = true_gradients(model, [1])["0"]
        gradients.pop()
        loss_of(model, 1).backward()
        torch.testing.assert_close(gradients.pop()["0"], expected)
        assert loss.requires_grad  # the old graph is still held
    assert "0.initial_weight" in state_of(model)
