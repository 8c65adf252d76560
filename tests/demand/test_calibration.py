"""Covariances of inputs and output gradients, and the truncation under their metric, against float64 oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import gpt2, untouched
from helpers.dense import Small, image_batches, image_loss, llama, text_batches
from scipy.linalg import sqrtm
from torch import nn
from torch.utils.checkpoint import checkpoint

from inrank.demand.calibration import Covariances, calibrate, losses_of, mean_loss, undisturbed
from inrank.demand.weighted import DAMPING, plain, weighted

pytestmark = pytest.mark.numeric


def test_a_linear_layers_covariances_are_the_sums_over_its_rows() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    batches = [torch.randn(size, 5, 4).double() for size in (2, 6)]
    seen = calibrate({"it": model}, losses_of(model, batches, lambda one, batch: one(batch).square().sum(), None))
    rows = torch.cat([batch.flatten(0, 1) for batch in batches]).numpy()
    outputs = rows @ model.weight.detach().numpy().T + model.bias.detach().numpy()
    np.testing.assert_allclose(seen["it"].inputs.numpy(), rows.T @ rows / len(rows), rtol=1e-12)
    np.testing.assert_allclose(seen["it"].outputs.numpy(), 4 * outputs.T @ outputs / 2, rtol=1e-12)


@pytest.mark.parametrize("name", ["conv", "up", "head"])
def test_the_metric_gives_the_gradients_of_weights_where_rows_are_one(name: str) -> None:
    """Of a convolution with one patch, or of one sample, ∂L/∂W = g xᵀ: so tr C tr G is its square."""
    model = Small().double().eval()
    model.conv = nn.Conv2d(3, 12, 3, padding="valid", dilation=2).double()
    images, labels = torch.randn(1, 3, 5, 5).double(), torch.tensor([3])
    layer: Any = getattr(model, name)
    seen = calibrate({name: layer}, [lambda: image_loss(model, (images, labels))])[name]
    (gradient,) = torch.autograd.grad(image_loss(model, (images, labels)), layer.weight)
    expected = gradient.flatten(1)
    torch.testing.assert_close(seen.inputs.trace() * seen.outputs.trace(), expected.square().sum())
    torch.testing.assert_close(seen.outputs * seen.inputs.trace(), expected @ expected.mT)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {}])
def test_a_convolutions_patches_are_what_its_matrix_is_applied_to(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (3, 2), bias=False, **options).double()
    images = torch.randn(4, 2, 7, 6).double()
    seen = calibrate({"it": layer}, [lambda: layer(images).sum()])["it"]
    outputs = layer(images).movedim(1, -1).flatten(0, 2)
    matrix = layer.weight.detach().flatten(1)
    torch.testing.assert_close(matrix @ seen.inputs @ matrix.mT, (outputs.mT @ outputs).detach() / len(outputs))
    torch.testing.assert_close(seen.outputs, torch.full((3, 3), float(len(outputs))).double())


def test_calibrating_changes_nothing_at_all() -> None:
    """Gradients that accumulate, hooks on them, buffers, dropout's randomness, modes, frozen weights."""
    model = Small().double().train()
    model.norm.eval()
    model.up.weight.requires_grad_(False)
    image_loss(model, image_batches()[0]).backward()
    before = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    calls: list[Any] = []
    for value in model.parameters():
        if value.requires_grad:
            value.register_post_accumulate_grad_hook(calls.append)
    with untouched(model):
        with undisturbed(model):
            losses = losses_of(model, image_batches(), image_loss, None)
            assert mean_loss(losses) == mean_loss(losses)  # evaluation mode: no dropout
            calibrate({"conv": model.conv, "up": model.up}, losses)
        assert not any(module._forward_hooks for module in model.modules())
    assert not calls
    assert all(torch.equal(dict(model.named_parameters())[name].grad, value) for name, value in before.items())


def test_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 3).double(), torch.randn(6, 4).double()
    usual = calibrate({"it": layer}, [lambda: layer(inputs).square().sum()])["it"]
    saving = calibrate({"it": layer}, [lambda: checkpoint(layer, inputs, use_reentrant=False).square().sum()])["it"]
    torch.testing.assert_close(saving.inputs, usual.inputs)
    torch.testing.assert_close(saving.outputs, usual.outputs)


def _root(covariance: np.ndarray) -> np.ndarray:
    mean = np.trace(covariance) / len(covariance)
    return np.real(sqrtm(covariance + DAMPING * mean * np.eye(len(covariance))))


