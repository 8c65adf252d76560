"""What checkpoints say beside their names: the step that they were saved at, and whether two are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KEYS = {
    "step": ("global_step", "global_steps", "step", "iteration", "iter", "iter_num", "num_updates"),
    "epoch": ("epoch", "current_epoch", "cur_epoch"),
}
# mmengine, fairseq and home-made trainers keep the numbers one level down.
_INNER = ("meta", "trainer_state", "train_state", "training_state", "trainer", "extra_state")


def numbers_in(content: Mapping[Any, Any]) -> dict[str, int]:
    """`step` and `epoch`, as far as the top of a checkpoint, or its metadata, has them.

    >>> numbers_in({"global_step": 500, "epoch": "3", "meta": {"iter": 7}, "lr": 0.1})
    {'step': 500, 'epoch': 3}
    """
    levels = [content, *(level for name in _INNER if isinstance(level := content.get(name), Mapping))]
    found: dict[str, int] = {}
    for unit, keys in _KEYS.items():
        known = (_whole(level.get(key)) for level in levels for key in keys)
        number = next((each for each in known if each is not None), None)
        if number is not None:
            found[unit] = number
    return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal bit by bit; NaN is NaN."""
    return torch.equal(*(each.reshape(-1).contiguous().view(torch.uint8) for each in (one, other)))


def _whole(value: Any) -> int | None:
    """A whole number of at least 0, whatever it is kept as; None for anything else."""
    if isinstance(value, bool) or getattr(value, "size", 1) == 0 or getattr(value, "ndim", 0) > 0:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return int(number) if number >= 0 and number.is_integer() else None
