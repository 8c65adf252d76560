"""Alarms: what the metrics of the last snapshots say of a matrix that stops, collapses, explodes, or is taken over.

Pure functions of a `History`; each answers for its last snapshot, one boolean a matrix, and false where it cannot tell.
They ask what changed within a doubling of the steps, and leave the first ten steps out, whose updates say little. Their
limits are fixed; `benchmarks/bench_watches.py` measures how often they err.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FIRST_STEPS = 10
SHORT_SIDE = 8  # a thinner matrix has too few directions for one of them to take over
STILL, MOVING = 1e-6, 1e-4  # relative changes of a norm
STILL_STEPS, STILL_SHARE, STILL_SNAPSHOTS = 50, 0.05, 3
SPIKE_STABLE_RANK, SPIKE_FALL, SPIKE_GROWTH, SPIKE_SIZE = 1.5, 2.0, 1.5, 0.25
COLLAPSE_FALL, COLLAPSE_LOSS = 2.0, 1.25
EXPLOSION_GROWTH, EXPLOSION_SIZE = 10.0, 3.0


@dataclass(frozen=True)
class History:
    """What is known of all matrices at some snapshots, the last of which is asked about; NaN where nothing is.

    Attributes:
        steps: (snapshots,), ascending.
        frobenius_norm: ‖ΔW‖_F, (snapshots, matrices), as the next ones.
        spectral_norm: σ₁.
        nuclear_norm: Σσ.
        effective_rank: of ΔW.
        size: (matrices,) the norm of a matrix that has its usual size: ‖W0‖_F, at least √min(rows, cols).
        short_side: (matrices,) min(rows, cols).
    """

    steps: np.ndarray
    frobenius_norm: np.ndarray
    spectral_norm: np.ndarray
    nuclear_norm: np.ndarray
    effective_rank: np.ndarray
    size: np.ndarray
    short_side: np.ndarray

    @property
    def before(self) -> np.ndarray:
        """Places of the snapshots that the last is held against: of its last doubling of steps, or the one before."""
        last = self.steps[-1]
        places = np.flatnonzero((self.steps[:-1] >= FIRST_STEPS) & (2 * self.steps[:-1] >= last))
        if len(places) == 0 and len(self.steps) > 1 and self.steps[-2] >= FIRST_STEPS:
            places = np.array([len(self.steps) - 2])
        return places


def stopped_moving(history: History) -> np.ndarray:
    """Neither ‖ΔW‖_F nor σ₁ nor Σσ changed by a millionth in 3 snapshots and 50 steps (or 5 % of them); others did.

    Others: the fastest one changed by 1e-4 over all and by 1e-5 since the last snapshot. So a learning rate that decays
    to zero, which stops all of them, is no alarm, and neither is a matrix that has not moved yet.
    """
    nobody = np.zeros(len(history.size), dtype=bool)
    steps = history.steps
    long_ago = np.flatnonzero(steps <= steps[-1] - max(STILL_STEPS, STILL_SHARE * steps[-1]))
    if len(long_ago) == 0 or len(steps) < STILL_SNAPSHOTS:
        return nobody
    since = min(int(long_ago[-1]), len(steps) - STILL_SNAPSHOTS)
    kept = slice(since, None)
    change = np.zeros((len(steps) - since - 1, len(nobody)))
    for norm in (history.frobenius_norm, history.spectral_norm, history.nuclear_norm):
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.maximum(change, np.abs(norm[kept][:-1] - norm[-1]) / norm[-1])
    still = (change <= STILL).all(axis=0) & (history.frobenius_norm[-1] > 0)
    fastest = np.where(np.isfinite(change), change, 0.0).max(axis=1)
    return still if fastest.max() >= MOVING and fastest[-1] >= MOVING / 10 else nobody


def norm_exploded(history: History) -> np.ndarray:
    """‖ΔW‖_F is three times the usual norm of such a matrix, and grew ten times more than the square of the steps.

    The square: a learning rate that warms up linearly.
    """
    places = history.before
    norm = history.frobenius_norm
    allowed = EXPLOSION_GROWTH * (history.steps[-1] / history.steps[places]) ** 2
    with np.errstate(invalid="ignore"):
        grew = (norm[-1] >= allowed[:, None] * norm[places]).any(axis=0)
    return np.asarray(grew & (norm[-1] >= EXPLOSION_SIZE * history.size))


def spike(history: History) -> np.ndarray:
    """One direction takes over: the stable rank halved to 1.5 or less, while σ₁ grew by half, to a quarter of the norm
    that such a matrix usually has. Weaker ones come up in every Transformer's queries and keys.
    """
    places = history.before
    with np.errstate(divide="ignore", invalid="ignore"):
        stable = (history.frobenius_norm / history.spectral_norm) ** 2
        fell = stable[places] >= SPIKE_FALL * stable[-1]
        grew = history.spectral_norm[-1] >= SPIKE_GROWTH * history.spectral_norm[places]
    large = history.spectral_norm[-1] >= SPIKE_SIZE * history.size
    taken_over = (fell & grew).any(axis=0) & (stable[-1] <= SPIKE_STABLE_RANK) & large
    return np.asarray(taken_over & (history.short_side >= SHORT_SIDE))


def rank_collapsed(history: History) -> np.ndarray:
    """Directions are lost: the effective rank halved, and what there is beside the strongest one shrank by a fifth.

    A rank that falls because others grow, as in a spike, is no collapse.
    """
    places = history.before
    rank = history.effective_rank
    rest = np.sqrt(np.maximum(history.frobenius_norm**2 - history.spectral_norm**2, 0.0))
    with np.errstate(invalid="ignore"):
        fell = (rank[places] >= COLLAPSE_FALL * rank[-1]) & (rest[places] >= COLLAPSE_LOSS * rest[-1])
    return np.asarray(fell.any(axis=0) & (rank[-1] > 0) & (history.short_side >= SHORT_SIDE))


WATCHES: dict[str, Callable[[History], np.ndarray]] = {
    "stopped_moving": stopped_moving,
    "norm_exploded": norm_exploded,
    "spike": spike,
    "rank_collapsed": rank_collapsed,
}
