"""The automatic schedule in trainings on paper: what it promises, whatever steps and snapshots take.

The promise, at `max_overhead` 1 %: at most 1 % of the time over ten minutes and more; before that at most 3 seconds in
the first minute and 5 % of the time so far up to the tenth. The first and the last step are measured in any case.
"""

from __future__ import annotations

import itertools
import math
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from inrank_monitor.tracking import Automatic, Simulated, simulate

STEP_SECONDS = [0.005, 0.02, 0.1, 0.24, 1.0, 10.0]
COSTS = [0.001, 0.017, 0.1, 0.13, 0.2, 0.3, 1.0, 1.5, 3.0, 10.0, 60.0]
SECONDS = {0.005: (20, 120), 0.02: (20, 60, 700)}


def run(seconds: float, step_seconds: float, cost: float, budget: float = 0.01, **more: float) -> Simulated:
    return simulate(Automatic(budget), seconds, lambda _: step_seconds, lambda *_: cost, **more)  # type: ignore[arg-type]


def check_promise(found: Simulated, cost: float, budget: float = 0.01) -> None:
    """At every snapshot that the schedule asked for; the first is exempt, and the last where the run is too short."""
    scale = budget / 0.01
    for number, (time, spent) in enumerate(zip(found.times, found.spent, strict=True)):
        if number == 0 or number == len(found.steps) - 1:
            continue
        most = 3 * scale if time <= 60 else min(5 * budget * time, 6 * scale)
        assert spent <= (most if time < 600 else max(budget * time, most)) + 1e-9, (time, spent)
    if found.times[-1] >= 600 and 2 * cost <= budget * found.times[-1]:
        assert found.share <= budget


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.001])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("step_seconds", STEP_SECONDS)
def test_the_budget_is_kept_at_every_moment(step_seconds: float, cost: float, budget: float) -> None:
    for seconds in SECONDS.get(step_seconds, (20, 120, 900, 7200)):
        found = run(seconds, step_seconds, cost, budget)
        assert found.steps[0] == 1
        assert found.steps[-1] == found.last
        check_promise(found, cost, budget)


@pytest.mark.parametrize("step_seconds", STEP_SECONDS)
@pytest.mark.parametrize("cost", [cost for cost in COSTS if cost <= 0.2])
def test_two_minutes_hold_twenty_snapshots_and_the_first_200_steps_twelve(step_seconds: float, cost: float) -> None:
    """Where the run has so many steps, and what is lent pays for them."""
    found = run(120, step_seconds, cost)
    assert len(found.steps) >= min(20, found.last)
    assert sum(step <= 200 for step in found.steps) >= min(12, found.last)
    assert sum(step <= 50 for step in found.steps) >= min(8, found.last)
    assert found.share < 0.05


