"""The exponent of a spectrum's tail: how heavy the tail of the eigenvalues λ = σ² is, as a power law λ^−α.

The least eigenvalue of the tail is chosen by the Kolmogorov–Smirnov distance, α by maximum likelihood.

References:
    Clauset, Shalizi and Newman 2009, Power-law distributions in empirical data, SIAM Review 51.
    Martin, Peng and Mahoney 2021, Predicting trends in the quality of state-of-the-art neural networks without access
    to training or testing data, Nature Communications 12 (WeightWatcher's α).
"""

from __future__ import annotations

import numpy as np

LEAST_TAIL = 10  # eigenvalues; fewer say nothing of an exponent
LEAST_VALUES = 20
_MOST_STARTS = 256


def tail_exponent(singular_values: np.ndarray) -> float:
    """α of the density λ^−α for the largest eigenvalues λ = σ², of at least 10; NaN if there are not 20 positive ones.

    α = 1 + n / Σ ln(λ_i / λ_min) over the n eigenvalues from λ_min on, for that λ_min which brings the tail nearest to
    a power law. Of more than 256 possible λ_min an even choice is tried.

    Args:
        singular_values: all of one matrix, in any order; NaN throughout where it is not finite.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    if not np.isfinite(values).all():
        return float("nan")
    logs = 2 * np.log(np.sort(values[values > 0])[::-1])  # of the eigenvalues, descending
    if len(logs) < LEAST_VALUES:
        return float("nan")
    sizes = np.unique(np.linspace(LEAST_TAIL, len(logs), _MOST_STARTS).round().astype(int))
    best, exponent = np.inf, float("nan")
    for size in sizes:
        above = logs[:size] - logs[size - 1]
        total = above.sum()
        if total <= 0:  # all of them equal
            continue
        rate = size / total  # α − 1
        expected = np.exp(-rate * above)  # share that is larger, by the power law
        place = np.arange(size) / size
        distance = max(np.abs(expected - place).max(), np.abs(expected - place - 1 / size).max())
        if distance < best:
            best, exponent = distance, 1 + rate
    return float(exponent)
