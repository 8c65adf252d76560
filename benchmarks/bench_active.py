"""What low-rank training costs and saves: GPT-2 small (124M, real sizes) against itself with low-rank MLPs.

    python benchmarks/bench_active.py [--size 2x256] [--pairs 7] [--only step|check|memory] [--processor-time]

* step: a training step (forward, backward, AdamW) with `LowRankLinear` MLPs at rank 254 against the dense model, beside
  the ratio of their multiply-adds (every matrix product of forward and backward: attention and the head as well);
* check: one rank check of all MLP matrices, at rank 2 and at rank 254, against 25 training steps of the same model;
* memory: peak of a process that trains, of the device on CUDA: dense, growing (rank 2 and 254), low-rank.

A quick try that measures nothing of worth: --model 2x64 --rank 16 --size 1x32 --pairs 2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import inrank
from inrank.gpt2.memory import peak_memory

PROCESSOR_TIME = "--processor-time"
STEP_LIMIT, CHECK_LIMIT, CADENCE = 1.15, 0.03, 25


class Gpt2Training:
    """A GPT-2 on one batch of random tokens, with AdamW.

    Args:
        options: model (layers, width), size (sequences, tokens) and device.
        prepare: what becomes of the model before it goes to the device.
        sizes: of the configuration, beside these.
    """

    def __init__(
        self, options: argparse.Namespace, prepare: Callable[[Any], None] = lambda model: None, **sizes: Any
    ) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        layers, width = options.model
        model: Any = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=max(width // 64, 1), **sizes))
        prepare(model)
        self.device = torch.device(options.device)
        self.model = model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        rows, length = options.size
        self.batch = torch.randint(model.config.vocab_size, (rows, length + 1), device=self.device)

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


class Training(Gpt2Training):
    """One model and its optimizer.

    Args:
        kind: `dense`, `growing` (W0 + U V) or `low-rank` (U V).
        rank: of the MLP layers.
    """

    def __init__(self, kind: str, rank: int, options: argparse.Namespace) -> None:
        self.kind, self.rank = kind, rank
        super().__init__(options, lambda model: _make_low_rank(model, kind, rank, options.buffer_rank))


def _make_low_rank(model: Any, kind: str, rank: int, buffer_rank: int) -> None:
    """MLPs in factors whose columns are all in use, as after some training; a dense model is left alone."""
    if kind == "dense":
        return
    fixed = {"buffer_rank": 1, "max_rank": rank} if kind == "low-rank" else {"buffer_rank": buffer_rank}
    inrank.convert(model, "*.mlp.*", initial_rank=rank, **fixed)
    for layer in model.modules():
        if isinstance(layer, inrank.InRankLinear):
            used = rank if kind == "low-rank" else layer.used
            with torch.no_grad():
                layer.U[:, :used] = torch.randn(layer.rows, used) / used**0.5
            if kind == "low-rank":
                layer.become_low_rank(layer.U[:, :rank].detach().clone(), layer.V[:rank].detach().clone())


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Of one call, to the end of what it asked of the device."""
    clock = time.process_time if PROCESSOR_TIME in sys.argv else time.perf_counter
    wait(device)
    began = clock()
    action()
    wait(device)
    return clock() - began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_pairs(
    ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, pairs: int
) -> tuple[float, float, float]:
    """Median ratio of ours to theirs over paired runs, and both medians in seconds."""
    found = []
    for action in (ours, theirs):
        action()
    for turn in range(pairs):
        taken = {}
        for action in (ours, theirs) if turn % 2 else (theirs, ours):
            taken[action] = seconds(action, device)
        found.append((taken[ours], taken[theirs]))
    ratio = statistics.median(a / b for a, b in found)
    return ratio, statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def verdict(value: float, limit: float) -> str:
    return "met" if value <= limit else "MISSED"


