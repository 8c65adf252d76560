from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
from helpers import oracles
from helpers.made_runs import make_run

from inrank.experiments.gpt2.trainings import MODELS, THRESHOLDS
from inrank.experiments.null_ranks.figures import null_over_buffer_rank, trained_over_buffer_rank
from inrank.experiments.null_ranks.null_ranks import published_statements, reading, trained_statements, trainings
from inrank.experiments.null_ranks.numbers import (
    ALPHA,
    EQUATION,
    MULTIPLES,
    PUBLISHED,
    TABLE_3,
    UPDATES,
    PublishedRank,
    Sweep,
    TrainedRank,
    capped,
    growth,
    over_buffer_ranks,
    over_initial_ranks,
    published_ranks,
    trained_ranks,
)
from inrank.experiments.null_ranks.tables import published_table, trained_table
from inrank.reproduction.experiment import Request
from inrank.reproduction.reproduce import reproduce
from inrank_monitor import open_run
from inrank_monitor.ranks.null_model import null_rank

pytestmark = pytest.mark.numeric

SWEEP = Sweep((160, 64), "a 160×64 matrix", (2, 4, 8, 16), (2, 16), 4, (1, 2, 3, 8))
NAMES = ["h.0.mlp.c_fc.weight", "h.0.attn.c_proj.weight", "h.1.mlp.c_proj.weight"]


def of_table_3(apart: float) -> list[PublishedRank]:
    return [
        PublishedRank(model, threshold, 768, rank, rank - apart)
        for model, ranks in TABLE_3.items()
        for threshold, rank in ranks.items()
    ]


def trained_at(shares: list[float], growing: float = 1.0) -> list[TrainedRank]:
    """Ranks of these shares of a null rank of 20, a seed each; at twice the multiple `growing` times as large."""
    return [
        TrainedRank(
            "large",
            seed,
            multiple,
            int(8 * multiple),
            ALPHA,
            "paper",
            group,
            rank := 20 * share * growing ** math.log2(multiple),
            rank,
            20.0,
            rank / 20,
            rank / 20,
        )
        for seed, share in enumerate(shares)
        for multiple in MULTIPLES
        for group in ("mlp", "all")
    ]


@pytest.mark.slow
def test_the_nine_ranks_of_table_3_are_null_ranks() -> None:
    found = published_ranks(MODELS)
    assert [(one.model, one.threshold) for one in found] == [(model, alpha) for model in MODELS for alpha in THRESHOLDS]
    assert max(abs(one.apart) for one in found) <= 2
    shapes = ((3072, 768), (768, 3072))  # c_fc and c_proj: there are as many of the one as of the other
    assert found[2].null_rank == fmean(null_rank(*shape, 0.9, 100, "reference", "factors") for shape in shapes)


@pytest.mark.parametrize(("apart", "verdict"), [(0.0, "agrees"), (-2.0, "agrees"), (3.0, "disagrees")])
def test_a_rank_is_noise_if_it_is_within_two_of_its_null_rank(apart: float, verdict: str) -> None:
    published = of_table_3(apart)
    ranks, shares = published_statements(published)
    assert ranks.verdict == verdict
    assert ranks.paper == "152/192/254/168/213/286/179/230/312"
    assert shares.verdict == "agrees"  # three ranks are 0.4 per cent of the width
    says = {row[-1] for row in published_table(published, 2.0).rows}
    assert says == ({"yes: +3 from noise"} if verdict == "disagrees" else {"no: noise gets it too"})


def test_null_ranks_over_b_are_those_of_the_null_model() -> None:
    nulls = over_buffer_ranks(SWEEP, (0.8, ALPHA))
    assert nulls[UPDATES, 0.8][8] == null_rank(160, 64, 0.8, 8)
    assert nulls[EQUATION, ALPHA][4] == null_rank(160, 64, ALPHA, 4, "paper", "factors")
    assert growth(nulls, SWEEP, UPDATES) == null_rank(160, 64, ALPHA, 16) / null_rank(160, 64, ALPHA, 2)
    of_whole_matrix = nulls["published code, Gaussian", ALPHA]  # its variances know no b
    assert len(set(of_whole_matrix.values())) == 1


def test_b_at_which_the_cap_of_the_published_code_decides_is_named() -> None:
    nulls = over_buffer_ranks(SWEEP, (ALPHA,))
    reached = capped(nulls, SWEEP, ALPHA)
    # half of 64 less b, and one less since the code stops before it: 15 at b = 16
    assert [nulls[PUBLISHED, ALPHA][b] for b in reached] == [31 - b for b in reached]
    assert 16 in reached
    assert 2 not in reached
    assert "At b = " in null_over_buffer_rank(nulls, SWEEP, ALPHA).look


@pytest.mark.parametrize("rule", [PUBLISHED, EQUATION])
def test_null_ranks_from_an_initial_rank_never_shrink_below_it(rule: str) -> None:
    found = over_initial_ranks(SWEEP, rule, ALPHA)
    definition = "reference" if rule == PUBLISHED else "paper"
    usual = null_rank(160, 64, ALPHA, 4, definition, "factors")
    assert found[SWEEP.initial_ranks.index(2)] == usual
    assert all(rank >= initial for rank, initial in zip(found, SWEEP.initial_ranks, strict=True))
    assert null_rank(160, 64, ALPHA, 4, definition, "factors", initial_rank=26) == 26  # explained from the start


def test_an_initial_rank_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="initial_rank must be at least 1, got 0"):
        null_rank(12, 8, kind="factors", initial_rank=0)


