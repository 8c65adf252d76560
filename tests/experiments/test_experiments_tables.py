"""Tables 1, 2, 3 and 5: the paper's own numbers to the digit, and verdicts from trainings with known numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import pytest

from inrank.experiments.gpt2 import table_1, table_2, table_3, table_5
from inrank.experiments.gpt2.paper_tables import (
    QUOTED_1,
    QUOTED_5,
    TABLE_1,
    TABLE_3,
    TABLE_5,
    as_number,
    paper_row,
    printed_params,
    printed_size,
)
from inrank.experiments.gpt2.published_counts import (
    count,
    count_statements,
    count_table,
    quoted_table,
    ranks_that_print,
)
from inrank.experiments.gpt2.rows import COMPARABLE, NEEDS_GPU, percent
from inrank.experiments.gpt2.trainings import MODELS
from inrank.gpt2.models import PAPER_SIZES, parameter_count
from inrank.reproduction.experiment import Experiment, Findings, Outcome, Request, Statement, Training
from inrank.reproduction.pool import Pool, unique

TABLES = [module.EXPERIMENTS[name] for name, module in zip(
    ("table-1", "table-2", "table-3", "table-5"), (table_1, table_2, table_3, table_5), strict=True
)]  # fmt: skip
SEEDS = (0, 1, 2)
Numbers = Callable[[Training], dict[str, float]]


def request(scale: str = "smoke", seeds: tuple[int, ...] = SEEDS, device: str = "cpu") -> Request:
    return Request(Path("unused"), scale, seeds, device)


def numbers_of(training: Training, **changes: float) -> dict[str, float]:
    """Numbers that a training might return; a dense one has no null rank."""
    seed, dense = training.settings["seed"], training.settings["method"] == "baseline"
    numbers = {
        "perplexity": 100.0 + seed,
        "rank": 16.0 if dense else 4.0,
        "null_rank": math.nan if dense else 5.0,
        "runtime": 10.0,
        "peak_memory": 5e8,
        "model_size": 4e6,
        "parameters": 1e6,
    }
    return numbers | changes


def analysed(experiment: Experiment, asked: Request, numbers: Numbers = numbers_of) -> Findings:
    """What an experiment finds in trainings that ended with these numbers."""
    trainings = experiment.trainings(asked)
    return experiment.analyse(asked, {one.name: Outcome(one, asked.runs, numbers(one), 1.0) for one in trainings})


def stated(findings: Findings, *words: str) -> Statement:
    (found,) = [one for one in findings.statements if all(word in one.claim for word in words)]
    return found


def better(training: Training, by: float) -> dict[str, float]:
    """InRank-Efficient's perplexity, by a share that varies a little over the seeds."""
    seed, method = training.settings["seed"], training.settings["method"]
    factor = 1 + by + 0.0001 * seed if method == "inrank-efficient" else 1.0
    return numbers_of(training, perplexity=(100.0 + seed) * factor)


@pytest.mark.parametrize(("millions", "text"), [(91.299999, "91.2"), (99.99, "99.9"), (100.0, "100"), (445.99, "445")])
def test_parameters_are_cut_off_after_three_digits(millions: float, text: str) -> None:
    assert printed_params(round(millions * 1e6)) == text


@pytest.mark.parametrize(("megabytes", "text"), [(248.9, "248"), (999.9, "999"), (1538.6, "1.5K"), (1783.8, "1.8K")])
def test_sizes_are_cut_off_below_a_thousand_and_rounded_above(megabytes: float, text: str) -> None:
    assert printed_size(round(megabytes * 1e6)) == text
    assert as_number(text) == pytest.approx(megabytes, rel=0.03)


def test_every_number_of_tables_1_and_5_comes_out_to_the_digit() -> None:
    for rows, where, numbers in ((TABLE_1, "Table 1", 12), (TABLE_5, "Table 5", 8)):
        (statement,) = count_statements(rows, where)
        assert (statement.verdict, statement.ours) == ("agrees", statement.paper)
        assert len(statement.ours.split("/")) == numbers
        assert {row[8] for row in count_table(rows, where).rows} == {"yes"}


