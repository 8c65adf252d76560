"""The thread that turns snapshots into rows and writes them, so that a slow disk never holds up the training loop.

One thread, one queue, jobs in order. An error stays here: it is reported once and kept; a write that the disk refused
is tried again with the next one.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from inrank_monitor.matrices.roles import role_of
from inrank_monitor.runs import TENSORBOARD_DIR, OtherWriterError, RunLog, SegmentTakenError, storable
from inrank_monitor.sinks import EventFile, Measurements, Sink, SinkThreads, import_protocol
from inrank_monitor.tracking.beside_columns import beside_columns, means
from inrank_monitor.tracking.columns import metric_columns
from inrank_monitor.tracking.once import Once
from inrank_monitor.tracking.snapshot import Snapshot, one_event_a_kind
from inrank_monitor.tracking.started_run import StartedRun
from inrank_monitor.tracking.watching import Watches

logger = logging.getLogger("inrank_monitor")
ScalarRow = tuple[int, float, str, "float | Tensor"]
Drawn = Future[dict[str, Any]]


class Recorder:
    """Writes one run in the background.

    Args:
        started: the run, which this process may write.
        sinks: connected; each gets the snapshots in a thread of its own.
    """

    def __init__(self, started: StartedRun, sinks: Sequence[Sink] = ()) -> None:
        self.process = os.getpid()
        self._started, self._matrices = started, started.watched.matrices
        self._norms, self._null_ranks = started.norms, started.null_ranks
        self._watches = Watches(self._matrices, self._norms)
        self._log = RunLog(started.directory, started.segment, claim=started.claim)
        self._event_file: EventFile | None = None
        self._tensorboard = bool(started.options.tensorboard)
        self.finished_steps: list[int] = []
        self.failure: BaseException | None = None  # the first one
        self.backlog = 0
        self._seconds = 0.0
        self._step = started.step
        self._reported = Once()
        self._notes: list[tuple[str, str | None, str]] = []  # what went wrong here, to be recorded once it can be
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._sinks = SinkThreads(sinks, self._report_sink)
        # A daemon, so that a script that forgets to close ends; the exit handler of the tracker closes it in time.
        self._thread = threading.Thread(target=self._work, name="inrank-recorder", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Processor time of the recorder's thread and of the sinks'."""
        return self._seconds + self._sinks.seconds

    def snapshot(self, taken: Callable[[], Snapshot]) -> Drawn:
        """Draw the metrics of a snapshot and write them; the columns of its rows, once they are drawn.

        Args:
            taken: asked for it in this thread, which waits for what is still solved beside the loop.
        """
        self.backlog += 1
        drawn = Drawn()
        self._jobs.put(lambda: self._snapshot(taken, drawn))
        return drawn

    def look_again(self) -> None:
        """The run watches other matrices than it did, or their W0 is another."""
        self._jobs.put(self._look_again)

    def scalars(self, rows: Sequence[ScalarRow]) -> None:
        """Write (step, unix seconds, name, value) rows; none of the values lies on an accelerator."""
        self._jobs.put(lambda: self._scalars(rows))

    def loss_ranks(self, columns: Mapping[str, Sequence[Any]], curve: Mapping[str, Sequence[Any]]) -> None:
        """Write ranks by loss, a row a matrix, and what was evaluated for them."""
        for table, rows in (("loss_ranks", columns), ("loss_curve", curve)):
            self._jobs.put(partial(self._log.append, table, rows))

    def event(self, step: int, kind: str, matrix: str | None, message: str) -> None:
        """Write one event."""
        now = time.time()
        self._jobs.put(lambda: self._events(step, now, [(kind, matrix, message)]))

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over so far has been dealt with; whether that was in time."""
        if os.getpid() != self.process:  # a forked child has no such thread
            return False
        done = threading.Event()
        self._jobs.put(done.set)
        return done.wait(timeout)

    def close(self) -> int:
        """Write what is left, end the thread; how many batches could not be written."""
        if threading.current_thread() is self._thread:  # the tracker was dropped, and collected here
            while not self._jobs.empty():
                if job := self._jobs.get():
                    self._do(job)
            self._sinks.close()
            self._last()
            self._jobs.put(None)
        else:
            if self._sinks:
                self.drain()  # they get what the log has
                self._sinks.close()
            self._jobs.put(self._last)
            self._jobs.put(None)
            self._thread.join()
        self._matrices = ()
        return self._log.waiting + self._log.dropped

    def _work(self) -> None:
        try:
            if self._tensorboard:
                import_protocol()
        except ImportError as error:
            self._tensorboard = False
            self._failed(error)
        while (job := self._jobs.get()) is not None:
            self._do(job)
            del job

    def _do(self, job: Callable[[], None]) -> None:
        before = time.thread_time()
        try:
            try:
                job()
                self._write_notes()
            except (OtherWriterError, SegmentTakenError) as error:
                self._go_elsewhere(error)
        except Exception as error:  # whatever it is, training goes on: it is reported, never hidden
            self._failed(error)
        finally:
            self._seconds += time.thread_time() - before

    def _go_elsewhere(self, error: OtherWriterError | SegmentTakenError) -> None:
        """Another process writes the directory: nothing more is written there, and nothing is lost."""
        started = self._started
        if isinstance(error, SegmentTakenError):
            started.take_next_segment()
        else:
            logger.error("%s", error)
            started.go_elsewhere()
            self._notes.append(("other_writer", None, f"{error}; this run goes on in {started.directory}"))
            logger.error("this run goes on in %s", started.directory)
            if self._event_file is not None:
                self._event_file.close()
                self._event_file = None
        self._log.go_on_in(started.directory, started.segment, started.claim)
        self._log.flush()
        self._write_notes()

    def _failed(self, error: Exception) -> None:
        self.failure = self.failure or error
        if not self._reported.is_new(error):
            return
        if isinstance(error, OSError):
            self._notes.append(("write_failed", None, f"{error}; kept, and tried again until it worked"))
            logger.warning("%s: %s; what is unwritten is kept and tried again", self._started.directory, error)
        else:
            text = "".join(traceback.format_exception(error))
            self._notes.append(("error", None, text))
            logger.error("error in the tracker's thread; training goes on\n%s", text)

    def _report_sink(self, step: int, message: str, error: Exception | None) -> None:
        """Record what went wrong with a sink, in its thread: each kind of error once."""
        if error is None:
            logger.warning("%s: %s", self._started.directory, message)
            self.event(step, "sink_behind", None, message)
            return
        self.failure = self.failure or error
        if self._reported.is_new(error, message):
            text = f"{message}\n{''.join(traceback.format_exception(error))}"
            logger.error("%s", text)
            self.event(step, "error", None, text)

    def _write_notes(self) -> None:
        notes, self._notes = self._notes, []
        self._events(self._step, time.time(), notes)

    def _snapshot(self, taken: Callable[[], Snapshot], drawn: Drawn) -> None:
        try:
            snapshot = taken()
            self._step = snapshot.step
            run = self._started
            columns = metric_columns(snapshot, self._matrices, self._norms, run.options, run.running)
            drawn.set_result(columns)
            try:
                if snapshot.places:  # what waits for the disk must not keep the snapshot itself alive
                    self._log.append("measurements", columns, partial(self.finished_steps.append, snapshot.step))
                self._beside(snapshot)
            finally:
                names = [matrix.name for matrix in self._matrices]
                found = Measurements.of(snapshot.step, snapshot.time, columns, names, self._null_ranks)
                if found.names:
                    self._sinks.write(found)
                alarms = self._watches.look(snapshot, columns)
                self._events(snapshot.step, snapshot.time, [*snapshot.events(), *one_event_a_kind(alarms)])
                self._to_tensorboard(lambda file: file.add_measurements(found))
        except Exception as error:
            if not drawn.done():
                drawn.set_exception(error)
            raise
        finally:
            self.backlog -= 1

    def _beside(self, snapshot: Snapshot) -> None:
        """Write what was measured beside the updates, a batch a table."""
        sides = {place: min(matrix.rows, matrix.cols) for place, matrix in enumerate(self._matrices)}
        tables = beside_columns(snapshot, sides)
        for table, columns in tables.items():
            self._log.append(table, columns)
        if tables:
            rows = [(snapshot.step, snapshot.time, tag, value) for tag, value in means(tables).items()]
            self._to_tensorboard(lambda file: file.add_scalars(rows))

    def _look_again(self) -> None:
        run = self._started
        self._matrices, self._norms, self._null_ranks = run.watched.matrices, run.norms, run.null_ranks
        run.running = np.append(run.running, np.zeros(len(self._matrices) - len(run.running), dtype=run.running.dtype))
        self._watches = Watches(self._matrices, self._norms)
        if self._event_file is not None:
            self._event_file.names = [matrix.name for matrix in self._matrices]

    def _scalars(self, rows: Sequence[ScalarRow]) -> None:
        values = []
        for step, when, name, value in rows:
            try:
                values.append((step, when, storable(name), float(value)))
            except Exception as error:  # a value that its device cannot give costs itself alone
                self._lost(step, name, error)
        if not values:
            return
        names = ("step", "time", "name", "value")
        try:
            self._log.append("scalars", dict(zip(names, map(list, zip(*values, strict=True)), strict=True)))
        finally:
            self._to_tensorboard(lambda file: file.add_scalars(values))

    def _lost(self, step: int, name: str, error: Exception) -> None:
        """Say which scalar could not be read: each name once."""
        self.failure = self.failure or error
        if self._reported.is_new("value", name):
            message = f"log({name}=...) could not be read at step {step}: {type(error).__name__}: {error}"
            self._notes.append(("error", None, message))
            logger.error("%s; training goes on", message)

    def _events(self, step: int, when: float, rows: Sequence[tuple[str, str | None, str]]) -> None:
        if rows:
            kept = [
                (storable(kind), None if matrix is None else storable(matrix), storable(message))
                for kind, matrix, message in rows
            ]
            kinds, matrices, messages = zip(*kept, strict=True)
            columns: dict[str, Any] = {"kind": kinds, "matrix": matrices, "message": messages}
            self._log.append("events", {"step": [step] * len(rows), "time": [when] * len(rows), **columns})

    def _to_tensorboard(self, write: Callable[[EventFile], None]) -> None:
        """Write to the event file; it is given up after an error, since the log has everything."""
        if not self._tensorboard:
            return
        try:
            if self._event_file is None:
                self._event_file = EventFile(
                    self._started.directory / TENSORBOARD_DIR,
                    [matrix.name for matrix in self._matrices],
                    self._started.resume_step,
                    {matrix.name: role_of(matrix.name, matrix.part, matrix.kind) for matrix in self._matrices},
                    every_matrix=self._started.options.tensorboard == "matrices",
                )
            write(self._event_file)
        except Exception as error:
            self._tensorboard = isinstance(error, OSError)  # a full disk may have room again
            raise

    def _last(self) -> None:
        self._do(self._log.flush)
        self._log.close()
        if self._event_file is not None:
            self._event_file.close()
