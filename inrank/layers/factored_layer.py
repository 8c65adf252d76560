"""What the two kinds of factored layer share: the map of a product, the state dict.

Shapes, as in the paper: W is (rows, cols) = (out, in), U (rows, capacity), V (capacity, cols), for every kind of layer;
transformers' Conv1D, which stores (in, out), is turned when it is converted and turned back when it is merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from inrank_monitor.spectra import FULL_PRECISION, has_float64


def aligned(columns: int, dtype: torch.dtype) -> int:
    """The next number of columns that tensor cores take whole: a multiple of 8, of 16 in 8-bit floats."""
    step = 16 if dtype.itemsize == 1 else 8
    return -(-columns // step) * step


@dataclass(frozen=True)
class Origin:
    """The layer that a factored one stands for.

    Attributes:
        name: of its class: `Linear`, `Conv1D` or `Conv2d`.
        convolution: stride, padding, dilation and kernel_size of a Conv2d; empty for the others.
    """

    name: str
    convolution: dict[str, Any]


class FactoredLayer(nn.Module):
    """What the two kinds of layer share: factors, bias, the kind of layer that it came from, its state dict.

    Attributes:
        U: (rows, capacity).
        V: (capacity, cols).
        bias: (rows,) or None; the same Parameter as before conversion.
        gain: κ; the product counts as κ U V. See `inrank.layers.gain`; 1 is the paper's.
        origin: class name of the layer that it stands for: `Linear`, `Conv1D` or `Conv2d`.
        convolution: stride, padding, dilation and kernel_size of a Conv2d; empty for the others.
    """

    U: nn.Parameter
    V: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, U: Tensor, V: Tensor, bias: nn.Parameter | None, gain: float, origin: Origin) -> None:
        super().__init__()
        self.U, self.V, self.gain = nn.Parameter(U), nn.Parameter(V), gain
        self.register_parameter("bias", bias)
        self.origin, self.convolution = origin.name, origin.convolution

    @property
    def rows(self) -> int:
        """Output side of the matrix."""
        return int(self.U.shape[0])

    @property
    def cols(self) -> int:
        """Input side of the matrix."""
        return int(self.V.shape[1])

    @property
    def capacity(self) -> int:
        """Columns that the factors have room for."""
        return int(self.U.shape[1])

    @property
    def rank(self) -> int:
        """Rank in use, the buffer rank not counted."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The dense (rows, cols) matrix, computed at each call: for code that asks a layer for its weight."""
        return self.gain * (self.U @ self.V)

    @property
    def stored_weight(self) -> Tensor:
        """`weight` as the layer that this one stands for stores it: for whoever has known it by that."""
        dense = self.weight
        if self.origin == "Conv1D":
            return dense.mT
        return dense.view(self.rows, -1, *self.convolution["kernel_size"]) if self.convolution else dense

    @torch.no_grad()
    def exact_weight(self) -> Tensor:
        """The same in float64 where the device has that, else in a float32 that the loop has not made coarser."""
        dtype = torch.float64 if has_float64(self.U.device) else torch.float32
        with FULL_PRECISION, torch.autocast(self.U.device.type, enabled=False):
            return self.gain * (self.U.to(dtype) @ self.V.to(dtype))

    def update_factors(self) -> tuple[Tensor, Tensor]:
        """κ U and V as far as they are used: what a tracker measures (`inrank_monitor.LowRankUpdate`)."""
        U, V = self.used_factors()
        return (U if self.gain == 1 else self.gain * U), V

    def used_factors(self) -> tuple[Tensor, Tensor]:
        """U (rows, used) and V (used, cols), views of the Parameters."""
        raise NotImplementedError

    def _product(self, inputs: Tensor, U: Tensor, V: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's map with the weight κ U V, without forming it."""
        if not self.convolution:
            return linear(self._amplified(linear(inputs, V)), U, bias)
        size = self.convolution["kernel_size"]
        options = {name: self.convolution[name] for name in ("stride", "padding", "dilation")}
        hidden = conv2d(inputs, V.view(V.shape[0], -1, *size), **options)
        return conv2d(self._amplified(hidden), U[:, :, None, None], bias)

    def _amplified(self, hidden: Tensor) -> Tensor:
        return hidden if self.gain == 1 else self.gain * hidden

    def _dense(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's map with a dense (rows, cols) weight."""
        if not self.convolution:
            return linear(inputs, weight, bias)
        size = self.convolution["kernel_size"]
        options = {name: self.convolution[name] for name in ("stride", "padding", "dilation")}
        return conv2d(inputs, weight.view(weight.shape[0], -1, *size), bias, **options)

    def extra_repr(self) -> str:
        """Shape, rank and origin."""
        sizes = f"{self.rows}×{self.cols}, rank={self.rank}, capacity={self.capacity}"
        return f"{sizes}, gain={self.gain:.3g}, from {self.origin}"

    # The rank travels in the state dict under the name of the weight that is no more, with a shape that no weight has:
    # who loads a converted checkpoint into an ordinary model gets an error and not fresh random weights.
    def _rank_entry(self) -> list[float]:
        raise NotImplementedError

    def _take_rank(self, entry: list[float]) -> None:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = torch.tensor(self._rank_entry(), dtype=torch.float64, device="cpu")

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        entry, missing, errors = state.get(f"{prefix}weight"), args[2], args[4]
        U, V = (state.get(f"{prefix}{name}") for name in "UV")
        if entry is None:
            missing.append(f"{prefix}weight")
        elif entry.ndim != 1:
            errors.append(f"{prefix}weight is {tuple(entry.shape)}: the state dict is of a model that is not converted")
        elif len(entry) != len(self._rank_entry()):
            errors.append(f"{prefix}weight: one of the two is factorized, the state dict's layer or the model's")
        elif U is not None and V is not None and (len(U), V.shape[1], U.shape[1]) == (self.rows, self.cols, len(V)):
            for parameter, saved in ((self.U, U), (self.V, V)):
                if parameter.shape != saved.shape:  # another capacity: made to fit, the Parameter stays the same object
                    parameter.data = parameter.data.new_zeros(saved.shape)
                    parameter.grad = None
            self._take_rank(entry.tolist())
        rest = {name: value for name, value in state.items() if name != f"{prefix}weight"}
        super()._load_from_state_dict(rest, prefix, *args)
        if f"{prefix}weight" in args[3]:
            args[3].remove(f"{prefix}weight")
