"""Values that are logged while no step is counted: nobody counts, or not the optimizer that steps."""

from __future__ import annotations

_MANY = 20  # values of one name at one step


class StandingStill:
    """Counts what is logged at one step.

    Args:
        step: at which the run begins or goes on.
    """

    def __init__(self, step: int) -> None:
        self._first = self._step = step
        self._counts: dict[str, int] = {}

    def nothing_counted(self, step: int) -> bool:
        """Whether values have been logged and no step has been counted, now that the run ends at this one."""
        return step == self._first and bool(self._counts)

    def suspects(self, step: int, name: str) -> bool:
        """Whether this is one value too many of a name at one step; true once.

        Args:
            step: at which it is logged.
            name: of the value.
        """
        if step != self._step:
            self._step, self._counts = step, {}
        self._counts[name] = self._counts.get(name, 0) + 1
        return self._counts[name] == _MANY
