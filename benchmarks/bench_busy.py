"""What a snapshot takes beside other work on the same cores, and whatever number of threads torch is told.

    python benchmarks/bench_busy.py [--rounds 5] [--only mlp demo gpt2-small]

The loop's thread waits for each snapshot here, so that all of it counts. In each round: alone, beside one process that
never rests, beside two, and alone with `torch.set_num_threads` at 1, 2, 8 and 64. Ratios are of medians over rounds,
against alone in the same run. On two cores a fair share beside one such process is 3/4 of the machine (1.33 ×), beside
two a half (2 ×).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from inrank_monitor import attach

LIMITS = {1: 1.6, 2: 2.2}
THREADS = (1, 2, 8, 64)


def mlp() -> nn.Module:
    """3 matrices."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def demo() -> nn.Module:
    """24 matrices of the demo's shapes."""
    sizes = {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 2000}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))


def gpt2_small() -> nn.Module:
    """72 matrices: 48 of 768×768, 24 of 768×3072."""
    return GPT2LMHeadModel(GPT2Config())


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "demo": demo, "gpt2-small": gpt2_small}


def _never_rest() -> None:
    while True:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_never_rest, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(2.0 if count else 0.2)  # they have begun
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


class Watched:
    """A model whose weights move a little before each snapshot."""

    def __init__(self, make: Callable[[], nn.Module], directory: str) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.tracker = attach(self.model, self.optimizer, directory, schedule=lambda step: False, tensorboard=False)

    def seconds(self) -> float:
        """Of one snapshot."""
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        began = time.perf_counter()
        self.tracker.measure()
        self.tracker.flush()
        return time.perf_counter() - began


def measure(name: str, rounds: int) -> bool:
    """One model; whether it stays within the limits."""
    threads = torch.get_num_threads()
    beside: dict[int, list[float]] = {count: [] for count in (0, *LIMITS)}
    told: dict[int, list[float]] = {count: [] for count in THREADS}
    with tempfile.TemporaryDirectory() as directory:
        watched = Watched(MODELS[name], directory)
        watched.seconds()
        for _ in range(rounds):
            for count, seconds in beside.items():
                with busy(count):
                    seconds.append(watched.seconds())
            for count, seconds in told.items():
                torch.set_num_threads(count)
                seconds.append(watched.seconds())
            torch.set_num_threads(threads)
        watched.tracker.close()
    alone = statistics.median(beside[0])
    print(f"{name}: alone {alone:.3f} s", flush=True)
    good = True
    for count, limit in LIMITS.items():
        ratio = statistics.median(beside[count]) / alone
        good &= ratio <= limit
        word = "" if ratio <= limit else "TOO MUCH"
        print(f"  beside {count} busy: {ratio:.2f} × (at most {limit}) {word}", flush=True)
    for count, seconds in told.items():
        print(f"  {count} threads: {statistics.median(seconds) / alone:.2f} ×", flush=True)
    return good


def main() -> int:
    """Run the benchmark; 1 if anything is over its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    kept = [measure(name, options.rounds) for name in options.only]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
