"""The arms: dense training, what it is to be compared with, and who gets which budget at which moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

BUDGETS = (0.45, 0.30, 0.15)  # of the weights of all MLP matrices
MOMENTS = (0.05, 0.10, 0.25)  # of the steps
USUAL_MOMENT = 0.25
HIGHER_RATE = 2.0  # learning rate of the MLP weights after that moment, times the others', where it is not the same
Kind = Literal["dense", "narrow", "fixed", "inrank", "inrank-efficient", "low-rank", "pruned", "widths"]
Allocation = Literal["uniform", "energy", "demand", "loss"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        kind: `dense`; `narrow`, dense with fewer hidden units; `fixed`, factors from the first step; `inrank` and
            `inrank-efficient`, the paper's; `low-rank`, dense first and then factors; `pruned`, dense first and then
            fewer hidden units; `widths`, no arm: a short dense training that the widths of `narrow` are planned on.
        budget: share of the weights of all MLP matrices that is left. Of `dense`: so many steps as make the
            multiply-adds of `low-rank` at this budget.
        allocation: by which ranks or widths are shared out.
        after: share of the steps after which the model, or the MLPs' learning rate, changes.
        factor_rate: learning rate of the MLP weights, or of factors in their place, from then on, times the others'.
    """

    kind: Kind
    budget: float | None = None
    allocation: Allocation | None = None
    after: float | None = None
    factor_rate: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Arm:
        """From what `settings` gave."""
        return cls(**settings)

    @property
    def is_cheaper_dense(self) -> bool:
        """Whether it is dense training for fewer steps."""
        return self.kind == "dense" and self.budget is not None

    @property
    def name(self) -> str:
        """For a directory: `low-rank-demand-45-after-25`."""
        parts: list[str] = ["dense-as-cheap-as" if self.is_cheaper_dense else self.kind]
        if self.allocation:
            parts.append(self.allocation)
        if self.budget:
            parts.append(f"{self.budget:.0%}".rstrip("%"))
        if self.after and self.kind != "widths":
            parts.append(f"after-{self.after:.0%}".rstrip("%"))
        if self.factor_rate != 1:
            parts.append(f"times-{self.factor_rate:g}")
        return "-".join(parts)

    @property
    def label(self) -> str:
        """For a table; without the budget, which has a column of its own."""
        moment = f"after {self.after:.0%}" if self.after else ""
        rate = f"rate × {self.factor_rate:g}"
        return {
            "dense": _dense_label(self, moment, rate),
            "narrow": f"narrow dense, widths {_BY.get(self.allocation or '', '')}",
            "fixed": "factors from the start, uniform ranks",
            "inrank": "InRank, growing",
            "inrank-efficient": f"InRank-Efficient, U V {moment}",
            "low-rank": f"dense, U V {moment}, ranks {_BY.get(self.allocation or '', '')}"
            + f", {rate}" * (self.factor_rate != 1),
            "pruned": f"dense, pruned {moment}",
            "widths": "a short dense training",
        }[self.kind]


_BY = {"uniform": "uniform", "energy": "by energy", "demand": "by demand", "loss": "by loss"}


def _dense_label(arm: Arm, moment: str, rate: str) -> str:
    if arm.is_cheaper_dense:
        return "dense, fewer steps: the multiply-adds of low rank by demand"
    return f"dense, MLP {rate} {moment}" if arm.factor_rate != 1 else "dense"


DENSE = Arm(kind="dense")
DENSE_SCHEDULED = Arm(kind="dense", after=USUAL_MOMENT, factor_rate=HIGHER_RATE)
WIDTHS = Arm(kind="widths", after=USUAL_MOMENT)
INRANK = Arm(kind="inrank")
INRANK_EFFICIENT = Arm(kind="inrank-efficient", after=USUAL_MOMENT)


def cheaper_dense(budget: float) -> Arm:
    """Dense for as many multiply-adds as `low_rank(budget)`."""
    return Arm(kind="dense", budget=budget)


def narrow(allocation: Allocation, budget: float) -> Arm:
    """Dense with fewer hidden units from the first step."""
    return Arm(kind="narrow", allocation=allocation, budget=budget)


def fixed(budget: float) -> Arm:
    """Factors of one rank from the first step."""
    return Arm(kind="fixed", allocation="uniform", budget=budget)


def low_rank(
    budget: float, allocation: Allocation = "demand", after: float = USUAL_MOMENT, factor_rate: float = 1.0
) -> Arm:
    """Dense first, then factors."""
    return Arm(kind="low-rank", allocation=allocation, budget=budget, after=after, factor_rate=factor_rate)


def pruned(budget: float) -> Arm:
    """Dense first, then the hidden units that the loss would miss least are taken out."""
    return Arm(kind="pruned", budget=budget, after=USUAL_MOMENT)


def arms(budgets: tuple[float, ...], *, whole: bool) -> list[Arm]:
    """What is trained at these budgets; the whole table, or what most depends on."""
    found = [DENSE, DENSE_SCHEDULED]
    for budget in budgets:
        found += [low_rank(budget), low_rank(budget, "uniform"), narrow("uniform", budget), narrow("demand", budget)]
        found += [cheaper_dense(budget), fixed(budget), pruned(budget)]
    found.append(INRANK_EFFICIENT)
    if whole:
        found.append(INRANK)
        for budget in budgets:
            found += [low_rank(budget, "energy"), low_rank(budget, "loss"), low_rank(budget, factor_rate=HIGHER_RATE)]
            found += [low_rank(budget, after=moment) for moment in MOMENTS if moment != USUAL_MOMENT]
    return found
