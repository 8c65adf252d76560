"""Numbers of the experiment `glrl` by problem, depth and start, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from inrank.experiments.glrl.training import descent_name, greedy_name
from inrank.reproduction.experiment import Outcomes, Table
from inrank.reproduction.verdicts import spread
from inrank_monitor.ranks import effective_rank, null_singular_values

PROBLEMS = ("completion", "regression")


def starts_of(scale: Mapping[str, Any], problem: str, depth: int) -> list[float]:
    """Strengths of the product at the start, from the usual one, 1, to the smallest that this depth can leave in time.

    Regression has one solution whatever the start, so only the ends are run.
    """
    common = sorted(scale["starts"], reverse=True)
    return [*(common if problem == "completion" else (common[0], common[-1])), *scale["limits"].get(depth, ())]


class Numbers:
    """The numbers of finished trainings, a value a seed.

    Args:
        scale: the experiment's parameters.
        seeds: in order.
        outcomes: of all trainings.

    Attributes:
        usual, smallest: the largest start, 1, and the smallest that every depth has.
        target_rank: effective rank of the target.
        null_rank: effective rank of a Gaussian matrix of the target's shape.
    """

    def __init__(self, scale: Mapping[str, Any], seeds: Sequence[int], outcomes: Outcomes) -> None:
        self.scale, self.seeds, self.outcomes = scale, seeds, outcomes
        self.depths, self.rank, self.size = scale["depths"], scale["rank"], scale["size"]
        self.starts = sorted(scale["starts"], reverse=True)
        self.usual, self.smallest = self.starts[0], self.starts[-1]
        self.target_rank = float(effective_rank(np.arange(self.rank, 0, -1.0)))
        self.null_rank = float(effective_rank(null_singular_values(self.size, self.size)))

    def greedy(self, problem: str, depth: int, name: str) -> list[float]:
        """Of Algorithm 1."""
        return [self.outcomes[greedy_name(problem, depth, seed)].numbers[name] for seed in self.seeds]

    def descent(self, problem: str, depth: int, start: float, name: str) -> list[float]:
        """Of gradient descent."""
        return [self.outcomes[descent_name(problem, depth, start, seed)].numbers[name] for seed in self.seeds]

    def farthest(self, depth: int, start: float, problems: Sequence[str] = PROBLEMS) -> list[float]:
        """How far gradient descent stays from the critical point (ranks below the target's) that it misses most."""
        names = [f"nearest_{rank}" for rank in range(1, self.rank)]
        each = [self.descent(problem, depth, start, name) for problem in problems for name in names]
        return [max(values) for values in zip(*each, strict=True)]

    def over_depths(self, name: str, start: float) -> list[float]:
        """Mean over the depths, completion."""
        each = [self.descent("completion", depth, start, name) for depth in self.depths]
        return [fmean(values) for values in zip(*each, strict=True)]


def greedy_table(numbers: Numbers) -> Table:
    """What Algorithm 1 found."""
    rows = []
    for problem, depth in product(PROBLEMS, numbers.depths):
        widths = sorted({int(width) for width in numbers.greedy(problem, depth, "width")})
        found = f"{'/'.join(map(str, widths))} ({numbers.rank})"
        errors = [spread(numbers.greedy(problem, depth, name), ".2g") for name in ("value_error", "error", "cost")]
        ratio = spread(numbers.greedy(problem, depth, "gradient_ratio"), ".2g")
        rows.append(
            [problem, str(depth), found, ratio, *errors, spread(numbers.greedy(problem, depth, "steps"), ".0f")]
        )
    heads = [
        "problem",
        "depth",
        "rank found (truth)",
        "σ₂/σ₁ of ∇C(0)",
        "error of singular values",
        "held-out error",
        "cost",
        "steps",
    ]
    note = (
        "Errors are relative: the worst singular value; the entries not observed (regression: the matrix); the cost "
        "over that of zero. Its step size follows the curvature, so its steps do not compare with gradient descent's."
    )
    return Table("Algorithm 1", heads, rows, note)


def descent_table(numbers: Numbers) -> Table:
    """What gradient descent found from each start, and how near it came to the points of Algorithm 1."""
    ranks = range(1, numbers.rank + 1)
    forms = {"error": ".2g", "effective_rank": ".3g", "update_effective_rank": ".3g"}
    forms |= {f"nearest_{rank}": ".2g" for rank in ranks}
    forms |= {f"nearest_effective_rank_{rank}": ".3g" for rank in ranks[:-1]}
    forms |= {"steps_learned": ".0f", "steps": ".0f"}
    rows = []
    for problem, depth in product(PROBLEMS, numbers.depths):
        for start in starts_of(numbers.scale, problem, depth):
            cells = [spread(numbers.descent(problem, depth, start, name), form) for name, form in forms.items()]
            rows.append([problem, str(depth), f"{start:g} ({start ** (1 / depth):.2g})", *cells])
    heads = ["problem", "depth", "start: product (layer)", "held-out error", "effective rank", "of A − A₀"]
    heads += [f"distance from A{rank}" for rank in ranks] + [f"effective rank there, A{rank}" for rank in ranks[:-1]]
    note = (
        "A1, A2, …: where Algorithm 1 stopped improving at that rank; distance: the smallest along the path, over its "
        "norm. Layers have entries N(0, scale² / fan-in)."
    )
    return Table("Gradient descent", [*heads, "steps to a hundredth", "steps"], rows, note)
