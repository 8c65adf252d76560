"""SpectrumTracker: the object that a training loop holds. Wiring only.

An optimizer's step hook counts steps; the pace says when; a snapshot is taken between two steps, and the recorder's
thread writes it. Nothing of the model, the optimizer or the random state is ever written to.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.optim import Optimizer

from inrank_monitor.console import html_rows, never_raises
from inrank_monitor.distributed import ProcessesLostError
from inrank_monitor.loss_ranks import LossRanks, Start
from inrank_monitor.matrices import Matrix
from inrank_monitor.sinks import Sink
from inrank_monitor.tracking.by_loss import ByLoss
from inrank_monitor.tracking.closed import closed_copy
from inrank_monitor.tracking.ending import Ending
from inrank_monitor.tracking.holders import hold, let_go
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.once import Once
from inrank_monitor.tracking.optimizer_steps import OptimizerSteps
from inrank_monitor.tracking.pace import Pace, now
from inrank_monitor.tracking.recorder import Recorder
from inrank_monitor.tracking.scalars import Loggable, Scalars
from inrank_monitor.tracking.schedule import Schedule
from inrank_monitor.tracking.snapshot_calls import OnSnapshot, SnapshotCalls
from inrank_monitor.tracking.snapshots import Snapshots
from inrank_monitor.tracking.standing import Standing
from inrank_monitor.tracking.started_run import StartedRun
from inrank_monitor.tracking.summaries import no_summary, summary_of
from inrank_monitor.tracking.true_rows import TrueRows
from inrank_monitor.tracking.untraced import untraced
from inrank_monitor.tracking.update_spectra import Problem

logger = logging.getLogger("inrank_monitor")


class SpectrumTracker:
    """Watches one training; made by `attach`. Also a context manager, which closes it.

    Where several processes train together each has one, and all of them measure at the same steps; the main process's
    decides when, and writes. What takes part in a snapshot (`step`, `measure`, `close`) is called on every process.

    Args:
        started: the run that it writes.
        measuring: what this process measures.
        schedule: that says when.
        sinks: connected; they get the measurements too.
        began: when attaching did, by `pace.now`, in seconds.
        on_snapshot: the caller's function that gets each snapshot's table.

    Attributes:
        coverage: every parameter of the model: watched as which matrices, or skipped and why.
        step_count: optimizer steps since attach.
    """

    def __init__(
        self,
        started: StartedRun,
        measuring: Measuring,
        schedule: Schedule,
        sinks: Sequence[Sink],
        began: float,
        on_snapshot: OnSnapshot | None = None,
    ) -> None:
        self._started, self.coverage, self.step_count = started, started.watched.coverage, started.step
        self._strict, self._reported, self._closed = started.options.strict, Once(), False
        self._measuring, self._processes = measuring, measuring.share.processes
        self._recorder = Recorder(started, sinks) if self._processes.is_main else NoRecorder()
        self._pace = Pace(schedule, self._processes, (self._recorder, measuring.pool), began)
        self._scalars = Scalars(self._recorder, self._reported, self._strict)
        self._snapshots = Snapshots(measuring, self._recorder, self._reported, started.step)
        self._calls = SnapshotCalls(on_snapshot, started)
        self._standing = Standing(started.step)
        self._steps: OptimizerSteps | None = None
        self._rows = TrueRows(started, measuring, self._recorder)
        self._by_loss = ByLoss(started, measuring, self._recorder)
        self._ending = Ending(self, started, self._recorder, self._scalars)
        if self._processes.is_main:
            hold(self)
        if started.resumed:
            self._recorder.event(started.step, "resumed", None, f"taken up at step {started.step}")
        elif message := started.not_finite:
            logger.warning("%s: %s", started.directory, message)
            self._recorder.event(started.step, "non_finite_start", None, message)

    def count_steps_of(self, optimizers: Sequence[Optimizer]) -> None:
        """Count the steps that these take together, in the loop's order; none: those told by `step()`. For `attach`."""
        self._steps = OptimizerSteps(optimizers, self._rows.parameters, self)

    def take_in(self, matrices: Sequence[Matrix]) -> None:
        """Watch matrices of layers that were unfrozen before the run was taken up. For `attach`."""
        self._rows.take_in(matrices, self.step_count)

    @property
    def path(self) -> Path:
        """The run directory; another one from when a second process has begun to write there."""
        return self._started.directory

    @property
    def finished_steps(self) -> list[int]:
        """The steps whose snapshot this process has written to disk."""
        return list(self._recorder.finished_steps)

    @property
    def seconds(self) -> float:
        """What the tracker has cost so far, in seconds: attaching, measuring, and its thread's processor time."""
        return self._pace.seconds

    @property
    def overhead(self) -> float:
        """`seconds` as a share of the wall time since attach."""
        return self._pace.overhead

    @never_raises
    def _repr_html_(self) -> str:
        """What this object knows by itself: nothing is measured, waited for or read."""
        finished = self.finished_steps
        rows = [
            ("state", "closed" if self._closed else "watching"),
            ("optimizer steps", self.step_count),
            ("snapshots on disk", f"{len(finished)}, the last of step {finished[-1]}" if finished else "none yet"),
            ("parameters watched", f"{sum(row.watched for row in self.coverage)} of {len(self.coverage)}"),
            ("cost so far", f"{self.seconds:.2f} s, {self.overhead:.2%} of the time"),
        ]
        return html_rows(("tracker", str(self.path)), rows)

    @untraced
    def step(self) -> None:
        """Count one optimizer step, where no optimizer was given to `attach`.

        Raises:
            RuntimeError: an optimizer was given, whose hook counts its steps.
        """
        if self._steps and self._steps.counts:
            raise RuntimeError(f"step() at step {self.step_count}: the optimizer given to attach counts the steps")
        self.after_steps(1)

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer of the model is about to step. Its hook calls it."""
        if self._closed:
            return
        try:
            step = self._rows.before_step(self.step_count, optimizer)
            if step != self.step_count:
                self.step_count = self._snapshots.last_step = step
        except Exception as error:
            self.failed(error)

    def after_steps(self, count: int) -> None:
        """So many steps have ended, the last of them now. The optimizer's hook calls it."""
        if self._closed:
            return
        began = now()
        self.step_count += count
        self._ending.goes_on()
        try:
            self._rows.mark()
            self._pace.spend(began)
            began = now()
            if not self._pace.is_meeting(self.step_count):
                return
            if self._pace.is_due(self.step_count) and (
                not self._uncount() or self._pace.is_due(self.step_count)  # that of another step, it may be
            ):
                self._snapshot(began)
                self._rows.measured()
            self._pace.plan_meeting(self.step_count)
        except Exception as error:
            if self._snapshots.last_step != self.step_count:  # it cost time all the same; not tried at every step
                self._pace.spend(began)
                self._pace.measured(self.step_count)
            self.failed(error)
        self._hand_over()

    def _uncount(self) -> bool:
        """Take back steps that were counted and that a GradScaler had left out on a GPU; whether there were any."""
        too_many = self._steps.counted_too_many() if self._steps else 0
        self.step_count = max(self.step_count - too_many, self._snapshots.last_step)
        return too_many > 0

    def optimizer_changed(self, optimizer: Optimizer, message: str) -> None:
        """The steps of another optimizer count from now on. The optimizer's hook calls it."""
        logger.warning("step %d: %s", self.step_count, message)
        self.event("optimizer_changed", None, message)

    @untraced
    def log(self, values: Mapping[str, Loggable] | None = None, /, **more: Loggable) -> None:
        """Log scalars beside the spectra, at the current step; a tensor is not waited for.

        Args:
            values: numbers by name, `{"train/loss": loss}`: of Python or NumPy, tensors or arrays of one element; a
                mapping in it has its names behind a slash.
            more: the same as keywords, `loss=loss, lr=lr`.
        """
        if self._closed or not self._processes.is_main:
            return
        try:
            self._scalars.log(self.step_count, values, more)
        except Exception as error:
            self.failed(error)
        if self._standing.logged(self.step_count):
            self._say_standing()

    def _say_standing(self) -> None:
        """Say that values come and steps do not, unless the weights stand still too: then it is an evaluation."""
        step = self.step_count
        if self._closed or not self._processes.is_main:
            return
        if self._standing.is_at_start(step):
            stands = self._standing.calls > 0 or self._rows.trains()
        else:
            stands = self._rows.changed_here()
        if stands:
            itself = not (self._steps and self._steps.counts)
            self._standing.say(step, self._recorder, self.path, counts_itself=itself)

    @untraced
    def event(self, kind: str, matrix: str | None, message: str) -> None:
        """Log that something happened at the current step: `rank_grown` and the name of a layer, say."""
        if not self._closed:
            self._recorder.event(self.step_count, kind, matrix, message)

    @untraced
    def measure(self) -> None:
        """Take a snapshot now, whatever the schedule says, unless this step has one."""
        if self._closed:
            return
        try:
            self._uncount()
            if self.step_count == self._snapshots.last_step:
                return
            self._processes.meet("measure() or close()")
            if not (changed := self._rows.changed()):
                self._snapshot(now())
            elif self._reported.is_new(f"weights {self.step_count}"):
                self._rows.say_changed(self.step_count, changed)
        except Exception as error:
            self.failed(error)
        self._hand_over()

    def _hand_over(self) -> None:
        """Give the snapshot that was taken, if there is one, to the caller's function."""
        try:
            self._calls.hand_over()
        except Exception as error:
            self.failed(error, "on_snapshot")

    @untraced
    def ranks_by_loss(
        self,
        loss: Callable[[], Any],
        tolerance: float = 0.01,
        max_evaluations: int = 200,
        *,
        every: int | None = None,
        progress: bool | None = None,
    ) -> LossRanks | None:
        """Ranks that this loss confirms, now; written into the run. See `inrank_monitor.ranks_by_loss`.

        As all that a loop calls it does not raise (`strict=True` aside): an error is recorded. Training goes on to the
        bit as without it. Where several processes train it is refused.

        Args:
            loss: of no argument, returns one number, the same at every call.
            tolerance: how far it may rise.
            max_evaluations: of it.
            every: only at multiples of this many steps, once each, so that the loop may call it at every step.
            progress: show a bar. None: where standard error is a terminal.

        Returns:
            The result; None at other steps, once the tracker is closed, and after an error.
        """
        if self._closed:
            return None
        try:
            return self._by_loss.take(self, loss, tolerance, max_evaluations, every, progress)
        except Exception as error:
            self.failed(error, "ranks_by_loss")
            return None

    def start_of_updates(self) -> Start | Path:
        """Where its updates are counted from; the run's directory once it is closed. For `loss_ranks`."""
        return self.path if self._closed else self._by_loss.start(self.step_count)

    def _snapshot(self, began: float) -> None:
        step, pace = self.step_count, self._pace
        if not self._snapshots.has_room(step):
            return
        began += self._snapshots.wait_for_queue()
        problem = self._snapshots.take(step, wait=self._strict or self._calls.waits)
        try:
            self._calls.draw(self._snapshots.drawn)
        finally:
            pace.spend(began)
            pace.measured(step)
        if self._processes.is_main:
            self._scalars.add(step, "tracker_seconds", pace.seconds)
            self._scalars.add(step, "tracker_overhead", pace.overhead)
            self._scalars.flush()
        if self._strict:
            self._raise_problem(problem)

    def _raise_problem(self, problem: Problem | None) -> None:
        """In strict mode: what could not be measured, on every process, or written, on the main one."""
        if problem:
            kind, matrix, message = problem
            raise RuntimeError(f"{kind} in {matrix} at step {self.step_count}: {message}")
        if self._recorder.failure:
            raise self._recorder.failure

    def failed(self, error: Exception, context: str = "") -> None:
        """Record an error of ours once and let the training go on; in strict mode raise it.

        What a process does by itself fails for itself, and what all do fails for all: they stay together. But without
        the others there is nothing more to measure.
        """
        if isinstance(error, ProcessesLostError) and not self._closed:
            logger.error("the tracker stops at step %d; training goes on: %s", self.step_count, error)
            self._close(str(error))
        if self._strict:
            raise error
        if not self._closed and self._reported.is_new(error, context):
            text = "".join(traceback.format_exception(error))
            where = context or "the tracker"
            logger.error("error in %s at step %d; training goes on\n%s", where, self.step_count, text)
            self._recorder.event(self.step_count, "error", None, text)

    def flush(self) -> None:
        """Wait until everything so far is on disk (or has been refused by it): do so before you save a checkpoint."""
        if not self._closed:
            self._scalars.flush(wait=True)
            self._recorder.drain()

    def summary(self) -> str:
        """The run as a terminal table: cost, and each matrix's rank beside its null rank.

        Where it cannot be read it is a sentence that says why; in strict mode that raises.
        """
        if not self._processes.is_main:
            return f"process {self._processes.number}: the main process writes {self.path}\n"
        if self._standing.is_at_start(self.step_count):
            self._say_standing()
        try:
            self.flush()
            return summary_of(self.path)
        except Exception as error:
            self.failed(error, "summary")
            return no_summary(self.path, error)

    def __reduce__(self) -> tuple[Callable[..., SpectrumTracker], tuple[Any, ...]]:
        """A copy, also one that was saved, is a closed tracker: a run is written once."""
        return closed_copy(self)

    def close(self, reason: str | None = None) -> None:
        """Take a last snapshot, write everything, mark the run finished, and let go of model and optimizer.

        Args:
            reason: why the training was interrupted, if it was.
        """
        if self._closed:
            return
        if reason is None and self._standing.is_at_start(self.step_count):
            self._say_standing()
        try:
            if reason is None or self._processes.count == 1:  # the others may not be there to measure with
                self.measure()
        finally:
            if not self._closed:  # it is if the others were not there
                self._close(reason)

    def close_alone(self, reason: str | None) -> None:
        """As `close`, at the end of the process: others that may have ended are not waited for."""
        if self._processes.count > 1:
            self._close(reason)
        else:
            self.close(reason)

    def _close(self, reason: str | None) -> None:
        self._closed = True
        let_go(self)
        if self._steps:
            self._steps.remove()
        self._scalars.flush(wait=True)
        self._ending.end("interrupted" if reason else "finished", reason or "", self.step_count)
        self._processes.close(reason)
        self._rows.release()
        self._calls.release()
        self._measuring.release()

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
