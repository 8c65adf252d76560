"""Between optimizer steps, on schedule: spectrum -> rule -> grow; resumed is as if never interrupted."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracles
from helpers.active import assert_same_state, converted, fill, state_of, train, untouched
from torch import nn
from torch.optim import SGD, AdamW

from inrank import ExplainedRatio, Growth, InRankLinear, Observation, RankController, convert, factorize, needs_gradient
from inrank_monitor import attach, open_run

pytestmark = pytest.mark.numeric

SIZES = (14, 20, 9)


def one_more(seen: Observation) -> int:
    return seen.rank + 1


@needs_gradient
def where_the_gradient_points(seen: Observation) -> int:
    """Grows one layer and then the other: by numbers that only the gradient has."""
    assert seen.gradient is not None
    assert seen.gradient_outside is not None
    share = np.linalg.norm(seen.gradient_outside) / np.linalg.norm(seen.gradient)
    return seen.rank + int(share > 0.2 * seen.null_gradient_share())


def started(**options: Any) -> tuple[nn.Sequential, AdamW, RankController]:
    model = converted(*SIZES, rank=1, buffer_rank=2, dtype=torch.float32)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return model, optimizer, RankController(model, optimizer, **{"every": 2, "rule": one_more} | options)


def steps_of(controller: RankController) -> list[int]:
    return sorted({growth.step for growth in controller.history})


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4]), (3, [3, 6, 9]), (lambda step: step in (2, 7), [2, 7])]
)
def test_ranks_are_checked_on_schedule(every: Any, expected: list[int]) -> None:
    model, optimizer, controller = started(every=every)
    train(model, optimizer, 9, after=controller.step)
    assert steps_of(controller)[: len(expected)] == expected
    assert controller.step_count == 9


def test_until_is_the_last_step_that_may_be_checked() -> None:
    model, optimizer, controller = started(every=2, until=4)
    train(model, optimizer, 9, after=controller.step)
    assert steps_of(controller) == [2, 4]


def test_attached_it_does_what_a_line_in_the_loop_does() -> None:
    states = []
    for attached in (True, False):
        model, optimizer, controller = started()
        if attached:
            assert controller.attach() is controller
            controller.attach()  # a second time changes nothing
        train(model, optimizer, 9, after=None if attached else controller.step)
        states.append((state_of(model), controller.history))
        assert controller.step_count == 9
        controller.detach()
        train(model, optimizer, 2)
        assert controller.step_count == 9
    assert_same_state(states[0][0], states[1][0])
    assert states[0][1] == states[1][1] != []


def test_counting_twice_is_refused() -> None:
    model, optimizer, controller = started()
    controller.attach()
    train(model, optimizer, 1)
    with pytest.raises(RuntimeError, match=r"step\(\) at step 1: the controller is attached and counts by itself"):
        controller.step()
    assert controller.step_count == 1
    controller.detach()
    controller.step()
    assert controller.step_count == 2


def test_what_grew_is_told(tmp_path: Path) -> None:
    model, optimizer, controller = started()
    with attach(model, optimizer, tmp_path / "run", every=100, tensorboard=False) as tracker:
        controller = RankController(model, optimizer, every=2, rule=one_more, tracker=tracker)
        layers = {name: model.get_submodule(name) for name in "02"}
        before = {
            name: oracles.singular_values((layer.weight - layer.initial_weight).detach())
            for name, layer in layers.items()
        }
        grown = controller.check()
    assert [(growth.step, growth.name, growth.old_rank, growth.new_rank) for growth in grown] == [
        (0, "0", 1, 2),
        (0, "2", 1, 2),
    ]
    for growth in grown:
        size = min(model.get_submodule(growth.name).weight.shape)
        expected = oracles.explained_ratio(before[growth.name], 1, 2, "paper", size)
        assert growth.explained_ratio == pytest.approx(expected, abs=1e-5)  # float32 factors
    assert controller.history == grown
    assert controller.ranks == {"0": 2, "2": 2}
    events = open_run(tmp_path / "run").events.query("kind != 'no_steps'")
    assert events["kind"].tolist() == ["rank_grown"] * 2
    assert events["message"].str.startswith("rank 1 -> 2, explained ratio ").all()


@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_the_default_rule_is_that_of_the_oracle_on_the_dense_product(definition: Any) -> None:
    model = converted(40, 50, rank=1, buffer_rank=3, max_rank=25)
    layer, ratios = model[0], []
    optimizer = SGD(model.parameters(), lr=1.0)
    controller = RankController(model, optimizer, threshold=0.8, definition=definition)
    cap = 25 if definition == "paper" else 40 // 2 - 3
    for _ in range(12):
        fill(layer)
        values = oracles.singular_values((layer.weight - layer.initial_weight).detach().numpy())
        expected = old = layer.rank
        last = min(expected + 3, cap) if definition == "paper" else min(expected + 3, cap) - 1
        while expected < last and oracles.explained_ratio(values, expected, 3, definition, 40) < 0.8:
            expected += 1
        grown = controller.check()
        assert layer.rank == max(expected, old)
        ratios += [
            (growth.explained_ratio, oracles.explained_ratio(values, old, 3, definition, 40)) for growth in grown
        ]
    assert layer.rank > 4
    for found, expected_ratio in ratios:
        assert found == pytest.approx(expected_ratio, abs=1e-9)


def test_ranks_stay_between_the_present_one_and_the_cap() -> None:
    for answer, expected in ((-5, 1), (10**9, 6)):
        model = converted(14, 9, rank=1, max_rank=6)
        rule: Callable[[Observation], int] = lambda seen, answer=answer: answer  # noqa: E731
        controller = RankController(model, SGD(model.parameters()), rule=rule)
        for _ in range(3):
            controller.check()
        assert model[0].rank == expected
        assert len(controller.history) == (expected != 1)


def test_a_users_rule_is_shown_everything_and_may_return_numpys_integers() -> None:
    shown: list[Observation] = []

    def rule(seen: Observation) -> Any:
        shown.append(seen)
        return np.int64(seen.rank + 1)

    model, optimizer, controller = started(rule=rule)
    train(model, optimizer, 2, after=controller.step)
    seen = {observation.name: observation for observation in shown}
    assert sorted(seen) == ["0", "2"]
    one = seen["2"]
    assert (one.step, one.rows, one.cols, one.rank, one.buffer_rank) == (2, 9, 20, 1, 2)
    assert one.max_rank == model[2].max_rank
    assert one.gradient is one.gradient_outside is None
    assert controller.ranks == {"0": 2, "2": 2}


@pytest.mark.parametrize("answer", [2.0, None, True, "3", np.float64(2)])
def test_a_rule_that_returns_no_rank_is_named(answer: Any) -> None:
    model, optimizer, controller = started(rule=lambda seen: answer)
    with (
        untouched(model, optimizer),
        pytest.raises(TypeError, match=r"the rule must return an integer rank, got .* for '0'"),
    ):
        controller.check()


def test_a_growth_changes_no_output_and_new_columns_are_no_louder_than_old_ones() -> None:
    model, optimizer, controller = started()
    train(model, optimizer, 20)
    inputs = torch.randn(5, 14)
    before = model(inputs)
    for _ in range(3):
        firsts = {name: model.get_submodule(name).used for name in "02"}
        controller.check()
        assert (model(inputs) - before).abs().max() <= 1e-6 * before.abs().max()
        for name, first in firsts.items():
            layer = model.get_submodule(name)
            assert layer.used == first + 1
            old, new = (part.square().mean().sqrt() for part in (layer.V[:first], layer.V[first : first + 1]))
            torch.testing.assert_close(new, old)
            assert not layer.U[:, first:].any()


def test_new_columns_do_not_depend_on_the_global_random_state() -> None:
    states = []
    for disturb in (0, 1):
        model, _, controller = started(seed=3)
        torch.manual_seed(disturb)
        before = torch.get_rng_state()
        controller.check()
        assert torch.equal(torch.get_rng_state(), before)
        states.append(state_of(model))
    assert_same_state(*states)
    model, _, controller = started(seed=4)
    controller.check()
    assert not torch.equal(model[0].V, states[0]["0.V"])
    assert not torch.equal(model[0].V[3, :9], model[2].V[3, :9])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_leave_the_rank_and_the_others_grow(
    bad: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, _ = started()
    with attach(model, optimizer, tmp_path / "run", every=100, tensorboard=False) as tracker:
        controller = RankController(model, optimizer, rule=one_more, tracker=tracker)
        with torch.no_grad():
            model[0].U[0, 0] = bad
        with caplog.at_level(logging.DEBUG, logger="inrank"):
            assert [growth.name for growth in controller.check()] == ["2"]
    assert controller.ranks == {"0": 1, "2": 2}
    events = open_run(tmp_path / "run").events.query("kind != 'no_steps'")
    assert events["kind"].tolist() == ["non_finite", "rank_grown"]


def test_a_gradient_rule_sees_the_sum_over_the_steps_before_a_check() -> None:
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    @needs_gradient
    def rule(seen: Observation) -> int:
        assert seen.gradient is not None
        assert seen.gradient_outside is not None
        shown.append((seen.gradient, seen.gradient_outside))
        return seen.rank

    model = converted(14, 9, rank=1, buffer_rank=2)
    layer, sums = model[0], []
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    frozen = layer.initial_weight.clone()
    RankController(model, optimizer, every=5, rule=rule, gradient_steps=3).attach()
    held: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: held.append(layer.initial_weight.grad))
    for step in range(10):
        inputs = torch.randn(16, 14, generator=torch.Generator().manual_seed(step)).double()
        weight = layer.weight.detach().requires_grad_(True)
        loss = (nn.functional.linear(inputs, weight, layer.bias.detach()) - 1).square().mean()
        sums.append(torch.autograd.grad(loss, weight)[0])
        if step in (4, 9):
            total = sum(sums[-3:])
            U, V = (np.linalg.qr(factor.detach().numpy())[0] for factor in (layer.U[:, :3], layer.V[:3].mT))
            outside = (np.eye(9) - U @ U.T) @ total.numpy() @ (np.eye(14) - V @ V.T)
        train(model, optimizer, 1, first=step)
        assert layer.initial_weight.requires_grad == (step % 5 in (1, 2, 3))
        if step in (4, 9):
            np.testing.assert_allclose(shown[-1][0], oracles.singular_values(total), atol=1e-8)
            # the factors have moved by one step since: the spans are those at the check
            assert shown[-1][1].shape == (9,)
            assert np.linalg.norm(shown[-1][1]) == pytest.approx(np.linalg.norm(outside), rel=0.3)
    assert len(shown) == 2
    assert held == [None] * 10
    assert torch.equal(layer.initial_weight, frozen)


def test_without_a_gradient_a_gradient_rule_is_not_asked() -> None:
    asked: list[str] = []

    @needs_gradient
    def rule(seen: Observation) -> int:
        asked.append(seen.name)
        return seen.rank + 1

    model, _, controller = started(rule=rule, every=5, gradient_steps=2)
    assert controller.check() == []  # before its time
    model, _, controller = started(rule=rule, every=1)
    model[2](torch.randn(3, 20)).sum().backward()  # reaches one of the two layers
    assert [growth.name for growth in controller.check()] == ["2"]
    assert asked == ["2"]


def aged(rule: Any) -> tuple[nn.Sequential, AdamW, RankController]:
    """As `started`, at step 1000 of Adam's counter: fresh columns would jump if their birth were forgotten."""
    model, optimizer, controller = started(rule=rule, every=5, gradient_steps=4)
    train(model, optimizer, 1, first=99)
    for state in optimizer.state.values():
        state["step"].fill_(1000)
    return model, optimizer, controller


