"""All that a training has, to be compared to the bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def state(model: nn.Module, optimizer: Optimizer, losses: list[float]) -> dict[str, Any]:
    """All that training has, and the settings of the process; tensors as bytes, so that -0.0 is not 0.0."""

    def raw(value: Any) -> Any:
        if isinstance(value, Tensor):
            flat = value.detach().reshape(-1).view(torch.uint8)
            return str(value.dtype), tuple(value.shape), flat.numpy().tobytes()
        if isinstance(value, dict):
            return {key: raw(inner) for key, inner in value.items()}
        return [raw(inner) for inner in value] if isinstance(value, list | tuple) else value

    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - the global state
    return {
        "weights and buffers": raw({**model.state_dict(keep_vars=True)}),
        "gradients": {name: None if p.grad is None else raw(p.grad) for name, p in model.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "optimizer": raw(optimizer.state_dict()),
        "losses": losses,
        "torch random state": raw(torch.get_rng_state()),
        "python random state": random.getstate(),
        "numpy random state": (numpy_state[0], numpy_state[1].tobytes(), *numpy_state[2:]),
        "modes": {name: module.training for name, module in model.named_modules()},
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: [len(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks is not None]
            for name, module in model.named_modules()
        },
    }
