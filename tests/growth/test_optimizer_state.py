"""Fresh columns do not jump under Adam; what factorization changes in an optimizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers.active import converted, fill, grow
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from inrank import InRankLinear, convert, factorize
from inrank.growth.optimizer_state import FreshColumns, check_holds, replace_parameters

LR = 1e-3
STEPS = 1000
OLD = 2  # columns that were there before
KINDS = ("constant", "random", "growing", "sparse", "late", "alternating")  # one fresh column each


def gradients(count: int) -> Tensor:
    """(steps, columns): the old columns', then one sequence a kind. Scales differ widely: Adam knows none."""
    generator = torch.Generator().manual_seed(1)
    time = torch.arange(count, dtype=torch.float64)
    noise = torch.randn(count, OLD + 2, generator=generator, dtype=torch.float64)
    columns = [
        *noise[:, :OLD].T,
        torch.full((count,), 3e-4, dtype=torch.float64),
        20 * noise[:, OLD],
        1e-3 * (time + 1),
        torch.where(time % 97 == 3, noise[:, OLD + 1], 0.0),
        torch.where(time >= 400, 1e-2, 1e-9),
        torch.where(time % 40 < 20, 1e-5, -1e-5),
    ]
    return torch.stack(columns, dim=1)


def experiment(make: Any, start: int, fresh: bool, **options: Any) -> tuple[Tensor, Tensor]:
    """The fresh columns' updates in learning rates, decoupled decay taken out: (steps, columns); U and V at the end.

    A layer whose optimizer has done `start` steps before the columns are born; the gradients are laid into U and V.
    """
    torch.manual_seed(0)
    total = OLD + len(KINDS)
    model = nn.Sequential(nn.Linear(40, 30, bias=False, dtype=torch.float64))
    convert(model, "0", initial_rank=1, buffer_rank=1, max_rank=total - 1)
    layer = fill(model[0])
    optimizer = make([layer.U, layer.V], lr=LR, **options)
    watcher = FreshColumns(optimizer, {"0": layer}) if fresh else None
    sequence = gradients(STEPS + 1)
    layer.U.grad, layer.V.grad = torch.zeros_like(layer.U), torch.zeros_like(layer.V)
    layer.U.grad[:, :OLD], layer.V.grad[:OLD] = 0.1, 0.1
    optimizer.step()
    for factor in (layer.U, layer.V):
        optimizer.state[factor]["step"].fill_(start)
    grow(layer, total - 1)
    if watcher is not None:
        watcher.born("0", OLD)
    decay = LR * optimizer.param_groups[0]["weight_decay"] if make is AdamW else 0.0
    moved = []
    for gradient in sequence[1:]:
        layer.U.grad[:], layer.V.grad[:] = gradient, gradient[:, None]
        before = layer.U.detach()[0, OLD:].clone(), layer.V.detach()[OLD:, 0].clone()
        optimizer.step()
        after = layer.U.detach()[0, OLD:], layer.V.detach()[OLD:, 0]
        moved.append(torch.stack([(b - a * (1 - decay)) / LR for a, b in zip(before, after, strict=True)]))
    return torch.stack(moved).abs().amax(1), torch.cat([layer.U.detach(), layer.V.detach().mT])


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (AdamW, {"weight_decay": 0.1}),
    "adamw, for-loop": (AdamW, {"foreach": False}),
    "adamw, foreach": (AdamW, {"foreach": True, "maximize": True}),
    "adamw, fused": (AdamW, {"fused": True, "weight_decay": 0.1}),
    "adam": (Adam, {}),
    "adam, decay": (Adam, {"weight_decay": 1e-3}),
    "adam, fused, decay, maximize": (Adam, {"fused": True, "weight_decay": 1e-3, "maximize": True}),
    "adam, amsgrad": (Adam, {"amsgrad": True, "foreach": True}),
}


