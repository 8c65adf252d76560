"""An upper bound of a matrix's 2-norm from products with a few random probes.

With Ω Gaussian, u the strongest left and v the strongest right singular vector of R and p any polynomial, whatever it
was chosen by: uᵀ R p(RᵀR) Ω = ‖R‖₂ p(‖R‖₂²) vᵀΩ, hence ‖R‖₂ |p(‖R‖₂²)| ‖vᵀΩ‖ ≤ ‖R p(RᵀR) Ω‖₂. The entries of vᵀΩ
are independent N(0, 1): for 32 of them the norm is below 1.8927 with probability 10⁻¹⁰ (χ² with 32 degrees of freedom).
With p(λ) = λ (λ − α), ‖R‖₂ is at most the largest x that solves x⁵ − α x³ = ‖R RᵀR (RᵀR − α) Ω‖₂ / 1.8927; of several
α the one that says least is taken. For noise this is up to a third more than ‖R‖₂, for a single value it is exact.

References:
    Hochstenbach 2013, Probabilistic upper bounds for the matrix two-norm: the same for a single vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inrank_monitor.spectra.blocks import outside, product
from inrank_monitor.spectra.spectrum import float64

PROBES, LEAST = 32, 1.8927
_SHARES = (0.0, 0.5, 0.75, 1.0, 1.25)  # of the α that makes the Frobenius norm least


def norm_bound(matrix: Tensor, basis: Tensor, probes: Tensor, image: Tensor) -> float:
    """Upper bound of ‖R‖₂², R = M (I − V Vᵀ).

    Two more products with M and two with its transpose.

    Args:
        matrix: M, (p, q).
        basis: V, (q, w), orthonormal.
        probes: (I − V Vᵀ) Ω, (q, 32), with Ω drawn for this call.
        image: M times that.
    """
    unit = float(torch.linalg.vector_norm(float64(image)) / torch.linalg.vector_norm(float64(probes)))
    if unit == 0:
        return 0.0
    block = image / unit  # in a unit of R's own size nothing under- or overflows
    powers = []
    for _ in range(2):
        back = outside(basis, product(matrix.mT, block)) / unit
        block = product(matrix, back) / unit
        powers.append(block)
    both = float64(torch.cat(powers, dim=1))
    gram = (both.mT @ both).cpu()
    first, cross, third = gram[:PROBES, :PROBES], gram[:PROBES, PROBES:], gram[PROBES:, PROBES:]
    shift = float(cross.trace() / first.trace())
    found = []
    for share in _SHARES:
        alpha = share * shift
        square = torch.linalg.matrix_norm(third - alpha * (cross + cross.mT) + alpha**2 * first, ord=2)
        found.append(_largest_root(max(alpha, 0.0), math.sqrt(float(square)) / LEAST))
    return (unit * min(found)) ** 2


def _largest_root(shift: float, size: float) -> float:
    """The largest x with x⁵ − shift · x³ = size, both at least 0: by Newton's method from above, where it is convex."""
    x = math.sqrt(shift) + math.pow(size, 0.2)
    for _ in range(80):
        slope = x * x * (5 * x * x - 3 * shift)
        if slope <= 0:
            break
        x -= (x**5 - shift * x**3 - size) / slope
    return x * (1 + 1e-12)
