"""A step's singular values as a curve: how its strength is spread, and which part the rank holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inrank_monitor.figures.kernel import bandwidth, density
from inrank_monitor.figures.tables import geometric

GRID_POINTS = 240
# Weights are float32: a smaller share of σ₁ is rounding, and would stretch a logarithmic axis.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Strength:
    """One step: its values' shares of the total strength, descending, and the rank that is filled.

    Attributes:
        whole: whether these are all values; else the shares are of the sum of the leading ones.
    """

    step: int
    shares: np.ndarray
    rank: int
    whole: bool = True

    @property
    def text(self) -> str:
        """The rank, and what it holds where that is known."""
        if self.whole:
            return f"rank {self.rank} holds {self.held:.0%}"
        return f"rank {self.rank}" if self.rank else "rank not known"

    @property
    def held(self) -> float:
        """Share of the total strength that the first `rank` values carry."""
        return float(self.shares[: self.rank].sum())


@dataclass(frozen=True)
class Curve:
    """Heights over x, and which points belong to the part that the rank holds."""

    x: np.ndarray
    height: np.ndarray
    held: np.ndarray


def kernel_curve(row: Strength, by_strength: bool, log: bool) -> Curve:
    """Kernel density of σ/Σσ (of its logarithm with `log`); values weigh their strength, or the same."""
    points = np.log10(row.shares[row.shares > NEGLIGIBLE * row.shares[0]]) if log else row.shares
    weights = row.shares[: len(points)] if by_strength else np.ones(len(points))
    weights = weights / weights.sum()
    width = bandwidth(points, weights)
    edge = _edge(points, row.rank)
    grid = _grid(points, width, log)
    if np.isfinite(edge):
        grid = np.sort(np.append(grid, edge))
    height = density(grid, points, weights, width, None if log else 0.0)
    return Curve(10**grid if log else grid, height, grid >= edge)


def _grid(points: np.ndarray, width: float, log: bool) -> np.ndarray:
    high = float(points.max()) + 4 * width
    if log:
        return np.linspace(float(points.min()) - 4 * width, high, GRID_POINTS)
    # Weak values crowd at zero: there the grid is denser.
    return np.asarray(high * np.linspace(0.0, 1.0, GRID_POINTS) ** 2)


def _edge(points: np.ndarray, rank: int) -> float:
    """Where the values that the rank holds begin: halfway between the r-th and the next."""
    if rank <= 0:
        return np.inf
    return float(points[rank - 1] + points[rank]) / 2 if rank < len(points) else -np.inf


def profile(row: Strength, last: int) -> Curve:
    """σ_i / Σσ over i = 1..last: a staircase, so that its area is the share of the strength."""
    kept = geometric(min(len(row.shares), max(last, 1)), 400)
    x = np.column_stack([kept + 0.5, np.append(kept[1:], kept[-1] + 1) + 0.5]).ravel()
    return Curve(x, np.repeat(row.shares[kept], 2), np.repeat(kept < row.rank, 2))
