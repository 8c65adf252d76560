"""Whether the stronger singular values are learned before the weaker: "greedy" as one number, beside noise.

Each singular value above a tenth of the strongest has a half-time: the first step at which it reaches half of what it
ends with. The greedy order is Spearman's correlation of index (1 the strongest) and half-time: 1 if each stronger value
comes first, as eq. 4 of the paper has it for distinct targets; 0 if all grow alike, in one shape of spectrum.

References:
    Zhao et al. 2023, InRank, arXiv:2306.11250, Theorem 2 and Figures 2 and 3.
    Spearman 1904, The proof and measurement of association between two things.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from inrank.reproduction.concentration import FRACTION
from inrank_monitor.runs import Run

NULL_DRAWS = 5
_FEWEST = 3  # values: fewer have no order worth a number


def half_times(steps: Int[np.ndarray, " t"], values: Float[np.ndarray, "t n"]) -> Float[np.ndarray, " n"]:
    """First step at which each column reaches half of its last value, linear between the rows; from 0 at step 0.

    Args:
        steps: rising, above 0.
        values: a row a step, at least 0.

    Returns:
        Steps. 0 for a column that ends at 0.

    Raises:
        ValueError: nothing to look at, or a value that is not finite.
    """
    if not len(steps) or not np.isfinite(values).all():
        raise ValueError(f"values must be finite at one step at least, got {values.shape}")
    times = np.concatenate([[0.0], steps.astype(np.float64)])
    grown = np.vstack([np.zeros(values.shape[1]), values])
    half = grown[-1] / 2
    later = np.argmax(grown >= half, axis=0)  # of a column of zeros: 0
    before = np.maximum(later - 1, 0)
    column = np.arange(values.shape[1])
    low, high = grown[before, column], grown[later, column]
    share = np.divide(half - low, high - low, out=np.zeros_like(half), where=high > low)
    reached: np.ndarray = times[before] + share * (times[later] - times[before])
    return reached


def greedy_order(steps: Int[np.ndarray, " t"], values: Float[np.ndarray, "t n"], fraction: float = FRACTION) -> float:
    """Spearman's correlation of index and half-time over the values that end above a fraction of the strongest.

    Args:
        steps: as in `half_times`.
        values: spectra, descending in each row.
        fraction: of the strongest.

    Returns:
        −1 to 1; 0 if all half-times are equal; NaN for fewer than three such values.
    """
    chosen = values[-1] > fraction * values[-1].max()
    if chosen.sum() < _FEWEST:
        return math.nan
    ranks = pd.Series(half_times(steps, values[:, chosen])).rank().to_numpy()
    if np.ptp(ranks) == 0:
        return 0.0
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def null_order(
    steps: Int[np.ndarray, " t"],
    norms: Float[np.ndarray, " t"],
    shape: tuple[int, int],
    seed: int = 0,
    draws: int = NULL_DRAWS,
) -> float:
    """The greedy order of an update that grows in all directions alike: a sum of independent Gaussian matrices.

    Args:
        steps: as in `half_times`.
        norms: Frobenius norms that the sum is to have; where they fall it stays as it is.
        shape: rows and columns of the matrix.
        seed: of the draws.
        draws: to average over.

    Returns:
        Their mean, near 0. Cost: a product with the transpose and its eigenvalues for each step and draw.
    """
    generator = np.random.default_rng(seed)
    squared = np.maximum.accumulate(np.concatenate([[0.0], np.asarray(norms, dtype=np.float64) ** 2]))
    growth = np.sqrt(np.diff(squared))
    short, long = min(shape), max(shape)
    found = []
    for _ in range(draws):
        total, spectra = np.zeros((short, long)), []
        for amount in growth:
            total += amount * generator.standard_normal((short, long)) / math.sqrt(short * long)
            spectra.append(np.sqrt(np.maximum(np.linalg.eigvalsh(total @ total.T)[::-1], 0.0)))
        found.append(greedy_order(steps, np.array(spectra)))
    return float(np.mean(found))


def order_of_run(run: Run, matrix: str, seed: int = 0) -> tuple[float, float]:
    """The greedy order of a matrix over a run, and that of noise which grows at the same pace.

    Raises:
        KeyError: no such matrix.
    """
    spectra = run.singular_values(matrix)
    spectra = spectra[spectra.index > 0]
    steps, values = spectra.index.to_numpy(), spectra.to_numpy(dtype=np.float64)
    rows, cols = (int(run.matrices[side].loc[matrix]) for side in ("rows", "cols"))
    norms = np.sqrt((values**2).sum(axis=1))
    return greedy_order(steps, values), null_order(steps, norms, (rows, cols), seed)
