"""One process of two that measure W_t and directions beside the updates, in DistributedDataParallel and in shards.

python distributed_beside_worker.py PROCESS PROCESSES DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.training import mlp, sgd, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from inrank_monitor import attach

BESIDE: dict[str, Any] = {"of": ("update", "weight"), "directions": 4}
STEPS = 3


def replicated(directory: Path) -> list[int]:
    """The steps that on_snapshot got on this process."""
    model, seen = mlp(12, 16, 10), list[int]()
    wrapped, optimizer = DistributedDataParallel(model), sgd(model)

    def look(table: Any) -> None:
        seen.append(int(table["step"].iloc[0]))

    options = {"every": 1, "tensorboard": False, "on_snapshot": look}
    with attach(wrapped, optimizer, directory / "replicated", **options, **BESIDE):
        train(model, optimizer, STEPS)
    return seen


def refusals(directory: Path) -> list[str]:
    """What attach says of a model in shards, to each argument."""
    model = mlp(12, 16, 10)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    said = []
    for name, value in BESIDE.items():
        try:
            attach(model, sgd(model), directory / name, **{name: value})
        except ValueError as error:
            said.append(str(error))
    return said


def main(number: int, count: int, directory: Path) -> None:
    """Run both, and keep what they return."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=number, world_size=count)
    for scenario in (replicated, refusals):
        torch.save(scenario(directory), directory / f"{scenario.__name__}-{number}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
