"""What signal rank and its share add to a snapshot of GPT-2 small's 48 matrices.

    python benchmarks/bench_metrics.py [--layers 12] [--rounds 9]

A snapshot is the spectra of all updates, then the columns of its record batch; the latter with and without the two, in
turns. Medians over the rounds; the goal is at most 3 % of the snapshot. The first round, which fills the caches of the
shapes, is shown apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from inrank_monitor.matrices import find_matrices
from inrank_monitor.runs import RunOptions
from inrank_monitor.spectra import Spectrum, SpectrumPool, singular_values
from inrank_monitor.tracking import columns
from inrank_monitor.tracking.snapshot import Snapshot

GOAL = 0.03
SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))


def without(metrics: dict[str, np.ndarray], values: np.ndarray, *_: Any) -> None:
    """In place of `_add_signal`: columns that hold nothing."""
    metrics["signal_rank"] = metrics["signal_share"] = np.full(len(values), np.nan)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spectrum(matrix: torch.Tensor) -> Spectrum:
    """As a tracker takes it."""
    values = singular_values(matrix)
    return Spectrum(values, 0.0, float(torch.linalg.vector_norm(values)))


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(cols, rows, bias=False) for _ in range(arguments.layers) for rows, cols in SHAPES)
    matrices = find_matrices(model)[0]
    updates = [parameter.detach() for parameter in model.parameters()]
    pool = SpectrumPool()
    measured: list[Spectrum] = []
    taken = [seconds(lambda: measured.__setitem__(slice(None), pool.map(spectrum, updates))) for _ in range(3)]
    pool.close()
    count = len(matrices)
    snapshot = Snapshot(1, 0.0, list(range(count)), measured, [(None, None)] * count)

    def draw() -> None:
        columns.metric_columns(snapshot, matrices, [1.0] * count, RunOptions(), np.zeros(count, dtype=np.int64))

    with patch.object(columns, "_add_signal", without):
        draw()
    first = seconds(draw)
    pairs = []
    for _ in range(arguments.rounds):
        with patch.object(columns, "_add_signal", without):
            plain = seconds(draw)
        pairs.append((plain, seconds(draw)))
    before, added = statistics.median(taken), statistics.median(both - plain for plain, both in pairs)
    drawn = statistics.median(plain for plain, _ in pairs)
    share = added / (before + drawn)
    threads = torch.get_num_threads()
    print(f"{count} matrices, {threads} threads: spectra {before:.2f} s, other metrics {1e3 * drawn:.1f} ms")
    print(f"signal rank and share: {1e3 * added:.2f} ms a snapshot (the first: {1e3 * first:.1f} ms with the others)")
    print(f"added: {share:.3%}, goal {GOAL:.0%} {'met' if share <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
