"""Every step is counted once, whoever takes it; and what cannot be counted is refused or said."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import mlp
from helpers.truth import TrueLoop, assert_rows_are_true, events
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from inrank_monitor import attach, open_run
from inrank_monitor.tracking import unwrap_optimizer


class Lookahead(Optimizer):
    """Steps the optimizer inside, then pulls the weights half-way back to slow ones."""

    def __init__(self, inside: Optimizer) -> None:
        self.inside = inside
        super().__init__(inside.param_groups, {})
        self.slow = [p.detach().clone() for group in inside.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inside.step()
        for slow, fast in zip(self.slow, [p for g in self.param_groups for p in g["params"]], strict=True):
            slow.lerp_(fast, 0.5)
            fast.copy_(slow)


class SharpnessAware(Optimizer):
    """Steps to a worse point, takes the gradient there, steps the base optimizer from where it was."""

    def __init__(self, model: nn.Module, base: Optimizer, loss: Any) -> None:
        self.base, self.loss = base, loss
        super().__init__(model.parameters(), {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        moved = [p.grad.clone() for g in self.param_groups for p in g["params"]]
        with torch.no_grad():
            torch._foreach_add_([p for g in self.param_groups for p in g["params"]], moved, alpha=0.05)
        self.zero_grad()
        with torch.enable_grad():
            self.loss()
        with torch.no_grad():
            torch._foreach_sub_([p for g in self.param_groups for p in g["params"]], moved, alpha=0.05)
        self.base.step()


def begin(path: Path, optimizer: Any, given: Any, model: nn.Module, every: int = 1) -> tuple[TrueLoop, Any]:
    loop = TrueLoop(model, optimizer)
    return loop, attach(model, given, path, every=every, tensorboard=False)


@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_made_anew_in_mid_run_is_counted_on(tmp_path: Path, several: bool) -> None:
    model = mlp(16, 32, 8)
    first = SGD(model.parameters(), lr=1e-2)
    loop, tracker = begin(tmp_path / "run", first, [first] if several else first, model, every=5)
    loop.run(7)
    loop.optimizer = AdamW(model.parameters(), lr=1e-3)
    loop.run(9)
    loop.optimizer = SGD(model[2].parameters(), lr=1e-3)  # type: ignore[index]
    loop.run(4)
    loop.optimizer = first
    loop.run(3)
    tracker.close()
    assert tracker.step_count == 23
    assert_rows_are_true(tmp_path / "run", loop, [5, 10, 15, 20, 23])
    assert ["AdamW" in message for message in events(tmp_path / "run", "optimizer_changed")] == [True, False]


def test_the_step_of_an_optimizer_inside_another_ends_with_the_outer_one(tmp_path: Path) -> None:
    for given in ("inside", "outside"):
        model = mlp(16, 32, 8)
        inside = SGD(model.parameters(), lr=1e-2)
        outside = Lookahead(inside)
        loop, tracker = begin(tmp_path / given, outside, {"inside": inside, "outside": outside}[given], model)
        loop.run(5)
        tracker.close()
        assert_rows_are_true(tmp_path / given, loop, [1, 2, 3, 4, 5])


def test_two_gradients_a_step_are_one_step(tmp_path: Path) -> None:
    for given in ("base", "outside"):
        model = mlp(16, 32, 8)
        base = SGD(model.parameters(), lr=1e-2)
        loop = TrueLoop(model, base)
        loop.optimizer = SharpnessAware(model, base, loop.backward)
        chosen = base if given == "base" else loop.optimizer
        tracker = attach(model, chosen, tmp_path / given, every=1, tensorboard=False)
        loop.run(5)
        tracker.close()
        assert_rows_are_true(tmp_path / given, loop, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("given", ["all", "one"])
def test_optimizers_that_step_in_the_backward_pass_make_one_step(tmp_path: Path, order: int, given: str) -> None:
    model = mlp(16, 32, 8)
    model.register_parameter("never_used", nn.Parameter(torch.ones(4, 4)))
    own = {parameter: SGD([parameter], lr=1e-2) for parameter in model.parameters()}

    def step_now(parameter: Tensor) -> None:
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in own:
        parameter.register_post_accumulate_grad_hook(step_now)  # type: ignore[no-untyped-call]
    loop = TrueLoop(model, None)
    optimizers = list(own.values())[::order]
    chosen = optimizers if given == "all" else own[model[0].weight]  # type: ignore[index,call-overload]
    tracker = attach(model, chosen, tmp_path / "run", every=2, tensorboard=False)
    for _ in range(7):
        loop.backward()
        loop.note()
    tracker.close()
    assert tracker.step_count == 7
    assert_rows_are_true(tmp_path / "run", loop, [2, 4, 6, 7])


@pytest.mark.parametrize("stops", ["first", "last"])
def test_of_two_optimizers_one_may_stop(tmp_path: Path, stops: str) -> None:
    model = mlp(16, 32, 8)
    pair = [SGD(model[place].parameters(), lr=1e-2) for place in (0, 2)]  # type: ignore[index]
    loop = TrueLoop(model, None)
    tracker = attach(model, pair, tmp_path / "run", every=5, tensorboard=False)
    for step in range(60):
        model.zero_grad()
        loop.backward()
        for optimizer in pair if step < 8 else pair[1:] if stops == "first" else pair[:1]:
            optimizer.step()
        loop.note()
    tracker.close()
    assert tracker.step_count == 60
    assert_rows_are_true(tmp_path / "run", loop)
    found = events(tmp_path / "run", "optimizer_changed")
    assert len(found) == (stops == "last")


def test_one_optimizer_may_step_many_times_between_two_of_the_last(tmp_path: Path) -> None:
    model = mlp(16, 32, 8)
    critic, generator = (SGD(model[place].parameters(), lr=1e-3) for place in (0, 2))  # type: ignore[index]
    loop = TrueLoop(model, None)
    tracker = attach(model, [critic, generator], tmp_path / "run", every=1, tensorboard=False)
    for times in (100, 5, 5, 45, 5):
        for _ in range(times):
            loop.backward()
            critic.step()
        generator.step()
        loop.note()
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [1, 2, 3, 4, 5])
    assert not events(tmp_path / "run", "optimizer_changed")


def test_another_models_optimizer_and_a_copy_of_this_one_are_not_counted(tmp_path: Path) -> None:
    model, other = mlp(16, 32, 8), mlp(16, 32, 8)
    optimizer = SGD(model.parameters(), lr=1e-2)
    loop, tracker = begin(tmp_path / "run", optimizer, optimizer, model)
    loop.run(2)
    twin = copy.deepcopy((model, optimizer))
    for twin_model, twin_optimizer in (twin, (other, SGD(other.parameters(), lr=1e-2))):
        TrueLoop(twin_model, twin_optimizer).run(3)
    pickle.loads(pickle.dumps(optimizer)).step()
    loop.run(2)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [1, 2, 3, 4])


def test_a_step_that_raises_is_none(tmp_path: Path) -> None:
    model = mlp(16, 32, 8)
    optimizer = SGD(model.parameters(), lr=1e-2)
    loop, tracker = begin(tmp_path / "run", optimizer, optimizer, model)

    def fail() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(fail)
    loop.run(3)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [1, 2, 3])


class Outside:
    """A wrapper that is no torch optimizer, under any name."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()


