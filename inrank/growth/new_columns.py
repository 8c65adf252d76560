"""What the columns that a growing layer takes into use start from (Algorithm 2 line 8)."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from inrank.layers import InRankLinear


def draw_columns(layer: InRankLinear, rank: int, seed: str) -> tuple[Tensor | None, Tensor]:
    """Columns for U and rows for V for a growth to `rank`, drawn from the seed on the CPU: equal on every process.

    The rows of V are as large as those in use, so that new columns are no louder than old ones. U's stay zero (None),
    so that the output does not change; without W0 they are drawn too, at full scale, as the published code does.
    """
    used = layer.used
    count = min(rank + layer.buffer_rank, layer.capacity) - used
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(seed.encode()))
    rows = _as_large_as(
        layer.V[:used], torch.randn(count, layer.cols, generator=generator, dtype=torch.float32, device="cpu")
    )
    if layer.initial_weight is not None:
        return None, rows
    return _as_large_as(
        layer.U[:, :used], torch.randn(layer.rows, count, generator=generator, dtype=torch.float32, device="cpu")
    ), rows


def _as_large_as(present: Tensor, new: Tensor) -> Tensor:
    """The new entries at the root mean square of the present ones."""
    new = new.to(present.device)
    return new * (present.detach().float().square().mean() / new.square().mean()).sqrt()
