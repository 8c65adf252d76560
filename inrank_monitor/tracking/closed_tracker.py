"""ClosedTracker: see `closed`, which `tracker` needs, and which therefore cannot need `tracker`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from inrank_monitor.tracking.closed import TrackerState, restored
from inrank_monitor.tracking.scalars import Loggable
from inrank_monitor.tracking.summaries import no_summary, summary_of
from inrank_monitor.tracking.tracker import SpectrumTracker


class ClosedTracker(SpectrumTracker):
    """The copy of a tracker: it says what that one said, and whatever a loop tells it is ignored.

    Args:
        state: of the tracker, when it was copied.
    """

    def __init__(self, state: TrackerState) -> None:
        self._state = state
        self.coverage, self.step_count = state.coverage, state.step_count
        self._closed = True

    def __reduce__(self) -> tuple[Callable[..., SpectrumTracker], tuple[Any, ...]]:
        """As it is."""
        return restored, (self._state,)

    @property
    def path(self) -> Path:
        """The directory of the run that the tracker wrote."""
        return self._state.path

    @property
    def finished_steps(self) -> list[int]:
        """The steps that were on disk."""
        return list(self._state.finished_steps)

    @property
    def seconds(self) -> float:
        """What the tracker had cost."""
        return self._state.seconds

    @property
    def overhead(self) -> float:
        """Its share of the time."""
        return self._state.overhead

    def count_steps_of(self, optimizers: Sequence[Optimizer]) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""

    def log(self, values: Mapping[str, Loggable] | None = None, /, **more: Loggable) -> None:
        """Nothing."""

    def event(self, kind: str, matrix: str | None, message: str) -> None:
        """Nothing."""

    def measure(self) -> None:
        """Nothing."""

    def ranks_by_loss(self, *args: Any, **options: Any) -> None:
        """Nothing."""

    def start_of_updates(self) -> Path:
        """The directory of the run."""
        return self.path

    def flush(self) -> None:
        """Nothing waits."""

    def summary(self) -> str:
        """The run as it is on disk now; a sentence where it cannot be read."""
        try:
            return summary_of(self.path)
        except Exception as error:
            return no_summary(self.path, error)

    def close(self, reason: str | None = None) -> None:
        """Nothing."""

    def close_alone(self, reason: str | None) -> None:
        """Nothing."""