def interrupted(kind: str, steps: int, at: int | None, through: str = "torch") -> tuple[Any, ...]:
    """Everything after `steps` steps; with `at`, through saved states and new objects at that step."""
    shown: list[tuple[int, str, float]] = []

    @needs_gradient
    def with_gradient(seen: Observation) -> int:
        assert seen.gradient is not None
        shown.append((seen.step, seen.name, float(seen.gradient.sum())))
        return where_the_gradient_points(seen)

    rule = with_gradient if kind == "gradient" else ExplainedRatio(0.95)
    model, optimizer, controller = aged(rule)
    controller.attach()
    first = 0
    if at is not None:
        train(model, optimizer, at)
        first = at
        file = io.BytesIO()
        state = controller.state_dict()
        if through == "json":
            state = json.loads(json.dumps(state))
        torch.save([model.state_dict(), optimizer.state_dict(), state], file)
        model, optimizer, controller = aged(rule)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        controller.load_state_dict(states[2])
        controller.attach()
    train(model, optimizer, steps - first, first=first)
    state = optimizer.state_dict()["state"]
    moments = {f"{place}.{name}": value for place, entry in state.items() for name, value in entry.items()}
    return state_of(model), moments, controller.history, controller.ranks, controller.step_count, shown


@pytest.mark.parametrize(("kind", "through"), [("default", "torch"), ("default", "json"), ("gradient", "torch")])
@pytest.mark.parametrize("at", [5, 7, 13])  # after a growth; between checks; while the gradient is taken
@pytest.mark.usefixtures("one_thread")
def test_resumed_is_as_if_never_interrupted(kind: str, through: str, at: int) -> None:
    whole, parts = interrupted(kind, 25, None), interrupted(kind, 25, at, through)
    assert {growth.step for growth in whole[2]} >= {5, 15}  # before and after
    assert_same_state(parts[0], whole[0])
    assert_same_state(parts[1], whole[1])
    assert parts[2:] == whole[2:]
    assert bool(whole[5]) == (kind == "gradient")


