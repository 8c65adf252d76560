"""A deep linear network A = W^L … W^1 whose hidden layers grow, its gradients, and how curved a cost is in its weights.

References:
    Zhao et al. 2023, arXiv:2306.11250, section 3.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DeepLinearNetwork(nn.Module):
    """A = W^L … W^1, all zero at first, with room for `capacity` hidden units of which `width` are in use.

    What is not in use is exactly zero, and so is its gradient (both sides of such a unit are): the network computes and
    trains as one of that width. Its shapes never change, so an optimizer or a tracker need not know of growth.

    Args:
        rows: of A.
        cols: of A.
        depth: L, at least 2.
        capacity: hidden units in each hidden layer. Default: min(rows, cols), which holds every A.
        device: where the weights lie; they are float64.

    Attributes:
        weights: W^1 (capacity × cols), …, W^L (rows × capacity).
        width: hidden units in use.

    Raises:
        ValueError: a size or the depth is too small.
    """

    def __init__(
        self, rows: int, cols: int, depth: int, *, capacity: int | None = None, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__()
        if rows < 1 or cols < 1:
            raise ValueError(f"rows and cols must be at least 1, got {rows} and {cols}")
        if depth < 2:
            raise ValueError(f"depth must be at least 2 (one layer has no rank to grow), got {depth}")
        self.rows, self.cols, self.depth, self.width = rows, cols, depth, 0
        self.capacity = min(rows, cols) if capacity is None else capacity
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        sizes = [cols, *[self.capacity] * (depth - 1), rows]
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.weights = nn.ParameterList(torch.zeros(*s, dtype=torch.float64, device=device) for s in shapes)

    def forward(self, inputs: Float[Tensor, "... cols"]) -> Float[Tensor, "... rows"]:
        """A x, for each x in the last dimension."""
        return inputs @ self.product().mT

    def product(self) -> Float[Tensor, "rows cols"]:
        """A = W^L … W^1."""
        return self._products()[-1]

    def _products(self) -> list[Tensor]:
        """W^1, W^2 W^1, …, A."""
        found = [self.weights[0]]
        for weight in list(self.weights)[1:]:
            found.append(weight @ found[-1])
        return found

    @torch.no_grad()
    def gradients(self, gradient: Float[Tensor, "rows cols"]) -> list[Tensor]:
        """∂C/∂W^l = (W^L … W^(l+1))ᵀ ∇C(A) (W^(l−1) … W^1)ᵀ, for l = 1 … L.

        Args:
            gradient: ∇C(A).
        """
        before: list[Tensor | None] = [None, *self._products()[:-1]]
        found: list[Tensor] = []
        for weight, product in zip(reversed(self.weights), reversed(before), strict=True):
            found.append(gradient if product is None else gradient @ product.mT)
            gradient = weight.mT @ gradient
        return found[::-1]

    @torch.no_grad()
    def grow(self, left: Float[Tensor, " rows"], right: Float[Tensor, " cols"], epsilon: float) -> None:
        """Take one hidden unit more into use, which adds −ε^L u vᵀ to the product (Algorithm 1, lines 2 and 7).

        Raises:
            ValueError: all are in use.
        """
        if self.width == self.capacity:
            raise ValueError(f"all {self.capacity} hidden units are in use")
        self.weights[0][self.width] = -epsilon * right
        self.weights[-1][:, self.width] = epsilon * left
        for weight in list(self.weights)[1:-1]:
            weight[self.width, self.width] = epsilon
        self.width += 1

    @torch.no_grad()
    def randomize(self, scale: float, generator: torch.Generator | None = None) -> None:
        """All units into use, entries N(0, scale² / fan-in): 1 keeps the size of a signal, a usual start."""
        for weight in self.weights:
            noise = torch.randn(weight.shape, dtype=torch.float64, generator=generator, device="cpu")
            weight.copy_(noise * (scale / math.sqrt(weight.shape[1])))
        self.width = self.capacity

    @torch.no_grad()
    def norms(self) -> Float[Tensor, " depth"]:
        """‖W^l‖₂ of each layer, by the units in use."""
        used = slice(0, self.width)
        parts = [
            self.weights[0][used],
            *(w[used, used] for w in list(self.weights)[1:-1]),
            self.weights[-1][:, used].mT,
        ]
        squares: Tensor = torch.linalg.eigvalsh(torch.stack([part @ part.mT for part in parts]))
        return squares[:, -1].clamp_min(0).sqrt()


def curvature_bound(norms: Float[Tensor, " depth"], curvature: float, gradient: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A bound on the largest eigenvalue of C's Hessian in θ = (W^1, …, W^L).

    With n_l = ‖W^l‖₂ and p = Π n_l: β Σ_l (p / n_l)² for the change of A to first order, and for that to second order
    ‖∇C‖ max_l Σ_{k≠l} p / (n_l n_k), by Gershgorin.

    Args:
        norms: n_l, above 0.
        curvature: β, of C in A.
        gradient: ‖∇C(A)‖₂ or a bound on it.
    """
    without = norms.prod() / norms
    pairs = without * ((1 / norms).sum() - 1 / norms)
    bound: Tensor = curvature * without.square().sum() + gradient * pairs.max()
    return bound
