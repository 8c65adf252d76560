"""Singular values: of a dense matrix, of a product of factors.

The default is the Gram matrix of the short side in float64 and its eigenvalues: a sixth of the time of a float32 SVD at
GPT-2's shapes, and closer to the truth. Squaring halves the digits of small values, so a value below about 1e-8 σ₁ is
noise; `method="svd"` has no such floor. Everything runs without autograd and without the global random state, and
leaves its arguments alone. A matrix with NaN or infinity gives NaN throughout; one with no entries gives no values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from inrank_monitor.spectra.devices import has_float64
from inrank_monitor.spectra.eigenvalues import eigenvalues
from inrank_monitor.spectra.scratch import scratch

Method = Literal["gram", "svd", "qr"]
_BLOCKS, _COLUMNS = 4, 512


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix, on the CPU in float64.

    Attributes:
        values: (k,), descending.
        error_bound: absolute bound on the error of any of `values`, rounding aside; 0 for a full spectrum.
        frobenius_norm: ‖A‖_F of the whole matrix, also where `values` holds only the leading ones.
    """

    values: Float[Tensor, " k"]
    error_bound: float
    frobenius_norm: float


@torch.no_grad()
def singular_values(matrix: Float[Tensor, "rows cols"], method: Method = "gram") -> Float[Tensor, " n"]:
    """All min(rows, cols) singular values, descending: √λ(A Aᵀ) of the short side, or an exact SVD.

    Args:
        matrix: any floating dtype and device; the products run there, in float64 where the device has it.
        method: `"gram"`, or `"svd"` for `torch.linalg.svdvals` in float64. An eigenvalue iteration that does not
            converge falls back to it.

    Raises:
        ValueError: not a matrix, or an unknown method.
        torch.linalg.LinAlgError: neither method converged.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a matrix has two dimensions, got shape {tuple(matrix.shape)}")
    if method not in ("gram", "svd"):
        raise ValueError(f"method must be 'gram' or 'svd', got {method!r}")
    if matrix.numel() == 0:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if method == "gram":
        try:
            return singular_values_of_gram(gram_matrix(wide))
        except LinAlgError:
            pass  # answered by the SVD below, which raises if it fails too
    wide = float64(wide).cpu()
    if not bool(torch.isfinite(wide).all()):
        return not_finite(wide.shape[0])
    values: Tensor = torch.linalg.svdvals(wide)
    return values


@torch.no_grad()
def singular_values_of_product(
    left: Float[Tensor, "rows k"], right: Float[Tensor, "k cols"], method: Method = "gram"
) -> Float[Tensor, " n"]:
    """Leading min(rows, k, cols) singular values of U V, descending, without forming U V; the others are zero.

    `"gram"`: with UᵀU = L Lᵀ, σ(U V)² = λ(Lᵀ (V Vᵀ) L), all k × k in float64; absolute error about 1e-8 ‖U‖‖V‖.
    `"qr"`: σ of R_U R_Vᵀ, error about 1e-15 ‖U‖‖V‖, two to three times the cost.

    Raises:
        ValueError: the inner sides differ, or an unknown method.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"factors must be (rows, k) and (k, cols), got {tuple(left.shape)}, {tuple(right.shape)}")
    if method not in ("gram", "qr"):
        raise ValueError(f"method must be 'gram' or 'qr', got {method!r}")
    count = min(left.shape[0], *right.shape)
    if count == 0:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    if method == "qr":
        left_root = torch.linalg.qr(float64(left), mode="r").R
        right_root = torch.linalg.qr(float64(right.mT), mode="r").R
        return singular_values(left_root @ right_root.mT, "svd")[:count]
    left_gram, right_gram = grams_of_product(left, right)
    return singular_values_of_grams(left_gram.cpu(), right_gram.cpu(), count)


def grams_of_product(left: Float[Tensor, "rows k"], right: Float[Tensor, "k cols"]) -> tuple[Tensor, Tensor]:
    """Lower triangles of UᵀU and V Vᵀ, from which `singular_values_of_grams` has the values of U V."""
    return gram_matrix(left.detach().mT), gram_matrix(right.detach())


@torch.no_grad()
def singular_values_of_grams(left_gram: Tensor, right_gram: Tensor, count: int) -> Tensor:
    """The `count` leading singular values of U V, from `grams_of_product` on the CPU."""
    if not bool(torch.isfinite(left_gram.diagonal() + right_gram.diagonal()).all()):
        return not_finite(count)
    right_gram = right_gram.tril() + right_gram.tril(-1).mT
    factor, failed = torch.linalg.cholesky_ex(left_gram)
    if int(failed):  # columns that are zero or dependent, as new ones are
        eigenvalues, vectors = torch.linalg.eigh(left_gram, UPLO="L")
        factor = vectors * eigenvalues.clamp_min(0).sqrt()
    return _roots(torch.linalg.eigvalsh(factor.mT @ right_gram @ factor))[:count]


def float64(matrix: Tensor) -> Tensor:
    """The matrix in float64, on its device if that has it."""
    matrix = matrix.detach()
    return (matrix if has_float64(matrix.device) else matrix.cpu()).double()


def gram_matrix(
    wide: Float[Tensor, "rows cols"], take_away: Callable[[Tensor, int], None] | None = None
) -> Float[Tensor, "rows rows"]:
    """Lower triangle of A Aᵀ in float64, by blocks: 5/8 of the products; what lies above the blocks is undefined.

    Some columns at a time, so that the float64 copy is never as large as the matrix.

    Args:
        wide: A, or A + B.
        take_away: given some columns in float64 and the place of the first, takes those of B from them.
    """
    rows, blocks = wide.shape[0], _BLOCKS if wide.shape[0] >= 128 else 1
    device = wide.device if has_float64(wide.device) else torch.device("cpu")
    gram = scratch((rows, rows), torch.float64, device)
    edges = [rows * block // blocks for block in range(blocks + 1)]
    size = columns_at_a_time(rows, wide.shape[1])
    room = scratch((rows, size), torch.float64, device)
    for start in range(0, wide.shape[1], max(size, 1)):
        some = wide.detach()[:, start : start + size].to(device)
        columns = room[:, : some.shape[1]].copy_(some)
        if take_away is not None:
            take_away(columns, start)
        for top, bottom in pairwise(edges):
            gram[top:bottom, :bottom].addmm_(columns[top:bottom], columns[:bottom].mT)
    return gram


def columns_at_a_time(rows: int, cols: int) -> int:
    """How many columns of a (rows, cols) matrix `gram_matrix` widens to float64 at a time."""
    return min(cols, max(rows // 2, _COLUMNS))


def singular_values_of_gram(gram: Float[Tensor, "rows rows"]) -> Float[Tensor, " rows"]:
    """√λ, descending, of a Gram matrix of which only the lower triangle is read; NaN if it is not finite.

    The matrix is overwritten.

    Raises:
        torch.linalg.LinAlgError: the eigenvalue iteration did not converge.
    """
    if not bool(torch.isfinite(gram.diagonal()).all()):
        return not_finite(gram.shape[0])
    return _roots(eigenvalues(gram))


def _roots(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.clamp_min(0).sqrt().flip(0)


def not_finite(count: int) -> Tensor:
    """`count` times NaN."""
    return torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")
