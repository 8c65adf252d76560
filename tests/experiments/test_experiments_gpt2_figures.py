"""Figures 1 and 4 to 7: what is read from a run is what happened in it; known sweeps and courses get known verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from inrank.experiments.gpt2 import figure_1, figure_4, figures_5_7
from inrank.experiments.gpt2.figures_5_7 import Seeds
from inrank.experiments.gpt2.rank_growth import (
    Grown,
    Growth,
    done_by_step,
    explained,
    growth_done,
    read_grown,
    step_when_done,
    untrained_paths,
)
from inrank.experiments.gpt2.rows import NEEDS_GPU
from inrank.gpt2.settings import Settings
from inrank.growth.controller import RankController
from inrank.growth.rule import ExplainedRatio, Observation
from inrank.layers.convert import convert
from inrank.reproduction.catalogue import experiment
from inrank.reproduction.experiment import Outcome, Request, Training
from inrank_monitor import attach
from inrank_monitor.ranks import RankRule, null_rank

pytestmark = pytest.mark.numeric

NAMES = ("figure-1", "figure-4", "figure-5", "figure-6", "figure-7")
SEEDS = (0, 1, 2)


def settings_of(**given: Any) -> Settings:
    values: dict[str, Any] = {one.name: None for one in fields(Settings)} | {
        "method": "inrank",
        "steps": 100,
        "phase_steps": 40,
        "accumulate": 1,
        "threshold": 0.9,
        "initial_rank": 2,
        "buffer_rank": 4,
        "every": 10,
        "definition": "paper",
    }
    return Settings(**values | given)


def grown_of(course: Sequence[int], untrained: Sequence[int] = (2, 6, 8), **given: Any) -> Grown:
    """A training with one layer, whose rank was looked at every ten steps."""
    ranks = pd.DataFrame({"h.0.mlp.c_fc": list(course)}, index=[10 * place for place in range(len(course))])
    run: Any = None  # is read for figures and spectra only
    return Grown(run, settings_of(**given), ranks, pd.DataFrame({"h.0.mlp.c_fc": list(untrained)}), ())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(12, 40), "c_proj": nn.Linear(40, 12)})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.mlp["c_proj"](torch.tanh(self.mlp["c_fc"](inputs)))
        return outputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block()])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.h[0](inputs)
        return outputs


def trained(directory: Path) -> tuple[Outcome, RankController, dict[tuple[str, int], Observation]]:
    """A small model whose ranks grew while it was watched, and what its rule saw at each check."""
    model = Net()
    convert(model, initial_rank=1, buffer_rank=2, max_rank=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    seen: dict[tuple[str, int], Observation] = {}

    def rule(observation: Observation) -> int:
        seen[observation.name, observation.step] = observation
        return ExplainedRatio(0.9)(observation)

    controller = RankController(model, optimizer, every=5, rule=rule)
    tracker = attach(model, None, directory, every=5, threshold=0.9, buffer_rank=2, tensorboard=False)
    inputs = torch.randn(64, 12)
    targets = torch.tanh(inputs @ torch.randn(12, 12))
    for _ in range(40):
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        controller.step()
        tracker.step()
    tracker.close()
    settings_of(initial_rank=1, buffer_rank=2, every=5, steps=40, phase_steps=20).write(directory)
    return Outcome(Training("one-seed-0", lambda *_: {}, {}), directory, {}, 1.0), controller, seen


def test_growths_read_from_a_run_are_those_that_the_controller_made(tmp_path: Path) -> None:
    outcome, controller, seen = trained(tmp_path / "run")
    grown = read_grown(outcome)
    made = {(g.name, g.step, g.old_rank, g.new_rank) for g in controller.history}
    assert len(made) >= 3
    assert {(g.matrix, g.step, g.old_rank, g.new_rank) for g in grown.growths} == made
    for g in grown.growths:
        values = np.zeros(12)
        there = seen[g.matrix, g.step].singular_values
        values[: len(there)] = there
        rest, window = values[g.new_rank : g.new_rank + 2], values[: g.new_rank + 2]
        assert g.explained_ratio == pytest.approx(1 - rest.var() / window.var(), abs=1e-5)  # the log is float32
        assert g.held == pytest.approx(values[: g.new_rank].sum() / values.sum(), abs=1e-5)
        assert g.limit == min(g.old_rank + 2, 12 * 40 // 52)
    assert grown.ranks.iloc[0].tolist() == [1, 1]
    assert grown.ranks.iloc[-1].to_dict() == controller.ranks


def test_the_rank_explains_what_eq_7_says_and_holds_its_share_of_the_strength() -> None:
    values = np.array([4.0, 2.0, 1.0, 1.0])
    ratio, held = explained(values, 1, settings_of(buffer_rank=2), 4)
    assert ratio == pytest.approx(1 - np.var([2, 1]) / np.var([4, 2, 1]))
    assert held == 0.5
    # values beyond those given are zeros of the product: at r = 4 of 6 the window is 0, 0
    assert explained(values, 4, settings_of(buffer_rank=2), 6) == (1.0, 1.0)


@pytest.mark.parametrize(("ratio", "rank", "short"), [(0.95, 4, False), (0.85, 4, True), (0.85, 6, False)])
def test_a_growth_falls_short_below_alpha_unless_it_came_to_its_limit(ratio: float, rank: int, short: bool) -> None:
    assert Growth("m", 10, 2, rank, 6, ratio, 0.5).falls_short(0.9) is short


def test_growth_is_done_at_the_first_rank_that_reaches_its_share() -> None:
    assert growth_done([2, 2, 5, 6, 7], 0.8) == 3
    assert growth_done([2, 7, 7], 1.0) == 1
    assert growth_done([2, 2], 0.8) is None


def test_layers_that_do_not_grow_have_no_step() -> None:
    ranks = pd.DataFrame({"a": [2, 2, 12], "b": [2, 12, 12], "c": [2, 2, 2]}, index=[0, 10, 20])
    assert step_when_done(ranks, 0.8) == 15.0
    assert step_when_done(ranks[["c"]], 0.8) is None
    assert done_by_step(ranks).tolist() == [0.0, 0.5, 1.0]
    assert done_by_step(ranks[["c"]]).isna().all()


@pytest.mark.parametrize("shape", [(64, 16), (32, 128), (30, 30)])
@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_untrained_paths_end_at_the_null_rank_and_never_shrink(shape: tuple[int, int], definition: Any) -> None:
    paths = untrained_paths(*shape, RankRule(0.9, 4, definition), 2)
    assert np.median([path[-1] for path in paths]) == null_rank(*shape, 0.9, 4, definition, "factors")
    assert all(0 < b - a <= 4 for path in paths for a, b in pairwise(path))
    assert {path[0] for path in paths} == {2}


@pytest.mark.parametrize("name", NAMES)
def test_at_paper_scale_a_cpu_trains_nothing_and_says_so(name: str, tmp_path: Path) -> None:
    request, one = Request(tmp_path, "paper", (0,)), experiment(name)
    assert not one.trainings(request)
    findings = one.analyse(request, {})
    assert {(s.verdict, s.why) for s in findings.statements} == {("not tested", NEEDS_GPU)}
    assert findings.figures[0].figure.layout.annotations[0].text == NEEDS_GPU
    assert NEEDS_GPU in findings.reading


def test_experiments_share_their_trainings(tmp_path: Path) -> None:
    request = Request(tmp_path, "tiny", SEEDS)
    names = {name: {t.name for t in experiment(name).trainings(request)} for name in (*NAMES, "table-3")}
    assert names["figure-1"] < names["figure-5"]
    small = {name for name in names["table-3"] if name.startswith("gpt2-small")}
    assert small < names["figure-4"]
    assert len(names["figure-4"]) == 3 * (len(figure_4.RANKS["tiny"]) + 5)


def test_the_intrinsic_rank_of_a_sweep_is_the_least_within_its_margin() -> None:
    sweep = {1: [30.0, 20.0, 20.3], 2: [20.19, 20.1, 20.0], 4: [20.0, 22.0, 19.0]}
    assert figure_4.intrinsic_ranks(sweep) == [2, 1, 4]


def test_half_and_double_are_equally_far() -> None:
    assert figure_4.distances([4.0, 16.0, 8.0], [8, 8, 8]) == pytest.approx([2.0, 2.0, 1.0])


def swept(request: Request, inrank: float, null: float) -> dict[str, Outcome]:
    """Trainings as if perplexity fell until rank 8."""
    outcomes = {}
    for training in experiment("figure-4").trainings(request):
        rank = training.settings["options"]["rank"]
        method = training.settings["method"]
        mine = {"baseline": 64.0, "inrank-efficient": inrank}.get(method) or (null if rank == "null" else float(rank))
        numbers = {"perplexity": 100 + max(0.0, 8 - mine) + 0.1 * training.settings["seed"]}
        numbers |= {"rank": mine, "null_rank": float("nan") if method == "baseline" else null}
        outcomes[training.name] = Outcome(training, request.runs / training.name, numbers, 1.0)
    return outcomes


@pytest.mark.parametrize(("rank", "verdict"), [(8, "agrees"), (5, "agrees"), (15, "agrees"), (2, "disagrees")])
def test_figure_4_agrees_within_a_factor_of_two(rank: float, verdict: str, tmp_path: Path) -> None:
    request = Request(tmp_path, "tiny", SEEDS)
    findings = experiment("figure-4").analyse(request, swept(request, rank, 18))
    assert findings.statements[0].verdict == verdict
    assert "would not align" in findings.statements[0].why
    assert "would have passed as well" not in findings.reading
    assert ("not aligned" in findings.reading) == (verdict == "disagrees")


def test_figure_4_says_where_the_null_rank_would_have_passed_too(tmp_path: Path) -> None:
    request = Request(tmp_path, "tiny", SEEDS)
    findings = experiment("figure-4").analyse(request, swept(request, 8, 10))
    assert "would align as well" in findings.statements[0].why
    assert "would have passed as well" in findings.reading
    traces = {trace.name: trace for trace in findings.figures[0].figure.data}
    assert list(traces["fixed rank"].x) == list(figure_4.RANKS["tiny"])
    assert traces["fixed rank"].error_y.array == pytest.approx([0.1] * len(figure_4.RANKS["tiny"]))
    assert list(traces["InRank-Efficient, α = 0.9"].x) == [8]
    assert [shape.x0 for shape in findings.figures[0].figure.layout.shapes if shape.x0 == shape.x1] == [10]


def test_a_sweep_that_ends_at_its_intrinsic_rank_cannot_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(figure_4.RANKS, "tiny", (8, 16, 32))
    request = Request(tmp_path, "tiny", SEEDS)
    near, far = (experiment("figure-4").analyse(request, swept(request, rank, 18)).statements[0] for rank in (8, 40))
    assert near.verdict == "not tested"
    assert "the sweep begins at its intrinsic rank, 8" in near.why
    assert far.verdict == "disagrees"


def test_one_seed_decides_nothing_about_figure_4(tmp_path: Path) -> None:
    request = Request(tmp_path, "tiny", (0,))
    assert experiment("figure-4").analyse(request, swept(request, 8, 18)).statements[0].verdict == "not tested"


EARLY, LATE, NEVER = (2, 12, 12, 12, 12), (2, 2, 2, 2, 12), (2, 2, 2, 2, 2)


@pytest.mark.parametrize(("course", "verdict"), [(EARLY, "agrees"), (LATE, "disagrees"), (NEVER, "not tested")])
def test_early_growth_is_judged_by_when_four_fifths_are_done(course: Sequence[int], verdict: str) -> None:
    seeds = Seeds(figures_5_7.EFFICIENT["small"], [grown_of(course)] * 3, 40)
    statement = figures_5_7._early_statement(Request(Path(), "tiny", SEEDS), "small", seeds)
    assert statement.verdict == verdict


@pytest.mark.parametrize(
    ("course", "says"),
    [(EARLY, "the ranks grew earlier than noise's"), (LATE, "noise is no later"), (NEVER, "no rank grew")],
)
def test_the_reading_sets_the_growth_beside_noises(course: Sequence[int], says: str) -> None:
    seeds = Seeds(figures_5_7.EFFICIENT["small"], [grown_of(course)] * 3, 40)
    assert seeds.noise == 0.5  # 2 → 6 → 8: four fifths of six are there after two checks, ten steps each, of forty
    assert says in figures_5_7._reading(seeds)
    assert "null rank 8" in figures_5_7._reading(seeds)


@pytest.mark.parametrize(("last", "verdict"), [(12, "agrees"), (24, "disagrees")])
def test_the_first_phase_was_long_enough_if_ranks_hardly_grow_later(last: int, verdict: str) -> None:
    course = (2, 8, 12, 12, 12, *[last] * 6)
    statement = figures_5_7._settled_statement(Seeds(figures_5_7.WHOLE, [grown_of(course)] * 3, 100))
    assert statement.verdict == verdict


def test_figure_1_shows_the_matrix_that_grew_most_often() -> None:
    grown = grown_of(EARLY)
    growths = (
        Growth("b", 10, 2, 9, 10, 0.95, 0.6),
        Growth("a", 10, 2, 3, 6, 0.95, 0.8),
        Growth("a", 30, 3, 4, 7, 1, 1),
    )
    ranks = pd.DataFrame({"b": [2, 9, 9, 9, 9], "a": [2, 3, 3, 4, 4]}, index=[0, 10, 20, 30, 40])
    grown = Grown(grown.run, grown.settings, ranks, grown.untrained, growths)
    assert figure_1.telling(grown) == "a"
    assert figure_1.two_steps(grown, "a") == (10, 30)
    assert figure_1.two_steps(grown, "b") == (10, 40)


@pytest.mark.parametrize(("ratio", "verdict"), [(0.93, "agrees"), (0.7, "disagrees")])
def test_figure_1_checks_every_growth_against_alpha(ratio: float, verdict: str) -> None:
    one = grown_of(EARLY)
    growths = (Growth("h.0.mlp.c_fc", 10, 2, 4, 6, ratio, 0.6), Growth("h.0.mlp.c_fc", 20, 4, 8, 8, 0.1, 0.6))
    seeds = [Grown(one.run, one.settings, one.ranks, one.untrained, growths)] * 3
    statement = figure_1._rule_statement(seeds)
    assert statement.verdict == verdict
    assert "6 growths over all seeds and matrices, 3 of them to the limit" in statement.why
    assert figure_1._area_statement(seeds, 0.5).verdict == "disagrees"  # the ranks hold 60 % of the strength
    assert figure_1._rule_statement([one] * 3).verdict == "not tested"
