"""The block Krylov space of a matrix, in which its leading singular values are, and a bound of what they may lack.

V spans X, A AᵀX, (A Aᵀ)²X, ... of a random block X, a sixth as wide as the number of values asked for: for as many
products as two block iterations of a basis of full width, the values are right by orders of magnitude more. With
Θ = Vᵀ A Aᵀ V of eigenvalues θ, E = (I − V Vᵀ) A Aᵀ V and μ ≥ ‖(I − V Vᵀ) A‖₂², for every τ > μ:

    λ_i(A Aᵀ) ≤ max(ν_i, τ),   ν = λ(Θ + EᵀE / (τ − μ))

since by Sylvester's law of inertia A Aᵀ has as many eigenvalues above t > μ as Θ + Eᵀ(t − M)⁻¹E, M the rest of A Aᵀ
outside V, of norm μ at most. With τ = θ_k the bound is quadratic in the residuals of the values that were asked for.
Where μ > θ_k, as with slow decay, λ_i ≤ θ_i + μ is all that is known.

References:
    Musco and Musco 2015, Randomized block Krylov methods for stronger and faster approximate SVD, algorithm 2.
    Haynsworth 1968, Determination of the inertia of a partitioned Hermitian matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inrank_monitor.spectra.blocks import gaussian, outside, product, sketch
from inrank_monitor.spectra.spectrum import gram_matrix

_STEPS, _SHARE, _LEAST_BLOCK = 13, 6, 5


def krylov_sizes(count: int, iterations: int = 0) -> tuple[int, int]:
    """Columns of a block, and blocks, for so many values."""
    return max(-(-count // _SHARE), _LEAST_BLOCK), _STEPS + iterations


class KrylovSpace(NamedTuple):
    """What the space tells of A (p, q), p ≤ q.

    Attributes:
        basis: V (p, w), orthonormal: A's left singular vectors as far as they are known, strongest first.
        squares: θ, descending; float64 on the CPU.
        residual: EᵀE, in V's coordinates; float64 on the CPU.
    """

    basis: Tensor
    squares: Tensor
    residual: Tensor

    def upper(self, count: int, rest: float) -> Tensor:
        """Upper bounds of the `count` leading eigenvalues of A Aᵀ.

        Args:
            count: of them.
            rest: μ.
        """
        squares = self.squares[:count]
        plain = squares + rest
        least = float(squares[-1])
        if not rest < least:
            return plain
        coupled = self.residual / (least - rest) + torch.diag(self.squares)
        return torch.minimum(plain, torch.linalg.eigvalsh(coupled).flip(0)[:count].clamp_min(least))


def krylov_space(wide: Tensor, block: int, blocks: int, generator: torch.Generator) -> KrylovSpace:
    """Two products of a block with the matrix for each block.

    Args:
        wide: A (p, q), p ≤ q.
        block: columns of one.
        blocks: how many; at most p columns in all.
        generator: of X = A Ω.
    """
    basis = wide.new_zeros(wide.shape[0], 0)
    new, size = sketch(wide, block, generator), 0.0
    images: list[Tensor] = []
    left_over: list[Tensor] = []
    while True:
        found = _new_directions(basis, new, size, generator)
        if images:  # of the block before: what its products hold that no direction stands for
            left_over.append(new - found @ (found.mT @ new))
        basis = torch.cat([basis, found], dim=1)
        images.append(product(wide.mT, found))
        new = product(wide, images[-1])
        size = max(size, float(torch.linalg.vector_norm(new, dim=0).max()))
        new = outside(basis, new)
        if len(images) >= blocks or basis.shape[1] + block > wide.shape[0]:
            break
    left_over.append(new)
    return _rotated(basis, torch.cat(images, dim=1), torch.cat(left_over, dim=1))


def _new_directions(basis: Tensor, block: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """As many orthonormal columns as the block has, all outside V; random ones for what is nothing beside `size`."""
    found, triangle = torch.linalg.qr(block)
    found = _with_others(found, triangle.diagonal().abs() <= 4 * torch.finfo(block.dtype).eps * size, generator)
    for _ in range(4):
        inside = basis.mT @ found
        if inside.numel() == 0 or float(inside.abs().max()) < 8 * torch.finfo(block.dtype).eps:
            break
        found = found - basis @ inside
        found = _with_others(found, torch.linalg.vector_norm(found, dim=0) < 1e-3, generator)
    return found


def _with_others(columns: Tensor, lost: Tensor, generator: torch.Generator) -> Tensor:
    """Orthonormal ones, with random directions in the places of those that are lost."""
    if bool(lost.any()):
        columns = torch.where(lost, gaussian(len(columns), columns.shape[1], columns, generator), columns)
    found: Tensor = torch.linalg.qr(columns).Q
    return found


def _rotated(basis: Tensor, image: Tensor, left_over: Tensor) -> KrylovSpace:
    """Into the coordinates of θ's vectors, so that the basis is in the order of the values."""
    squares, vectors = torch.linalg.eigh(gram_matrix(image.mT).cpu(), UPLO="L")
    squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
    residual = gram_matrix(left_over.mT).cpu()
    residual = residual.tril() + residual.tril(-1).mT
    rotation = vectors.to(basis.device, basis.dtype)
    return KrylovSpace(basis @ rotation, squares, vectors.mT @ residual @ vectors)