@pytest.mark.parametrize("start", [1000, 10000])
@pytest.mark.parametrize(("make", "options"), VARIANTS.values(), ids=list(VARIANTS))
@pytest.mark.usefixtures("one_thread")
def test_a_fresh_column_moves_by_the_learning_rate_at_most(make: Any, options: dict[str, Any], start: int) -> None:
    moved, factors = experiment(make, start, fresh=True, **options)
    bare, bare_factors = experiment(make, start, fresh=False, **options)
    largest = dict(zip(KINDS, moved.amax(0).tolist(), strict=True))
    assert max(largest.values()) <= 1.5, largest  # the promise
    assert moved[:990].max() <= 1.0 + 1e-6  # what it does while a column is young
    assert largest["constant"] > 0.9  # held, not held back
    jump = dict(zip(KINDS, bare.amax(0).tolist(), strict=True))
    assert jump["constant"] > 4
    assert jump["random"] > 2
    assert torch.equal(factors[:, :OLD], bare_factors[:, :OLD])
    assert not torch.equal(factors[:, OLD:], bare_factors[:, OLD:])


@pytest.mark.numeric
@pytest.mark.usefixtures("one_thread")
def test_a_column_that_never_jumped_is_left_alone_soon() -> None:
    """What is added to v is only what is missing: with a constant gradient the update stays at the learning rate."""
    moved, _ = experiment(AdamW, 1000, fresh=True)
    constant = moved[:, KINDS.index("constant")]
    assert constant[50:].amin() > 0.75
    noisy = moved[:, KINDS.index("random")]
    bare = experiment(AdamW, 1000, fresh=False)[0][:, KINDS.index("random")]
    assert 0.4 < noisy[800:].mean() / bare[800:].mean() < 1.01


@pytest.mark.usefixtures("one_thread")
def test_births_are_forgotten_after_the_memory_of_the_second_moment() -> None:
    model = converted(8, 6, rank=1, max_rank=4)
    optimizer = Adam(model.parameters(), betas=(0.9, 0.95))
    watcher = FreshColumns(optimizer, {"0": model[0]})
    for wait in (7, 12, 30):
        first, _ = grow(model[0], model[0].rank + 1)
        watcher.born("0", first)
        for _ in range(wait):
            for value in (model[0].U, model[0].V):
                value.grad = torch.ones_like(value)
            optimizer.step()
    assert watcher.state_dict()["births"] == {}  # 1 / (1 − 0.95) = 20 steps
    assert watcher.step == 49


def test_the_state_travels_through_json() -> None:
    model = converted(8, 6, rank=1, max_rank=4)
    optimizer = Adam(model.parameters())
    watcher = FreshColumns(optimizer, {"0": model[0]})
    optimizer.step()
    watcher.born("0", 3)
    state = json.loads(json.dumps(watcher.state_dict()))
    again = FreshColumns(optimizer, {"0": model[0]})
    again.load_state_dict(state)
    assert again.state_dict() == watcher.state_dict() == {"step": 1, "births": {"0": [(3, 1)]}}


def scaled(scale: float | None, skip: int | None = None, partly: bool = False, **options: Any) -> nn.Module:
    """Training with a growth at step 1000 of Adam's counter, after 60 real ones.

    At step `skip` the gradients overflow, all of them or a part.
    """
    model = converted(8, 6, rank=1, max_rank=4, dtype=torch.float32)
    optimizer = AdamW(model.parameters(), lr=LR, **options)
    watcher = FreshColumns(optimizer, {"0": model[0]})
    scaler = GradScaler("cpu", init_scale=scale or 1.0, growth_interval=10_000, backoff_factor=0.5, enabled=bool(scale))
    step = largest = 0
    while step < 120:
        if step == 60 and model[0].rank == 1:
            watcher.born("0", grow(model[0], 4)[0])
            for state in optimizer.state.values():
                state["step"].fill_(1000)
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        scaler.scale((model(inputs) - 1).square().mean()).backward()
        if step == skip:
            for value in (model[0].U, model[0].V):
                value.grad *= 100  # what a trace would be made of
                value.grad[0 if partly else slice(None)] *= float("inf")
        before = model[0].U.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        largest = max(largest, (model[0].U.detach() - before)[:, 3:].abs().max().item())
        if step == skip:
            assert torch.equal(model[0].U, before)
            skip = None  # the same batch again, as if the step had never been
        else:
            step += 1
    assert 0.5 * LR < largest <= 1.01 * LR
    return model


