"""Theorem 2's closed form against integrated gradient flow, from the starts that it allows and from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inrank.experiments.theorem_2.order import crossing_times, generator_of, normal, order
from inrank.theory import (
    TargetModes,
    gradient_flow,
    mode_strength,
    orthogonal_start,
    random_target,
    unbalanced_mode_strength,
)
from inrank_monitor.ranks import effective_rank

OUTPUTS, INPUTS = 12, 14
STARTS = {
    "orthogonal, M¹ = M², scale 0.01": 0.01,
    "orthogonal, M¹ ≠ M², scale 0.01": 0.01,
    "orthogonal, M¹ = M², scale 1": 1.0,
    "Gaussian, a tenth of the usual": 0.1,
    "Gaussian, usual (1/√fan-in)": 1.0,
}  # by name, the scale b of u0 ~ b z² (z normal), or a factor for both weights
HORIZON = 8.0  # in units of τ over the weakest s: long enough for the weakest mode at u0 = s/10000


@dataclass(frozen=True)
class Sets:
    """Linear networks to integrate at once, with the modes that they start from.

    Attributes:
        target: of all of them, a batch.
        a0: (sets, modes), diagonals of M¹.
        b0: the same of M².
        first: W¹_0 (sets, hidden, in).
        second: W²_0 (sets, out, hidden).
    """

    target: TargetModes
    a0: Tensor
    b0: Tensor
    first: Tensor
    second: Tensor

    @property
    def scale(self) -> Tensor:
        """The weakest s of each set (sets,): taken as its τ, all sets learn at one pace."""
        return self.target.strengths.amin(-1)

    def updates(self, times: Tensor) -> Tensor:
        """D_t (times, sets, out, in), times in units of τ over the weakest s."""
        return gradient_flow(self.first, self.second, self.target.correlation, times, tau=self.scale)


def random_sets(count: int, modes: int, seed: int, balanced: bool = True) -> Sets:
    """Sets of the paper's kind: a uniform in 0.1..1, b between 0.01 and 1, logarithmically uniform; see `sets_of`."""
    uniform = torch.rand(count, 2, dtype=torch.float64, generator=generator_of(seed), device="cpu")
    return sets_of([(0.1 + 0.9 * float(x), 10 ** (-2 * float(y))) for x, y in uniform], modes, seed, balanced)


def sets_of(scales: Sequence[tuple[float, float]], modes: int, seed: int, balanced: bool = True) -> Sets:
    """One set for each (a, b): s_i = a·i, and u0 of the scale b.

    Args:
        scales: pairs (a, b).
        modes: of each set.
        seed: of u0, O and the singular vectors.
        balanced: M¹ = M² = √|u0| with u0 ~ N(0, b²); else independent, |N(0, b)| each, so that u0 = ab has that scale.
    """
    generator = generator_of(seed)
    targets, starts, diagonals = [], [], []
    for a, b in scales:
        target = random_target(a * torch.arange(1, modes + 1, device="cpu"), OUTPUTS, INPUTS, generator)
        m1 = (b * normal(generator, modes)).abs().sqrt() if balanced else b**0.5 * normal(generator, modes).abs()
        m2 = m1 if balanced else b**0.5 * normal(generator, modes).abs()
        targets.append(target)
        diagonals.append((m1, m2))
        starts.append(orthogonal_start(target, m1, m2, generator))
    left, strengths, right = (
        torch.stack([getattr(target, name) for target in targets]) for name in ("left", "strengths", "right")
    )
    a0, b0 = (torch.stack(numbers) for numbers in zip(*diagonals, strict=True))
    first, second = (torch.stack(weights) for weights in zip(*starts, strict=True))
    return Sets(TargetModes(left, strengths, right), a0, b0, first, second)


def agreement(sets: Sets) -> Mapping[str, float]:
    """Largest differences from the integrated flow, relative to s, over modes and times.

    Returns:
        `balanced`: of eq. 4 with u0 = ab; `general`: of the form without a = b; `crossed`: of D_t from its modes alone.
    """
    times = torch.linspace(0, HORIZON, 81, dtype=torch.float64, device="cpu")
    updates = sets.updates(times)
    modes, s = sets.target.strengths_in(updates), sets.target.strengths
    at, tau = times[:, None, None], sets.scale[:, None]
    own = (sets.target.left * modes.unsqueeze(-2)) @ sets.target.right
    return {
        "balanced": _largest(modes - mode_strength(s, sets.a0 * sets.b0, at, tau), s),
        "general": _largest(modes - unbalanced_mode_strength(s, sets.a0, sets.b0, at, tau), s),
        "crossed": _largest((updates - own).flatten(-2), s[..., -1:]),
    }


