"""The ranks that a tracker has measured so far, as one number a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inrank_monitor.runs import Run
    from inrank_monitor.tracking import SpectrumTracker


class MeasuredRanks:
    """Reads the run that a tracker is writing.

    Args:
        layers: dotted names; of other matrices nothing is read.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._weights = {f"{name}.weight" for name in layers}
        self._run: Run | None = None

    def read(self, tracker: SpectrumTracker) -> tuple[list[int], list[float]]:
        """Steps of the snapshots, and the mean energy rank of the layers' updates at each (see `Settled`).

        It waits until the tracker's thread has written what has been measured.

        Raises:
            ValueError: the tracker watches none of the layers, or measures no energy ranks of them.
        """
        from inrank_monitor.runs import open_run  # pandas, which nothing else here needs

        tracker.flush()
        if self._run is None or self._run.path != tracker.path:
            self._run = open_run(tracker.path)
        self._run.refresh()
        chosen = self._run.matrices["parameter"].isin(self._weights)
        if not chosen.any():
            raise ValueError(f"tracker watches none of the layers that are to be factorized: {sorted(self._weights)}")
        measured = self._run.measurements
        rows = measured[measured["matrix"].isin(chosen.index[chosen])]
        means = rows.groupby("step")["energy_rank"].mean().dropna().astype(float)
        if means.empty and not rows.empty:
            raise ValueError("tracker measures no energy ranks (leading=): leave leading out, or give a step as at")
        return [int(step) for step in means.index], list(means)