def test_trained_ranks_are_those_of_the_last_spectra(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", names=NAMES, buffer_rank=4))
    found = trained_ranks(run, "small", 0, (0.8, ALPHA))
    assert len(found) == 4 * 2 * 2 * 2
    for one in found:
        names = NAMES if one.group == "all" else [NAMES[0], NAMES[2]]
        last = [run.singular_values(name).to_numpy()[-1] for name in names]
        ranks = [oracles.intrinsic_rank(values, one.threshold, one.buffer_rank, one.definition) for values in last]
        null = null_rank(24, 16, one.threshold, one.buffer_rank, one.definition)
        assert one.buffer_rank == 4 * one.multiple
        assert (one.rank, one.null_rank) == pytest.approx((fmean(ranks), null), rel=1e-12)
        assert one.rank_over_null_rank == pytest.approx(fmean(ranks) / null, rel=1e-12)
        assert one.highest >= one.rank


def test_a_matrix_that_is_not_finite_at_the_end_is_left_out(tmp_path: Path) -> None:
    bad = make_run(tmp_path / "one", names=NAMES, not_finite=lambda step: [2] if step == 40 else [])
    rest = make_run(tmp_path / "rest", names=NAMES)
    kept, whole = (trained_ranks(open_run(path), "small", 0, (ALPHA,)) for path in (bad, rest))
    last = open_run(rest).singular_values(NAMES[0]).to_numpy()[-1]
    assert kept[0].rank == oracles.intrinsic_rank(last, ALPHA, kept[0].buffer_rank, "paper")
    assert len(kept) == len(whole)


def test_a_run_without_finite_mlp_matrices_is_refused(tmp_path: Path) -> None:
    none = open_run(make_run(tmp_path / "none", names=["rnn.weight_hh"]))
    with pytest.raises(ValueError, match=r"must match \*\.mlp\.\*, got rnn\.weight_hh"):
        trained_ranks(none, "small", 0, (ALPHA,))
    lost = open_run(make_run(tmp_path / "lost", names=NAMES, not_finite=lambda step: [0, 2]))
    with pytest.raises(ValueError, match="must be finite at its end"):
        trained_ranks(lost, "small", 0, (ALPHA,))


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [([0.1, 0.12, 0.11], "agrees"), ([0.9, 1.0, 1.1], "disagrees"), ([0.1, 0.9, 0.5], "within noise")],
)
def test_updates_are_far_below_noise_only_where_their_interval_is(shares: list[float], verdict: str) -> None:
    _, mlp, every = trained_statements(trained_at(shares), "2x64")
    assert mlp.verdict == every.verdict == verdict
    assert "half of the null rank, 0.5" in mlp.why


@pytest.mark.parametrize(("growing", "verdict"), [(1.0, "agrees"), (2.0, "disagrees")])
def test_b_is_insensitive_only_where_the_trained_rank_hardly_goes_with_it(growing: float, verdict: str) -> None:
    assert trained_statements(trained_at([0.1, 0.12, 0.11], growing), "2x64")[0].verdict == verdict


def test_what_cannot_be_trained_here_is_not_tested() -> None:
    request = Request(Path("unused"), "paper", (0,))
    assert trainings(request) == []
    assert {one.verdict for one in trained_statements([], "small")} == {"not tested"}


def test_the_reading_follows_the_numbers() -> None:
    nulls = over_buffer_ranks(SWEEP, (ALPHA,))
    low = reading(of_table_3(1.0), nulls, SWEEP, trained_at([0.1, 0.1, 0.1]), "2x64")
    assert low.startswith("9 of 9 ranks of Table 3")
    assert "rank 2 where noise has 20: less than half of it." in low
    high = reading(of_table_3(40.0), nulls, SWEEP, trained_at([0.9, 1.0, 1.1]), "2x64")
    assert high.startswith("0 of 9 ranks of Table 3")
    assert "(the farthest is 40 away)." in high
    assert "more than half of it." in high
    unsure = reading(of_table_3(1.0), nulls, SWEEP, trained_at([0.1, 0.9, 0.5]), "2x64")
    assert "about half of it, within noise" in unsure


def test_trained_ranks_stand_beside_their_null_ranks_in_figure_and_table() -> None:
    trained = trained_at([0.1, 0.2, 0.3], 2.0)
    figure = trained_over_buffer_rank(trained, {"large": "4x128"}, ALPHA).figure
    measured, null = figure.data
    assert (list(measured.x), list(null.x)) == ([2, 4, 8, 16], [2, 4, 8, 16])
    assert list(measured.y) == pytest.approx([1, 2, 4, 8])
    assert set(null.y) == {20.0}
    assert (null.line.dash, measured.name) == ("dash", "4x128, trained")
    (row,) = trained_table(trained, {"large": "4x128"}).rows
    assert list(row[:8]) == ["4x128", "eq. 7", "0.9", "8", "4 ± 2", "4 ± 2", "20", "0.2 ± 0.1"]


@pytest.mark.slow
def test_smoke_gives_every_statement_and_a_page(tmp_path: Path) -> None:
    assert reproduce(Request(tmp_path, "smoke", (0,)), ["null-ranks"], jobs=1, quiet=True) == 0
    results = json.loads((tmp_path / "null-ranks" / "results.json").read_text(encoding="utf-8"))
    assert len(results["statements"]) == 10
    assert results["statements"][0]["verdict"] == "agrees"
    assert {one["verdict"] for one in results["statements"][-3:]} == {"not tested"}  # one seed
    assert results["runs"] == ["gpt2-small-baseline-seed-0"]
    assert "Trained updates beside their null ranks" in (tmp_path / "null-ranks" / "index.html").read_text("utf-8")
