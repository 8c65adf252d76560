"""A snapshot on every process that trains: each measures its share, the main one records them all as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from torch import nn

from inrank_monitor.distributed import ProcessesLostError
from inrank_monitor.matrices import Adapter
from inrank_monitor.spectra import wait_for
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.once import Once
from inrank_monitor.tracking.recorder import Drawn, Recorder
from inrank_monitor.tracking.snapshot import Snapshot, merged, take_snapshot
from inrank_monitor.tracking.update_spectra import GONE, Problem

logger = logging.getLogger("inrank_monitor")
_MAX_BACKLOG, _PATIENCE_SECONDS = 64, 1.0  # snapshots in memory that wait for the disk


class Snapshots:
    """Takes snapshots of one run.

    Args:
        measuring: of this process.
        recorder: that writes them.
        reported: errors that have been.

    Attributes:
        last_step: the one that has a snapshot; where none has been taken, the step at which the run began.
    """

    def __init__(self, measuring: Measuring, recorder: Recorder | NoRecorder, reported: Once, step: int) -> None:
        self._measuring, self._recorder, self._reported = measuring, recorder, reported
        self.last_step = step
        self.drawn: Drawn | None = None  # the last snapshot's rows, on the main process
        self._stalled = False

    def has_room(self, step: int) -> bool:
        """Whether another snapshot may wait for the disk; every process asks, the main one knows."""
        return self._measuring.share.processes.on_main(lambda: self._has_room(step))

    def _has_room(self, step: int) -> bool:
        """A disk that is far behind is waited for once, then not."""
        if self._recorder.backlog < _MAX_BACKLOG:
            self._stalled = False
            return True
        if not self._stalled and self._recorder.drain(_PATIENCE_SECONDS):
            return True
        self._stalled = True
        if self._reported.is_new("backlog"):
            logger.warning("the disk is slower than the schedule: snapshots are left out")
        self._recorder.event(step, "snapshot_skipped", None, "earlier snapshots are still being written")
        return False

    def wait_for_queue(self) -> float:
        """Let the devices of the weights end what the training has queued; the seconds that took, which are its own."""
        began = time.perf_counter()
        matrices, share = self._measuring.matrices, self._measuring.share
        modules = [matrices[place].module for place in share.held]
        layers = {id(layer): layer for module in modules if (layer := _layer_of(module)) is not None}
        wait_for(parameter.device for layer in layers.values() for parameter in layer.parameters())
        return time.perf_counter() - began

    def take(self, step: int, wait: bool) -> Problem | None:
        """Measure, and hand the result to the recorder; the first of what could not be measured.

        Args:
            step: optimizer steps so far.
            wait: for what is solved beside the loop; its problems are told by the log alone where nobody waits.
        """
        processes = self._measuring.share.processes
        own = self._own_share(step)
        if wait or processes.count > 1:
            own.finish()
        shares = processes.gather(own)
        self.last_step = step
        return processes.on_main(lambda: self._record(shares))

    def _own_share(self, step: int) -> Snapshot:
        """What this process measures. Where others wait for it, an error is told to them instead of raised."""
        measuring = self._measuring
        try:
            return take_snapshot(step, measuring)
        except ProcessesLostError:
            raise
        except Exception as error:
            processes = measuring.share.processes
            if processes.count == 1:
                raise
            if self._reported.is_new(error):
                logger.exception("error in the tracker at step %d; training goes on", step)
            message = f"process {processes.number}: {type(error).__name__}: {error}"
            names = [measuring.matrices[place].name for place in measuring.share.held]
            return Snapshot(step, time.time(), problems=[("not_measured", name, message) for name in names])

    def _record(self, shares: Sequence[Snapshot]) -> Problem | None:
        if not all(share.is_finished for share in shares):
            self.drawn = self._recorder.snapshot(lambda: self._whole(shares))
            return None
        snapshot = self._whole(shares)
        self.drawn = self._recorder.snapshot(lambda: snapshot)
        return snapshot.problems[0] if snapshot.problems else None

    def _whole(self, shares: Sequence[Snapshot]) -> Snapshot:
        snapshot = merged([share.finish() for share in shares])
        snapshot.problems = [problem for problem in snapshot.problems if self._is_news(problem)]
        return snapshot

    def _is_news(self, problem: Problem) -> bool:
        """What is gone stays gone: it is told once."""
        kind, matrix, _ = problem
        return kind != GONE or self._reported.is_new(f"{kind} {matrix}")


def _layer_of(module: object) -> nn.Module | None:
    """The layer, which is there also where an adapter has been taken from it."""
    layer = module.layer if isinstance(module, Adapter) else module
    return layer if isinstance(layer, nn.Module) else None
