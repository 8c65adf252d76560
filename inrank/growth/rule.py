"""Growth rules: what is seen of one matrix at one check -> its next rank. Pure functions.

A rule is any callable that takes an `Observation` and returns a rank; the controller holds the answer between the
present rank and what there is room for. The paper's rule is `ExplainedRatio`. A rule of your own:

    def energy(seen: Observation) -> int:
        return int(rank_metrics.energy_rank(seen.singular_values, 0.95))

    @needs_gradient
    def where_the_gradient_points(seen: Observation) -> int:
        return seen.rank + 8 * (seen.gradient_outside[0] > 0.5 * seen.gradient[0])

References:
    Zhao et al. 2023, arXiv:2306.11250, eq. 7 and Algorithm 2 line 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from inrank_monitor.ranks import Definition, check_options, explained_ratio, next_rank, null_rank

__all__ = ["ExplainedRatio", "Observation", "Rule", "needs_gradient", "next_rank"]


@dataclass(frozen=True)
class Observation:
    """What a rule is shown.

    Attributes:
        name: dotted name of the layer.
        step: optimizer steps since the controller was made.
        rows: output side.
        cols: input side.
        rank: the present rank.
        buffer_rank: b.
        max_rank: the largest rank there is room for.
        singular_values: of U V, descending, (columns in use,), float64; those beyond are zero.
        gradient: singular values of ∂L/∂W averaged over the last few steps, (min(rows, cols),); only for a rule that
            `needs_gradient`. Its scale is that of the loss (a GradScaler's factor included).
        gradient_outside: of the part of it outside the spans of U's and V's used columns,
            (I − P_U) ∂L/∂W (I − P_V).
    """

    name: str
    step: int
    rows: int
    cols: int
    rank: int
    buffer_rank: int
    max_rank: int
    singular_values: Float[np.ndarray, " n"]
    gradient: Float[np.ndarray, " m"] | None = None
    gradient_outside: Float[np.ndarray, " m"] | None = None

    @property
    def size(self) -> int:
        """min(rows, cols): how long the spectrum is with its zeros."""
        return min(self.rows, self.cols)

    def null_rank(self, threshold: float = 0.9, definition: Definition = "paper") -> int:
        """The rank at which `ExplainedRatio` comes to rest on factors that nobody trains; cached."""
        return null_rank(self.rows, self.cols, threshold, self.buffer_rank, definition, "factors")

    def null_gradient_share(self) -> float:
        """Share of a structureless gradient's norm outside the spans: √((1 − c/rows)(1 − c/cols)), c columns."""
        columns = len(self.singular_values)
        return float(np.sqrt(max(1 - columns / self.rows, 0) * max(1 - columns / self.cols, 0)))


Rule = Callable[[Observation], int]
_Rule = TypeVar("_Rule", bound=Rule)


def needs_gradient(rule: _Rule) -> _Rule:
    """Mark a rule as one that looks at `gradient`: the controller then averages it over the steps before a check."""
    rule.needs_gradient = True  # type: ignore[attr-defined]
    return rule


@dataclass(frozen=True)
class ExplainedRatio:
    """The paper's rule: the least rank, from the present one on, whose explained ratio reaches α.

    Attributes:
        threshold: α, in (0, 1].
        definition: `"paper"` (eq. 7) or `"reference"` (the published code: strict >, all values, its cap).
    """

    threshold: float = 0.9
    definition: Definition = "paper"

    def __post_init__(self) -> None:
        check_options(self.threshold, 1, self.definition)

    def __call__(self, seen: Observation) -> int:
        """Algorithm 2 line 7, or the published code's."""
        return next_rank(
            seen.singular_values,
            seen.rank,
            threshold=self.threshold,
            buffer_rank=seen.buffer_rank,
            max_rank=reference_cap(seen) if self.definition == "reference" else seen.max_rank,
            definition=self.definition,
            size=seen.size,
        )

    def ratio(self, seen: Observation) -> float:
        """g(U V, r, b) at the present rank: what the log says beside a growth."""
        return float(
            explained_ratio(
                seen.singular_values, min(seen.rank, seen.size), seen.buffer_rank, self.definition, seen.size
            )
        )


def reference_cap(seen: Observation) -> int:
    """The published code's largest rank, min(rows, cols)/2 − b, at least 1 and within what there is room for."""
    return min(max(seen.size // 2 - seen.buffer_rank, 1), seen.max_rank)
