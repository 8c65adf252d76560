"""Singular values: of a dense matrix, of a product of factors, the leading k; many matrices on all cores.

The default is the Gram matrix of the short side in float64 and its eigenvalues: a sixth of the time of a float32 SVD at
GPT-2's shapes, and closer to the truth. Squaring halves the digits of small values, so a value below about 1e-8 σ₁ is
noise; `method="svd"` has no such floor. Everything runs without autograd and without the global random state, and
leaves its arguments alone. A matrix with NaN or infinity gives NaN throughout; one with no entries gives no values.

References:
    Halko, Martinsson and Tropp 2011, Finding structure with randomness, algorithm 4.4.
    Kahan 1967; see Parlett 1998, The symmetric eigenvalue problem, theorem 11.5.1 (residual bounds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

Method = Literal["gram", "svd", "qr"]
_BLOCKS = 4
_OVERSAMPLING = 8


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
    wide = _float64(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT)
    if method == "gram":
        gram = _lower_gram(wide)
        if not bool(torch.isfinite(gram.diagonal()).all()):
            return _not_finite(wide.shape[0])
        try:
            return _roots(torch.linalg.eigvalsh(gram.cpu(), UPLO="L"))
        except LinAlgError:
            pass  # answered by the SVD below, which raises if it fails too
    if not bool(torch.isfinite(wide).all()):
        return _not_finite(wide.shape[0])
    values: Tensor = torch.linalg.svdvals(wide)
    return values.cpu()


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
        left_root = torch.linalg.qr(_float64(left), mode="r").R
        right_root = torch.linalg.qr(_float64(right.mT), mode="r").R
        return singular_values(left_root @ right_root.mT, "svd")[:count]
    left_gram = _lower_gram(_float64(left.mT)).cpu()
    right_gram = _lower_gram(_float64(right)).cpu()
    if not bool(torch.isfinite(left_gram.diagonal() + right_gram.diagonal()).all()):
        return _not_finite(count)
    right_gram = right_gram.tril() + right_gram.tril(-1).mT
    factor, failed = torch.linalg.cholesky_ex(left_gram)
    if int(failed):  # columns that are zero or dependent, as new ones are
        eigenvalues, vectors = torch.linalg.eigh(left_gram, UPLO="L")
        factor = vectors * eigenvalues.clamp_min(0).sqrt()
    return _roots(torch.linalg.eigvalsh(factor.mT @ right_gram @ factor))[:count]


@torch.no_grad()
def leading_singular_values(
    matrix: Float[Tensor, "rows cols"],
    count: int,
    *,
    tolerance: float = 0.1,
    max_iterations: int = 4,
    seed: int = 0,
) -> Spectrum:
    """The `count` largest singular values, by a random range finder with subspace iterations until a bound is met.

    With Q an orthonormal basis of A Ω and B = Qᵀ A: σ_i(B) ≤ σ_i(A) ≤ √(σ_i(B)² + ‖A‖_F² − ‖B‖_F²), which needs no
    assumption. While that gap is above `tolerance` · σ₁, the basis is improved; then the right Ritz vectors P give the
    residual R = A P − U Σ of the leading values and |σ_i(A) − σ_i| ≤ ‖R‖₂ (Kahan), which supposes that the random start
    has a component on each leading vector: true with probability 1. The smaller bound is the one stated.

    Where `count` is a large part of the short side the full spectrum costs no more, and is taken instead.

    Args:
        matrix: float32 products (float64 for a float64 matrix) on its own device.
        count: how many values; at most min(rows, cols).
        tolerance: stop when the bound is at most this share of σ₁. Default: two or three products, if it decays.
        max_iterations: subspace iterations at most; the first costs one more product with the matrix, the others two.
        seed: of the private generator that draws Ω.

    Raises:
        ValueError: `count` out of range.
    """
    short = min(matrix.shape)
    if not 1 <= count <= short:
        raise ValueError(f"count must be in 1..{short} for a {matrix.shape[0]}×{matrix.shape[1]} matrix, got {count}")
    width = min(count + _OVERSAMPLING, short)
    if 4 * width >= short:
        values = singular_values(matrix)
        return Spectrum(values[:count], 0.0, float(torch.linalg.vector_norm(values)))
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).detach()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    energy = float(torch.linalg.vector_norm(wide, dim=1).double().square().sum())
    if not energy < float("inf"):
        return Spectrum(_not_finite(count), float("nan"), float("nan"))
    with _full_precision():
        values, bound = _subspace_iterations(wide, width, count, energy, tolerance, max_iterations, seed)
    return Spectrum(values, bound, energy**0.5)


def _subspace_iterations(
    wide: Tensor, width: int, count: int, energy: float, tolerance: float, max_iterations: int, seed: int
) -> tuple[Tensor, float]:
    """The values and their bound."""
    basis = _orthonormal(_sketch(wide, width, torch.Generator("cpu").manual_seed(seed)))
    residual = float("inf")
    previous = torch.zeros(width, dtype=torch.float64, device="cpu")
    for iteration in range(max_iterations + 1):
        projected = basis.mT @ wide
        gram = _gram64(projected)
        squares = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
        # The residual was that of the values before; they seldom fall, and if one does its bound grows.
        fall = float((previous.sqrt() - squares.sqrt())[:count].max())
        bound = min(residual + max(fall, 0.0), _energy_bound(squares, energy, count))
        enough = tolerance * float(squares[0].sqrt())
        if bound <= enough or iteration == max_iterations:
            break
        image, residual = _improve(wide, basis, projected, gram, count)
        bound = min(bound, residual)
        if bound <= enough:
            break
        basis, previous = _orthonormal(image), squares
    return squares.sqrt()[:count], bound


def _sketch(wide: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """A Ω, random. Where there are many columns, four at a time are first added under random signs, in one pass."""
    folds = 4 if wide.shape[1] >= 16 * width else 1
    columns = -(-wide.shape[1] // folds)
    signs = 1.0 - 2.0 * torch.randint(2, (wide.shape[1],), generator=generator, device="cpu")
    signs = signs.to(wide.device, wide.dtype)
    folded = wide[:, :columns] * signs[:columns]
    for start in range(columns, wide.shape[1], columns):
        part = wide[:, start : start + columns]
        folded[:, : part.shape[1]].addcmul_(part, signs[start : start + columns])
    gaussian = torch.randn(columns, width, generator=generator, dtype=torch.float32, device="cpu")
    return folded @ gaussian.to(wide.device, wide.dtype)


def _gram64(wide: Tensor) -> Tensor:
    """B Bᵀ in float64 on the CPU, where the eigenproblem is solved."""
    wide = _float64(wide)
    return (wide @ wide.mT).cpu()


def _energy_bound(squares: Tensor, energy: float, count: int) -> float:
    rest = max(energy - float(squares.sum()), 0.0)
    leading = squares[:count]
    return float(((leading + rest).sqrt() - leading.sqrt()).max())


def _improve(wide: Tensor, basis: Tensor, projected: Tensor, gram: Tensor, count: int) -> tuple[Tensor, float]:
    """One subspace iteration: what spans the next basis, and ‖A P − U Σ‖₂ of the leading Ritz pairs."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    rotation = vectors.flip(1).to(wide.device, wide.dtype)
    sigma = eigenvalues.flip(0).clamp_min(0).sqrt().to(wide.device, wide.dtype)
    image = wide @ (projected.mT @ (rotation / torch.where(sigma > 0, sigma, 1.0)))
    residual = image - (basis @ rotation) * sigma
    return image, float(singular_values(residual[:, :count])[0])


