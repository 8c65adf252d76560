"""What a search for ranks knows: sizes, spectra, and the rise of the loss at ranks that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Ranks = np.ndarray  # (matrices,), int64


class SpentError(Exception):
    """All evaluations are spent."""


class Problem:
    """Least parameters Σ r_i (rows_i + cols_i) at which the loss rises by at most the tolerance.

    Args:
        singular_values: of each matrix's update, descending.
        costs: rows + cols of each.
        rise: of the loss at these ranks, against full ranks.
        tolerance: that it may reach.
        limit: evaluations at most.

    Attributes:
        full: the highest rank of each matrix.
        tails: of each, Σ σ² of what rank r leaves out, at r = 0 .. full.
        best: the cheapest ranks so far that are within the tolerance.
        best_rise: there.
    """

    def __init__(
        self,
        singular_values: Sequence[np.ndarray],
        costs: Sequence[int],
        rise: Callable[[Ranks], float],
        tolerance: float,
        limit: int,
    ) -> None:
        self.full: Ranks = np.array([len(values) for values in singular_values], dtype=np.int64)
        self.costs = np.array(costs, dtype=np.int64)
        self.tails = [np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0) for values in singular_values]
        self.tolerance, self.left = tolerance, limit
        self._rise = rise
        self._known: dict[bytes, float] = {self.full.tobytes(): 0.0}
        self.best, self.best_rise = self.full.copy(), 0.0

    def rise(self, ranks: Ranks) -> float:
        """Of the loss, each point evaluated once.

        Raises:
            SpentError: nothing is left to evaluate it with.
        """
        key = ranks.astype(np.int64).tobytes()
        if key not in self._known:
            if self.left <= 0:
                raise SpentError
            self.left -= 1
            self._known[key] = self._rise(ranks)
        found = self._known[key]
        if found <= self.tolerance and self.cost(ranks) < self.cost(self.best):
            self.best, self.best_rise = ranks.copy(), found
        return found

    def is_within(self, ranks: Ranks) -> bool:
        """Whether the loss rises by at most the tolerance there."""
        return self.rise(ranks) <= self.tolerance

    def cost(self, ranks: Ranks) -> int:
        """Parameters of factors of these ranks."""
        return int(self.costs @ ranks)