def _random_covariances(rows: int, cols: int) -> Covariances:
    generator = np.random.default_rng(3)
    left, right = generator.normal(size=(3, rows)), generator.normal(size=(50, cols)) * np.geomspace(1, 1e-3, cols)
    return Covariances(torch.tensor(right.T @ right / 50), torch.tensor(left.T @ left))


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (1, 5), (6, 6)])
def test_demands_are_the_singular_values_under_symmetric_roots(shape: tuple[int, int]) -> None:
    weight = torch.tensor(np.random.default_rng(0).normal(size=shape))
    seen = _random_covariances(*shape)
    found = weighted(weight, seen)
    out_root, in_root = _root(seen.outputs.numpy()), _root(seen.inputs.numpy())
    expected = np.linalg.svd(out_root @ weight.numpy() @ in_root)
    np.testing.assert_allclose(found.demands.numpy(), expected[1], rtol=1e-9, atol=1e-12)
    for rank in range(1, min(shape) + 1):
        left, values, right = (each.numpy() for each in found.truncated(rank))
        whole = (expected[0][:, :rank] * expected[1][:rank]) @ expected[2][:rank]
        oracle = np.linalg.inv(out_root) @ whole @ np.linalg.inv(in_root)
        np.testing.assert_allclose(left * values @ right, oracle, atol=1e-9)
        np.testing.assert_allclose(left.T @ left, np.eye(rank), atol=1e-9)
        np.testing.assert_allclose(right @ right.T, np.eye(rank), atol=1e-9)
        assert (np.diff(values) <= 1e-12).all()
    np.testing.assert_allclose(oracle, weight.numpy(), atol=1e-9)  # at full rank


def test_the_weighted_truncation_costs_less_under_its_metric_and_more_in_norm() -> None:
    weight = torch.tensor(np.random.default_rng(0).normal(size=(12, 9)))
    seen = _random_covariances(12, 9)
    out_root, in_root = _root(seen.outputs.numpy()), _root(seen.inputs.numpy())
    costs, norms = [], []
    for kind in (weighted(weight, seen), plain(weight)):
        left, values, right = kind.truncated(4)
        error = (weight - left * values @ right).numpy()
        costs.append(np.linalg.norm(out_root @ error @ in_root))
        norms.append(np.linalg.norm(error))
    assert costs[0] < 0.9 * costs[1]
    assert norms[1] < norms[0]


def test_a_layer_on_which_nothing_depends_has_no_demand_and_is_kept_by_its_own_norm() -> None:
    weight = torch.tensor(np.random.default_rng(0).normal(size=(5, 4)))
    found = weighted(weight, Covariances(torch.eye(4).double(), torch.zeros(5, 5).double()))
    assert not found.demands.any()
    left, values, right = found.truncated(4)
    torch.testing.assert_close(left * values @ right, weight)


def test_what_calibration_cannot_do_is_said() -> None:
    model = llama()
    with pytest.raises(ValueError, match="calibration holds no batch"):
        losses_of(model, [], None, None)
    with pytest.raises(TypeError, match="its batches are of type Tensor: give batch_loss"):
        losses_of(model, [torch.zeros(2)], None, None)
    with pytest.raises(ValueError, match="batch_loss needs batches"):
        losses_of(model, None, image_loss, None)
    unused = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="calibration does not reach 'unused'"):
        calibrate({"unused": unused, "head": model.lm_head}, losses_of(model, text_batches(1), None, None))
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="inputs or gradients of 'it' hold NaN or infinity"):
        calibrate({"it": layer}, [lambda: layer(torch.tensor([[float("nan"), 0.0]])).sum()])
    with pytest.raises(TypeError, match="the loss of a calibration batch must be a tensor with a gradient, got float"):
        calibrate({"it": layer}, [lambda: 1.0])


def test_gradients_of_many_tokens_survive_half_precision() -> None:
    """A thousand times smaller than those of the batches here, they would be lost in float16."""
    model = gpt2(layers=2)
    layers = {name: model.get_submodule(name) for name in ("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_proj")}
    found = []
    for half in (False, True):

        def loss(one: nn.Module, batch: Any, half: bool = half) -> torch.Tensor:
            with torch.autocast("cpu", torch.float16, enabled=half):
                return 1e-4 * one(**batch).loss

        found.append(calibrate(layers, losses_of(model, text_batches(), loss, None)))
    for name in layers:
        whole, halved = (each[name].outputs for each in found)
        assert float((whole - halved).norm() / whole.norm()) < 2e-3  # half precision itself
