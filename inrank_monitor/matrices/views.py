"""The 2-D views of a parameter: whole, gates, q, k, v, gate and up, experts; convolutions as (out, in · k)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.layout import Layout
from inrank_monitor.matrices.matrix import Block, Matrix, Orient

_TABLE = re.compile(
    r"(^|_)(pos|position|emb|embed|embeddings?|tokens?|encodings?|pe|latents?|query|queries|prompts?|registers?)(_|$)",
    re.I,
)
_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTION_KINDS = {kind.__name__ for kind in CONVOLUTIONS}
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def matrices_of(
    name: str, module: nn.Module, attribute: str, shape: tuple[int, ...], layout: Layout | None
) -> list[Matrix]:
    """A parameter of this effective shape, in the parts of its layout if it has one; nothing if it has no 2-D view."""

    def matrix(rows: int, cols: int, orient: Orient, part: str | None = None, block: Block | None = None) -> Matrix:
        label = name if part is None else f"{name}[{part}]"
        return Matrix(label, name, part, kind, rows, cols, module, attribute, block, orient)

    kind = "Embedding of its own" if is_table(attribute, shape) else _kind(module, attribute)

    sides = sides_of(module, attribute, shape)
    if sides is None:
        return []
    rows, cols = sides
    dimension, orient = 0, _as_it_is
    if isinstance(module, TRANSPOSED) and len(shape) > 2:  # stored (in, out, *k)
        return [matrix(rows, cols, _transposed_convolution(int(module.groups)))]
    if _convolves(module, attribute) and len(shape) > 2:  # stored (out, in, *k)
        orient = _flatten
    elif len(shape) == 2 and _is_turned(module, attribute):
        dimension, orient = 1, _transpose
    elif len(shape) == 3 and shape[0] == 1:
        orient = _first_two_as_one
    elif len(shape) == 3:  # a stack of matrices: experts, bilinear forms
        return [matrix(rows, cols, _first_two_as_one, str(i), Block(0, i, 1)) for i in range(shape[0])]
    return [matrix(block.size, cols, orient, part, block) for part, block in _blocks(layout, dimension)] or [
        matrix(rows, cols, orient)
    ]


def matrices_of_adapter(name: str, adapter: Adapter, shape: tuple[int, ...], layout: Layout | None) -> list[Matrix]:
    """As the base's weight would be watched; `shape` is of the product, (rows, cols) or (experts, rows, cols)."""
    rows, cols = shape[-2:]

    def matrix(rows: int, orient: Orient, part: str | None = None, block: Block | None = None) -> Matrix:
        label = name if part is None else f"{name}[{part}]"
        return Matrix(label, name, part, kind_of(adapter.base), rows, cols, adapter, "", block, orient)

    if len(shape) == 3:
        return [matrix(rows, _first_two_as_one, str(index), Block(0, index, 1)) for index in range(shape[0])]
    found = [matrix(block.size, _as_it_is, part, block) for part, block in _blocks(layout, 0)]
    return found or [matrix(rows, _as_it_is)]


def _blocks(layout: Layout | None, dimension: int) -> list[tuple[str, Block]]:
    """Where each part lies along the outputs' dimension of the parameter."""
    if layout is None:
        return []
    return [
        (part, Block(dimension, start, size, layout.runs, layout.period if layout.runs > 1 else 0))
        for part, start, size in layout.blocks()
    ]


def sides_of(module: nn.Module, attribute: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns that a parameter of this shape has as a matrix, or each matrix of a stack; None: it is none."""
    if isinstance(module, TRANSPOSED) and len(shape) > 2:
        groups = int(module.groups)
        return shape[1] * groups, shape[0] // groups * _product(shape[2:])
    if _convolves(module, attribute) and len(shape) > 2:
        return shape[0], _product(shape[1:])
    if len(shape) == 2:
        return (shape[1], shape[0]) if _is_turned(module, attribute) else (shape[0], shape[1])
    return (shape[1], shape[2]) if len(shape) == 3 else None


def is_table(attribute: str, shape: tuple[int, ...]) -> bool:
    """Whether a bare parameter, 1 × N × D, is named as a table of positions or tokens, which multiplies nothing."""
    return len(shape) == 3 and shape[0] == 1 and attribute != "weight" and bool(_TABLE.search(attribute))


def is_stack(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether this is a stack of matrices."""
    return len(shape) == 3 and shape[0] > 1 and not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))


def _is_turned(module: nn.Module, attribute: str) -> bool:
    return _kind(module, attribute) == "Conv1D"  # transformers stores (in, out)


def _convolves(module: nn.Module, attribute: str) -> bool:
    return isinstance(module, CONVOLUTIONS) or _kind(module, attribute) in _CONVOLUTION_KINDS


def _kind(module: nn.Module, attribute: str) -> str:
    """Class name of the layer, before it became factors where it is watched by the weight that it had."""
    if attribute == "weight" and hasattr(type(module), "stored_weight"):
        return str(getattr(module, "origin", kind_of(module)))
    return kind_of(module)


def kind_of(module: nn.Module) -> str:
    """Class name; that of the original class where parametrize made a subclass."""
    kinds = type(module).__mro__
    return (kinds[1] if hasattr(module, "parametrizations") else kinds[0]).__name__


def defined_layout(name: str, module: nn.Module, attribute: str, rows: int, cols: int) -> Layout | None:
    """The parts that torch's own layers and GPT-2's define: gates, q, k and v; None for a weight that has none."""
    kind = _kind(module, attribute)
    if kind in _GATES and attribute.startswith(("weight_ih", "weight_hh")):
        return Layout.equal(_GATES[kind], rows)
    if isinstance(module, nn.MultiheadAttention) and attribute == "in_proj_weight":
        return Layout.equal("qkv", rows)
    if kind == "Conv1D" and name.endswith("c_attn.weight"):
        parts = {3 * cols: "qkv", 2 * cols: "kv"}.get(rows)
        return Layout.equal(parts, rows) if parts else None
    return None


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
