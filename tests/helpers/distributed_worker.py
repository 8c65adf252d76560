"""One process of several that train together; `test_distributed.py` starts them and compares what they leave.

python distributed_worker.py PROCESS PROCESSES DIRECTORY
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.distributed_models import (
    OPTIONS,
    adamw,
    gpt2,
    language,
    lay_out,
    loss_of,
    parallelize,
    record,
    shard,
    step_zoo,
    train,
    whole,
    zoo,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DeviceMesh, Partial, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import inrank_monitor.tracking.snapshots
import inrank_monitor.tracking.tracker
from inrank_monitor import attach
from inrank_monitor.matrices.matrix import local

Scenario = Callable[[Path], Any]
BEGAN = time.perf_counter()


def line() -> DeviceMesh:
    """All processes."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def square(*names: str) -> DeviceMesh:
    """Four processes as two by two."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=names or ("one", "other"))


@contextmanager
def counted() -> Iterator[list[tuple[int, list[int]]]]:
    """(step, places measured) of each snapshot that this process takes."""
    real, found = inrank_monitor.tracking.snapshots.take_snapshot, []

    def counting(step: int, *arguments: Any) -> Any:
        snapshot = real(step, *arguments)
        found.append((step, snapshot.places))
        return snapshot

    inrank_monitor.tracking.snapshots.take_snapshot = counting  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        inrank_monitor.tracking.snapshots.take_snapshot = real  # type: ignore[attr-defined]


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> dict[str, Any]:
    """What training has on this process, to the bit."""

    def raw(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            flat = local(value).detach().reshape(-1).view(torch.uint8)
            return str(local(value).dtype), flat.numpy().tobytes()
        if isinstance(value, dict):
            return {key: raw(inner) for key, inner in value.items()}
        return [raw(inner) for inner in value] if isinstance(value, list | tuple) else value

    return {
        "weights": raw(dict(model.named_parameters())),
        "gradients": raw({name: value.grad for name, value in model.named_parameters()}),
        "optimizer": raw(optimizer.state_dict()),
        "random state": raw(torch.get_rng_state()),
        "losses": losses,
        "modes": [module.training for module in model.modules()],
    }


def bits(directory: Path, make: Callable[[], nn.Module], **options: Any) -> dict[str, Any]:
    """The same training without a tracker and with one; each process on data of its own."""
    found: dict[str, Any] = {}
    for name in ("plain", "watched"):
        torch.manual_seed(dist.get_rank())
        model = make()
        optimizer = adamw(model)
        tracker = attach(model, optimizer, directory, **OPTIONS | options) if name == "watched" else None
        losses = train(model, optimizer, range(8), dist.get_rank(), dist.get_world_size(), tracker)
        found[name] = everything(model, optimizer, losses)
        if tracker is not None:
            tracker.close()
            found["closed"] = everything(model, optimizer, losses)
    return found


def data_parallel(directory: Path, **options: Any) -> dict[str, Any]:
    """DDP's GPT-2, in float64."""
    model = DistributedDataParallel(gpt2())
    with counted() as snapshots:
        tracker = record(model, directory, dist.get_rank(), dist.get_world_size(), **options)
    return {"snapshots": snapshots, "weights": whole(model.module), "finished": tracker.finished_steps}


def scheduled(directory: Path, steps: int = 12, **options: Any) -> list[int]:
    """Steps measured under some schedule."""
    model = language(torch.float32, blocks=1)
    optimizer = adamw(model)
    options = {key: value for key, value in OPTIONS.items() if key not in ("every", "max_overhead")} | options
    with counted() as snapshots, attach(model, optimizer, directory, **options):
        train(model, optimizer, range(steps), before_step=lambda: _average(model))
    return [step for step, _ in snapshots]


def _average(model: nn.Module) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)


def by_hand(directory: Path) -> list[int]:
    """`tracker.step()` in the place of an optimizer's hook."""
    model = DistributedDataParallel(language())
    optimizer = adamw(model)
    with counted() as snapshots, attach(model, None, directory, **OPTIONS) as tracker:
        for step in range(4):
            loss_of(model, step, dist.get_rank(), dist.get_world_size()).backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.step()
    return [step for step, _ in snapshots]


