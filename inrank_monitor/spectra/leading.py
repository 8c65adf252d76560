"""The leading singular values of a large matrix, with a bound on their error; warm-started from the last snapshot.

With V orthonormal, Z = A V and R = A − Z Vᵀ: A Aᵀ = Z Zᵀ + R Rᵀ, so that σ_i(Z) ≤ σ_i(A) ≤ √(σ_i(Z)² + ρ²) for any
ρ ≥ ‖R‖₂. The error bound is that of the last value, which is the largest: a value σ̂ before it is too small by at most
√(σ̂² + ρ²) − σ̂ ≤ ρ²/2σ̂. ρ is ‖R‖_F, known from the norms of A and Z, or what random probes say if that is less
(`inrank_monitor.spectra.norm_bound`), which is true except with probability 10⁻¹⁰.

An orthonormal basis of Z is the next V, for Aᵀ: a half-step of block iteration, one product with the matrix. From a
random start it takes two to a first answer. A `LeadingSubspace` remembers the basis for the next snapshot, for which
one half-step is then enough as long as ρ does not grow: where it does, the matrix has left the subspace, and more
follow. Into every next basis go the directions in which the probes found R to be strongest.

References:
    Halko, Martinsson and Tropp 2011, Finding structure with randomness, algorithm 4.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from inrank_monitor.spectra.blocks import complement, gaussian, left_vectors, orthonormal, outside, product, sketch
from inrank_monitor.spectra.full_precision import FULL_PRECISION
from inrank_monitor.spectra.norm_bound import PROBES, norm_bound
from inrank_monitor.spectra.spectrum import Spectrum, not_finite, singular_values

_OVERSAMPLING = 8
_GROWN, _SMALL, _EXTRA = 1.3, 0.1, 4  # by what ρ/σ̂_k may grow, from where that matters, and the half-steps it costs


@dataclass
class LeadingSubspace:
    """Where the leading values of one matrix were found last: the start for its next snapshot. Empty at first.

    Attributes:
        basis: orthonormal columns, eight more than the values, on the matrix's device and in its products' dtype; None
            before the first snapshot.
        long: whether they are as long as the long side of the matrix, or as the short one: by turns.
        missed: ρ / σ̂_k at the last snapshot.
        snapshots: how many it has seen; each draws its own random directions.
    """

    basis: Tensor | None = field(default=None, repr=False)
    long: bool = False
    missed: float = math.inf
    snapshots: int = 0

    def start(self, wide: Tensor, width: int) -> Tensor | None:
        """The basis, unless it is of another matrix."""
        basis = self.basis
        if basis is None or basis.shape != (wide.shape[self.long], width):
            return None
        return basis if basis.dtype == wide.dtype and basis.device == wide.device else None

    def keep(self, found: LeadingPart, count: int) -> None:
        """Take over where the values were found."""
        self.basis = found.next_basis(count) if found.energy > 0 else None
        self.long, self.missed, self.snapshots = found.long, found.missed(count), self.snapshots + 1


@torch.no_grad()
def leading_singular_values(
    matrix: Float[Tensor, "rows cols"],
    count: int,
    *,
    iterations: int = 0,
    seed: int = 0,
    subspace: LeadingSubspace | None = None,
) -> Spectrum:
    """The `count` largest singular values, each too small by at most `error_bound`.

    Where `count` is a large part of the short side the full spectrum costs no more, and is taken instead.

    Args:
        matrix: float32 products (float64 for a float64 matrix) on its own device.
        count: how many values; at most min(rows, cols).
        iterations: block iterations after a random start, two more products each; the last of the values gain most.
        seed: of the private generator that draws the random directions.
        subspace: of this matrix at its last snapshot, or an empty one; brought up to date. One of another shape, dtype
            or device is begun anew.

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
    step = half_step(matrix, seed, subspace)
    if step is None:
        return Spectrum(not_finite(count), float("nan"), float("nan"))
    return leading_part(step, count, iterations, subspace).spectrum(count)


def is_large_part(count: int, short: int) -> bool:
    """Whether the full spectrum is not more work than its leading `count` values."""
    return 4 * (count + _OVERSAMPLING) >= short


