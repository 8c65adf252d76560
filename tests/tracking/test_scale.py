"""Ten thousand matrices, a thousand snapshots: everything stays linear, and memory does not grow with steps."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers.run_files import info, measurement, scalar
from helpers.training import start, train
from torch import Tensor, nn

from inrank_monitor import attach, open_run
from inrank_monitor.runs.log import RUN_FILE, RunLog, write_json

LINEAR = 6.0  # four times as much may take so many times as long: start-up and noise included


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost processor time that has nothing to do with the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Least processor time of a few calls; all threads' together, so that other processes do not count."""
    taken = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        taken.append(time.process_time() - before)
    return min(taken)


class Experts(nn.Module):
    """A mixture of experts: a router and a stack of matrices in one parameter, as large models store them."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(12, experts)
        self.up = nn.Parameter(torch.randn(experts, 16, 12))

    def forward(self, inputs: Tensor) -> Tensor:
        share = self.router(inputs).softmax(-1)
        return torch.einsum("be,eoi,bi->bo", share, self.up, inputs)[:, :12]


def mixture(layers: int, experts: int) -> nn.Sequential:
    """layers · (experts + 1) matrices."""
    torch.manual_seed(0)
    return nn.Sequential(*(Experts(experts) for _ in range(layers)))


def linears(count: int) -> nn.ModuleList:
    """Many small matrices, each a parameter of its own."""
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(12, 16, bias=False) for _ in range(count))


def costs(model: nn.Module, directory: Path) -> dict[str, float]:
    """Processor seconds of each thing that is done with a run."""
    found: dict[str, float] = {}
    trackers = []

    def begin() -> None:
        for tracker in trackers:
            tracker.close()
        shutil.rmtree(directory, ignore_errors=True)
        trackers[:] = [attach(model, None, directory, every=1, leading=64, buffer_rank=8)]

    found["attach"] = seconds(begin)
    tracker = trackers[0]

    def measure() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01
        tracker.step()
        tracker.flush()

    found["measure"] = seconds(measure)
    run = open_run(directory)
    _ = run.measurements

    def refresh() -> None:
        measure()
        before = time.process_time()
        assert run.refresh()
        assert run.measurements["step"].max() == tracker.step_count
        times.append(time.process_time() - before)

    times: list[float] = []
    seconds(refresh)
    found["refresh"] = min(times)
    tracker.close()
    found["open"] = seconds(lambda: open_run(directory).measurements)
    found["summary"] = seconds(lambda: open_run(directory).summary())
    names = list(open_run(directory).matrices.index)
    run = open_run(directory)
    found["one spectrum"] = seconds(lambda: [run.singular_values(name) for name in names[:40]])
    assert (run.measurements["frobenius_norm"] > 0).all()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("make", [linears, lambda count: mixture(count // 250, 249)], ids=["linears", "experts"])
def test_ten_thousand_matrices_cost_four_times_what_2500_do(tmp_path: Path, make: Callable[[int], nn.Module]) -> None:
    costs(make(250), tmp_path / "warm")  # imports, caches
    small = costs(make(2500), tmp_path / "small")
    large = costs(make(10_000), tmp_path / "large")
    assert len(open_run(tmp_path / "large").matrices) == 10_000
    ratios = {name: large[name] / small[name] for name in small}
    spectrum = ratios.pop("one spectrum")
    assert {name: ratio for name, ratio in ratios.items() if ratio > LINEAR} == {}, (small, large)
    # reading one of many must not cost more the more there are: else reading all is quadratic
    assert spectrum < 2.5, (small["one spectrum"], large["one spectrum"])


@pytest.mark.slow
def test_the_experts_of_one_large_stack_are_read_in_linear_time(tmp_path: Path) -> None:
    small = costs(mixture(1, 1000), tmp_path / "small")
    large = costs(mixture(1, 4000), tmp_path / "large")
    assert large["measure"] / small["measure"] < LINEAR, (small, large)
    assert large["attach"] / small["attach"] < LINEAR, (small, large)


def log_of(directory: Path, snapshots: int, matrices: int) -> RunLog:
    """A log as a long run leaves it, written straight to disk."""
    directory.mkdir()
    names = tuple(f"layers.{place}.weight" for place in range(matrices))
    write_json(directory / RUN_FILE, info(names=names))
    log = RunLog(directory, 0)
    for step in range(1, snapshots + 1):
        log.append("measurements", measurement(step, rows=matrices, values=64))
        log.append("scalars", scalar(step))
    return log


def reading(directory: Path, snapshots: int, matrices: int = 48) -> dict[str, float]:
    log = log_of(directory, snapshots, matrices)
    found = {"open": seconds(lambda: open_run(directory).measurements)}
    found["summary"] = seconds(lambda: open_run(directory).summary())
    run = open_run(directory)
    found["spectra"] = seconds(lambda: [run.singular_values(name) for name in run.matrices.index])
    times: dict[str, list[float]] = {"refresh": [], "table": []}
    for step in range(snapshots + 1, snapshots + 6):
        log.append("measurements", measurement(step, rows=matrices, values=64))
        before = time.process_time()
        assert run.refresh()
        times["refresh"].append(time.process_time() - before)
        assert run.measurements["step"].iloc[-1] == step
        times["table"].append(time.process_time() - before)
    log.close()
    assert run.measurements["step"].nunique() == snapshots + 5
    assert run.singular_values("layers.7.weight").shape == (snapshots + 5, 64)
    return found | {name: min(values) for name, values in times.items()}


@pytest.mark.slow
@pytest.mark.alone
def test_a_log_of_a_thousand_snapshots_opens_and_refreshes_in_linear_time(tmp_path: Path) -> None:
    reading(tmp_path / "warm", 20)
    small, large = reading(tmp_path / "small", 250), reading(tmp_path / "large", 1000)
    ratios = {name: large[name] / max(small[name], 1e-3) for name in small}
    assert {name: ratio for name, ratio in ratios.items() if ratio > LINEAR} == {}, (small, large)
    assert large["open"] < 10  # seconds


@pytest.mark.slow
def test_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 60, 80, 60, tensorboard=True)
    process = psutil.Process()

    def go(steps: int, first: int) -> tuple[int, int]:
        for step in range(first, first + steps):
            train(model, optimizer, 1, first=step)
            tracker.log(loss=1.0)
            tracker.flush()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], process.memory_info().rss

    go(100, 0)
    tracemalloc.start()
    try:
        python_before, resident_before = go(50, 100)
        python_after, resident_after = go(500, 150)
    finally:
        tracemalloc.stop()
    tracker.close()
    spectra = 500 * 2 * 60 * 8  # bytes: what keeping every spectrum would take
    assert python_after - python_before < spectra / 3
    assert resident_after - resident_before < 16 << 20
    assert open_run(tmp_path / "run").measurements["step"].nunique() == 650


@pytest.mark.slow
def test_a_large_snapshot_is_no_copy_of_the_model(tmp_path: Path) -> None:
    # W0 is mapped from disk and updates are taken one at a time: far less than the model's size in memory
    size = 64  # MiB of weights
    model = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(size // 4))
    with attach(model, None, tmp_path / "run", every=1, leading=8, buffer_rank=4, tensorboard=False) as tracker:
        tracker.step()
        tracker.flush()
        peak = tracker_peak(tracker)
    assert peak < size / 2 * (1 << 20)


def tracker_peak(tracker: Any) -> int:
    """Most bytes of anonymous memory that a snapshot adds, sampled from another thread."""
    process = psutil.Process()
    done = threading.Event()

    def anonymous() -> int:
        found = process.memory_info()
        return int(found.rss - found.shared)

    gc.collect()
    base = anonymous()
    seen = [base]

    def sample() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    tracker.step()
    done.set()
    thread.join()
    return max(seen) - base


def test_the_helpers_write_what_they_say(tmp_path: Path) -> None:
    log_of(tmp_path / "run", 3, 5).close()
    run = open_run(tmp_path / "run")
    assert run.problems == []
    assert np.isfinite(run.singular_values("layers.4.weight").to_numpy()).all()
