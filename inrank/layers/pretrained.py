"""Checkpoints of converted transformers models: ranks and widths live in the config, the factors in the weights.

To write one, the model's own `save_pretrained`. To read one, `inrank.from_pretrained`; the ordinary `from_pretrained`
fails on it, by the entry that each converted layer leaves in the place of its weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrank.layers.convert import convert
from inrank.layers.feedforward import WIDTHS_ENTRY, keep_first
from inrank.layers.inrank_layers import LOW_RANK_ENTRIES, InRankLinear
from inrank.layers.model_layers import CONFIG_ENTRY, note_ranks
from inrank.layers.targets import KINDS
from inrank_monitor.runs import local_path


def from_pretrained(directory: str | Path, model_class: Any = None, **config_changes: Any) -> Any:
    """Read a model that `save_pretrained` wrote: its class, dtype, ranks, widths and weights; in eval mode.

    For models that transformers' `from_pretrained` cannot read: with converted layers, or narrowed.

    Args:
        directory: of the checkpoint.
        model_class: a transformers class. Default: the one named in the config's `architectures`.
        config_changes: entries of the config to be other than they were saved.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is not of a converted or narrowed model, or its weights do not fit its config.
    """
    import transformers

    path = local_path(directory)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} holds no config.json: it is no checkpoint of save_pretrained")
    config = transformers.AutoConfig.from_pretrained(path, **config_changes)
    if not (getattr(config, CONFIG_ENTRY, None) or getattr(config, WIDTHS_ENTRY, None)):
        raise ValueError(f"{path} is not of a converted or narrowed model: read it by transformers' from_pretrained")
    if model_class is None:
        model_class = getattr(transformers, (config.architectures or ["none"])[0], None)
        if model_class is None:
            raise ValueError(f"{path} is of the class {config.architectures}: give model_class")
    model = _built(model_class, config)
    restore_shapes(model)
    load_weights(model, path)
    return model.eval()


def _built(model_class: Any, config: Any) -> Any:
    """The model in the dtype that its config names, as transformers builds it."""
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or "float32"
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, str(named).removeprefix("torch.")))
    try:
        with torch.device("cpu"):  # on whatever device the default is, its weights could not be loaded
            return model_class(config)
    finally:
        torch.set_default_dtype(before)


def restore_shapes(model: nn.Module) -> None:
    """Give a fresh transformers model the widths and the converted layers of its config; their values come after.

    Raises:
        ValueError: the model has no such block or layer, or a width or rank does not fit it.
    """
    config: Any = model.config
    if widths := getattr(config, WIDTHS_ENTRY, None):
        keep_first(model, widths)
    if entry := getattr(config, CONFIG_ENTRY, None):
        restore_layers(model, entry["layers"])


def restore_layers(model: nn.Module, layers: dict[str, dict[str, Any]]) -> None:
    """Give an ordinary model the converted layers that its config describes; their values come after.

    Raises:
        ValueError: the model has no such layer, or a rank does not fit it.
    """
    for name, entry in layers.items():
        rank = entry["rank"]
        if "buffer_rank" in entry:
            start = "zero" if entry["keeps_initial_weight"] else "kaiming"
            sizes = {key: entry[key] for key in ("buffer_rank", "max_rank")}
            convert(model, name, initial_rank=rank, initialization=start, kinds=KINDS, **sizes)  # type: ignore[arg-type]
        else:
            convert(model, name, initial_rank=1, buffer_rank=1, max_rank=rank, kinds=KINDS)
            layer = model.get_submodule(name)
            assert isinstance(layer, InRankLinear)
            layer.become_low_rank(layer.U.new_zeros(layer.rows, rank), layer.V.new_zeros(rank, layer.cols))
    note_ranks(model)


def load_weights(model: nn.Module, directory: Path) -> None:
    """Load a checkpoint's safetensors files, one or sharded, into a model of the same layers.

    Raises:
        FileNotFoundError: there are none.
        ValueError: entries are missing, unexpected or of another shape.
    """
    try:
        found = model.load_state_dict(_own_names(model, read_weights(directory)), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{directory} does not fit the model: {error}") from None
    missing, groups = set(found.missing_keys), _shared_names(model)
    lacking = [names for names in groups if missing.issuperset(names)]
    lacking += [[name] for name in found.missing_keys if not any(name in names for names in groups)]  # rank entries
    if lacking or found.unexpected_keys:
        raise ValueError(
            f"{directory} does not fit the model: missing {[names[0] for names in lacking]}, "
            f"unexpected {found.unexpected_keys}"
        )


def _own_names(model: nn.Module, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's entries by the model's names: transformers 5 writes some models, ViT say, by earlier names."""
    own = model.state_dict()
    if entries.keys() <= own.keys() or not hasattr(model, "config"):
        return entries
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 has no other names
        return entries
    names = {id(value): name for name, value in own.items()}
    written = {name: names.get(id(value), name) for name, value in revert_weight_conversion(model, own).items()}
    return {written.get(name, name): value for name, value in entries.items()}


def low_ranks_in(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Ranks of the layers of which a state dict holds plain factors, κ U V, by layer name."""
    names = [name.removesuffix(".U") for name in state if name.endswith(".U") and f"{name[:-1]}V" in state]
    entries = {name: state.get(f"{name}.weight") for name in names}
    return {
        name: state[f"{name}.U"].shape[1]
        for name, entry in entries.items()
        if entry is not None and entry.ndim == 1 and len(entry) == LOW_RANK_ENTRIES
    }


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The entries of a checkpoint directory's safetensors files.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for file in files:
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{directory} holds no {file}")
        state |= load_file(directory / file)
    return state


def _shared_names(model: nn.Module) -> list[list[str]]:
    """The names of every Parameter and buffer; tied ones have several, of which a checkpoint holds one."""
    groups: dict[int, list[str]] = {}
    for name, value in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        groups.setdefault(id(value), []).append(name)
    return list(groups.values())
