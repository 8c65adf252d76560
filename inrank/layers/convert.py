"""Whole models: ordinary layers to W0 + U V and back.

`convert` checks everything before it changes anything, so a wrong argument leaves the model as it was. The inverse is
`merge`; `inrank.factorize` (its own file) is the way on to plain U V.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inrank.layers.factored_layer import FactoredLayer, aligned
from inrank.layers.gain import Gain, check_gain, matching_gain
from inrank.layers.inrank_layers import InRankLinear
from inrank.layers.model_layers import check_whole, layers_of, note_ranks, replace_module
from inrank.layers.targets import KINDS, check_layer, choose_layers, kind_of
from inrank_monitor.matrices import unwrap

Initialization = Literal["zero", "kaiming"]


@dataclass(frozen=True)
class Converted:
    """One converted layer: its dotted name, (rows, cols), rank and largest rank."""

    name: str
    shape: tuple[int, int]
    rank: int
    max_rank: int


def break_even_rank(rows: int, cols: int) -> int:
    """Rank p q / (p + q), rounded down, above which U and V hold more numbers than W; at least 1."""
    return max(rows * cols // (rows + cols), 1)


def convert(
    model: nn.Module,
    targets: str | Sequence[str] = "*.mlp.*",
    *,
    initial_rank: int | Mapping[str, int] = 2,
    buffer_rank: int = 100,
    max_rank: int | None = None,
    initialization: Initialization = "zero",
    gain: Gain = "match",
    kinds: Sequence[str] = ("Linear", "Conv1D"),
    seed: int = 0,
) -> list[Converted]:
    """Replace the layers that the targets name by `InRankLinear`, in place. The model computes what it did before.

    Call it before the optimizer is made. Each W0 is frozen; U starts at zero, V at small random rows (`"zero"`), so
    that W0 + U V is W0; `initialize_from_gradient` then gives Algorithm 2's start. Nothing touches the global
    random state.

    Args:
        model: any module.
        targets: globs (`*`, `?`) over dotted module names; each must match a layer of one of the `kinds`.
        initial_rank: rank at the start, for all or by layer name.
        buffer_rank: b of eq. 7: columns that are trained beyond the rank.
        max_rank: cap of the rank. Default: break-even, p q / (p + q).
        initialization: `"kaiming"` drops W0 and starts U and V at full scale, as the published code does; it changes
            what the model computes.
        gain: κ of W = W0 + κ U V: `"match"` lets Adam move W as fast as in dense training (`layers.gain`); 1 is the
            paper's parametrisation.
        kinds: of `"Linear"`, `"Conv1D"` (transformers') and `"Conv2d"`, which layers the targets may choose.
        seed: of the random rows.

    Returns:
        What was converted, in the model's order.

    Raises:
        ValueError: an argument out of range, a target that matches nothing, a layer that is converted already, whose
            weight is shared with another layer, that is sharded or quantised.

    References:
        Zhao et al. 2023, arXiv:2306.11250, eq. 6, Algorithm 2 lines 1 and 3; b = 100 and r0 = 2: section 6.
    """
    options = _Options(buffer_rank, initialization, gain, kinds, seed)
    chosen = choose_layers(unwrap(model), targets, kinds)
    for name, module in chosen.items():
        check_layer(model, name, module)
    plans = [_plan(name, module, initial_rank, max_rank) for name, module in chosen.items()]
    if isinstance(initial_rank, Mapping) and (unknown := set(initial_rank) - set(chosen)):
        raise ValueError(f"initial_rank names {sorted(unknown)[0]!r}, which targets do not match")
    for place, (plan, module) in enumerate(zip(plans, chosen.values(), strict=True)):
        replace_module(model, plan.name, _converted(module, plan, options, options.generator(place)))
    note_ranks(model)
    return plans


def merge(model: nn.Module) -> list[str]:
    """Turn every converted layer back into an ordinary one with the weight W0 + U V, in place.

    A second call finds nothing to do. The optimizer no longer holds what the model has: make a new one to go on.

    Returns:
        The names of the merged layers.

    Raises:
        ValueError: the model is sharded (FSDP).
    """
    found = layers_of(model)
    check_whole(found, "merge")
    for name, layer in found.items():
        replace_module(model, name, _ordinary(layer))
    note_ranks(model)
    return list(found)


def matrix_of(module: nn.Module) -> Tensor:
    """The (out, in) view of an ordinary layer's weight; out × in·k of a Conv2d."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return oriented(type(module).__name__, weight)


def oriented(kind: str, value: Tensor) -> Tensor:
    """The (out, in) view of what is shaped like the weight of such a layer; out × in·k of a Conv2d's."""
    return value.mT if kind == "Conv1D" else value.flatten(1)


@dataclass(frozen=True)
class _Options:
    """What `convert` does alike to every layer; see there."""

    buffer_rank: int
    initialization: Initialization
    gain: Gain
    kinds: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.buffer_rank, bool) or not isinstance(self.buffer_rank, int) or self.buffer_rank < 1:
            raise ValueError(f"buffer_rank must be an integer of at least 1, got {self.buffer_rank!r}")
        if self.initialization not in ("zero", "kaiming"):
            raise ValueError(f"initialization must be 'zero' or 'kaiming', got {self.initialization!r}")
        if isinstance(self.kinds, str) or not self.kinds or any(kind not in KINDS for kind in self.kinds):
            raise ValueError(f"kinds must be some of {KINDS}, got {self.kinds!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed!r}")
        check_gain(self.gain)

    def generator(self, place: int) -> torch.Generator:
        """Of the random rows of one layer, by its place among the converted."""
        return torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + place)


