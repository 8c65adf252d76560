"""Signal rank: how many singular values stand above what noise of the same shape reaches; there is nothing to choose.

The singular values of a rows × cols matrix of independent noise of any scale fill the bulk of Marchenko and Pastur, and
the largest lies at its edge, but for a spread that Tracy and Widom gave. So the scale of the noise is taken from the
spectrum's own median (Gavish and Donoho 2014), and what is above the edge, with an allowance for that spread and for
the median's own, is signal. k strong directions raise the median, so it is taken of the others alone, whose bulk is
that of a (rows − k) × (cols − k) matrix, and the count is repeated until it stays.

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

import numpy as np
from jaxtyping import Float

LEAST_SIDE = 16  # of a matrix in which signal can be told from noise, see benchmarks/noise_verdicts.py
ROUNDING = 1e-7  # a median below that, in units of σ₁, is what rounding has left of zeros
_QUANTILE = 3.2724  # of Tracy and Widom's law for real matrices: 0.999
_ALLOWANCE = 0.5  # for the spread of the median, which goes with 1 / short side
_RATIOS, _ANGLES = 257, 4096


@lru_cache(maxsize=1)
def _bulk_medians() -> tuple[np.ndarray, np.ndarray]:
    """Medians of the Marchenko–Pastur law over a grid of ratios in 0..1."""
    ratios = np.linspace(0.0, 1.0, _RATIOS)
    angle = (np.arange(_ANGLES) + 0.5) * np.pi / _ANGLES  # as in `null_singular_values`
    medians = [_bulk_median(ratio, angle) for ratio in ratios[1:]]
    return ratios, np.array([1.0, *medians])


def _bulk_median(ratio: float, angle: np.ndarray) -> float:
    position = 1 + ratio - 2 * np.sqrt(ratio) * np.cos(angle)
    density = np.sin(angle) ** 2 / position
    distribution = np.cumsum(density)
    return float(np.interp(0.5, (distribution - density / 2) / distribution[-1], position))


def bulk_median(ratio: Float[np.ndarray, "*shapes"]) -> Float[np.ndarray, "*shapes"]:
    """μ_β: median of the Marchenko–Pastur law of ratio β = short side / long side, to 1e-5."""
    return np.asarray(np.interp(ratio, *_bulk_medians()))


def largest_square(
    short: Float[np.ndarray, "*shapes"], long: Float[np.ndarray, "*shapes"], quantile: float
) -> Float[np.ndarray, "*shapes"]:
    """σ₁² of a Gaussian matrix of these sides and unit variance, at a quantile of Tracy and Widom's law.

    (√(p − ½) + √(q − ½))² plus the quantile times (√(p − ½) + √(q − ½)) (1/√(p − ½) + 1/√(q − ½))^⅓.
    """
    first, second = np.sqrt(np.asarray(short) - 0.5), np.sqrt(np.asarray(long) - 0.5)
    return np.asarray((first + second) ** 2 + quantile * (first + second) * (1 / first + 1 / second) ** (1 / 3))


@lru_cache(maxsize=256)
def noise_edges(rows: int, cols: int) -> Float[np.ndarray, " counts"]:
    """The edge of noise in units of the median of the values below the k leading ones, for k = 0..short side / 2."""
    count = np.arange(min(rows, cols) // 2 + 1)
    short, long = min(rows, cols) - count, max(rows, cols) - count
    median = long * bulk_median(short / long)
    edges: np.ndarray = np.sqrt(largest_square(short, long, _QUANTILE) / median) * (1 + _ALLOWANCE / short)
    edges.flags.writeable = False
    return edges


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
        told = np.isfinite(rest).all(axis=1) & (_median_below(rest, np.zeros(len(rest), int)) > ROUNDING * rest[:, 0])
    found = np.full(len(rest), np.nan)
    found[told] = _count(rest[told], noise_edges(rows, cols))
    return found.reshape(batch)


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many values are above the edge that the others make."""
    count = np.zeros(len(values), dtype=np.int64)
    while True:
        edge = edges[count] * _median_below(values, count)
        above = np.minimum((values > edge[:, None]).sum(axis=1), len(edges) - 1)
        if (above <= count).all():
            return count
        count = np.maximum(count, above)


def _median_below(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Median of the values of each row after its `count` leading ones."""
    rest = values.shape[1] - count
    middle = np.stack([count + (rest - 1) // 2, count + rest // 2], axis=1)
    return np.asarray(np.take_along_axis(values, middle, axis=1).mean(axis=1))


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
