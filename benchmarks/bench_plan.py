"""What `inrank-monitor plan` foretells, against what a tracker then costs: seconds, memory, disk.

    python benchmarks/bench_plan.py [--snapshots 5] [--threads 1] [--only CASE]

Each case runs in a process of its own (the one in shards in two): it plans, attaches, takes steps, and measures after
each. Seconds of a snapshot are what the tracker counts of itself, its thread included; memory is anonymous resident
memory (RssAnon) sampled every millisecond, at attach and in snapshots, above what was there before attach. What the C
library keeps of freed workspaces is in the measured memory, not in the plan. Numbers are planned / measured; seconds
are to be within a factor of 1.5. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_distributed import PeakMemory, sharded_gpt2
from bench_distributed import take_step as take_step_in_shards
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from inrank_monitor import SpectrumTracker, attach
from inrank_monitor.plan.models import PlannedModel, planned_model, planned_shapes
from inrank_monitor.plan.planning import make_plan
from inrank_monitor.plan.quantities import Cost, Layout
from inrank_monitor.plan.scenario import Scenario

Numbers = dict[str, float]


def gpt2(layers: int, width: int = 768) -> tuple[PlannedModel, nn.Module]:
    """Planned from its config.json, and the model itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, architectures=["GPT2LMHeadModel"])
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return planned_model(folder), GPT2LMHeadModel(config)


def linear(rows: int, cols: int, count: int) -> tuple[PlannedModel, nn.Module]:
    """Matrices of one shape."""
    model = nn.ModuleList(nn.Linear(cols, rows, bias=False) for _ in range(count))
    return planned_shapes(f"{rows}x{cols}:{count}"), model


CASES: dict[str, tuple[Callable[[], tuple[PlannedModel, nn.Module]], int | None]] = {
    "GPT-2, 4 layers of 768": (lambda: gpt2(4), None),
    "GPT-2, 12 layers of 768": (lambda: gpt2(12), None),
    "GPT-2, 4 layers of 384": (lambda: gpt2(4, 384), None),
    "2 of 1024×4096": (lambda: linear(1024, 4096, 2), None),
    "2 of 2048×2048": (lambda: linear(2048, 2048, 2), None),
    "2 of 3072×3072": (lambda: linear(3072, 3072, 2), None),
    "2 of 4096×11008, leading 64": (lambda: linear(4096, 11008, 2), 64),
}
SHARDED = "GPT-2, 12 layers of 768, FSDP2 on two processes"


@torch.no_grad()
def take_step(model: nn.Module, number: int) -> None:
    """Add 256 directions of falling strength and noise: much at first, then three per cent, as trained weights move."""
    strength = torch.arange(1, 257).rsqrt() * (1e-4 if number == 0 else 3e-6)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            rows, cols = parameter.shape
            parameter.addmm_(torch.randn(rows, 256) * strength, torch.randn(256, cols))
            parameter.add_(torch.randn(rows, cols), alpha=0.1 * float(strength[0]))


def import_everything(folder: str, number: int = 0) -> None:
    """What a first tracker imports is neither its time nor its memory."""
    with attach(nn.Linear(2, 2), None, f"{folder}/imports-{number}", every=1, distributed=False) as first:
        first.step()


def measure(tracker: SpectrumTracker, before: int, step: Callable[[int], None], snapshots: int) -> tuple[float, int]:
    """Median seconds of a snapshot, and the most memory of one above `before`; not of the same: looking takes time."""
    seconds, memory = [], []
    for number in range(2 * snapshots):
        step(number)
        if number % 2 == 0:  # the first one, which takes more time, among them
            with PeakMemory() as measuring:
                tracker.step()
                tracker.flush()
            memory.append(measuring.start + measuring.bytes - before)
        else:
            counted = tracker.seconds
            tracker.step()
            tracker.flush()
            seconds.append(tracker.seconds - counted)
    return statistics.median(seconds), max(memory)


def disk(run: Path) -> Numbers:
    """Bytes of a run's files."""
    sizes = {path.relative_to(run).as_posix(): path.stat().st_size for path in run.rglob("*") if path.is_file()}
    weights = sum(size for name, size in sizes.items() if name.startswith("initial_weights"))
    log = sum(size for name, size in sizes.items() if name.startswith(("measurements", "scalars", "tensorboard")))
    return {"W0": weights, "log": log}


