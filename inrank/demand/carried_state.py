"""What an optimizer knows of a weight, carried to the factors that take its place.

With W = κ U V the gradients are ∂U = κ ∂W Vᵀ and ∂V = κ Uᵀ ∂W. So an average of gradients (Adam's first moment, SGD's
momentum, a gradient that is being accumulated) goes over exactly. An average of squared gradients goes over as if the
entries of a gradient were independent, v_U = κ² v (V²)ᵀ and v_V = κ² (U²)ᵀ v (squares of entries). Counters stay.
An optimizer that keeps anything else (8-bit, factored, preconditioned) begins anew with the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inrank.demand.weighted import exact
from inrank.growth import replace_parameters

_LINEAR = ("exp_avg", "momentum_buffer", "grad_avg")
_SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
_COUNTERS = ("step", "mu_product")
Orient = Callable[[Tensor], Tensor]


class Carrier:
    """From one weight to its factors.

    Args:
        weight: of an ordinary layer.
        orient: the weight, or what is shaped like it, to (rows, cols).
        U: (rows, rank), new.
        V: (rank, cols), new.
        gain: κ.
    """

    def __init__(self, weight: nn.Parameter, orient: Orient, U: nn.Parameter, V: nn.Parameter, gain: float) -> None:
        self._weight, self._orient, self._factors, self._gain = weight, orient, (U, V), gain
        self._left, self._right = exact(U), exact(V)

    @torch.no_grad()
    def gradient(self) -> None:
        """What has been accumulated so far goes on in the factors."""
        if self._weight.grad is None:
            return
        for factor, value in zip(self._factors, self._linear(self._weight.grad), strict=True):
            factor.grad = value.to(factor)

    @torch.no_grad()
    def state(self, optimizer: Optimizer) -> bool:
        """Exchange the weight for its factors; whether its state, if it had any, went along."""
        old = dict(optimizer.state.get(self._weight, {}))
        replace_parameters(optimizer, {self._weight: self._factors})
        known = all(self._is_known(key, value) for key, value in old.items())
        known &= old.get("momentum_buffer") is None or "square_avg" not in old  # RMSprop's is of steps, not gradients
        if old and known:
            for factor, state in zip(self._factors, self._states(old), strict=True):
                optimizer.state[factor] = state
        return known

    def _is_known(self, key: str, value: Any) -> bool:
        if value is None or key in _COUNTERS:
            return True
        return key in _LINEAR + _SQUARED and isinstance(value, Tensor) and value.shape == self._weight.shape

    def _states(self, old: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        left: dict[str, Any] = {}
        right: dict[str, Any] = {}
        for key, value in old.items():
            if isinstance(value, Tensor) and key not in _COUNTERS:
                pair = self._linear(value) if key in _LINEAR else self._squared(value)
                left[key], right[key] = (each.to(value).contiguous() for each in pair)
            else:
                left[key], right[key] = (value.clone() if isinstance(value, Tensor) else value for _ in range(2))
        return left, right

    def _linear(self, average: Tensor) -> tuple[Tensor, Tensor]:
        dense = self._orient(average).to(self._left)
        return self._gain * dense @ self._right.mT, self._gain * self._left.mT @ dense

    def _squared(self, average: Tensor) -> tuple[Tensor, Tensor]:
        dense = self._orient(average).to(self._left)
        return (
            self._gain**2 * dense @ self._right.square().mT,
            self._gain**2 * self._left.square().mT @ dense,
        )
