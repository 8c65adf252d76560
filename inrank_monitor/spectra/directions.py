"""Leading singular vectors, and the angles between the subspaces that they span.

From the Gram matrix of the short side in float64 and its eigenvectors. Directions whose singular value is below what
float32 weights can tell, max(rows, cols) · ε · σ₁, are left out: they are rounding.

References:
    Björck and Golub 1973, Numerical methods for computing angles between linear subspaces.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inrank_monitor.spectra.spectrum import float64, gram_matrix

_EPSILON = float(torch.finfo(torch.float32).eps)


class Subspaces(NamedTuple):
    """Leading singular vectors of one matrix, in float64 on the CPU; fewer than asked for where its rank is less.

    Attributes:
        left: (rows, k) of its outputs.
        right: (cols, k) of its inputs.
    """

    left: Tensor
    right: Tensor


@torch.no_grad()
def leading_directions(matrix: Tensor, count: int | None = None) -> Subspaces | None:
    """The `count` leading singular vectors of a matrix, or all; None if it is not finite.

    Raises:
        torch.linalg.LinAlgError: the eigenvalue iteration did not converge.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if tall else matrix
    gram = gram_matrix(wide).cpu()
    if not bool(torch.isfinite(gram.diagonal()).all()):
        return None
    squares, vectors = torch.linalg.eigh(gram, UPLO="L")
    values = squares.clamp_min(0).sqrt().flip(0)
    kept = int((values > max(matrix.shape) * _EPSILON * values[0]).sum()) if bool(values[0] > 0) else 0
    short = vectors.flip(1)[:, : kept if count is None else min(count, kept)]
    # Orthogonal to rounding also where a singular value is small, which A v / σ is not.
    long = torch.linalg.qr(float64(wide).cpu().mT @ short).Q
    return Subspaces(long, short) if tall else Subspaces(short, long)


@torch.no_grad()
def leading_directions_of_product(left: Tensor, right: Tensor, count: int) -> Subspaces | None:
    """The same of U V, from its factors (rows, k) and (k, cols), without forming it."""
    left, right = float64(left).cpu(), float64(right).cpu()
    if not bool(torch.isfinite(left).all() & torch.isfinite(right).all()):
        return None
    outer, inner = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    middle = leading_directions(outer.R @ inner.R.mT, count)
    return middle and Subspaces(outer.Q @ middle.left, inner.Q @ middle.right)


class Turn(NamedTuple):
    """How two subspaces lie to one another; NaN where one of them is empty.

    Attributes:
        overlap: mean cos² of the principal angles: 1 for the same, k / n on average for random ones of n dimensions.
        angle: the largest principal angle, in degrees.
    """

    overlap: float
    angle: float


def turn(first: Tensor, second: Tensor) -> Turn:
    """Between the spans of two matrices with orthonormal columns; of the smaller one in the larger one."""
    large, small = (first, second) if first.shape[1] >= second.shape[1] else (second, first)
    if small.shape[1] == 0:
        return Turn(math.nan, math.nan)
    large, small = large.double(), small.double()
    inside = large.mT @ small
    cosines = torch.linalg.svdvals(inside)
    # The sine from what lies outside: a small angle's cosine has no digits left.
    sine = torch.linalg.matrix_norm(small - large @ inside, 2)
    angle = math.degrees(math.atan2(float(sine), float(cosines[-1])))
    return Turn(min(float(cosines.square().mean()), 1.0), angle)
