"""How fast this machine is at what a snapshot does. A few seconds; the tracker's own functions are what is timed.

Each number is the median of a few runs, with as many workers at work as there will be. Nothing with a short side above
2048 is tried: what a plan says of it is extrapolated, products at the same speed, eigenvalues by the cube.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from inrank_monitor.matrices import find_matrices, initial_weights
from inrank_monitor.plan.costs import leading_work
from inrank_monitor.plan.quantities import Curve, PlannedMatrix, Rates, Speed, is_full
from inrank_monitor.plan.scenario import Scenario
from inrank_monitor.spectra import (
    SpectrumMethod,
    SpectrumPool,
    gram_matrix,
    krylov_sizes,
    scratch,
    singular_values_of_gram,
)

LARGEST = 2048
_SIDES, _ENTRIES = 4, 1 << 24  # how many sides are tried; of a matrix to read, subtract, or take leading values of
_SECONDS, _RUNS = 0.3, 7

Action = Callable[[int], object]  # of one worker, by number


def calibrate(scenario: Scenario, progress: bool = False) -> Rates:
    """Measure what a plan needs to know.

    Args:
        scenario: its matrices, counts, threads and device; on its `disk` a temporary folder is made and deleted.
        progress: show a bar on a terminal.

    Raises:
        OSError: that disk cannot be written to.
    """
    matrices, device, threads = scenario.model.planned, scenario.device, scenario.layout.threads
    with _threads(threads), tqdm(total=6, desc="calibrating", disable=None if progress else True) as bar:
        pools = {"pool": SpectrumPool(threads), "alone": SpectrumPool(1)}
        speeds: dict[str, Speed] = {}
        try:
            for name, pool in pools.items():
                if name == "alone" and threads == 1:
                    speeds[name] = speeds["pool"]
                    bar.update(2)
                    continue
                products, eigenvalues = _spectra(matrices, pool, device)
                bar.update()
                leading = {count: _leading(matrices, count, pool, device) for count in scenario.counts}
                speeds[name] = Speed(products, eigenvalues, leading, _update(matrices, pool, device))
                bar.update()
        finally:
            for pool in pools.values():
                pool.close()
        disk = _disk(matrices, device, scenario.disk)
        bar.update(2)
    return Rates(speeds["pool"], speeds["alone"], *disk, available_memory())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(action: Action, pool: SpectrumPool, device: torch.device) -> float:
    """Of one action while every worker of the pool does one; the median of some runs, the first not counted."""

    def run() -> float:
        began = time.perf_counter()
        list(pool.map(action, range(pool.workers)))
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - began

    first = run()
    runs = [run()] if first < 2 else [first]  # where one takes seconds, what a first run costs is no large part
    while sum(runs) < _SECONDS and len(runs) < _RUNS:
        runs.append(run())
    return statistics.median(runs)


def _spectra(matrices: Sequence[PlannedMatrix], pool: SpectrumPool, device: torch.device) -> tuple[Curve, Curve]:
    """Of Gram matrices and of their eigenvalues, at some of the sides that there are."""
    found = sorted({min(matrix.short, LARGEST) for matrix in matrices})
    sides = sorted({found[round(at * (len(found) - 1) / (_SIDES - 1))] for at in range(_SIDES)})
    products, eigenvalues = [], []
    for side in sides:
        cols = max(side, 1024)
        inputs = [torch.randn(side, cols, device=device) for _ in range(pool.workers)]
        grams = [gram_matrix(each) for each in inputs]
        seconds = _seconds(lambda number, inputs=inputs: gram_matrix(inputs[number]), pool, device)
        products.append(seconds / (side**2 * cols))
        seconds = _seconds(lambda number, grams=grams: singular_values_of_gram(grams[number]), pool, device)
        eigenvalues.append(seconds / side**3)
    return Curve(tuple(sides), tuple(products)), Curve(tuple(sides), tuple(eigenvalues))


def _leading(matrices: Sequence[PlannedMatrix], count: int, pool: SpectrumPool, device: torch.device) -> float:
    """Of a unit of work; 0 if all matrices are measured in full."""
    shapes = [(matrix.rows, matrix.cols) for matrix in matrices if not is_full(matrix.short, count)]
    if not shapes:
        return 0.0
    rows, cols = max(shapes, key=lambda shape: leading_work(shape[0], shape[1], count))
    block, blocks = krylov_sizes(count)
    least = 2 * block * blocks + 1  # where the full spectrum is no less work
    rows, cols = (min(side, max(LARGEST, least)) for side in (rows, cols))
    updates = [torch.randn(rows, cols, device=device) for _ in range(pool.workers)]
    method = SpectrumMethod(count)
    seconds = _seconds(lambda number: method.spectrum(updates[number]), pool, device)
    return seconds / leading_work(rows, cols, count)


def _update(matrices: Sequence[PlannedMatrix], pool: SpectrumPool, device: torch.device) -> float:
    """Of an entry of W_t − W0."""
    largest = max(matrices, key=lambda matrix: matrix.entries)
    rows = largest.rows
    cols = min(largest.cols, max(_ENTRIES // rows, 1))
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[largest.dtype]
    transposed = largest.cut == 1  # as transformers' Conv1D stores it
    stored = (cols, rows) if transposed else (rows, cols)
    values = [torch.ones(stored, dtype=dtype, device=device) for _ in range(pool.workers)]

    def subtract(number: int) -> Tensor:
        value = values[number].mT if transposed else values[number]
        return scratch(value.shape, torch.float32, device).copy_(value).sub_(value.to(torch.float32))

    return _seconds(subtract, pool, device) / (rows * cols)


def _disk(
    matrices: Sequence[PlannedMatrix], device: torch.device, directory: Path
) -> tuple[float, float, float, float]:
    """Seconds a byte: to fetch W0 from the cache, from the disk, to write it, and to write it until it is there."""
    side = int(min(max(matrix.entries for matrix in matrices), _ENTRIES) ** 0.5)
    weights = nn.Sequential(*(nn.Linear(side, side, bias=False, device=device) for _ in range(2)))
    found, _ = find_matrices(weights)
    size = 2 * side**2 * 4
    with tempfile.TemporaryDirectory(dir=directory, prefix=".inrank-plan-") as folder:
        path = Path(folder) / "weights"
        began = time.perf_counter()
        kept = initial_weights.take(found, "disk", path)
        written = time.perf_counter()
        file = os.open(path, os.O_RDWR)
        try:
            os.fsync(file)
            synced = time.perf_counter()
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)

        def fetch(_: int) -> None:
            for matrix in found:
                kept.of(matrix.parameter, device)  # noqa: F821 - deleted below, when this has run

        alone = SpectrumPool(1)
        reading = time.perf_counter()
        fetch(0)
        from_disk = time.perf_counter() - reading
        from_cache = _seconds(fetch, alone, device)
        del kept
    return from_cache / size, max(from_disk, from_cache) / size, (written - began) / size, (synced - began) / size


def available_memory() -> int | None:
    """Bytes that a process could still take; None if the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
