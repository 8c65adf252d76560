"""Where the singular values of a very large matrix lie, by its products alone: stochastic Lanczos quadrature.

A random orthonormal block X of b columns sees the spectrum, tr Xᵀ f(A Aᵀ) X · n/b ≈ Σ f(σ_i²), and a few steps of block
Golub–Kahan bidiagonalisation from it give the Gauss quadrature of that: nodes σ, and weights that say how many singular
values each of them stands for. Products run in the matrix's own precision, all else in float64 with full
reorthogonalisation. There is a singular value within a node's residual: as far, but no further than to its neighbours,
the node is spread out. Two blocks run side by side; how far their answers differ is part of the stated error.

References:
    Ubaru, Chen and Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, algorithm 1.
    Golub, Luk and Overton 1981, A block Lanczos method for computing the singular values of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from inrank_monitor.spectra.blocks import outside
from inrank_monitor.spectra.devices import has_float64

Product = Callable[[Tensor], Tensor]
_HALVES, _PIECES = 2, 8


@dataclass(frozen=True)
class SpectralDensity:
    """How many singular values lie where, estimated.

    Attributes:
        nodes: of the quadrature: singular values, descending.
        weights: how many of the matrix's values each stands for.
        values: all the matrix's values, descending: of the spread nodes, the root mean square of each unit of weight.
        error: estimated mean error of a value (Wasserstein-1 distance to the truth): half the distance between the two
            blocks' answers, for chance, and what the smoothing has moved, for resolution. No bound.
    """

    nodes: Float[np.ndarray, " nodes"]
    weights: Float[np.ndarray, " nodes"]
    values: Float[np.ndarray, " count"]
    error: float

    def scaled(self, factor: float) -> SpectralDensity:
        """Of the matrix times `factor`."""
        return SpectralDensity(self.nodes * factor, self.weights, self.values * factor, self.error * factor)


@dataclass(frozen=True)
class LinearOperator:
    """A matrix, rows ≤ cols, that is known by its products alone; a sharded one's take one all-reduce each.

    Attributes:
        forward: X (cols, probes) -> A X.
        backward: Y (rows, probes) -> Aᵀ Y.
        rows: the short side.
        like: a tensor on the device and of the dtype that the products want.
    """

    forward: Product
    backward: Product
    rows: int
    like: Tensor


@dataclass(frozen=True)
class Quadrature:
    """How much work goes into a density.

    Attributes:
        steps: two products each. They set the resolution, and how well the largest values are met.
        probes: columns of the two blocks together; the random part of the error falls with its root.
        seed: of the private generator.

    Raises:
        ValueError: `steps` below 1, `probes` odd or below 2.
    """

    steps: int = 12
    probes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.probes < _HALVES or self.probes % _HALVES:
            raise ValueError(f"probes must be an even number of at least 2, got {self.probes}")

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.probes // _HALVES

    def start(self, rows: int) -> Tensor:
        """The random blocks, (2, rows, width), drawn on the CPU."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        return torch.randn(_HALVES, rows, self.width, generator=generator, dtype=torch.float64, device="cpu")


