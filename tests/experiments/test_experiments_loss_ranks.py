"""Ranks by loss over four kinds of trainings: what is trained, rises against our own truncation, and the verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inrank.experiments.loss_ranks import tasks
from inrank.experiments.loss_ranks.rank_by_loss import EXPERIMENTS
from inrank.experiments.loss_ranks.training import (
    BEST_UNIFORM,
    BY_LOSS,
    RULES,
    TOLERANCE,
    UNIFORM,
    _least,
    judge,
    training,
    trainings,
    uniform_name,
)
from inrank.reproduction.experiment import Findings, Outcome, Request
from inrank.reproduction.pool import unique
from inrank_monitor import attach

(EXPERIMENT,) = EXPERIMENTS.values()


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small", "paper"])
def test_every_kind_is_trained_with_every_seed_from_settings_that_can_be_kept(scale: str, tmp_path: Path) -> None:
    found = trainings(Request(tmp_path, scale, (0, 1, 2)))
    assert unique(found) == found
    assert {(one.settings["kind"], one.settings["seed"]) for one in found} == {
        (kind, seed) for kind in tasks.KINDS for seed in range(3)
    }
    for one in found:
        assert json.loads(json.dumps(dict(one.settings))) == dict(one.settings)


@pytest.mark.parametrize("threshold", range(1, 12))
def test_the_least_rank_that_is_enough(threshold: int) -> None:
    assert _least(11, lambda rank: rank >= threshold) == threshold


def test_rises_are_those_of_our_own_truncation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = tasks.convolutional(training(Request(tmp_path, "smoke", (0,)), "convolutional", 0).settings, "cpu")
    initial = {name: weight.detach().clone() for name, weight in task.model.named_parameters()}
    with attach(task.model, task.optimizer, tmp_path / "run", every=4, tensorboard=False):
        task.train()
    trained = {name: weight.detach().clone() for name, weight in task.model.named_parameters()}
    numbers = judge(task, tmp_path / "run", 30)
    assert all(torch.equal(weight, trained[name]) for name, weight in task.model.named_parameters())
    base, other = task.held_out(), task.elsewhere()
    for share in UNIFORM[:3]:
        with torch.no_grad():
            ranks = []
            for name, weight in task.model.named_parameters():
                if weight.dim() > 1:
                    update = (trained[name] - initial[name]).double().flatten(1)
                    ranks.append(max(1, round(share * min(update.shape))))
                    u, s, v = torch.linalg.svd(update, full_matrices=False)
                    cut = (u[:, : ranks[-1]] * s[: ranks[-1]]) @ v[: ranks[-1]]
                    weight.copy_((initial[name].double() + cut.view_as(weight)).to(weight.dtype))
        name = uniform_name(share)
        assert numbers[f"rank {name}"] == np.mean(ranks)
        assert numbers[f"rise {name}"] == pytest.approx(task.held_out() - base, abs=1e-6)
        assert numbers[f"elsewhere {name}"] == pytest.approx(task.elsewhere() - other, abs=1e-6)
    assert numbers[f"rise {BY_LOSS}"] <= TOLERANCE
    assert numbers[f"rise {BEST_UNIFORM}"] <= max(TOLERANCE, numbers[f"rise {BY_LOSS}"])
    assert 0 < numbers["evaluations"] <= 30


def _findings(directory: Path, rise: dict[str, float], share: float, seeds: tuple[int, ...] = (0, 1, 2)) -> Findings:
    """Of trainings whose loss rises as is said, with a little noise, and whose ranks by loss are a share of 50."""
    request = Request(directory, "tiny", seeds)
    noise = iter(np.random.default_rng(0).normal(0, 1e-5, 1000).tolist())
    outcomes = {}
    for one in trainings(request):
        rises = {**rise, BY_LOSS: 0.0099, BEST_UNIFORM: 0.0099, **{uniform_name(part): 0.02 for part in UNIFORM}}
        numbers = {
            f"{what} {name}": value + next(noise) for name, value in rises.items() for what in ("rise", "elsewhere")
        }
        ranks = dict.fromkeys(rises, 10.0) | {BY_LOSS: 50 * share, BEST_UNIFORM: 50.0}
        numbers |= {f"rank {name}": rank + next(noise) for name, rank in ranks.items()}
        numbers |= {"full_rank": 64.0, "evaluations": 200, "loss_before": 7.0, "loss_after": 4.0}
        outcomes[one.name] = Outcome(one, directory, numbers, 1.0)
    return EXPERIMENT.analyse(request, outcomes)


def test_a_rule_is_enough_where_its_loss_stays_within_the_tolerance(tmp_path: Path) -> None:
    rise = {"paper": 0.1, "peak": 0.02, "energy": 0.005, "signal": TOLERANCE, "stable": -0.01}
    findings = _findings(tmp_path, rise, 0.4)
    verdicts = [statement.verdict for statement in findings.statements]
    kinds = len(tasks.KINDS)
    expected = ["disagrees", "disagrees", "agrees", "within noise", "agrees", "agrees"]
    assert verdicts == [verdict for verdict in expected for _ in range(kinds)]
    assert "explained ratio, eq. 7, last step: 0 of 4" in findings.reading
    assert "90 % of the energy: 4 of 4" in findings.reading
    assert len(findings.figures) == kinds
    points = {trace.name: (trace.x[0], trace.y[0]) for trace in findings.figures[0].figure.data}
    assert points["ranks by loss"] == pytest.approx((20, 0.0099), abs=1e-3)


def test_a_saving_that_is_not_there_is_said(tmp_path: Path) -> None:
    findings = _findings(tmp_path, dict.fromkeys(RULES, 0.0), 0.9)
    assert [statement.verdict for statement in findings.statements[-len(tasks.KINDS) :]] == ["disagrees"] * 4


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    findings = _findings(tmp_path, dict.fromkeys(RULES, 0.5), 0.4, (0,))
    assert {statement.verdict for statement in findings.statements} == {"not tested"}
