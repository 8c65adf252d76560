"""torch.compile and growing ranks: what is compiled once serves a whole run, and computes what eager computes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from helpers.active_training import Run, by_gradient, converted, layers_of, loss_of, tokens
from torch._dynamo.utils import counters

import inrank
from inrank_monitor import attach

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
COMPILER = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
STEPS = 22


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compilations() -> int:
    return int(counters["stats"]["unique_graphs"])


def of_depth(seen: inrank.Observation) -> int:
    """Another rank for every layer at every check."""
    return seen.rank + 1 + int(seen.name.split(".")[2]) % 3


def train_beside_eager(compiled: Run, eager: Run, steps: int = STEPS) -> None:
    """The same steps of both; losses within float32 rounding, which Adam carries on."""
    for step in range(steps):
        for run in (compiled, eager):
            run.loss(step).backward()
            run.optimizer.step()
            run.controller.step()
            run.optimizer.zero_grad()
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-5, atol=1e-5)
    assert compiled.controller.ranks == eager.controller.ranks
    assert len({growth.step for growth in compiled.controller.history}) >= 4
    compiled.check()


def test_growth_compiles_nothing_anew() -> None:
    run = Run(rule=of_depth, model=torch.compile(converted(), backend="aot_eager"))
    train_beside_eager(run, Run(rule=of_depth))
    assert compilations() == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer hides its own warning, but not from "error"
def test_blocks_compiled_one_by_one_share_their_code_whatever_their_ranks() -> None:
    model = converted(layers=4)
    for block in model.transformer.h:
        block.compile(backend="eager")
    run, eager = Run(rule=of_depth, model=model), Run(rule=of_depth, model=converted(layers=4))
    train_beside_eager(run, eager)
    assert len({layer.rank for layer in layers_of(model).values()}) >= 3
    assert 1 <= compilations() <= 4
    for training in (run, eager):
        inrank.factorize(training.model, training.optimizer)  # another shape and another gain for each layer
        for step in range(3):
            training.loss(step).backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
    torch.testing.assert_close(run.losses[-3:], eager.losses[-3:], rtol=1e-4, atol=1e-4)
    assert compilations() <= 8


def test_a_rule_that_needs_the_gradient_compiles_twice_with_and_without_it() -> None:
    model = torch.compile(converted(), backend="eager")
    run, eager = Run(model=model), Run()
    for each in (run, eager):  # open for 2 of 5 steps, again and again
        each.controller.detach()
        each.controller = inrank.RankController(each.model, each.optimizer, rule=by_gradient, every=5, gradient_steps=2)
    train_beside_eager(run, eager)
    assert compilations() == 2


def test_factorizing_a_compiled_model_compiles_once_more_and_goes_on() -> None:
    run, eager = Run(model=torch.compile(converted(), backend="eager")), Run()
    train_beside_eager(run, eager)
    before = compilations()
    for each in (run, eager):
        inrank.factorize(each.model, each.optimizer)
        for step in range(4):
            each.loss(step).backward()
            each.optimizer.step()
            each.controller.step()
            each.optimizer.zero_grad()
    torch.testing.assert_close(run.losses[-4:], eager.losses[-4:], rtol=1e-4, atol=1e-4)
    assert compilations() - before == 1


def test_evaluation_between_steps_compiles_once_for_the_whole_run() -> None:
    run = Run(model=torch.compile(converted(), backend="eager"))
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        run.step()  # evaluates just before and after each check
        run.optimizer.zero_grad()
    run.check()
    assert compilations() == 2


def test_a_compiled_copy_and_its_original_agree_after_growth() -> None:
    model = converted()
    compiled = torch.compile(model, backend="eager")
    run = Run(model=compiled)
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        run.controller.step()
        run.optimizer.zero_grad()
    torch.testing.assert_close(model(input_ids=tokens(7)).logits, compiled(input_ids=tokens(7)).logits)
    merged = converted()
    merged.load_state_dict(model.state_dict())
    inrank.merge(merged)
    torch.testing.assert_close(
        merged(input_ids=tokens(7)).logits, compiled(input_ids=tokens(7)).logits, rtol=1e-4, atol=1e-5
    )


def test_watching_a_compiled_model_compiles_nothing_and_sees_the_columns_in_use(tmp_path: object) -> None:
    model = torch.compile(converted(), backend="eager")
    run = Run(model=model)
    with attach(model, run.optimizer, f"{tmp_path}/run", every=1, buffer_rank=3, tensorboard=False) as tracker:
        for step in range(6):
            run.loss(step).backward()
            run.optimizer.step()
            run.controller.step()
            run.optimizer.zero_grad()
        watched = [row.parameter for row in tracker.coverage if row.watched and "mlp" in row.parameter]
    assert watched == list(layers_of(model._orig_mod))
    assert compilations() == 1


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("rule", [of_depth, by_gradient])
def test_inductor_trains_through_growth_as_eager_does(rule: inrank.growth_rule.Rule) -> None:
    run = Run(rule=rule, model=torch.compile(converted(), backend="inductor"))
    train_beside_eager(run, Run(rule=rule))
    assert compilations() == 1
    run.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loss_of(run.model, 99), loss_of(run.model._orig_mod, 99), rtol=1e-5, atol=1e-5)
