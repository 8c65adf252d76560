"""When ranks are checked, and by what rule: what a callback hands on to the controller that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from inrank.growth.rule import ExplainedRatio, Rule
from inrank_monitor.ranks import Definition
from inrank_monitor.tracking import Every, Where


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """How ranks grow.

    Attributes:
        rule: from what is seen of a matrix to its next rank.
        every: steps between checks, or a function step -> bool.
        until: last step that may be checked (T of Algorithm 3); None for no end.
        gradient_steps: over how many steps the gradient is averaged for a rule that needs it.
        seed: of the new columns.

    Raises:
        ValueError: an option out of range.
    """

    rule: Rule
    every: int | Callable[[int], bool]
    until: int | None
    gradient_steps: int
    seed: int

    def __post_init__(self) -> None:
        if not callable(self.rule):
            raise ValueError(f"rule must be a function of an Observation, got {self.rule!r}")
        _ = self._schedule  # it checks `every`
        if not isinstance(self.gradient_steps, int) or self.gradient_steps < 1:
            raise ValueError(f"gradient_steps must be an integer of at least 1, got {self.gradient_steps!r}")

    @cached_property
    def _schedule(self) -> Every | Where:
        return Where(self.every) if callable(self.every) else Every(self.every)

    @cached_property
    def needs_gradient(self) -> bool:
        """Whether the rule looks at the gradient."""
        return bool(getattr(self.rule, "needs_gradient", False))

    def due(self, step: int) -> bool:
        """Whether ranks are checked after this step."""
        return (self.until is None or step <= self.until) and self._schedule.due(step, 0.0, 0.0)


def rule_of(rule: Rule | None, threshold: float, definition: Definition) -> Rule:
    """The user's rule, else the paper's."""
    return ExplainedRatio(threshold, definition) if rule is None else rule
