"""All singular values of a very large matrix: the leading ones measured, the others estimated.

The strongest values are not to be guessed at, since ranks are drawn from them: block iteration finds them, with a bound
on their error (`spectra.leading`). What the matrix holds beside them, (I − Q Qᵀ) A, gets a spectral density
(`spectra.lanczos`) that is good enough to draw, and for norms and entropies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inrank_monitor.spectra.blocks import outside
from inrank_monitor.spectra.full_precision import FULL_PRECISION
from inrank_monitor.spectra.lanczos import LinearOperator, Quadrature, SpectralDensity, spectral_density
from inrank_monitor.spectra.leading import LeadingPart, LeadingSubspace, half_step, is_large_part, leading_part
from inrank_monitor.spectra.spectrum import Spectrum, not_finite, singular_values


@dataclass(frozen=True)
class EstimatedSpectrum(Spectrum):
    """A spectrum whose first `measured` values are within `error_bound`, and whose others are estimates.

    Attributes:
        measured: how many; all of them where the full spectrum was taken.
        estimation_error: estimated mean error of the others.
    """

    measured: int
    estimation_error: float


@torch.no_grad()
def estimated_spectrum(
    matrix: Float[Tensor, "rows cols"],
    measured: int,
    *,
    steps: int = 8,
    probes: int = 16,
    seed: int = 0,
    subspace: LeadingSubspace | None = None,
) -> EstimatedSpectrum:
    """All min(rows, cols) singular values: the leading ones measured, the others estimated.

    Cost beside `leading_singular_values`: 2 × `steps` products with `probes` columns. Where `measured` is a large part
    of the short side, the full spectrum costs no more and is taken instead. ‖A‖_F is exact; the estimates are scaled
    to agree with it.

    Args:
        matrix: float32 products (float64 for a float64 matrix) on its own device.
        measured: how many of the values are measured, with a bound on their error.
        steps: of the bidiagonalisation.
        probes: columns of its two blocks together.
        seed: of the private generators.
        subspace: see `leading_singular_values`.

    Raises:
        ValueError: `measured`, `steps` or `probes` out of range.
    """
    short = min(matrix.shape)
    if not 1 <= measured <= short:
        size = f"{matrix.shape[0]}×{matrix.shape[1]}"
        raise ValueError(f"measured must be in 1..{short} for a {size} matrix, got {measured}")
    if is_large_part(measured, short):
        values = singular_values(matrix)
        return EstimatedSpectrum(values, 0.0, float(torch.linalg.vector_norm(values)), short, 0.0)
    step = half_step(matrix, seed, subspace)
    if step is None:
        nan = float("nan")
        return EstimatedSpectrum(not_finite(short), nan, nan, 0, nan)
    part = leading_part(step, measured, 1, subspace, short=True)
    head = part.spectrum(measured)
    with FULL_PRECISION, torch.autocast(matrix.device.type, enabled=False):
        density = _beside(part, Quadrature(steps, probes, seed)).scaled(part.scale)
    # Sorted in among the others, an estimate of at most ρ leaves each leading value between σ̂ and √(σ̂² + ρ²).
    others = torch.from_numpy(density.values).clamp_max(part.rest**0.5 * part.scale)
    values = torch.cat([part.squares.sqrt() * part.scale, others]).sort(descending=True).values
    return EstimatedSpectrum(values, head.error_bound, head.frobenius_norm, measured, density.error)


def _beside(part: LeadingPart, quadrature: Quadrature) -> SpectralDensity:
    """Density of R = (I − Q Qᵀ) A."""
    wide, basis = part.wide, part.basis
    energy = part.energy - float(part.squares.sum())
    rest = LinearOperator(
        lambda block: outside(basis, wide @ block), lambda block: (block.mT @ wide).mT, wide.shape[0], like=wide
    )
    known = energy if energy > 1e-4 * part.energy else None  # below that a difference of roundings
    return spectral_density(rest, quadrature, known, beside=basis)
