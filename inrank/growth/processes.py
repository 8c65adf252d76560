"""What the active mode asks of a distributed training, if there is one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_number() -> int:
    """0 for the one that decides."""
    return dist.get_rank() if is_distributed() else 0


def meeting_device() -> str:
    """Where tensors must lie that processes exchange."""
    return "cuda" if is_distributed() and dist.get_backend() == "nccl" else "cpu"


def broadcast_integers(values: list[int]) -> list[int]:
    """Process 0's, everywhere."""
    if not is_distributed():
        return values
    decided = torch.tensor(values, device=meeting_device())
    dist.broadcast(decided, 0)
    return [int(value) for value in decided.tolist()]


def broadcast(*tensors: Tensor) -> None:
    """Make these tensors what they are on process 0, in place."""
    for tensor in tensors if is_distributed() else ():
        dist.broadcast(tensor, 0)


def sum_over_processes(tensor: Tensor) -> None:
    """Add up the processes' tensors, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
