"""What run.json says of the training: its optimizers, and what the user gives; runs are sorted into groups by it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# Of a parameter group: no hyperparameters, or ways to compute the same.
_LEFT_OUT = ("params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable")


def trained_with(optimizers: Sequence[Optimizer], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """As JSON has it.

    Raises:
        TypeError: `config` is no mapping, or holds what JSON does not.
    """
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, vars(args) for one, got {type(config).__name__}")
    try:
        given = json.loads(json.dumps(dict(config or {}), default=str))
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must hold what JSON can: {error}") from None
    return {"optimizers": [_described(optimizer) for optimizer in optimizers], "config": given}


def _described(optimizer: Optimizer) -> dict[str, Any]:
    """Class and hyperparameters; where groups of parameters differ in one, a list, a value a group."""
    groups = [_numbers(group) for group in optimizer.param_groups]
    names = dict.fromkeys(name for group in groups for name in group)
    values = {name: [group.get(name) for group in groups] for name in names}
    return {
        "class": type(optimizer).__name__,
        "values": {name: each[0] if all(one == each[0] for one in each) else each for name, each in values.items()},
    }


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group that are numbers or words; the learning rate as it was before any schedule."""
    found = {name: _plain(value) for name, value in group.items() if name not in _LEFT_OUT}
    if "initial_lr" in group:
        found["lr"] = _plain(group["initial_lr"])
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """Numbers, words, and tuples of them; None for anything else."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and value.device.type != "meta" else None
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str) else None
