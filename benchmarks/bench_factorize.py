"""What a step costs after `inrank.factorize`, against the same dense training: GPT-2 small at 45 and 15 % of its MLPs.

    python benchmarks/bench_factorize.py [--size 2x256] [--pairs 7] [--budgets 0.45 0.15] [--only step|memory]

* step: forward, backward and AdamW, dense and factorized in turn in one process; medians of the ratios of each turn,
  beside the ratio of multiply-adds (every matrix product of forward and backward: attention and the head as well), and
  the seconds that `factorize` itself took;
* memory: what weights, gradients and optimizer state hold; and the peak of three further steps, of the device on CUDA,
  else of the process (Linux), each training in a process of its own, counted from after its factorization.

Ranks are uniform: a model that nobody has trained has no demand, and the cost is of the size. A quick try that measures
nothing of worth: --model 2x64 --size 1x32 --pairs 2.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_active import pair_of_numbers, seconds
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import inrank
from inrank.gpt2.memory import peak_memory

_FORGET_PEAK = Path("/proc/self/clear_refs")  # 5 begins the peak of the resident set anew; see proc(5)


class Training:
    """One model and its optimizer, factorized in training after its first step.

    Args:
        budget: share of the MLP weights that is left, or None: stays dense.
    """

    def __init__(self, budget: float | None, options: argparse.Namespace) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        layers, width = options.model
        sizes = {"n_layer": layers, "n_embd": width, "n_head": max(width // 64, 1)}
        model: Any = GPT2LMHeadModel(GPT2Config(**sizes))
        self.device = torch.device(options.device)
        self.model = model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        rows, length = options.size
        self.batch = torch.randint(model.config.vocab_size, (rows, length + 1), device=self.device)
        self.step()
        self.factorizing, self.share, self.rank = 0.0, 1.0, 0
        if budget is not None:
            began = time.perf_counter()
            report = inrank.factorize(
                self.model, self.optimizer, targets="*.mlp.*", budget=budget, allocation="uniform"
            )
            self.factorizing = time.perf_counter() - began
            self.share, self.rank = report.share, max(report.ranks.values())

    def backward(self) -> None:
        """Forward and backward."""
        logits = self.model(input_ids=self.batch[:, :-1]).logits
        cross_entropy(logits.flatten(0, 1), self.batch[:, 1:].flatten()).backward()

    def step(self) -> None:
        """Forward, backward and update."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def multiply_adds(self) -> float:
        """Of one forward and backward pass, as torch counts them."""
        with FlopCounterMode(display=False) as counter:
            self.backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops() / 2

    def held(self) -> int:
        """Bytes of weights, their gradients and what the optimizer keeps."""
        weights = sum(value.nbytes for value in self.model.parameters())
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return 2 * weights + sum(value.nbytes for value in states if isinstance(value, torch.Tensor))


def bench_step(options: argparse.Namespace) -> None:
    """All trainings in turn, forwards and backwards."""
    trainings = {budget: Training(budget, options) for budget in (None, *options.budgets)}
    counted = {budget: training.multiply_adds() for budget, training in trainings.items()}
    taken: dict[float | None, list[float]] = {budget: [] for budget in trainings}
    for training in trainings.values():
        training.step()
    for turn in range(options.pairs):
        for budget in list(trainings)[:: 1 if turn % 2 else -1]:
            taken[budget].append(seconds(trainings[budget].step, trainings[budget].device))
    for budget in options.budgets:
        training = trainings[budget]
        ratio = statistics.median(ours / dense for ours, dense in zip(taken[budget], taken[None], strict=True))
        print(
            f"step at {training.share:.1%} of the MLP weights (rank {training.rank}): {ratio:.3f} × dense "
            f"({statistics.median(taken[budget]):.3f} s against {statistics.median(taken[None]):.3f} s), multiply-adds "
            f"{counted[budget] / counted[None]:.3f} ×; factorize took {training.factorizing:.1f} s",
            flush=True,
        )


def bench_memory(options: argparse.Namespace) -> None:
    """Each training in a process of its own."""
    found = {}
    for budget in (None, *options.budgets):
        command = [sys.executable, *sys.argv, "--only", f"memory of {budget}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        found[budget] = [int(number) for number in answer.stdout.split()[-2:]]
    where = "of the device" if torch.device(options.device).type == "cuda" else "of the process, libraries and all"
    for budget, numbers in found.items():
        what = "dense" if budget is None else f"at {budget:.0%}"
        held, peak = (
            f"{number / 2**20:,.0f} MiB, {number / dense:.3f} × dense" if dense else "not known here"
            for number, dense in zip(numbers, found[None], strict=True)
        )
        print(f"memory {what}: weights, gradients and AdamW's state {held}; peak {where} {peak}", flush=True)


def print_memory(budget: float | None, options: argparse.Namespace) -> None:
    """What is held, and the peak of three steps; 0 where it cannot be told from the peak before."""
    training = Training(budget, options)
    gc.collect()
    known = True
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif known := _FORGET_PEAK.exists():
        _FORGET_PEAK.write_text("5", encoding="ascii")
    for _ in range(3):
        training.step()
    print(training.held(), peak_memory(training.device) if known else 0)


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=pair_of_numbers, default=(2, 256), help="sequences x tokens a step")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.45, 0.15], help="shares of the MLP weights")
    parser.add_argument("--model", type=pair_of_numbers, default=(12, 768), help="layers x width; GPT-2 small: 12x768")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="step or memory")
    options = parser.parse_args()
    if options.only and options.only.startswith("memory of "):
        budget = options.only.removeprefix("memory of ")
        print_memory(None if budget == "None" else float(budget), options)
        return
    parts = {"step": bench_step, "memory": bench_memory}
    if options.only not in (None, *parts):
        parser.error(f"--only must be one of {', '.join(parts)}, got {options.only!r}")
    layers, width = options.model
    print(
        f"GPT-2 {layers}×{width}, {options.size[0]} × {options.size[1]} tokens a step, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        flush=True,
    )
    for part in parts if options.only is None else [options.only]:
        parts[part](options)


if __name__ == "__main__":
    main()
