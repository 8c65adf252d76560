"""Blocks of vectors, the stuff of block iterations: random ones, their products, what lies outside of a basis."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(length: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """(length, count) of N(0, 1), on the device and in the dtype of `like`; drawn on the CPU, alike everywhere."""
    drawn = torch.randn(length, count, generator=generator, dtype=torch.float32, device="cpu")
    return drawn.to(like.device, like.dtype)


def sketch(wide: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """A Ω, random. Where there are many columns, four at a time are first added with random weights, in one pass.

    Gaussian weights rather than signs: two columns that are alike or opposite do not cancel.
    """
    folds = 4 if wide.shape[1] >= 16 * width else 1
    columns = -(-wide.shape[1] // folds)
    weights = gaussian(wide.shape[1], 1, wide, generator)[:, 0]
    folded = wide[:, :columns] * weights[:columns]
    for start in range(columns, wide.shape[1], columns):
        part = wide[:, start : start + columns]
        folded[:, : part.shape[1]].addcmul_(part, weights[start : start + columns])
    return folded @ gaussian(columns, width, wide, generator)


def product(matrix: Tensor, block: Tensor) -> Tensor:
    """M block; for a transposed M as (blockᵀ Mᵀ)ᵀ, a tenth faster."""
    return matrix @ block if matrix.is_contiguous() else (block.mT @ matrix.mT).mT


def outside(basis: Tensor, block: Tensor) -> Tensor:
    """(I − V Vᵀ) block; again where little is left, since rounding leaves a trace in V of the size of the block."""
    for _ in range(2):
        inside = basis.mT @ block
        block = block - basis @ inside
        if float(torch.linalg.vector_norm(inside)) < 30 * float(torch.linalg.vector_norm(block)):
            break
    return block
