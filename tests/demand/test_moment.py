"""When a training goes on in factors: the rule on measured ranks, and the loop that asks it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.dense import text_batches, text_step, trained_gpt2
from torch import nn

from inrank import DenseThenLowRank, Settled
from inrank.demand.moment import Moment
from inrank_monitor import attach, open_run

MLP = [f"transformer.h.{block}.mlp.{name}" for block in range(2) for name in ("c_fc", "c_proj")]


def ranks_of(model: nn.Module) -> list[int | None]:
    return [getattr(model.get_submodule(name), "rank", None) for name in MLP]


def train(model: Any, optimizer: Any, steps: range, after: Callable[[], Any]) -> dict[int, list[int | None]]:
    """The ranks after each step, counted from one."""
    seen = {}
    for step in steps:
        text_step(model, optimizer, step)
        after()
        seen[step + 1] = ranks_of(model)
    return seen


# ranks that fall by a tenth at each of ten snapshots, and stay
FALLING = [100 * 0.9 ** min(place, 10) for place in range(30)]
STEPS = [10 * (place + 1) for place in range(30)]


def test_ranks_have_settled_where_a_window_holds_no_larger_change() -> None:
    rule = Settled(within=0.05, window=0.1)
    settled = [rule.is_settled(STEPS[:end], FALLING[:end], 300) for end in range(1, 31)]
    assert settled.index(True) == 13  # the window of three snapshots before it, 30 steps, is flat
    assert all(settled[13:])
    assert rule.spread(STEPS[:8], FALLING[:8], 300) == pytest.approx(1 - 0.9**3)


def test_ranks_rule_ignores_scale_and_what_lies_before_the_window() -> None:
    rule = Settled()
    scaled = rule.spread(STEPS, [7 * rank for rank in FALLING], 300)
    assert scaled == pytest.approx(rule.spread(STEPS, FALLING, 300))
    assert rule.spread(STEPS, [9e9, *FALLING[1:]], 300) == rule.spread(STEPS, FALLING, 300)


@pytest.mark.parametrize(
    ("steps", "ranks", "spread"),
    [
        ([], [], None),
        ([10, 20, 30], [5.0, 5.0, 5.0], None),  # the window of 30 steps is longer than what has been seen
        ([10, 40], [5.0, 5.0], None),  # two snapshots are too few
        ([10, 20, 40], [5.0, 4.0, 4.0], 0.2),  # the one before the window counts
        ([10, 20, 40], [0.0, 0.0, 0.0], 0.0),  # nothing learnt
    ],
)
def test_spread_over_few_snapshots(steps: list[int], ranks: list[float], spread: float | None) -> None:
    assert Settled().spread(steps, ranks, 300) == (None if spread is None else pytest.approx(spread))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": 0.0}, "within must be a share"),
        ({"window": 1.0}, "window must be a share"),
        ({"earliest": -0.1}, "earliest must be a share"),
        ({"latest": 0.05}, r"latest must not be before earliest, 0\.1, got 0\.05"),
    ],
)
def test_a_rule_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settled(**options)


@pytest.mark.parametrize(
    ("at", "total", "message"),
    [
        (0, None, "at must be a step of at least 1"),
        (True, None, "at must be a step, a share"),
        ("soon", None, "at must be a step, a share"),
        (1.0, 10, r"at must be a share of the steps in \(0, 1\), or a step as an integer, got 1\.0"),
        (0.25, None, r"at=0\.25 counts from the length of training: give total_steps"),
        ("settled", None, "give total_steps"),
        (10, 10, "at must lie before the end of training at step 10, got 10"),
        (0.99, 10, "at must lie before the end of training"),
        (3, 0, "total_steps must be an integer of at least 1, got 0"),
    ],
)
def test_a_moment_out_of_range_is_refused(at: Any, total: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moment(at, total)


def test_looks_are_at_multiples_between_the_earliest_and_the_latest_step() -> None:
    moment = Moment(Settled(earliest=0.3, latest=0.75), 100, every=20)
    assert [step for step in range(1, 76) if moment.is_look(step)] == [40, 60, 75]
    assert Moment(0.25, 10).step == 2
    assert Moment(0.01, 10).step == 1


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(("at", "moment"), [(3, 3), (0.5, 4)])
def test_five_lines_factorize_once(at: Any, moment: int, attached: bool) -> None:
    model, optimizer = trained_gpt2(0)
    chosen = DenseThenLowRank(model, optimizer, at=at, total_steps=8, budget=0.5, calibration=text_batches())
    reports = []
    if attached:
        chosen.attach()
    seen = train(model, optimizer, range(8), lambda: None if attached else reports.append(chosen.step()))
    assert chosen.report is not None
    ranks = list(chosen.report.ranks.values())
    assert seen == {step: [None] * 4 if step < moment else ranks for step in range(1, 9)}
    assert chosen.step_count == 8
    assert attached or [report is not None for report in reports] == [step == moment for step in range(1, 9)]
    chosen.detach()
    assert all(optimizer.state[model.get_submodule(name).U]["step"] == 8 for name in MLP)  # Adam counts on


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_loop_goes_on_bit_for_bit(stop: int) -> None:
    """Before the moment and after it, with a learning rate of the factors' own; the state went through JSON."""
    options: dict[str, Any] = {"at": 4, "budget": 0.5, "calibration": text_batches(), "factor_lr": 2.0}
    model, optimizer = trained_gpt2(0)
    chosen = DenseThenLowRank(model, optimizer, **options)
    train(model, optimizer, range(stop), chosen.step)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict())), json.dumps(chosen.state_dict())
    train(model, optimizer, range(stop, 8), chosen.step)
    fresh, again = trained_gpt2(0)
    resumed = DenseThenLowRank(fresh, again, **options)
    resumed.load_state_dict(json.loads(saved[1]))
    fresh.load_state_dict(saved[0][0])
    again.load_state_dict(saved[0][1])
    assert resumed.step_count == stop
    train(fresh, again, range(stop, 8), resumed.step)
    assert resumed.report == chosen.report
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_state_of_other_ranks_is_refused() -> None:
    model, optimizer = trained_gpt2(0)
    chosen = DenseThenLowRank(model, optimizer, at=1, ranks=3, truncation="plain", targets="*.mlp.*")
    train(model, optimizer, range(1), chosen.step)
    state = chosen.state_dict()
    state["report"]["layers"][0]["rank"] = 2
    with pytest.raises(ValueError, match="the state is of ranks"):
        chosen.load_state_dict(state)


