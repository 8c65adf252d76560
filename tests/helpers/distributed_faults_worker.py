"""One process of several whose tracker meets faults; `test_distributed_faults.py` starts them.

python distributed_faults_worker.py PROCESS PROCESSES DIRECTORY faults|resume|another|killed [ARGUMENT]
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.distributed_models import OPTIONS, adamw, language, record, shard, train
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import inrank_monitor.tracking.snapshot
from inrank_monitor import SpectrumTracker, attach
from inrank_monitor.distributed import processes
from inrank_monitor.matrices.matrix import local

EVERY = OPTIONS | {"every": 1}
WAYS = ("DDP", "FSDP2")


def made(way: str) -> nn.Module:
    """The model, over all processes."""
    model = language(blocks=1)
    if way == "DDP":
        return DistributedDataParallel(model)
    return shard(model, init_device_mesh("cpu", (dist.get_world_size(),)))  # type: ignore[no-any-return]


def message(action: Callable[[], object]) -> str:
    """Kind and text of the error."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> list[float]:
    return train(model, optimizer, which, dist.get_rank(), dist.get_world_size())


def refused(directory: Path) -> dict[str, str]:
    """What attach refuses, on every process."""
    first, number = dist.get_rank() == 0, dist.get_rank()
    record(made("DDP"), directory / "there", number, 2)
    model, sharded = made("DDP"), made("FSDP2")
    torch.manual_seed(number)
    strangers = nn.Sequential(nn.Linear(4, 4))
    found = {
        "run there": message(lambda: attach(model, None, directory / "there")),
        "other matrices": message(lambda: attach(language(width=24 if first else 12), None, directory / "a")),
        "other values": message(lambda: attach(strangers, None, directory / "b")),
        "shards alone": message(lambda: attach(sharded, None, directory / "c", distributed=False)),
        "flat": message(lambda: attach(_flat(True), None, directory / "d")),
        "flat, original parameters": message(lambda: attach(_flat(True, use_orig_params=True), None, directory / "d")),
        "flat inside": message(lambda: attach(_flat(False), None, directory / "d")),
    }
    blocked = directory / "e"
    if first:
        (blocked / "initial_weights-001.safetensors").mkdir(parents=True)
    dist.barrier()
    found["no room for W0"] = message(lambda: attach(model, None, blocked))
    dist.barrier()
    if first:
        (blocked / "initial_weights-001.safetensors").rmdir()
    dist.barrier()
    found["room again"] = message(lambda: record(model, blocked, number, 2))
    return found


def _flat(outside: bool, **options: Any) -> nn.Module:
    """FSDP1, around the model or in it."""
    device = torch.device("cpu")
    if outside:
        return FullyShardedDataParallel(language(blocks=1), device_id=device, **options)
    return nn.Sequential(nn.Linear(4, 4), FullyShardedDataParallel(nn.Linear(4, 4), device_id=device, **options))


def forgotten_attach(directory: Path) -> list[str]:
    """The first process attaches alone, gives up, and then both do."""
    model = made("DDP")
    found = [message(lambda: _impatient(lambda: attach(model, None, directory)))] if dist.get_rank() == 0 else []
    dist.barrier()
    found.append(message(lambda: record(model, directory, dist.get_rank(), 2)))
    return found


def _impatient(action: Callable[[], object]) -> None:
    patience, processes._MEETING_SECONDS = processes._MEETING_SECONDS, 1.0
    try:
        action()
    finally:
        processes._MEETING_SECONDS = patience


def alone(directory: Path) -> None:
    """Each process a run of its own."""
    record(made("DDP"), directory / str(dist.get_rank()), dist.get_rank(), 2, distributed=False)


def _tracked(directory: Path, way: str, fault: Callable[[int, nn.Module, Any], None], **options: Any) -> list[float]:
    """Six steps with a fault before each; the losses."""
    model = made(way)
    optimizer = adamw(model)
    losses = []
    with attach(model, optimizer, directory, **EVERY | options) as tracker:
        for step in range(1, 7):
            fault(step, model, tracker)
            losses += steps(model, optimizer, range(step, step + 1))
    return losses


def cut_file(directory: Path, way: str) -> list[float]:
    """W0 of the second process is cut short after three steps."""

    def fault(step: int, model: nn.Module, tracker: SpectrumTracker) -> None:
        if step == 4 and dist.get_rank() == 1:
            os.truncate(directory / "initial_weights-001.safetensors", 2000)

    return _tracked(directory, way, fault)


def failing_read(directory: Path, way: str) -> list[float]:
    """The second process cannot read its weights for one snapshot."""
    real = inrank_monitor.tracking.snapshot.read_values

    def broken(*arguments: Any) -> Any:
        raise KeyError("no such thing")

    def fault(step: int, model: nn.Module, tracker: SpectrumTracker) -> None:
        at_fault = step == 3 and dist.get_rank() == 1
        inrank_monitor.tracking.snapshot.read_values = broken if at_fault else real  # type: ignore[attr-defined]

    return _tracked(directory, way, fault)


def failing_schedule(directory: Path) -> list[float]:
    """A function that cannot answer for step 3."""
    return _tracked(directory, "DDP", lambda *_: None, every=None, schedule=lambda step: 1 / (step - 3) < 9)


def strict(directory: Path, way: str) -> list[str]:
    """A NaN on the second process alone."""
    model = made(way)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    with attach(model, None, directory, **EVERY, strict=True) as tracker:
        found = [message(tracker.step)]
        if dist.get_rank() == 1:
            with torch.no_grad():
                for parameter in inner.parameters():
                    local(parameter).fill_(torch.nan)
        found.append(message(tracker.step))
    return found


