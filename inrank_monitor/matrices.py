"""Which parameters are watched, each as a 2-D view; what is skipped, and why.

A `Matrix` knows how to read itself from the live model at any later step, through its module and not through the
Parameter object: optimizers, checkpoints and rank growth replace those. Reading has no effect on the model: weights
under `torch.nn.utils.parametrize` are evaluated with their parametrizations in eval mode, so that no buffer changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


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
        module: the owner.
        attribute: its attribute.
        view: the parameter's value to this matrix, without a copy.
    """

    name: str
    parameter: str
    part: str | None
    kind: str
    rows: int
    cols: int
    module: nn.Module = field(repr=False)
    attribute: str = field(repr=False)
    view: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def in_factors(self) -> bool:
        """Whether the update is held in factors, so that there is no W0 to subtract."""
        return self.attribute == ""

    def read(self) -> Tensor:
        """The current value of the whole parameter; `view` cuts this matrix out of it."""
        return read_parameter(self.module, self.attribute)


@dataclass(frozen=True)
class CoverageRow:
    """One parameter: the matrices that it is watched as, or why it is not."""

    parameter: str
    shape: tuple[int, ...]
    watched: bool
    note: str


class Coverage(list[CoverageRow]):
    """Every parameter of the model and what becomes of it; prints as a table."""

    def __str__(self) -> str:
        width = min(max((len(row.parameter) for row in self), default=0), 60)
        lines = [f"{'parameter':<{width}}  {'shape':<16} watched as / skipped because"]
        for row in self:
            shape = "×".join(map(str, row.shape)) or "scalar"
            lines.append(f"{row.parameter:<{width}}  {shape:<16} {'' if row.watched else '– '}{row.note}")
        return "\n".join(lines)


@torch.no_grad()
def read_parameter(module: nn.Module, attribute: str) -> Tensor:
    """The effective value of a parameter, detached, on its own device."""
    if not parametrize.is_parametrized(module, attribute):
        value: Tensor = getattr(module, attribute)
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


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def find_matrices(
    model: nn.Module,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    embeddings: bool = False,
    split_parts: bool = True,
) -> tuple[list[Matrix], Coverage]:
    """The watched matrices of a model in its own order, and the coverage of all its parameters.

    Args:
        model: any module; wrappers are looked through.
        include: globs (`*` and `?`) over matrix names; only those that match are watched.
        exclude: globs over matrix names that are not watched.
        embeddings: watch embeddings too.
        split_parts: watch q, k, v and recurrent gates as matrices of their own.

    Raises:
        ValueError: a pattern matches nothing, or no matrix is left.
    """
    model = unwrap(model)
    matrices: list[Matrix] = []
    rows: list[CoverageRow] = []
    seen: dict[int, str] = {}
    for name, module, attribute, parameters in _named_weights(model):
        lazy = isinstance(parameters[0], nn.parameter.UninitializedParameter) if parameters else False
        shape = () if lazy else _effective_shape(module, attribute)
        reason = _reason_to_skip(module, attribute, shape, parameters, seen, embeddings)
        for parameter in parameters:
            seen.setdefault(id(parameter), name)
        found = [] if reason else _matrices_of(name, module, attribute, shape, split_parts)
        matrices += found
        note = reason or f"no 2-D view known for {type(module).__name__}.{attribute}"
        rows.append(CoverageRow(name, shape, bool(found), note))
    kept = _select(matrices, rows, _as_list("include", include), _as_list("exclude", exclude))
    coverage = _cover(rows, kept)
    if not kept:
        reasons = "; ".join(f"{row.parameter}: {row.note}" for row in coverage[:5])
        raise ValueError(f"there is no matrix to watch in this model ({reasons or 'it has no parameters'})")
    return kept, coverage


def _named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, list[Tensor]]]:
    """(name, module, attribute, parameters behind it); a layer in factors gives its update, attribute ""."""
    for prefix, module in model.named_modules():
        clean = ".".join(part for part in prefix.split(".") if part and part != "_orig_mod")
        if ".parametrizations" in f".{clean}" or hasattr(module, "_orig_mod"):
            continue
        dot = f"{clean}." if clean else ""
        factors = list(module.update_factors()) if isinstance(module, LowRankUpdate) else []
        if factors:
            yield clean or type(module).__name__, module, "", factors
        for attribute, parametrization in (getattr(module, "parametrizations", None) or {}).items():
            if parameters := list(parametrization.parameters()):
                yield f"{dot}{attribute}", module, attribute, parameters
        shown = module.used_factors() if factors and hasattr(module, "used_factors") else factors  # the Parameters
        own = {factor.untyped_storage().data_ptr() for factor in shown}  # a factor may be a part of its parameter
        for attribute, parameter in module.named_parameters(recurse=False):
            if not factors or parameter.untyped_storage().data_ptr() not in own:
                yield f"{dot}{attribute}", module, attribute, [parameter]


def _kind(module: nn.Module) -> str:
    """Class name; that of the original class where parametrize made a subclass."""
    kinds = type(module).__mro__
    return (kinds[1] if hasattr(module, "parametrizations") else kinds[0]).__name__


def _effective_shape(module: nn.Module, attribute: str) -> tuple[int, ...]:
    if attribute == "":
        left, right = module.update_factors()  # type: ignore[operator]
        return (left.shape[0], right.shape[1])
    return tuple(read_parameter(module, attribute).shape)


