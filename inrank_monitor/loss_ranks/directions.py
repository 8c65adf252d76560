"""An update taken apart once into its directions, from which every truncation of it is a product.

Eigenvectors Q of the Gram matrix of the short side, in float64 on the CPU as spectra are; then ΔW = P Qᵀ with P = ΔW Q,
whose columns are orthogonal and have the singular values as lengths. Whatever rounding does to the smallest of them,
Q stays orthogonal, and all directions together are ΔW.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inrank_monitor.spectra import float64, gram_matrix


class Directions(NamedTuple):
    """ΔW = left @ right, direction by direction, the strongest first.

    Attributes:
        left: (rows, k).
        right: (k, cols).
        singular_values: (k,), descending, in float64 on the CPU.
    """

    left: Tensor
    right: Tensor
    singular_values: Tensor

    @property
    def full_rank(self) -> int:
        """How many there are."""
        return len(self.singular_values)

    def leading(self, rank: int) -> Tensor:
        """The sum of so many of them, (rows, cols)."""
        return self.left[:, :rank] @ self.right[:rank]


@torch.no_grad()
def directions(update: Tensor) -> Directions:
    """Of a (rows, cols) update in float32 or wider, on its device.

    Raises:
        ValueError: it holds NaN or infinity.
        torch.linalg.LinAlgError: the iteration did not converge.
    """
    wide = update.shape[0] <= update.shape[1]
    short = update if wide else update.mT
    gram = gram_matrix(short).cpu()
    if not bool(torch.isfinite(gram.diagonal()).all()):
        raise ValueError("it holds NaN or infinity")
    squares, vectors = torch.linalg.eigh(gram, UPLO="L")
    squares, vectors = squares.flip(0), vectors.flip(1).to(update.device, update.dtype).contiguous()
    if wide:
        left, right = vectors, vectors.mT @ update
    else:
        left, right = update @ vectors, vectors.mT.contiguous()
    return Directions(left, right, squares.clamp_min(0).sqrt())


@torch.no_grad()
def left_vectors(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal left singular vectors (rows, k) of left @ right, and its singular values (k,), descending.

    By QR of both factors and an SVD of the small middle, in float64 on the CPU.

    Raises:
        ValueError: a factor holds NaN or infinity.
    """
    left, right = float64(left).cpu(), float64(right).cpu()
    if not bool(torch.isfinite(left).all() & torch.isfinite(right).all()):
        raise ValueError("it holds NaN or infinity")
    basis, first = torch.linalg.qr(left)
    second = torch.linalg.qr(right.mT, mode="r").R
    vectors, values, _ = torch.linalg.svd(first @ second.mT, full_matrices=False)
    return basis @ vectors, values
