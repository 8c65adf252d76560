"""Theorem 2: how a linear network y = W² W¹ x learns, mode by mode, in closed form.

The derivation of eq. 4, with what each step needs (equation numbers are the paper's); `gradient_flow` integrates
the same flow numerically, from any start:

1. Gradient flow of ½ Σ ‖y − W² W¹ x‖² (eq. 8): τ dW¹/dt = W²ᵀ (Σʸˣ − W² W¹ Σˣˣ) and τ dW²/dt = (Σʸˣ − W² W¹ Σˣˣ) W¹ᵀ.
   The step needs Σˣˣ = I: inputs that are whitened. Orthogonal ones are not enough, they also have norm 1 and span the
   input space. Plain gradient descent with step size η follows it, time counted in steps and τ = 1/η.
2. In the singular vectors of Σʸˣ = Σ s_α u_α v_αᵀ (eq. 9) the modes still compete for the hidden units (eq. 10). From
   W²_0 = U M² Oᵀ and W¹_0 = O M¹ Vᵀ they never meet: each mode has a hidden direction for itself, and there a number a
   in M¹ and a number b in M². This holds for any diagonal M¹, M² and orthogonal O.
3. So τ a' = b (s − ab), τ b' = a (s − ab) (eq. 11), and u = ab is the mode's strength in W² W¹.
4. a² − b² =: c never changes, thus a² + b² = √(c² + 4u²) and τ u' = √(c² + 4u²) (s − u). Eq. 12, τ u' = 2u (s − u), is
   the case c = 0 and u > 0: **a = b**, which the paper assumes in its proof but not in the theorem.
5. Time to get from u0 to u (eq. 13): t = τ/(2s) · ln(u (s − u0) / (u0 (s − u))). Solved for u, minus u0: eq. 4, the
   strength of the mode in D_t = A_t − A_0. `mode_strength` computes it. It is below zero for u0 > s: the singular value
   of D_t is its magnitude, and the largest at the end is not the one of largest s, but of largest |s − u0|.

**Without a = b.** P = (a + b)² and Q = (a − b)² satisfy P Q = c², u = (P − Q)/4, and since (a + b)' = (a + b)(s − u)/τ,
τ P' = c²/2 + 2sP − P²/2; Q obeys the same with −s for s. With constant coefficients such equations have a closed form,
by rates κ = √(s² + c²/4): `unbalanced_mode_strength`. A mode begins to grow at rate 2κ/τ ≥ 2s/τ: imbalance is faster.

**Negative u0**, which the paper's u0 ~ N(0, b²) gives to every second mode, cannot have a = b. With a = −b (also c = 0)
step 4 reads τ u' = −2u (s − u), eq. 12 with time running backwards: u goes to the saddle at 0 and stays there, D_t's
mode ends at −u0 = |u0|, nothing of s is learned. Eq. 4 taken literally does something else: it runs to −∞ at
t = τ/(2s) · ln(1 + s/|u0|) and comes back from +∞. So smooth curves must come from |u0|, or from u0 > 0 only.

**Few hidden units.** M¹, M² hold N_h numbers: a mode beyond has a = b = 0, and D_t has nothing of it at any time.
**Scale.** u(t; λs, λu0) = λ u(λt; s, u0): only the ratios u0/s shape the curves, not s and u0 themselves.

Everything is float64.

Example:
    >>> mode_strength(s=2.0, u0=0.01, t=[0.0, 1.0, 2.0, 4.0])
    tensor([0.0000, 0.4206, 1.8648, 1.9900], dtype=torch.float64)

References:
    Zhao et al. 2023, arXiv:2306.11250, section 4, Theorem 2 and appendix A.
    Saxe, McClelland, Ganguli 2014, arXiv:1312.6120: exact solutions for deep linear networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Numbers = float | Sequence[float] | np.ndarray | Tensor
_LEAST_ZERO = ("s", "t", "fraction")
_TINY = math.ulp(0.0)  # the least number above 0


def mode_strength(s: Numbers, u0: Numbers, t: Numbers, tau: Numbers = 1.0) -> Tensor:
    """Strength of a balanced mode in D_t: s e^{2st/τ} / (e^{2st/τ} − 1 + s/u0) − u0 (eq. 4).

    Computed as u0 (s − u0)(1 − E) / (u0 (1 − E) + s E) with E = e^{−2st/τ}: no overflow, no cancellation.

    Args:
        s: target strength, at least 0. Of a mode that the target lacks (0): −u0 · 2u0t / (τ + 2u0t), it is forgotten.
        u0: strength at the start, at least 0; at 0 the mode is never learned.
        t: time, at least 0: optimizer steps for τ = 1/η.
        tau: τ, above 0.

    Returns:
        Of the shape that all of them broadcast to; differentiable.

    Raises:
        ValueError: a number is out of its range.
    """
    s, u0, t, tau = _numbers(s=s, u0=u0, t=t, tau=tau)
    if bool((u0 < 0).any()):
        raise ValueError(
            f"u0 must be at least 0 (a = b makes u0 = a²), got {float(u0.min()):g}: "
            "for a mode with b = −a use unbalanced_mode_strength"
        )
    decay, grown = _decay(s, t / tau)
    return u0 * (s - u0) * 2 * grown / (2 * u0 * grown + decay)


def unbalanced_mode_strength(s: Numbers, a0: Numbers, b0: Numbers, t: Numbers, tau: Numbers = 1.0) -> Tensor:
    """Strength of any mode in D_t, u(t) − a0 b0, where τ u' = √(c² + 4u²)(s − u) and c = a0² − b0².

    Args:
        s: target strength, at least 0.
        a0: the mode's number in M¹, of any sign.
        b0: its number in M².
        t: time, at least 0.
        tau: τ, above 0.

    Returns:
        Of the broadcast shape; exact to about 1e-16 (a² + b²), which for |u| ≪ a² + b² is not 1e-16 of u.

    Raises:
        ValueError: a number is out of its range.
    """
    s, a0, b0, t, tau = _numbers(s=s, a0=a0, b0=b0, t=t, tau=tau)
    plus, minus = (a0 + b0) ** 2, (a0 - b0) ** 2
    half_square = plus * minus / 2
    kappa = torch.sqrt(s**2 + half_square / 2)
    decay, grown = _decay(kappa, t / tau)
    safe = torch.where(kappa > 0, kappa, 1.0)
    # (κ + s) / 2κ and (κ − s) / 2κ, the latter without cancellation
    rising = torch.where(kappa > 0, (kappa + s) / (2 * safe), 0.5)
    falling = torch.where(kappa > 0, half_square / (4 * safe * (safe + s)), 0.5)
    up = (plus * (rising + falling * decay) + half_square * grown) / (falling + rising * decay + plus * grown / 2)
    down = (minus * (falling + rising * decay) + half_square * grown) / (rising + falling * decay + minus * grown / 2)
    return (up - down) / 4 - a0 * b0


def learning_time(s: Numbers, u0: Numbers, fraction: Numbers = 0.5, tau: Numbers = 1.0) -> Tensor:
    """When D_t's mode has reached a fraction f of its final s − u0: τ/(2s) · ln(1 + f s / ((1 − f) u0)) (eq. 13).

    It falls with s for any fixed u0: as ln(s/u0)/s for u0 ≪ s; for u0 ≫ s it hardly falls, all modes take τ/(2u0) to
    their half. At f = ½ and |u0| it is also where eq. 4, taken literally for a negative u0, has its pole.

    Args:
        s: target strength, at least 0.
        u0: strength at the start, above 0.
        fraction: f, in [0, 1).
        tau: τ, above 0.

    Raises:
        ValueError: a number is out of its range.
    """
    s, u0, fraction, tau = _numbers(s=s, u0=u0, fraction=fraction, tau=tau)
    if bool((u0 <= 0).any() | (fraction >= 1).any()):
        raise ValueError("u0 must be above 0 and fraction below 1")
    odds = fraction / ((1 - fraction) * u0)
    safe = torch.where(s > 0, s, 1.0)
    return tau / 2 * torch.where(s > 0, torch.log1p(safe * odds) / safe, odds)


@dataclass(frozen=True)
class TargetModes:
    """Σʸˣ = U diag(s) Vᵀ, what the network is to learn (eq. 2 and 9).

    Attributes:
        left: U, orthonormal columns.
        strengths: s, in any order, at least 0.
        right: Vᵀ, orthonormal rows.
    """

    left: Float[Tensor, "*batch out modes"]
    strengths: Float[Tensor, "*batch modes"]
    right: Float[Tensor, "*batch modes in"]

    @property
    def correlation(self) -> Float[Tensor, "*batch out in"]:
        """Σʸˣ."""
        return (self.left * self.strengths.unsqueeze(-2)) @ self.right

    def strengths_in(self, product: Float[Tensor, "*times out in"]) -> Float[Tensor, "*times modes"]:
        """u_αᵀ A v_α of every mode in a product, or in its update: `mode_strength` if that is A_t − A_0."""
        return torch.einsum("...om,...oi,...mi->...m", self.left, product, self.right)


def random_target(
    strengths: Numbers, outputs: int, inputs: int, generator: torch.Generator | None = None
) -> TargetModes:
    """A target with these strengths and random singular vectors.

    Raises:
        ValueError: more strengths than outputs or inputs.
    """
    values = in_float64(strengths).reshape(-1)
    if len(values) > min(outputs, inputs):
        raise ValueError(f"strengths must be at most min({outputs}, {inputs}) numbers, got {len(values)}")
    left, right = (random_orthogonal(size, generator)[:, : len(values)] for size in (outputs, inputs))
    return TargetModes(left, values, right.mT.contiguous())


def random_orthogonal(size: int, generator: torch.Generator | None = None) -> Float[Tensor, "size size"]:
    """An orthogonal matrix, uniformly distributed."""
    return nn.init.orthogonal_(torch.empty(size, size, dtype=torch.float64, device="cpu"), generator=generator)


def orthogonal_start(
    target: TargetModes, m1: Numbers, m2: Numbers, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "hidden in"], Float[Tensor, "out hidden"]]:
    """Theorem 2's start: W¹_0 = O M¹ Vᵀ and W²_0 = U M² Oᵀ, with a random orthogonal O.

    Args:
        target: whose singular vectors they take.
        m1: diagonal of M¹: a of the first modes, as many as there are hidden units.
        m2: diagonal of M²: b of them. Balanced: both √u0.
        generator: draws O.

    Returns:
        W¹ and W², of W² W¹ = Σ a_α b_α u_α v_αᵀ.

    Raises:
        ValueError: m1 and m2 are not equally many, or more than the target's modes.
    """
    first, second = (in_float64(m).reshape(-1) for m in (m1, m2))
    hidden = len(first)
    if not 0 < hidden == len(second) <= target.strengths.shape[-1]:
        raise ValueError(
            f"m1 and m2 must be equally many numbers, 1..{target.strengths.shape[-1]} of them, "
            f"got {hidden} and {len(second)}"
        )
    rotation = random_orthogonal(hidden, generator)
    return (rotation * first) @ target.right[:hidden], (target.left[:, :hidden] * second) @ rotation.mT


def in_float64(value: Numbers) -> Tensor:
    """As a float64 tensor: a tensor stays on its device, numbers come onto the CPU whatever the default device is."""
    device = value.device if isinstance(value, Tensor) else "cpu"
    return torch.as_tensor(value, dtype=torch.float64, device=device)


def _decay(rate: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """E = e^{−2·rate·time}, kept above 0 so that nothing is 0/0, and (1 − E) / (2·rate), at rate 0 the time."""
    decay = torch.exp(-2 * rate * time)
    safe = torch.where(rate > 0, rate, 1.0)
    return decay.clamp_min(_TINY), torch.where(rate > 0, -torch.expm1(-2 * safe * time) / (2 * safe), time)


def _numbers(**given: Numbers) -> list[Tensor]:
    """As float64 tensors, each checked against the range that goes with its name."""
    found = []
    for name, value in given.items():
        number = in_float64(value)
        if not bool(torch.isfinite(number).all()):
            raise ValueError(f"{name} must be finite, got {value!r}")
        if name in _LEAST_ZERO and bool((number < 0).any()):
            raise ValueError(f"{name} must be at least 0, got {float(number.min()):g}")
        if name == "tau" and bool((number <= 0).any()):
            raise ValueError(f"tau must be above 0, got {float(number.min()):g}")
        found.append(number)
    return found
