"""Ranks by loss in a loop: of the live weights, against the tracker's own W0, into the tracker's own run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inrank_monitor.loss_ranks import Loss, LossRanks, Start, ranks_by_loss
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.recorder import Recorder
from inrank_monitor.tracking.started_run import StartedRun

if TYPE_CHECKING:
    from inrank_monitor.tracking.tracker import SpectrumTracker


class ByLoss:
    """Takes ranks by loss of one run.

    Args:
        started: the run.
        measuring: of this process.
        recorder: gets the results.
    """

    def __init__(self, started: StartedRun, measuring: Measuring, recorder: Recorder | NoRecorder) -> None:
        self._started, self._measuring, self._recorder = started, measuring, recorder
        self._last_step = -1

    def take(
        self,
        tracker: SpectrumTracker,
        loss: Loss,
        tolerance: float,
        max_evaluations: int,
        every: int | None,
        progress: bool | None,
    ) -> LossRanks | None:
        """See `SpectrumTracker.ranks_by_loss`; raises what is wrong."""
        step = tracker.step_count
        if every is not None:
            if isinstance(every, bool) or not isinstance(every, int) or every < 1:
                raise ValueError(f"every must be an integer of at least 1, got {every!r}")
            if step == 0 or step % every or step == self._last_step:
                return None
            self._last_step = step
        model = self._started.watched.model
        assert model is not None
        return ranks_by_loss(model, tracker, loss, tolerance, max_evaluations, progress)

    def start(self, step: int) -> Start:
        """W0 of the live run.

        Raises:
            RuntimeError: several processes train, each of which keeps a share of W0.
        """
        started = self._started
        if (count := self._measuring.share.processes.count) > 1:
            raise RuntimeError(
                f"ranks by loss are taken by one process, and {count} train here: take them of {started.directory} "
                "afterwards, by inrank_monitor.ranks_by_loss(model, directory, loss)"
            )
        selection: dict[str, Any] = started.options.selection
        return Start(
            str(started.directory),
            self._measuring.initial,
            list(started.info["matrices"]),
            selection,
            step,
            self._recorder.loss_ranks,
        )
