"""A learning rate of their own for factors: parameter groups beside the old ones, with whatever schedules those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # OneCycleLR and CyclicLR keep theirs in the group
_RATE_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
_OTHER_LISTS = ("lr_lambdas",)


def check_factor_rate(rate: object, optimizer: Optimizer | None, schedulers: Sequence[Any]) -> None:
    """Raise a ValueError unless the rate is a positive number, and the optimizer's schedulers are there to be told."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise ValueError(f"factor_lr must be a positive number, got {rate!r}")
    if rate == 1 or optimizer is None or schedulers:
        return
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("factor_lr makes new parameter groups, of which a scheduler must know: give scheduler")


def split_off(
    optimizer: Optimizer, factors: Iterable[nn.Parameter], rate: float, schedulers: Sequence[Any] = ()
) -> None:
    """Move factors into groups of their own behind the old ones, at `rate` times those groups' learning rates.

    Args:
        optimizer: holds them.
        factors: to be moved.
        rate: times the learning rate of the group that each is in.
        schedulers: of this optimizer; each learns of the new groups.
    """
    moving = {id(factor) for factor in factors}
    for place, group in enumerate(list(optimizer.param_groups)):
        chosen = [parameter for parameter in group["params"] if id(parameter) in moving]
        if not chosen:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moving]
        options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for key in _RATES:
            if key in options:
                options[key] = options[key] * rate
        optimizer.add_param_group({"params": chosen, **options})
        for scheduler in schedulers:
            _extend(scheduler, place, len(optimizer.param_groups), rate)


def _extend(scheduler: Any, place: int, count: int, rate: float) -> None:
    """Give a scheduler, and those inside it, an entry for the last group like that of the group at `place`."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # Accelerate's wrapper
    for inner in getattr(scheduler, "_schedulers", ()):
        _extend(inner, place, count, rate)
    for name in _RATE_LISTS + _OTHER_LISTS:
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == count - 1:
            entry = values[place]
            setattr(scheduler, name, [*values, entry * rate if name in _RATE_LISTS else entry])
