"""What to watch in checkpoints: as the model at hand has it, or its config.json, or names and shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from inrank_monitor.checkpoints.described import CONFIG, missing, model_of_config, with_shapes
from inrank_monitor.checkpoints.files import Checkpoint
from inrank_monitor.checkpoints.model import Described, WatchedModel, watched_model
from inrank_monitor.checkpoints.named_layers import layers_by_name
from inrank_monitor.checkpoints.state_dict import clean, refuse_factors


def watch_checkpoint(first: Checkpoint, model: nn.Module | None, config: Path | None, **selection: Any) -> WatchedModel:
    """What to watch, as the first checkpoint has it.

    Args:
        first: the checkpoint that is W0; a config.json beside it is used.
        model: the model itself, if somebody has it: only its names, kinds and shapes are looked at.
        config: another config.json.
        selection: `find_matrices`' arguments.

    Raises:
        ValueError: nothing is left to watch, a pattern matches nothing, or the model is another one.
    """
    if model is not None:
        given = Described(model, type(model).__name__, "matrices as in the model given")
        return watched_model(given, first, selection)
    if config is not None and not config.is_file():
        raise FileNotFoundError(f"there is no {config}")
    path = config or first.path.parent / CONFIG
    reason = "no config.json beside it"
    if path.is_file():
        described = _by_config(path, first)
        if isinstance(described, Described):
            return watched_model(described, first, selection)
        reason = f"{path} is not used: {described}"
        if config is not None:
            raise ValueError(reason)
    refuse_factors(first)
    root, others = layers_by_name(clean(first))
    note = f"matrices by names and shapes alone ({reason})"
    return watched_model(Described(root, "state dict", note, others), first, selection)


def _by_config(path: Path, first: Checkpoint) -> Described | str:
    """The model that a config.json describes, or why it is not the checkpoint's."""
    model = model_of_config(path)
    if not isinstance(model, nn.Module):
        return model
    kind = type(model).__name__
    shaped = with_shapes(model, first.tensors)
    lacking = missing(shaped, first.tensors)
    if lacking:
        return f"{kind} has {lacking[0]}, which the checkpoint has not"
    return Described(shaped, kind, f"matrices as {path} describes them ({kind})")