def _orthonormal(tall: Tensor) -> Tensor:
    """Orthonormal basis of the columns: Cholesky QR in float64, again while it is ill-conditioned, else Householder QR.

    Cholesky QR loses κ²ε of orthogonality; the ratio of the factor's diagonal entries stands in for κ.
    """
    wide: Tensor = _float64(tall)
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


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in full float32, whatever the training loop has allowed itself; the setting is put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _float64(matrix: Tensor) -> Tensor:
    matrix = matrix.detach()
    if matrix.device.type not in ("cpu", "cuda", "xpu"):  # the others have no float64
        matrix = matrix.cpu()
    return matrix.double()


def _lower_gram(wide: Tensor) -> Tensor:
    """Lower triangle of A Aᵀ, by blocks: 5/8 of the products; what lies above the blocks is undefined."""
    rows = wide.shape[0]
    if rows < 128:
        return wide @ wide.mT
    gram = torch.zeros(rows, rows, dtype=wide.dtype, device=wide.device)
    edges = [rows * block // _BLOCKS for block in range(_BLOCKS + 1)]
    for top, bottom in pairwise(edges):
        gram[top:bottom, :bottom] = wide[top:bottom] @ wide[:bottom].mT
    return gram


def _roots(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.clamp_min(0).sqrt().flip(0)


def _not_finite(count: int) -> Tensor:
    return torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")


_T = TypeVar("_T")
_R = TypeVar("_R")


class SpectrumPool:
    """Computes spectra of many matrices, one a core: threads with one BLAS thread each beat one thread with many."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or torch.get_num_threads()
        self._executor: ThreadPoolExecutor | None = None

    def map(self, measure: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """`measure` of every item, in order; the first error is raised where its result is asked for."""
        items = list(items)
        if self.workers == 1 or len(items) < self.workers:
            return map(measure, items)  # a few large matrices: all cores on each
        try:
            return self._start().map(measure, items)
        except RuntimeError:  # the interpreter is shutting down and takes no new threads
            return map(measure, items)

    def _start(self) -> ThreadPoolExecutor:
        if self._executor is None:
            # torch.set_num_threads acts on the calling thread but is also what threads started later begin with, so
            # the number is put back once every worker has its own.
            threads = torch.get_num_threads()
            self._executor = ThreadPoolExecutor(self.workers, "inrank-spectrum", torch.set_num_threads, (1,))
            list(self._executor.map(lambda _: None, range(self.workers * 4)))
            torch.set_num_threads(threads)
        return self._executor

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
