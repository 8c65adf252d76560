"""Ranks of several matrices under one budget of parameters: by demand, energy, or in given proportions.

A rank costs p + q parameters in a p × q matrix. Every rule here gives ranks that never fall as the budget rises, that
together stay within it, and that stay below break-even, where r (p + q) reaches p q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Shapes = Mapping[str, tuple[int, int]]
Spectra = Mapping[str, np.ndarray]
Ranks = dict[str, int]


@dataclass(frozen=True)
class Room:
    """What there is to share out.

    Attributes:
        shapes: (rows, cols) of each matrix, by name.
        budget: of parameters that all factors together may have, as a share of the matrices' own, in (0, 1].
        least_rank: that each matrix gets, as far as break-even allows.

    Raises:
        ValueError: an argument out of range, a matrix that no factors make smaller, a budget that does not hold even
            the least ranks.
    """

    shapes: Shapes
    budget: float
    least_rank: int = 1

    def __post_init__(self) -> None:
        check_budget(self.budget)
        if isinstance(self.least_rank, bool) or not isinstance(self.least_rank, int) or self.least_rank < 1:
            raise ValueError(f"least_rank must be an integer of at least 1, got {self.least_rank!r}")
        for name, (rows, cols) in self.shapes.items():
            if largest_rank(rows, cols) < 1:
                raise ValueError(f"{name!r} ({rows}×{cols}) gets no smaller in factors: leave it out of targets")
        if (needed := self.cost(self.least)) > self.parameters:
            dense = sum(rows * cols for rows, cols in self.shapes.values())
            raise ValueError(
                f"budget {self.budget:g} is too small: it holds {self.parameters:,} parameters, and rank "
                f"{self.least_rank} everywhere takes {needed:,} ({needed / dense:.3g})"
            )

    @property
    def parameters(self) -> int:
        """The budget as a number."""
        return int(self.budget * sum(rows * cols for rows, cols in self.shapes.values()))

    @property
    def most(self) -> Ranks:
        """Break-even of each."""
        return {name: largest_rank(*shape) for name, shape in self.shapes.items()}

    @property
    def least(self) -> Ranks:
        """What each gets in any case."""
        return {name: min(self.least_rank, most) for name, most in self.most.items()}

    def cost(self, ranks: Mapping[str, int]) -> int:
        """Parameters of factors of these ranks."""
        return sum(rank * sum(self.shapes[name]) for name, rank in ranks.items())

    def clipped(self, name: str, rank: float) -> int:
        """A rank between the least and break-even."""
        return max(self.least[name], min(int(rank), self.most[name]))


def check_budget(budget: object) -> None:
    """Raise a ValueError unless it is a share in (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise ValueError(f"budget must be a share in (0, 1] of the chosen weights' parameters, got {budget!r}")


def largest_rank(rows: int, cols: int) -> int:
    """The largest rank whose factors are smaller than the matrix, r (p + q) < p q; 0 where there is none."""
    return (rows * cols - 1) // (rows + cols)


def by_demand(room: Room, singular_values: Spectra) -> Ranks:
    """Directions of all matrices in one order, by σ² / (p + q), as far as the budget goes.

    Args:
        room: the budget.
        singular_values: of each G^½ W C^½, descending: σ² is what leaving a direction out costs in loss, to second
            order.
    """
    ranks = room.least
    left = room.parameters - room.cost(ranks)
    gains = [
        (float(values[place]) ** 2 / sum(room.shapes[name]), name)
        for name, values in singular_values.items()
        for place in range(ranks[name], min(room.most[name], len(values)))
    ]
    for _, name in sorted(gains, key=lambda gain: -gain[0]):  # a stable order: of equals the model's first
        left -= sum(room.shapes[name])
        if left < 0:
            break  # and no smaller one in its place: ranks would fall as the budget rises
        ranks[name] += 1
    return ranks


def by_energy(room: Room, singular_values: Spectra) -> Ranks:
    """The same share of ‖W‖² in every matrix, the largest under the budget.

    Args:
        room: the budget.
        singular_values: of each W, descending.
    """
    kept = {}
    for name, values in singular_values.items():
        energies = np.cumsum(np.square(values, dtype=np.float64))
        kept[name] = energies / energies[-1] if energies[-1] > 0 else np.ones(len(values))
    shares = np.unique(np.concatenate([np.array([0.0]), *kept.values()]))
    return _largest(
        room,
        len(shares),
        lambda place: {
            name: room.clipped(name, np.searchsorted(each, shares[place]) + 1) for name, each in kept.items()
        },
    )


def in_proportion(room: Room, sizes: Mapping[str, float]) -> Ranks:
    """Ranks in these proportions, as large as the budget allows; all alike where the proportions are.

    Args:
        room: the budget.
        sizes: of each matrix, at least 0; where all are, they tell nothing apart, and all ranks are alike.
    """
    if not any(sizes.values()):
        sizes = dict.fromkeys(sizes, 1.0)
    factors = {0.0}
    for name, size in sizes.items():
        if size > 0:
            factors |= {rank / size for rank in range(1, room.most[name] + 1)}
    ascending = sorted(factors)
    return _largest(
        room,
        len(ascending),
        lambda place: {name: room.clipped(name, ascending[place] * size + 1e-9) for name, size in sizes.items()},
    )


def _largest(room: Room, count: int, ranks: Callable[[int], Ranks]) -> Ranks:
    """The last of a rising family of ranks that fits the budget; the first one does where the least ranks do."""
    low, high = 0, count
    best = room.least
    while low < high:
        middle = (low + high) // 2
        if room.cost(found := ranks(middle)) <= room.parameters:
            best, low = found, middle + 1
        else:
            high = middle
    return best
