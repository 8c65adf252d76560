"""SpectrumTracker: the object that a training loop holds. Wiring only.

An optimizer's step hook counts steps; the schedule says when; a snapshot is taken between two steps, and the recorder's
thread writes it. Nothing of the model, the optimizer or the random state is ever written to.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import traceback
import weakref
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from torch.optim import Optimizer

from inrank_monitor.distributed import ProcessesLostError, Share
from inrank_monitor.matrices import Coverage, Matrix, no_weights
from inrank_monitor.sinks import Sink
from inrank_monitor.spectra import SpectrumMethod, SpectrumPool
from inrank_monitor.tracking.optimizer_steps import was_skipped
from inrank_monitor.tracking.recorder import NoRecorder, Recorder, ScalarRow, signature
from inrank_monitor.tracking.run_start import StartedRun
from inrank_monitor.tracking.schedule import Meetings, Schedule
from inrank_monitor.tracking.snapshot import RankOptions, Snapshot, merged, take_snapshot
from inrank_monitor.tracking.update_spectra import Problem

logger = logging.getLogger("inrank_monitor")
_FLUSH_SECONDS, _FLUSH_ROWS = 5.0, 2048
_MAX_BACKLOG, _PATIENCE_SECONDS = 64, 1.0  # snapshots in memory that wait for the disk


class SpectrumTracker:
    """Watches one training; made by `attach`. Also a context manager, which closes it.

    Where several processes train together each has one, and all of them measure at the same steps; the main process's
    decides when, and writes. What takes part in a snapshot (`step`, `measure`, `close`) is called on every process.

    Attributes:
        path: the run directory.
        coverage: every parameter of the model: watched as which matrices, or skipped and why.
        step_count: optimizer steps since attach.
    """

    def __init__(
        self,
        started: StartedRun,
        matrices: Sequence[Matrix],
        coverage: Coverage,
        options: RankOptions,
        schedule: Schedule,
        optimizers: Sequence[Optimizer],
        tensorboard: bool,
        strict: bool,
        attach_seconds: float,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.path, self.coverage, self.step_count = started.directory, coverage, started.step
        self._started, self._matrices, self._options = started, matrices, options
        self._schedule, self._strict = schedule, strict
        self._processes, self._share = started.processes, started.share
        self._meetings, self._meeting = Meetings(), 0
        self._recorder = _recorder(started, matrices, options, tensorboard, sinks)
        self._pool = SpectrumPool()
        self._initial = started.initial
        self._method = SpectrumMethod(options.leading, options.density)
        self._scalars: list[ScalarRow] = []
        self._flushed = self._began = time.perf_counter() - attach_seconds
        self._measured_step = started.step
        self._reported: set[str] = set()
        self._stalled = False
        self._closed = False
        self._handles = [optimizers[-1].register_step_post_hook(self._after_step)] if optimizers else []
        # Closed at exit if the script forgets; a tracker that is dropped unclosed still ends its run.
        self._at_exit = partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)
        self._abandon = weakref.finalize(self, _end_run, started, self._recorder, "finished", "never closed")
        self._abandon.atexit = False
        if started.resumed:
            self._recorder.event(started.step, "resumed", None, f"taken up at step {started.step}")
        self._snapshot_seconds = time.perf_counter() - self._began

    @property
    def finished_steps(self) -> list[int]:
        """The steps whose snapshot this process has written to disk."""
        return list(self._recorder.finished_steps)

    @property
    def seconds(self) -> float:
        """What the tracker has cost so far, in seconds: attaching, measuring, and its thread's processor time."""
        return self._snapshot_seconds + self._recorder.seconds

    @property
    def overhead(self) -> float:
        """`seconds` as a share of the wall time since attach."""
        return self.seconds / max(time.perf_counter() - self._began, 1e-9)

    def step(self) -> None:
        """Count one optimizer step, where no optimizer was given to `attach`.

        Raises:
            RuntimeError: an optimizer was given, whose hook counts its steps.
        """
        if self._handles:
            raise RuntimeError(f"step() at step {self.step_count}: the optimizer given to attach counts the steps")
        self._count()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not was_skipped(optimizer):
            self._count()

    def _count(self) -> None:
        if self._closed:
            return
        self.step_count += 1
        if self.step_count < self._meeting:
            return
        now = time.perf_counter()
        try:
            due = partial(self._schedule.due, self.step_count, now - self._began, self.seconds)
            if self._processes.on_main(due):
                self._snapshot(now)
            self._plan_meeting()
        except Exception as error:
            if self._measured_step != self.step_count:  # it cost time all the same, and is not tried at every step
                self._snapshot_seconds += time.perf_counter() - now
                self._schedule.measured(self.step_count, time.perf_counter() - now)
            self._failed(error)

    def _plan_meeting(self) -> None:
        """Where several processes train, the step at which they next ask the main one's schedule."""
        if self._processes.count > 1:
            elapsed = time.perf_counter() - self._began
            plan = partial(self._meetings.plan, self._schedule, self.step_count, elapsed, self.seconds)
            self._meeting = self._processes.on_main(plan)

    def log(self, /, **values: float | Tensor) -> None:
        """Log scalars beside the spectra, at the current step; a tensor is not waited for.

        Args:
            values: numbers or tensors of one element, by name: `loss=loss, lr=lr`.
        """
        if self._closed or not self._processes.is_main:
            return
        for name, value in values.items():
            try:
                self._add_scalar(name, value)
            except Exception as error:
                self._failed(error)
        if len(self._scalars) >= _FLUSH_ROWS or time.perf_counter() - self._flushed > _FLUSH_SECONDS:
            self._flush_scalars()

    def _add_scalar(self, name: str, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise ValueError(f"log({name}=...) takes one number, got {value.dtype} {tuple(value.shape)}")
            kept: float | Tensor = value.detach().clone()
        else:
            kept = float(value)
        self._scalars.append((self.step_count, time.time(), name, kept))

    def _flush_scalars(self) -> None:
        if self._scalars:
            self._recorder.scalars(self._scalars)
            self._scalars = []
        self._flushed = time.perf_counter()

    def event(self, kind: str, matrix: str | None, message: str) -> None:
        """Log that something happened at the current step: `rank_grown` and the name of a layer, say."""
        if not self._closed:
            self._recorder.event(self.step_count, kind, matrix, message)

    def measure(self) -> None:
        """Take a snapshot now, whatever the schedule says, unless this step has one."""
        if self._closed or self.step_count == self._measured_step:
            return
        try:
            self._processes.meet("measure() or close()")
            self._snapshot(time.perf_counter())
        except Exception as error:
            self._failed(error)

    def _snapshot(self, began: float) -> None:
        if not self._processes.on_main(self._has_room):
            return
        before = self.seconds
        shares = self._processes.gather(self._own_share())
        self._measured_step = self.step_count
        problem = self._processes.on_main(lambda: self._record(shares))
        self._snapshot_seconds += time.perf_counter() - began
        self._schedule.measured(self.step_count, self.seconds - before)
        if self._processes.is_main:
            self._add_scalar("tracker_seconds", self.seconds)
            self._add_scalar("tracker_overhead", self.overhead)
            self._flush_scalars()
        if self._strict:
            self._raise_problem(problem)

    def _own_share(self) -> Snapshot:
        """What this process measures. Where others wait for it, an error is told to them instead of raised."""
        try:
            return take_snapshot(self.step_count, self._matrices, self._initial, self._method, self._pool, self._share)
        except ProcessesLostError:
            raise
        except Exception as error:
            if self._processes.count == 1:
                raise
            if signature(error) not in self._reported:
                self._reported.add(signature(error))
                logger.exception("error in the tracker at step %d; training goes on", self.step_count)
            message = f"process {self._processes.number}: {type(error).__name__}: {error}"
            names = [self._matrices[place].name for place in self._share.held]
            return Snapshot(self.step_count, time.time(), problems=[("not_measured", name, message) for name in names])

    def _record(self, shares: Sequence[Snapshot]) -> Problem | None:
        """Hand the processes' shares to the recorder; the first of what could not be measured."""
        snapshot = merged(shares)
        self._recorder.snapshot(snapshot)
        return snapshot.problems[0] if snapshot.problems else None

    def _raise_problem(self, problem: Problem | None) -> None:
        """In strict mode: what could not be measured, on every process, or written, on the main one."""
        if problem:
            kind, matrix, message = problem
            raise RuntimeError(f"{kind} in {matrix} at step {self.step_count}: {message}")
        if self._recorder.failure:
            raise self._recorder.failure

    def _has_room(self) -> bool:
        """Whether another snapshot may wait for the disk; one that is far behind is waited for once, then not."""
        if self._recorder.backlog < _MAX_BACKLOG:
            self._stalled = False
            return True
        if not self._stalled and self._recorder.drain(_PATIENCE_SECONDS):
            return True
        self._stalled = True
        if "backlog" not in self._reported:
            self._reported.add("backlog")
            logger.warning("writing to %s is slower than the schedule: snapshots are left out", self.path)
        self._recorder.event(self.step_count, "snapshot_skipped", None, "earlier snapshots are still being written")
        return False

    def _failed(self, error: Exception) -> None:
        """Record an error of ours once and let the training go on; in strict mode raise it.

        What a process does by itself fails for itself, and what all do fails for all: they stay together. But without
        the others there is nothing more to measure.
        """
        if isinstance(error, ProcessesLostError) and not self._closed:
            logger.error("the tracker stops at step %d; training goes on: %s", self.step_count, error)
            self._close(str(error))
        if self._strict:
            raise error
        if not self._closed and signature(error) not in self._reported:
            self._reported.add(signature(error))
            text = "".join(traceback.format_exception(error))
            logger.error("error in the tracker at step %d; training goes on\n%s", self.step_count, text)
            self._recorder.event(self.step_count, "error", None, text)

    def flush(self) -> None:
        """Wait until everything so far is on disk (or has been refused by it): do so before you save a checkpoint."""
        if not self._closed:
            self._flush_scalars()
            self._recorder.drain()

    def summary(self) -> str:
        """The run as a terminal table: cost, and each matrix's rank beside its null rank."""
        from inrank_monitor.report import report_table
        from inrank_monitor.runs import open_run

        if not self._processes.is_main:
            return f"process {self._processes.number}: the main process writes {self.path}"

        self.flush()
        return report_table(open_run(self.path))

    def close(self, reason: str | None = None) -> None:
        """Take a last snapshot, write everything, mark the run finished, and let go of model and optimizer.

        Args:
            reason: why the training was interrupted, if it was.
        """
        if self._closed:
            return
        try:
            if reason is None or self._processes.count == 1:  # the others may not be there to measure with
                self.measure()
        finally:
            if not self._closed:  # it is if the others were not there
                self._close(reason)

    def _close(self, reason: str | None) -> None:
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self._handles = []
        atexit.unregister(self._at_exit)
        self._abandon.detach()
        self._flush_scalars()
        self._pool.close()
        _end_run(self._started, self._recorder, "interrupted" if reason else "finished", reason or "", self.step_count)
        self._processes.close(reason)
        self._matrices = ()
        self._share = self._started.share = Share([], {})
        self._initial = self._started.initial = no_weights()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(None if kind is None else kind.__name__)
        except Exception:
            if kind is None:
                raise
            logger.exception("error in the tracker's last snapshot; the loop's own error goes on")


def _recorder(
    started: StartedRun, matrices: Sequence[Matrix], options: RankOptions, tensorboard: bool, sinks: Sequence[Sink]
) -> Recorder | NoRecorder:
    if not started.processes.is_main:
        return NoRecorder()
    entries = started.info["matrices"]
    return Recorder(
        started.directory,
        started.segment,
        matrices,
        [entry["initial_norm"] for entry in entries],
        [entry["null_rank"] for entry in entries],
        options,
        started.running,
        started.step if started.resumed else None,
        tensorboard,
        sinks,
    )


def _end_run(
    started: StartedRun, recorder: Recorder | NoRecorder, status: str, reason: str, step: int | None = None
) -> None:
    """Write what is left and how the run ended; also when nobody closed the tracker."""
    if os.getpid() != recorder.process:  # a forked child, which has inherited everything but the run
        return
    lost = recorder.close()
    if lost:
        logger.error("%s: %d batches could not be written and are lost", started.directory, lost)
    started.info["ended"] = {"status": status, "reason": reason, "time": time.time(), "step": step}
    try:
        started.save()
    except OSError as error:
        logger.error("%s: run.json could not be closed: %s", started.directory, error)
    started.release()


def _close_at_exit(reference: weakref.ref[SpectrumTracker]) -> None:
    tracker = reference()
    if tracker is not None and os.getpid() == tracker._recorder.process:
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        reason = type(error).__name__ if error is not None else None
        if tracker._processes.count > 1:
            tracker._close(reason)  # a last snapshot would wait for processes that may have ended
        else:
            tracker.close(reason)
