"""The exponent of a spectrum's tail: planted power laws, and what cannot matter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inrank_monitor.ranks import tail_exponent

pytestmark = pytest.mark.numeric


def pareto(count: int, exponent: float, seed: int) -> np.ndarray:
    """Singular values whose squares have the density λ^−exponent above 1."""
    uniform = np.random.default_rng(seed).uniform(size=count)
    return np.sort((1 - uniform) ** (-0.5 / (exponent - 1)))[::-1]


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
def test_a_planted_power_law_is_found(exponent: float) -> None:
    found = [tail_exponent(pareto(2000, exponent, seed)) for seed in range(8)]
    assert np.mean(found) == pytest.approx(exponent, rel=0.05)
    assert np.std(found) < 0.15 * exponent


def test_only_the_tail_counts() -> None:
    rng = np.random.default_rng(3)
    tail = 3.0 * pareto(600, 2.5, 5)  # eigenvalues above 9
    body = rng.uniform(0.05, 2.9, size=1500)
    assert tail_exponent(np.concatenate([tail, body])) == pytest.approx(2.5, abs=0.3)


def test_it_is_the_likeliest_exponent_of_the_tail_that_is_nearest_to_a_power_law() -> None:
    values = pareto(60, 3.0, 2)
    squares = values**2
    best = (math.inf, math.nan)
    for size in range(10, 61):
        tail, least = squares[:size], squares[size - 1]
        exponent = 1 + size / sum(math.log(one / least) for one in tail)
        ascending = sorted(tail)
        model = [1 - (one / least) ** (1 - exponent) for one in ascending]
        gaps = [max(abs(m - i / size), abs(m - (i + 1) / size)) for i, m in enumerate(model)]
        best = min(best, (max(gaps), exponent))
    assert tail_exponent(values) == pytest.approx(best[1], rel=1e-9)


def test_units_and_order_do_not_matter() -> None:
    values = pareto(300, 2.2, 1)
    expected = tail_exponent(values)
    assert tail_exponent(1e-6 * values) == pytest.approx(expected, rel=1e-9)
    assert tail_exponent(values[::-1]) == expected


def test_noise_has_no_heavy_tail() -> None:
    values = np.linalg.svd(np.random.default_rng(0).standard_normal((256, 512)), compute_uv=False)
    assert tail_exponent(values) > 4  # a heavy tail is between 2 and 4 or so


@pytest.mark.parametrize(
    "values",
    [np.zeros(50), np.ones(50), np.array([]), pareto(19, 2.0, 0), np.full(40, np.nan), np.r_[np.inf, np.ones(40)]],
)
def test_what_has_no_tail_has_no_exponent(values: np.ndarray) -> None:
    assert math.isnan(tail_exponent(values))
