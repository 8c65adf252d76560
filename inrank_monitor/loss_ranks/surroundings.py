"""What an evaluation may change beside the weights, random generators, buffers and modes, and how it is undone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Surroundings:
    """All of it as it is now.

    Args:
        model: whose buffers, modes and gradients are kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._held = [(held, name, value, _copy(value)) for held, name, value in _changing(model)]
        self._parameters = [(each, each.requires_grad, each.grad) for each in model.parameters()]
        self._random = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the state that others draw from
        self._torch = torch.get_rng_state()
        self._devices = [(module, module.get_rng_state_all()) for module in _devices()]

    def restore(self) -> None:
        """Put it all back, to the bit."""
        for module, mode in self._modes:
            module.training = mode
        for held, name, value, copy in self._held:
            if held.get(name) is not value:
                held[name] = value
            if copy is not None:
                value.data.copy_(copy)
        for parameter, wanted, gradient in self._parameters:
            if parameter.requires_grad is not wanted:
                parameter.requires_grad_(wanted)
            if parameter.grad is not gradient:
                parameter.grad = gradient
        random.setstate(self._random)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        for module, states in self._devices:
            module.set_rng_state_all(states)


def _changing(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Buffers, and the tables of embeddings whose forward pass scales rows down (`max_norm`): holder, name, value."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module._buffers, name, buffer
        if getattr(module, "max_norm", None) is not None and (table := module._parameters.get("weight")) is not None:
            yield module._parameters, "weight", table


def _copy(value: Tensor) -> Tensor | None:
    return None if value.device.type == "meta" else value.detach().clone()


def _devices() -> list[Any]:
    """The modules of accelerators that are in use: each has random generators of its own."""
    return [module for module in (torch.cuda, torch.xpu) if module.is_initialized()]
