"""Algorithm 3: W0 + U V becomes its best approximation U* V* of its rank, and the optimizer goes on with it."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracles
from helpers.active import converted, gpt2, gpt2_loss, grow, train, untouched
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from inrank import InRankLinear, LowRankLinear, RankController, convert, factorize, merge, needs_gradient

pytestmark = pytest.mark.numeric


def trained(steps: int = 5, **options: Any) -> tuple[nn.Sequential, AdamW]:
    """Two converted layers after a few steps, their optimizer with two groups of which one holds a W0 too."""
    model = converted(14, 20, 9, rank=3, **options)
    first = [model[0].V, model[0].bias, model[0].U]
    rest = [value for value in model.parameters() if all(value is not known for known in first)]
    optimizer = AdamW([{"params": first, "lr": 0.01}, {"params": rest, "weight_decay": 0.3}], lr=0.02)
    train(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize("gain", [1, 2.5, "match"])
def test_the_factors_are_the_truncated_svd_with_the_root_in_both(gain: Any) -> None:
    model, _ = trained()
    weights = {place: model[place].weight.detach().numpy() for place in (0, 2)}
    report = factorize(model, gain=gain)
    for entry, (place, weight) in zip(report.layers, weights.items(), strict=True):
        layer = model[place]
        assert layer.gain == gain or gain == "match"
        U, V = (np.sqrt(layer.gain) * factor.detach().numpy() for factor in (layer.U, layer.V))
        values = oracles.singular_values(weight)
        error = np.linalg.norm(weight - U @ V)
        np.testing.assert_allclose(error**2, np.sum(values[3:] ** 2), rtol=1e-12)  # Eckart–Young
        np.testing.assert_allclose(U.T @ U, np.diag(values[:3]), atol=1e-12)
        np.testing.assert_allclose(V @ V.T, np.diag(values[:3]), atol=1e-12)
        left, _, right = np.linalg.svd(weight)
        np.testing.assert_allclose(U @ V, (left[:, :3] * values[:3]) @ right[:3], atol=1e-12)
        np.testing.assert_allclose(entry.energy_kept, np.sum(values[:3] ** 2) / np.sum(values**2))
        assert (entry.name, entry.shape, entry.rank) == (str(place), weight.shape, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_costs_its_rounding_only(dtype: torch.dtype) -> None:
    model = converted(14, 9, dtype=dtype)
    weight = (model[0].initial_weight.double() + model[0].gain * model[0].U.double() @ model[0].V.double()).detach()
    factorize(model)
    assert model[0].U.dtype == dtype
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    error = (model[0].gain * model[0].U.double() @ model[0].V.double() - best).norm() / best.norm()
    assert error <= 4 * torch.finfo(dtype).eps


def test_the_reported_loss_jump_is_the_measured_one() -> None:
    model = gpt2(layers=2).double()
    convert(model, buffer_rank=4)
    optimizer = AdamW(model.parameters(), lr=0.01)
    for seed in range(5):
        optimizer.zero_grad()
        gpt2_loss(model, seed).backward()
        optimizer.step()
    before = gpt2_loss(model).item()
    asked: list[bool] = []

    def loss() -> torch.Tensor:
        asked.append(torch.is_grad_enabled())
        return gpt2_loss(model)

    report = factorize(model, optimizer, loss=loss)
    after = gpt2_loss(model).item()
    assert (report.loss_before, report.loss_after) == (before, after)
    assert report.loss_jump == after - before
    assert abs(after - before) > 1e-4
    assert asked == [False, False]
    lines = str(report).splitlines()
    assert len(lines) == 6
    assert re.fullmatch(r"transformer\.h\.0\.mlp\.c_fc +64×16 +2 +\d+\.\d%", lines[1])
    assert lines[-1] == f"loss {before:.4f} -> {after:.4f} ({after - before:+.4f})"


def test_without_a_loss_none_is_reported() -> None:
    report = factorize(converted(14, 9))
    assert report.loss_before is report.loss_after is report.loss_jump is None
    assert "loss" not in str(report)


def test_the_optimizer_holds_the_new_factors_in_the_old_places_and_nothing_dead() -> None:
    model, optimizer = trained()
    biases = [model[0].bias, model[2].bias]
    kept = {bias: {name: value.clone() for name, value in optimizer.state[bias].items()} for bias in biases}
    assert any(value is model[0].initial_weight for group in optimizer.param_groups for value in group["params"])
    factorize(model, optimizer)
    first, rest = (group["params"] for group in optimizer.param_groups)
    names = {id(value): name for name, value in model.named_parameters()}
    assert [names[id(value)] for value in first] == ["0.V", "0.bias", "0.U"]
    assert sorted(names[id(value)] for value in rest) == ["2.U", "2.V", "2.bias"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    assert list(optimizer.state) == biases  # the factors begin anew
    for bias in biases:
        assert all(torch.equal(optimizer.state[bias][name], value) for name, value in kept[bias].items())
    assert not any("initial_weight" in name for name in model.state_dict())
    assert [type(module) for module in (model[0], model[2])] == [LowRankLinear] * 2


def test_training_goes_on_as_adam_would_begin_it() -> None:
    """Every entry of the factors moves, the first step by the learning rate as bias correction has it."""
    model, optimizer = trained()
    factorize(model, optimizer)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    train(model, optimizer, 1)
    for name in ("0.U", "0.V", "2.U", "2.V"):
        moved = (dict(model.named_parameters())[name] - before[name]).abs()
        lr = 0.01 if name.startswith("0") else 0.02
        torch.testing.assert_close(moved, torch.full_like(moved, lr), rtol=1e-2, atol=0)  # ε against small gradients
    losses = []
    for step in range(30):
        train(model, optimizer, 1, first=step)
        losses.append((model(torch.ones(1, 14).double()) - 1).square().mean().item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("gradient_steps", [1, 8])  # with 1, the gradient's average is to be opened anew afterwards
def test_a_scheduler_and_a_controller_go_on(gradient_steps: int) -> None:
    model, optimizer = trained()
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    rule = needs_gradient(lambda seen: seen.rank + 1)
    controller = RankController(model, optimizer, every=3, rule=rule, gradient_steps=gradient_steps).attach()
    for step in range(12):
        train(model, optimizer, 1)
        scheduler.step()
        if step == 3:
            factorize(model, optimizer)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.02 * 0.9**12)
    assert [growth.step for growth in controller.history] == [3, 3]
    assert controller.step_count == 12
    assert controller.ranks == {}
    assert controller.check() == []


def test_module_objects_biases_and_mode_stay() -> None:
    model = converted(14, 20, 9).eval()
    modules, biases = list(model), [model[0].bias, model[2].bias]
    factorize(model)
    assert all(one is two for one, two in zip(model, modules, strict=True))
    assert [model[0].bias, model[2].bias] == biases
    assert not any(module.training for module in model.modules())


def test_the_random_state_is_left_alone() -> None:
    model = converted(14, 9)
    before = torch.get_rng_state()
    factorize(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_are_the_layers_own_or_as_asked_for() -> None:
    def ranks(wanted: Any) -> list[int]:
        model = converted(14, 20, 9, rank=2, max_rank=6)
        grow(model[2], 4)
        report = factorize(model, ranks=wanted)
        assert [layer.rank for layer in report.layers] == [model[0].rank, model[2].rank]
        return [layer.rank for layer in report.layers]

    assert ranks(None) == [2, 4]
    assert ranks(5) == [5, 5]
    assert ranks({"2": 9}) == [2, 9]
    assert ranks({"0": 14, "2": 1}) == [14, 1]


def test_at_full_rank_nothing_is_lost() -> None:
    model = converted(14, 20, 9)
    inputs = torch.randn(4, 14).double()
    before = model(inputs)
    report = factorize(model, ranks={"0": 14, "2": 9})
    torch.testing.assert_close(model(inputs), before)
    assert [layer.energy_kept for layer in report.layers] == pytest.approx([1.0, 1.0])


def test_a_zero_weight_and_layers_without_w0_factorize() -> None:
    model = converted(14, 9, initialization="kaiming")
    weight = model[0].weight.detach()
    report = factorize(model, ranks=4)
    torch.testing.assert_close(model[0].weight, weight)  # U V had rank + b = 4 columns
    assert report.layers[0].energy_kept == pytest.approx(1.0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    nn.init.zeros_(model[0].weight)
    convert(model, "0", initial_rank=1)
    assert factorize(model).layers[0].energy_kept == 1.0
    assert not model[0].weight.any()


def test_the_config_says_the_new_ranks() -> None:
    model = gpt2()
    convert(model)
    factorize(model, ranks=3)
    layers = model.config.inrank["layers"]
    assert layers == {f"transformer.h.0.mlp.{name}": {"rank": 3} for name in ("c_fc", "c_proj")}


BAD_RANKS: list[tuple[Any, str]] = [
    (10, r"rank must be in 1\.\.9 for '2' \(9×20\), got 10"),
    (0, r"rank must be in 1\.\.14 for '0' \(20×14\), got 0"),
    ({"2": 10}, r"rank must be in 1\.\.9 for '2' \(9×20\), got 10"),
    ({"0": 2.5}, "rank must be in .* for '0' .*, got 2.5"),
    (True, "rank must be in .*, got True"),
    ({"1": 2}, "ranks names '1', which is no converted layer"),
]


@pytest.mark.parametrize(("ranks", "message"), BAD_RANKS)
def test_ranks_out_of_range_change_nothing(ranks: Any, message: str) -> None:
    model, optimizer = trained()
    with untouched(model, optimizer), pytest.raises(ValueError, match=message):
        factorize(model, optimizer, ranks=ranks)


def test_factorizing_before_converting_or_twice_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with untouched(model), pytest.raises(ValueError, match=r"no InRankLinear layer to factorize: call inrank.convert"):
        factorize(model)
    model, optimizer = trained()
    factorize(model, optimizer)
    with untouched(model, optimizer), pytest.raises(ValueError, match="it is factorized already"):
        factorize(model, optimizer)
    merge(model)
    with untouched(model), pytest.raises(ValueError, match=r"call inrank.convert first"):
        factorize(model)


def test_an_optimizer_of_other_parameters_changes_nothing() -> None:
    model, _ = trained()
    foreign = AdamW(nn.Linear(3, 4).parameters())
    with untouched(model, foreign), pytest.raises(ValueError, match=r"optimizer does not hold '0\.U': make the optim"):
        factorize(model, foreign)
    partly = SGD([value for name, value in model.named_parameters() if name != "2.V"])
    with untouched(model, partly), pytest.raises(ValueError, match=r"optimizer does not hold '2\.V'"):
        factorize(model, partly)
    with untouched(model), pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got dict"):
        factorize(model, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_changes_nothing(bad: float) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        model[2].initial_weight[0, 0] = bad
    with untouched(model, optimizer), pytest.raises(ValueError, match="the weight of '2' holds NaN or infinity"):
        factorize(model, optimizer)


def test_a_loss_that_fails_before_the_change_changes_nothing() -> None:
    model, optimizer = trained()

    def loss() -> float:
        raise ZeroDivisionError

    with untouched(model, optimizer), pytest.raises(ZeroDivisionError):
        factorize(model, optimizer, loss=loss)


class _Parallel(nn.parallel.DistributedDataParallel):
    """Of the class, without the processes; the tests of distributed training have the real one."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


