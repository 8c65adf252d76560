"""What ranks by loss come to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Size(NamedTuple):
    """Of one matrix.

    Attributes:
        rows: output side.
        cols: input side.
        full_rank: the highest that its update can have.
    """

    rows: int
    cols: int
    full_rank: int

    @property
    def parameters(self) -> int:
        """What each rank costs: a column of one factor and a row of the other."""
        return self.rows + self.cols


class CurvePoint(NamedTuple):
    """One evaluation.

    Attributes:
        mean_rank: over all matrices.
        uniform_rank: the one rank that all had, or their full rank where that is lower; None: they differed.
        loss: there.
    """

    mean_rank: float
    uniform_rank: int | None
    loss: float


@dataclass(frozen=True)
class LossRanks:
    """The ranks at which W0 + (leading part of ΔW) keeps the loss within the tolerance, all matrices together.

    Attributes:
        ranks: of each matrix, by name, in the model's order.
        sizes: of each matrix.
        loss: of the model as it is.
        loss_at_ranks: with all matrices at these ranks; measured, and at most `loss` + `tolerance`.
        tolerance: how far the loss may rise.
        uniform_rank: the least one rank for all that was found to keep the loss within the tolerance; None where it was
            not looked for. The truncated update of a matrix never has more than its full rank.
        evaluations: how often the loss was evaluated.
        step: of the weights; None where no run says it.
        time: of the result, in unix seconds.
        curve: what was evaluated, in that order; the first is the model as it is.
    """

    ranks: Mapping[str, int]
    sizes: Mapping[str, Size] = field(repr=False)
    loss: float
    loss_at_ranks: float
    tolerance: float
    uniform_rank: int | None
    evaluations: int
    step: int | None = None
    time: float = field(default_factory=time.time, repr=False)
    curve: tuple[CurvePoint, ...] = field(default=(), repr=False)

    @property
    def rise(self) -> float:
        """By how much the loss rises; below zero where it falls."""
        return self.loss_at_ranks - self.loss

    @property
    def mean_rank(self) -> float:
        """Over the matrices."""
        return sum(self.ranks.values()) / max(1, len(self.ranks))

    @property
    def parameters(self) -> int:
        """Of factors of these ranks, all together; W0 is kept beside them."""
        return sum(rank * self.sizes[name].parameters for name, rank in self.ranks.items())

    @property
    def table(self) -> pd.DataFrame:
        """By matrix: rank, full_rank, rows, cols, parameters (of factors of this rank)."""
        import pandas as pd

        rows = {
            name: (rank, size.full_rank, size.rows, size.cols, rank * size.parameters)
            for name, rank in self.ranks.items()
            if (size := self.sizes[name])
        }
        columns = ["rank", "full_rank", "rows", "cols", "parameters"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("matrix")

    def curve_columns(self) -> dict[str, list[Any]]:
        """As the run's table `loss_curve` keeps what was evaluated, a row an evaluation."""
        count = len(self.curve)
        points = {name: [getattr(point, name) for point in self.curve] for name in CurvePoint._fields}
        return {"step": [self.step or 0] * count, "time": [self.time] * count, **points}

    def columns(self) -> dict[str, list[Any]]:
        """As the run's table `loss_ranks` keeps it, a row a matrix."""
        same = {
            "step": self.step or 0,
            "time": self.time,
            "loss": self.loss,
            "loss_at_ranks": self.loss_at_ranks,
            "tolerance": self.tolerance,
            "evaluations": self.evaluations,
            "uniform_rank": self.uniform_rank,
        }
        count = len(self.ranks)
        repeated = {name: [value] * count for name, value in same.items()}
        return {**repeated, "matrix": list(self.ranks), "rank": list(self.ranks.values())}
