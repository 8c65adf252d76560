"""Which weights of a model are split into parts, and why: as `parts=` says, as torch defines it, as the model tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Protocol

from torch import nn

from inrank_monitor.matrices.fused import fused_layout
from inrank_monitor.matrices.layout import Layout, Parts, given_layout
from inrank_monitor.matrices.patterns import glob
from inrank_monitor.matrices.views import defined_layout, is_stack, sides_of
from inrank_monitor.matrices.weights import Weight


class _Row(Protocol):
    @property
    def parameter(self) -> str: ...
    @property
    def watched(self) -> bool: ...
    @property
    def note(self) -> str: ...


class Splitting:
    """Decides on one weight after another.

    Args:
        model: that holds them.
        split_parts: whether anything is split.
        given: what the user says; see `find_matrices`.

    Attributes:
        notes: why a weight is split, or is not though it may be fused, by its name.

    Raises:
        ValueError, TypeError: `given` is given in vain, or is no mapping.
    """

    def __init__(self, model: nn.Module, split_parts: bool, given: Mapping[str, Parts] | None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"parts must map patterns to names of parts, got {given!r}")
        if given and not split_parts:
            raise ValueError("parts= says how weights are split, and split_parts=False that none is: give one of them")
        self._on, self._given = split_parts, dict(given or {})
        self._unused = set(self._given)
        self._holders: dict[int, tuple[nn.Module, str]] = {}
        for module in model.modules():
            for name, child in module._modules.items():
                if child is not None:
                    self._holders.setdefault(id(child), (module, name))
        self.notes: dict[str, str] = {}

    def layout(self, weight: Weight, shape: tuple[int, ...]) -> Layout | None:
        """The parts of a weight of this effective shape; None: it stays whole."""
        if not self._on:
            return None
        rows, cols = (
            (shape[-2], shape[-1]) if weight.adapter else sides_of(weight.module, weight.attribute, shape) or (0, 0)
        )
        module, attribute = weight.module, weight.attribute
        name = weight.name
        if weight.adapter:
            name, attribute = name.removesuffix(f"[{weight.adapter.name}]"), weight.adapter.attribute
        layer = name.removesuffix(f".{attribute}") if attribute else name
        is_one = rows > 0 and not (is_stack(module, shape) or (weight.adapter and len(shape) > 2))
        answer = given_layout(self._given, (name, layer), rows) if is_one else None
        if answer is not None:
            pattern, layout = answer
            self._unused.discard(pattern)
            self._note(weight, layout)
            return layout
        if not is_one:
            return None
        if defined := defined_layout(name, module, attribute, rows, cols):
            return defined
        told = self._told(weight, attribute, rows, cols, shape)
        self._note(weight, told)
        return told if isinstance(told, Layout) else None

    def _told(
        self, weight: Weight, attribute: str, rows: int, cols: int, shape: tuple[int, ...]
    ) -> Layout | str | None:
        """What the module that holds a linear layer, or a 1×1 convolution, says of it."""
        layer = weight.adapter.layer if weight.adapter else weight.module
        if attribute != "weight" or isinstance(layer, nn.Embedding | nn.modules.conv._ConvTransposeNd):
            return None
        holder, name = self._holder(layer)
        kernel = 1 if weight.adapter else prod(shape[2:])
        return fused_layout(holder, name, rows, cols, kernel)

    def _holder(self, layer: nn.Module) -> tuple[nn.Module | None, str]:
        """The module that calls a layer, and what it calls it; wrappers of the layer alone are looked through."""
        holder, name = self._holders.get(id(layer), (None, ""))
        while holder is not None and name in ("_orig_mod", "base_layer", "module"):
            holder, name = self._holders.get(id(holder), (None, name))
        # a bare Module stands for one of which nothing but its tensors is known
        return (None, name) if type(holder) is nn.Module else (holder, name)

    def _note(self, weight: Weight, found: Layout | str | None) -> None:
        why = found.why if isinstance(found, Layout) else found
        if why:
            self.notes[weight.name] = why

    def check_used(self, rows: Sequence[_Row]) -> None:
        """Raise a ValueError for a pattern of `parts=` that has matched no weight."""
        for pattern in self._given:
            if pattern in self._unused:
                taken = [row for row in rows if glob(pattern).fullmatch(row.parameter)]
                raise ValueError(
                    f"parts pattern {pattern!r} matches no weight that could be split. {_hint(taken, rows)}"
                )


def _hint(taken: Sequence[_Row], rows: Sequence[_Row]) -> str:
    if taken:
        row = taken[0]
        return f"{row.parameter}: {row.note if not row.watched else 'an earlier pattern has it, or it is a stack'}"
    return f"Names look like {', '.join(row.parameter for row in rows[:3])}."
