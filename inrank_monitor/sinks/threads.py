"""The threads that hand snapshots to sinks, so that a slow or dead logger holds up neither training nor log."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from inrank_monitor.sinks.interface import Sink
from inrank_monitor.sinks.measurements import Measurements

MOST_WAITING = 16  # snapshots in memory for one sink
CLOSING_SECONDS = 30.0
Report = Callable[[int, str, "Exception | None"], None]


class SinkThreads:
    """One thread a sink, so that none waits for another.

    Args:
        sinks: connected.
        report: called in whatever thread with the step, what went wrong, and the error that a sink raised, if any.
    """

    def __init__(self, sinks: Sequence[Sink], report: Report) -> None:
        self._threads = [_SinkThread(sink, report) for sink in sinks]
        self._report = report

    def __bool__(self) -> bool:
        return bool(self._threads)

    @property
    def seconds(self) -> float:
        """Processor time of all threads so far."""
        return sum(thread.seconds for thread in self._threads)

    def write(self, measurements: Measurements) -> None:
        """Hand over one snapshot; a sink does without it while 16 others wait for it."""
        for thread in self._threads:
            thread.write(measurements)

    def close(self) -> None:
        """Let the sinks have what waits and close them, within half a minute; what they went without is reported."""
        end = time.monotonic() + CLOSING_SECONDS
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
            if lost := thread.lost():
                self._report(thread.step, f"{thread.name}: {lost}; the log has every snapshot", None)


class _SinkThread:
    def __init__(self, sink: Sink, report: Report) -> None:
        self._sink, self._report = sink, report
        self.name = type(sink).__name__
        self.step = 0  # of the last snapshot that was handed over
        self.seconds = 0.0
        self._left_out = 0
        self._queue: queue.Queue[Measurements | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"inrank-{self.name}", daemon=True)
        self._thread.start()

    def lost(self) -> str:
        """What the sink went without, once it was stopped and waited for; empty if nothing."""
        found = [f"{self._left_out} snapshots were left out, while 16 others waited"] if self._left_out else []
        if self._thread.is_alive():
            waiting = self._queue.unfinished_tasks - 1  # one is the end itself
            found.append(f"it had not ended {CLOSING_SECONDS:.0f} s after the last, with {waiting} still to take")
        return ", ".join(found)

    def write(self, measurements: Measurements) -> None:
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(measurements)
            return
        if not self._left_out:
            self._report(measurements.step, f"{self.name} is slower than the schedule: snapshots are left out of it, "
                         "not of the log", None)  # fmt: skip
        self._left_out += 1

    def stop(self) -> None:
        self._queue.put(None)

    def join(self, timeout: float) -> None:
        if threading.current_thread() is not self._thread:  # it is where a tracker was dropped, and collected
            self._thread.join(timeout)

    def _work(self) -> None:
        while (measurements := self._queue.get()) is not None:
            self.step = measurements.step
            self._try("write", lambda found=measurements: self._sink.write(found))
            del measurements
            self._queue.task_done()
        self._try("close", self._sink.close)
        self._queue.task_done()

    def _try(self, what: str, action: Callable[[], None]) -> None:
        before = time.thread_time()
        try:
            action()
        except Exception as error:  # whatever it is, log and training go on: it is reported, never hidden
            self._report(self.step, f"{self.name}.{what} failed; log and training go on", error)
        finally:
            self.seconds += time.thread_time() - before
