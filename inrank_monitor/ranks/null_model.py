"""The same numbers for structureless matrices of the same shape: what a rank would be if there were nothing to learn.

The rule of eq. 7 gives a rank even to noise, so every rank is shown beside its null rank. For a dense update the null
is a Gaussian matrix; its singular values are taken at the quantiles of the Marchenko–Pastur law, which meets the rank
of drawn matrices without the spread of a draw. For an update held in factors the null is the product of random
factors, grown by the same rule until it asks for no more.

References:
    Marchenko and Pastur 1967, Distribution of eigenvalues for some sets of random matrices.
    Zhao et al. 2023, arXiv:2306.11250, Algorithm 2 and Table 3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float

from inrank_monitor.ranks.buffer_rank import default_buffer_rank
from inrank_monitor.ranks.metrics import Definition, check_options, intrinsic_rank, next_rank
from inrank_monitor.ranks.rule import RankRule

Kind = Literal["gaussian", "factors"]
_GRID = 20_001
_DRAWS = 5


@lru_cache(maxsize=256)
def null_singular_values(rows: int, cols: int) -> Float[np.ndarray, " n"]:
    """Expected singular values, descending, of a rows × cols matrix of independent N(0, 1) entries.

    σ_i = √(m · x_i), x_i the (n − i + ½)/n quantile of the Marchenko–Pastur law of ratio n/m (n the short side, m the
    long one). The distribution function is summed on a grid in t, x = centre − half-width · cos t, which takes the
    square-root edges away. Cost: about a millisecond, cached; the array is read-only.

    Raises:
        ValueError: a side below 1.
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"rows and cols must be at least 1, got {rows}×{cols}")
    short, long = min(rows, cols), max(rows, cols)
    ratio = short / long
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    angle = (np.arange(_GRID - 1) + 0.5) * np.pi / (_GRID - 1)  # midpoints: the density's 1/x pole at x = 0 is not met
    position = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = np.sin(angle) ** 2 / position
    distribution = np.cumsum(density) / density.sum()
    quantiles = np.interp((np.arange(short) + 0.5) / short, distribution, position)
    values: np.ndarray = np.sqrt(long * quantiles)[::-1].copy()
    values.flags.writeable = False
    return values


@lru_cache(maxsize=1024)
def null_rank(
    rows: int,
    cols: int,
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    kind: Kind = "gaussian",
    leading: int | None = None,
    rank: int | None = None,
    initial_rank: int = 2,
) -> int:
    """The rank that the rule gives a structureless rows × cols matrix.

    Args:
        rows: rows of the matrix.
        cols: columns of the matrix.
        threshold: α.
        buffer_rank: b. Default: what fits the shape, see `default_buffer_rank`.
        definition: of the explained ratio.
        kind: `"gaussian"` for a dense update; `"factors"` for U V, where the rule is applied again and again to
            untrained random factors of rank + b columns, from `initial_rank` on, until the rank stays; the median of
            five draws (cost: a second for GPT-2's shapes; cached).
        leading: clip the spectrum to its leading values, as `attach(leading=...)` does.
        rank: of factors whose rank is fixed, as an adapter's is: random factors of that rank, looked at once.
        initial_rank: r₀ of factors that grow; the paper's is 2.

    Raises:
        ValueError: an option out of range.
    """
    check_options(threshold, buffer_rank, definition)
    if kind not in ("gaussian", "factors"):
        raise ValueError(f"kind must be 'gaussian' or 'factors', got {kind!r}")
    if rows < 1 or cols < 1:
        raise ValueError(f"rows and cols must be at least 1, got {rows}×{cols}")
    if initial_rank < 1:
        raise ValueError(f"initial_rank must be at least 1, got {initial_rank}")
    buffer_rank = default_buffer_rank(rows, cols) if buffer_rank is None else buffer_rank
    if kind == "factors" and rank is not None:
        rule = RankRule(threshold, buffer_rank, definition)
        draws = [_of_fixed_rank(rows, cols, rank, rule, seed) for seed in range(_DRAWS)]
        return int(np.median(draws))
    if kind == "factors":
        options = (threshold, buffer_rank, definition, initial_rank)
        draws = [untrained_growth(rows, cols, *options, seed)[-1][0] for seed in range(_DRAWS)]
        return int(np.median(draws))
    values = null_singular_values(rows, cols)[:leading]
    return int(intrinsic_rank(values, threshold, buffer_rank, definition))


def _of_fixed_rank(rows: int, cols: int, rank: int, rule: RankRule, seed: int) -> int:
    """The rule on one product of random factors of this rank; the values beyond it are zeros."""
    rank = min(rank, rows, cols)
    generator = np.random.default_rng(seed)
    left, right = generator.standard_normal((rows, rank)), generator.standard_normal((rank, cols))
    factor = np.linalg.cholesky(left.T @ left)
    eigenvalues = np.linalg.eigvalsh(factor.T @ (right @ right.T) @ factor)
    values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
    return int(intrinsic_rank(values, rule.threshold, rule.buffer_rank, rule.definition, min(rows, cols)))


def untrained_growth(
    rows: int, cols: int, threshold: float, buffer_rank: int, definition: Definition, initial_rank: int, seed: int
) -> list[tuple[int, np.ndarray]]:
    """Algorithm 2 run on factors that nobody trains: at each check the rank and the singular values seen there.

    The first entry is at the initial rank, the last where the rank stays. The cap of
    `"reference"` is the published code's, min(rows, cols)/2 − b.
    """
    short = min(rows, cols)
    most = max(short // 2 - buffer_rank, 1) if definition == "reference" else short
    columns = min(most + buffer_rank, short)
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((rows, columns))
    right = generator.standard_normal((columns, cols))
    left_gram, right_gram = left.T @ left, right @ right.T
    rank = min(initial_rank, most)
    checks = []
    while True:
        held = min(rank + buffer_rank, columns)
        factor = np.linalg.cholesky(left_gram[:held, :held])
        eigenvalues = np.linalg.eigvalsh(factor.T @ right_gram[:held, :held] @ factor)
        values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
        grown = next_rank(
            values,
            rank,
            threshold=threshold,
            buffer_rank=buffer_rank,
            max_rank=most,
            definition=definition,
            size=short,
        )
        checks.append((rank, values))
        if grown == rank:
            return checks
        rank = grown
