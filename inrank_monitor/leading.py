"""The leading singular values of a large matrix, with a bound on their error.

With Q an orthonormal basis of A Ω (Ω random), B = Qᵀ A and R = A − Q B: AᵀA = BᵀB + RᵀR, so that
σ_i(B) ≤ σ_i(A) ≤ √(σ_i(B)² + ‖R‖₂²). ‖R‖₂ is at most ‖R‖_F, known from the norms of A and B, and at most
(10 √(2/π) max_j ‖(RᵀR)² ω_j‖)^¼ for ten Gaussian ω_j except with probability 10⁻¹⁰; the smaller one gives the bound.
Two products with A for the values, four thin ones for the bound.

References:
    Halko, Martinsson and Tropp 2011, Finding structure with randomness, algorithm 4.4 and lemma 4.1.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inrank_monitor.spectrum import Spectrum, float64, not_finite, singular_values

_OVERSAMPLING = 8
_PROBES, _POWER = 10, 2


@torch.no_grad()
def leading_singular_values(
    matrix: Float[Tensor, "rows cols"], count: int, *, iterations: int = 0, seed: int = 0
) -> Spectrum:
    """The `count` largest singular values, each too small by at most `error_bound`.

    Where `count` is a large part of the short side the full spectrum costs no more, and is taken instead.

    Args:
        matrix: float32 products (float64 for a float64 matrix) on its own device.
        count: how many values; at most min(rows, cols).
        iterations: subspace iterations, two more products each; the last of the values gain most.
        seed: of the private generator that draws Ω and the ω_j.

    Raises:
        ValueError: `count` or `iterations` out of range.
    """
    short = min(matrix.shape)
    if not 1 <= count <= short:
        raise ValueError(f"count must be in 1..{short} for a {matrix.shape[0]}×{matrix.shape[1]} matrix, got {count}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    width = count + _OVERSAMPLING
    if 4 * width >= short:
        values = singular_values(matrix)
        return Spectrum(values[:count], 0.0, float(torch.linalg.vector_norm(values)))
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).detach()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    low, high = torch.aminmax(wide)
    largest = max(-float(low), float(high))
    if not largest < float("inf"):
        return Spectrum(not_finite(count), float("nan"), float("nan"))
    scale = 1.0 if 1e-9 < largest < 1e9 or largest == 0 else largest  # so that no square under- or overflows
    with _FULL_PRECISION, torch.autocast(wide.device.type, enabled=False):
        wide = wide if scale == 1.0 else wide / scale
        values, bound, norm = _measure(wide, count, width, iterations, torch.Generator("cpu").manual_seed(seed))
    return Spectrum(values * scale, bound * scale, norm * scale)


def _measure(
    wide: Tensor, count: int, width: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, float, float]:
    """Values, bound, ‖A‖_F."""
    energy = float(torch.linalg.vector_norm(wide, dim=1).double().square().sum())
    basis = _orthonormal(_sketch(wide, width, generator))
    projected = basis.mT @ wide
    for _ in range(iterations):
        basis = _orthonormal(wide @ _orthonormal(projected.mT))
        projected = basis.mT @ wide
    rows = float64(projected)
    squares = torch.linalg.eigvalsh((rows @ rows.mT).cpu()).flip(0).clamp_min(0)
    rest = max(energy - float(squares.sum()), 0.0)
    rest = min(rest, _rest_norm(wide, basis, projected, generator) ** 2)
    leading = squares[:count]
    bound = float(((leading + rest).sqrt() - leading.sqrt()).max())
    return leading.sqrt(), bound, energy**0.5


def _rest_norm(wide: Tensor, basis: Tensor, projected: Tensor, generator: torch.Generator) -> float:
    """Upper bound of ‖R‖₂ by the probes, except with probability 10⁻¹⁰ (the lemma, applied to (RᵀR)²)."""
    probes = torch.randn(wide.shape[1], _PROBES, generator=generator, dtype=torch.float32, device="cpu")
    probes = probes.to(wide.device, wide.dtype)
    for _ in range(_POWER):
        image = wide @ probes - basis @ (projected @ probes)
        probes = wide.mT @ image - projected.mT @ (basis.mT @ image)
    largest = float(torch.linalg.vector_norm(probes.double(), dim=0).max())
    return float((10.0 * (2.0 / torch.pi) ** 0.5 * largest) ** (1 / (2 * _POWER)))


def _sketch(wide: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """A Ω, random. Where there are many columns, four at a time are first added with random weights, in one pass.

    Gaussian weights rather than signs: two columns that are alike or opposite do not cancel.
    """
    folds = 4 if wide.shape[1] >= 16 * width else 1
    columns = -(-wide.shape[1] // folds)
    weights = torch.randn(wide.shape[1], generator=generator, dtype=torch.float32, device="cpu")
    weights = weights.to(wide.device, wide.dtype)
    folded = wide[:, :columns] * weights[:columns]
    for start in range(columns, wide.shape[1], columns):
        part = wide[:, start : start + columns]
        folded[:, : part.shape[1]].addcmul_(part, weights[start : start + columns])
    gaussian = torch.randn(columns, width, generator=generator, dtype=torch.float32, device="cpu")
    return folded @ gaussian.to(wide.device, wide.dtype)


def _orthonormal(tall: Tensor) -> Tensor:
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


class _FullPrecision:
    """While products of ours run, in any thread, float32 means float32; then the loop's own setting is put back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[tuple[Any, str]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                owners: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
                owners = [owner for owner in owners if hasattr(owner, "fp32_precision")]  # torch 2.9 or later
                self._before = [(owner, owner.fp32_precision) for owner in owners]
                for owner in owners:
                    owner.fp32_precision = "ieee"
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for owner, precision in self._before:
                    owner.fp32_precision = precision


_FULL_PRECISION = _FullPrecision()
