"""The matrices of a model that is there only as a name, a config.json or a list of shapes.

`find_matrices` decides, on parameters that have shapes and no memory: what is planned for is what a tracker watches.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from inrank_monitor.checkpoints.described import CONFIG, model_of_config, with_shapes
from inrank_monitor.checkpoints.files import TensorInfo
from inrank_monitor.checkpoints.named_layers import layers_by_name
from inrank_monitor.checkpoints.opening import read_json
from inrank_monitor.matrices import Matrix, find_matrices
from inrank_monitor.plan.quantities import PlannedMatrix
from inrank_monitor.runs import local_path, write_json

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # as we name them, as safetensors does


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}


class _Llama(NamedTuple):
    """Sizes of a llama; `inner` is the MLP's width, `shared_heads` those of keys and values."""

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int = 32000
    shared_heads: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """As its config.json has them."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared_heads or self.heads,
        }


# As published.
WELL_KNOWN = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "llama-7b": _Llama(32, 4096, 32, 11008).config,
    "llama-13b": _Llama(40, 5120, 40, 13824).config,
    "llama-65b": _Llama(80, 8192, 64, 22016).config,
    "llama-70b": _Llama(80, 8192, 64, 28672, shared_heads=8).config,
    "llama-3-8b": _Llama(32, 4096, 32, 14336, 128256, 8).config,
    "llama-3-70b": _Llama(80, 8192, 64, 28672, 128256, 8).config,
}


@dataclass(frozen=True)
class PlannedModel:
    """A model to be watched.

    Attributes:
        name: what the user called it.
        kind: class name, or what stands for it.
        parameters: how many numbers it has.
        dtype: of its weights.
        matrices: to be watched, in the model's order.
        planned: the same, by their shapes alone.
        named: whether names of matrices are the model's own.
    """

    name: str
    kind: str
    parameters: int
    dtype: str
    matrices: Sequence[Matrix]
    planned: Sequence[PlannedMatrix]
    named: bool

    @property
    def watched(self) -> int:
        """How many of the numbers are in matrices that are watched."""
        return sum(matrix.entries for matrix in self.planned)


def planned_model(source: str, dtype: str | None = None, **selection: Any) -> PlannedModel:
    """A well-known model, or the one that a config.json describes.

    Args:
        source: one of WELL_KNOWN, a config.json or a folder that holds one.
        dtype: of the weights while they are trained; default: what the config says, else float32.
        selection: `find_matrices`' arguments.

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: transformers makes no model of it, or there is nothing to watch.
        ModuleNotFoundError: transformers is not installed.
    """
    import transformers  # noqa: F401 - its absence is to be said before anything is asked of it

    path = local_path(source, "model")
    if path.is_dir():
        path /= CONFIG
    if path.is_file():
        model = _described(path)
        entries = read_json(path)
        dtype = dtype or str(entries.get("dtype") or entries.get("torch_dtype") or "float32")
    elif source in WELL_KNOWN:
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / CONFIG, WELL_KNOWN[source])
            model = _described(Path(folder) / CONFIG)
    else:
        raise FileNotFoundError(
            f"{source} is no config.json, no folder that holds one, and no model that is known by name "
            f"({', '.join(WELL_KNOWN)})"
        )
    return _planned(source, model, dtype or "float32", selection)


def planned_shapes(text: str, dtype: str | None = None, **selection: Any) -> PlannedModel:
    """A model of one's own, by its matrices: `ROWSxCOLS:COUNT`, several with commas between.

    Raises:
        ValueError: it is not of that form, or there is nothing to watch.
    """
    tensors: dict[str, TensorInfo] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)(?::([1-9]\d*))?", part.strip())
        if match is None:
            raise ValueError(
                f"--shapes must be like 4096x11008:64,4096x4096:128 (rows x columns : how many), got {part!r}"
            )
        rows, cols, count = int(match[1]), int(match[2]), int(match[3] or 1)
        already = len(tensors)
        for number in range(already, already + count):
            tensors[f"matrix.{number}.weight"] = TensorInfo((rows, cols), torch.float32)
    model, _ = layers_by_name(tensors)
    found = _planned("these shapes", model, dtype or "float32", selection)
    return replace(found, kind="matrices", named=False)


def _described(path: Path) -> nn.Module:
    model = model_of_config(path)
    if isinstance(model, str):
        raise ValueError(f"{path} describes no model that can be planned for: {model}")
    return model


def _planned(name: str, model: nn.Module, dtype: str, selection: dict[str, Any]) -> PlannedModel:
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}: give --dtype")
    kind, of_torch = type(model).__name__, getattr(torch, dtype)
    tensors = {name: TensorInfo(tuple(parameter.shape), of_torch) for name, parameter in model.named_parameters()}
    model = with_shapes(model, tensors)
    matrices, _ = find_matrices(model, **selection)
    planned = [_by_shape(matrix, DTYPES[dtype], of_torch.itemsize) for matrix in matrices]
    size = sum(parameter.numel() for parameter in model.parameters())
    return PlannedModel(name, kind, size, dtype, matrices, planned, named=True)


def _by_shape(matrix: Matrix, dtype: str, itemsize: int) -> PlannedMatrix:
    shape = tuple(matrix.read().shape)
    return PlannedMatrix(
        name=matrix.name,
        parameter=matrix.parameter,
        rows=matrix.rows,
        cols=matrix.cols,
        shape=shape,
        dtype=dtype,
        itemsize=itemsize,
        block=matrix.block,
        cut=matrix.axis_of(0, shape),
    )