@dataclass
class LeadingPart:
    """What one half-step tells of A, of which `wide` is A or Aᵀ, whichever is wide, divided by `scale`.

    Attributes:
        wide: (p, q) with p ≤ q.
        scale: 1 unless squares would under- or overflow.
        energy: ‖wide‖_F².
        basis: V.
        squares: σ_i(Z)², descending; float64 on the CPU.
        following: an orthonormal basis of Z, strongest first: V of the next half-step.
        long: whether that has q rows and V p, or the other way about.
        stronger: as long, 16 directions in which R is strong.
        rest: ρ².
    """

    wide: Tensor
    scale: float
    energy: float
    basis: Tensor
    squares: Tensor
    following: Tensor
    long: bool
    stronger: Tensor
    rest: float

    def spectrum(self, count: int) -> Spectrum:
        """The leading values and their bound."""
        squares = self.squares[:count]
        bound = float(((squares + self.rest).sqrt() - squares.sqrt()).max())
        return Spectrum(squares.sqrt() * self.scale, bound * self.scale, self.energy**0.5 * self.scale)

    def missed(self, count: int) -> float:
        """ρ / σ̂_k; a σ̂_k below 0.01 σ̂₁, as in a matrix of lower rank, counts as that."""
        least = max(float(self.squares[count - 1]), 1e-4 * float(self.squares[0]))
        return math.sqrt(self.rest / least) if least > 0 else math.inf

    def next_basis(self, count: int) -> Tensor:
        """The leading `count` directions and eight in which R is strong, orthonormal."""
        kept = self.following[:, :count]
        return torch.cat([kept, complement(kept, self.stronger[:, :_OVERSAMPLING])], dim=1)


@torch.no_grad()
def half_step(matrix: Tensor, seed: int, subspace: LeadingSubspace | None) -> HalfStep | None:
    """The half-step of block iteration on this matrix; None where that is not finite.

    Args:
        matrix: see `leading_singular_values`.
        seed: of the first snapshot.
        subspace: that knows how many snapshots there have been.
    """
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).detach()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    wide, scale, energy = _scaled(wide)
    if not energy < math.inf:
        return None
    seed += 0 if subspace is None else subspace.snapshots
    return HalfStep(wide, scale, energy, torch.Generator("cpu").manual_seed(seed))


@torch.no_grad()
def leading_part(
    step: HalfStep, count: int, iterations: int, subspace: LeadingSubspace | None, short: bool = False
) -> LeadingPart:
    """What the last half-step tells, for arguments in range.

    Args:
        step: of the matrix.
        count: how many values.
        iterations: after a random start.
        subspace: to start from.
        short: take another half-step if V is not in the space of the short side.
    """
    wide, width = step.wide, count + _OVERSAMPLING
    with FULL_PRECISION, torch.autocast(wide.device.type, enabled=False):
        start = None if subspace is None else subspace.start(wide, width)
        if subspace is None or start is None:
            begin, long = orthonormal(sketch(wide, width, step.generator)), False
            for _ in range(2 * iterations):
                _, begin = left_vectors(product(wide if long else wide.mT, begin))
                long = not long
            found = step(begin, long)
        else:
            found, limit = step(start, subspace.long), max(_SMALL, _GROWN * subspace.missed)
            for _ in range(_EXTRA):
                if found.missed(count) <= limit:
                    break
                found = step(found.next_basis(count), found.long)
        if short and not found.long:
            found = step(found.following, found.long)
        if subspace is not None:
            subspace.keep(found, count)
    return found


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


@dataclass
class HalfStep:
    """V -> what A V tells, or Aᵀ V: M V.

    Attributes:
        wide: A or Aᵀ, as in `LeadingPart`, as for the next two.
        scale: of it.
        energy: of it.
        generator: of the probes.
    """

    wide: Tensor
    scale: float
    energy: float
    generator: torch.Generator

    def __call__(self, basis: Tensor, long: bool) -> LeadingPart:
        """What the basis tells; `long` says on which side of the matrix it lies."""
        matrix = self.wide if long else self.wide.mT
        probes = outside(basis, gaussian(matrix.shape[1], PROBES, matrix, self.generator))
        image = product(matrix, torch.cat([basis, probes], dim=1))
        squares, following = left_vectors(image[:, :-PROBES])
        rest, stronger = norm_bound(matrix, basis, probes, image[:, -PROBES:])
        rounding = 16 * torch.finfo(matrix.dtype).eps * self.energy
        rest = min(rest, max(self.energy - float(squares.sum()), 0.0) + rounding)
        return LeadingPart(self.wide, self.scale, self.energy, basis, squares, following, not long, stronger, rest)
