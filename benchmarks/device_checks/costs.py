"""What the tracker costs: seconds and memory of snapshots, overhead of a training, a device that is full."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from device_checks.common import Check, Found, Setting, folder, nothing
from inrank_monitor import attach, open_run
from inrank_monitor.spectra import singular_values

MOST_BYTES = 600_000_000  # of a snapshot on the device, whatever the number of threads


@torch.no_grad()
def _move(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def snapshots(setting: Setting) -> Found:
    """GPT-2 small and medium: what the loop waits for, until it is written, bytes; against svdvals on the device."""
    numbers: dict[str, Any] = {}
    passes = True
    for size in ("small", "medium"):
        model = setting.gpt2(size)
        shapes = [tuple(value.shape) for value in model.parameters() if value.ndim == 2 and min(value.shape) >= 64]
        for keep in ("disk", "memory", "device"):
            waits, ends, peaks = [], [], []
            tracker = attach(model, None, folder(), every=10**9, initial_weights=keep)
            for _ in range(2):
                _move(model)
                tracker.step()
                peaks.append(setting.peak_bytes(lambda: waits.append(setting.seconds(tracker.measure))))  # noqa: B023
                ends.append(waits[-1] + setting.seconds(tracker.flush))
            tracker.close()
            numbers[f"{size}, W0 on {keep}"] = (
                f"loop {min(waits):.3f} s, written after {min(ends):.3f} s, {max(peaks) / 1e6:.0f} MB"
            )
            passes &= max(peaks) <= MOST_BYTES
        theirs = sum(_svdvals_seconds(setting, shape) for shape in shapes if max(shape) < 8192)
        numbers[f"{size}: svdvals there"] = f"{theirs:.3f} s"
        passes &= setting.tiny or min(waits) < theirs
        numbers[f"{size}: error / σ₁"] = worst = _error(setting)
        passes &= worst < 1e-7
    return Found(passes, "under svdvals, 600 MB, 1e-7 σ₁", numbers)


def _svdvals_seconds(setting: Setting, shape: tuple[int, ...]) -> float:
    matrix = torch.randn(shape, device=setting.device)
    return setting.seconds(lambda: torch.linalg.svdvals(matrix))


def _error(setting: Setting) -> float:
    width = setting.choose(1024, 96)
    matrix = torch.randn(width, 4 * width, device=setting.device)
    exact = torch.linalg.svdvals(matrix.cpu().double())
    return float((singular_values(matrix) - exact).abs().max() / exact[0])


def full_device(setting: Setting) -> Found:
    """Snapshots that find no memory name their matrices and do not end the training."""
    model = setting.gpt2("few")
    optimizer, tokens = setting.adamw(model), setting.tokens(4, 64)
    tracker = attach(model, optimizer, folder(), every=3, initial_weights="memory")
    for _ in range(2):
        setting.step(model, optimizer, tokens, nothing)
    setting.wait()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        for _ in range(8):
            setting.step(model, optimizer, tokens, nothing)
        survived = True
    except torch.OutOfMemoryError:
        survived = False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    tracker.close()
    kinds = set(open_run(tracker.path).events["kind"])
    numbers = {"training went on": survived, "events": sorted(kinds)}
    return Found(survived and kinds <= {"not_measured"}, "nothing but not_measured", numbers)


def overhead(setting: Setting) -> Found:
    """A minute of GPT-2 small in bfloat16 with the tracker, by the automatic schedule, over one without; two pairs."""
    model = setting.gpt2("small")
    optimizer, tokens = setting.adamw(model), setting.tokens()
    for _ in range(3):
        setting.step(model, optimizer, tokens, nothing)
    one = setting.seconds(lambda: setting.step(model, optimizer, tokens, nothing), 3)
    steps, ratios, own = max(3, int(setting.choose(30, 0.3) / one)), [], []
    for pair in range(2):
        taken = {}
        for watched in ((False, True), (True, False))[pair]:
            tracker = attach(model, optimizer, folder()) if watched else None

            def after(loss: torch.Tensor, tracker: Any = tracker) -> None:
                if tracker:
                    tracker.log(loss=loss)

            taken[watched] = setting.seconds(lambda: setting.step(model, optimizer, tokens, after), steps)
            if tracker:
                own.append(tracker.overhead)
                tracker.close()
        ratios.append(taken[True] / taken[False])
    ratio = statistics.median(ratios)
    numbers = {"ratio": ratio, "pairs": ratios, "the tracker says": own, "steps": steps}
    return Found(setting.tiny or ratio <= 1.01, "1.01 ×", numbers)


CHECKS = (Check(snapshots, 60), Check(full_device, 12, needs_cuda=True), Check(overhead, 130))