def test_one_size_of_table_3_needs_a_rank_that_only_rounds_to_the_printed_one() -> None:
    exact, loose = count_statements(TABLE_3, "Table 3")
    assert (exact.verdict, loose.verdict) == ("disagrees", "agrees")
    assert "GPT-medium, InRank-Efficient, α = 0.8, rank 168: 778 MB printed, 779 ours" in exact.why
    wrong = [row for row in count_table(TABLE_3, "Table 3").rows if row[8] == "NO"]
    assert [(row[0], row[3], row[5], row[7]) for row in wrong] == [("GPT-medium", "168", "778", "779")]
    low, high = ranks_that_print(paper_row("medium", 0.8)) or (0.0, 0.0)
    layers, width = PAPER_SIZES["medium"].layers, 1024
    dense = parameter_count("medium")
    for rank, megabytes in ((low, 778), (high, 778), (high + 0.5 / layers, 779)):  # Params = full − L (8d² − 10 d r)
        assert int(4 * (dense - layers * (8 * width**2 - 10 * width * rank)) / 1e6) == megabytes


@pytest.mark.parametrize("threshold", [0.8, 0.85, 0.9])
def test_counts_are_those_of_models_built_at_the_printed_rank(threshold: float) -> None:
    row = paper_row("small", threshold)
    assert count(row).parameters == parameter_count("small", row.rank)
    assert count(row, 2 * PAPER_SIZES["small"].layers).parameters == parameter_count("small", row.rank + 1)


def test_reductions_that_the_paper_quotes_follow_from_its_tables() -> None:
    before_after = {model: (paper_row(model, None), paper_row(model, 0.9)) for model in MODELS}
    halves = {"medium": TABLE_5[:2], "large": TABLE_5[2:]}
    for quoted, pairs in ((QUOTED_1, before_after), (QUOTED_5, halves)):
        for row in quoted_table(quoted, pairs).rows:
            assert abs(float(row[2].rstrip(" %")) - float(row[3].rstrip(" %"))) < 1


