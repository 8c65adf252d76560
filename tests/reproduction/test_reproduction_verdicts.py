"""Verdicts: right on known answers, and honest about noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from inrank.reproduction.concentration import share_above, stable_rank
from inrank.reproduction.verdicts import (
    Sample,
    interval,
    is_below,
    is_less,
    is_not_above,
    is_within,
    not_tested,
    spread,
)
from inrank_monitor.ranks.null_model import null_singular_values


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_the_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert interval(values.tolist()) == pytest.approx(expected, rel=1e-5)


def test_beyond_the_table_the_interval_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=40)
    half = stats.norm.ppf(0.975) * values.std(ddof=1) / np.sqrt(40)
    assert interval(values.tolist()) == pytest.approx((values.mean() - half, values.mean() + half))


def test_without_a_difference_one_claim_in_twenty_is_decided() -> None:
    draws = np.random.default_rng(1).normal(size=(4000, 2, 3))
    verdicts = [is_less("", Sample("a", a.tolist()), Sample("b", b.tolist())).verdict for a, b in draws]
    assert 0.04 < 1 - verdicts.count("within noise") / 4000 < 0.06


def test_a_difference_beyond_noise_is_decided_either_way() -> None:
    low, high = Sample("low", [1.0, 1.1, 0.9]), Sample("high", [2.0, 2.2, 1.9])
    assert is_less("", low, high).verdict == "agrees"
    assert is_less("", high, low).verdict == "disagrees"
    assert is_below("", low, 1.5, "a limit").verdict == "agrees"
    assert is_below("", high, 1.5, "a limit").verdict == "disagrees"


def test_seeds_are_compared_in_pairs() -> None:
    """Seeds differ by far more than the two sides do."""
    first, second = [1.0, 5.0, 9.0], [1.2, 5.21, 9.19]
    assert is_less("", Sample("a", first), Sample("b", second)).verdict == "agrees"


def test_one_seed_decides_nothing() -> None:
    statement = is_less("", Sample("a", [1.0]), Sample("b", [100.0]))
    assert statement.verdict == "not tested"
    assert "one seed" in statement.why


def test_comparable_means_within_the_margin_beyond_noise() -> None:
    reference = Sample("b", [100.0, 101.0, 99.0])
    assert is_not_above("", Sample("a", [101.0, 102.0, 100.0]), reference, 0.02).verdict == "agrees"
    assert is_not_above("", Sample("a", [110.0, 111.0, 109.0]), reference, 0.02).verdict == "disagrees"
    assert is_not_above("", Sample("a", [95.0, 104.0, 99.0]), reference, 0.02).verdict == "within noise"


def test_computed_numbers_need_no_seeds() -> None:
    assert is_within("", [152.0, 192.0], [152, 193], 2, "ranks").verdict == "agrees"
    assert is_within("", [152.0, 196.0], [152, 193], 2, "ranks").verdict == "disagrees"


def test_numbers_are_kept_behind_the_words() -> None:
    statement = is_less("claim", Sample("a", [1.0, 2.0]), Sample("b", [3.0, 4.0]), paper="12")
    assert statement.values == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert (statement.claim, statement.paper) == ("claim", "12")
    assert "a 1.5 ± 0.71; b 3.5 ± 0.71" in statement.ours
    assert not_tested("claim", "no GPU").why == "no GPU"


def test_a_spread_of_one_seed_is_not_claimed() -> None:
    assert spread([2.0]) == "2"
    assert spread([]) == "–"
    assert spread([1.0, 3.0]) == "2 ± 1.4"
    assert spread([2.0, 2.0]) == "2"


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        interval([1.0, float("nan")])


def test_concentration_of_known_spectra() -> None:
    values = np.array([1.0] * 3 + [0.0] * 7)
    assert share_above(values) == 0.3
    assert stable_rank(values) == 3.0
    assert share_above(np.zeros(4)) == stable_rank(np.zeros(4)) == 0.0
    assert share_above(np.array([10.0, 1.01, 0.99])) == pytest.approx(2 / 3)


def test_drawn_noise_is_as_concentrated_as_the_null() -> None:
    drawn = np.linalg.svd(np.random.default_rng(0).normal(size=(128, 64)), compute_uv=False)
    null = null_singular_values(128, 64)
    assert share_above(drawn) == pytest.approx(share_above(null), abs=0.02)
    assert stable_rank(drawn) == pytest.approx(stable_rank(null), rel=0.06)