def planned_numbers(cost: Cost) -> Numbers:
    """In the measured ones' order."""
    return {"seconds": cost.counted, "memory": cost.memory, "W0": cost.weights, "log": cost.log + cost.events}


def whole(case: str, snapshots: int, threads: int, folder: str, answers: Any) -> None:
    """One process: plan, then attach and measure."""
    torch.set_num_threads(threads)
    make, leading = CASES[case]
    planned, model = make()
    import_everything(folder)
    counts, directory = [leading] if leading else [], Path(folder) / "run"
    plan = make_plan(Scenario(planned, Layout(threads=threads), counts, directory=directory))
    with PeakMemory() as attaching:
        tracker = attach(model, None, f"{folder}/run", every=1, leading=leading)
    seconds, memory = measure(tracker, attaching.start, partial(take_step, model), snapshots)
    tracker.close()
    found = disk(Path(folder) / "run")
    found["log"] /= 2 * snapshots
    answers.put(
        (planned_numbers(plan.costs[leading]), {"seconds": seconds, "memory": max(memory, attaching.bytes), **found})
    )


def shard(number: int, count: int, layers: int, snapshots: int, threads: int, folder: str, answers: Any) -> None:
    """One of two processes that hold a shard each."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=count)
    model = sharded_gpt2("fsdp2", layers, init_device_mesh("cpu", (count,)))
    import_everything(folder, number)
    layout = Layout(processes=count, sharded=True, threads=threads, per_machine=count)
    plan = make_plan(Scenario(gpt2(layers)[0], layout, [], directory=Path(folder) / "run"))
    dist.barrier()
    with PeakMemory() as attaching:
        tracker = attach(model, None, f"{folder}/run", every=1)

    def step(number: int) -> None:
        take_step_in_shards(model, number)
        dist.barrier()

    seconds, memory = measure(tracker, attaching.start, step, snapshots)
    tracker.close()
    found = disk(Path(folder) / "run")
    found["log"] /= 2 * snapshots
    answers.put(
        (planned_numbers(plan.costs[None]), {"seconds": seconds, "memory": max(memory, attaching.bytes), **found})
    )
    dist.destroy_process_group()


def run(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[tuple[Numbers, Numbers]]:
    """One process a tuple of arguments; what each planned and measured."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=target, args=(*each, folder, answers)) for each in arguments]
        for process in processes:
            process.start()
        found = [answers.get(timeout=900) for _ in processes]
        for process in processes:
            process.join()
    return found


def report(case: str, found: list[tuple[Numbers, Numbers]]) -> Numbers:
    """Print a line; of several processes the one that took longest, and the most memory of any."""
    planned, measured = max(found, key=lambda pair: pair[1]["seconds"])
    measured = {**measured, "memory": max(numbers["memory"] for _, numbers in found)}
    ratios = {name: planned[name] / measured[name] for name in measured}
    cells = [
        f"{planned['seconds']:.3f} / {measured['seconds']:.3f} s = {ratios['seconds']:.2f}",
        *(
            f"{name} {planned[name] / 1e6:.2f} / {measured[name] / 1e6:.2f} MB = {ratios[name]:.2f}"
            for name in ("memory", "W0", "log")
        ),
    ]
    print(f"{case}: {', '.join(cells)}", flush=True)
    return ratios


def main() -> None:
    """Run the cases, say which missed the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all ratios")
    options = parser.parse_args()
    ratios: dict[str, Numbers] = {}
    for case in [*CASES, SHARDED]:
        if options.only and options.only not in case:
            continue
        common = (options.snapshots, options.threads)
        if case == SHARDED:
            ratios[case] = report(case, run(shard, [(number, 2, 12, *common) for number in range(2)]))
        else:
            ratios[case] = report(case, run(whole, [(case, *common)]))
    missed = [case for case, found in ratios.items() if not 1 / 1.5 <= found["seconds"] <= 1.5]
    print(f"seconds within a factor of 1.5: {len(ratios) - len(missed)} of {len(ratios)}; not: {missed or 'none'}")
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