def test_settled_ranks_of_a_tracker_decide_and_the_run_says_so(tmp_path: Any) -> None:
    """What the rule says of the run's own table is what happened, at the first look at which it says so."""
    model, optimizer = trained_gpt2(0)
    rule = Settled(within=0.15, window=0.2, earliest=0.2, latest=0.9)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, strict=True) as tracker:
        chosen = DenseThenLowRank(
            model, optimizer, at=rule, total_steps=20, every=2, tracker=tracker, budget=0.5, calibration=text_batches()
        )
        seen = train(model, optimizer, range(20), chosen.step)
    moment = min(step for step, ranks in seen.items() if ranks != [None] * 4)
    run = open_run(tmp_path / "run")
    rows = run.measurements[run.measurements["matrix"].isin([f"{name}.weight" for name in MLP])]
    means = rows.groupby("step")["energy_rank"].mean()
    looks = [step for step in range(4, 19, 2) if rule.is_settled(list(means.index[:step]), list(means[:step]), 20)]
    assert moment == looks[0]
    assert 4 < moment < 18
    events = run.events.set_index("kind")
    assert events.loc["factorizing", "step"] == events.loc["factorized", "step"] == moment
    assert "ranks have settled" in events.loc["factorizing", "message"]


@pytest.mark.parametrize("latest", [0.5, None])
def test_ranks_that_do_not_settle_are_said_not_to_have(latest: float | None, tmp_path: Any) -> None:
    model, optimizer = trained_gpt2(0)
    rule = Settled(within=1e-9, latest=latest)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, strict=True) as tracker:
        chosen = DenseThenLowRank(
            model, optimizer, at=rule, total_steps=8, every=3, tracker=tracker, budget=0.5, calibration=text_batches()
        )
        seen = train(model, optimizer, range(8), chosen.step)
        chosen.detach()
    events = open_run(tmp_path / "run").events.set_index("kind")
    if latest is None:
        assert chosen.report is None
        assert "still dense after step 8: its ranks have not settled" in events.loc["not_factorized", "message"]
    else:
        assert min(step for step, ranks in seen.items() if ranks != [None] * 4) == 4
        assert "have not settled, but this is the latest" in events.loc["factorizing", "message"]


def test_what_would_fail_later_is_refused_at_once() -> None:
    model, optimizer = trained_gpt2(0)
    with pytest.raises(ValueError, match="'settled' looks at measured ranks: give tracker"):
        DenseThenLowRank(model, optimizer, at="settled", total_steps=9, budget=0.5)
    with pytest.raises(ValueError, match="calibration: demand needs batches"):
        DenseThenLowRank(model, optimizer, at=3, budget=0.5)
    with pytest.raises(ValueError, match="give either ranks or a budget"):
        DenseThenLowRank(model, optimizer, at=3, calibration=text_batches())
    with pytest.raises(TypeError, match="bugdet"):
        DenseThenLowRank(model, optimizer, at=3, bugdet=0.5)
    with pytest.raises(ValueError, match="optimizer does not hold"):
        DenseThenLowRank(model, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), at=3, ranks=2)
    assert ranks_of(model) == [None] * 4


def test_a_tracker_that_watches_other_layers_is_refused_at_the_first_look(tmp_path: Any) -> None:
    model, optimizer = trained_gpt2(0)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, include="*.attn.*") as tracker:
        chosen = DenseThenLowRank(
            model, optimizer, at="settled", total_steps=8, every=1, tracker=tracker, ranks=2, targets="*.mlp.*",
        )  # fmt: skip
        with pytest.raises(ValueError, match="tracker watches none of the layers"):
            train(model, optimizer, range(2), chosen.step)
