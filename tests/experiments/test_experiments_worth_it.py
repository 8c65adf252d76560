"""Worth it: what is trained and charged, how rates are chosen, and verdicts on made-up numbers, few of them too."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from inrank.cli import main
from inrank.experiments.worth_it.arms import (
    DENSE,
    DENSE_SCHEDULED,
    INRANK,
    INRANK_EFFICIENT,
    Arm,
    cheaper_dense,
    fixed,
    low_rank,
    narrow,
    pruned,
)
from inrank.experiments.worth_it.costs import Meter
from inrank.experiments.worth_it.data import batch_of, data_of
from inrank.experiments.worth_it.plan import SCALES, Seed, arms_of, budgets, trainings
from inrank.experiments.worth_it.training import chosen_rate, train
from inrank.experiments.worth_it.worth_it import EXPERIMENTS
from inrank.gpt2.text import Corpus
from inrank.reproduction.experiment import ExperimentError, Findings, Outcome, Request, Training
from inrank.reproduction.pool import FINISHED_FILE, Pool, unique

EXPERIMENT = EXPERIMENTS["worth-it"]
SMOKE = SCALES["smoke"]


def _request(out: Path, scale: str = "smoke", seeds: tuple[int, ...] = (0, 1)) -> Request:
    return Request(out, scale, seeds)


@pytest.mark.parametrize("scale", SCALES)
def test_every_training_has_a_name_of_its_own_and_settings_that_are_json(scale: str, tmp_path: Path) -> None:
    found = trainings(replace(_request(tmp_path, scale), device="cuda" if scale == "paper" else "cpu"))
    assert len(unique(found)) == len(found)
    names = {one.name for one in found}
    for one in found:
        assert json.loads(json.dumps(dict(one.settings))) == one.settings | {"text": list(one.settings["text"])}
        assert set(one.after) <= names
        assert Arm.of(json.loads(json.dumps(one.settings["arm"]))).settings == one.settings["arm"]


def test_the_papers_size_is_refused_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="needs a GPU: --device cuda"):
        trainings(_request(tmp_path, "paper"))


def test_the_whole_table_is_trained_at_small(tmp_path: Path) -> None:
    request = _request(tmp_path, "small", (0, 1, 2))
    arms = arms_of(request)
    assert budgets(request) == (0.45, 0.30, 0.15)
    for budget in budgets(request):
        kinds = [arm for arm in arms if arm.budget == budget and arm.kind == "low-rank"]
        assert {arm.allocation for arm in kinds} == {"demand", "uniform", "energy", "loss"}
        assert {arm.after for arm in kinds if arm.allocation == "demand"} == {0.05, 0.10, 0.25}
        rivals = {narrow("uniform", budget), narrow("demand", budget), fixed(budget), pruned(budget)}
        assert rivals | {cheaper_dense(budget)} <= set(arms)
    assert {DENSE, DENSE_SCHEDULED, INRANK} <= set(arms)
    assert len(trainings(request)) == 3 + len(arms) * (len(SCALES["small"]["rates"]) + 2)


def test_the_first_seed_is_trained_at_every_rate_and_the_others_wait_for_it(tmp_path: Path) -> None:
    request = _request(tmp_path, "tiny", (3, 4))
    first, second = (Seed(request, seed).trainings(DENSE) for seed in request.seeds)
    assert [one.settings["rate"] for one in first] == list(SCALES["tiny"]["rates"])
    assert [one.settings["rate"] for one in second] == [None]
    assert second[0].after == tuple(one.name for one in first)


def test_the_rate_is_that_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    for rate, validation in ((0.1, 3.0), (0.2, 2.0), (0.3, 2.5)):
        (tmp_path / f"{rate}").mkdir()
        content = {"numbers": {"rate": rate, "validation": validation, "loss": -validation}}
        (tmp_path / f"{rate}" / FINISHED_FILE).write_text(json.dumps(content))
    assert chosen_rate(tmp_path, {"rates_from": ["0.1", "0.2", "0.3"]}) == 0.2
    assert chosen_rate(tmp_path, {"rates_from": [], "rate": 0.7}) == 0.7


def _corpus(tokens: int) -> Corpus:
    train = np.arange(tokens, dtype=np.uint16)
    return Corpus(Path(), "counted", tokens, train, train[:101])


def test_no_batch_reaches_into_the_validation_part_and_each_of_its_tokens_is_predicted_once() -> None:
    settings = {"context": 8, "validation_tokens": 33, "test_tokens": 64, "batch": 5000}
    data = data_of(_corpus(200), settings)
    seen = batch_of(data, settings, torch.Generator().manual_seed(0))
    assert (int(seen.min()), int(seen.max())) == (0, 165)
    assert data.train.tolist() == list(range(167))
    assert data.validation[:, 1:].flatten().tolist() == list(range(168, 200))
    assert data.test[:, 1:].flatten().tolist() == list(range(1, 65))


def test_a_text_without_room_for_a_validation_part_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 41 tokens to train on, got 41"):
        data_of(_corpus(41), {"context": 8, "validation_tokens": 33, "test_tokens": 8})


def test_multiply_adds_of_a_step_are_counted_once_a_shape() -> None:
    meter, model = Meter("cpu", tokens=10), nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    one = 10 * (6 * 5 + 5 * 4)  # forward
    whole = 2 * one + 10 * 5 * 4  # the gradient of each weight; that of the inputs of the second layer only
    for _ in range(3):
        with meter.step():
            model(torch.zeros(10, 6)).sum().backward()
    assert meter.multiply_adds == 3 * whole
    meter.model_changed()
    with meter.step():
        model[0](torch.zeros(10, 6)).sum().backward()
    assert meter.multiply_adds == 3 * whole + 2 * 10 * 6 * 5
    meter.covariances([(5, 6), (4, 5)], batches=2)
    assert meter.multiply_adds == 3 * whole + 2 * 10 * 6 * 5 + 2 * 10 * (25 + 36 + 16 + 25)


def test_a_decomposition_is_charged_alike_for_a_matrix_and_its_transpose() -> None:
    costs = []
    for shape in ((40, 10), (10, 40)):
        meter = Meter("cpu", tokens=1)
        meter.decompositions([shape], weighted=True)
        costs.append(meter.multiply_adds)
    assert costs[0] == costs[1] > 0


def _trained(tmp_path: Path, arm: Arm, **changes: Any) -> Mapping[str, float]:
    one = Seed(_request(tmp_path), 0).trainings(arm)[0]
    return train(tmp_path / "runs" / one.name, {**one.settings, **changes}, "cpu")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Mapping[str, float]]]:
    """A few arms at smoke scale, in this process."""
    out = tmp_path_factory.mktemp("smoke")
    arms = {"dense": DENSE, "low": low_rank(0.45), "narrow": narrow("uniform", 0.45), "fixed": fixed(0.45)}
    return out, {name: _trained(out, arm) for name, arm in arms.items()}


def test_each_arm_has_what_its_budget_allows(smoke: tuple[Path, dict[str, Mapping[str, float]]]) -> None:
    _, numbers = smoke
    assert numbers["dense"]["mlp_share"] == 1
    for name in ("low", "narrow", "fixed"):
        assert 0.4 < numbers[name]["mlp_share"] <= 0.45, name
        assert numbers[name]["parameters"] < numbers["dense"]["parameters"]
    assert {name for name in numbers["low"] if name.startswith("rank ")} == {
        f"rank transformer.h.{block}.mlp.{kind}" for block in (0, 1) for kind in ("c_fc", "c_proj")
    }
    assert all(one["steps"] == SMOKE["steps"] and math.isfinite(one["loss"]) for one in numbers.values())


def test_multiply_adds_of_dense_training_are_those_of_its_matrix_products(
    smoke: tuple[Path, dict[str, Mapping[str, float]]],
) -> None:
    out, numbers = smoke
    width, layers, context, tokens = 32, 2, SMOKE["context"], SMOKE["batch"] * SMOKE["context"]
    vocabulary = json.loads(next(out.glob("runs/tokens-*/corpus.json")).read_text())["vocabulary"]
    forward = layers * (12 * width**2 + 2 * context * width) + vocabulary * width
    assert numbers["dense"]["multiply_adds"] == 3 * forward * tokens * SMOKE["steps"]


def test_what_is_asked_of_the_loss_is_charged(smoke: tuple[Path, dict[str, Mapping[str, float]]]) -> None:
    """At this size calibration costs more than it saves."""
    _, numbers = smoke
    cost = {name: one["multiply_adds"] for name, one in numbers.items()}
    assert cost["narrow"] < cost["fixed"] < cost["dense"] < cost["low"]


def test_the_same_settings_give_the_same_numbers(smoke: tuple[Path, dict[str, Mapping[str, float]]]) -> None:
    out, numbers = smoke
    again = _trained(out, low_rank(0.45))
    assert {name: value for name, value in again.items() if name not in ("seconds", "memory")} == {
        name: value for name, value in numbers["low"].items() if name not in ("seconds", "memory")
    }


@pytest.mark.slow
def test_the_other_arms_keep_to_their_budgets_and_pay_for_what_they_ask(tmp_path: Path) -> None:
    arms = {"inrank": INRANK, "efficient": INRANK_EFFICIENT, "pruned": pruned(0.45)}
    arms |= {"demand": low_rank(0.45), "loss": low_rank(0.45, "loss"), "energy": low_rank(0.45, "energy")}
    numbers = {name: _trained(tmp_path, arm) for name, arm in arms.items()}
    share = {name: one["mlp_share"] for name, one in numbers.items()}
    assert share["efficient"] < 1 < share["inrank"]  # W0 is gone, and stays
    assert max(share["pruned"], share["demand"], share["loss"], share["energy"]) <= 0.45
    assert numbers["loss"]["multiply_adds"] > numbers["demand"]["multiply_adds"]  # many evaluations


@pytest.mark.slow
def test_the_mlp_rate_changes_nothing_before_its_moment(tmp_path: Path) -> None:
    """And something after: the two arms differ in the second half only."""
    dense, later = (_trained(tmp_path, arm) for arm in (DENSE, replace(DENSE_SCHEDULED, after=1.0)))
    sooner = _trained(tmp_path, DENSE_SCHEDULED)
    assert dense["loss"] == later["loss"] != sooner["loss"]


def _numbers(arm: Arm, loss: float, validation: float, rate: float) -> dict[str, float]:
    sizes = {"parameters": 1e6, "mlp_share": arm.budget or 1.0, "multiply_adds": 1e9, "seconds": 9.0, "memory": 1e8}
    layer = {"rank transformer.h.0.mlp.c_fc": 7.0} if arm.kind == "low-rank" else {}
    return {"loss": loss, "validation": validation, "rate": rate, "steps": 10, **sizes, **layer}


def _findings(
    out: Path, perplexities: Mapping[Arm, float], seeds: tuple[int, ...] = (0, 1, 2), rates: int = 3
) -> Findings:
    """Of trainings that end at these perplexities, with a little noise; the middle rate is the best."""
    request = _request(out, "tiny", seeds)
    noise = iter(np.random.default_rng(0).normal(0, 1e-4, 1000).tolist())
    outcomes = {}
    for seed in seeds:
        for arm, perplexity in perplexities.items():
            for place, one in enumerate(Seed(request, seed).trainings(arm)[:rates]):
                worse = 0.5 if seed == seeds[0] and place != 1 else 0.0
                loss = math.log(perplexity) + next(noise)
                rate = SCALES["tiny"]["rates"][place if seed == seeds[0] else 1]
                # the test loss of the other rates is lower: who chose by it would be found out
                numbers = _numbers(arm, loss - worse, loss + worse, rate)
                outcomes[one.name] = Outcome(one, out, numbers, 1.0)
    return EXPERIMENT.analyse(request, outcomes)


def _verdicts(findings: Findings) -> dict[str, str]:
    return {statement.claim.removeprefix("Ours: "): statement.verdict for statement in findings.statements}


PERPLEXITIES = {
    DENSE: 100.0,
    DENSE_SCHEDULED: 99.0,
    low_rank(0.45): 99.5,
    low_rank(0.15): 105.0,
    low_rank(0.45, "uniform"): 99.5,
    low_rank(0.15, "uniform"): 106.0,
    narrow("demand", 0.15): 101.0,
    narrow("uniform", 0.15): 110.0,
}


def test_verdicts_are_against_the_better_dense_arm_and_the_rival_that_wins_is_said_to_win(tmp_path: Path) -> None:
    findings = _findings(tmp_path, PERPLEXITIES)
    found = _verdicts(findings)
    low, rival = "dense first, then low rank by demand", "a narrow dense model, widths by demand"
    assert found[f"{low}, ends within 1% of the best dense arm, at 45%"] == "agrees"
    assert found[f"{low}, ends within 3% of the best dense arm, at 15%"] == "disagrees"
    assert found["ranks by demand beat uniform ranks of the same size, at 15%"] == "agrees"
    assert found["ranks by demand beat uniform ranks of the same size, at 45%"] == "within noise"
    assert found[f"{low}, beats {rival}, at 15%"] == "disagrees"
    assert found[f"{low}, beats a narrow dense model of uniform width, at 15%"] == "agrees"
    assert found[f"{low}, beats pruning at the same moment, at 15%"] == "not tested"
    assert "low rank by demand +6.1 %" in findings.reading
    assert "narrow dense by demand +2.0 %" in findings.reading


def test_the_table_is_of_the_rate_that_validation_chose(tmp_path: Path) -> None:
    table = _findings(tmp_path, PERPLEXITIES).tables[0]
    rows = {row[0] + row[1]: row for row in table.rows}
    assert rows["dense–"][2].startswith("100 ±")
    assert rows["dense–"][5] == f"{SCALES['tiny']['rates'][1]:g}"
    assert all(row[4] == "3" for row in table.rows)
    assert rows["narrow dense, widths by demand15%"][3].endswith("(higher)")


def test_few_results_are_judged_as_far_as_they_go(tmp_path: Path) -> None:
    """One seed, and not at every rate: nothing is decided, and what is missing is said."""
    findings = _findings(tmp_path, {DENSE: 100.0, low_rank(0.45): 99.5}, (0,), rates=2)
    assert set(_verdicts(findings).values()) == {"not tested"}
    near = findings.statements[0]
    assert near.ours.count("(-0.5%)") == 1
    assert [row[5] for row in findings.tables[0].rows] == ["0.002 (2 of 3)"] * 2
    assert "one seed" in near.why
    assert near.why.endswith("by 2 of 3 learning rates, those that both have")
    assert any(statement.why.startswith("not trained: ") for statement in findings.statements)


def test_an_arm_is_never_beside_the_best_of_more_rates_than_its_own(tmp_path: Path) -> None:
    """Dense is best at its second rate, at which low rank is not trained yet: both are taken at the first."""
    request = _request(tmp_path, "tiny", (0,))
    outcomes = {}
    for arm, perplexities in ((DENSE, (120.0, 100.0)), (low_rank(0.15), (126.0,))):
        for one, perplexity in zip(Seed(request, 0).trainings(arm), perplexities, strict=False):
            loss = math.log(perplexity)
            outcomes[one.name] = Outcome(one, tmp_path, _numbers(arm, loss, loss, one.settings["rate"]), 1.0)
    findings = EXPERIMENT.analyse(request, outcomes)
    rows = {row[0]: row for row in findings.tables[0].rows}
    assert rows["dense"][2] == "100"
    assert rows[low_rank(0.15).label][3] == "+5.0 % (one seed), 1 of 3 rates"
    assert "low rank by demand +5.0 % (1 seed, 1 of 3 rates)" in findings.reading


def test_without_dense_training_nothing_is_said_of_it(tmp_path: Path) -> None:
    findings = _findings(tmp_path, {low_rank(0.45): 99.5})
    assert findings.reading.startswith("Dense training is not finished")
    assert findings.statements[0].why == "not trained: dense"


def _finish(request: Request, one: Training, numbers: Mapping[str, float]) -> None:
    directory = request.runs / one.name
    directory.mkdir(parents=True)
    content = {"settings": dict(one.settings), "numbers": dict(numbers), "seconds": 1.0}
    (directory / FINISHED_FILE).write_text(json.dumps(content))


def test_pages_of_what_is_finished_say_how_little_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = _request(tmp_path, "tiny", (0, 1, 2))
    _finish(request, Seed(request, 0).trainings(DENSE)[0], _numbers(DENSE, 4.0, 4.0, 1e-3))
    file = tmp_path / "worth.md"
    arguments = ["reproduce", "worth-it", "--finished", "--output", str(tmp_path), "--document", str(file)]
    assert main(arguments) == 0
    assert f"1 of {len(trainings(request))} trainings, up to 3 seeds" in file.read_text()
    assert "each has its training's numbers" in (tmp_path / "worth-it" / "index.html").read_text()
    assert "Perplexity against the best dense arm (dense: 54.6)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("figure-3", "--finished is for experiments that can be judged in part, not for figure-3"),
        ("worth-it", "--finished: no training of worth-it is finished in"),
    ],
)
def test_finished_refuses_what_cannot_be_judged(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", name, "--finished", "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_at_tiny_scale_low_rank_keeps_near_dense_and_equal_multiply_adds_are_equal(tmp_path: Path) -> None:
    request = _request(tmp_path, "tiny", (0,))
    seed, rate = Seed(request, 0), SCALES["tiny"]["rates"][1]
    chosen = [one for arm in (DENSE, fixed(0.15)) for one in seed.trainings(arm) if one.settings["rate"] == rate]
    chosen += [seed.widths, *seed.trainings(low_rank(0.15))[:2]]
    chosen += [seed.trainings(arm)[1] for arm in (cheaper_dense(0.15), narrow("demand", 0.15))]
    outcomes, failed = Pool(request.runs, "cpu", jobs=2, quiet=True).run(chosen)
    assert not failed
    numbers = {
        one.settings["arm"]["kind"]: outcomes[one.name].numbers for one in chosen if one.settings["rate"] == rate
    }
    by_name = {name: outcome.numbers for name, outcome in outcomes.items()}
    cheap = next(found for name, found in by_name.items() if "as-cheap-as" in name)
    dense = next(found for name, found in by_name.items() if name.startswith("worth-it-dense-rate"))
    low = numbers["low-rank"]
    assert abs(cheap["multiply_adds"] - low["multiply_adds"]) <= dense["multiply_adds"] / dense["steps"]
    assert low["loss"] < numbers["fixed"]["loss"]
    assert low["loss"] < dense["loss"] + math.log(1.1)
    assert numbers["narrow"]["mlp_share"] <= 0.15