@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.numeric
@pytest.mark.usefixtures("one_thread")
def test_under_a_grad_scaler_fused_columns_train_as_without_and_skipped_steps_leave_no_trace(partly: bool) -> None:
    plain = scaled(None, fused=True, weight_decay=0.0)
    under = scaled(2.0**12, fused=True, weight_decay=0.0)
    for one, two in zip(plain.parameters(), under.parameters(), strict=True):
        assert torch.equal(one, two)  # a power of two rounds nothing
    for step in (62, 70):
        torch.manual_seed(0)
        skipped = scaled(2.0**12, skip=step, partly=partly, fused=True, weight_decay=0.0)
        for one, two in zip(plain.parameters(), skipped.parameters(), strict=True):
            assert torch.equal(one, two)
    looped = scaled(2.0**12, skip=62, partly=partly, weight_decay=0.0)
    for one, two in zip(plain.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(one, two)


class _OldAdam(Optimizer):
    """With moments and a step counter that is a plain number, as many optimizers have them."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"betas": (0.9, 0.999), "lr": 0.1, "weight_decay": 0.0})

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state.setdefault("step", 0)
            state.setdefault("exp_avg", torch.zeros_like(parameter))
            state.setdefault("exp_avg_sq", torch.zeros_like(parameter))


@pytest.mark.parametrize("make", [SGD, NAdam, RAdam, _OldAdam])
def test_other_optimizers_run_on(make: Any) -> None:
    model = converted(8, 6, rank=1, max_rank=4)
    optimizer = make([model[0].U, model[0].V])
    watcher = FreshColumns(optimizer, {"0": model[0]})
    for _ in range(3):
        watcher.born("0", grow(model[0], model[0].rank + 1)[0])
        (model(torch.ones(2, 8).double()) - 1).square().mean().backward()
        optimizer.step()
    assert watcher.step == 3
    assert torch.isfinite(model[0].U).all()


def test_a_factorized_layer_a_missing_gradient_and_a_removed_watcher_are_no_trouble() -> None:
    model = converted(8, 6, rank=1, max_rank=4)
    optimizer = AdamW(model.parameters())
    watcher = FreshColumns(optimizer, {"0": model[0]})
    watcher.born("0", grow(model[0], 2)[0])
    optimizer.step()
    factorize(model, optimizer)
    optimizer.step()
    assert watcher.state_dict()["births"] == {}
    watcher.remove()
    watcher.remove()
    optimizer.step()
    assert watcher.step == 2


def test_parameters_are_replaced_in_their_places_and_schedulers_see_the_same_groups() -> None:
    one, two, three, new = (nn.Parameter(torch.full((2,), float(value))) for value in range(4))
    optimizer = AdamW([{"params": [one, two]}, {"params": [three]}])
    for parameter in (one, two, three):
        parameter.grad = torch.ones(2)
    optimizer.step()
    groups = list(optimizer.param_groups)
    replace_parameters(optimizer, {two: new, three: None})
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    assert [[id(value) for value in group["params"]] for group in groups] == [[id(one), id(new)], []]
    assert list(optimizer.state) == [one]


def test_what_the_optimizer_must_hold_is_named() -> None:
    model = converted(8, 6, 4)
    layers: dict[str, InRankLinear] = {"0": model[0], "2": model[2]}
    check_holds(SGD(model.parameters()), layers)
    with pytest.raises(ValueError, match=r"optimizer does not hold '2\.U': make the optimizer after inrank.convert"):
        check_holds(SGD([value for name, value in model.named_parameters() if name != "2.U"]), layers)