def residual(sets: Sets) -> float:
    """Largest |τ u' − 2u (s − u)| / s² of eq. 4, u' by automatic differentiation; times as in `agreement`."""
    s, u0 = sets.target.strengths, sets.a0 * sets.b0
    tau = sets.scale[:, None]
    grid = torch.linspace(0, HORIZON, 81, dtype=torch.float64, device="cpu")[:, None, None]
    times = grid.expand(len(grid), *s.shape).clone().requires_grad_()
    u = mode_strength(s, u0, times, tau) + u0
    (rate,) = torch.autograd.grad(u.sum(), times)
    return _largest((tau * rate - 2 * u * (s - u)).detach(), s**2)


def growth_rates(modes: int, u0: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Rates τ d ln u/dt of the modes s = 1, 2, ... in an integrated flow, while u ≪ s; and the theory's 2s."""
    s = torch.arange(1, modes + 1, dtype=torch.float64, device="cpu")
    target = random_target(s, OUTPUTS, INPUTS, generator_of(0))
    start = torch.full_like(s, u0).sqrt()
    moment = 0.5 / modes
    update = gradient_flow(*orthogonal_start(target, start, start, generator_of(1)), target.correlation, [moment])
    return torch.log1p(target.strengths_in(update)[0] / u0) / moment, 2 * s


def beyond_capacity(modes: int, seed: int) -> tuple[float, float]:
    """A network with about half as many hidden units as the target has modes, from Theorem 2's start, at the end.

    Returns:
        Largest |A_t − s| / s of the modes with a hidden unit, which are the strongest; largest A_t / s of the others.
    """
    generator, hidden = generator_of(seed), (modes + 1) // 2
    target = random_target(torch.arange(modes, 0, -1, device="cpu"), OUTPUTS, INPUTS, generator)
    u0 = (0.1 * normal(generator, hidden)).abs()
    weights = orthogonal_start(target, u0.sqrt(), u0.sqrt(), generator)
    strength = target.strengths_in(gradient_flow(*weights, target.correlation, [HORIZON])[0])
    strength[:hidden] += u0
    return _largest(strength[:hidden] - target.strengths[:hidden], target.strengths[:hidden]), _largest(
        strength[hidden:], target.strengths[hidden:]
    )


def start_numbers(kind: str, modes: int, seed: int) -> Mapping[str, float]:
    """One integrated flow with s = 1, 2, ... from one of `STARTS`.

    Returns:
        `error`: largest difference of a mode from eq. 4 with u0 = |u_αᵀ A_0 v_α|, over s; `order`, `increment`: as in
        `theorem_2_order`, from the flow itself.
    """
    generator = generator_of(seed)
    target = random_target(torch.arange(1, modes + 1, device="cpu"), OUTPUTS, INPUTS, generator)
    first, second = _start(kind, target, modes, generator)
    times = (
        HORIZON * torch.linspace(0, 1, 401, dtype=torch.float64, device="cpu") ** 2
    )  # dense where the strong modes are learned
    updates = gradient_flow(first, second, target.correlation, times, tolerance=1e-9)
    found = target.strengths_in(updates)
    u0 = target.strengths_in(second @ first).abs()
    spectra = torch.linalg.svdvals(updates)
    early = spectra[int((spectra[:, 0] >= spectra[-1, 0] / 2).double().argmax())]
    return {
        "error": _largest(found - mode_strength(target.strengths, u0, times[:, None]), target.strengths),
        "order": order(target.strengths, crossing_times(found / found[-1], times)),
        "increment": float(effective_rank(early.numpy()) / effective_rank(spectra[-1].numpy())),
    }


def _start(kind: str, target: TargetModes, modes: int, generator: Generator) -> tuple[Tensor, Tensor]:
    size = STARTS[kind]
    if kind.startswith("Gaussian"):
        first, second = normal(generator, modes, INPUTS), normal(generator, OUTPUTS, modes)
        return size * first / INPUTS**0.5, size * second / modes**0.5
    m1 = size**0.5 * normal(generator, modes).abs()
    m2 = m1 if "M¹ = M²" in kind else size**0.5 * normal(generator, modes).abs()
    return orthogonal_start(target, m1, m2, generator)


def _largest(differences: Tensor, relative_to: Tensor) -> float:
    return float((differences.abs() / relative_to).max())
