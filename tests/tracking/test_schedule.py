"""Schedules one by one, without a training: what they are asked, what they answer, what they refuse."""

from __future__ import annotations

import itertools
import math

import pytest

from inrank_monitor.tracking import Automatic, Every, Schedule, Where, simulate
from inrank_monitor.tracking.schedule import Meetings, make_schedule


def train(schedule: Schedule, steps: int, step_seconds: float, cost: float) -> list[int]:
    """The steps measured of a training on paper."""
    found = simulate(schedule, steps * step_seconds - step_seconds / 2, lambda _: step_seconds, lambda *_: cost)
    return list(found.steps)


@pytest.mark.parametrize("interval", [1, 7, 50])
def test_every_is_obeyed_whatever_it_costs(interval: int) -> None:
    schedule = Every(interval)
    found = [step for step in range(1, 201) if schedule.due(step, 0.01 * step, 5.0 * step)]
    assert found == list(range(interval, 201, interval))


def test_where_asks_the_function() -> None:
    schedule = Where(lambda step: step in (1, 10, 100))
    assert [step for step in range(1, 151) if schedule.due(step, 0.1, 5.0)] == [1, 10, 100]
    assert Where(lambda step: 3).due(1, 0.0, 0.0) is True  # type: ignore[arg-type,return-value]


def test_the_early_series_is_geometric() -> None:
    """Ten minutes hold 120000 steps, so they are as far apart as they may be."""
    measured = train(Automatic(), 2000, 0.005, 0.08)
    assert measured[:13] == [1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93, 140, 210]


def test_a_run_that_costs_nothing_is_measured_at_all_steps_five_percent_apart() -> None:
    measured = train(Automatic(), 3000, 1.0, 1e-9)
    assert measured[:20] == list(range(1, 21))
    later = [step for step in measured[:-1] if step > 20]
    assert all(step == math.ceil(1.05 * before) for before, step in itertools.pairwise(later))
    assert later[-1] > 3000 / 1.06


def test_what_is_earned_is_spent() -> None:
    """A long run ends with at least half of its budget used, as long as steps 5 % apart leave it something to buy."""
    for step_seconds, cost in [(0.1, 1.0), (0.5, 3.0)]:
        found = simulate(Automatic(), 2500, lambda _, each=step_seconds: each, lambda *_, each=cost: each)
        assert 0.005 <= found.share <= 0.01


def test_a_dear_snapshot_is_taken_once_and_then_when_it_and_a_last_one_have_been_earned() -> None:
    schedule = Automatic(0.01)
    assert schedule.due(1, 0.1, 0.0)
    schedule.measured(1, 10.0)
    assert not schedule.due(100, 2990.0, 10.0)
    assert schedule.due(100, 3001.0, 10.0)
    schedule.measured(100, 10.0)
    assert not schedule.due(200, 4100.0, 20.0)  # a quarter of the budget stays for what the tracker cannot see
    assert schedule.due(200, 5400.0, 20.0)


@pytest.mark.parametrize("costs", [(0.02, 3.0), (3.0, 0.02), (0.02, 0.02, 9.0), (0.02, 0.5, 0.02, 0.5, 0.02)])
def test_a_slow_snapshot_is_not_what_the_next_is_expected_to_cost(costs: tuple[float, ...]) -> None:
    schedule = Automatic()
    for step, cost in enumerate(costs, start=1):
        schedule.measured(step, cost)
    assert any(schedule.due(step, 0.1 * step + sum(costs), sum(costs)) for step in range(6, 11))


def test_a_cost_that_stays_higher_is_learnt() -> None:
    schedule = Automatic()
    for step in range(1, 21):
        schedule.measured(step, 0.001)
    assert schedule.due(30, 600.0, 0.02)
    for step in range(30, 40):
        schedule.measured(step, 1.0)
    assert not schedule.due(60, 900.0, 5.0)  # 5 + 2 · 1 is more than three quarters of 9


@pytest.mark.parametrize("attaching", [0.0, 2.0, 30.0])
def test_attaching_takes_nothing_from_the_early_series(attaching: float) -> None:
    found = simulate(Automatic(), 60 + attaching, lambda _: 0.1, lambda *_: 0.1, attaching=attaching)
    assert sum(step <= 200 for step in found.steps) >= 12


def test_asking_changes_nothing() -> None:
    """As processes that train together do: about a thousand steps to come, and those asked before."""
    plain, asked = Automatic(), Automatic()
    for step in range(1, 3000):
        elapsed = 0.1 * step
        for ahead in range(step, min(step + 1000, 3000), 37):
            asked.due(ahead, 0.1 * ahead, 0.0)
        due = plain.due(step, elapsed, 0.05)
        assert asked.due(step, elapsed, 0.05) == due
        if due:
            plain.measured(step, 0.05)
            asked.measured(step, 0.05)


def test_meetings_come_at_the_steps_that_are_due() -> None:
    schedule, alone, meetings = Automatic(), Automatic(), Meetings()
    spent, meeting, met, measured = 0.0, 1, [], []
    for step in range(1, 2000):
        elapsed = 0.1 * step + spent
        if alone.due(step, elapsed, spent):
            measured.append(step)
            alone.measured(step, 0.05)
        if step == meeting:
            met.append(step)
            if schedule.due(step, elapsed, spent):
                schedule.measured(step, 0.05)
                spent += 0.05
            meeting = meetings.plan(schedule, step, 0.1 * step + spent, spent)
    assert len(met) < 2.5 * len(measured)
    assert len(measured) > 25
    assert sum(step <= 200 for step in met) >= 12


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


@pytest.mark.parametrize("elapsed", [-3600.0, -1.0, 0.0, 1e-12])
def test_a_clock_that_jumps_back_ends_nothing(elapsed: float) -> None:
    schedule = Automatic()
    for step in (1, 2, 3):
        schedule.measured(step, 0.05)
    assert not schedule.due(3, elapsed, 0.15)
    assert any(schedule.due(step, elapsed + 0.1 * step, 0.15) for step in range(4, 10))


def test_make_schedule_gives_what_is_asked_for() -> None:
    assert isinstance(make_schedule(5, None, 0.01), Every)
    automatic = make_schedule(None, None, 0.03)
    assert isinstance(automatic, Automatic)
    assert automatic.max_overhead == 0.03
    assert isinstance(make_schedule(None, lambda step: True, 0.01), Where)
    own = Every(3)
    assert make_schedule(None, own, 0.01) is own


def test_the_schedules_have_a_public_name() -> None:
    from inrank_monitor import schedule

    assert (schedule.Automatic, schedule.Every, schedule.Where) == (Automatic, Every, Where)


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
