"""From the start: what each arm does to the matrices, and verdicts on made-up numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inrank.experiments.from_the_start.arms import (
    ADDED,
    ARMS,
    BUDGET,
    CUT,
    CUT_ONCE,
    DENSE,
    FACTORS,
    FIRST,
    FIRST_CUT_ONCE,
    FULL,
    LATER_FACTORS,
    OTHERS,
    RANDOM,
    RATES,
    UNEVEN,
    UNIT_GAIN,
    Start,
)
from inrank.experiments.from_the_start.from_the_start import EXPERIMENTS
from inrank.experiments.from_the_start.starting import Starting, best_approximation
from inrank.experiments.from_the_start.training import train, trainings, trainings_of
from inrank.experiments.worth_it.costs import Meter
from inrank.experiments.worth_it.data import Data, next_token_loss
from inrank.experiments.worth_it.plan import SCALES
from inrank.gpt2.models import build, parse_size
from inrank.layers import FactoredLayer, layers_of, matrix_of
from inrank.reproduction.experiment import ExperimentError, Findings, Outcome, Request
from inrank.reproduction.pool import unique

EXPERIMENT = EXPERIMENTS["from-the-start"]
NAMES = [f"transformer.h.{block}.mlp.{kind}" for block in (0, 1) for kind in ("c_fc", "c_proj")]
RANK = int(BUDGET * 32 * 128 / (32 + 128))
STEPS = 8


class Watched(Starting):
    """An arm, and the matrices of the MLPs after each step."""

    seen: list[dict[str, Tensor]]

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.seen.append(_matrices(self.model))


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    layers = {name: model.get_submodule(name) for name in NAMES}
    return {
        name: layer.exact_weight() if isinstance(layer, FactoredLayer) else matrix_of(layer).detach().double()
        for name, layer in layers.items()
    }


def _rank(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-5 * values[0]).sum())


def _watched(start: Start, *, rate: float = 3e-3) -> tuple[Watched, dict[str, Tensor]]:
    """An arm after a few steps of a small model, and the matrices that it was made with."""
    torch.manual_seed(0)
    model = build(parse_size("2x32"), 40, 16)
    made = {name: value.clone() for name, value in _matrices(model).items()}
    tokens = torch.randint(40, (STEPS + 1, 4, 17), generator=torch.Generator().manual_seed(1))
    way = Watched(
        start, model, {"steps": STEPS, "seed": 0}, Data(tokens[0, 0], tokens[-1], tokens[-1]), Meter("cpu", 64)
    )
    way.seen = []
    way.shape_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    way.begin(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0))
    way.seen.append(_matrices(model))
    for step in range(1, STEPS + 1):
        next_token_loss(model, tokens[step - 1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        way.after_step(step)
    return way, made


def test_the_best_approximation_is_the_truncated_svd() -> None:
    weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    oracle = U[:, :5] @ torch.diag(S[:5]) @ Vh[:5]
    torch.testing.assert_close(best_approximation(weight, 5).double(), oracle, atol=1e-6, rtol=0)
    torch.testing.assert_close(best_approximation(weight.mT, 5).double(), oracle.mT, atol=1e-6, rtol=0)


def _begun(start: Start) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    way, made = _watched(start)
    return way.seen[0], made


@pytest.mark.parametrize("start", [FACTORS, CUT, CUT_ONCE, UNIT_GAIN, *RATES], ids=lambda start: start.name)
def test_most_arms_begin_at_the_best_approximation_of_the_initial_weights(start: Start) -> None:
    begun, made = _begun(start)
    for name, matrix in begun.items():
        torch.testing.assert_close(matrix, best_approximation(made[name], RANK), atol=1e-6, rtol=0)


def test_the_others_begin_where_they_say() -> None:
    for start in (DENSE, FULL, ADDED, LATER_FACTORS):
        begun, made = _begun(start)
        torch.testing.assert_close(begun, made, atol=1e-6, rtol=0)
    begun, made = _begun(RANDOM)
    for name, matrix in begun.items():
        assert _rank(matrix) == RANK
        assert float(matrix.norm()) == pytest.approx(float(made[name].norm()), rel=1e-5)
    begun, made = _begun(FIRST_CUT_ONCE)
    assert [_rank(matrix) for matrix in begun.values()] == [RANK, RANK, 32, 32]


def test_ranks_during_the_training_are_those_of_the_arm() -> None:
    """Of W; of W - W0 where W0 stays."""
    whole = {start: _watched(start)[0].seen[-1] for start in (DENSE, CUT_ONCE, FULL)}
    assert all(_rank(matrix) == 32 for seen in whole.values() for matrix in seen.values())
    for start in (FACTORS, CUT, RANDOM, UNIT_GAIN, *RATES):
        for seen in _watched(start)[0].seen:
            assert {_rank(matrix) for matrix in seen.values()} == {RANK}, start.name
    uneven = [_rank(matrix) for matrix in _watched(UNEVEN)[0].seen[-1].values()]
    assert uneven == [5, 5, 2, 2]  # of 15 % of 32·128 weights each: ⌊3.84 · 4/3⌋, ⌊3.84 · 2/3⌋
    added, made = _watched(ADDED)
    assert {_rank(added.seen[-1][name] - made[name]) for name in NAMES} == {RANK}


def test_the_place_and_the_moment_of_the_factors() -> None:
    for start, factored in ((FIRST, NAMES[:2]), (OTHERS, NAMES[2:]), (FACTORS, NAMES), (DENSE, [])):
        assert list(layers_of(_watched(start)[0].model)) == factored
    later = _watched(LATER_FACTORS)[0]
    assert [_rank(seen[NAMES[0]]) for seen in later.seen] == [32] * 2 + [RANK] * (STEPS - 1)


def test_the_factors_learn_at_their_rate_and_the_rest_at_the_usual_one() -> None:
    way, _ = _watched(RATES[-1])
    factors = {id(layer.U) for layer in layers_of(way.model).values()}
    for group in way.optimizer.param_groups:
        ours = factors & {id(parameter) for parameter in group["params"]}
        assert group["lr"] == pytest.approx(0.5 * 3e-3 if ours else 3e-3)
    assert {layer.gain for layer in layers_of(_watched(UNIT_GAIN)[0].model).values()} == {1.0}


def test_it_tells_the_early_loss_and_the_effective_ranks() -> None:
    way, _ = _watched(FACTORS)
    assert math.isfinite(way.numbers["early"])
    sizes = way.sizes()
    assert 1 < sizes["first_effective_rank"] <= RANK + 1e-6
    assert 1 < sizes["effective_rank"] <= RANK + 1e-6
    assert _watched(DENSE)[0].sizes()["effective_rank"] > 20


def _request(out: Path, scale: str = "tiny", seeds: tuple[int, ...] = (0, 1, 2)) -> Request:
    return Request(out, scale, seeds)


def test_all_take_the_rate_that_is_best_for_dense_training(tmp_path: Path) -> None:
    found = trainings(_request(tmp_path))
    assert len(unique(found)) == len(found) == 3 * len(ARMS) + len(SCALES["tiny"]["rates"]) - 1
    dense = tuple(one.name for one in trainings_of(_request(tmp_path), DENSE, 0))
    assert len(dense) == len(SCALES["tiny"]["rates"])
    assert {one.after for one in found if one.name not in dense} == {dense}
    for one in found:
        assert Start.of(json.loads(json.dumps(dict(one.settings)))["arm"]) in ARMS
    with pytest.raises(ExperimentError, match="needs a GPU: --device cuda"):
        trainings(_request(tmp_path, "paper"))


def test_a_training_runs_and_is_the_same_again(tmp_path: Path) -> None:
    one = trainings_of(_request(tmp_path, "smoke", (0,)), DENSE, 0)[0]
    found = [train(tmp_path / "runs" / one.name, {**one.settings, "arm": CUT.settings}, "cpu") for _ in range(2)]
    for numbers in found:
        assert {"loss", "validation", "early", "effective_rank", "first_effective_rank", "rate"} <= set(numbers)
    assert found[0]["loss"] == found[1]["loss"]


def _findings(out: Path, losses: Mapping[Start, float]) -> Findings:
    """Of trainings that end at these losses, with a seed's own part in all arms, and a hundredth of it apart."""
    request = _request(out)
    outcomes = {}
    for arm in ARMS:
        for seed in request.seeds:
            for place, one in enumerate(trainings_of(request, arm, seed)):
                loss = losses.get(arm, 5.4) + 0.1 * seed + 0.001 * ((seed + len(arm.name)) % 3)
                numbers = {"loss": loss, "validation": loss + place, "early": 6.0, "rate": 1e-3 + place}
                ranks = {"effective_rank": 20.0, "first_effective_rank": 10.0}
                outcomes[one.name] = Outcome(one, out, {**numbers, **ranks}, 1.0)
    return EXPERIMENT.analyse(request, outcomes)


def test_each_cause_is_judged_by_what_it_leaves_of_the_gap(tmp_path: Path) -> None:
    findings = _findings(tmp_path, {DENSE: 5.0, FACTORS: 5.4, CUT: 5.1, FULL: 5.0, OTHERS: 5.2})
    verdicts = {statement.claim.removeprefix("Ours: "): statement.verdict for statement in findings.statements}
    assert verdicts["factors from the first step end above dense training"] == "agrees"
    assert verdicts["rank: dense training, cut to the rank after each step, ends above dense"] == "agrees"
    assert verdicts["descent in factors: of full rank, they end above dense"] == "within noise"
    assert verdicts["start: random factors end below those of the SVD of W0"] == "within noise"
    rows = {row[0]: row for row in findings.tables[0].rows}
    assert rows[CUT.label][3].startswith("0.25 ±")
    assert rows[OTHERS.label][3].startswith("0.5")
    assert rows[FACTORS.label][3] == "1.00"
    assert "They end at +49.2 %" in findings.reading
    assert "stays: 25 ± " in findings.reading
    points = findings.figures[0].figure.data[0]
    assert dict(zip(points.y, points.x, strict=True))[CUT.label] == pytest.approx(0.25, abs=0.01)
