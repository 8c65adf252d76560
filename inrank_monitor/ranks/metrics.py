"""Numbers drawn from singular values: explained ratio, ranks, norms.

Pure functions of NumPy arrays. `singular_values` has shape (..., q): descending along the last axis, any leading
axes (steps, say), and every function works on all of them at once. A row that holds NaN gives NaN, or rank 0 with
no claim made: `is_finite` tells those rows apart. A zero update has explained ratio 1 and every rank 0.

References:
    Zhao et al. 2023, InRank: Incremental Low-Rank Learning, arXiv:2306.11250 (eq. 7, Algorithm 2).
    Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality.

The signal rank, which has more to explain, is in `inrank_monitor.ranks.signal` and can be had from here too.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from inrank_monitor.ranks.buffer_rank import default_buffer_rank
from inrank_monitor.ranks.signal import energy_share as energy_share
from inrank_monitor.ranks.signal import signal_rank as signal_rank
from inrank_monitor.ranks.signal import signal_share as signal_share

Definition = Literal["paper", "reference"]
DEFINITIONS = ("paper", "reference")
FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


def check_options(threshold: float, buffer_rank: int | None, definition: str) -> None:
    """Raise a ValueError that names the argument if one of the rank options is out of range."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    if buffer_rank is not None and not (isinstance(buffer_rank, int | np.integer) and buffer_rank >= 1):
        raise ValueError(f"buffer_rank must be an integer of at least 1, got {buffer_rank!r}")
    if definition not in DEFINITIONS:
        raise ValueError(f"definition must be one of {DEFINITIONS}, got {definition!r}")


def _as_rows(singular_values: np.ndarray) -> np.ndarray:
    """In float64; a row that is not finite becomes NaN throughout."""
    values = np.asarray(singular_values, dtype=np.float64)
    return np.where(is_finite(values)[..., None], values, np.nan)


def _relative(singular_values: np.ndarray) -> np.ndarray:
    """σ / σ₁; zero stays zero."""
    values = _as_rows(singular_values)
    largest = values[..., :1] if values.shape[-1] else np.ones((*values.shape[:-1], 1))
    return values / np.where(largest == 0, 1.0, largest)


def is_finite(singular_values: Float[np.ndarray, "*batch q"]) -> Bool[np.ndarray, "*batch"]:
    """Which rows hold no NaN or infinity."""
    return np.asarray(np.isfinite(singular_values).all(axis=-1))


def explained_ratio_curve(
    singular_values: Float[np.ndarray, "*batch q"],
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    size: int | None = None,
) -> Float[np.ndarray, "*batch n"]:
    """g(r) for r = 1..n, where entry r − 1 is g(r).

    `definition="paper"` (eq. 7): g(r) = 1 − var(s[r+1..r+b]) / var(s[1..r+b]), population variance, windows clipped at
    n. `"reference"` (the published code): 1 − var(s with the first r set to zero) / var(s), over all n values. Neither
    is monotone in r, and the first can be negative. A flat denominator (a zero update, equal values) gives g = 1.

    Args:
        singular_values: descending; (..., q).
        buffer_rank: b of eq. 7, at least 1. Default: `default_buffer_rank` of a matrix whose short side is n.
        definition: `"paper"` or `"reference"`.
        size: n = min(rows, cols), if zeros beyond q are part of the spectrum (a product of factors). Default: q.

    Returns:
        Array (..., n). O(n) a row, by running sums.
    """
    check_options(1.0, buffer_rank, definition)
    values = _relative(singular_values)
    if size is not None and size > values.shape[-1]:
        padding = [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])]
        values = np.pad(values, padding)
    count = values.shape[-1]
    buffer_rank = default_buffer_rank(count, count) if buffer_rank is None else buffer_rank
    # Sums of σ/σ₁ − 1 rather than of σ: exact for equal values, and the rounding of the running sums stays relative
    # to the variance that we divide by.
    centred = values - 1.0 * (values[..., :1] > 0)
    first = _prefix_sums(centred)
    second = _prefix_sums(centred**2)
    rank = np.arange(1, count + 1)
    if definition == "paper":
        end = np.minimum(rank + buffer_rank, count)
        return _one_minus_ratio(_variance(first, second, rank, end), _variance(first, second, 0 * rank, end))
    end = np.full_like(rank, count)
    # Variance with the first r values set to zero, in σ itself: zeros are far from the centre used above.
    tail_first = _prefix_sums(values)
    tail_second = _prefix_sums(values**2)
    mean = (tail_first[..., end] - tail_first[..., rank]) / max(count, 1)
    rest = np.maximum((tail_second[..., end] - tail_second[..., rank]) / max(count, 1) - mean**2, 0.0)
    return _one_minus_ratio(rest, _variance(first, second, 0 * rank, end))