def one_raises(directory: Path) -> str:
    """An error in the loop of the second process; the first ends its loop and closes."""

    def loop() -> None:
        model = made("DDP")
        optimizer = adamw(model)
        with attach(model, optimizer, directory, **OPTIONS):
            steps(model, optimizer, range(3))
            if dist.get_rank() == 1:
                raise KeyError("a mistake")

    return message(loop)


def lone_call(directory: Path, call: str, way: str) -> list[float]:
    """`measure` or `close` on the first process alone; training goes on on both."""
    model = made(way)
    optimizer = adamw(model)
    tracker = attach(model, optimizer, directory, **OPTIONS | {"every": 5})
    losses = steps(model, optimizer, range(3))
    if dist.get_rank() == 0:
        _impatient(getattr(tracker, call))
    losses += steps(model, optimizer, range(3, 8))
    if dist.get_rank() == 1 or call == "measure":
        tracker.close()
    return losses


def begun(directory: Path) -> None:
    """Eight steps in one go, and four steps of which a checkpoint is kept, and two that are lost."""
    for name, first in (("whole", 8), ("parts", 4)):
        model = made("FSDP2")
        optimizer = adamw(model)
        tracker = attach(model, optimizer, directory / name, **EVERY)
        steps(model, optimizer, range(first))
        if name == "parts":
            tracker.flush()
            weights, state = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=directory / "checkpoint")
            steps(model, optimizer, range(4, 6))
        tracker.close()


def forgotten_close(directory: Path) -> None:
    """The process ends, in order, without `close`."""
    model = made("DDP")
    optimizer = adamw(model)
    global kept_alive
    kept_alive = attach(model, optimizer, directory, **OPTIONS)
    steps(model, optimizer, range(5))


kept_alive: Any = None


def faults() -> dict[str, Callable[[Path], Any]]:
    """All of them, on two processes that outlive them."""
    found: dict[str, Callable[[Path], Any]] = {
        "refused": refused,
        "forgotten attach": forgotten_attach,
        "alone": alone,
        "failing schedule": failing_schedule,
        "one raises": one_raises,
        "begun": begun,
    }
    for way in WAYS:
        found |= {
            f"cut file, {way}": lambda path, way=way: cut_file(path, way),  # type: ignore[misc]
            f"failing read, {way}": lambda path, way=way: failing_read(path, way),  # type: ignore[misc]
            f"strict, {way}": lambda path, way=way: strict(path, way),  # type: ignore[misc]
            f"lone measure, {way}": lambda path, way=way: lone_call(path, "measure", way),  # type: ignore[misc]
            f"lone close, {way}": lambda path, way=way: lone_call(path, "close", way),  # type: ignore[misc]
        }
    return found | {"forgotten close": forgotten_close}


def resume(directory: Path, there: Path) -> dict[str, str]:
    """New processes go on with the run that `begun` left in `there`; a damaged copy is refused."""
    model = made("FSDP2")
    optimizer = adamw(model)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=there / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    damaged, single = directory / "damaged", directory / "single"
    if dist.get_rank() == 0:
        shutil.copytree(there / "parts", damaged)
        with (damaged / "initial_weights-001.safetensors").open("r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.write(b"damaged")
        record(language(blocks=1), single, distributed=False)
    dist.barrier()
    found = {
        "damaged": message(lambda: attach(model, optimizer, damaged, **EVERY, resume=True)),
        "begun by one": message(lambda: attach(model, optimizer, single, **EVERY, resume=True)),
    }
    tracker = attach(model, optimizer, there / "parts", **EVERY, resume=True)
    steps(model, optimizer, range(4, 8))
    tracker.close()
    tracker = attach(model, optimizer, directory / "shut down", **OPTIONS)
    steps(model, optimizer, range(1))
    dist.destroy_process_group()
    tracker.close()
    return found


def another(directory: Path, there: Path) -> dict[str, str]:
    """Three processes, and a run of two; and a run of two matrices, that begins again at its first weights."""
    model = made("FSDP2")
    found = {"begun by two": message(lambda: attach(model, adamw(model), there / "parts", **EVERY, resume=True))}
    few = {"include": ["blocks.0.up.weight", "head.weight"]}
    record(made("DDP"), directory / "few", dist.get_rank(), 3, **few)
    begins_again = made("DDP")
    with attach(begins_again, adamw(begins_again), directory / "few", **OPTIONS, **few, resume=True) as tracker:
        found["step"] = str(tracker.step_count)
    return found


def killed(directory: Path, victim: int) -> str:
    """The process `victim` is killed before step 6 of a training; what the others see."""
    model = made("DDP")
    optimizer = adamw(model)

    def loop() -> None:
        with attach(model, optimizer, directory / "run", **EVERY) as tracker:
            for step in range(8):
                if step == 5:
                    tracker.flush()
                    (directory.parent / f"steps-{dist.get_rank()}").write_text(repr(tracker.finished_steps))
                    dist.barrier()
                    if dist.get_rank() == victim:
                        os.kill(os.getpid(), signal.SIGKILL)
                steps(model, optimizer, range(step, step + 1))

    return message(loop)


def main(number: int, count: int, directory: Path, mode: str, argument: str) -> None:
    """Run what `mode` says, and keep what it returns."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    warnings.filterwarnings("ignore", category=FutureWarning)  # FSDP1 is deprecated
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=number, world_size=count,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    single: dict[str, Callable[[Path], Any]] = {
        "resume": lambda path: resume(path, Path(argument)),
        "another": lambda path: another(path, Path(argument)),
        "killed": lambda path: killed(path, int(argument)),
    }
    for name, scenario in (faults() if mode == "faults" else {mode: single[mode]}).items():
        (directory / name).mkdir(exist_ok=True)
        torch.save(scenario(directory / name), directory / f"{name}-{number}.pt")
        print(name, flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], (sys.argv[5:] or [""])[0])
