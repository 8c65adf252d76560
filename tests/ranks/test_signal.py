"""Signal rank: 0 of noise, k of k planted directions, the same at every scale; not told where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import oracles

from inrank_monitor.ranks import energy_share, metrics, noise_edge, null_singular_values, signal_rank, signal_share
from inrank_monitor.ranks.signal import LEAST_SIDE, bulk_quartiles

pytestmark = pytest.mark.numeric
SHAPES = [(16, 16), (16, 200), (300, 17), (40, 40), (33, 70), (64, 96)]


def drawn(shape: tuple[int, int], count: int, kind: str = "normal", seed: int = 0) -> np.ndarray:
    """Spectra of so many matrices of noise."""
    generator = np.random.default_rng([seed, *shape])
    draws = {
        "normal": generator.standard_normal,
        "signs": lambda size: generator.choice([-1.0, 1.0], size),
        "uniform": lambda size: generator.uniform(-3.0, 3.0, size),
    }
    return np.linalg.svd(draws[kind]((count, *shape)), compute_uv=False)


def planted(shape: tuple[int, int], count: int, strength: float, draws: int, seed: int = 0) -> np.ndarray:
    """Spectra of noise with `count` orthonormal directions of `strength` times the least that shows."""
    generator = np.random.default_rng([seed, count, *shape])
    left, right = (np.linalg.qr(generator.standard_normal((draws, side, count)))[0] for side in shape)
    noise = generator.standard_normal((draws, *shape))
    return np.linalg.svd(noise + strength * np.prod(shape) ** 0.25 * left @ right.mT, compute_uv=False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_noise_has_none_in_99_of_100_draws(shape: tuple[int, int]) -> None:
    found = signal_rank(drawn(shape, 600), *shape)
    assert np.isfinite(found).all()
    assert (found > 0).mean() <= 0.01


def test_large_noise_has_none() -> None:
    for shape in [(256, 256), (200, 900)]:
        assert not signal_rank(drawn(shape, 12), *shape).any()
        assert not signal_rank(null_singular_values(*shape), *shape)


@pytest.mark.parametrize("kind", ["signs", "uniform"])
def test_other_noise_has_none_either(kind: str) -> None:
    rates = [(signal_rank(drawn(shape, 200, kind), *shape) > 0).mean() for shape in SHAPES]
    assert np.mean(rates) <= 0.01


@pytest.mark.parametrize("shape", [(24, 24), (32, 200), (90, 60), (128, 128)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.125, 0.25])
def test_planted_directions_are_counted(shape: tuple[int, int], share: float) -> None:
    count = max(int(share * min(shape)), 1)
    found = signal_rank(planted(shape, count, 3.0, 60), *shape)
    assert (found == count).mean() >= 0.95
    assert np.abs(found - count).max() <= 1


def test_strong_directions_are_counted_whatever_their_strength() -> None:
    for strength in (10.0, 1e3, 1e5):
        assert (signal_rank(planted((48, 64), 9, strength, 20), 48, 64) == 9).all()


def test_what_is_weaker_than_the_least_that_shows_is_noise() -> None:
    assert (signal_rank(planted((64, 64), 3, 0.5, 60), 64, 64) == 0).mean() >= 0.98


def test_scale_rotation_and_transposition_change_nothing() -> None:
    generator = np.random.default_rng(5)
    matrix = generator.standard_normal((30, 50)) + 60 * np.outer(*map(generator.standard_normal, (30, 50))) / 30
    values = oracles.singular_values(matrix)
    rank, share = signal_rank(values, 30, 50), signal_share(values, 30, 50)
    assert rank >= 1
    for scale in (1e-12, 3.0, 1e20):
        assert signal_rank(scale * values, 30, 50) == rank
        assert signal_share(scale * values, 30, 50) == pytest.approx(share, rel=1e-12)
    assert signal_rank(values, 50, 30) == rank
    turned = np.linalg.qr(generator.standard_normal((30, 30)))[0] @ matrix
    assert signal_rank(oracles.singular_values(turned), 30, 50) == rank


def test_a_spectrum_that_decays_all_the_way_is_measured_by_the_median_of_all() -> None:
    edge = np.median([each[0] / np.median(each) for each in drawn((200, 200), 20)])  # of noise that is really drawn
    for values in (1.0 / np.arange(1, 201), np.exp(-np.arange(200) / 40.0), np.arange(1, 201) ** -0.6):
        expected = (values > edge * np.median(values)).sum()
        found = signal_rank(values, 200, 200)
        assert 0.9 * expected <= found <= expected  # the allowance is above the middle of what noise has


@pytest.mark.parametrize("ratio", [0.02, 0.3, 0.75, 1.0])
def test_the_quartiles_of_the_bulk_are_those_of_noise(ratio: float) -> None:
    values = null_singular_values(round(20_000 * ratio), 20_000) ** 2 / 20_000
    np.testing.assert_allclose(bulk_quartiles(np.array(ratio)), np.quantile(values, [0.75, 0.5, 0.25]), rtol=2e-3)


def test_leading_axes_are_batches() -> None:
    rows = np.concatenate([planted((20, 30), count, 4.0, 2) for count in (1, 2, 3)])
    rows[3] = np.nan
    one_by_one = np.array([signal_rank(row, 20, 30) for row in rows])
    np.testing.assert_array_equal(signal_rank(rows.reshape(2, 3, 20), 20, 30), one_by_one.reshape(2, 3))
    shares = np.array([signal_share(row, 20, 30) for row in rows])
    np.testing.assert_allclose(signal_share(rows.reshape(3, 1, 2, 20), 20, 30), shares.reshape(3, 1, 2))
    assert signal_rank(np.zeros((0, 20)), 20, 30).shape == (0,)


def test_the_share_is_of_the_squared_norm() -> None:
    values = planted((24, 40), 2, 5.0, 1)[0]
    assert signal_share(values, 24, 40) == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    assert signal_share(drawn((24, 40), 1)[0], 24, 40) == 0
    np.testing.assert_allclose(energy_share(np.array([2.0, 1.0, 1.0]), np.array(2)), 5 / 6)


@pytest.mark.parametrize(
    ("values", "rows", "cols"),
    [
        (np.ones(1), 1, 48),
        (np.linspace(2, 1, 10), 10, 96),
        (np.linspace(9, 1, LEAST_SIDE - 1), 500, LEAST_SIDE - 1),
        (np.linspace(9, 1, 20), 32, 32),  # cut, or a product of factors
        (np.zeros(32), 32, 32),
        (np.r_[np.linspace(9, 1, 15), np.zeros(17)], 32, 32),  # more than half hold nothing
        (np.r_[np.linspace(9, 1, 10), np.full(22, 1e-9)], 32, 40),  # nor do these, but for rounding
        (np.r_[np.inf, np.ones(31)], 32, 32),
        (np.full(32, np.nan), 32, 32),
        (np.zeros(0), 32, 32),
    ],
)
def test_it_is_not_told_where_nothing_can_be(values: np.ndarray, rows: int, cols: int) -> None:
    assert np.isnan(signal_rank(values, rows, cols))
    assert np.isnan(signal_share(values, rows, cols))


def test_a_product_of_factors_has_no_noise_to_measure() -> None:
    generator = np.random.default_rng(0)
    product = generator.standard_normal((64, 8)) @ generator.standard_normal((8, 96))
    assert np.isnan(signal_rank(oracles.singular_values(product), 64, 96))


def test_it_is_a_metric_among_the_others() -> None:
    values = planted((32, 32), 3, 4.0, 1)[0]
    assert metrics.signal_rank(values, 32, 32) == 3
    assert metrics.signal_share(values, 32, 32) == signal_share(values, 32, 32)


def test_where_many_directions_hold_nothing_no_bulk_is_found_and_nothing_divides_by_zero() -> None:
    values = np.zeros((3, 40))
    for row, last in enumerate((500.0, 10.0, 1.0)):
        values[row, :22] = np.geomspace(1e3, last, 22)
    assert np.isfinite(signal_rank(values, 40, 60)).all()
    assert np.isfinite(noise_edge(values, 40, 60)).all()
