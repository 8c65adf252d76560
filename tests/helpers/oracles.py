"""Slow NumPy float64 twins of the public numeric functions, written from their definitions and from nothing else."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np


def singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)


def null_rank_of_draws(rows: int, cols: int, threshold: float, buffer_rank: int, definition: str, draws: int) -> float:
    """Mean rank that the rule gives to Gaussian matrices which are really drawn."""
    generator = np.random.default_rng(rows + cols)
    return float(
        np.mean(
            [
                intrinsic_rank(
                    singular_values(generator.standard_normal((rows, cols))), threshold, buffer_rank, definition
                )
                for _ in range(draws)
            ]
        )
    )


def _variance(window: np.ndarray) -> float:
    """Population variance; of equal values exactly 0, which np.var misses by rounding."""
    return float(np.var(window)) if len(window) and np.ptp(window) > 0 else 0.0


def explained_ratio(values: np.ndarray, rank: int, buffer_rank: int, definition: str, size: int | None = None) -> float:
    """Eq. 7, or its counterpart in the published code, straight from the formula."""
    values = np.asarray(values, dtype=np.float64)
    values = np.concatenate([values, np.zeros((size or len(values)) - len(values))])
    if definition == "paper":
        rest, whole = values[rank : rank + buffer_rank], values[: rank + buffer_rank]
    else:
        rest, whole = np.where(np.arange(len(values)) < rank, 0.0, values), values
    return 1.0 if _variance(whole) == 0 else 1 - _variance(rest) / _variance(whole)


def intrinsic_rank(
    values: np.ndarray, threshold: float, buffer_rank: int, definition: str, size: int | None = None
) -> int:
    """First r that the ratio accepts, by trying one after the other."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all() or values.sum() == 0:
        return 0
    last = max(size or 0, len(values))
    for rank in range(1, last):
        ratio = explained_ratio(values, rank, buffer_rank, definition, size)
        if ratio > threshold or (definition == "paper" and ratio == threshold):
            return rank
    return last


def stable_rank(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=np.float64)
    return float(sum(value**2 for value in values) / values[0] ** 2) if values.sum() else 0.0


def effective_rank(values: np.ndarray) -> float:
    positive = [value for value in np.asarray(values, dtype=np.float64) if value > 0]
    shares = [value / sum(positive) for value in positive]
    return float(np.exp(-sum(share * np.log(share) for share in shares))) if shares else 0.0


def energy_rank(values: np.ndarray, share: float) -> int:
    """In exact arithmetic, with the share as it is written: 0.9 of ten equal values is nine."""
    energy = [Fraction(float(value)) ** 2 for value in values]
    wanted = Fraction(str(share)) * sum(energy)
    return next(rank for rank in range(len(energy) + 1) if sum(energy[:rank]) >= wanted)


def numerical_rank(values: np.ndarray, rows: int, cols: int, epsilon: float) -> int:
    values = np.asarray(values, dtype=np.float64)
    return int(sum(value > max(rows, cols) * epsilon * values[0] for value in values))


def rank_grown_on_noise(rows: int, cols: int, threshold: float, buffer_rank: int, definition: str, seed: int) -> int:
    """Where Algorithm 2 ends on random factors that nobody trains.

    From rank 2 with rank + b columns: the SVD of the dense product, the least rank from the present one on that the
    ratio accepts, random columns for what it grew by, and again. `"paper"` grows by b at most. `"reference"` is the
    published code: it looks at r .. r+b−1 with >, and never passes min(rows, cols)/2 − b.
    """
    generator = np.random.default_rng(seed)
    short = min(rows, cols)
    cap = short if definition == "paper" else short // 2 - buffer_rank
    left = generator.standard_normal((rows, cap + buffer_rank))
    right = generator.standard_normal((cap + buffer_rank, cols))
    rank = 2
    while True:
        held = min(rank + buffer_rank, short)
        values = singular_values(left[:, :held] @ right[:held])
        furthest = min(rank + buffer_rank - (definition == "reference"), cap)
        grown = rank
        while grown < furthest:
            ratio = explained_ratio(values, grown, buffer_rank, definition)
            if ratio > threshold or (definition == "paper" and ratio == threshold):
                break
            grown += 1
        if grown == rank:
            return rank
        rank = grown


def matrix_with(values: np.ndarray, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """A rows × cols matrix with these singular values and random singular vectors."""
    left, right = _bases(rows, cols, len(values), seed)
    return (left * values) @ right.T


@cache
def _bases(rows: int, cols: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random orthonormal columns; kept, since they cost more than most of what is tested with them."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((rows, count)))[0]
    return left, np.linalg.qr(generator.standard_normal((cols, count)))[0]
