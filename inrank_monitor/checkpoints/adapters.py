"""PEFT's adapter checkpoints as matrices: the update is in the factors, so the base model's weights are not needed.

Each saved pair of factors is put into a layer that has what `adapters` looks for in one of PEFT's own, so that names,
parts and scales are a live tracker's. LoRA (with rsLoRA, rank and alpha patterns) only: other adapters are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrank_monitor.checkpoints.files import Checkpoint
from inrank_monitor.checkpoints.model import WatchedModel
from inrank_monitor.checkpoints.named_layers import Conv1D, bare, module_at, placeholder
from inrank_monitor.checkpoints.opening import ADAPTER_CONFIG, read_json
from inrank_monitor.matrices import Coverage, CoverageRow, Matrix, find_matrices

_ADAPTER = "default"
_OUTER = "base_model.model."
_FACTOR = re.compile(r"(?P<path>.*)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?$")
# How B begins at zero, so that the base is W0; with others the first checkpoint is.
_ZERO_STARTS = (True, "gaussian", "eva", "orthogonal")
_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class Pair:
    """The names of A and B in an adapter's file, and the scale of their product."""

    right: str
    left: str
    scale: float
    embedding: bool


def is_adapter(path: Path) -> bool:
    """Whether this is a folder that PEFT has saved an adapter in, or the adapter's file there."""
    if path.is_file():
        return path.stem == "adapter_model" and (path.parent / ADAPTER_CONFIG).is_file()
    return (path / ADAPTER_CONFIG).is_file() and not (path / "model.safetensors").is_file()


class WatchedAdapter(WatchedModel):
    """The matrices of a model that is there only as its adapter's checkpoints; see `WatchedModel`.

    Attributes:
        begins_at_first: False where the adapter's product was zero at the start, so that W0 is the base model.
    """

    def __init__(self, first: Checkpoint, selection: dict[str, Any]) -> None:
        config = _config(first)
        pairs = pairs_of(first)
        self._layers = {path: _layer(path, pair, first, config) for path, pair in pairs.items()}
        root = nn.Module()
        for path, layer in self._layers.items():
            above, _, last = path.rpartition(".")
            module_at(root, above, {})._modules[last] = layer
        matrices, coverage = find_matrices(root, **selection)
        used = {name for pair in pairs.values() for name in (pair.right, pair.left)}
        coverage = Coverage(row for row in coverage)
        coverage += [
            CoverageRow(name, info.shape, False, "in the adapter's file, but no factor of LoRA")
            for name, info in first.tensors.items()
            if name not in used
        ]
        size = sum(torch.Size(info.shape).numel() for info in first.tensors.values())
        start = config.get("init_lora_weights", True)
        self.begins_at_first = start not in _ZERO_STARTS
        of = f"a LoRA adapter of {config.get('base_model_name_or_path') or 'a model without a name'}"
        of += " without DoRA's magnitudes" if config.get("use_dora") else ""
        begins = (
            f"which began at {start!r}: the first checkpoint is W0"
            if self.begins_at_first
            else "which began at zero: W0 is the base model"
        )
        super().__init__("LoRA adapter", size, "cpu", matrices, coverage, f"{of}, {begins}", {})
        self._paths = {id(layer): path for path, layer in self._layers.items()}

    def places(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See `WatchedModel`."""
        pairs = pairs_of(checkpoint)
        of = {matrix.parameter: self._path(matrix) for matrix in self.matrices}
        return {parameter: pairs[path] for parameter, path in of.items() if path in pairs}

    def fill(self, matrix: Matrix, checkpoint: Checkpoint, place: Pair) -> None:
        """See `WatchedModel`."""
        _fill(self._layers[self._path(matrix)], checkpoint.read(place.right), checkpoint.read(place.left), place)

    def start(self, matrix: Matrix) -> Tensor:
        """See `WatchedModel`."""
        packed = matrix.read()
        return packed if self.begins_at_first else torch.zeros_like(packed)

    def _path(self, matrix: Matrix) -> str:
        return self._paths[id(matrix.module.layer)]


def pairs_of(checkpoint: Checkpoint) -> dict[str, Pair]:
    """Path of each adapted layer, as the base model has it -> its factors in an adapter's checkpoint.

    Raises:
        ValueError: the adapter is none of LoRA's, or its product is not the whole update.
    """
    config = _config(checkpoint)
    sides: dict[str, dict[str, str]] = {}
    for name in checkpoint.tensors:
        if found := _FACTOR.fullmatch(name):
            path = found["path"].removeprefix(_OUTER)
            sides.setdefault(path, {})[found["side"]] = name
    pairs = {}
    for path, names in sides.items():
        if names.keys() == {"A", "B"}:
            rank = checkpoint.tensors[names["A"]].shape[0]
            pairs[path] = Pair(names["A"], names["B"], _scale(path, rank, config), "lora_embedding_" in names["A"])
    if not pairs:
        raise ValueError(f"{checkpoint.path} holds no factors of LoRA")
    return pairs


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path.parent / ADAPTER_CONFIG
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path} is of a {kind} adapter: only LoRA's checkpoints can be scanned")
    if config.get("target_parameters"):
        raise ValueError(
            f"{path} has target_parameters, adapters of single parameters, which cannot be scanned: merge it"
        )
    return config


def _scale(path: str, rank: int, config: Mapping[str, Any]) -> float:
    """α / r, or α / √r of rsLoRA; patterns are regular expressions at the end of the path, as PEFT reads them."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _layer(path: str, pair: Pair, first: Checkpoint, config: Mapping[str, Any]) -> nn.Module:
    """An empty layer of PEFT's make around an empty base layer, with the factors' shapes."""
    right, left = first.tensors[pair.right], first.tensors[pair.left]
    kind: type[nn.Module] = nn.Embedding if pair.embedding else _CONVOLUTIONS.get(len(right.shape), nn.Linear)
    if kind is nn.Linear and config.get("fan_in_fan_out") and path.rpartition(".")[2].startswith("c_"):
        kind = Conv1D
    layer = nn.Module()
    layer.base_layer = bare(kind)
    for dictionary in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
        setattr(layer, dictionary, nn.ParameterDict())
    _fill(layer, placeholder(right), placeholder(left), pair)
    return layer


def _fill(layer: nn.Module, right: Tensor, left: Tensor, pair: Pair) -> None:
    vars(layer)["scaling"] = {_ADAPTER: pair.scale}
    middle = "embedding_" if pair.embedding else ""
    for side, value in (("A", right), ("B", left)):
        held: nn.ParameterDict = getattr(layer, f"lora_{middle}{side}")
        held[_ADAPTER] = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
