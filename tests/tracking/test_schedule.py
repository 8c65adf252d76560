from __future__ import annotations

import itertools
import math

import pytest

from inrank_monitor.tracking.schedule import GRACE_SECONDS, Automatic, Every, Schedule, Where, make_schedule


def train(schedule: Schedule, steps: int, step_seconds: float, cost: float) -> tuple[list[int], list[float], float]:
    """A training run on paper: the steps measured, the share of wall time after each, and the share at the end."""
    elapsed = spent = 0.0
    measured: list[int] = []
    shares: list[float] = []
    for step in range(1, steps + 1):
        elapsed += step_seconds
        if schedule.due(step, elapsed, spent):
            elapsed += cost
            spent += cost
            schedule.measured(step, cost)
            measured.append(step)
            shares.append(spent / max(elapsed, GRACE_SECONDS))
    elapsed += cost  # the last snapshot, which close() takes
    return measured, shares, (spent + cost) / elapsed


@pytest.mark.parametrize("interval", [1, 7, 50])
def test_every_is_obeyed_whatever_it_costs(interval: int) -> None:
    measured, _, share = train(Every(interval), 200, 0.01, 5.0)
    assert measured == list(range(interval, 201, interval))
    assert share > 0.5 or interval == 50


def test_where_asks_the_function() -> None:
    measured, _, _ = train(Where(lambda step: step in (1, 10, 100)), 150, 0.1, 5.0)
    assert measured == [1, 10, 100]
    assert Where(lambda step: 3).due(1, 0.0, 0.0) is True  # type: ignore[arg-type,return-value]


RUNS = [  # seconds a step, seconds a snapshot, steps
    (0.1, 0.05, 5000),
    (0.1, 0.3, 5000),
    (0.01, 0.02, 30000),
    (2.0, 0.25, 2000),
    (0.5, 30.0, 20000),
    (0.001, 0.001, 200000),
    (1.0, 1e-6, 3000),
]


@pytest.mark.parametrize(("step_seconds", "cost", "steps"), RUNS)
@pytest.mark.parametrize("budget", [0.01, 0.05])
def test_automatic_stays_within_its_budget(step_seconds: float, cost: float, steps: int, budget: float) -> None:
    """At every moment of a run of a minute or more; the first snapshot is taken before its cost is known."""
    measured, shares, at_the_end = train(Automatic(budget), steps, step_seconds, cost)
    assert measured[0] == 1
    assert all(share <= budget for share in shares[1:])
    if steps * step_seconds >= GRACE_SECONDS and 2 * cost <= budget * steps * step_seconds:
        assert at_the_end <= budget


@pytest.mark.parametrize(("step_seconds", "cost", "steps"), RUNS)
def test_automatic_steps_are_five_percent_apart_or_more(step_seconds: float, cost: float, steps: int) -> None:
    measured, _, _ = train(Automatic(), steps, step_seconds, cost)
    assert all(later >= max(1.05 * earlier, earlier + 1) for earlier, later in itertools.pairwise(measured))


@pytest.mark.parametrize(
    ("step_seconds", "cost", "steps"), [(0.1, 0.05, 5000), (0.01, 0.02, 30000), (0.1, 0.001, 5000)]
)
def test_automatic_is_dense_early(step_seconds: float, cost: float, steps: int) -> None:
    """Where the first minute can afford a dozen snapshots."""
    measured, _, _ = train(Automatic(), steps, step_seconds, cost)
    early = sum(step <= steps // 4 for step in measured)
    late = sum(step > steps - steps // 4 for step in measured)
    assert early > 2 * late


def test_a_run_that_costs_nothing_is_measured_at_all_steps_five_percent_apart() -> None:
    measured, _, _ = train(Automatic(), 3000, 1.0, 1e-9)
    assert measured[:20] == list(range(1, 21))
    later = [step for step in measured if step > 20]
    assert all(step == math.ceil(1.05 * before) for before, step in itertools.pairwise(later))
    assert later[-1] > 3000 / 1.06


def test_the_first_minute_spends_its_budget_in_equal_ratios() -> None:
    """0.6 s are earned in a minute, 0.45 s of them may be spent: eight snapshots of 0.05 s beside the last one."""
    measured, _, _ = train(Automatic(), 599, 0.1, 0.05)
    assert len(measured) == 8
    ratios = [later / earlier for earlier, later in itertools.pairwise(measured) if earlier >= 8]
    assert max(ratios) < 1.1 * min(ratios)
    assert measured[-1] > 500


def test_what_is_earned_is_spent() -> None:
    """A long run ends with at least half of its budget used, as long as steps 5 % apart leave it something to buy."""
    for step_seconds, cost, steps in [(0.1, 0.3, 5000), (0.5, 3.0, 5000)]:
        _, _, share = train(Automatic(), steps, step_seconds, cost)
        assert 0.005 <= share <= 0.01


def test_a_dear_snapshot_is_taken_once_and_then_when_it_has_been_earned() -> None:
    schedule = Automatic(0.01)
    assert schedule.due(1, 0.1, 0.0)
    schedule.measured(1, 10.0)
    assert not schedule.due(100, 3000.0, 10.0)  # with the next and the last it would be 30 s, the whole budget
    assert schedule.due(101, 4001.0, 10.0)  # three quarters of it


def test_automatic_follows_a_cost_that_changes() -> None:
    schedule = Automatic(0.01)
    schedule.measured(1, 5.0)  # includes start-up
    schedule.measured(2, 0.1)
    assert schedule.due(4, 840.0, 5.1)  # 5.1 + 2 · 0.1 within three quarters of 8.4
    for step in range(3, 30):
        schedule.measured(step, 3.0)
    assert not schedule.due(60, 1000.0, 5.1)  # 5.1 + 2 · 3 is not within 7.5


def test_a_step_is_never_measured_twice() -> None:
    schedule = Automatic()
    schedule.measured(7, 1e-9)
    assert not schedule.due(7, 1e6, 0.0)
    assert schedule.due(8, 1e6, 0.0)


def test_a_snapshot_of_w0_itself_does_no_harm() -> None:
    """As `tracker.measure()` before the first step takes it."""
    schedule = Automatic()
    schedule.measured(0, 0.1)
    assert any(schedule.due(step, 0.1 * step, 0.1) for step in range(1, 20))


def test_a_resumed_run_measures_its_first_step() -> None:
    assert Automatic().due(5001, 0.1, 0.0)


def test_make_schedule_gives_what_is_asked_for() -> None:
    assert isinstance(make_schedule(5, None, 0.01), Every)
    automatic = make_schedule(None, None, 0.03)
    assert isinstance(automatic, Automatic)
    assert automatic.max_overhead == 0.03
    assert isinstance(make_schedule(None, lambda step: True, 0.01), Where)
    own = Every(3)
    assert make_schedule(None, own, 0.01) is own


@pytest.mark.parametrize("every", [0, -1, 2.5, "10", True])
def test_an_interval_out_of_range_is_refused(every: object) -> None:
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got"):
        make_schedule(every, None, 0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("every", [None, 5])
def test_a_budget_out_of_range_is_refused(budget: float, every: int | None) -> None:
    with pytest.raises(ValueError, match=r"max_overhead must be in \(0, 1\], got"):
        make_schedule(every, None, budget)


def test_a_schedule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="give every or schedule, not both"):
        make_schedule(5, lambda step: True, 0.01)
    for wrong in (5, "often"):
        with pytest.raises(TypeError, match="schedule must be a function step -> bool or a Schedule"):
            make_schedule(None, wrong, 0.01)  # type: ignore[arg-type]
