"""Adam's second moment of young columns, raised to where no entry moves by more than the learning rate.

All layers at once: their columns of one length are laid into one tensor, since a layer that has just grown would cost
dozens of kernels a step by itself. Of them remains one a layer, which puts U's columns back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

LIMIT = 1.0  # largest update of a young entry, in learning rates (weight decay apart)


@dataclass(frozen=True, eq=False)
class Young:
    """Columns of U, or rows of V, that have been used for a short time.

    Attributes:
        factor: U or V, with a gradient.
        group: the optimizer's, in which it is.
        axis: along which the columns are counted.
        first: of them.
        last: the one after them.
    """

    factor: nn.Parameter
    group: dict[str, Any]
    axis: int
    first: int
    last: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same part of a tensor that has an entry for each of the factor's: (columns, length)."""
        return tensor[self.first : self.last] if self.axis == 0 else tensor.mT[self.first : self.last]


def bound_young(optimizer: Optimizer, young: Sequence[Young]) -> None:
    """Raise v to where this step's |m̂| / √v̂ is at most LIMIT, on all young columns."""
    together: dict[tuple[Any, ...], list[Young]] = {}
    for columns in young:
        moment, step = (optimizer.state[columns.factor][name] for name in ("exp_avg", "step"))
        length = columns.factor.shape[1 - columns.axis]
        at = float(step) if step.device.type == "cpu" else None  # a fused optimizer counts on the device
        kinds = moment.dtype, moment.device, columns.factor.grad.dtype  # type: ignore[union-attr]
        together.setdefault((at, id(columns.group), length, *kinds), []).append(columns)
    for (at, *_), some in together.items():
        _bound(optimizer, some, at)


def _bound(optimizer: Optimizer, young: Sequence[Young], at: float | None) -> None:
    """The same of columns that are alike in group, length, dtype and device, and in the step before this one, `at`."""
    states, group = [optimizer.state[columns.factor] for columns in young], young[0].group
    counts = [columns.last - columns.first for columns in young]
    gradient = _joined(young, [columns.factor.grad for columns in young])
    m, v = (_joined(young, [state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
    gradient = gradient.to(m.dtype)
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:  # a fused one under a GradScaler gets scaled gradients
        gradient = gradient / scale.to(m.device)
    if group.get("maximize"):
        gradient = -gradient
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
    if group["weight_decay"] and not decoupled:  # AdamW's goes past the moments
        weights = _joined(young, [columns.factor.detach() for columns in young])
        gradient = gradient + group["weight_decay"] * weights
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step = _steps(states, counts) + 1 if at is None else at + 1
    root = (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    ahead = torch.lerp(m, gradient, 1 - beta1) * (root / (LIMIT * beta2**0.5))
    least = torch.addcmul(ahead.square(), gradient, gradient, value=1 - 1 / beta2)
    least = torch.nan_to_num(least, nan=0.0, posinf=0.0, neginf=0.0)
    # A step that a fused optimizer is about to skip for its GradScaler leaves the state as it is.
    skipped: Tensor | None = getattr(optimizer, "found_inf", None)
    if skipped is not None:
        least = least * (skipped.to(v.device) == 0)
    raised = torch.split(torch.maximum(v, least), counts)
    places = [columns.of(state["exp_avg_sq"]) for columns, state in zip(young, states, strict=True)]
    for axis in (0, 1):  # rows of V lie together: one kernel for all
        chosen = [place for place, columns in enumerate(young) if columns.axis == axis]
        if chosen:
            torch._foreach_copy_([places[place] for place in chosen], [raised[place] for place in chosen])


def _joined(young: Sequence[Young], tensors: Sequence[Tensor | None]) -> Tensor:
    parts = [columns.of(tensor) for columns, tensor in zip(young, tensors, strict=True) if tensor is not None]
    return torch.cat(parts)


def _steps(states: Sequence[dict[str, Any]], counts: Sequence[int]) -> Tensor:
    """The step counters on the device, one a column."""
    return torch.cat([state["step"].expand(count) for state, count in zip(states, counts, strict=True)])[:, None]
