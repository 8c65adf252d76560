"""The leading singular values of a large matrix, with a bound on their error.

From a block Krylov space (`inrank_monitor.spectra.krylov`), which costs as many products with the matrix as five times
the values asked for. Its bound needs ρ ≥ ‖R‖₂, R what the matrix holds outside the space: ‖R‖_F, known from norms, or
what random probes say if that is less (`inrank_monitor.spectra.norm_bound`), which is true except with probability
10⁻¹⁰. Where values decay like 1/i or faster the bound is far below a hundredth of the last value; where they decay so
slowly that ρ exceeds that value, σ_i ≤ √(σ̂_i² + ρ²) is all that is known, though the values themselves are near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inrank_monitor.spectra.blocks import gaussian, outside, product
from inrank_monitor.spectra.full_precision import FULL_PRECISION
from inrank_monitor.spectra.krylov import KrylovSpace, krylov_sizes, krylov_space
from inrank_monitor.spectra.norm_bound import PROBES, norm_bound
from inrank_monitor.spectra.spectrum import Spectrum, not_finite, singular_values


@torch.no_grad()
def leading_singular_values(
    matrix: Float[Tensor, "rows cols"], count: int, *, iterations: int = 0, seed: int = 0
) -> Spectrum:
    """The `count` largest singular values, each too small by at most `error_bound`.

    Where `count` is a large part of the short side the full spectrum costs no more, and is taken instead.

    Args:
        matrix: float32 products (float64 for a float64 matrix) on its own device.
        count: how many values; at most min(rows, cols).
        iterations: more blocks in the space, two products each; the last of the values gain most.
        seed: of the private generator that draws the random directions.

    Raises:
        ValueError: `count` or `iterations` out of range.
    """
    short = min(matrix.shape)
    if not 1 <= count <= short:
        raise ValueError(f"count must be in 1..{short} for a {matrix.shape[0]}×{matrix.shape[1]} matrix, got {count}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    if is_large_part(count, short):
        values = singular_values(matrix)
        return Spectrum(values[:count], 0.0, float(torch.linalg.vector_norm(values)))
    part = leading_part(matrix, count, seed, iterations)
    if part is None:
        return Spectrum(not_finite(count), float("nan"), float("nan"))
    return part.spectrum(count)


def is_large_part(count: int, short: int) -> bool:
    """Whether the full spectrum is not more work than its leading `count` values."""
    block, blocks = krylov_sizes(count)
    return 2 * block * blocks >= short


@dataclass
class LeadingPart:
    """What the space tells of A, of which `wide` is A or Aᵀ, whichever is wide, divided by `scale`.

    Attributes:
        wide: (p, q) with p ≤ q.
        scale: 1 unless squares would under- or overflow.
        energy: ‖wide‖_F².
        space: with the left singular vectors.
        rest: ρ².
    """

    wide: Tensor
    scale: float
    energy: float
    space: KrylovSpace
    rest: float

    def spectrum(self, count: int) -> Spectrum:
        """The leading values and their bound."""
        values = self.space.squares[:count].sqrt()
        bound = float((self.space.upper(count, self.rest).sqrt() - values).max())
        return Spectrum(values * self.scale, max(bound, 0.0) * self.scale, self.energy**0.5 * self.scale)


@torch.no_grad()
def leading_part(matrix: Tensor, count: int, seed: int, iterations: int = 0) -> LeadingPart | None:
    """The space and what is outside of it, for arguments in range; None for a matrix that is not finite."""
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).detach()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    wide, scale, energy = _scaled(wide)
    if not energy < math.inf:
        return None
    generator = torch.Generator("cpu").manual_seed(seed)
    with FULL_PRECISION, torch.autocast(wide.device.type, enabled=False):
        space = krylov_space(wide, *krylov_sizes(count, iterations), generator)
        probes = outside(space.basis, gaussian(wide.shape[0], PROBES, wide, generator))
        rest = norm_bound(wide.mT, space.basis, probes, product(wide.mT, probes))
    rounding = 16 * torch.finfo(wide.dtype).eps * energy
    return LeadingPart(wide, scale, energy, space, min(rest, max(energy - float(space.squares.sum()), 0.0) + rounding))


def _scaled(wide: Tensor) -> tuple[Tensor, float, float]:
    """The matrix divided by a number if its squares would under- or overflow, that number, and ‖A‖_F² of the result.

    A power of two, so that nothing is rounded. ‖A‖_F² is infinite for a matrix that is not finite.
    """
    rows = torch.linalg.vector_norm(wide, dim=1).cpu().double()
    if 1e-9 < float(rows.max()) < 1e9:
        return wide, 1.0, float(rows.square().sum())
    low, high = torch.aminmax(wide)
    largest = max(-float(low), float(high))
    if largest == 0 or not largest < math.inf:
        return wide, 1.0, 0.0 if largest == 0 else math.inf
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    wide = wide / scale
    return wide, scale, float(torch.linalg.vector_norm(wide, dim=1).cpu().double().square().sum())
