"""LoRA at advised ranks against uniform LoRA: which trainings there are, how sizes and rates are matched, verdicts."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from inrank.cli import main
from inrank.experiments.advice.advice import EXPERIMENTS
from inrank.experiments.advice.plan import ARMS, RULES, TUNING_SEED, Seed, trainings
from inrank.experiments.advice.training import ADVISED, UNIFORM, _ranks, _rate, adapt, nearest_rank
from inrank.gpt2.models import build, parse_size
from inrank.reproduction.experiment import Findings, Outcome, Request
from inrank.reproduction.pool import unique
from inrank_monitor import open_run
from inrank_monitor.advice import rank_pattern

(EXPERIMENT,) = EXPERIMENTS.values()


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small", "paper"])
def test_every_training_has_its_name_its_settings_and_comes_after_what_it_needs(scale: str, tmp_path: Path) -> None:
    found = trainings(Request(tmp_path, scale, (0, 1, 2)))
    assert unique(found) == found
    done: set[str] = set()
    for training in found:
        assert done.issuperset(training.after)
        done.add(training.name)
        assert json.loads(json.dumps(dict(training.settings))).keys() == dict(training.settings).keys()
    seeds = {one.settings["seed"] for one in found}
    assert seeds == {0, 1, 2} | ({TUNING_SEED} if scale != "smoke" else set())


def test_both_arms_of_a_rule_differ_in_nothing_but_the_ranks(tmp_path: Path) -> None:
    request = Request(tmp_path, "tiny", (0,))
    for rule in RULES:
        first, second = (dict(Seed(request, 0).lora(rule, arm).settings) for arm in ARMS)
        assert {name for name in first if first[name] != second[name]} == {"arm", "rates_from"}
        assert len(first["rates_from"]) == len(second["rates_from"]) == 3


def _table(ranks: dict[str, int | None]) -> pd.DataFrame:
    """As `advise` makes it of a GPT-2."""
    parameters = [f"{name}.weight" for name in ranks]
    values = pd.array([pd.NA if rank is None else rank for rank in ranks.values()], dtype="Int64")
    columns = {"parameter": parameters, "kind": "Conv1D", "layer": "Conv1D", "groups": pd.NA, "rank": values}
    return pd.DataFrame(columns, index=parameters)


NAMES = [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


def test_the_uniform_lora_is_of_the_size_of_the_advised_one_as_near_as_a_rank_can(tmp_path: Path) -> None:
    model = build(parse_size("1x16"), 40, 8, device="meta")
    costs = [16 + 48, 16 + 16, 16 + 64, 16 + 64]
    table = _table(dict(zip(NAMES, [3, None, 0, 5], strict=True)))
    size = 3 * costs[0] + 5 * costs[3]
    assert _ranks(table, model, ADVISED)[1] == size
    uniform, found = _ranks(table, model, UNIFORM)
    assert set(rank_pattern(uniform)) == set(NAMES)  # also those that the advice leaves out
    (rank,) = set(rank_pattern(uniform).values())
    assert found == rank * sum(costs)
    assert abs(found - size) <= sum(costs) / 2
    nothing = _table(dict.fromkeys(NAMES))
    assert [_ranks(nothing, model, arm)[1] for arm in ARMS] == [0, 0]


@pytest.mark.parametrize(("size", "cost", "rank"), [(900, 300, 3), (1049, 300, 3), (1051, 300, 4), (1, 300, 1)])
def test_nearest_rank(size: int, cost: int, rank: int) -> None:
    assert nearest_rank(size, cost) == rank


def test_the_rate_is_the_best_of_the_tuning_seed(tmp_path: Path) -> None:
    for name, rate, loss in (("a", 0.1, 3.0), ("b", 0.2, 2.0), ("c", 0.3, math.nan)):
        (tmp_path / name).mkdir()
        content = {"numbers": {"rate": rate, "choosing": loss}}
        (tmp_path / name / "training.json").write_text(json.dumps(content))
    assert _rate(tmp_path, {"rates_from": ["a", "b", "c"], "rate": None}) == 0.2
    assert math.isnan(_rate(tmp_path, {"rates_from": ["c"], "rate": None}))
    assert _rate(tmp_path, {"rates_from": [], "rate": 0.5}) == 0.5


def _findings(gain: dict[str, float], directory: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Findings:
    """Of losses that the advice changes by a gain and a little noise."""
    request = Request(directory, "tiny", seeds)
    noise = iter(np.random.default_rng(0).normal(0, 1e-4, 1000).tolist())
    outcomes = {}
    for training in trainings(request):
        numbers = {"loss": 3.0, "first": 4.0, "rise": 0.0, "evaluations": 9.0}
        if "rule" in training.settings:
            rule, arm = training.settings["rule"], training.settings["arm"]
            loss = 3.0 + next(noise) - (gain[rule] if arm == ADVISED else 0.0)
            numbers = {"loss": loss, "parameters": 1000.0, "mean_rank": 4.0, "modules": 8.0, "rate": 1e-3}
        outcomes[training.name] = Outcome(training, directory, numbers, 1.0)
    return EXPERIMENT.analyse(request, outcomes)


def test_the_verdict_falls_as_the_losses_do_and_a_loss_is_said_as_loudly(tmp_path: Path) -> None:
    findings = _findings({"loss": 0.1, "energy": -0.1, "paper": 0.0, "signal": math.nan}, tmp_path)
    verdicts = [statement.verdict for statement in findings.statements]
    assert verdicts == ["agrees", "disagrees", "within noise", "not tested"]
    assert "by 1 of 4 rules" in findings.reading
    assert "energy ranks (90 %): worse than uniform (+0.1" in findings.reading
    assert "signal ranks: not tested" in findings.reading
    assert "advised on no layer" in findings.statements[3].why


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    findings = _findings(dict.fromkeys(RULES, 0.5), tmp_path, (0,))
    assert {statement.verdict for statement in findings.statements} == {"not tested"}
    assert not any("inf" in cell for row in findings.tables[0].rows for cell in row)


def test_without_peft_the_extra_is_named_and_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        "inrank.experiments.advice.plan.find_spec", lambda name: None if name == "peft" else known(name)
    )
    assert main(["reproduce", "advice", "--scale", "smoke", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "PEFT, which is not installed (the extra `peft`)" in error
    assert "inrank-monitor[peft]" in error
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_seed_from_pre_training_to_lora(tmp_path: Path) -> None:
    seed = Seed(Request(tmp_path, "smoke", (0,)), 0)
    numbers: dict[str, Any] = {}
    for training in (
        seed.pretrained,
        seed.full,
        *(seed.lora("energy", arm) for arm in ARMS),
        seed.lora("loss", ADVISED),
    ):
        directory = tmp_path / training.name
        directory.mkdir()
        numbers[training.name] = training.run(directory, training.settings, "cpu")
        assert open_run(directory).status == "finished"
    assert numbers[seed.full.name]["loss"] < numbers[seed.pretrained.name]["loss"]
    assert numbers[seed.full.name]["rise"] <= 0.01
    advised, uniform = (numbers[seed.lora("energy", arm).name] for arm in ARMS)
    assert 0 < abs(advised["parameters"] - uniform["parameters"]) < advised["parameters"] / 2
    assert advised["loss"] != uniform["loss"]
    assert not open_run(tmp_path / seed.full.name).loss_ranks.empty
    again = seed.lora("energy", ADVISED)
    (tmp_path / "again").mkdir()
    assert adapt(tmp_path / "again", again.settings, "cpu") == numbers[again.name]