def test_a_model_in_ddp_is_refused() -> None:
    model, optimizer = trained()
    with untouched(model, optimizer), pytest.raises(ValueError, match=r"factorize model.module and wrap it anew"):
        factorize(_Parallel(model), optimizer)
    factorize(_Parallel(model).module, optimizer)
    assert type(model[0]) is LowRankLinear


def test_the_optimizer_inside_accelerates_wrapper_is_found() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, optimizer = trained()
    factorize(model, accelerate.Accelerator(cpu=True).prepare(optimizer))
    assert any(value is model[0].U for value in optimizer.param_groups[0]["params"])


def test_only_what_still_grows_is_factorized() -> None:
    model = gpt2(layers=2).double()
    convert(model, "*.h.0.mlp.*")
    factorize(model)
    weight = model.transformer.h[0].mlp.c_fc.weight.detach()
    convert(model, "*.h.1.mlp.*")
    report = factorize(model)
    assert [layer.name for layer in report.layers] == [f"transformer.h.1.mlp.{name}" for name in ("c_fc", "c_proj")]
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, weight)
    assert not any(isinstance(module, InRankLinear) for module in model.modules())


def test_an_averaged_copy_that_has_not_seen_its_layer_grow_is_refused_without_ranks() -> None:
    model = nn.Sequential(nn.Linear(16, 12))
    convert(model, "0", buffer_rank=2)
    copied = copy.deepcopy(model)
    layer: Any = model[0]
    layer.grow(5, None, torch.randn(3, 16))
    with pytest.raises(ValueError, match=r"'0' is a copy made at rank 2 of a layer that has grown since"):
        factorize(copied)
    assert factorize(copied, ranks={"0": layer.rank}).layers[0].rank == 5
    assert factorize(model).layers[0].rank == 5