def test_history_is_plain_growths_again_after_resuming() -> None:
    model, optimizer, controller = started()
    train(model, optimizer, 4, after=controller.step)
    state = json.loads(json.dumps(controller.state_dict()))
    again = RankController(model, optimizer, rule=one_more)
    again.load_state_dict(state)
    assert again.history == controller.history
    assert all(isinstance(growth, Growth) for growth in again.history)


def test_a_state_of_other_ranks_or_layers_is_refused() -> None:
    model, optimizer, controller = started()
    train(model, optimizer, 4, after=controller.step)
    state = controller.state_dict()
    _, _, fresh = started()
    with pytest.raises(ValueError, match="the state has rank 3 for '0', the model 1: load the model's state_dict bef"):
        fresh.load_state_dict(state)
    assert fresh.step_count == 0
    assert fresh.history == []
    other = converted(14, 20, 9, 6, rank=3)
    with pytest.raises(ValueError, match="the state has rank None for '4', the model 3"):
        RankController(other, SGD(other.parameters())).load_state_dict(state)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"threshold": 0.0, "rule": None}, r"threshold must be in \(0, 1\], got 0.0"),
    ({"threshold": 1.01, "rule": None}, r"threshold must be in \(0, 1\], got 1.01"),
    ({"definition": "eq7", "rule": None}, "definition must be one of"),
    ({"every": 0}, "every must be an integer of at least 1, got 0"),
    ({"every": 2.5}, "every must be an integer of at least 1, got 2.5"),
    ({"rule": "energy"}, "rule must be a function of an Observation, got 'energy'"),
    ({"gradient_steps": 0}, "gradient_steps must be an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
@pytest.mark.usefixtures("unchecked")
def test_options_out_of_range_are_named_before_anything_changes(options: dict[str, Any], message: str) -> None:
    model, optimizer, controller = started()
    controller.detach()
    with untouched(model, optimizer), pytest.raises(ValueError, match=message):
        RankController(model, optimizer, **{"rule": one_more} | options)


def test_a_model_or_an_optimizer_that_does_not_fit_is_refused_before_anything_changes() -> None:
    plain = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"no InRankLinear layer: call inrank.convert first"):
        RankController(plain, SGD(plain.parameters()))
    made_before = SGD(plain.parameters())
    convert(plain, "0", initial_rank=1)
    with (
        untouched(plain, made_before),
        pytest.raises(ValueError, match=r"optimizer does not hold '0\.U': make the opt"),
    ):
        RankController(plain, made_before)
    kaiming = converted(14, 9, initialization="kaiming")
    optimizer = SGD(kaiming.parameters())
    with untouched(kaiming, optimizer), pytest.raises(ValueError, match="rule needs the gradient of W0: '0' has none"):
        RankController(kaiming, optimizer, rule=where_the_gradient_points)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        RankController(kaiming, [])  # type: ignore[arg-type]
    factorize(kaiming, optimizer)
    with untouched(kaiming, optimizer), pytest.raises(ValueError, match="no InRankLinear layer"):
        RankController(kaiming, optimizer)


