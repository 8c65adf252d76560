"""What the tracker costs: wall time of training with it over wall time without, automatic schedule, in pairs.

    python benchmarks/bench_overhead.py [--pairs 5] [--steps 300] [--only gpt2|mlp]
    python benchmarks/bench_overhead.py --seconds 600 --pairs 3     # ten minutes each side: an hour a model
    python benchmarks/bench_overhead.py --seconds 120 --pairs 5     # the early series' share: 20 minutes a model

With --seconds both sides take the steps that the side without the tracker needs to last so long; a pair takes twice
that. The promise of 1 % is of ten minutes and more: shorter runs pay for their early series.
Both trainings of a pair advance in turns, a block of steps each, so that a machine whose speed drifts slows both alike;
each in a process of its own, so that neither meets a heap that the other has cut up (in one process that alone moved
the ratio by five per cent). What the tracker does at attach, in its thread, and at close counts; only the import of its
libraries does not. The schedule is given the time of its own training, as if it had the machine to itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from inrank_monitor import attach
from inrank_monitor.tracking import Automatic

BLOCK = 10


def gpt2() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The demo's GPT-2 (4 layers, width 256), 8 sequences of 128 tokens a step."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 2048, "n_positions": 128, "n_embd": 256, "n_layer": 4, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    tokens = torch.randint(2048, (8, 129))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    return model, lambda model: nn.functional.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets)


def mlp() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A 3-layer perceptron, 784-1024-1024-10, 4096 samples a step."""
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    inputs, labels = torch.randn(4096, 784), torch.randint(10, (4096,))
    return model, lambda model: nn.functional.cross_entropy(model(inputs), labels)


class Side:
    """One training of a pair, and the seconds that it took."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]], run: Path | None) -> None:
        torch.manual_seed(0)
        self.model, self.loss = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.seconds, self.tracker = 0.0, None
        if run is not None:
            with self:
                self.tracker = attach(self.model, self.optimizer, run, schedule=OwnTime(self))

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self.began

    def advance(self, steps: int) -> None:
        """Train for a block of steps; what the tracker's thread has begun is waited for, and counts."""
        with self:
            for _ in range(steps):
                loss = self.loss(self.model)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.tracker:
                    self.tracker.log(loss=loss)
            if self.tracker:
                self.tracker.flush()

    def close(self) -> None:
        """The last snapshot and the end of the run."""
        if self.tracker:
            with self:
                self.tracker.close()


class OwnTime(Automatic):
    """The automatic schedule on the clock of one side."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side

    def due(self, step: int, elapsed: float, spent: float) -> bool:
        """As ever, with the seconds of this side alone."""
        return super().due(step, self.side.seconds + time.perf_counter() - self.side.began, spent)


def train(name: str, run: Path | None, pipe: Connection) -> None:
    """One side in a process of its own: advance by as many steps as the pipe says, 0 to close; answer the seconds."""
    with tempfile.TemporaryDirectory() as scratch, attach(nn.Linear(2, 2), None, Path(scratch) / "run") as first:
        first.step()  # the libraries are imported before the clock starts
    side = Side(MODELS[name], run)
    pipe.send(side.seconds)
    while steps := pipe.recv():
        side.advance(steps)
        pipe.send(side.seconds)
    side.close()
    snapshots = len(side.tracker.finished_steps) if side.tracker else 0
    pipe.send((side.seconds, snapshots))


@dataclass(frozen=True)
class Pair:
    """What came of one: seconds with the tracker and without it, and how many snapshots and steps were taken."""

    tracked: float
    plain: float
    snapshots: int
    steps: int

    @property
    def ratio(self) -> float:
        """Of the wall times."""
        return self.tracked / self.plain


def pair(name: str, steps: int, seconds: float | None) -> Pair:
    """Train both sides by turns for so many steps, or until the one without the tracker has taken so many seconds."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        ends = [context.Pipe() for _ in range(2)]
        runs = [Path(directory) / "run", None]
        processes = [
            context.Process(target=train, args=(name, run, end)) for run, (_, end) in zip(runs, ends, strict=True)
        ]
        for process, (pipe, _) in zip(processes, ends, strict=True):
            process.start()
            pipe.recv()
        pipes = [pipe for pipe, _ in ends]
        done, taken = 0, {id(pipe): 0.0 for pipe in pipes}
        while taken[id(pipes[1])] < seconds if seconds else done < steps:
            block = BLOCK if seconds else min(BLOCK, steps - done)
            for pipe in pipes if (done // BLOCK) % 2 else reversed(pipes):
                pipe.send(block)
                taken[id(pipe)] = pipe.recv()
            done += block
        found = []
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(0)
            found.append(pipe.recv())
            process.join()
        return Pair(found[0][0], found[1][0], found[0][1], done)


MODELS = {"mlp": mlp, "gpt2": gpt2}


def main() -> None:
    """Print, for each model, the median and the spread of the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, help="instead of --steps: how long a side without the tracker lasts")
    parser.add_argument("--only", choices=tuple(MODELS))
    options = parser.parse_args()
    for name in MODELS:
        if options.only in (None, name):
            every = tqdm(range(options.pairs), desc=name, disable=None)
            found = [pair(name, options.steps, options.seconds) for _ in every]
            ratios = [each.ratio for each in found]
            print(
                f"{name}: {statistics.median(each.steps for each in found):.0f} steps "
                f"({statistics.median(each.plain for each in found):.0f} s without the tracker), "
                f"{statistics.median(each.snapshots for each in found):.0f} snapshots: "
                f"overhead median {100 * (statistics.median(ratios) - 1):+.2f} %, "
                f"range {100 * (min(ratios) - 1):+.2f} % to {100 * (max(ratios) - 1):+.2f} % of {len(ratios)} pairs"
            )


if __name__ == "__main__":
    main()
