"""`inrank reproduce`: the trainings of several experiments, each once, then what they say, on pages.

OUT/runs/NAME/              run directories, for `inrank-monitor dashboard OUT/runs`
OUT/EXPERIMENT/results.json what was found
OUT/EXPERIMENT/index.html   the same with figures
OUT/index.html              all of them
OUT/reproduction.md         the table of all, made from every results.json there
"""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from inrank.gpt2.results import RESULTS_FILE
from inrank.reproduction.catalogue import NAMES, experiments
from inrank.reproduction.document import document
from inrank.reproduction.experiment import Experiment, ExperimentError, Figure, Findings, Outcomes, Request
from inrank.reproduction.pages import collecting_page, experiment_page, verdict_counts
from inrank.reproduction.pool import Pool, finished
from inrank_monitor.console import typed
from inrank_monitor.report import write_text
from inrank_monitor.runs import write_json

REQUEST_FILE, PAGE_FILE, FIGURE_FILE, DOCUMENT_FILE = "request.json", "index.html", "figure.json", "reproduction.md"
_WIDTH = 100  # of a line on the terminal


def reproduce(
    request: Request, names: Sequence[str], *, jobs: int, quiet: bool = False, document_file: Path | None = None
) -> int:
    """Train what is missing; analyse each experiment as soon as its trainings have ended, and write its page.

    Args:
        request: scale, seeds, where.
        names: of experiments.
        jobs: trainings at a time.
        quiet: print only errors.
        document_file: where else the table of all goes.

    Returns:
        0; 1 if a training failed; 130 if interrupted, with all that was finished kept.

    Raises:
        ExperimentError: no such experiment, or `request.out` holds results of another request; nothing was begun.
    """
    chosen = experiments(names)
    _check_request(request)
    waiting = {one: list(one.trainings(request)) for one in chosen}
    every = [training for trainings in waiting.values() for training in trainings]
    lost: list[str] = []

    def analyse_what_is_ready(outcomes: Outcomes, failed: Mapping[str, str]) -> None:
        ended = {*outcomes, *failed}
        ready = [one for one, trainings in waiting.items() if ended.issuperset(t.name for t in trainings)]
        for one in ready:
            trainings = [training.name for training in waiting.pop(one)]
            if broken := next((name for name in trainings if name in failed), None):
                tqdm.write(f"inrank reproduce: {one.name}: {broken}: {failed[broken]}", file=sys.stderr)
                lost.append(one.name)
            else:
                _analyse(one, request, {name: outcomes[name] for name in trainings}, len(trainings), quiet)
        if ready:
            write_pages(request.out, document_file)

    try:
        Pool(request.runs, request.device, jobs, quiet=quiet).run(every, analyse_what_is_ready)
    except KeyboardInterrupt:
        print("\nStopped; what is finished is kept. The same command goes on.", file=sys.stderr)
        return 130
    if not quiet:
        print(f"\nAll on one page  {request.out / PAGE_FILE}")
        if every:
            print(f"Dashboard        {typed('inrank-monitor', 'dashboard', request.runs)}")
    return 1 if lost else 0


def write_finished(
    request: Request, names: Sequence[str], *, quiet: bool = False, document_file: Path | None = None
) -> int:
    """Train nothing: write the pages of what is finished, however little that is.

    Returns:
        0.

    Raises:
        ExperimentError: an experiment needs all its trainings, or none of one's is finished; or as `reproduce`.
    """
    found = {}
    for one in experiments(names):
        if not one.partial:
            raise ExperimentError(f"--finished is for experiments that can be judged in part, not for {one.name}")
        planned = one.trainings(request)
        ended = {training.name: finished(request.runs / training.name, training) for training in planned}
        found[one] = {name: outcome for name, outcome in ended.items() if outcome is not None}, len(planned)
        if not found[one][0]:
            raise ExperimentError(f"--finished: no training of {one.name} is finished in {request.runs}")
    _check_request(request)
    for one, (outcomes, planned_count) in found.items():
        _analyse(one, request, outcomes, planned_count, quiet)
    write_pages(request.out, document_file)
    return 0


def _check_request(request: Request) -> None:
    """One directory holds results of one request: seeds may be added, nothing else may change."""
    file = request.out / REQUEST_FILE
    same = {name: value for name, value in asdict(request).items() if name in ("scale", "text", "test_text")}
    same["text"] = list(request.text)
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if names := [name for name in same if before.get(name) != same[name]]:
            name = names[0]
            raise ExperimentError(
                f"{request.out} holds results with {name} {before.get(name)!r}, asked for {same[name]!r}: "
                "choose another --output"
            )
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        write_json(file, same)
    except OSError as error:
        raise ExperimentError(f"--output must be a directory that can be written, got {request.out}: {error}") from None


def _analyse(one: Experiment, request: Request, outcomes: Outcomes, planned: int, quiet: bool) -> None:
    """Write an experiment's results and page; of so many planned trainings those have ended well that it needs."""
    began = time.perf_counter()
    with threadpool_limits(limits=1):  # trainings go on beside it, and BLAS threads that wait for each other block all
        findings = one.analyse(request, outcomes)
    results = _results(one, request, outcomes, findings, time.perf_counter() - began) | {"planned": planned}
    directory = request.out / one.name
    directory.mkdir(exist_ok=True)
    write_text(directory / PAGE_FILE, experiment_page(results, findings.figures))
    if findings.figures:
        write_text(directory / FIGURE_FILE, findings.figures[0].as_json())
    write_json(directory / RESULTS_FILE, results)
    if not quiet:
        lines = [findings.reading, verdict_counts([results]), str(directory / PAGE_FILE)]
        wrapped = [textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="  ") for line in lines]
        tqdm.write("\n".join(["", f"{one.name}: {one.title}", *wrapped]))  # above the bar


def _results(
    one: Experiment, request: Request, outcomes: Outcomes, findings: Findings, seconds: float
) -> dict[str, Any]:
    return {
        "experiment": one.name,
        "title": one.title,
        "shown_in_paper": one.paper,
        "scale": request.scale,
        "seeds": list(request.seeds),
        "machine": machine(request.device),
        "runs": list(outcomes),
        "watched": one.watched,
        "seconds": seconds + sum(outcome.seconds for outcome in outcomes.values()),
        "finished": time.time(),
        **findings.as_json(),
    }


def machine(device: str) -> str:
    """What the numbers were made on: `2 CPU cores (x86_64), torch 2.13.0`."""
    where = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if device != "cpu":
        where = torch.cuda.get_device_name(torch.device(device))
    return f"{where}, torch {version('torch')}"


def write_pages(out: Path, document_file: Path | None = None) -> None:
    """The page and the table of all results that lie in a directory.

    Raises:
        ExperimentError: a results.json there cannot be read.
    """
    every = read_results(out)
    files = {results["experiment"]: out / results["experiment"] / FIGURE_FILE for results in every}
    figures = {name: Figure.of_json(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    write_text(out / PAGE_FILE, collecting_page(every, figures))
    text = document(every)
    write_text(out / DOCUMENT_FILE, text)
    if document_file is not None:
        write_text(document_file, text)


def read_results(out: Path) -> list[dict[str, Any]]:
    """What every experiment found, in the paper's order.

    Raises:
        ExperimentError: a file cannot be read.
    """
    found = []
    for file in (out / name / RESULTS_FILE for name in NAMES):
        if file.is_file():
            try:
                found.append(json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise ExperimentError(
                    f"{file} cannot be read ({error}): delete it, the command makes it again"
                ) from None
    return found
