"""Algorithm 2 line 7: the next rank, against a slow loop, and the laws that any spectrum keeps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers import oracles

from inrank import ExplainedRatio, Observation, needs_gradient
from inrank.growth.rule import next_rank, reference_cap
from inrank_monitor.ranks.metrics import DEFINITIONS
from inrank_monitor.ranks.null_model import null_rank

ROWS, COLS, SIZE = 40, 30, 30
OPTIONS = list(itertools.product((0.3, 0.8, 0.9, 0.99, 1.0), (1, 4, 12), (1, 2, 7, 20)))


def spectra(count: int = 24) -> dict[str, np.ndarray]:
    """Descending spectra of every character, of `count` values."""
    generator = np.random.default_rng(count)
    index = np.arange(1, count + 1.0)
    return {
        "fast": 0.7**index,
        "slow": 1 / np.sqrt(index),
        "rank one": np.where(index == 1, 3.0, 0.0),
        "low rank": np.where(index <= 5, 2.0 / index, 0.0),
        "clusters": np.where(index <= count // 2, 5.0, 0.5) - 0.01 * index,
        "graded": 10.0 ** (-5 * (index - 1) / count),  # steeper ones end in the rounding of α = 1
        "random": np.sort(generator.exponential(size=count))[::-1].copy(),
        "noise": oracles.singular_values(generator.standard_normal((SIZE, count))),
        "flat": np.full(count, 0.3),
        "few": np.array([2.0, 1.0, 0.5]),
    }


def by_trying(values: np.ndarray, rank: int, threshold: float, buffer_rank: int, most: int, definition: str) -> int:
    """The loop as it is written down: from the present rank on, one more until the ratio is accepted.

    The paper's stops at rank + b and the cap. The published code is `for r in range(rank, min(rank + b, cap))`.
    """
    if not np.isfinite(values).all() or not values.any():
        return rank
    last = min(rank + buffer_rank, most) if definition == "paper" else min(rank + buffer_rank, most) - 1
    grown = rank
    while grown < last:
        ratio = oracles.explained_ratio(values, grown, buffer_rank, definition, SIZE)
        if ratio > threshold or (definition == "paper" and ratio == threshold):
            break
        grown += 1
    return grown


def observation(
    values: np.ndarray, rank: int = 2, buffer_rank: int = 4, max_rank: int = 20, **more: Any
) -> Observation:
    return Observation("layer", 7, ROWS, COLS, rank, buffer_rank, max_rank, values, **more)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_the_next_rank_is_found_by_trying_one_after_the_other(definition: Any) -> None:
    grown = set()
    for name, values in spectra().items():
        for (threshold, buffer_rank, rank), most in itertools.product(OPTIONS, (SIZE, 21, 8)):
            if rank > most:
                continue
            found = next_rank(
                values,
                rank,
                threshold=threshold,
                buffer_rank=buffer_rank,
                max_rank=most,
                definition=definition,
                size=SIZE,
            )
            assert found == by_trying(values, rank, threshold, buffer_rank, most, definition), (name, threshold, rank)
            grown.add(found - rank)
    assert grown >= set(range(6)) | {11}


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_rule_stays_within_its_bounds_and_knows_no_scale(definition: Any) -> None:
    for values in spectra().values():
        for threshold, buffer_rank, rank in OPTIONS:
            rule = ExplainedRatio(threshold, definition)
            seen = observation(values, rank, buffer_rank, max_rank=21)
            found = rule(seen)
            assert rank <= found <= min(rank + buffer_rank, 21)
            cap = 21 if definition == "paper" else reference_cap(seen)
            assert found == by_trying(values, rank, threshold, buffer_rank, cap, definition)
            for scale in (1e-12, 3.0, 1e9):
                assert rule(observation(scale * values, rank, buffer_rank, max_rank=21)) == found


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_higher_threshold_never_asks_for_less(definition: Any) -> None:
    for values in spectra().values():
        for buffer_rank, rank in itertools.product((1, 4, 12), (1, 2, 7)):
            seen = observation(values, rank, buffer_rank, max_rank=SIZE)
            found = [ExplainedRatio(threshold, definition)(seen) for threshold in (0.2, 0.5, 0.8, 0.9, 0.99, 1.0)]
            assert found == sorted(found)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_nothing_and_nan_ask_for_nothing(definition: Any) -> None:
    for bad in (np.zeros(6), np.full(6, np.nan), np.array([1.0, 0.5, np.inf]), np.array([3.0, 1.0, np.nan])):
        for rank in (1, 2, 9):
            assert ExplainedRatio(0.9, definition)(observation(bad, rank)) == rank


def test_a_flat_spectrum_is_explained_by_the_paper_only_once_zeros_are_out_of_sight() -> None:
    """Equal values have no variance: g = 1. With zeros in the window they have some, and the rank grows over them."""
    full = np.full(SIZE, 0.3)
    assert ExplainedRatio(0.9)(observation(full, rank=2)) == 2
    some = np.concatenate([np.full(12, 0.3)])
    assert ExplainedRatio(0.9)(observation(some, rank=2, buffer_rank=4)) == 2  # the window s[1..6] is flat
    assert ExplainedRatio(0.9)(observation(some, rank=9, buffer_rank=4)) == 12  # s[13] = 0 is in it


def test_growth_comes_to_rest_where_the_ratio_is_reached() -> None:
    values, rank, steps = spectra()["slow"], 1, []
    while True:
        found = ExplainedRatio(0.9)(observation(values, rank, buffer_rank=4, max_rank=SIZE))
        if found == rank:
            break
        steps.append(found - rank)
        rank = found
    assert all(0 < step <= 4 for step in steps)
    assert oracles.explained_ratio(values, rank, 4, "paper", SIZE) >= 0.9
    assert rank >= oracles.intrinsic_rank(values, 0.9, 4, "paper", SIZE)


def test_the_ratio_beside_a_growth_is_that_of_the_rules_own_definition() -> None:
    for definition in DEFINITIONS:
        for values in spectra().values():
            for rank in (1, 7):
                expected = oracles.explained_ratio(values, rank, 4, definition, SIZE)
                assert ExplainedRatio(0.9, definition).ratio(observation(values, rank)) == pytest.approx(
                    expected, abs=1e-9
                )


def test_the_reference_cap_is_half_the_short_side_less_the_buffer() -> None:
    seen = Observation("layer", 0, 768, 3072, 2, 100, 614, np.ones(102))
    assert reference_cap(seen) == 284
    assert reference_cap(observation(np.ones(3), buffer_rank=4, max_rank=20)) == 11
    assert reference_cap(observation(np.ones(3), buffer_rank=4, max_rank=6)) == 6
    assert reference_cap(observation(np.ones(3), buffer_rank=100)) == 1  # where the published code fails
    assert ExplainedRatio(0.99, "reference")(observation(np.ones(3), rank=5, buffer_rank=100)) == 5


def test_an_observation_knows_its_null() -> None:
    seen = observation(np.ones(6), buffer_rank=4)
    assert seen.size == SIZE
    for definition in DEFINITIONS:
        assert seen.null_rank(0.8, definition) == null_rank(ROWS, COLS, 0.8, 4, definition, "factors")
    assert seen.null_rank() == seen.null_rank(0.9, "paper")


def test_the_null_share_is_that_of_noise_outside_random_spans() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        gradient = generator.standard_normal((ROWS, COLS))
        left = np.linalg.qr(generator.standard_normal((ROWS, 6)))[0]
        right = np.linalg.qr(generator.standard_normal((COLS, 6)))[0]
        outside = gradient - left @ (left.T @ gradient)
        outside = outside - (outside @ right) @ right.T
        shares.append(np.linalg.norm(outside) ** 2 / np.linalg.norm(gradient) ** 2)
    assert np.sqrt(np.mean(shares)) == pytest.approx(observation(np.ones(6)).null_gradient_share(), rel=0.01)
    assert observation(np.ones(30)).null_gradient_share() == 0.0
    assert Observation("layer", 0, 3, 4, 1, 9, 3, np.ones(5)).null_gradient_share() == 0.0


def test_a_marked_rule_is_the_same_function() -> None:
    def rule(seen: Observation) -> int:
        assert seen.gradient is not None
        return seen.rank + int(seen.gradient[0] > 1)

    assert not hasattr(rule, "needs_gradient")
    assert needs_gradient(rule) is rule
    assert rule.needs_gradient  # type: ignore[attr-defined]
    assert rule(observation(np.ones(3), gradient=np.full(3, 2.0))) == 3
    assert not getattr(ExplainedRatio(), "needs_gradient", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), r"threshold must be in \(0, 1\], got 0.0"),
        ((1.5,), r"threshold must be in \(0, 1\], got 1.5"),
        ((float("nan"),), "threshold must be in .*, got nan"),
        ((0.9, "eq7"), "definition must be one of .*, got 'eq7'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_rule_out_of_range_is_named_when_it_is_made(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExplainedRatio(*arguments)


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        next_rank(np.ones(3), 0)
