"""All singular values of a very large matrix: the leading ones measured, the others estimated.

The strongest values are not to be guessed at, since ranks are drawn from them: a block Krylov space has them, with a
bound on their error (`spectra.leading`). What the matrix holds beside them, (I − Q Qᵀ) A, gets a spectral density
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
from inrank_monitor.spectra.leading import LeadingPart, is_large_part, leading_part
from inrank_monitor.spectra.spectrum import Spectrum, not_finite, singular_values

_MORE = 8  # vectors beside those of the measured values


@dataclass(frozen=True)
class EstimatedSpectrum(Spectrum):
    """A spectrum whose first `measured` values are within `error_bound`, and whose others are estimates.

    Attributes:
        measured: how many; all of them where the full spectrum was taken.
        estimation_error: estimated mean error of the others, on the safe side: two to six times the true one on updates
            of a GPT-2.
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
    part = leading_part(matrix, measured, seed)
    if part is None:
        nan = float("nan")
        return EstimatedSpectrum(not_finite(short), nan, nan, 0, nan)
    head = part.spectrum(measured)
    with FULL_PRECISION, torch.autocast(matrix.device.type, enabled=False):
        density = _beside(part, measured + _MORE, Quadrature(steps, probes, seed)).scaled(part.scale)
    known = part.space.squares[: measured + _MORE].sqrt() * part.scale
    # Sorted in among the others, estimates of at most that leave each leading value within its bound.
    others = torch.from_numpy(density.values).clamp_max(float(head.values[-1]) + head.error_bound)
    values = torch.cat([known, others]).sort(descending=True).values
    return EstimatedSpectrum(values, head.error_bound, head.frobenius_norm, measured, density.error)


def _beside(part: LeadingPart, count: int, quadrature: Quadrature) -> SpectralDensity:
    """Density of (I − Q Qᵀ) A, Q the leading vectors."""
    wide, basis = part.wide, part.space.basis[:, :count]
    energy = part.energy - float(part.space.squares[:count].sum())
    rest = LinearOperator(
        lambda block: outside(basis, wide @ block), lambda block: (block.mT @ wide).mT, wide.shape[0], like=wide
    )
    known = energy if energy > 1e-4 * part.energy else None  # below that a difference of roundings
    return spectral_density(rest, quadrature, known, beside=basis)
