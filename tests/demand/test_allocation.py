"""Ranks under a budget, against an order by brute force and the laws that every rule obeys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inrank.demand.allocation import Room, by_demand, by_energy, in_proportion, largest_rank

SHAPES = {"a": (16, 64), "b": (64, 16), "c": (48, 48), "d": (5, 90)}
BUDGETS = [0.08, 0.1, 0.15, 0.33, 0.45, 0.8, 1.0]


def spectra(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: np.sort(generator.exponential(size=min(shape)))[::-1] * generator.uniform(0.1, 3)
        for name, shape in SHAPES.items()
    }


RULES: dict[str, Callable[[Room], dict[str, int]]] = {
    "demand": lambda room: by_demand(room, spectra()),
    "energy": lambda room: by_energy(room, spectra()),
    "uniform": lambda room: in_proportion(room, dict.fromkeys(SHAPES, 1.0)),
    "sizes": lambda room: in_proportion(room, {"a": 3.0, "b": 0.0, "c": 0.7, "d": 1e-3}),
}


def parameters(ranks: dict[str, int]) -> int:
    return sum(rank * sum(SHAPES[name]) for name, rank in ranks.items())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_the_budget_and_gives_no_matrix_less_for_more(rule: str) -> None:
    dense = sum(rows * cols for rows, cols in SHAPES.values())
    before = dict.fromkeys(SHAPES, 1)
    for budget in BUDGETS:
        ranks = RULES[rule](Room(SHAPES, budget))
        assert list(ranks) == list(SHAPES)
        assert parameters(ranks) <= budget * dense
        for name, (rows, cols) in SHAPES.items():
            assert before[name] <= ranks[name]
            assert ranks[name] * (rows + cols) < rows * cols
        before = ranks
    assert before != dict.fromkeys(SHAPES, 1)


@pytest.mark.parametrize("seed", range(5))
def test_demand_is_the_brute_force_order(seed: int) -> None:
    """Again and again the direction of the largest σ² / (p + q) that is still to be had, until one does not fit."""
    values, budget = spectra(seed), 0.3
    ranks = dict.fromkeys(SHAPES, 2)
    most = budget * sum(rows * cols for rows, cols in SHAPES.values())
    while True:
        open_ones = [n for n, (p, q) in SHAPES.items() if (ranks[n] + 1) * (p + q) < p * q]
        best = max(open_ones, key=lambda n: values[n][ranks[n]] ** 2 / sum(SHAPES[n]))
        if parameters(ranks | {best: ranks[best] + 1}) > most:
            break
        ranks[best] += 1
    assert by_demand(Room(SHAPES, budget, least_rank=2), values) == ranks


def test_energy_keeps_the_same_share_everywhere() -> None:
    values = spectra()
    ranks = by_energy(Room(SHAPES, 0.4), values)
    kept, one_less = [], []
    for name, each in values.items():
        energies = np.cumsum(each**2) / np.sum(each**2)
        if 1 < ranks[name] < largest_rank(*SHAPES[name]):
            kept.append(energies[ranks[name] - 1])
            one_less.append(energies[ranks[name] - 2])
    assert len(kept) >= 2
    assert max(one_less) < min(kept)


def test_uniform_is_one_rank_except_where_break_even_is_lower() -> None:
    assert in_proportion(Room(SHAPES, 0.5), dict.fromkeys(SHAPES, 1.0)) == {"a": 7, "b": 7, "c": 7, "d": 4}
    assert in_proportion(Room(SHAPES, 0.5), dict.fromkeys(SHAPES, 0.0)) == {"a": 7, "b": 7, "c": 7, "d": 4}
    proportional = in_proportion(Room({"a": (50, 50), "b": (50, 50)}, 0.4), {"a": 3, "b": 1})
    assert proportional == {"a": 15, "b": 5}


def test_matrices_of_zeros_and_of_one_direction_are_shared_out_too() -> None:
    values = {name: np.zeros(min(shape)) for name, shape in SHAPES.items()}
    values["c"][0] = 1.0
    for rule in (by_demand, by_energy):
        ranks = rule(Room(SHAPES, 0.2), values)
        assert parameters(ranks) <= 0.2 * sum(rows * cols for rows, cols in SHAPES.values())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"budget": 0}, r"budget must be a share in \(0, 1\] .*, got 0"),
    ({"budget": 1.2}, r"budget must be .*, got 1\.2"),
    ({"budget": True}, "budget must be .*, got True"),
    ({"budget": float("nan")}, "budget must be .*, got nan"),
    ({"budget": 0.03}, r"budget 0\.03 is too small: it holds 144 .*, and rank 1 everywhere takes 351 \(0\.0731\)"),
    ({"budget": 0.5, "least_rank": 0}, "least_rank must be an integer of at least 1, got 0"),
    ({"budget": 0.5, "shapes": {"head": (1, 40)}}, r"'head' \(1×40\) gets no smaller in factors"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_cannot_be_shared_out_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Room(**{"shapes": SHAPES} | options)
