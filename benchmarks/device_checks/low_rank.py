"""What low-rank training saves on a device, growth under a compiler, and InRank itself."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

import inrank
from device_checks.common import Check, Found, Setting, nothing


def _low_rank(setting: Setting, rank: int) -> nn.Module:
    model: nn.Module = setting.gpt2("small")
    inrank.convert(model, "*.mlp.*", initial_rank=rank, buffer_rank=1, max_rank=rank)
    inrank.factorize(model, ranks=rank)
    return model


def rank_256(setting: Setting) -> Found:
    """GPT-2 small in bfloat16 at rank 256 against dense, step and memory, eager and compiled; also rank 254."""
    rank, tokens, numbers = setting.choose(256, 8), setting.tokens(), dict[str, Any]()
    least: dict[str, tuple[float, int]] = {}
    for compiled in setting.choose((False, True), (False,)):
        cases = {"dense": 0, "rank": rank} | ({} if compiled or setting.tiny else {"two fewer": rank - 2})
        for name, wanted in cases.items():
            model = _low_rank(setting, wanted) if wanted else setting.gpt2("small")
            optimizer = setting.adamw(model)
            called = torch.compile(model) if compiled else model
            for _ in range(3):
                setting.step(called, optimizer, tokens, nothing)
            peak = setting.peak_bytes(lambda: setting.step(called, optimizer, tokens, nothing))  # noqa: B023
            seconds = setting.seconds(lambda: setting.step(called, optimizer, tokens, nothing), setting.choose(10, 1))  # noqa: B023
            key = f"{name}{', compiled' if compiled else ''}"
            held = torch.cuda.memory_allocated() if setting.is_cuda else 0
            least[key] = seconds, peak + held
            numbers[key] = f"{seconds:.4f} s, {(peak + held) / 1e9:.2f} GB"
    ratios = [one / other if other else 0.0 for one, other in zip(least["rank"], least["dense"], strict=True)]
    numbers["step, memory ×"] = ratios
    return Found(setting.tiny or max(ratios) <= 0.8, "0.80 × step and memory", numbers)


def compiled_growth(setting: Setting) -> Found:
    """W0 + U V grows under torch.compile: one graph whatever the ranks; then plain U V, then merged."""
    from torch._dynamo.utils import counters

    counters.clear()
    model = setting.gpt2("few")
    most = setting.choose(128, 24)
    inrank.convert(model, "*.mlp.*", initial_rank=2, buffer_rank=8, max_rank=most)
    optimizer, tokens = setting.adamw(model, 6e-4), setting.tokens(4, 256)
    controller = inrank.RankController(model, optimizer, threshold=0.9999, every=10)
    called: Any = torch.compile(model) if setting.is_cuda else model
    losses = [
        setting.step(called, optimizer, tokens, lambda loss: controller.step()) for _ in range(setting.choose(60, 20))
    ]
    graphs = int(counters["stats"].get("unique_graphs", 1))
    ranks = sorted(controller.ranks.values())
    inrank.factorize(model, optimizer)
    controller.detach()
    losses += [setting.step(model, optimizer, tokens, nothing) for _ in range(3)]
    inrank.merge(model)
    values = [float(loss) for loss in losses]
    numbers = {"graphs": graphs, "ranks": (ranks[0], ranks[-1]), "loss": (values[0], values[-1])}
    return Found(graphs <= 2 and ranks[-1] > 2 and values[-1] < values[0], "at most two graphs", numbers)


def inrank_small(setting: Setting) -> Found:
    """InRank on GPT-2 small, 300 steps of bfloat16: the loss falls, ranks grow, and what young columns cost a step."""
    model = setting.gpt2("small")
    inrank.convert(model, "*.mlp.*", initial_rank=2, buffer_rank=setting.choose(100, 8))
    optimizer = setting.adamw(model, 6e-4)
    controller = inrank.RankController(model, optimizer, threshold=0.99, every=25)
    losses, times = [], []
    for _ in range(setting.choose(300, 30)):
        tokens = setting.tokens(8, 256)
        times.append(setting.seconds(lambda: losses.append(setting.step(model, optimizer, tokens, nothing))))  # noqa: B023
        times[-1] += setting.seconds(controller.step)
    ranks, values = sorted(controller.ranks.values()), [float(loss) for loss in losses]
    before = statistics.median(times[5:24])
    numbers = {
        "loss": (values[0], values[-1]),
        "ranks": (ranks[0], ranks[len(ranks) // 2], ranks[-1]),
        "step before growth, s": before,
        "with young columns, s": statistics.median(times[26:49] or times),
        "with a check, s": statistics.median(times[24::25]),
    }
    return Found(values[-1] < values[0] and ranks[-1] > 2, "the loss falls and ranks grow", numbers)


CHECKS = (Check(rank_256, 75), Check(compiled_growth, 45), Check(inrank_small, 60))
