"""A training that logs and of which no step is counted: a loop that calls nothing, or steps another optimizer."""

from __future__ import annotations

_CALLS_AT_START = 200  # values of one name: more than anybody accumulates gradients over
_CALLS = 20


class Standing:
    """How many values have been logged at one step.

    Args:
        start: the step at which the run began or goes on.
    """

    def __init__(self, start: int) -> None:
        self._start = self._step = start
        self._calls: dict[str, int] = {}

    def is_at_start(self, step: int) -> bool:
        """Whether no step has been counted."""
        return step == self._start

    @property
    def has_values(self) -> bool:
        """Whether any have been logged at this step."""
        return bool(self._calls)

    def logged(self, step: int, name: str) -> bool:
        """Count a value; whether it is one too many of its name at this step, true once."""
        if step != self._step:
            self._step, self._calls = step, {}
        self._calls[name] = self._calls.get(name, 0) + 1
        return self._calls[name] == (_CALLS_AT_START if self.is_at_start(step) else _CALLS)

    def message(self, step: int, counts_itself: bool) -> str:
        """What is wrong, and what to do.

        Args:
            step: that stands.
            counts_itself: the loop is to call `tracker.step()`, as no optimizer was given.
        """
        said = f"; log was called {max(self._calls.values())} times" if self._calls else ""
        if not self.is_at_start(step):
            what = f"no step has been counted since step {step}, although the weights changed"
        else:
            what = "no step was counted and nothing measured"
        if counts_itself:
            advice = "attach was given no optimizer: call tracker.step() after each step"
        else:
            advice = "give it the one that the loop steps, or None and call tracker.step() after each step"
        return f"{what}{said}: {advice}"
