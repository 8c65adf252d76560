"""The search for the fewest parameters at which the loss stays within the tolerance.

1. One rank for all, and one bound for all on what is left out, bisected: from whichever is cheaper it goes on.
2. Rounds of exchange between matrices (`exchange`), with ever smaller factors.
3. With what is left, one matrix after another is made smaller as far as the tolerance allows.
Every step is an evaluation of all matrices together, so that what is returned has been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from inrank_monitor.loss_ranks.exchange import exchange
from inrank_monitor.loss_ranks.families import by_energy, least_uniform
from inrank_monitor.loss_ranks.problem import Problem, Ranks, SpentError

_FACTORS = (2.0, 1.5, 1.3, 1.2, 1.1)
_SHARE_OF_A_ROUND = 0.4  # of the evaluations left


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        ranks: of each matrix.
        rise: of the loss there, as measured.
        uniform: the least one rank for all; None where the evaluations did not reach.
    """

    ranks: Ranks
    rise: float
    uniform: int | None


def search(problem: Problem, alike: Sequence[object]) -> Found:
    """Spend the problem's evaluations.

    Args:
        problem: the problem.
        alike: of each matrix what it has in common with those that it may be grouped with.
    """
    uniform: int | None = None
    with suppress(SpentError):
        if not problem.is_within(np.zeros_like(problem.full)):
            uniform = least_uniform(problem)
            for power in (0.0, 1.0):
                by_energy(problem, power, max(3, min(8, problem.left // 12)))
            _exchange_rounds(problem, alike)
            _shave(problem)
        else:
            uniform = 0
    return Found(problem.best, problem.best_rise, uniform)


def _exchange_rounds(problem: Problem, alike: Sequence[object]) -> None:
    for factor in _FACTORS:
        groups = groups_of(alike, int(problem.left * _SHARE_OF_A_ROUND / 2))
        if not groups:
            return
        exchange(problem, groups, factor)


def groups_of(alike: Sequence[object], most: int) -> list[list[int]]:
    """At most so many groups of places that are alike and follow one another; none if that is too few."""
    if most < 2:
        return []
    if len(alike) <= most:
        return [[place] for place in range(len(alike))]
    kinds: dict[object, list[int]] = {}
    for place, kind in enumerate(alike):
        kinds.setdefault(kind, []).append(place)
    if len(kinds) > most:  # nothing is alike enough: neighbours go together
        kinds = {0: list(range(len(alike)))}
    pieces = {kind: max(1, most * len(places) // len(alike)) for kind, places in kinds.items()}
    while sum(pieces.values()) > most:
        largest = max(pieces, key=lambda kind: pieces[kind])
        pieces[largest] -= 1
    return [list(map(int, part)) for kind, places in kinds.items() for part in np.array_split(places, pieces[kind])]


def _shave(problem: Problem) -> None:
    """Make one matrix after another smaller, in growing steps as long as it fits; those first that cost most."""
    order = np.argsort(-problem.costs * problem.best, kind="stable")
    for index in order:
        _shave_one(problem, int(index))


def _shave_one(problem: Problem, index: int) -> None:
    fits, step = int(problem.best[index]), 1
    misfits = -1  # the highest rank that is known not to fit
    while fits > misfits + 1:
        tried = problem.best.copy()
        middle = max(fits - step, misfits + 1) if misfits < 0 else (fits + misfits) // 2
        tried[index] = middle
        if problem.is_within(tried):
            fits, step = middle, 2 * step
        else:
            misfits = middle
