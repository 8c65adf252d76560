"""Ranks that one number says: one rank for all, one bound for all on what is left out. Bisected until they fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inrank_monitor.loss_ranks.problem import Problem, Ranks

_CLOSE = 1.04  # a ratio of two neighbours at which a bisection ends


def least_uniform(problem: Problem) -> int:
    """The least one rank for all matrices that keeps the loss within the tolerance, to 4 %."""

    def ranks(size: float) -> Ranks:
        return np.asarray(np.minimum(problem.full, round(size)))

    most = int(problem.full.max(initial=0))
    if most == 0 or problem.is_within(ranks(0)):
        return 0
    low, high = 0.5, float(most)
    while round(high) - round(low) > 1 and high > _CLOSE * low:
        middle = (low * high) ** 0.5
        if round(middle) in (round(low), round(high)):
            middle = (round(low) + round(high)) // 2
        low, high = (low, middle) if problem.is_within(ranks(middle)) else (middle, high)
    return round(high)


def by_energy(problem: Problem, power: float, evaluations: int) -> None:
    """Bisect a bound on σ² / (cost · ‖ΔW‖^(2·power)): what is above it is kept, in every matrix.

    It is what fewest parameters are where each matrix's rise is its left-out energy over ‖ΔW‖^(2·power), times a
    constant that all have in common.

    Args:
        problem: whose `best` it may improve.
        power: 0 takes energies as they are, 1 relative to the matrix's own.
        evaluations: at most.
    """
    gains = [_gains(problem, index, power) for index in range(len(problem.full))]
    every = np.sort(np.concatenate(gains))
    every = every[every > 0]
    if len(every):
        _bisect(problem, lambda bound: np.array([int((each > bound).sum()) for each in gains]), every, evaluations)


def _gains(problem: Problem, index: int, power: float) -> np.ndarray:
    tail = problem.tails[index]
    scale = problem.costs[index] * tail[0] ** power
    return -np.diff(tail) / scale if scale > 0 else np.zeros(len(tail) - 1)


def _bisect(problem: Problem, ranks: Callable[[float], Ranks], bounds: np.ndarray, evaluations: int) -> None:
    """Raise the bound as far as the tolerance allows; `bounds` ascend, by as many directions as they leave out."""
    low, high = 0, len(bounds)  # within the tolerance at `low` directions left out, beyond it at `high`
    for _ in range(evaluations):
        # in steps of what is kept, of which a ratio counts
        middle = len(bounds) - round(((len(bounds) - low) * max(1, len(bounds) - high)) ** 0.5)
        if middle in (low, high):
            return
        low, high = (middle, high) if problem.is_within(ranks(float(bounds[middle - 1]))) else (low, middle)