def bench_step(options: argparse.Namespace) -> None:
    """A training step, dense against low-rank."""
    dense, low = Training("dense", 0, options), Training("low-rank", options.rank, options)
    for training in (dense, low):
        training.step()
    fewer = low.multiply_adds() / dense.multiply_adds()
    ratio, ours, theirs = in_pairs(low.step, dense.step, low.device, options.pairs)
    parts = {}
    for part, actions in (("forward and backward", (low.backward, dense.backward)), ("update", updates(low, dense))):
        parts[part] = in_pairs(*actions, low.device, max(options.pairs // 2, 1))[0]
    goal = STEP_LIMIT * fewer
    print(
        f"step at rank {options.rank}: {ratio:.3f} × dense ({ours:.3f} s against {theirs:.3f} s), multiply-adds "
        f"{fewer:.3f} ×, goal {goal:.3f} {verdict(ratio, goal)}; "
        + ", ".join(f"{part} {value:.3f} ×" for part, value in parts.items())
    )


def updates(*trainings: Training) -> tuple[Callable[[], object], ...]:
    """Each one's optimizer step, with gradients at hand."""
    for training in trainings:
        training.backward()
    return tuple(training.optimizer.step for training in trainings)


def bench_check(options: argparse.Namespace) -> None:
    """A rank check against the steps between two checks."""
    rule = inrank.ExplainedRatio(0.9)

    def asked_but_not_followed(seen: inrank.Observation) -> int:
        rule(seen)
        return seen.rank  # so that every check finds the same model

    for rank in (2, options.rank):
        training = Training("growing", rank, options)
        controller = inrank.RankController(training.model, training.optimizer, rule=asked_but_not_followed)
        ratio, check, step = in_pairs(controller.check, training.step, training.device, options.pairs)
        share = ratio / CADENCE
        controller.detach()
        print(
            f"check of {len(controller.ranks)} matrices at rank {rank}: {check:.3f} s, {share:.2%} of {CADENCE} steps "
            f"of {step:.3f} s, goal {CHECK_LIMIT:.0%} {verdict(share, CHECK_LIMIT)}"
        )


def bench_memory(options: argparse.Namespace) -> None:
    """Peak memory, each phase in a process of its own."""
    peaks = {}
    for kind, rank in (("dense", 0), ("growing", 2), ("growing", options.rank), ("low-rank", options.rank)):
        command = [sys.executable, *sys.argv, "--only", f"memory of {kind}", "--rank", str(rank)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind, rank] = int(answer.stdout.split()[-1])
    dense = peaks["dense", 0]
    where = "on the device" if torch.device(options.device).type == "cuda" else "of the process, libraries and all"
    for (kind, rank), peak in peaks.items():
        what = kind if kind == "dense" else f"{kind} at rank {rank}"
        print(f"peak memory {where}, {what}: {peak / 2**20:,.0f} MiB, {peak / dense:.3f} × dense")


def print_peak(kind: str, options: argparse.Namespace) -> None:
    """The peak after three steps and, while it grows, a check."""
    training = Training(kind, options.rank, options)
    controller = None
    if kind == "growing":
        controller = inrank.RankController(training.model, training.optimizer, rule=lambda seen: seen.rank)
    for _ in range(3):
        training.step()
        if controller is not None:
            controller.check()
    print(peak_memory(training.device))


def pair_of_numbers(text: str) -> tuple[int, int]:
    """`2x256` -> (2, 256)."""
    first, second = text.split("x")
    return int(first), int(second)


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=pair_of_numbers, default=(2, 256), help="sequences x tokens a step")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rank", type=int, default=254)
    parser.add_argument("--buffer-rank", type=int, default=100)
    parser.add_argument("--model", type=pair_of_numbers, default=(12, 768), help="layers x width; GPT-2 small: 12x768")
    parser.add_argument(PROCESSOR_TIME, action="store_true", help="one thread's time: for a busy machine, CPU only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="step, check or memory")
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
    if options.only and options.only.startswith("memory of "):
        print_peak(options.only.removeprefix("memory of "), options)
        return
    parts = {"step": bench_step, "check": bench_check, "memory": bench_memory}
    if options.only not in (None, *parts):
        parser.error(f"--only must be one of {', '.join(parts)}, got {options.only!r}")
    layers, width = options.model
    print(
        f"GPT-2 {layers}×{width}, {options.size[0]} × {options.size[1]} tokens a step, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for part in parts if options.only is None else [options.only]:
        parts[part](options)


if __name__ == "__main__":
    main()
