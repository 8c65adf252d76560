"""Layers told from the names and shapes of their tensors alone, where nothing else says what a model is.

Names follow habits, not rules. What is taken wrongly for a matrix costs time; a transposed convolution is taken for a
convolution, and a bilinear form for a convolution if its last side is below 32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from inrank_monitor.checkpoints.files import TensorInfo
from inrank_monitor.matrices import CoverageRow

_EMBEDDING = re.compile(
    r"(^|\.)(wte|wpe|shared|emb|embed|embeds|relative_attention_bias|embed_(in|tokens|positions|token|position|pos)"
    r"|(\w+_)?embeddings?|(tok|token|word|pos|position|type|token_type|segment)_?emb(s|ed)?)$",
    re.IGNORECASE,
)
_NORM = re.compile(r"(^|\.)(\w*norm\w*|ln|ln_\w+|bn\d*)$", re.IGNORECASE)
_RECURRENT = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}
_CELLS = {4: nn.LSTMCell, 3: nn.GRUCell, 1: nn.RNNCell}
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_WIDEST_KERNEL = 31
_TURNED = ("c_attn", "q_attn", "c_proj", "c_fc")


class Conv1D(nn.Module):
    """Stands for transformers' layer of this name, which stores its weight as (in, out)."""


def is_embedding(name: str) -> bool:
    """Whether a weight is named as embeddings are."""
    path, _, attribute = name.rpartition(".")
    return attribute == "weight" and bool(_EMBEDDING.search(path))


def layers_by_name(tensors: Mapping[str, TensorInfo]) -> tuple[nn.Module, list[CoverageRow]]:
    """A model of empty layers that hold these tensors' shapes, and the tensors that are certainly no weights.

    Args:
        tensors: by dotted name; tensors of shared memory become one parameter.
    """
    root, others = nn.Module(), []
    kinds = _kinds(tensors)
    made: dict[str, nn.Parameter] = {}
    for name, info in tensors.items():
        reason = _reason_to_leave_out(name, info)
        if reason:
            others.append(CoverageRow(name, info.shape, False, reason))
            continue
        path, _, attribute = name.rpartition(".")
        parameter = made.get(info.shared_with or "") if info.shared_with else None
        made[name] = placeholder(info) if parameter is None else parameter
        module_at(root, path, kinds)._parameters[attribute] = made[name]
    return root, others


def placeholder(info: TensorInfo, requires_grad: bool = True) -> nn.Parameter:
    """A parameter with a shape and a dtype that takes no memory."""
    dtype = info.dtype or torch.uint8
    return nn.Parameter(
        torch.zeros(1, dtype=dtype, device="cpu").expand(info.shape), requires_grad and dtype.is_floating_point
    )


def _reason_to_leave_out(name: str, info: TensorInfo) -> str | None:
    path, _, attribute = name.rpartition(".")
    if info.problem:
        return info.problem
    if ".parametrizations." in f".{path}.":
        return "computed from other parameters: not measured from checkpoints"
    return "a bias or a mask" if attribute == "bias" and len(info.shape) > 1 else None


def module_at(root: nn.Module, path: str, kinds: Mapping[str, type[nn.Module]]) -> nn.Module:
    """The module at a dotted path, made with all above it; written past `add_module`, which refuses some names."""
    module, so_far = root, ""
    for part in path.split(".") if path else []:
        so_far = f"{so_far}.{part}" if so_far else part
        child = module._modules.get(part)
        if child is None:
            child = module._modules[part] = bare(kinds.get(so_far, nn.Module))
        module = child
    return module


def bare(kind: type[nn.Module]) -> nn.Module:
    """A layer of this class without parameters, whatever its constructor asks for."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    return layer


def _kinds(tensors: Mapping[str, TensorInfo]) -> dict[str, type[nn.Module]]:
    """Module path -> the class that its weights speak for."""
    shapes = {name: info.shape for name, info in tensors.items()}
    turned = any(
        name.endswith("c_attn.weight") and len(shape) == 2 and shape[1] == 3 * shape[0]
        for name, shape in shapes.items()
    )
    kinds: dict[str, type[nn.Module]] = {}
    for name, shape in shapes.items():
        path, _, attribute = name.rpartition(".")
        if len(shape) >= 2 and (kind := _kind(path, attribute, shape, turned)) is not None:
            kinds[path] = kind
    return kinds


def _kind(path: str, attribute: str, shape: tuple[int, ...], turned: bool) -> type[nn.Module] | None:
    if attribute.startswith("weight_hh"):
        return (_CELLS if attribute == "weight_hh" else _RECURRENT).get(shape[0] // max(shape[1], 1))
    if attribute == "in_proj_weight":
        return nn.MultiheadAttention
    if attribute != "weight":
        return None
    if _NORM.search(path):
        return nn.LayerNorm
    if len(shape) == 2:
        if is_embedding(f"{path}.weight"):
            return nn.Embedding
        return Conv1D if turned and path.rpartition(".")[2] in _TURNED else nn.Linear
    if len(shape) == 3 and shape[2] > _WIDEST_KERNEL:
        return None  # a stack of matrices: experts
    return _CONVOLUTIONS.get(len(shape))
