"""What a step costs that takes no snapshot: the hooks, the count and the checks of the weights, in microseconds.

    python benchmarks/bench_checks.py [--steps 2000] [--rounds 9]

The optimizer does nothing here, so that its `step()` is the hooks alone: without a tracker, with one, without, with, in
turns. The tracker's schedule never measures. Each round is the mean over its steps; medians over the rounds are shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inrank_monitor import attach


class Nothing(torch.optim.Optimizer):
    """Steps without touching a weight."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def mlp() -> nn.Module:
    """3 matrices."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def gpt2_small() -> nn.Module:
    """The shapes' names of GPT-2 small, 12 layers of 4 weights; small ones, since nothing is computed."""
    layer = [(96, 32), (32, 32), (128, 32), (32, 128)]
    return nn.ModuleList(nn.Linear(cols, rows) for _ in range(12) for rows, cols in layer)


def large() -> nn.Module:
    """A model of 32 layers of 7 weights."""
    return nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(32 * 7))


def microseconds(optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Mean time of a step."""
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    return (time.perf_counter() - began) / steps * 1e6


def compare(make: Callable[[], nn.Module], steps: int, rounds: int) -> tuple[int, float, float]:
    """Matrices, and the medians without and with a tracker."""
    torch.manual_seed(0)
    model, twin = make(), make()
    plain, watched = Nothing(twin.parameters()), Nothing(model.parameters())
    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            times[False].append(microseconds(plain, steps))
            run = Path(folder) / str(len(times[True]))
            with attach(model, watched, run, schedule=lambda step: False, tensorboard=False) as tracker:
                microseconds(watched, 10)
                times[True].append(microseconds(watched, steps))
                matrices = sum(row.watched for row in tracker.coverage)
                tracker.step_count = 0  # nothing to measure at the end
                tracker._snapshots.last_step = 0
    return matrices, statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':<12} {'matrices':>8} {'without':>9} {'with':>9} {'a step costs':>13}")
    for make in (mlp, gpt2_small, large):
        matrices, without, watched = compare(make, arguments.steps, arguments.rounds)
        line = f"{make.__name__:<12} {matrices:>8} {without:>6.1f} µs {watched:>6.1f} µs {watched - without:>10.1f} µs"
        print(line)


if __name__ == "__main__":
    main()