@pytest.mark.parametrize("step_seconds", [0.005, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("cost", [0.001, 0.02, 0.05, 0.1])
def test_a_run_of_twenty_seconds_has_a_curve(step_seconds: float, cost: float) -> None:
    found = run(20, step_seconds, cost)
    assert len(found.steps) >= 12
    assert found.largest_ratio <= 2.5
    assert found.spent[-1] <= 3


@pytest.mark.parametrize("step_seconds", STEP_SECONDS)
@pytest.mark.parametrize("cost", [cost for cost in COSTS if cost <= 0.13])
def test_a_curve_has_no_hole(step_seconds: float, cost: float) -> None:
    found = run(3600 if step_seconds > 0.05 else 300, step_seconds, cost)
    assert found.largest_ratio <= 2.5
    assert all(later >= 1.05 * earlier for earlier, later in itertools.pairwise(found.steps[:-1]))


@pytest.mark.parametrize("cost", [0.3, 0.45, 0.6])
def test_what_is_dear_is_spread_over_the_ten_minutes(cost: float) -> None:
    found = run(600, 0.1, cost)
    affordable = math.floor(4.5 / cost)
    assert affordable <= len(found.steps) <= affordable + 2
    assert found.largest_ratio <= 6000 ** (2 / affordable)


@pytest.mark.parametrize("cost", [20.0, 60.0, 180.0])
def test_a_snapshot_of_minutes_is_taken_first_last_and_as_the_budget_buys(cost: float) -> None:
    assert len(run(600, 1.0, cost).steps) == 2
    found = run(1000 * cost, 10.0, cost)
    assert 5 <= len(found.steps) <= 8
    assert 0.005 <= found.share <= 0.01


UNEVEN: dict[str, tuple[Callable[[int, int], float], float]] = {  # cost by number and step; the promised points' least
    "slow second": (lambda number, _: 0.3 if number == 1 else 0.017, 20),
    "very slow second": (lambda number, _: 6.0 if number == 1 else 0.017, 20),
    "slow eighth": (lambda number, _: 2.0 if number == 7 else 0.05, 20),
    "start-up": (lambda number, _: 1.2 if number == 0 else 0.05, 20),
    "start-up and a slow third": (lambda number, _: (1.0, 0.03, 0.8, 0.03)[min(number, 3)], 20),
    "one in five is slow": (lambda number, _: 0.3 if number % 5 == 4 else 0.02, 20),
    "grows with the run": (lambda _, step: 0.02 + 3e-5 * step, 20),
    "halves": (lambda number, _: 0.4 / (1 + number), 20),
}


@pytest.mark.parametrize("step_seconds", [0.02, 0.12, 0.5])
@pytest.mark.parametrize("name", UNEVEN)
def test_costs_that_differ_leave_a_curve(name: str, step_seconds: float) -> None:
    cost, least = UNEVEN[name]
    found = simulate(Automatic(), 120, lambda _: step_seconds, cost)
    assert len(found.steps) >= least, found.steps
    assert sum(step <= 100 for step in found.steps) >= 6, found.steps
    assert found.spent[-1] - max(found.spent[0], 6.0 if "very" in name else 0) <= 0.05 * 120
    longer = simulate(Automatic(), 1800, lambda _: step_seconds, cost)
    assert longer.share <= 0.01


@pytest.mark.parametrize("at", [2, 5, 50, 400])
@pytest.mark.parametrize("cost", [0.02, 0.13, 3.0])
def test_a_pause_is_not_caught_up_with(at: int, cost: float) -> None:
    """Asleep, or evaluating, for an hour: afterwards no step is measured that is not 5 % further, and 1 % is kept."""
    found = simulate(Automatic(), 4200, lambda step: 3600.0 if step == at else 0.1, lambda *_: cost)
    assert all(later >= min(1.05 * earlier, found.last) for earlier, later in itertools.pairwise(found.steps))
    assert found.share <= 0.01
    if cost < 1:
        assert sum(step <= 200 for step in found.steps) >= 12


def test_evaluations_between_steps_leave_a_curve() -> None:
    found = simulate(Automatic(), 1200, lambda step: 15.0 if step % 100 == 0 else 0.1, lambda *_: 0.1)
    assert found.until(120) >= 18
    assert found.largest_ratio <= 2
    assert found.share <= 0.01


def test_a_first_step_that_compiles_leaves_a_curve() -> None:
    found = simulate(Automatic(), 300, lambda step: 60.0 if step == 1 else 0.1, lambda *_: 0.1)
    assert found.until(180) >= 20
    assert found.largest_ratio <= 2


@pytest.mark.parametrize("step_seconds", [0.005, 0.1, 2.0])
@pytest.mark.parametrize("cost", [0.001, 0.02, 0.13, 1.0])
def test_a_resumed_run_goes_on_at_the_distances_of_its_steps(step_seconds: float, cost: float) -> None:
    found = run(120, step_seconds, cost, first=5000)
    assert found.steps[0] == 5001
    assert all(later >= 1.05 * earlier for earlier, later in itertools.pairwise(found.steps[:-1]))
    assert sum(step <= 5200 for step in found.steps) <= 2
    check_promise(found, cost)


def test_a_run_resumed_early_still_has_its_early_series() -> None:
    found = run(120, 0.1, 0.1, first=20)
    assert sum(step <= 200 for step in found.steps) >= 9
    assert found.largest_ratio <= 1.5


def test_the_budget_counts_attaching_in_the_long_run() -> None:
    assert run(1800, 0.1, 0.1, attaching=5.0).share <= 0.01
    assert run(600, 0.1, 0.1, attaching=3.0).share <= 0.01


def test_the_figure_in_the_docs_is_what_the_simulation_gives() -> None:
    path = Path(__file__).parents[2] / "benchmarks/bench_schedule.py"
    script = runpy.run_path(str(path))
    drawn = script["figure"]([case for case in script["CASES"] if case.drawn])
    kept = (path.parents[1] / "docs/images/schedule.svg").read_text(encoding="utf-8")
    assert drawn == kept, f"python {path.name} --figure docs/images/schedule.svg draws it anew"


def test_the_simulation_adds_up() -> None:
    found = simulate(Automatic(), 10, lambda step: 0.5 * step, lambda number, step: 0.01 * step, first=3, attaching=1.0)
    assert found.last == max(found.steps)
    assert found.spent[-1] == pytest.approx(1.0 + 0.01 * sum(found.steps))
    assert found.times[-1] == pytest.approx(found.spent[-1] + 0.5 * sum(range(4, found.last + 1)))
    assert found.until(found.times[0]) == 1
