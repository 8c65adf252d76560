"""A watched 2-D view of a parameter, which reads itself from the live model.

It does so through its module and not through the Parameter object: optimizers, checkpoints and rank growth replace
those. Reading has no effect on the model: weights under `torch.nn.utils.parametrize` are evaluated with their
parametrizations in eval mode, so that no buffer changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.reparametrized import hooked_weights


class Block(NamedTuple):
    """Where a matrix lies in its parameter: slices of one dimension.

    Attributes:
        dimension: that is cut.
        start: where its first slice begins.
        length: of each slice.
        runs: how many there are: 1 for a matrix in one piece, a number of heads where each has its own.
        period: from the beginning of one to that of the next.
    """

    dimension: int
    start: int
    length: int
    runs: int = 1
    period: int = 0

    @property
    def size(self) -> int:
        """All slices together."""
        return self.length * self.runs

    def of(self, value: Tensor, offset: int = 0) -> Tensor:
        """The slices out of a parameter, or of a piece of it that begins at `offset`; a view where it is one slice."""
        held = value.shape[self.dimension]
        if self.runs == 1:
            first = min(max(self.start - offset, 0), held)
            last = min(max(self.start + self.length - offset, first), held)
            return value.narrow(self.dimension, first, last - first)
        if held == self.runs * self.period:
            before, after = value.shape[: self.dimension], value.shape[self.dimension + 1 :]
            apart = value.reshape(*before, self.runs, self.period, *after)
            return apart.narrow(self.dimension + 1, self.start, self.length).flatten(self.dimension, self.dimension + 1)
        places = torch.arange(held, device=value.device)
        within = (places + offset - self.start) % self.period
        return value.index_select(self.dimension, places[within < self.length])


Orient = Callable[[Tensor], Tensor]


@runtime_checkable
class LowRankUpdate(Protocol):
    """A layer that holds its cumulative update in factors, W = W0 + U V, and can show them.

    One that scales their product may also have `used_factors()`, which gives parts of its Parameters themselves.
    """

    def update_factors(self) -> tuple[Tensor, Tensor]:
        """U (rows, capacity) and V (capacity, cols)."""
        ...

    @property
    def rank(self) -> int:
        """Rank in use, the buffer rank not counted."""
        ...


@dataclass(frozen=True)
class Matrix:
    """A watched 2-D view of a parameter.

    Attributes:
        name: dotted parameter name, with `[part]` for a part of it.
        parameter: dotted name of the whole parameter (or of the layer, for factors).
        part: `q`, `k`, `v`, a gate, an expert's number; None for the whole.
        kind: class name of the module that owns it.
        rows: output side.
        cols: input side.
        module: the owner; of PEFT's factors the adapter.
        attribute: its attribute; empty for factors.
        block: of the parameter that this matrix is cut from; None for all of it.
        orient: that block to (rows, cols), without a copy.
    """

    name: str
    parameter: str
    part: str | None
    kind: str
    rows: int
    cols: int
    module: nn.Module | Adapter = field(repr=False)
    attribute: str = field(repr=False)
    block: Block | None = field(repr=False)
    orient: Orient = field(repr=False)

    @property
    def in_factors(self) -> bool:
        """Whether the update is held in factors."""
        return self.attribute == ""

    @property
    def has_start(self) -> bool:
        """Whether there is a W0: not for a layer whose factors are its update, by `LowRankUpdate`."""
        return not self.in_factors or isinstance(self.module, Adapter)

    def read(self) -> Tensor:
        """The current value of the whole parameter; `view` cuts this matrix out of it. Of an adapter, `packed`."""
        if isinstance(self.module, Adapter):
            return self.module.packed()
        return read_parameter(self.module, self.attribute)

    def cut(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """This matrix's factors out of the whole parameter's: a block of the left one's rows, an expert of both."""
        return self.view(left), right if right.ndim == 2 else self.view(right)

    def piece(self, value: Tensor) -> Tensor:
        """What of the parameter's value is this matrix's, as it lies there; `orient` makes (rows, cols) of it."""
        return value if self.block is None else self.block.of(value)

    def view(self, value: Tensor) -> Tensor:
        """The parameter's value to this matrix, (rows, cols); without a copy, unless it lies in several pieces."""
        return self.orient(self.piece(value))

    def axis_of(self, dimension: int, shape: Sequence[int]) -> int:
        """The side of this matrix, 0 or 1, along which that dimension of a parameter of this shape lies."""
        probe = [0 if index == dimension else size for index, size in enumerate(shape)]
        return self.orient(torch.empty(probe, device="meta")).shape.index(0)


@torch.no_grad()
def read_parameter(module: nn.Module, attribute: str) -> Tensor:
    """The effective value of a parameter, detached, on its own device."""
    if not parametrize.is_parametrized(module, attribute):
        hooked = hooked_weights(module).get(attribute)
        value: Tensor = hooked.compute() if hooked else _stored(module, attribute)
        with torch._C.DisableTorchFunctionSubclass():  # a subclass may do anything with a function; its values it has
            return value.detach()
    parts = list(module.parametrizations[attribute].modules())  # type: ignore[union-attr,index]
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        value = getattr(module, attribute)
        return value.detach()
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _stored(module: nn.Module, attribute: str) -> Tensor:
    """As it is stored, also by a layer that has become factors since and computes its weight from them."""
    became = attribute == "weight" and hasattr(type(module), "stored_weight") and attribute not in module._parameters
    value: Tensor = getattr(module, "stored_weight" if became else attribute)
    return value


def has_memory(value: Tensor) -> bool:
    """Whether a tensor's values are there: some frameworks free the memory between two uses; reading would crash."""
    if value.layout != torch.strided or value.device.type == "meta" or value.numel() == 0 or is_sharded(value):
        return True
    if type(value).__torch_dispatch__ != Tensor.__torch_dispatch__:  # a subclass without a storage of its own
        return True
    return value.untyped_storage().nbytes() > 0


def is_sharded(value: Tensor) -> bool:
    """Whether this is a DTensor, which lies in shards on several processes; asked without importing it."""
    return hasattr(value, "placements")


def local(value: Tensor) -> Tensor:
    """What this process holds of it, without communication; all of it if it is not in shards."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined]
