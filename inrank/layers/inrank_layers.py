"""Layers whose weight is W0 + κ U V with a rank that can grow, and plain κ U V.

`InRankLinear` allots its factors once, at the largest rank plus the buffer rank, and keeps the columns that are not yet
used at zero in both factors. A zero column has zero gradient and stays zero under any optimizer, so growing a rank is
writing small numbers into a part of V: no Parameter is ever replaced, and optimizers, DistributedDataParallel,
torch.compile, averaged copies and checkpoints need not know. Training computes with the used columns only.

References:
    Zhao et al. 2023, arXiv:2306.11250, eq. 6 (W0 + U V), Algorithm 3 (plain U V).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from inrank.layers.factored_layer import FactoredLayer, Origin, aligned

LOW_RANK_ENTRIES = 2  # of plain factors, in the place of their weight in a state dict: rank and gain


def adds_in_place() -> bool:
    """Whether a layer may write into its own output: not under vmap and its kin, nor where a compiler decides."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


class _Columns:
    """How many columns of the factors any copy of a layer has ever used; copies share it.

    An averaged copy of a model takes over parameters, not attributes: with its own number it would leave out the
    columns that its original has grown since. Too large a number is harmless, since what lies beyond is zero.
    """

    def __init__(self) -> None:
        self.used = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class InRankLinear(FactoredLayer):
    """W = W0 + U V with a rank that grows (eq. 6); without W0 for the published code's way.

    Args:
        initial_weight: W0 (rows, cols), frozen; None for U V alone.
        U: (rows, capacity); column rank + buffer_rank and later must be zero.
        V: (capacity, cols); rows beyond that zero as well.
        bias: kept as it is.
        rank: rank at the start.
        buffer_rank: b; rank + b columns are trained, as far as the capacity goes.
        max_rank: the rank never grows beyond it.
        gain: see `FactoredLayer`.
        origin: see `FactoredLayer`.
        convolution: see `FactoredLayer`.
    """

    initial_weight: nn.Parameter | None

    def __init__(
        self,
        initial_weight: Tensor | None,
        U: Tensor,
        V: Tensor,
        bias: nn.Parameter | None,
        *,
        rank: int,
        buffer_rank: int,
        max_rank: int,
        gain: float = 1.0,
        origin: str = "Linear",
        convolution: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(U, V, bias, gain, Origin(origin, convolution or {}))
        frozen = None if initial_weight is None else nn.Parameter(initial_weight, requires_grad=False)
        self.register_parameter("initial_weight", frozen)
        self.buffer_rank, self.max_rank = buffer_rank, max_rank
        self._rank, self._columns = rank, _Columns()
        self._columns.used = self.used

    @property
    def rank(self) -> int:
        """Rank in use, the buffer rank not counted."""
        return self._rank

    def current_rank(self, name: str) -> int:
        """The rank, unless this is a copy that does not know it: an averaged model takes over parameters only.

        Raises:
            ValueError: the layer that this is a copy of has grown since; `name` is named.
        """
        if self._columns.used > self.used:
            raise ValueError(
                f"{name!r} is a copy made at rank {self._rank} of a layer that has grown since: give its rank, "
                "as in ranks=controller.ranks"
            )
        return self._rank

    @property
    def used(self) -> int:
        """Columns that are trained: rank + buffer rank, as far as there is room."""
        return min(self._rank + self.buffer_rank, self.capacity)

    @property
    def weight(self) -> Tensor:
        """W0 + κ U V, dense (rows, cols), computed at each call."""
        product = super().weight
        return product if self.initial_weight is None else self.initial_weight + product

    def exact_weight(self) -> Tensor:
        """The same in float64 where the device has that, else in a float32 that the loop has not made coarser."""
        product = super().exact_weight()
        return product if self.initial_weight is None else product.add_(self.initial_weight.detach())

    def used_factors(self) -> tuple[Tensor, Tensor]:
        """U (rows, used) and V (used, cols); all of them while torch.compile looks, so that growth compiles nothing."""
        if torch.compiler.is_compiling():
            return self.U, self.V
        used = self._columns.used
        return self.U[:, :used], self.V[:used]

    def _computed_factors(self) -> tuple[Tensor, Tensor]:
        """Those, on an accelerator with as many of the zero columns after them as its tensor cores want."""
        if self.U.device.type == "cpu" or torch.compiler.is_compiling():
            return self.used_factors()
        used = min(aligned(self._columns.used, self.U.dtype), self.capacity)
        return self.U[:, :used], self.V[:used]

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply W0 + κ U V and the bias; inputs (..., cols), or images for a Conv2d."""
        U, V = self._computed_factors()
        if self.initial_weight is None:
            return self._product(inputs, U, V, self.bias)
        if self.convolution or not adds_in_place():
            return self._dense(inputs, self.initial_weight, self.bias) + self._product(inputs, U, V, None)
        rows = inputs.reshape(-1, self.cols)
        output = linear(rows, self.initial_weight, self.bias)
        hidden = self._amplified(linear(rows, V))
        # Added where the matrix product is written, not by a pass of its own; in place, as else W0 x would be copied.
        output.addmm_(hidden.to(output.dtype), U.mT.to(output.dtype))
        return output.view(*inputs.shape[:-1], self.rows)

    @torch.no_grad()
    def grow(self, rank: int, new_columns: Tensor | None, new_rows: Tensor) -> tuple[int, int]:
        """Use more columns: from now on rank + buffer_rank of them.

        Args:
            rank: the new rank, from the present one to `max_rank`.
            new_columns: (rows, n) for U; None leaves them zero, so that the layer's output does not change.
            new_rows: (n, cols) for V, n the number of columns that become used.

        Returns:
            The first and the last-but-one place of the new columns.
        """
        first = self.used
        self._rank = rank
        last = self.used
        self.V[first:last] = new_rows.to(self.V)
        if new_columns is not None:
            self.U[:, first:last] = new_columns.to(self.U)
        self._columns.used = max(self._columns.used, last)
        return first, last

    def become_low_rank(self, U: Tensor, V: Tensor, gain: float = 1.0) -> None:
        """Turn into a `LowRankLinear` in place: the object stays, so whoever watches or hooks it goes on."""
        del self.initial_weight, self.U, self.V
        del self._rank, self._columns, self.buffer_rank, self.max_rank
        self.U, self.V, self.gain = nn.Parameter(U), nn.Parameter(V), gain
        self.__class__ = LowRankLinear  # type: ignore[assignment]

    # All that decides which columns come next: with a buffer rank or a cap of its own the layer would grow into columns
    # that the checkpoint has trained, or leave some out for ever.
    def _rank_entry(self) -> list[float]:
        return [self._rank, self.buffer_rank, self.max_rank, self._columns.used, self.gain]

    def _take_rank(self, entry: list[float]) -> None:
        rank, self.buffer_rank, self.max_rank, used = (int(value) for value in entry[:4])
        # An averaged copy saves all columns and the rank at which it was made; growing from there would overwrite some.
        self._rank = max(rank, min(used - self.buffer_rank, self.max_rank))
        self._columns.used, self.gain = max(self._columns.used, used), entry[4]


class LowRankLinear(FactoredLayer):
    """W = U V at a fixed rank: rank · (rows + cols) multiply-adds a sample in place of rows · cols (Algorithm 3)."""

    def __init__(
        self,
        U: Tensor,
        V: Tensor,
        bias: nn.Parameter | None,
        *,
        gain: float = 1.0,
        origin: str = "Linear",
        convolution: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(U, V, bias, gain, Origin(origin, convolution or {}))

    @classmethod
    def take_over(cls, module: nn.Module, U: Tensor, V: Tensor, *, gain: float, origin: Origin) -> Self:
        """Turn an ordinary Linear, Conv1D or Conv2d into κ U V in place: the object stays, and its bias and hooks."""
        weight = module._parameters.pop("weight")
        assert weight is not None
        module.__class__ = cls
        assert isinstance(module, cls)
        wanted = weight.requires_grad
        module.U, module.V = nn.Parameter(U, requires_grad=wanted), nn.Parameter(V, requires_grad=wanted)
        module.gain, module.origin, module.convolution = gain, origin.name, origin.convolution
        return module

    @property
    def rank(self) -> int:
        """Columns of U."""
        return self.capacity

    def used_factors(self) -> tuple[Tensor, Tensor]:
        """U and V: the whole weight, since there is no W0."""
        return self.U, self.V

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply κ U V and the bias; inputs (..., cols), or images for a Conv2d."""
        return self._product(inputs, self.U, self.V, self.bias)

    def _rank_entry(self) -> list[float]:
        return [self.rank, self.gain]

    def _take_rank(self, entry: list[float]) -> None:
        self.gain = entry[1]  # the factors' shape says the rank
