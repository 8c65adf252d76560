"""Signal rank: how many singular values stand above what noise of the same shape reaches; there is nothing to choose.

The singular values of a rows × cols matrix of independent noise of any scale fill the bulk of Marchenko and Pastur, and
the largest lies at its edge, but for a spread that Tracy and Widom gave. So the scale of the noise is taken from the
spectrum's own median (Gavish and Donoho 2014), and what is above the edge, with an allowance for that spread and for
the median's own, is signal. k strong directions in noise raise the median; where the other values have the quartiles
of a (rows − k) × (cols − k) matrix of noise, it is taken of them alone, and the count is repeated until it stays. A
spectrum that decays all the way has no such bulk, and there the median of all values is the scale.

A direction that was planted with strength θ, in units of the noise's standard deviation, shows itself above the edge
from about θ = (rows · cols)^¼ on; below, nothing can find it in the singular values.

References:
    Marchenko and Pastur 1967, Distribution of eigenvalues for some sets of random matrices.
    Johnstone 2001, On the distribution of the largest eigenvalue in principal components analysis; with the centring of
    Ma 2012, Accuracy of the Tracy-Widom limits for the extreme eigenvalues in white Wishart matrices.
    Gavish and Donoho 2014, The optimal hard threshold for singular values is 4/√3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEAST_SIDE = 16  # of a matrix in which signal can be told from noise, see `benchmarks/noise_verdicts.py --sides`
ROUNDING = 1e-7  # a median below that, in units of σ₁, is what rounding has left of zeros
_QUANTILE = 3.2724  # of Tracy and Widom's law for real matrices: 0.999
_ALLOWANCE = 1.3  # for the spread of the median, which goes with the width of the bulk / short side
_TOLERANCE = 6.0  # of the quartiles of what is left of noise, which goes with 1 / short side too
_QUARTERS = (0.75, 0.5, 0.25)
_RATIOS, _ANGLES = 257, 4096


@lru_cache(maxsize=1)
def _bulks() -> tuple[np.ndarray, np.ndarray]:
    """Quartiles of the Marchenko–Pastur law, of its upper half first, over a grid of ratios in 0..1."""
    ratios = np.linspace(0.0, 1.0, _RATIOS)
    angle = (np.arange(_ANGLES) + 0.5) * np.pi / _ANGLES  # as in `null_singular_values`
    return ratios, np.array([np.ones(len(_QUARTERS)), *(_bulk(ratio, angle) for ratio in ratios[1:])])


def _bulk(ratio: float, angle: np.ndarray) -> np.ndarray:
    position = 1 + ratio - 2 * np.sqrt(ratio) * np.cos(angle)
    density = np.sin(angle) ** 2 / position
    distribution = np.cumsum(density)
    return np.asarray(np.interp(_QUARTERS, (distribution - density / 2) / distribution[-1], position))


def bulk_quartiles(ratio: Float[np.ndarray, " shapes"]) -> Float[np.ndarray, "shapes 3"]:
    """Upper quartile, median (μ_β) and lower quartile of the Marchenko–Pastur law, to 1e-5.

    Args:
        ratio: β = short side / long side.
    """
    grid, quartiles = _bulks()
    return np.stack([np.interp(ratio, grid, each) for each in quartiles.T], axis=-1)


def largest_square(
    short: Float[np.ndarray, "*shapes"], long: Float[np.ndarray, "*shapes"], quantile: float
) -> Float[np.ndarray, "*shapes"]:
    """σ₁² of a Gaussian matrix of these sides and unit variance, at a quantile of Tracy and Widom's law.

    (√(p − ½) + √(q − ½))² plus the quantile times (√(p − ½) + √(q − ½)) (1/√(p − ½) + 1/√(q − ½))^⅓.
    """
    first, second = np.sqrt(np.asarray(short) - 0.5), np.sqrt(np.asarray(long) - 0.5)
    return np.asarray((first + second) ** 2 + quantile * (first + second) * (1 / first + 1 / second) ** (1 / 3))


class _Noise(NamedTuple):
    """What noise of a shape has once its k leading values are left out, in units of the others' median.

    Attributes:
        edges: (k,) for k = 0..short side / 2, where noise ends.
        upper: (k,) upper quartile.
        lower: (k,) lower quartile.
        tolerance: (k,) how far a quartile may be from that.
    """

    edges: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    tolerance: np.ndarray


@lru_cache(maxsize=256)
def _noise(rows: int, cols: int) -> _Noise:
    count = np.arange(min(rows, cols) // 2 + 1)
    short, long = min(rows, cols) - count, max(rows, cols) - count
    upper, median, lower = np.sqrt(bulk_quartiles(short / long)).T
    edge = np.sqrt(largest_square(short, long, _QUANTILE) / long) * (1 + _ALLOWANCE / short * np.sqrt(short / long))
    tolerance = _TOLERANCE / short * np.sqrt(short / long)  # a bulk is as wide as the root of the ratio
    return _Noise(edge / median, upper / median, lower / median, tolerance)


def signal_rank(singular_values: Float[np.ndarray, "*batch q"], rows: int, cols: int) -> Float[np.ndarray, "*batch"]:
    """Number of singular values above the edge of noise's bulk; 0 for a Gaussian matrix, with at least 99 %.

    At most half the short side: the others are what noise is measured by. NaN where nothing can be told: a short side
    below 16, fewer values than the short side has (a cut spectrum, a product of factors), a median that is zero or what
    rounding leaves of zero (more than half of the directions hold nothing, so there is no noise to measure), a zero
    update, a value that is not finite.

    Args:
        singular_values: all of them, descending; (..., q).
        rows: of the matrix.
        cols: of the matrix.

    Returns:
        Whole numbers and NaN, (...).
    """
    values = np.asarray(singular_values, dtype=np.float64)
    batch, short = values.shape[:-1], min(rows, cols)
    if short < LEAST_SIDE or values.shape[-1] < short:
        return np.full(batch, np.nan)
    rest = values.reshape(-1, values.shape[-1])[:, :short]
    with np.errstate(invalid="ignore"):
        told = np.isfinite(rest).all(axis=1) & (
            _quantile_below(rest, np.zeros(len(rest), int), 0.5) > ROUNDING * rest[:, 0]
        )
    found = np.full(len(rest), np.nan)
    found[told] = _count(rest[told], _noise(rows, cols))
    return found.reshape(batch)


def _count(values: np.ndarray, noise: _Noise) -> np.ndarray:
    """How many values are above the edge."""
    first = _above(values, np.zeros(len(values), dtype=np.int64), noise)
    count, found = first, first.copy()
    while (places := np.flatnonzero(count)).size:
        again = np.maximum(_above(values[places], count[places], noise), count[places])
        stays = again == count[places]
        settled = places[stays]
        bulk = _is_bulk(values[settled], count[settled], noise)
        found[settled[bulk]] = count[settled[bulk]]
        count = np.zeros_like(count)
        count[places[~stays]] = again[~stays]
    return found


def _above(values: np.ndarray, count: np.ndarray, noise: _Noise) -> np.ndarray:
    """How many values are above the edge by the median of those after the `count` leading ones."""
    edge = noise.edges[count] * _quantile_below(values, count, 0.5)
    return np.asarray(np.minimum((values > edge[:, None]).sum(axis=1), len(noise.edges) - 1))


def _is_bulk(values: np.ndarray, count: np.ndarray, noise: _Noise) -> np.ndarray:
    """Whether the values after the `count` leading ones have the quartiles of noise; where half are zero: no."""
    upper, median, lower = (_quantile_below(values, count, place) for place in (0.25, 0.5, 0.75))
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.maximum(abs(upper / median - noise.upper[count]), abs(lower / median - noise.lower[count]))
    return np.asarray(away <= noise.tolerance[count])


def _quantile_below(values: np.ndarray, count: np.ndarray, place: float) -> np.ndarray:
    """A quantile, counted from the largest, of the values of each row after its `count` leading ones."""
    at = count + place * (values.shape[1] - count) - 0.5  # the i-th of n stands for (i − ½) / n
    low = np.floor(at).astype(np.int64)
    pair = np.take_along_axis(values, np.stack([low, low + 1], axis=1), axis=1)
    return np.asarray(pair[:, 0] + (at - low) * (pair[:, 1] - pair[:, 0]))


def noise_edge(singular_values: Float[np.ndarray, "*batch q"], rows: int, cols: int) -> Float[np.ndarray, "*batch"]:
    """Where noise's bulk ends in a spectrum, in its own units: exactly `signal_rank` values lie above; NaN where it is.

    Args:
        singular_values: all of them, descending; (..., q).
        rows: of the matrix.
        cols: of the matrix.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    count = signal_rank(values, rows, cols)
    flat, found = values.reshape(-1, values.shape[-1]), count.reshape(-1)
    edge, told = np.full(len(flat), np.nan), np.flatnonzero(np.isfinite(found))
    if len(told):
        rest, rank, noise = flat[told, : min(rows, cols)], found[told].astype(np.int64), _noise(rows, cols)
        none = np.zeros_like(rank)
        from_all = (_above(rest, rank, noise) != rank) & (_above(rest, none, noise) == rank)
        base = np.where(from_all, none, rank)  # by which median exactly these were found to lie above
        measured = noise.edges[base] * _quantile_below(rest, base, 0.5)
        each = np.arange(len(told))
        last_above = np.where(rank > 0, rest[each, rank - 1], np.inf)
        edge[told] = np.minimum(np.maximum(measured, rest[each, rank]), last_above)
    return edge.reshape(count.shape)


def signal_share(singular_values: Float[np.ndarray, "*batch q"], rows: int, cols: int) -> Float[np.ndarray, "*batch"]:
    """Share of ‖A‖_F² that the values above the edge hold, in 0..1; NaN where `signal_rank` is.

    Args:
        singular_values: all of them, descending; (..., q).
        rows: of the matrix.
        cols: of the matrix.
    """
    return energy_share(singular_values, signal_rank(singular_values, rows, cols))


def energy_share(
    singular_values: Float[np.ndarray, "*batch q"], rank: Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch"]:
    """Σ_{i≤r} σ_i² / Σ σ_i²; NaN where the rank is, or the matrix is zero or not finite."""
    values = np.asarray(singular_values, dtype=np.float64)
    largest = values[..., :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        energy = (values / largest) ** 2  # in units of σ₁², so that squares neither under- nor overflow
        held = np.where(np.arange(values.shape[-1]) < np.asarray(rank)[..., None], energy, 0.0).sum(axis=-1)
        return np.where(np.isnan(rank), np.nan, held / energy.sum(axis=-1))
