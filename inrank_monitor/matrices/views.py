"""The 2-D views of a parameter: whole, gates, q, k, v, experts; convolutions as (out, in · k)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.matrix import Block, Matrix, Orient

_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def matrices_of(
    name: str, module: nn.Module, attribute: str, shape: tuple[int, ...], split_parts: bool
) -> list[Matrix]:
    """A parameter of this effective shape, `split_parts` into gates and q, k, v; nothing if it has no 2-D view."""

    def matrix(rows: int, cols: int, orient: Orient, part: str | None = None, block: Block | None = None) -> Matrix:
        label = name if part is None else f"{name}[{part}]"
        return Matrix(label, name, part, _kind(module), rows, cols, module, attribute, block, orient)

    if isinstance(module, TRANSPOSED) and len(shape) > 2:  # stored (in, out, *k)
        groups = int(module.groups)
        cols = shape[0] // groups * _product(shape[2:])
        return [matrix(shape[1] * groups, cols, _transposed_convolution(groups))]
    if isinstance(module, _CONVOLUTIONS) and len(shape) > 2:  # stored (out, in, *k)
        return [matrix(shape[0], _product(shape[1:]), _flatten)]
    if len(shape) == 2:
        transposed = _kind(module) == "Conv1D"  # transformers stores (in, out)
        rows, cols = shape[::-1] if transposed else shape
        orient = _transpose if transposed else _as_it_is
        parts = _parts(name, module, attribute, rows, cols) if split_parts else ""
        size = rows // max(len(parts), 1)
        return [
            matrix(size, cols, orient, part, (int(transposed), index * size, size)) for index, part in enumerate(parts)
        ] or [matrix(rows, cols, orient)]
    if len(shape) == 3:  # a stack of matrices: experts, bilinear forms
        return [matrix(*shape[1:], _first_two_as_one, str(index), (0, index, 1)) for index in range(shape[0])]
    return []


def matrices_of_adapter(name: str, adapter: Adapter, shape: tuple[int, ...], split_parts: bool) -> list[Matrix]:
    """As the base's weight would be watched; `shape` is of the product, (rows, cols) or (experts, rows, cols)."""
    rows, cols = shape[-2:]

    def matrix(rows: int, orient: Orient, part: str | None = None, block: Block | None = None) -> Matrix:
        label = name if part is None else f"{name}[{part}]"
        return Matrix(label, name, part, _kind(adapter.base), rows, cols, adapter, "", block, orient)

    if len(shape) == 3:
        return [matrix(rows, _first_two_as_one, str(index), (0, index, 1)) for index in range(shape[0])]
    weight = name.removesuffix(f"[{adapter.name}]")
    parts = _parts(weight, adapter.base, adapter.attribute, rows, cols) if split_parts else ""
    size = rows // max(len(parts), 1)
    found = [matrix(size, _as_it_is, part, (0, index * size, size)) for index, part in enumerate(parts)]
    return found or [matrix(rows, _as_it_is)]


def _kind(module: nn.Module) -> str:
    """Class name; that of the original class where parametrize made a subclass."""
    kinds = type(module).__mro__
    return (kinds[1] if hasattr(module, "parametrizations") else kinds[0]).__name__


def _parts(name: str, module: nn.Module, attribute: str, rows: int, cols: int) -> str:
    """One letter a part that is stored as a block of rows of one weight; empty if there is only one."""
    kind = _kind(module)
    if kind in _GATES and attribute.startswith(("weight_ih", "weight_hh")):
        return _GATES[kind]
    if isinstance(module, nn.MultiheadAttention) and attribute == "in_proj_weight":
        return "qkv"
    if kind == "Conv1D" and name.endswith("c_attn.weight"):
        return {3 * cols: "qkv", 2 * cols: "kv"}.get(rows, "")
    return ""


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _transpose(value: Tensor) -> Tensor:
    return value.mT


def _flatten(value: Tensor) -> Tensor:
    return value.reshape(value.shape[0], _product(value.shape[1:]))


def _first_two_as_one(value: Tensor) -> Tensor:
    return value.reshape(value.shape[0] * value.shape[1], value.shape[2])


def _transposed_convolution(groups: int) -> Callable[[Tensor], Tensor]:
    """(in, out / groups, *k) -> (out, in / groups · k): each group of outputs beside its own inputs."""
    return lambda value: (
        value.reshape(groups, value.shape[0] // groups, *value.shape[1:]).transpose(1, 2).flatten(0, 1).flatten(1)
    )


def _product(sizes: Sequence[int]) -> int:
    return int(torch.Size(sizes).numel())