@torch.no_grad()
def spectral_density(
    operator: LinearOperator, quadrature: Quadrature, energy: float | None = None, beside: Tensor | None = None
) -> SpectralDensity:
    """Density of the singular values of a matrix.

    Args:
        operator: the matrix.
        quadrature: how much work goes into it.
        energy: ‖A‖_F², if it is known: weights and values are brought to agree with it.
        beside: (rows, w) orthonormal and orthogonal to the matrix's columns: the w zeros that this means do not count.

    Raises:
        ValueError: too few rows for so many probes.
    """
    like, width = operator.like, quadrature.width
    count = operator.rows - (0 if beside is None else beside.shape[1])
    if width > count:
        raise ValueError(
            f"probes must be at most {2 * count} for a matrix with {count} values, got {quadrature.probes}"
        )
    start = quadrature.start(operator.rows).to(like.device if has_float64(like.device) else "cpu")
    if beside is not None:
        start = outside(beside.to(start.device).to(start.dtype), start)

    def apply(product: Product, blocks: Tensor) -> Tensor:
        """Both blocks in one product."""
        flat = torch.cat(list(blocks), dim=1).to(like.device, like.dtype)
        return torch.stack(product(flat).to(start.device).to(start.dtype).chunk(_HALVES, dim=1))

    steps = min(quadrature.steps, count // width)
    small, beyond = _bidiagonalise(
        lambda y: apply(operator.backward, y), lambda x: apply(operator.forward, x), start, steps
    )
    left, nodes, right = torch.linalg.svd(small.cpu())
    weights = left[:, :width].square().sum(dim=1) * (count / width)
    residuals = torch.linalg.vector_norm(beyond.cpu() @ right[..., -width:].mT, dim=1)
    halves = [_Half(*(part.numpy() for part in half)) for half in zip(nodes, weights, residuals, strict=True)]
    density = _combine([half.calibrated(energy) for half in halves], steps, count)
    found = float(np.square(density.values).sum())
    return density.scaled(math.sqrt(energy / found)) if energy is not None and found > 0 else density


def _bidiagonalise(backward: Product, forward: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Uᵀ A V of the block Krylov spaces, (2, steps · b, steps · b), and what A of the last block of V holds outside U.

    U grows from the start by what A V holds outside it, V by what Aᵀ U holds outside it.
    """
    width = start.shape[-1]
    left = torch.linalg.qr(start).Q
    right = start.new_zeros(_HALVES, 0, 0)
    small = start.new_zeros(_HALVES, steps * width, steps * width)
    for step in range(steps):
        rows = slice(step * width, (step + 1) * width)
        image = backward(left[..., rows])
        if step == 0:
            right = image.new_zeros(_HALVES, image.shape[1], 0)
        right, coefficients = _extend(right, image)
        small[:, rows, : rows.stop] = coefficients.mT
        left, coefficients = _extend(left, forward(right[..., rows]))
    return small, coefficients[:, -width:]


def _extend(basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The basis with as many more orthonormal columns as the block has, and the block's coefficients in them.

    Twice: where the block has nothing new to add, the first round fills up with directions that are not orthogonal yet.
    """
    found = block.new_zeros(_HALVES, basis.shape[-1], block.shape[-1])
    root = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device).expand(_HALVES, -1, -1)
    for _ in range(2):
        inside = basis.mT @ block
        found = found + inside @ root
        block, factor = torch.linalg.qr(block - basis @ inside)
        root = factor @ root
    return torch.cat([basis, block], dim=-1), torch.cat([found, root], dim=-2)


class _Half(NamedTuple):
    """What one block sees: nodes, their weights, and within what of each there is a singular value."""

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    def calibrated(self, energy: float | None) -> _Half:
        """Weights times 1 + c (θ² − mean θ²), with c such that Σ w θ² is the energy: less of it is left to chance."""
        squares = self.nodes**2
        mean = np.average(squares, weights=self.weights)
        spread = np.average((squares - mean) ** 2, weights=self.weights)
        if energy is None or spread <= 1e-12 * mean**2:
            return self
        tilt = (energy / self.weights.sum() - mean) / spread
        weights = self.weights * np.maximum(1 + tilt * (squares - mean), 0)
        return self._replace(weights=weights * (self.weights.sum() / weights.sum()))


def _combine(halves: Sequence[_Half], steps: int, count: int) -> SpectralDensity:
    spread = [_spread(half, steps) for half in halves]
    first, second = (_quantiles(*half, count) for half in spread)
    values = _quantiles(*_joined([nodes for nodes, _ in spread], [weights for _, weights in spread]), count)
    nodes, weights = _joined([half.nodes for half in halves], [half.weights for half in halves])
    error = float(np.abs(first - second).mean()) / 2 + float(np.abs(values - _quantiles(nodes, weights, count)).mean())
    return SpectralDensity(nodes, weights / _HALVES, values, error)


def _spread(half: _Half, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Each node as a row of equal pieces, as wide as its residual but no wider than the nodes are apart on average."""
    reach = np.minimum(half.residuals, half.nodes.max() / (2 * steps))
    offsets = (2 * np.arange(_PIECES) + 1) / _PIECES - 1
    pieces = np.abs(half.nodes[:, None] + reach[:, None] * offsets)
    return _joined([pieces.ravel()], [np.repeat(half.weights / _PIECES, _PIECES)])


def _joined(nodes: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    together = np.concatenate(nodes)
    order = np.argsort(-together)
    return together[order], np.concatenate(weights)[order]


def _quantiles(nodes: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Root mean square of each of `count` equal shares of descending nodes."""
    shares = np.concatenate([[0.0], np.cumsum(weights)]) * (count / weights.sum())
    energy = np.concatenate([[0.0], np.cumsum(weights * nodes**2)]) * (count / weights.sum())
    squares = np.diff(np.interp(np.arange(count + 1), shares, energy))
    # A difference of running sums: what rounding makes of a zero is not to stand out among the others.
    return np.minimum.accumulate(np.sqrt(np.where(squares > 1e-14 * energy[-1], squares, 0.0)))
