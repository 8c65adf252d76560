"""What a matrix's module is to programs that look for layers of known classes, as PEFT's LoRA does."""

from __future__ import annotations

from typing import Any

from torch import nn

from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.matrix import Matrix

_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def layer_of(matrix: Matrix) -> dict[str, Any]:
    """For run.json: `layer`, the known class that the owner is of, a subclass too (empty: of none), and `groups`."""
    module = matrix.module
    if isinstance(module, Adapter):
        module = module.base
    elif matrix.in_factors:
        return {"layer": ""}
    if (described := getattr(module, "layer_described", None)) is not None:
        return dict(described)
    layer = next((kind.__name__ for kind in _LAYERS if isinstance(module, kind)), "")
    if not layer and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        layer = "Conv1D"  # of transformers, which is not imported here
    groups = getattr(module, "groups", 1) if layer.startswith("Conv") else 1
    return {"layer": layer, **({"groups": int(groups)} if groups != 1 else {})}