def fully_sharded(directory: Path, make: Callable[[], nn.Module] = gpt2, **options: Any) -> dict[str, Any]:
    """FSDP2's model, each process on a part of each batch; evaluated before the tracker comes and before it goes."""
    model = shard(make(), line(), **options)
    optimizer = adamw(model)  # of the shards
    with torch.no_grad():
        loss_of(model, 100)  # leaves some weights gathered
    with attach(model, optimizer, directory, **OPTIONS | {"every": 3}):
        train(model, optimizer, part=dist.get_rank(), parts=dist.get_world_size())
        with torch.no_grad():
            loss_of(model, 100)
    return {"weights": whole(model)}


def tensor_parallel(directory: Path) -> None:
    record(parallelize(language(), line()), directory)


def both_parallel(directory: Path) -> None:
    """FSDP2 over two by tensor parallel over two."""
    mesh = square("data", "tensor")
    model = shard(parallelize(language(), mesh["tensor"]), mesh["data"])
    record(model, directory, mesh.get_local_rank("data"), 2)


def replicas(directory: Path) -> dict[str, Any]:
    """Two replicas of a tensor parallel model, their gradients averaged by hand: each knows only its own mesh."""
    mesh = square("data", "tensor")
    model = parallelize(language(), mesh["tensor"])

    def average() -> None:
        for parameter in model.parameters():
            dist.all_reduce(local(parameter.grad), dist.ReduceOp.SUM, group=mesh["data"].get_group())
            local(parameter.grad).div_(2)

    optimizer = adamw(model)
    with counted() as snapshots, attach(model, optimizer, directory, **OPTIONS):
        train(model, optimizer, part=mesh.get_local_rank("data"), parts=2, before_step=average)
    return {"snapshots": snapshots}


def hybrid(directory: Path) -> dict[str, Any]:
    """HSDP: two replicas of two shards each."""
    model = shard(language(), square("replicate", "shard"))
    with counted() as snapshots:
        record(model, directory, dist.get_rank(), dist.get_world_size())
    return {"snapshots": snapshots}


LAYOUTS: dict[int, dict[str, tuple[Any, ...]]] = {
    2: {"rows": (Shard(0),), "columns": (Shard(1),), "last": (Shard(3),), "repeated": (Replicate(),)},
    3: {"rows": (Shard(0),), "columns": (Shard(1),)},
    4: {
        "rows, rows": (Shard(0), Shard(0)),
        "rows, columns": (Shard(0), Shard(1)),
        "columns, rows": (Shard(1), Shard(0)),
        "repeated, rows": (Replicate(), Shard(0)),
        "columns, repeated": (Shard(1), Replicate()),
    },
}


