"""The model that a config.json describes, without memory for its weights: names, kinds, shapes and ties."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from inrank_monitor.checkpoints.files import TensorInfo
from inrank_monitor.checkpoints.named_layers import placeholder
from inrank_monitor.checkpoints.names import match_names
from inrank_monitor.checkpoints.opening import read_json

CONFIG = "config.json"


def model_of_config(path: Path) -> nn.Module | str:
    """The transformers model that a config.json describes, without memory for its weights; or why there is none.

    No code that comes with a checkpoint is run.

    Raises:
        ValueError: it is a model of `inrank` in factors, whose weights are not what it computes with.
    """
    try:
        entries = read_json(path)
    except ValueError as error:
        return str(error)
    if "inrank" in entries:
        raise ValueError(f"{path} is of a model converted by inrank: save it after inrank.merge to scan it")
    try:
        import transformers
    except ImportError:
        return "transformers is not installed"
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        name = (config.architectures or ["it names no architecture"])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            return f"{name} is no model of transformers {transformers.__version__}"
        with torch.device("meta"):
            model: nn.Module = kind(config)
    except Exception as error:  # whatever a config makes of it: the reason is said, and names and shapes are left
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return model


def with_shapes(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> nn.Module:
    """The model with these shapes and dtypes in place of parameters; ties stay ties."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found = match_names(names, tensors)
    infos = {
        id(parameter): tensors[found[name]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in found
    }
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # both, so that no identity is used again
    for module in model.modules():
        for attribute, old in module._parameters.items():
            if old is not None:
                info = infos.get(id(old), TensorInfo(tuple(old.shape), old.dtype))
                _, new = made.setdefault(id(old), (old, placeholder(info, old.requires_grad)))
                module._parameters[attribute] = new
    return model


def names_of(model: nn.Module) -> dict[str, list[str]]:
    """First name of each parameter -> all its names."""
    by_id: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in by_id.values()}


def missing(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Parameters of two dimensions or more that the checkpoint does not have by any of their names."""
    names = names_of(model)
    found = match_names([name for aliases in names.values() for name in aliases], tensors)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    return [
        name
        for name, aliases in names.items()
        if shapes.get(name, 0) >= 2 and not any(alias in found for alias in aliases)
    ]
