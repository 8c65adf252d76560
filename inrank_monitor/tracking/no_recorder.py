"""The recorder of a process that does not write the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrank_monitor.tracking.recorder import Drawn, ScalarRow
    from inrank_monitor.tracking.snapshot import Snapshot


class NoRecorder:
    """What a process has that does not write the run."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.finished_steps: list[int] = []
        self.failure: BaseException | None = None
        self.seconds, self.backlog = 0.0, 0

    def snapshot(self, taken: Callable[[], Snapshot]) -> Drawn | None:
        """Nothing."""
        return None

    def look_again(self) -> None:
        """Nothing."""

    def scalars(self, rows: Sequence[ScalarRow]) -> None:
        """Nothing."""

    def loss_ranks(self, columns: Mapping[str, Sequence[Any]], curve: Mapping[str, Sequence[Any]]) -> None:
        """Nothing."""

    def event(self, step: int, kind: str, matrix: str | None, message: str) -> None:
        """Nothing."""

    def drain(self, timeout: float | None = None) -> bool:
        """Nothing waits."""
        return True

    def close(self) -> int:
        """Nothing is lost."""
        return 0