def laid_out(directory: Path, placements: tuple[Any, ...], dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """The zoo in shards; what this process keeps of W0 beside what it holds of the weights."""
    model = lay_out(zoo(dtype), line() if len(placements) == 1 else square(), *placements)
    kept: dict[str, Any] = {}
    real = inrank_monitor.tracking.tracker.SpectrumTracker.__init__

    def looking(tracker: Any, started: Any, measuring: Any, *rest: Any) -> None:
        held = {measuring.matrices[place].parameter for place in measuring.share.held}
        kept["first"] = {name: tuple(measuring.initial.of(name, torch.device("cpu")).shape) for name in held}
        kept["held"] = {name: tuple(local(model.get_parameter(name)).shape) for name in held}
        real(tracker, started, measuring, *rest)

    inrank_monitor.tracking.tracker.SpectrumTracker.__init__ = looking  # type: ignore[method-assign]
    try:
        tracker = step_zoo(model, directory, **options)
    finally:
        inrank_monitor.tracking.tracker.SpectrumTracker.__init__ = real  # type: ignore[method-assign]
    notes = {row.parameter: row.note for row in tracker.coverage if not row.watched}
    return kept | {"notes": notes, "weights": whole(model)}


class Communication(TorchDispatchMode):
    """Counts what is sent: (operation, entries of the first tensor)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            first = args[0]
            while isinstance(first, list | tuple):
                first = first[0] if first else torch.empty(0)
            self.found.append((func._schema.name.split("::")[1], first.numel()))
        return func(*args, **kwargs or {})


def communication(directory: Path) -> dict[str, Any]:
    """What one snapshot sends, and the pieces that it is of."""
    model = shard(language(), line())
    optimizer = adamw(model)
    with attach(model, optimizer, directory, **OPTIONS | {"every": 100, "include": "blocks.*"}) as tracker:
        train(model, optimizer, range(1), dist.get_rank(), dist.get_world_size())
        with Communication() as seen:
            tracker.measure()
    pieces = [tuple(local(value).shape) for name, value in model.named_parameters() if value.ndim == 2]
    return {"sent": dict(Counter(seen.found)), "pieces": pieces}


def broken_weights(directory: Path) -> None:
    """NaN in the shard of the last process, and then in none."""
    model = shard(language(), line())
    optimizer = adamw(model)
    with attach(model, optimizer, directory, **OPTIONS | {"every": 1}):
        for step in range(2):
            if step == 0 and dist.get_rank() == dist.get_world_size() - 1:
                local(model.blocks[0].up.weight.detach())[0, 0] = torch.nan
            for value in model.parameters():
                value.grad = torch.ones_like(value)
            optimizer.step()
            model.blocks[0].up.weight.detach().fill_(0.5)


def refused(directory: Path) -> list[str]:
    """Layouts that cannot be watched: partial sums, and a mesh of one process of several."""
    notes = []
    for mesh, placement in ((line(), Partial()), (DeviceMesh("cpu", [0]), Shard(0))):
        try:
            attach(lay_out(nn.Linear(6, 4), mesh, placement), None, directory)
        except ValueError as error:
            notes.append(str(error))
    return notes


def sharded_late(directory: Path) -> None:
    """The tracker comes before `fully_shard`."""
    model = language(blocks=1)
    with attach(model, None, directory, **OPTIONS) as tracker:
        shard(model, line())
        tracker.step()
        tracker.step()


def common() -> dict[str, Scenario]:
    """What is tried on any number of processes."""
    made: dict[str, Scenario] = {
        f"layout {name}": lambda directory, where=where: laid_out(directory, where)  # type: ignore[misc]
        for name, where in LAYOUTS[dist.get_world_size()].items()
    }
    return made | {"NaN": broken_weights}


def on_two() -> dict[str, Scenario]:
    """With two processes."""
    rows = (Shard(0),)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    dropping: Callable[[], nn.Module] = lambda: gpt2(torch.float32, 0.1)  # noqa: E731
    return {
        "bits, DDP": lambda path: bits(path, lambda: DistributedDataParallel(dropping())),
        "bits, compiled DDP": lambda path: bits(path, lambda: _compiled(language(torch.float32))),
        "bits, FSDP2": lambda path: bits(path, lambda: shard(dropping(), line())),
        "bits, tensor parallel": lambda path: bits(path, lambda: parallelize(language(torch.float32), line())),
        "DDP": data_parallel,
        "automatic": lambda path: scheduled(path, max_overhead=0.5),
        "function": lambda path: scheduled(path, schedule=lambda step: step in (2, 3, 7)),
        "by hand": by_hand,
        "FSDP2": fully_sharded,
        "FSDP2, not resharded": lambda path: fully_sharded(path, reshard_after_forward=False),
        "FSDP2, bfloat16": lambda path: fully_sharded(path, lambda: gpt2(torch.float32), mp_policy=half),
        "FSDP2, offloaded": lambda path: fully_sharded(path, offload_policy=CPUOffloadPolicy(pin_memory=False)),
        "tensor parallel": tensor_parallel,
        "communication": communication,
        "float32": lambda path: laid_out(path, rows, torch.float32),
        "bfloat16": lambda path: laid_out(path, rows, torch.bfloat16),
        "memory": lambda path: laid_out(path, rows, initial_weights="memory"),
        "device": lambda path: laid_out(path, rows, initial_weights="device"),
        "leading": lambda path: laid_out(path, rows, leading=3),
        "refused": refused,
        "sharded late": sharded_late,
    }


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(DistributedDataParallel(model), backend="eager")
    return compiled


def on_three() -> dict[str, Scenario]:
    """With three processes, where nothing goes up evenly."""
    return {"DDP": data_parallel, "FSDP2": fully_sharded, "tensor parallel": tensor_parallel}


def on_four() -> dict[str, Scenario]:
    """With four, as two by two."""
    return {"FSDP2 × tensor parallel": both_parallel, "replicas": replicas, "HSDP": hybrid}


def main(number: int, count: int, directory: Path) -> None:
    """Run every scenario and keep what each returns."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=number, world_size=count,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    scenarios = common() | {2: on_two, 3: on_three, 4: on_four}[count]()
    for name, scenario in scenarios.items():
        torch.save(scenario(directory / name), directory / f"{name}-{number}.pt")
        print(f"{name}: {time.perf_counter() - BEGAN:.1f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
