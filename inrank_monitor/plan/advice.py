"""What a budget allows, and how to watch within it: in full, by leading values, or only some of the matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from inrank_monitor.matrices.roles import NO_BLOCK, block_of
from inrank_monitor.plan.costs import cost
from inrank_monitor.plan.quantities import Cost, Rates, Recorded
from inrank_monitor.plan.scenario import Scenario
from inrank_monitor.tracking import SPENDABLE, TEN_MINUTES, Automatic, simulate

ENOUGH_AN_HOUR = 6  # one in ten minutes; our choice
_SHORTEST = 1e-3  # seconds of a step; shorter ones hold no more snapshots, and would take long to go through


@dataclass(frozen=True)
class Advice:
    """How to watch.

    Attributes:
        leading: values a matrix; None: all.
        include: patterns of names; none: all matrices. Empty too where names are not known, and `every` says it.
        every: one in so many blocks (or matrices) is watched.
        matrices: how many are watched.
        cost: of it.
        fits: whether the budget allows `ENOUGH_AN_HOUR` snapshots.
    """

    leading: int | None
    include: tuple[str, ...]
    every: int
    matrices: int
    cost: Cost
    fits: bool


def snapshots_an_hour(cost: Cost, budget: float) -> float:
    """How many the automatic schedule takes in an hour once attaching and the early series are paid for."""
    return SPENDABLE * budget * 3600 / cost.counted


def steps_between(cost: Cost, budget: float, step_seconds: float) -> int:
    """How many steps of so many seconds pay for a snapshot."""
    return max(1, math.ceil(cost.counted / (SPENDABLE * budget * step_seconds) - 1e-9))


def early_snapshots(cost: Cost, budget: float, step_seconds: float) -> int:
    """How many the automatic schedule takes in the first ten minutes, the last one at their end included."""
    step = max(step_seconds, _SHORTEST)
    found = simulate(
        Automatic(budget), TEN_MINUTES, lambda _: step, lambda *_: cost.counted, attaching=cost.attach_seconds
    )
    return len(found.steps)


def advise(scenario: Scenario, rates: Rates, costs: Mapping[int | None, Cost]) -> Advice:
    """The most that the budget allows: all values of all matrices, else as many leading ones, else of fewer matrices.

    Args:
        scenario: what is to be watched; its `counts` are not used.
        rates: of the machine.
        costs: of all matrices, by number of leading values; None: all.
    """
    matrices, budget = scenario.model.planned, scenario.budget
    by_values = sorted(costs, key=lambda leading: -(leading or math.inf))
    for leading in by_values:
        if snapshots_an_hour(costs[leading], budget) >= ENOUGH_AN_HOUR:
            return Advice(leading, (), 1, len(matrices), costs[leading], True)
    leading = min(by_values, key=lambda leading: costs[leading].counted)
    best = Advice(leading, (), 1, len(matrices), costs[leading], False)
    blocks = list(dict.fromkeys(block_of(matrix.name) for matrix in matrices if block_of(matrix.name) != NO_BLOCK))
    for every in range(2, len(blocks) + 1):
        wanted = blocks[::every]
        some = [matrix for matrix in matrices if block_of(matrix.name) in wanted]
        share = len(some) / len(matrices)
        if len(some) == best.matrices:
            continue
        spent = cost(some, leading, scenario.layout, rates, _scaled(costs[leading].recorded, share))
        include = tuple(dict.fromkeys(_pattern(matrix.name) for matrix in some)) if scenario.model.named else ()
        best = Advice(leading, include, every, len(some), spent, snapshots_an_hour(spent, budget) >= ENOUGH_AN_HOUR)
        if best.fits:
            break
    return best


def attach_line(advice: Advice, directory: str, budget: float) -> str:
    """The line to copy."""
    arguments = ["model", "optimizer", f'"{directory}"']
    if advice.leading is not None:
        arguments.append(f"leading={advice.leading}")
    if advice.include:
        arguments.append("include=[" + ", ".join(f'"{pattern}"' for pattern in advice.include) + "]")
    if budget != 0.01:
        arguments.append(f"max_overhead={budget:g}")
    return f"tracker = attach({', '.join(arguments)})"


def _scaled(recorded: Recorded, share: float) -> Recorded:
    return replace(
        recorded,
        seconds=recorded.seconds * share,
        log=round(recorded.log * share),
        events=round(recorded.events * share),
    )


def _pattern(name: str) -> str:
    """Of all matrices of the block: `transformer.h.3.mlp.c_fc.weight` -> `transformer.h.3.*`."""
    found = re.match(r".*?\.\d+\.", f".{name}")
    return f"{found[0][1:]}*" if found else name
