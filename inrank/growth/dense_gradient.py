"""The gradient of the loss with respect to W itself, averaged over a few backward passes.

Training W0 + U V needs no gradient of W0, and a growth rule or the start of Algorithm 2 does. `DenseGradient` asks
autograd for it while it is open, and takes it away before an optimizer, a clipping or a logger can see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from inrank.growth.processes import sum_over_processes
from inrank.layers import InRankLinear
from inrank_monitor.spectra import FULL_PRECISION, svd


class DenseGradient:
    """Sums ∂L/∂W0 = ∂L/∂W of the given layers over all backward passes while it is open.

    Also a context manager. Between `open` and `close` a backward pass costs what it costs in dense training.
    """

    def __init__(self, layers: Mapping[str, InRankLinear]) -> None:
        self._layers = {name: layer for name, layer in layers.items() if layer.initial_weight is not None}
        self._sums: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def is_open(self) -> bool:
        """Whether gradients are being taken."""
        return bool(self._handles)

    def open(self) -> None:
        """Begin anew."""
        self._sums = {}
        if self.is_open:
            return
        for name, layer in self._layers.items():
            assert layer.initial_weight is not None
            layer.initial_weight.requires_grad_(True)
            take = partial(self._take, name)
            self._handles.append(layer.initial_weight.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]

    def _take(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad if parameter.grad.dtype == torch.float64 else parameter.grad.float()
        parameter.grad = None
        self._sums[name] = self._sums[name] + gradient if name in self._sums else gradient

    def close(self) -> None:
        """W0 is frozen again; the sums stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in self._layers.values():
            weight = getattr(layer, "initial_weight", None)
            if weight is not None:  # else the layer has been factorized
                weight.requires_grad_(False)

    def pop(self) -> dict[str, Float[Tensor, "rows cols"]]:
        """The sums since `open`, by layer name, over all processes of a distributed training; and forget them."""
        sums, self._sums = self._sums, {}
        for name in sorted(sums):
            sum_over_processes(sums[name])
        return sums

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of this process so far."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up `state_dict()`."""
        devices = {name: layer.U.device for name, layer in self._layers.items()}
        self._sums = {name: value.to(devices[name]) for name, value in state.items()}

    def __enter__(self) -> DenseGradient:
        self.open()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@torch.no_grad()
def outside_spans(
    gradient: Float[Tensor, "rows cols"], U: Float[Tensor, "rows k"], V: Float[Tensor, "k cols"]
) -> Float[Tensor, "rows cols"]:
    """(I − P_U) G (I − P_V): what no change of U or V can reach to first order; P the projections on their spans."""
    with FULL_PRECISION, torch.autocast(gradient.device.type, enabled=False):
        left = _basis(U.to(gradient))
        right = _basis(V.mT.to(gradient))
        rest = gradient - left @ (left.mT @ gradient)
        return rest - (rest @ right) @ right.mT


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal basis of the columns' span; columns that are zero or dependent add nothing."""
    basis, values, _ = svd(columns)
    kept: Tensor = basis * (values > values[:1] * 1e-6)
    return kept
