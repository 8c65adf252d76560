"""What copies and pickles hold in the place of a tracker: a closed one, which knows its run and does nothing.

Models, optimizers, schedulers and callbacks that hold a tracker are copied and saved; the run has one writer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inrank_monitor.matrices import Coverage

if TYPE_CHECKING:
    from inrank_monitor.tracking.tracker import SpectrumTracker


@dataclass(frozen=True)
class TrackerState:
    """What a tracker knows by itself, at the moment when it was copied."""

    path: Path
    coverage: Coverage
    step_count: int
    finished_steps: list[int]
    seconds: float
    overhead: float


def closed_copy(tracker: SpectrumTracker) -> tuple[Callable[[TrackerState], SpectrumTracker], tuple[Any, ...]]:
    """What `__reduce__` gives."""
    state = TrackerState(
        tracker.path,
        tracker.coverage,
        tracker.step_count,
        tracker.finished_steps,
        tracker.seconds,
        tracker.overhead,
    )
    return restored, (state,)


def restored(state: TrackerState) -> SpectrumTracker:
    """The closed tracker of a copy."""
    from inrank_monitor.tracking.closed_tracker import ClosedTracker

    return ClosedTracker(state)
