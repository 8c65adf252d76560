"""Small converted models, and what the tests of the active mode ask of every refusal: that it changed nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from helpers.training import step_hooks
from torch import Tensor, nn

from inrank import InRankLinear, convert

WIDTH = 16


def gpt2(layers: int = 1, seed: int = 0, **options: Any) -> Any:
    """transformers' own GPT-2, as small as it goes, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "n_positions": 12, "n_embd": WIDTH, "n_layer": layers, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes | dropout | {"bos_token_id": 0, "eos_token_id": 0} | options))


def tokens(seed: int = 0) -> Tensor:
    """A batch for `gpt2`: 4 × 12."""
    return torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(seed))


def gpt2_loss(model: nn.Module, seed: int = 0) -> Tensor:
    """The language-model loss of a batch."""
    batch = tokens(seed)
    loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def converted(
    *sizes: int, rank: int = 2, buffer_rank: int = 2, dtype: torch.dtype = torch.float64, **options: Any
) -> nn.Sequential:
    """Linear layers of these sizes with tanh between, all converted; U V is not zero. Layers `0`, `2`, ..."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    convert(model, "*", initial_rank=rank, buffer_rank=buffer_rank, **options)
    for layer in model:
        if isinstance(layer, InRankLinear):
            fill(layer)
    return model


@torch.no_grad()
def fill(layer: InRankLinear, scale: float = 0.1) -> InRankLinear:
    """Give the used columns of U values, as training would."""
    layer.U[:, : layer.used] = scale * torch.randn(layer.rows, layer.used, dtype=layer.U.dtype)
    return layer


def grow(layer: InRankLinear, rank: int) -> tuple[int, int]:
    """To a rank, with new rows of norm about 1."""
    count = min(rank + layer.buffer_rank, layer.capacity) - layer.used
    return layer.grow(rank, None, torch.randn(count, layer.cols) / layer.cols**0.5)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, after: Any = None) -> None:
    """Steps of a regression on random data that depends on the step's number alone."""
    layer = next(module for module in model.modules() if hasattr(module, "cols") or isinstance(module, nn.Linear))
    width = layer.cols if isinstance(layer, InRankLinear) else layer.V.shape[1] if hasattr(layer, "V") else None
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        inputs = torch.randn(16, int(width or layer.in_features), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(inputs.to(dtype)) - 1).square().mean().backward()
        optimizer.step()
        if after is not None:
            after()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_state(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert list(one) == list(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name
        assert one[name].dtype == two[name].dtype, name


def _anatomy(model: nn.Module) -> list[Any]:
    modules = [(name, id(module), type(module), module.training) for name, module in model.named_modules()]
    parameters = [
        (name, id(value), value.requires_grad, value.data_ptr(), value.grad is None)
        for name, value in model.named_parameters(remove_duplicate=False)
    ]
    return [modules, parameters]


@contextmanager
def untouched(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """What happens inside leaves objects, values, modes, config, optimizer and random state as they were."""
    anatomy, state, random = _anatomy(model), state_of(model), torch.get_rng_state()
    config = getattr(model, "config", None)
    entries = None if config is None else config.to_dict()
    held = None if optimizer is None else _held(optimizer)
    yield
    assert _anatomy(model) == anatomy
    assert all(torch.equal(value.nan_to_num(), state[name].nan_to_num()) for name, value in state_of(model).items())
    assert torch.equal(torch.get_rng_state(), random)
    assert entries is None or model.config.to_dict() == entries
    assert optimizer is None or _held(optimizer) == held


def _held(optimizer: torch.optim.Optimizer) -> list[Any]:
    groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    states = {
        id(parameter): {name: value.tolist() if isinstance(value, Tensor) else value for name, value in state.items()}
        for parameter, state in optimizer.state.items()
    }
    return [groups, states, step_hooks(optimizer)]
