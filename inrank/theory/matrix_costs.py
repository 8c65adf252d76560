"""Convex costs of a matrix: completion from some of its entries, regression from samples."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Cost(Protocol):
    """A convex function C of a matrix.

    Attributes:
        rows: of the matrix.
        cols: of the matrix.
        curvature: a bound on the Hessian's largest eigenvalue.
    """

    rows: int
    cols: int
    curvature: float

    def value(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, ""]:
        """C(A)."""
        ...

    def gradient(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """∇C(A)."""
        ...


class MatrixCompletion:
    """C(A) = ½ Σ over the observed (A_ij − M_ij)².

    Args:
        entries: M; what is not observed is not looked at.
        observed: which are.

    Raises:
        ValueError: shapes differ, nothing is observed, or an observed entry is not finite.
    """

    def __init__(self, entries: Float[Tensor, "rows cols"], observed: Bool[Tensor, "rows cols"]) -> None:
        if entries.ndim != 2 or entries.shape != observed.shape or observed.dtype != torch.bool:
            raise ValueError(
                f"entries and observed must be matrices of one shape, observed of booleans, got "
                f"{tuple(entries.shape)} and {tuple(observed.shape)} of {observed.dtype}"
            )
        if not observed.any():
            raise ValueError("observed must be true somewhere, got no observed entry")
        self._mask = observed.to(entries.dtype)
        self._entries = torch.where(observed, entries, torch.zeros_like(entries))
        _check_finite("entries", self._entries)
        self.rows, self.cols = entries.shape
        self.curvature = 1.0

    def value(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, ""]:
        """C(A)."""
        return self.gradient(matrix).square().sum() / 2

    def gradient(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """∇C(A): the observed residuals, zero elsewhere."""
        return matrix * self._mask - self._entries


class MatrixRegression:
    """C(A) = ‖A X − Y‖_F² / (2 P), over P samples.

    Args:
        inputs: X, a sample a column.
        outputs: Y.

    Raises:
        ValueError: numbers of samples differ, or a number is not finite.
    """

    def __init__(self, inputs: Float[Tensor, "cols samples"], outputs: Float[Tensor, "rows samples"]) -> None:
        if inputs.ndim != 2 or outputs.ndim != 2 or inputs.shape[1] != outputs.shape[1] or not inputs.numel():
            raise ValueError(
                "inputs and outputs must be matrices with a column for each sample, "
                f"got {tuple(inputs.shape)} and {tuple(outputs.shape)}"
            )
        _check_finite("inputs", inputs)
        _check_finite("outputs", outputs)
        samples = inputs.shape[1]
        self.rows, self.cols = outputs.shape[0], inputs.shape[0]
        # all that C needs of the samples: their second moments
        self._inputs, self._both = inputs @ inputs.mT / samples, outputs @ inputs.mT / samples
        self._outputs = outputs.square().sum() / samples
        self.curvature = float(torch.linalg.eigvalsh(self._inputs)[-1])

    def value(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, ""]:
        """C(A); below 1e-16 of C(0) it is rounding, and may come out as 0."""
        terms = (matrix @ self._inputs * matrix).sum() - 2 * (matrix * self._both).sum() + self._outputs
        return terms.clamp_min(0) / 2

    def gradient(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """∇C(A) = (A X − Y) Xᵀ / P."""
        return matrix @ self._inputs - self._both


def _check_finite(name: str, matrix: Tensor) -> None:
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
