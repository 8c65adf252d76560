"""What is claimed for low-rank training, and what a sceptic holds against it, each with its verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from inrank.experiments.worth_it.arms import Arm, cheaper_dense, fixed, low_rank, narrow, pruned
from inrank.experiments.worth_it.measured import Measured
from inrank.experiments.worth_it.plan import budgets
from inrank.reproduction.experiment import Statement
from inrank.reproduction.verdicts import is_less, is_not_above, not_tested

MARGINS = {0.45: 0.01, 0.15: 0.03}  # what dense-then-low-rank may lose against dense, by budget
LOW, NARROW = "dense first, then low rank by demand", "a narrow dense model, widths by demand"


def claims(measured: Measured) -> list[Statement]:
    """All of them, those against dense first."""
    chosen = budgets(measured.request)
    near = [_near_dense(measured, budget, MARGINS[budget]) for budget in chosen if budget in MARGINS]
    return near + [
        _judge(measured, f"Ours: {text}, at {budget:.0%}", first(budget), second(budget), is_less)
        for text, first, second in _RIVALS
        for budget in chosen
    ]


# the claim that the first arm ends at a lower perplexity than the second
_RIVALS: tuple[tuple[str, Callable[[float], Arm], Callable[[float], Arm]], ...] = (
    ("ranks by demand beat uniform ranks of the same size", low_rank, partial(low_rank, allocation="uniform")),
    (f"{LOW}, beats {NARROW}", low_rank, partial(narrow, "demand")),
    (f"{LOW}, beats a narrow dense model of uniform width", low_rank, partial(narrow, "uniform")),
    (f"{LOW}, beats dense training for as many multiply-adds", low_rank, cheaper_dense),
    (f"{LOW}, beats low rank from the start", low_rank, fixed),
    (f"{LOW}, beats pruning at the same moment", low_rank, pruned),
    ("widths by demand beat uniform widths", partial(narrow, "demand"), partial(narrow, "uniform")),
)


def _near_dense(measured: Measured, budget: float, margin: float) -> Statement:
    claim = f"Ours: {LOW}, ends within {margin:.0%} of the best dense arm, at {budget:.0%}"
    best = measured.best_dense
    if best is None:
        return not_tested(claim, "not trained: dense")

    return _judge(measured, claim, low_rank(budget), best, partial(is_not_above, margin=margin))


def _judge(measured: Measured, claim: str, first: Arm, second: Arm, verdict: Callable[..., Statement]) -> Statement:
    """By the seeds that both arms have; a rate that is still to be tried is said."""
    if missing := [arm.label for arm in (first, second) if arm not in measured]:
        return not_tested(claim, f"not trained: {'; '.join(missing)}")
    common, planned = measured.common_rates(first, second), len(measured.rates)
    samples = measured.pair(first, second)
    if not samples[0].values:
        return not_tested(claim, "the two were not trained at one learning rate yet")
    found = verdict(claim, *samples)
    if len(common) == planned:
        return found
    return replace(found, why=f"{found.why}; by {len(common)} of {planned} learning rates, those that both have")
