"""The converted layers of a model: found by name, replaced by name, described in its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inrank.layers.factored_layer import FactoredLayer
from inrank.layers.inrank_layers import InRankLinear
from inrank_monitor.matrices import unwrap

CONFIG_ENTRY = "inrank"


def layers_of(model: nn.Module) -> dict[str, FactoredLayer]:
    """The converted layers of a model by dotted name, wrappers of torch.compile and DataParallel looked through."""
    return {
        name.replace("_orig_mod.", ""): module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, FactoredLayer)
    }


def growing_layers_of(model: nn.Module) -> dict[str, InRankLinear]:
    """Those of them that can still grow, W0 + U V."""
    return {name: layer for name, layer in layers_of(model).items() if isinstance(layer, InRankLinear)}


def check_whole(layers: Mapping[str, FactoredLayer], what: str) -> None:
    """Raise a ValueError that names the first layer whose factors are spread over processes, and what to do before."""
    for name, layer in layers.items():
        if hasattr(layer.U, "placements"):
            raise ValueError(f"{name!r} is sharded (DTensor), which fixes its rank: {what} before fully_shard")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name, in its predecessor's mode."""
    inner = unwrap(model)
    parent = inner.get_submodule(name.rpartition(".")[0])
    module.train(inner.get_submodule(name).training)
    setattr(parent, name.rpartition(".")[2], module)


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What it takes to build each converted layer again, by name; JSON."""
    return {name: _describe(layer) for name, layer in layers_of(model).items()}


def _describe(layer: FactoredLayer) -> dict[str, Any]:
    if not isinstance(layer, InRankLinear):
        return {"rank": layer.rank}
    return {
        "rank": layer.rank,
        "buffer_rank": layer.buffer_rank,
        "max_rank": layer.max_rank,
        "keeps_initial_weight": layer.initial_weight is not None,
    }


def note_ranks(model: nn.Module) -> None:
    """Write the ranks into a transformers model's config, so that its save_pretrained keeps them."""
    config = getattr(unwrap(model), "config", None)
    if not hasattr(config, "to_dict"):
        return
    if layers := describe_layers(model):
        setattr(config, CONFIG_ENTRY, {"layers": layers})
    elif hasattr(config, CONFIG_ENTRY):
        delattr(config, CONFIG_ENTRY)
