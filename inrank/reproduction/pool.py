"""Trainings, each in a process of its own, several at a time; what was finished before is not done again.

A training is finished when its directory holds `training.json`, which is written last. So the whole can be killed at
any moment and taken up again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inrank.reproduction.experiment import ExperimentError, Outcome, Outcomes, Training
from inrank_monitor.runs import write_json

FINISHED_FILE, ERROR_FILE = "training.json", "error.txt"
_PRELOADED = [  # dynamo: the first optimizer of a process imports it, which takes seconds
    *("torch", "torch._dynamo", "inrank.reproduction.experiment"),
    *("inrank_monitor.tracking.tracker", "inrank_monitor.runs.run", "inrank_monitor.sinks.tensorboard"),
]
_CHECK_SECONDS = 1.0
_MODULE = re.compile(r"^(\w+\.)+(?=\w+:)")  # where an exception's class lives
Each = Callable[[Outcomes, Mapping[str, str]], None]


class Pool:
    """Runs trainings.

    Args:
        runs: directory of the run directories.
        device: `cpu` or `cuda`.
        jobs: trainings at a time; each gets its share of the cores.
        quiet: no progress bar.
    """

    def __init__(self, runs: Path, device: str, jobs: int, *, quiet: bool = False) -> None:
        self._runs, self._device, self._jobs, self._quiet = runs, device, jobs, quiet
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._failed: dict[str, str] = {}
        self._outcomes: dict[str, Outcome] = {}

    def run(self, trainings: Sequence[Training], each: Each = lambda *_: None) -> tuple[Outcomes, Mapping[str, str]]:
        """Run what is not finished yet, in their order as far as `after` allows.

        Args:
            trainings: one may be there several times.
            each: called with what is returned so far, at the beginning and after each end.

        Returns:
            The finished ones, and what went wrong with the others, each by name. A failed one does not stop the rest.

        Raises:
            ExperimentError: a directory holds something else; nothing was begun.
            KeyboardInterrupt: after every process has been ended.
        """
        waiting = []
        for training in unique(trainings):
            outcome = finished(self._runs / training.name, training)
            if outcome is None:
                waiting.append(training)
            else:
                self._outcomes[training.name] = outcome
        each(self._outcomes, self._failed)
        if not waiting:
            return self._outcomes, self._failed
        self._runs.mkdir(parents=True, exist_ok=True)
        total = len(waiting) + len(self._outcomes)
        bar = tqdm(total=total, initial=len(self._outcomes), unit="training", disable=self._quiet, smoothing=0)
        with bar, _few_threads(self._threads):
            self._run_all(waiting, bar, each)
        each(self._outcomes, self._failed)  # the last to fail may be those that waited for others
        return self._outcomes, self._failed

    def _run_all(self, waiting: list[Training], bar: Any, each: Each) -> None:
        context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            modules = {name for training in waiting for name in (training.run.__module__, *training.imports)}
            context.set_forkserver_preload([*_PRELOADED, *sorted(modules)])
        running: dict[Any, Training] = {}
        try:
            while waiting or running:
                while len(running) < self._jobs and (training := self._next(waiting, running)):
                    place = self._runs / training.name
                    process = context.Process(target=_work, args=(training, place, self._device, self._threads))
                    process.start()
                    running[process] = training
                    bar.set_postfix_str(", ".join(one.name for one in running.values()))
                for process in _ended(running):
                    self._end(running.pop(process), process.exitcode)
                    bar.update()
                    each(self._outcomes, self._failed)
                if sys.stderr.isatty():
                    bar.refresh()  # the clock goes on
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.join()

    def _next(self, waiting: list[Training], running: Mapping[Any, Training]) -> Training | None:
        """The first that may begin; one that waits for a failed one has failed."""
        for training in list(waiting):
            if lost := [name for name in training.after if name in self._failed]:
                self._failed[training.name] = f"{lost[0]} failed, which it needs"
                waiting.remove(training)
            elif all(name in self._outcomes for name in training.after):
                waiting.remove(training)
                return training
        if waiting and not running:
            names = ", ".join(waiting[0].after)
            raise ValueError(f"{waiting[0].name} waits for {names}, which nobody trains")
        return None

    def _end(self, training: Training, code: int | None) -> None:
        directory = self._runs / training.name
        outcome = finished(directory, training)
        if outcome is not None:
            self._outcomes[training.name] = outcome
        elif (directory / ERROR_FILE).is_file():
            last = (directory / ERROR_FILE).read_text(encoding="utf-8").strip().splitlines()[-1]
            self._failed[training.name] = f"{re.sub(_MODULE, '', last)} (see {directory / ERROR_FILE})"
        else:
            how = f"was ended by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
            self._failed[training.name] = f"its process {how}"


def unique(trainings: Sequence[Training]) -> list[Training]:
    """Each training once.

    Raises:
        ValueError: two that differ have one name.
    """
    found: dict[str, Training] = {}
    for training in trainings:
        if found.setdefault(training.name, training).settings != training.settings:
            raise ValueError(f"two trainings are named {training.name}")
    return list(found.values())


def finished(directory: Path, training: Training) -> Outcome | None:
    """What a training ended with, if it has.

    Raises:
        ExperimentError: the directory holds the end of another training.
    """
    try:
        content = json.loads((directory / FINISHED_FILE).read_text(encoding="utf-8"))
        settings, numbers, seconds = content["settings"], content["numbers"], float(content["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{directory / FINISHED_FILE} cannot be read ({error}); delete {directory}") from None
    expected = json.loads(json.dumps(training.settings))
    if settings != expected:
        names = sorted(n for n in {*settings, *expected} if settings.get(n) != expected.get(n))
        raise ExperimentError(
            f"{directory} holds a training that differs in {', '.join(names)}: choose another --output, or delete it"
        )
    return Outcome(training, directory, numbers, seconds)


def _ended(running: Mapping[Any, Training]) -> list[Any]:
    connection.wait([process.sentinel for process in running], timeout=_CHECK_SECONDS)
    return [process for process in running if process.exitcode is not None]


def _work(training: Training, directory: Path, device: str, threads: int) -> None:
    """In the process of its own: train, then say so on disk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ERROR_FILE).unlink(missing_ok=True)
    began = time.perf_counter()
    try:
        numbers = {name: float(value) for name, value in training.run(directory, training.settings, device).items()}
    except Exception:
        (directory / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    seconds = time.perf_counter() - began
    write_json(directory / FINISHED_FILE, {"settings": dict(training.settings), "numbers": numbers, "seconds": seconds})


def _end_with_parent() -> None:
    """A killed parent leaves no training behind that goes on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    """What the processes import reads these when it is imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names[:2], str(threads)) | {names[2]: "false"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