def _prefix_sums(values: np.ndarray) -> np.ndarray:
    zero = np.zeros((*values.shape[:-1], 1))
    return np.concatenate([zero, np.cumsum(values, axis=-1)], axis=-1)


def _variance(first: np.ndarray, second: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Population variance of entries start..end−1 from running sums; 0 of an empty or flat window.

    A window is flat if its variance is below what the running sums may have lost to rounding.
    """
    length = np.maximum(end - start, 1)
    mean = (first[..., end] - first[..., start]) / length
    variance = (second[..., end] - second[..., start]) / length - mean**2
    rounding = np.finfo(np.float64).eps * second.shape[-1] * second[..., end] / length
    flat = (variance <= rounding) | (end - start <= 1)
    return np.where(flat & ~np.isnan(second[..., end]), 0.0, variance)


def _one_minus_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    flat = denominator <= (4 * FLOAT32_EPSILON) ** 2  # in units of σ₁²: a spread that float32 values have by rounding
    result: np.ndarray = 1.0 - np.where(flat, 0.0, numerator / np.where(flat, 1.0, denominator))
    return np.asarray(np.where(np.isnan(denominator) | np.isnan(numerator), np.nan, result))


def explained_ratio(
    singular_values: Float[np.ndarray, "*batch q"],
    rank: int | Int[np.ndarray, "*batch"],
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    size: int | None = None,
) -> Float[np.ndarray, "*batch"]:
    """g(ΔW, r, b) at one rank a row (eq. 7); g(0) = 0, since nothing is explained by no rank.

    Raises:
        ValueError: a rank is negative or above min(rows, cols).
    """
    curve = explained_ratio_curve(singular_values, buffer_rank, definition, size)
    ranks = np.broadcast_to(np.asarray(rank), curve.shape[:-1])
    if (ranks < 0).any() or (ranks > curve.shape[-1]).any():
        raise ValueError(f"rank must be in 0..{curve.shape[-1]}, got {rank}")
    at_zero = np.where(np.isnan(curve).any(axis=-1, keepdims=True), np.nan, 0.0)
    with_zero = np.concatenate([at_zero, curve], axis=-1)
    return np.asarray(np.take_along_axis(with_zero, ranks[..., None], axis=-1)[..., 0])


def intrinsic_rank(
    singular_values: Float[np.ndarray, "*batch q"],
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    size: int | None = None,
) -> Int[np.ndarray, "*batch"]:
    """Least r ≥ 1 with g(r) ≥ α (with > for `"reference"`, as the published code has it); 0 for a zero or NaN row.

    Raises:
        ValueError: an option out of range.
    """
    check_options(threshold, buffer_rank, definition)
    curve = explained_ratio_curve(singular_values, buffer_rank, definition, size)
    if curve.shape[-1] == 0:
        return np.zeros(curve.shape[:-1], dtype=np.int64)
    # The last r explains everything (g = 1), except for "reference" with α = 1, whose > is never met.
    reached = curve >= threshold if definition == "paper" else curve > threshold
    reached[..., -1] = True
    rank = reached.argmax(axis=-1) + 1
    return np.where(_is_nothing(singular_values), 0, rank).astype(np.int64)


def _is_nothing(singular_values: np.ndarray) -> np.ndarray:
    """Which rows are a zero update or not finite, so that no rank is claimed of them."""
    values = np.asarray(singular_values)
    return np.asarray(~((values > 0).any(axis=-1) & is_finite(values)))


def next_rank(
    singular_values: Float[np.ndarray, " q"],
    rank: int,
    *,
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    max_rank: int | None = None,
    definition: Definition = "paper",
    size: int | None = None,
) -> int:
    """Algorithm 2 line 7: the least r' ≥ r with g(r') ≥ α, at most r + b and `max_rank`; that limit if none reaches α.

    `"reference"` accepts with > and looks at r..r+b−1 below its cap only, as the published code does. A zero update
    asks for nothing and keeps r; so does one with NaN.

    Args:
        singular_values: of U V, descending; (q,).
        rank: r, the present rank, at least 1.
        threshold: α, in (0, 1].
        buffer_rank: b of eq. 7, at least 1. Default: `default_buffer_rank` of a matrix whose short side is n.
        max_rank: cap. Default: min(rows, cols).
        definition: of the explained ratio.
        size: min(rows, cols), if zeros beyond q are part of the spectrum. Default: q.

    Raises:
        ValueError: an option out of range.
    """
    check_options(threshold, buffer_rank, definition)
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if bool(_is_nothing(singular_values)):
        return rank
    curve = explained_ratio_curve(singular_values, buffer_rank, definition, size)
    buffer_rank = default_buffer_rank(len(curve), len(curve)) if buffer_rank is None else buffer_rank
    most = len(curve) if max_rank is None else min(max_rank, len(curve))
    last = min(rank + buffer_rank - 1, most - 1) if definition == "reference" else min(rank + buffer_rank, most)
    for candidate in range(rank, last + 1):
        value = curve[candidate - 1]
        if value > threshold or (definition == "paper" and value == threshold):
            return candidate
    return max(last, rank)


def running_rank(ranks: Int[np.ndarray, "*batch steps"]) -> Int[np.ndarray, "*batch steps"]:
    """Running maximum over steps: what Algorithm 2, which never shrinks, would have grown to."""
    return np.maximum.accumulate(np.asarray(ranks), axis=-1)


def frobenius_norm(singular_values: Float[np.ndarray, "*batch q"]) -> Float[np.ndarray, "*batch"]:
    """‖A‖_F = √Σσ²."""
    return np.asarray(np.linalg.norm(np.asarray(singular_values, dtype=np.float64), axis=-1))


def stable_rank(
    singular_values: Float[np.ndarray, "*batch q"], frobenius: Float[np.ndarray, "*batch"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """‖A‖_F² / σ₁², at least 1; 0 for a zero matrix.

    Args:
        singular_values: descending; (..., q).
        frobenius: ‖A‖_F where only the leading values are given. Default: from the values.
    """
    values = _as_rows(singular_values)
    total = frobenius_norm(values) if frobenius is None else np.asarray(frobenius)
    largest = values[..., 0] if values.shape[-1] else np.zeros(values.shape[:-1])
    ratio = (total / np.where(largest == 0, 1.0, largest)) ** 2
    return np.where(largest == 0, 0.0, np.maximum(ratio, 1.0))  # a norm measured apart may be σ₁ less a rounding


def effective_rank(singular_values: Float[np.ndarray, "*batch q"]) -> Float[np.ndarray, "*batch"]:
    """exp(−Σ p ln p) with p = σ / Σσ (Roy and Vetterli 2007), in 1..q; 0 for a zero matrix."""
    values = _relative(singular_values)
    total = values.sum(axis=-1, keepdims=True)
    share = values / np.where(total == 0, 1.0, total)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)
    return np.where(total[..., 0] == 0, 0.0, np.exp(entropy))


def energy_rank(
    singular_values: Float[np.ndarray, "*batch q"],
    share: float = 0.9,
    frobenius: Float[np.ndarray, "*batch"] | None = None,
) -> Int[np.ndarray, "*batch"]:
    """Least r with Σ_{i≤r} σ_i² ≥ share · ‖A‖_F²; 0 for a zero or NaN row.

    Where only the leading k values are given (`frobenius` the norm of the whole) and they do not hold that share,
    the answer is k + 1: more than what is known.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    energy = np.cumsum(_relative(singular_values) ** 2, axis=-1)
    if energy.shape[-1] == 0:
        return np.zeros(energy.shape[:-1], dtype=np.int64)
    total = energy[..., -1:]
    if frobenius is not None:
        total = np.maximum(stable_rank(singular_values, frobenius)[..., None], total)
    # A sum taken twice may differ in its last bits: without the margin share=1 could ask for one value too many.
    missing = (energy < share * total * (1 - 1e-12)).sum(axis=-1)
    return np.where(_is_nothing(singular_values), 0, missing + 1).astype(np.int64)


def numerical_rank(
    singular_values: Float[np.ndarray, "*batch q"], rows: int, cols: int, epsilon: float = FLOAT32_EPSILON
) -> Int[np.ndarray, "*batch"]:
    """#{σ > max(rows, cols) · ε · σ₁}, the convention of LAPACK-based `matrix_rank`; ε that of the weights' dtype."""
    values = _as_rows(singular_values)
    tolerance = max(rows, cols) * epsilon * (values[..., :1] if values.shape[-1] else 0.0)
    return np.asarray((values > tolerance).sum(axis=-1), dtype=np.int64)
