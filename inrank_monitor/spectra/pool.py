"""Workers with one BLAS thread each: LAPACK over several waits at barriers, and one busy process beside it is enough
to make that twice as slow, and single calls thirty times.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_T = TypeVar("_T")
_R = TypeVar("_R")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SpectrumPool:
    """Computes spectra of many matrices, one a core.

    Args:
        workers: how many at a time. None: PyTorch's threads, at most one a core.

    Attributes:
        workers: so many.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or min(torch.get_num_threads(), cores())
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """What `submit` has taken beside the loop: processor time, spread over the workers."""
        return self._seconds / self.workers

    def map(self, measure: Callable[[_T], _R], items: Iterable[_T], here: bool = False) -> Iterator[_R]:
        """`measure` of every item, in order; the first error is raised where its result is asked for.

        Whatever ends it, none of the workers still measures when it has ended.

        Args:
            measure: of one item.
            items: all of them.
            here: in the caller's thread, with all that thread has: an accelerator's stream, several BLAS threads.
        """
        items = list(items)
        if here or not items or (torch.get_num_threads() == 1 and min(self.workers, len(items)) == 1):
            return map(measure, items)
        try:
            executor = self._start()
            return _results([executor.submit(measure, item) for item in items])
        except RuntimeError:  # the interpreter is shutting down and takes no new threads
            return map(measure, items)

    def submit(self, measure: Callable[[], _R], answer: Future[_R]) -> None:
        """Do it in a worker, beside the loop, and tell the answer."""

        def run() -> None:
            began = time.thread_time()
            try:
                answer.set_result(measure())
            except BaseException as error:
                answer.set_exception(error)
            finally:
                with self._lock:
                    self._seconds += time.thread_time() - began

        try:
            self._start().submit(run)
        except RuntimeError:  # as above
            run()

    def _start(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = _one_blas_thread_each(self.workers)
            return self._executor

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None


def _results(futures: list[Future[_R]]) -> Iterator[_R]:
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def _one_blas_thread_each(workers: int) -> ThreadPoolExecutor:
    # torch.set_num_threads acts on the calling thread but is also what threads started later begin with, so the number
    # is put back once every worker has its own: each waits here until all have started.
    threads, started = torch.get_num_threads(), threading.Barrier(workers)
    executor = ThreadPoolExecutor(workers, "inrank-spectrum", torch.set_num_threads, (1,))
    try:
        # Asking for the number is what makes a new thread take it over from the shared one.
        list(executor.map(lambda _: (started.wait(), torch.get_num_threads()), range(workers)))
    finally:
        torch.set_num_threads(threads)
    return executor
