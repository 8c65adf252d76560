"""Gradient flow of a linear network, integrated numerically from any start: what the closed forms are held against.

The steps are as long as the tolerance allows. `integrate` knows nothing of networks.

References:
    Zhao et al. 2023, arXiv:2306.11250, eq. 8.
    Dormand, Prince 1980, A family of embedded Runge-Kutta formulae: the pair of orders 5 and 4.
    Hairer, Nørsett, Wanner 1993, Solving Ordinary Differential Equations I, II.4: the control of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inrank.theory.linear_networks import in_float64

_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the step itself, of order 5
)
# The step of order 5 less that of order 4
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SHRINK_MOST, _GROW_MOST = 0.9, 0.2, 5.0
_ORDER = 5
MOST_STEPS = 100_000


@torch.no_grad()
def gradient_flow(
    first: Float[Tensor, "*batch hidden in"],
    second: Float[Tensor, "*batch out hidden"],
    correlation: Float[Tensor, "*batch out in"],
    times: Sequence[float] | Tensor,
    tau: float | Tensor = 1.0,
    tolerance: float = 1e-11,
) -> Float[Tensor, "times *batch out in"]:
    """D_t = W² W¹ − W²_0 W¹_0 along eq. 8 with Σˣˣ = I, integrated numerically from any start.

    By `integrate`. Near a saddle its errors grow as the mode itself does, by up to s/u0.

    Args:
        first: W¹_0.
        second: W²_0.
        correlation: Σʸˣ.
        times: ascending, from 0 on: optimizer steps for τ = 1/η.
        tau: τ; one number, or one for each of the batch.
        tolerance: for the error of one step, relative to the largest weight.

    Raises:
        ValueError: times or tau are out of their range.
        ArithmeticError: a weight is not finite, or the steps are too many.
    """
    moments, scale = (in_float64(value) for value in (times, tau))
    if bool((moments < 0).any() | (moments.diff() < 0).any()):
        raise ValueError("times must ascend, from 0 on")
    if bool((scale <= 0).any()):
        raise ValueError(f"tau must be above 0, got {float(scale.min()):g}")
    rows = math.prod(first.shape[-2:])

    def weights(state: Tensor) -> tuple[Tensor, Tensor]:
        w1, w2 = state[..., :rows], state[..., rows:]
        return w1.reshape(*w1.shape[:-1], *first.shape[-2:]), w2.reshape(*w2.shape[:-1], *second.shape[-2:])

    def slope(state: Tensor) -> Tensor:
        w1, w2 = weights(state)
        error = correlation - w2 @ w1
        return _packed(w2.mT @ error, error @ w1.mT) / scale[..., None]

    start = _packed(first.double(), second.double())
    initial = second.double() @ first.double()
    states = map(weights, integrate(slope, start, moments.tolist(), tolerance, float(scale.min()) * 1e-3))
    return torch.stack([w2 @ w1 - initial for w1, w2 in states])


def integrate(
    slope: Callable[[Tensor], Tensor],
    start: Tensor,
    times: Sequence[float],
    tolerance: float = 1e-11,
    first_step: float = 1e-3,
) -> Iterator[Tensor]:
    """The states at these times, in turn; steps end exactly there.

    Args:
        slope: f; rows of its argument are independent of each other, and share the step.
        start: y(0), float64, the last dimension one state, the ones before it a batch.
        times: ascending, from 0 on.
        tolerance: for the estimated error of one step, relative to the largest magnitude in its state.
        first_step: tried first.

    Raises:
        ArithmeticError: it gave up after `MOST_STEPS`, refused ones included, or a state is not finite.
    """
    state, rate, now, step, left = start, slope(start), 0.0, first_step, MOST_STEPS
    for time in times:
        while now < time:
            if left == 0 or not now + step > now or not bool(torch.isfinite(state).all()):
                raise ArithmeticError(f"integration stopped at t = {now:g} with a step of {step:g}")
            left -= 1
            taken = min(step, time - now)
            tried, tried_rate, error = _step(slope, state, rate, taken)
            ratio = float((error.abs().amax(-1) / (tolerance * tried.abs().amax(-1)).clamp_min(1e-300)).max())
            if ratio <= 1:
                state, rate = tried, tried_rate
                now = time if taken == time - now else now + taken
            proposed = taken * min(max(_SAFETY * max(ratio, 1e-30) ** (-1 / _ORDER), _SHRINK_MOST), _GROW_MOST)
            # A step that was cut short to end at a time says nothing against the longer one
            step = max(proposed, step) if ratio <= 1 and taken < step else proposed
        yield state


def _step(
    slope: Callable[[Tensor], Tensor], state: Tensor, rate: Tensor, length: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The state after one step, the slope there (the next step's first stage), and the estimate of the error."""
    rates = [rate]
    for weights in _STAGES:
        reached = state + length * _weighted(weights, rates)
        rates.append(slope(reached))
    return reached, rates[-1], length * _weighted(_ERROR, rates)


def _weighted(weights: Sequence[float], rates: Sequence[Tensor]) -> Tensor:
    total = weights[0] * rates[0]
    for weight, rate in zip(weights[1:], rates[1:], strict=True):
        if weight:
            total = total + weight * rate
    return total


def _packed(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first.flatten(-2), second.flatten(-2)], dim=-1)
