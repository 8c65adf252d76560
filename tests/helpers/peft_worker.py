"""One process of LoRA trainings under DistributedDataParallel and FSDP2: python peft_worker.py NUMBER DIRECTORY."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

PROCESSES = 2


def adapted() -> nn.Module:
    """Two layers whose adapters begin with a product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's imports
        from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))
    config = LoraConfig(r=3, target_modules=["0", "2"], init_lora_weights=False)
    wrapped: nn.Module = get_peft_model(model, config)  # type: ignore[arg-type]
    return wrapped


def train(model: nn.Module, directory: Path, resumed: bool = False) -> None:
    """Three steps, watched; all processes see the same data."""
    from inrank_monitor import attach

    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    with attach(model, optimizer, directory, every=1, buffer_rank=2, tensorboard=False, resume=resumed) as tracker:
        for step in range(3):
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert tracker.step_count == (6 if resumed else 3)


def main() -> None:
    """Train each way, and go on in the same run with another tracker."""
    number, directory = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=number, world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    sharded = adapted()
    fully_shard(sharded.base_model.model[0])  # type: ignore[union-attr,index,operator]
    fully_shard(sharded)
    for name, model in (("ddp", DistributedDataParallel(adapted())), ("fsdp", sharded)):
        for resumed in (False, True):
            train(model, directory / name, resumed=resumed)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
