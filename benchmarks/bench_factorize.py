"""What a step costs after `inrank.factorize`, against the same dense training, at 45 and 15 % of the MLP weights.

    python benchmarks/bench_factorize.py [--model 4x768] [--size 2x256] [--pairs 7] [--budgets 0.45 0.15]

Dense and factorized trainings live in one process and take their steps in turn:

* step: forward, backward and AdamW; the median over turns of the ratio to the dense one, beside the ratio of
  multiply-adds (every matrix product of forward and backward: attention and the head as well), and the seconds that
  `factorize` itself took;
* memory: what weights, gradients and optimizer state hold; and the peak of two steps after factorization above what the
  process (Linux; on CUDA the device) held before it had this training.

By default four blocks of GPT-2 small's width, which two cores do in two minutes; `--model 12x768 --vocabulary 50257` is
GPT-2 small. Ranks are uniform: a model that nobody has trained has no demand, and the cost is of the size. A quick try
that measures nothing of worth: --model 2x64 --size 1x32 --pairs 2.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from pathlib import Path

import torch
from bench_active import Gpt2Training, pair_of_numbers, seconds

import inrank
from inrank.gpt2.memory import peak_memory

_STATUS = Path("/proc/self/status")
_FORGET_PEAK = Path("/proc/self/clear_refs")  # 5 begins the peak of the resident set anew; see proc(5)


class Training(Gpt2Training):
    """One model and its optimizer, factorized in training after its first step.

    Args:
        budget: share of the MLP weights that is left, or None: stays dense.
    """

    def __init__(self, budget: float | None, options: argparse.Namespace) -> None:
        super().__init__(options, vocab_size=options.vocabulary, bos_token_id=None, eos_token_id=None)
        self.step()
        self.factorizing, self.share, self.rank = 0.0, 1.0, 0
        if budget is not None:
            began = time.perf_counter()
            report = inrank.factorize(self.model, self.optimizer, budget=budget, allocation="uniform")
            self.factorizing = time.perf_counter() - began
            self.share, self.rank = report.share, max(report.ranks.values())

    def held(self) -> int:
        """Bytes of weights, their gradients and what the optimizer keeps."""
        weights = sum(value.nbytes for value in self.model.parameters())
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return 2 * weights + sum(value.nbytes for value in states if isinstance(value, torch.Tensor))


def bench(options: argparse.Namespace) -> None:
    """Make the trainings one after the other, then let them step in turn, forwards and backwards."""
    small = argparse.Namespace(**vars(options) | {"model": (1, 64), "vocabulary": 64})
    Training(0.5, small)  # so that the code is in memory before anything is counted
    trainings: dict[float | None, Training] = {}
    peaks: dict[float | None, int] = {}
    for budget in (None, *options.budgets):
        before = held_now(torch.device(options.device))
        training = trainings[budget] = Training(budget, options)
        peaks[budget] = peak_of(training) - before
    counted = {budget: training.multiply_adds() for budget, training in trainings.items()}
    taken: dict[float | None, list[float]] = {budget: [] for budget in trainings}
    for turn in range(options.pairs):
        for budget in list(trainings)[:: 1 if turn % 2 else -1]:
            taken[budget].append(seconds(trainings[budget].step, trainings[budget].device))
    dense = trainings[None]
    print(
        f"dense: step {statistics.median(taken[None]):.3f} s, {mebibytes(dense.held())} held, {peak_text(peaks[None])}"
    )
    for budget in options.budgets:
        ours = trainings[budget]
        ratio = statistics.median(one / other for one, other in zip(taken[budget], taken[None], strict=True))
        print(
            f"at {ours.share:.1%} of the MLP weights (rank {ours.rank}): step {ratio:.3f} × dense "
            f"({statistics.median(taken[budget]):.3f} s), multiply-adds {counted[budget] / counted[None]:.3f} ×; "
            f"weights, gradients and AdamW's state {ours.held() / dense.held():.3f} × ({mebibytes(ours.held())}), "
            f"{peak_text(peaks[budget], peaks[None])}; factorize took {ours.factorizing:.1f} s"
        )


def held_now(device: torch.device) -> int:
    """Bytes that the device, or the process, holds at this moment; 0 where that is not known."""
    give_back()
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    lines = _STATUS.read_text(encoding="ascii").splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def give_back() -> bool:
    """Return to the system what is free but kept for later; whether the C library can (glibc does)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    return trim is not None


def peak_of(training: Training) -> int:
    """Peak of two steps in bytes; 0 where it cannot be told from the peak before."""
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif give_back() and _FORGET_PEAK.exists():
        _FORGET_PEAK.write_text("5", encoding="ascii")
    else:
        return 0
    for _ in range(2):
        training.step()
    return peak_memory(training.device)


def peak_text(peak: int, dense: int | None = None) -> str:
    """Beside that of the dense training, where both are known."""
    if peak <= 0:
        return "peak not known here"
    return f"peak {mebibytes(peak)}" if dense is None else f"peak {peak / dense:.3f} × ({mebibytes(peak)})"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=pair_of_numbers, default=(2, 256), help="sequences x tokens a step")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.45, 0.15], help="shares of the MLP weights")
    parser.add_argument("--model", type=pair_of_numbers, default=(4, 768), help="layers x width")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    layers, width = options.model
    print(
        f"GPT-2 {layers}×{width}, vocabulary {options.vocabulary}, {options.size[0]} × {options.size[1]} tokens a "
        f"step, {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        flush=True,
    )
    bench(options)


if __name__ == "__main__":
    main()