def test_a_wrapper_whose_step_may_do_more_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = mlp(16, 32, 8)
    optimizer = SGD(model.parameters(), lr=1e-2)
    named_alike = type("AcceleratedOptimizer", (Outside,), {})
    for wrapper in (Outside(optimizer), Outside(Outside(optimizer)), named_alike(optimizer)):
        with pytest.raises(TypeError, match=r"optimizer=None and call step\(\)"):
            attach(model, wrapper, tmp_path / "run")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"optimizer=None and call step\(\)"):
            attach(model, [optimizer, wrapper], tmp_path / "run")  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


def test_a_wrapper_that_only_steps_what_is_inside_is_looked_through() -> None:
    accelerate = pytest.importorskip("accelerate")
    optimizer = SGD(mlp(4, 4).parameters(), lr=1e-2)
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert type(wrapped).__name__ == "AcceleratedOptimizer"
    assert unwrap_optimizer(wrapped, "") is optimizer


def test_a_tracker_that_nobody_holds_lives_with_its_optimizer(tmp_path: Path) -> None:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=1e-2))
    attach(model, loop.optimizer, tmp_path / "run", every=2, tensorboard=False)
    gc.collect()
    loop.run(5)
    second = AdamW(model.parameters(), lr=1e-3)
    first, loop.optimizer = loop.optimizer, second
    loop.run(1)
    del first
    gc.collect()
    loop.run(2)
    assert open_run(tmp_path / "run").status == "live"
    del second
    loop.optimizer = None
    gc.collect()
    assert_rows_are_true(tmp_path / "run", loop, [2, 4, 6, 8])
    assert open_run(tmp_path / "run").status == "finished"


@pytest.mark.parametrize("how", ["closed in a hook", "collected in a hook"])
def test_a_tracker_that_ends_while_torch_calls_hooks_disturbs_none(tmp_path: Path, how: str) -> None:
    model, other = mlp(16, 32, 8), mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=1e-2))
    optimizers = [SGD(other.parameters(), lr=1e-2)]
    trackers = [attach(other, optimizers[0], tmp_path / "other", every=1, tensorboard=False)]
    trackers.append(attach(model, loop.optimizer, tmp_path / "run", every=1, tensorboard=False))

    def end(*_: object) -> None:
        if how == "closed in a hook":
            for tracker in trackers:
                tracker.close()
        else:
            optimizers.clear()
            del trackers[:1]
            gc.collect()

    loop.optimizer.register_step_pre_hook(end)
    loop.optimizer.register_step_post_hook(end)
    loop.run(3)
    assert open_run(tmp_path / "other").status == "finished"
