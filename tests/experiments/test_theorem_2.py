"""Theorem 2's experiment: its numbers on known answers, and a training under the tracker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inrank.experiments.theorem_2.flows import start_numbers
from inrank.experiments.theorem_2.order import (
    crossing_times,
    drawn,
    misfit,
    negative_share,
    order,
    trajectory,
    update_rank,
)
from inrank.experiments.theorem_2.theorem_2 import analyse, trainings
from inrank.experiments.theorem_2.training import trained_errors
from inrank.reproduction.experiment import Outcome, Request

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


def test_order_is_spearmans_correlation() -> None:
    s = torch.arange(1.0, 9)
    assert order(s, 1 / s) == -1
    assert order(s, s**3) == 1
    assert abs(order(s, torch.rand(20_000, 8))) < 0.01


def test_crossing_times_interpolate_and_late_ones_are_last() -> None:
    times = torch.tensor([0.0, 1.0, 2.0])
    shares = torch.tensor([[0.0, 0.0, 0.0], [0.25, 1.0, 0.1], [0.75, 1.0, 0.2]])
    torch.testing.assert_close(crossing_times(shares, times), torch.tensor([1.5, 0.5, 2.0]))


def test_misfit_knows_a_power_from_an_exponential() -> None:
    s = torch.linspace(1, 10, 10)
    power, exponential = misfit(s, s**-1.5)
    assert power < 1e-6 < exponential
    power, exponential = misfit(s, torch.exp(-s))
    assert exponential < 1e-6 < power


def trained(directory: Path, request: Request) -> Outcome:
    (training,) = trainings(request)
    numbers = training.run(directory, json.loads(json.dumps(training.settings)), "cpu")
    return Outcome(training, directory, numbers, 1.0)


def test_descent_watched_by_the_tracker_follows_the_theorem(tmp_path: Path) -> None:
    outcome = trained(tmp_path / "run", Request(tmp_path, "smoke", (0,)))
    assert outcome.numbers["loss"] < 0.01 * outcome.numbers["first_loss"]
    assert outcome.numbers["test_loss"] < 0.01 * outcome.numbers["first_loss"]
    errors = trained_errors(outcome)
    assert 0 < errors["modes"] < errors["allowed"]
    assert 0 < errors["layers"] < errors["allowed"]
    assert sorted(outcome.tables.singular_values("1.weight").index)[-1] == outcome.training.settings["steps"]


@pytest.mark.slow
def test_findings_are_complete_and_one_seed_decides_only_what_is_computed(tmp_path: Path) -> None:
    request = Request(tmp_path, "smoke", (0,))
    outcome = trained(tmp_path / "run", request)
    findings = analyse(request, {outcome.training.name: outcome})
    assert len({statement.claim for statement in findings.statements}) == len(findings.statements)
    assert {s.verdict for s in findings.statements if "no spread" not in s.why} == {"not tested"}
    assert "nan" not in json.dumps(findings.as_json()).lower()
    assert all(figure.figure.data and figure.look and figure.conclude for figure in findings.figures)


def test_only_b_over_a_decides_the_order_of_learning() -> None:
    one, other = (trajectory(*drawn(a, b, 10, 100, seed=0)) for a, b in ((0.1, 0.01), (1.0, 0.1)))
    assert one == pytest.approx(other)


def test_equal_starts_are_learned_in_order_and_large_ones_at_once() -> None:
    s = torch.arange(1.0, 11, dtype=torch.float64)
    small, large = (trajectory(s, torch.full((3, 10), u0, dtype=torch.float64)) for u0 in (1e-6, 1e6))
    assert small["order"] == large["order"] == -1
    assert small["increment"] < 0.3
    assert large["increment"] == pytest.approx(1, abs=1e-3)


def test_half_of_the_starts_of_either_sign_are_never_learned() -> None:
    _, u0 = drawn(1.0, 0.01, 10, 1000, seed=0)
    assert (u0 > 0).all()
    assert negative_share(0.01, 10, 1000, seed=0) == pytest.approx(0.5, abs=0.02)


def test_update_has_the_targets_rank_only_from_a_small_start() -> None:
    small, target = update_rank(1e-9, 10, 5, seed=0)
    assert small == pytest.approx(target)
    assert target == pytest.approx(np.exp(-sum(p * np.log(p) for p in np.array([8, 9, 10]) / 27)))
    assert update_rank(1.0, 10, 5, seed=0)[0] > 1.2 * target


def test_flow_from_the_theorems_start_gives_the_closed_forms_order() -> None:
    found = start_numbers("orthogonal, M¹ = M², scale 0.01", 6, seed=0)
    assert found["error"] < 1e-7
    assert start_numbers("Gaussian, usual (1/√fan-in)", 6, seed=0)["error"] > 0.05
