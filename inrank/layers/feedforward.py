"""The feed-forward blocks of a model, whose hidden units can be counted, weighed and taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inrank.layers.convert import matrix_of
from inrank.layers.targets import check_layer, kind_of
from inrank_monitor.matrices import unwrap

WIDTHS_ENTRY = "inrank_widths"  # in the config of a transformers model whose blocks were narrowed

# Names of the layers into the hidden units, and of the one out of them, below one module
_KNOWN = (
    (("c_fc",), "c_proj"),  # GPT-2
    (("gate_proj", "up_proj"), "down_proj"),  # Llama and its kin
    (("up_proj",), "down_proj"),
    (("w1", "w3"), "w2"),
    (("fc1",), "fc2"),  # OPT, CLIP, timm's ViT
    (("linear1",), "linear2"),  # torch's TransformerEncoderLayer
    (("wi_0", "wi_1"), "wo"),  # T5
    (("wi",), "wo"),
    (("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, Bloom, Falcon
    (("intermediate.dense",), "output.dense"),  # BERT, transformers' ViT
)


@dataclass(frozen=True)
class FeedForward:
    """One block: hidden units between layers that go in (two where one is a gate) and one that goes out.

    Attributes:
        name: dotted name of the module that holds them.
        into: the layers whose outputs are the hidden units, by name.
        out_of: (name, layer) of the one whose inputs they are.
    """

    name: str
    into: dict[str, nn.Module]
    out_of: tuple[str, nn.Module]

    @property
    def width(self) -> int:
        """Hidden units."""
        return matrix_of(self.out_of[1]).shape[1]

    @property
    def layers(self) -> dict[str, nn.Module]:
        """All of them by name."""
        return self.into | dict([self.out_of])

    @property
    def cost(self) -> int:
        """Weights of one hidden unit, biases not counted."""
        return matrix_of(self.out_of[1]).shape[0] + sum(matrix_of(layer).shape[1] for layer in self.into.values())

    def keep(self, units: Tensor, optimizer: Optimizer | None) -> None:
        """Take all hidden units out but these, from weights, gradients and the optimizer's state.

        Args:
            units: places, ascending.
            optimizer: that trains them, or None.
        """
        for layer in self.into.values():
            _cut(layer, 1 if kind_of(layer) == "Conv1D" else 0, units, optimizer)
            if layer.bias is not None:
                _select(layer.bias, 0, units, optimizer)  # type: ignore[arg-type]
        layer = self.out_of[1]
        _cut(layer, 0 if kind_of(layer) == "Conv1D" else 1, units, optimizer)


def feedforwards_of(model: nn.Module) -> list[FeedForward]:
    """The blocks of a model that are known by the names of their layers, in its order.

    Raises:
        ValueError: there are none, or one has a layer that cannot be cut.
    """
    inner = unwrap(model)
    found = []
    for name, module in inner.named_modules():
        for into, out_of in _KNOWN:
            layers = {each: _at(module, each) for each in (*into, out_of)}
            if all(layer is not None for layer in layers.values()):
                whole = {f"{name}.{each}".lstrip("."): layer for each, layer in layers.items()}
                names = list(whole)
                block = FeedForward(name, {each: whole[each] for each in names[:-1]}, (names[-1], whole[names[-1]]))
                if all(matrix_of(layer).shape[0] == block.width for layer in block.into.values()):
                    found.append(block)
                    break
    if not found:
        raise ValueError("the model has no feed-forward block known by the names of its layers (c_fc and c_proj, say)")
    for block in found:
        for each, layer in block.layers.items():
            check_layer(model, each, layer)
    return found


def keep_first(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Give blocks their first hidden units alone: what a model of these widths needs before its weights are read.

    Args:
        model: as for `feedforwards_of`.
        widths: by block; one that is not named stays as wide as it is.

    Raises:
        ValueError: there is no such block, or it has fewer hidden units; the model is untouched.
    """
    blocks = {block.name: block for block in feedforwards_of(model)}
    check_widths(blocks, widths)
    for name, width in widths.items():
        blocks[name].keep(torch.arange(width, device="cpu"), None)
    note_widths(model, blocks)


def check_widths(blocks: Mapping[str, FeedForward], widths: Mapping[str, int]) -> None:
    """Raise a ValueError unless each width is one that a block of this name can be cut to."""
    for name, width in widths.items():
        if name not in blocks:
            raise ValueError(f"plan names {name!r}, which is no feed-forward block of the model")
        full = blocks[name].width
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= full:
            raise ValueError(f"the width of {name!r} must be in 1..{full}, got {width!r}")


def note_widths(model: nn.Module, blocks: Mapping[str, FeedForward]) -> None:
    """Write the widths into a transformers model's config, so that its save_pretrained keeps them."""
    config = getattr(unwrap(model), "config", None)
    if hasattr(config, "to_dict"):
        setattr(config, WIDTHS_ENTRY, {name: block.width for name, block in blocks.items()})


def _at(module: nn.Module, path: str) -> Any:
    for part in path.split("."):
        module = module._modules.get(part)  # type: ignore[assignment]
        if module is None:
            return None
    return module if kind_of(module) in ("Linear", "Conv1D") else None


def _cut(layer: Any, dimension: int, units: Tensor, optimizer: Optimizer | None) -> None:
    _select(layer.weight, dimension, units, optimizer)
    rows, cols = matrix_of(layer).shape
    names = ("nf", "nx") if kind_of(layer) == "Conv1D" else ("out_features", "in_features")
    for name, size in zip(names, (rows, cols), strict=True):
        if hasattr(layer, name):
            setattr(layer, name, size)


def _select(parameter: nn.Parameter, dimension: int, units: Tensor, optimizer: Optimizer | None) -> None:
    """Some slices of a Parameter, which stays the same object, and of all that is shaped like it."""
    before, units = parameter.shape, units.to(parameter.device)
    gradient, parameter.grad = parameter.grad, None
    parameter.data = parameter.data.index_select(dimension, units)
    if gradient is not None:
        parameter.grad = gradient.index_select(dimension, units)
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == before:
            state[key] = value.index_select(dimension, units)