def _plan(name: str, module: nn.Module, initial_rank: int | Mapping[str, int], max_rank: int | None) -> Converted:
    rows, cols = matrix_of(module).shape
    size = min(rows, cols)
    cap = min(break_even_rank(rows, cols), size) if max_rank is None else max_rank
    rank = initial_rank.get(name, 2) if isinstance(initial_rank, Mapping) else initial_rank
    for argument, value, most in (("max_rank", cap, size), ("initial_rank", rank, cap)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{argument} must be in 1..{most} for {name!r} ({rows}×{cols}), got {value!r}")
    return Converted(name, (rows, cols), rank, cap)


@torch.no_grad()
def _converted(module: nn.Module, plan: Converted, options: _Options, generator: torch.Generator) -> InRankLinear:
    weight, gain = matrix_of(module).detach(), options.gain
    rows, cols = plan.shape
    buffer_rank, kaiming = options.buffer_rank, options.initialization == "kaiming"
    capacity = min(aligned(plan.max_rank + buffer_rank, weight.dtype), rows, cols)
    used = min(plan.rank + buffer_rank, capacity)
    # The expected ‖A‖² and ‖B‖² of the entries drawn below
    left_square, right_square = (rows * used / (plan.rank + buffer_rank) if kaiming else 0.0), float(used)
    chosen = matching_gain(rows, cols, left_square, right_square) if gain == "match" else float(gain)
    U, V = weight.new_zeros(rows, capacity), weight.new_zeros(capacity, cols)
    V[:used] = (random_rows(used, cols, generator) / math.sqrt(chosen)).to(V)
    if kaiming:
        U[:, :used] = (kaiming_columns(rows, used, plan.rank + buffer_rank, generator) / math.sqrt(chosen)).to(U)
    return InRankLinear(
        None if kaiming else weight.clone(memory_format=torch.contiguous_format),
        U,
        V,
        module.bias,  # type: ignore[arg-type]
        rank=plan.rank,
        buffer_rank=buffer_rank,
        max_rank=plan.max_rank,
        gain=chosen,
        origin=kind_of(module),
        convolution=convolution_of(module),
    )


def random_rows(count: int, cols: int, generator: torch.Generator) -> Tensor:
    """`count` rows for V, of norm about 1: independent N(0, 1/cols)."""
    return torch.randn(count, cols, generator=generator, dtype=torch.float32, device="cpu") / math.sqrt(cols)


def kaiming_columns(rows: int, count: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """`count` columns for U at full scale: independent N(0, 1/fan_in)."""
    return torch.randn(rows, count, generator=generator, dtype=torch.float32, device="cpu") / math.sqrt(fan_in)


def convolution_of(module: nn.Module) -> dict[str, Any]:
    """What a Conv2d says beside its weight; empty for the others."""
    names = ("kernel_size", "stride", "padding", "dilation")
    return {name: getattr(module, name) for name in names} if isinstance(module, nn.Conv2d) else {}


@torch.no_grad()
def _ordinary(layer: FactoredLayer) -> nn.Module:
    """The layer that it was converted from, with the merged weight and the same bias Parameter."""
    weight, bias = layer.exact_weight().to(layer.U.dtype), layer.bias
    module: nn.Module
    if layer.origin == "Conv1D":
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            module = Conv1D(layer.rows, layer.cols)
        weight = weight.mT.contiguous()
    elif layer.origin == "Conv2d":
        size = layer.convolution["kernel_size"]
        weight = weight.view(layer.rows, -1, *size)
        with torch.device("meta"):
            module = nn.Conv2d(weight.shape[1], layer.rows, bias=bias is not None, **layer.convolution)
    else:
        with torch.device("meta"):
            module = nn.Linear(layer.cols, layer.rows, bias=bias is not None)
    module.weight = nn.Parameter(weight)
    module.register_parameter("bias", bias)
    return module