def test_twenty_trainings_a_seed_serve_all_tables() -> None:
    asked = request(seeds=(0,))
    every = unique([training for table in TABLES for training in table.trainings(asked)])
    names = [training.name for training in every]
    assert len(names) == 20
    assert {name for training in every for name in training.after} <= set(names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("seeds", [(0,), SEEDS])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_findings_are_plain_json_and_rows_fit_their_heads(
    table: Experiment, seeds: tuple[int, ...], device: str
) -> None:
    findings = analysed(table, request(seeds=seeds, device=device))
    json.dumps(findings.as_json(), allow_nan=False)
    assert all(len(row) == len(one.heads) for one in findings.tables for row in one.rows)
    assert "nan" not in json.dumps(findings.as_json())


@pytest.mark.parametrize(
    "table",
    [pytest.param(table, marks=[pytest.mark.slow] * (table.name == "table-3")) for table in TABLES],  # nine null ranks
    ids=lambda table: table.name,
)
def test_at_paper_scale_a_cpu_trains_nothing_and_says_so(table: Experiment) -> None:
    asked = request("paper", (0,))
    assert not table.trainings(asked)
    findings = table.analyse(asked, {})
    trained = [one for one in findings.statements if "follow from its ranks" not in one.claim]
    assert {one.verdict for one in trained} == {"not tested"}
    assert sum(one.why == NEEDS_GPU for one in trained) >= 3
    assert NEEDS_GPU in findings.reading
    assert "PPL" not in [head for one in findings.tables for head in one.heads]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_one_seed_decides_nothing_that_was_trained(table: Experiment) -> None:
    findings = analysed(table, request(seeds=(0,)))
    trained = [one for one in findings.statements if "follow from its ranks" not in one.claim]
    assert {one.verdict for one in trained} == {"not tested"}


@pytest.mark.parametrize(
    ("by", "comparable", "superior"),
    [(-0.05, "agrees", "agrees"), (0.01, "agrees", "disagrees"), (0.05, "disagrees", "disagrees")],
)
def test_comparable_perplexity_is_at_most_two_per_cent_more(by: float, comparable: str, superior: str) -> None:
    findings = analysed(TABLES[0], request(), lambda training: better(training, by))
    assert pytest.approx(0.02) == COMPARABLE
    for model in MODELS:
        assert stated(findings, "comparable", f"GPT-{model}").verdict == comparable
    assert stated(findings, "even better", "GPT-large").verdict == superior


def test_difference_within_noise_is_called_so_in_table_and_statement() -> None:
    def noisy(training: Training) -> dict[str, float]:
        shift = (-3.0, 3.0, 0.5)[training.settings["seed"]] if training.settings["method"] == "fixed-rank" else 0.0
        return numbers_of(training, perplexity=100.0 + shift)

    findings = analysed(TABLES[1], request(), noisy)
    assert stated(findings, "GPT-small").verdict == "within noise"
    assert "within noise" in findings.tables[0].rows[0][3]
    assert "within noise" in findings.reading


@pytest.mark.parametrize(("rank", "verdict"), [(4.0, "agrees"), (6.0, "disagrees")])
def test_share_of_ranks_is_held_against_the_papers_largest_and_shown_beside_noises(rank: float, verdict: str) -> None:
    def ranked(training: Training) -> dict[str, float]:
        found = numbers_of(training)
        return found if training.settings["method"] == "baseline" else found | {"rank": rank}

    statement = stated(analysed(TABLES[0], request(), ranked), "33 %", "GPT-small")  # width 16 at smoke scale
    assert statement.verdict == verdict
    assert "noise: 31.2 %" in statement.ours
    assert statement.why.endswith("noise keeps it too")


def test_a_cpu_does_not_decide_memory_nor_the_time_of_16_bits() -> None:
    def cheaper(training: Training) -> dict[str, float]:
        seed, half = training.settings["seed"], "half" in training.name
        small = {"runtime": 5.0 + 0.1 * seed, "peak_memory": 2e8 + seed, "model_size": 2e6}
        return numbers_of(training, **(small if half else {}))

    expected = {"cpu": "not tested", "cuda": "agrees"}
    for device, verdict in expected.items():
        findings = analysed(TABLES[3], request(device=device), cheaper)
        for word in ("less time", "less memory"):
            statement = stated(findings, word, "GPT-medium")
            assert statement.verdict == verdict
            assert "InRank-Efficient, 16 bits" in statement.ours
        assert stated(findings, "half as large", "GPT-large").verdict == "agrees"


def test_models_that_order_the_thresholds_alike_are_consistent_and_chance_is_half() -> None:
    falling, rising = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    assert table_3.disagreement({"a": falling, "b": [30.0, 8.0, 7.0], "c": falling}) == 0
    assert table_3.disagreement({"a": falling, "b": rising}) == 1
    assert table_3.disagreement({"a": falling, "b": [1.0, 1.0, 1.0]}) == 0.5


def test_perplexity_that_falls_with_the_threshold_bears_table_3_out() -> None:
    def ordered(training: Training) -> dict[str, float]:
        options, seed = training.settings["options"], training.settings["seed"]
        if training.settings["method"] == "baseline":
            return numbers_of(training)
        alpha = options["threshold"]
        return numbers_of(training, perplexity=200 - 100 * alpha + seed, rank=10 * alpha + 0.01 * seed)

    findings = analysed(TABLES[2], request(), ordered)
    decided = [one.verdict for one in findings.statements if "follow from its ranks" not in one.claim]
    assert decided == ["agrees"] * 7
    line = findings.figures[0].figure.data[0]
    assert list(line.x) == [0.8, 0.85, 0.9]
    assert line.y[0] == pytest.approx(100 * fmean((120 + s) / (100 + s) - 1 for s in SEEDS))


def test_spread_of_changes_is_their_standard_deviation() -> None:
    changes = [0.01, 0.02, 0.06]
    assert percent(changes) == f"+3.0 % ± {100 * stdev(changes):.1f} %"


@pytest.mark.slow
def test_fixed_ranks_are_those_that_inrank_efficient_ended_with(tmp_path: Path) -> None:
    asked = Request(tmp_path, "smoke", (0,))
    outcomes, failed = Pool(asked.runs, "cpu", 2, quiet=True).run(TABLES[1].trainings(asked))
    assert not failed
    for model in MODELS:
        fixed, efficient = (outcomes[f"gpt2-{model}-{method}-seed-0"] for method in ("fixed-rank", "inrank-efficient"))
        assert fixed.numbers["rank"] == efficient.numbers["rank"]
        assert fixed.numbers["parameters"] == efficient.numbers["parameters"]
    assert TABLES[1].analyse(asked, outcomes).tables
