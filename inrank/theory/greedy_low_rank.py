"""Greedy low-rank learning: Algorithm 1 on deep linear networks A = W^L … W^1, for a convex cost C(A).

    cost = MatrixCompletion(entries, observed)                      # or MatrixRegression(inputs, outputs)
    network = DeepLinearNetwork(rows=30, cols=30, depth=3)
    result = greedy_low_rank(network, cost)
    result.width, result.reason        # 3, "converged"

The network starts at width 1, trains until that width stops improving, and then gets one hidden unit more, which points
along the first singular vectors u, v of ∇C(A): the steepest direction that lies outside what it holds.

Where the paper's listing cannot be meant as printed, and what is done here:

* Its loop runs *while* C < C_min + ε, so it would end before it began. It has to go on while C is above.
* With W^1 = −ε vᵀ (a row) and W^L = ε u (a column) the product must be read W^L … W^1, as in section 3 and not as in
  the listing's first line; W^L grows by a column beside the others, not by a row below. One minus sign in all, so that
  −ε^L u vᵀ descends.
* It grows after every T steps and looks at the cost only afterwards, so it ends a width too large. Here the look comes
  before the growth.
* One ε stands for the size of new weights and for the distance from C_min. Here those are `epsilon` and `tolerance`;
  and since C_min is not known in general, what is compared is the first singular value of ∇C(A): C is convex, so
  C(A) − C_min ≤ σ₁(∇C(A)) ‖A − A*‖_nuclear, and at zero no direction lowers the cost.
* T steps, whatever happened in them, become: until the slope that is left inside the width, ‖∂C/∂θ‖, has fallen to a
  tenth of the one at which a new unit would start, √L ε^(L−1) σ₁(∇C(A)). A unit just added is the steepest there is, so
  training cannot stop at the saddle that it has to leave first; and at the true rank both slopes fall together, so
  nothing more is added.
* SGD at rate η is gradient descent here, at the rate 1/λ with λ a bound on the Hessian's largest eigenvalue.

References:
    Zhao et al. 2023, arXiv:2306.11250, Algorithm 1, Theorems 1 and 3.
    Li, Luo, Lyu 2021, arXiv:2012.09839: the algorithm's source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inrank.theory.deep_linear_network import DeepLinearNetwork, curvature_bound
from inrank.theory.matrix_costs import Cost, MatrixCompletion, MatrixRegression

__all__ = [
    "Cost",
    "DeepLinearNetwork",
    "GreedyResult",
    "Growth",
    "MatrixCompletion",
    "MatrixRegression",
    "greedy_low_rank",
]
START_STRENGTH = 1e-4  # ε^L of a new unit, beside σ₁(∇C(0)) / curvature. No source: small, yet quick to leave
PROMISE = 10.0  # how much steeper a new unit must start than what is left inside. No source
Reason = Literal["converged", "width", "steps"]


@dataclass(frozen=True)
class Growth:
    """The network as it was before a unit was added: a critical point of its width, where that had stopped improving.

    Attributes:
        step: gradient steps before it.
        width: before the growth.
        cost: C(A).
        slope: σ₁(∇C(A)), how steeply the new unit's direction descends.
        product: A.
    """

    step: int
    width: int
    cost: float
    slope: float
    product: Float[Tensor, "rows cols"]


@dataclass(frozen=True)
class GreedyResult:
    """What greedy low-rank learning found.

    Attributes:
        width: the rank that it ended at.
        reason: `converged` (σ₁(∇C) below the tolerance), or stopped by the largest `width` or the number of `steps`.
        steps: gradient steps.
        cost: C(A).
        product: A.
        growths: where units were added; the first is the start, of width 0.
        history: step, width and cost at each look.
    """

    width: int
    reason: Reason
    steps: int
    cost: float
    product: Float[Tensor, "rows cols"]
    growths: tuple[Growth, ...]
    history: tuple[tuple[int, int, float], ...]

    @property
    def singular_values(self) -> Float[Tensor, " width"]:
        """Of A, as many as its width."""
        values: Tensor = torch.linalg.svdvals(self.product)
        return values[: self.width]


@torch.no_grad()
def greedy_low_rank(
    network: DeepLinearNetwork,
    cost: Cost,
    *,
    epsilon: float | None = None,
    tolerance: float = 1e-4,
    max_width: int | None = None,
    max_steps: int = 200_000,
    check_every: int = 20,
    after_step: Callable[[], None] | None = None,
) -> GreedyResult:
    """Algorithm 1: minimise C over products of rank 1, then 2, …, until no direction is left that lowers it.

    Args:
        network: zero. It is trained in place and its `width` grows.
        cost: C.
        epsilon: size of a new unit's weights. Default: so that ε^L is `START_STRENGTH` of σ₁(∇C(0)) / curvature. Time
            to leave a saddle grows like log 1/ε at depth 2 and like ε^(2−L) above.
        tolerance: converged where σ₁(∇C(A)) is at most this share of σ₁(∇C(0)).
        max_width: default: the network's capacity.
        max_steps: gradient steps in all.
        check_every: steps between two looks at the spectrum of ∇C(A).
        after_step: called after each gradient step, for progress or a tracker.

    Raises:
        ValueError: an argument is out of range, the network is not zero, or its shape is not the cost's.
    """
    options = _Options(epsilon, tolerance, max_width, max_steps, check_every)
    _check(network, cost, options)
    search = _Search(network, cost, options)
    reason: Reason = "steps"
    for step in range(max_steps + 1):
        last = step == max_steps
        if (step % check_every == 0 or last) and (end := search.look(step, last)):
            reason = end
            break
        search.descend()
        if after_step is not None:
            after_step()
    product = network.product()
    return GreedyResult(
        network.width,
        reason,
        step,
        float(cost.value(product)),
        product.clone(),
        tuple(search.growths),
        tuple(search.history),
    )


@dataclass(frozen=True)
class _Options:
    """How the algorithm begins a unit, and when it ends; see `greedy_low_rank`."""

    epsilon: float | None
    tolerance: float
    max_width: int | None
    max_steps: int
    check_every: int


class _Search:
    """The state of Algorithm 1 between steps."""

    def __init__(self, network: DeepLinearNetwork, cost: Cost, options: _Options) -> None:
        self.network, self.cost, self.epsilon = network, cost, options.epsilon
        self.tolerance = options.tolerance
        self.widest = network.capacity if options.max_width is None else options.max_width
        self.growths: list[Growth] = []
        self.history: list[tuple[int, int, float]] = []

    def look(self, step: int, last: bool) -> Reason | None:
        """End, or grow, or go on (None); at the last step nothing grows that could not be trained."""
        network, product = self.network, self.network.product()
        gradient = self.cost.gradient(product)
        left, values, right = torch.linalg.svd(gradient, full_matrices=False)
        steepest, level = float(values[0]), float(self.cost.value(product))
        self.history.append((step, network.width, level))
        start = self.growths[0].slope if self.growths else steepest
        if steepest <= self.tolerance * start:
            return "converged"
        if last:
            return "steps"
        if self.epsilon is None:
            self.epsilon = (START_STRENGTH * start / self.cost.curvature) ** (1 / network.depth)
        inside = math.hypot(*(float(slope.norm()) for slope in network.gradients(gradient)))
        promised = math.sqrt(network.depth) * self.epsilon ** (network.depth - 1) * steepest
        if PROMISE * inside <= promised:  # at width 0 nothing is inside
            if network.width == self.widest:
                return "width"
            self.growths.append(Growth(step, network.width, level, steepest, product.clone()))
            network.grow(left[:, 0], right[0], self.epsilon)
        return None

    def descend(self) -> None:
        """One step of gradient descent, at the rate that the curvature allows."""
        gradient = self.cost.gradient(self.network.product())
        rate = 1 / curvature_bound(self.network.norms(), self.cost.curvature, gradient.norm())
        for weight, slope in zip(self.network.weights, self.network.gradients(gradient), strict=True):
            weight.sub_(rate * slope)


def _check(network: DeepLinearNetwork, cost: Cost, options: _Options) -> None:
    if (network.rows, network.cols) != (cost.rows, cost.cols):
        raise ValueError(
            f"network must have the cost's shape {cost.rows}×{cost.cols}, got {network.rows}×{network.cols}"
        )
    if network.width or any(bool(weight.any()) for weight in network.weights):
        raise ValueError("network must be zero, as it is when made: greedy learning starts from nothing")
    if options.epsilon is not None and not 0 < options.epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0, got {options.epsilon}")
    if not 0 < options.tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {options.tolerance}")
    max_width, max_steps, check_every = options.max_width, options.max_steps, options.check_every
    if max_width is not None and not 1 <= max_width <= network.capacity:
        raise ValueError(f"max_width must be in 1..{network.capacity}, the network's capacity, got {max_width}")
    if max_steps < 1 or check_every < 1:
        raise ValueError(f"max_steps and check_every must be at least 1, got {max_steps} and {check_every}")
