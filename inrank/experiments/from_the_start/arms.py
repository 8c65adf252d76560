"""The arms: dense training, factors from the first step, and what lies between the two, one difference at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

BUDGET = 0.15  # of the weights of all MLP matrices, one rank for all
LATER = 0.25  # of the steps
FIRST_SHARE = 2 / 3  # of the budget, for the first block of uneven ranks


@dataclass(frozen=True, kw_only=True)
class Start:
    """One way to train the MLP matrices.

    Attributes:
        name: of its trainings' directories.
        label: for a table.
        begins: what a matrix is before the first step: `initial`, as the model is made; `cut`, its best approximation
            of the rank; `random`, of the rank, with normal factors, at the norm that it had.
        trains: `dense`; `cut`, dense, and after each step the best approximation of the rank; `factors`, U V; `added`,
            W0 + U V with W0 as it was.
        where: `all` blocks; the `first`; all `others`. The rest is dense.
        ranks: `one` for all matrices, as the budget allows; `full`, so that only the factors are left of the
            difference; `uneven`: the first block's share of the budget is two thirds.
        gain: κ of κ U V, as for `inrank.factorize`.
        factor_rate: learning rate of factors, times the others'.
        after: share of the steps before the factors, dense until then.
    """

    name: str
    label: str
    begins: Literal["initial", "cut", "random"] = "initial"
    trains: Literal["dense", "cut", "factors", "added"] = "factors"
    where: Literal["all", "first", "others"] = "all"
    ranks: Literal["one", "full", "uneven"] = "one"
    gain: float | Literal["match"] = "match"
    factor_rate: float = 1.0
    after: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Start:
        """From what `settings` gave."""
        return cls(**settings)

    def takes(self, name: str) -> bool:
        """Whether a matrix of an MLP is not left as it is; `name`, of a GPT-2's module."""
        return self.where == "all" or is_first(name) == (self.where == "first")


def is_first(name: str) -> bool:
    """Whether a module of a GPT-2 is in the first block."""
    return ".h.0." in name


DENSE = Start(name="dense", label="dense", trains="dense")
FACTORS = Start(name="factors", label="U V from the first step, by the SVD of W0")
CUT = Start(name="cut", label="dense, cut to the rank after each step", begins="cut", trains="cut")
CUT_ONCE = Start(name="cut-once", label="dense, cut to the rank before the first step", begins="cut", trains="dense")
FIRST_CUT_ONCE = replace(CUT_ONCE, name="first-cut-once", label=f"{CUT_ONCE.label}, first block only", where="first")
FULL = Start(name="full-rank", label="U V of full rank", ranks="full")
RANDOM = Start(name="random", label="U V random, at the norm of W0", begins="random")
UNIT_GAIN = Start(name="gain-1", label="U V without a gain (κ = 1)", gain=1.0)
RATES = tuple(
    Start(name=f"times-{rate:g}", label=f"U V at {rate:g} × the learning rate", factor_rate=rate)
    for rate in (0.25, 0.5)
)
FIRST = Start(name="first-block", label="U V in the first block, dense in the others", where="first")
OTHERS = Start(name="other-blocks", label="dense in the first block, U V in the others", where="others")
UNEVEN = Start(name="uneven", label="U V, two thirds of the budget in the first block", ranks="uneven")
ADDED = Start(name="added", label="W0 + U V", trains="added")
LATER_FACTORS = Start(name="later", label=f"dense, U V after {LATER:.0%}", after=LATER)
ARMS = (
    *(DENSE, FACTORS, CUT, CUT_ONCE, FIRST_CUT_ONCE, FULL, RANDOM, UNIT_GAIN),
    *(*RATES, FIRST, OTHERS, UNEVEN, ADDED, LATER_FACTORS),
)