def _reason_to_skip(
    module: nn.Module,
    attribute: str,
    shape: tuple[int, ...],
    parameters: list[Tensor],
    seen: dict[int, str],
    embeddings: bool,
) -> str | None:
    first = parameters[0]
    if len(parameters) == 1 and id(first) in seen:
        return f"tied to {seen[id(first)]}"
    if isinstance(first, nn.parameter.UninitializedParameter):
        return "lazy: run one forward pass before attaching"
    if not any(parameter.requires_grad for parameter in parameters):
        return "frozen (requires_grad=False)"
    if hasattr(first, "placements"):
        return "sharded (DTensor): not measured yet"
    if first.device.type == "meta":
        return "on the meta device: it has no values"
    if first.layout != torch.strided:
        return f"layout {first.layout}"
    if not first.is_floating_point():
        return f"dtype {str(first.dtype).removeprefix('torch.')}"
    if len(shape) < 2:
        return "a vector" if shape else "a scalar"
    if 0 in shape:
        return "it has no entries"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and not embeddings:
        return "an embedding (embeddings=True watches it)"
    if isinstance(module, _NORMS):
        return "scales of a normalisation, not a map"
    return None


def _matrices_of(
    name: str, module: nn.Module, attribute: str, shape: tuple[int, ...], split_parts: bool
) -> list[Matrix]:
    kind = _kind(module)

    def matrix(part: str | None, rows: int, cols: int, view: Callable[[Tensor], Tensor]) -> Matrix:
        label = name if part is None else f"{name}[{part}]"
        return Matrix(label, name, part, kind, rows, cols, module, attribute, view)

    if isinstance(module, _TRANSPOSED) and len(shape) > 2:  # stored (in, out, *k)
        groups = int(module.groups)
        cols = shape[0] // groups * _product(shape[2:])
        return [matrix(None, shape[1] * groups, cols, _transposed_convolution(groups))]
    if isinstance(module, _CONVOLUTIONS) and len(shape) > 2:  # stored (out, in, *k)
        return [matrix(None, shape[0], _product(shape[1:]), lambda value: value.flatten(1))]
    if len(shape) == 2:
        transposed = kind == "Conv1D"  # transformers stores (in, out)
        rows, cols = shape[::-1] if transposed else shape
        if (parts := _parts(name, module, attribute, rows, cols)) and split_parts:
            step = rows // len(parts)
            return [
                matrix(part, step, cols, _row_block(index * step, step, transposed)) for index, part in enumerate(parts)
            ]
        return [matrix(None, rows, cols, (lambda value: value.mT) if transposed else (lambda value: value))]
    if len(shape) == 3:  # a stack of matrices: experts, bilinear forms
        return [
            matrix(str(index), shape[1], shape[2], lambda value, index=index: value[index]) for index in range(shape[0])
        ]
    return []


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


def _row_block(start: int, length: int, transposed: bool) -> Callable[[Tensor], Tensor]:
    return lambda value: (value.mT if transposed else value)[start : start + length]


def _transposed_convolution(groups: int) -> Callable[[Tensor], Tensor]:
    """(in, out / groups, *k) -> (out, in / groups · k): each group of outputs beside its own inputs."""
    return lambda value: value.reshape(groups, -1, *value.shape[1:]).transpose(1, 2).flatten(0, 1).flatten(1)


def _product(sizes: Sequence[int]) -> int:
    return int(torch.Size(sizes).numel())


def _describe(matrix: Matrix) -> str:
    part = f"[{matrix.part}] " if matrix.part else ""
    return f"{part}{matrix.rows}×{matrix.cols}" + (" in factors" if matrix.in_factors else "")


def _as_list(argument: str, patterns: str | Sequence[str] | None) -> list[str] | None:
    if patterns is None or isinstance(patterns, str):
        return None if patterns is None else [patterns]
    if not isinstance(patterns, list | tuple | set) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"{argument} must be a pattern or a list of patterns, got {patterns!r}")
    return list(patterns)


def glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` are wild; brackets are themselves, since they are part of names."""
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern))


def _select(
    matrices: list[Matrix], rows: list[CoverageRow], include: list[str] | None, exclude: list[str] | None
) -> list[Matrix]:
    names = [matrix.name for matrix in matrices]
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or []:
            if not any(glob(pattern).fullmatch(name) for name in names):
                raise ValueError(f"{argument} pattern {pattern!r} matches no matrix. {_hint(pattern, names, rows)}")
    wanted, unwanted = [glob(pattern) for pattern in include or ["*"]], [glob(pattern) for pattern in exclude or []]
    return [
        matrix
        for matrix in matrices
        if any(glob.fullmatch(matrix.name) for glob in wanted)
        and not any(glob.fullmatch(matrix.name) for glob in unwanted)
    ]


def _cover(rows: list[CoverageRow], kept: list[Matrix]) -> Coverage:
    """The rows with what is watched described, once the patterns have chosen."""
    of: dict[str, list[Matrix]] = {}
    for matrix in kept:
        of.setdefault(matrix.parameter, []).append(matrix)
    coverage = Coverage()
    for row in rows:
        found, note = of.get(row.parameter, []), row.note
        if found:
            note = ", ".join(_describe(matrix) for matrix in found[:4]) + (", …" if len(found) > 4 else "")
        elif row.watched:
            note = "left out by include/exclude"
        coverage.append(CoverageRow(row.parameter, row.shape, bool(found), note))
    return coverage


def _hint(pattern: str, names: list[str], rows: list[CoverageRow]) -> str:
    skipped = [row for row in rows if not row.watched and glob(pattern).fullmatch(row.parameter)]
    if skipped:
        return f"It matches only what is skipped: {skipped[0].parameter}: {skipped[0].note}."
    near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return f"Names look like {', '.join(near)}."