def test_fresh_columns_are_kept_within_the_learning_rate_in_a_training() -> None:
    """One entry of U after a growth at step 1000 of Adam's counter, watched in the controller's own loop."""
    model = converted(14, 9, rank=1, max_rank=6)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    controller = RankController(model, optimizer, every=lambda step: step == 2, rule=one_more).attach()
    train(model, optimizer, 1)
    for state in optimizer.state.values():
        state["step"].fill_(1000)
    largest = 0.0
    for step in range(40):
        before = model[0].U.detach().clone()
        train(model, optimizer, 1, first=step)
        largest = max(largest, (model[0].U.detach() - before)[:, 3].abs().max().item())
    assert [growth.new_rank for growth in controller.history] == [2]
    assert 0.5e-3 < largest <= 1.001e-3


@pytest.mark.parametrize(("threshold", "published"), [(0.8, 152), (0.85, 192), (0.9, 254)])
@pytest.mark.parametrize("shape", [(768, 3072), (3072, 768)])
@pytest.mark.usefixtures("one_thread")
def test_reference_mode_ends_at_the_papers_ranks_untrained(
    shape: tuple[int, int], threshold: float, published: int
) -> None:
    """Zhao et al. 2023, Table 3, GPT-2 small: without data and without a step, from random factors alone."""
    rows, cols = shape
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(cols, rows))
    model.to_empty(device="cpu")  # its values are not used
    convert(model, "0", initialization="kaiming", buffer_rank=100)
    layer = model[0]
    assert isinstance(layer, InRankLinear)
    assert layer.max_rank > 284
    controller = RankController(model, SGD(model.parameters()), definition="reference", threshold=threshold)
    checks = 0
    while controller.check():
        checks += 1
    assert 2 <= checks < 20
    assert abs(layer.rank - published) <= 2
