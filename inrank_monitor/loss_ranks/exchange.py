"""Exchange of ranks between matrices: more where the loss feels it, less where it does not.

Around ranks that fit, each matrix (or group of matrices, where there are many) is made smaller and larger by a factor,
alone, and the rise of the loss measured. Between these points the rise is taken for linear in the energy that is left
out. The cheapest ranks by these curves are then evaluated all together, with a goal that is corrected by what came out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inrank_monitor.loss_ranks.problem import Problem, Ranks

_TRIES = 5  # joint evaluations a round
_CLOSE = 0.03  # of the tolerance: a rise that is so near to it is near enough


class Curve:
    """What one group's ranks cost and, by estimate, make the loss rise, against the ranks where it was measured.

    Args:
        problem: the problem.
        group: the places of its matrices.
        ranks: where it was measured.
        lower: of the group, all smaller.
        higher: all larger.
        rises: of the loss at `lower` and `higher`, against that at `ranks`.
    """

    def __init__(
        self,
        problem: Problem,
        group: Sequence[int],
        ranks: Ranks,
        lower: Ranks,
        higher: Ranks,
        rises: tuple[float, float],
    ) -> None:
        self._group = list(group)
        self._points = np.stack([lower[self._group], ranks[self._group], higher[self._group]])
        self._rises = (rises[0], 0.0, rises[1])
        self.choices = self._between()
        self._left = [sum(problem.tails[i][r] for i, r in zip(self._group, each, strict=True)) for each in self._points]
        self.costs = self.choices @ problem.costs[self._group]
        self.rises = self._estimated(problem)

    def _between(self) -> np.ndarray:
        """Ranks of the group from the lower to the higher ones, without repetition: (choices, members)."""
        low, middle, high = self._points
        steps = max(int((high - low).max()), 1)
        shares = np.linspace(0, 1, steps + 1)[:, None]
        below = np.round(low + shares * (middle - low)).astype(np.int64)
        above = np.round(middle + shares * (high - middle)).astype(np.int64)
        return np.unique(np.concatenate([below, above]), axis=0)

    def _estimated(self, problem: Problem) -> np.ndarray:
        left = np.zeros(len(self.choices))
        for column, index in enumerate(self._group):
            left += problem.tails[index][self.choices[:, column]]
        order = np.argsort(self._left)
        known = np.array(self._left)[order], np.array(self._rises)[order]
        return np.asarray(np.interp(left, *known))

    def cheapest(self, price: float) -> int:
        """The choice of least cost + price · rise."""
        return int(np.argmin(self.costs + price * self.rises))

    def put(self, ranks: Ranks, choice: int) -> None:
        """Set the group's ranks."""
        ranks[self._group] = self.choices[choice]


def exchange(problem: Problem, groups: Sequence[Sequence[int]], factor: float) -> bool:
    """One round around the best ranks so far; whether it has found cheaper ones.

    Args:
        problem: whose `best` it improves.
        groups: places of matrices that change together.
        factor: by which they are made smaller and larger, above 1.

    Raises:
        SpentError: all evaluations are spent.
    """
    ranks, here = problem.best.copy(), problem.best_rise
    before = problem.cost(ranks)
    curves = [_measured(problem, group, ranks, here, factor) for group in groups]
    room = goal = problem.tolerance - here
    for _ in range(_TRIES):
        chosen = _cheapest(curves, ranks, goal)
        found = problem.rise(chosen) - here
        if not np.isfinite(found):
            goal = goal / 2 if goal > 0 else goal - problem.tolerance / 2
            continue
        if 0 <= room - found < _CLOSE * problem.tolerance:
            break
        goal += room - found
    return problem.cost(problem.best) < before


def _measured(problem: Problem, group: Sequence[int], ranks: Ranks, here: float, factor: float) -> Curve:
    members = list(group)
    lower, higher = ranks.copy(), ranks.copy()
    lower[members] = np.minimum(np.floor(ranks[members] / factor), np.maximum(ranks[members] - 1, 0))
    higher[members] = np.minimum(
        np.maximum(np.ceil(ranks[members] * factor), ranks[members] + 1), problem.full[members]
    )
    rises = problem.rise(lower) - here, problem.rise(higher) - here
    worst = 1e3 * problem.tolerance  # so that infinity can be reckoned with
    return Curve(problem, group, ranks, lower, higher, (min(rises[0], worst), min(rises[1], worst)))


def _cheapest(curves: Sequence[Curve], ranks: Ranks, goal: float) -> Ranks:
    """By the curves: the cheapest ranks whose rises add up to at most the goal; by bisection of the price of a rise."""
    low, high = 0.0, 1.0

    def rises(price: float) -> float:
        return float(sum(curve.rises[curve.cheapest(price)] for curve in curves))

    while rises(high) > goal and high < 1e30:
        low, high = high, 4 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) <= goal else (middle, high)
    chosen = ranks.copy()
    for curve in curves:
        curve.put(chosen, curve.cheapest(high))
    return chosen
