"""Blocks of vectors, the stuff of block iterations: random ones, orthonormal bases, what lies outside of a basis."""

from __future__ import annotations

import torch
from torch import Tensor

from inrank_monitor.spectra.spectrum import float64, gram_matrix


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


def complement(basis: Tensor, block: Tensor) -> Tensor:
    """As many orthonormal columns as the block has, all outside V: the block's where it has that many, else random."""
    added: Tensor
    added, triangle = torch.linalg.qr(outside(basis, block))
    lengths = triangle.diagonal().abs()
    if float(lengths.min()) <= 1e-4 * float(lengths.max()):  # Q of a block of lower rank points anywhere, into V too
        random = gaussian(block.shape[0], block.shape[1], block, torch.Generator("cpu").manual_seed(0))
        added = torch.linalg.qr(outside(basis, random)).Q
    return added


def left_vectors(image: Tensor) -> tuple[Tensor, Tensor]:
    """σ², descending, float64 on the CPU, and the left singular vectors.

    From the Gram matrix. Where the columns are nearly orthogonal, as after a good start, float32 is enough for a
    float32 image however far the values are apart, since rounding is relative to the columns' lengths. Else float64,
    and the vectors are made orthonormal once more.
    """
    gram = (image.mT @ image).cpu().double()
    squares, vectors = _descending(gram)
    lengths = gram.diagonal().clamp_min(0).sqrt()
    rotation = vectors / squares.sqrt().clamp_min(1e-300)
    low, high = torch.aminmax(torch.linalg.vector_norm(rotation * lengths[:, None], dim=0))
    if 0.01 < float(low) <= float(high) < 10:  # NaN fails as well
        return squares, image @ rotation.to(image.device, image.dtype)
    squares, vectors = _descending(gram_matrix(image.mT).cpu())
    return squares, orthonormal(image @ vectors.to(image.device, image.dtype))


def _descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those below 0 by rounding as 0, and eigenvectors."""
    values, vectors = torch.linalg.eigh(gram, UPLO="L")
    return values.flip(0).clamp_min(0), vectors.flip(1)


def orthonormal(tall: Tensor) -> Tensor:
    """Orthonormal basis of the columns: Cholesky QR in float64, again while it is ill-conditioned, else Householder QR.

    Cholesky QR loses κ²ε of orthogonality; the ratio of the factor's diagonal entries stands in for κ.
    """
    wide: Tensor = float64(tall)
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(wide.mT @ wide)
        if int(failed):
            break
        wide = torch.linalg.solve_triangular(factor.mT, wide, upper=True, left=False)
        diagonal = factor.diagonal()
        if float(diagonal.max() / diagonal.min()) < 1e4:
            return wide.to(tall.device, tall.dtype)
    basis: Tensor = torch.linalg.qr(tall).Q
    return basis
