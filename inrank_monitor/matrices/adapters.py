"""Adapters of PEFT (LoRA and its kin): products of factors on a frozen base, known by their attributes alone.

A wrapped layer holds its base layer and, for each adapter, A (rank, cols) and B (rows, rank); it maps by base + s B A.
The cumulative update of an adapter is s B A, less the same product at attach where that is not zero (PiSSA, an adapter
that was loaded): (B − B0) A + B0 (A − A0) is a product of factors of twice the rank. So A0 and B0 are kept as W0 is,
and the base weight is never needed, however it is stored. Merging, switching or disabling an adapter changes where its
update is applied and not what the update is: that is an event, and the spectrum stays.

Nothing here imports peft.

References:
    Hu et al. 2021, arXiv:2106.09685 (LoRA); Zhang et al. 2023, arXiv:2303.10512 (AdaLoRA: B diag(E) A);
    Liu et al. 2024, arXiv:2402.09353 (DoRA, whose magnitudes are not in the product).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from inrank_monitor.spectra import float64

# LoRA variants whose merged update is s B A, or s B diag(d) A; DoRA rescales the rows of W0 + s B A on top of it.
_PRODUCTS = ("Dora", "MiCA", "Velora", "Monteclora", "Kasa")
_DIAGONALS = ("lora_E", "lora_diag")  # AdaLoRA, KaSA
_ORDINARY = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(eq=False)
class Adapter:
    """One adapter of one layer; it offers its factors as a `LowRankUpdate` does.

    Attributes:
        layer: PEFT's layer.
        name: of the adapter.
        attribute: the base layer's weight that it adapts.
    """

    layer: nn.Module
    name: str
    attribute: str
    _state: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self._state = self._describe_state()

    @property
    def base(self) -> nn.Module:
        """The layer inside, whatever has been wrapped around it."""
        base = self.layer
        while (inner := base._modules.get("base_layer")) is not None:
            base = inner
        return base

    def parameters(self) -> list[Tensor]:
        """What its product is made of: A, B and, if it has one, the diagonal between them.

        Raises:
            AttributeError: the layer has this adapter no more.
        """
        middle = self._diagonal()
        return [*self._factors(), *([] if middle is None else [middle])]

    def _factors(self) -> tuple[Tensor, Tensor]:
        for kind in ("lora_", "lora_embedding_"):
            right, left = _held(self.layer, f"{kind}A", self.name), _held(self.layer, f"{kind}B", self.name)
            if right is not None and left is not None:
                return right, left
        raise AttributeError(f"the layer has no adapter {self.name!r} any more")

    def _diagonal(self) -> Tensor | None:
        found = [_held(self.layer, dictionary, self.name) for dictionary in _DIAGONALS]
        return next((value for value in found if value is not None), None)

    @property
    def experts(self) -> int:
        """Matrices that lie side by side in its factors: a stack of experts (`target_parameters`)."""
        return int(getattr(self.layer, "num_experts", 1)) if hasattr(self.layer, "parameter_name") else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product: (rows, cols), or (experts, rows, cols)."""
        right, left = self._factors()
        sides = (int(left.shape[0]), right.shape[1:].numel())
        sides = sides[::-1] if self._is_turned() else sides
        return (self.experts, *sides) if self.experts > 1 else sides

    @property
    def in_shards(self) -> bool:
        """Whether its factors are DTensors (FSDP2): reading them gathers them, which all processes must do."""
        return any(hasattr(part, "placements") for part in self.parameters())

    @property
    def capacity(self) -> int:
        """Columns of B."""
        return int(self._factors()[0].shape[0]) // self.experts

    @property
    def rank(self) -> int:
        """Columns of B in use: those that AdaLoRA has not set to zero."""
        middle = self._diagonal()
        return self.capacity if middle is None else int(torch.count_nonzero(_gathered(middle)))

    @torch.no_grad()
    def update_factors(self) -> tuple[Tensor, Tensor]:
        """The factors s B (rows, rank) and A (rank, cols) in float32 or wider; (experts, …) for a stack.

        Rows are outputs and columns inputs, times the kernel of a convolution, as of a `Matrix` of the base weight.

        Raises:
            AttributeError: the layer has this adapter no more.
        """
        right, left = map(_gathered, self._factors())
        wide = torch.float64 if torch.float64 in (left.dtype, right.dtype) else torch.float32
        left, right = left.detach().flatten(1).to(wide), right.detach().flatten(1).to(wide)
        if (middle := self._diagonal()) is not None:
            left = left * _gathered(middle).reshape(-1).to(wide)
        left = left * self._scale()
        if self.experts > 1:
            left = left.reshape(left.shape[0], -1, self.experts).permute(2, 0, 1)
            right = right.reshape(self.experts, -1, right.shape[-1])
        if self._is_turned():
            left, right = right.mT, left.mT
        return left, right

    def own_left(self) -> Tensor:
        """The memory of the update's left factor in its Parameter, scale and diagonal aside; shaped as that is.

        Raises:
            ValueError: the Parameter does not lie in one piece.
        """
        right, left = (part.data.flatten(1) for part in self._factors())
        if self.experts > 1:
            left = left.view(left.shape[0], -1, self.experts).permute(2, 0, 1)
            right = right.view(self.experts, -1, right.shape[-1])
        own = right.mT if self._is_turned() else left
        if own.untyped_storage().data_ptr() not in {part.untyped_storage().data_ptr() for part in self._factors()}:
            raise ValueError("its adapter's factors do not lie in one piece")
        return own

    def base_weight(self) -> Tensor | None:
        """The base weight's memory, shaped as the update; None if it is quantised, sharded or absent."""
        return self._base_weight()

    @property
    def is_merged(self) -> bool:
        """Whether the base weight holds its update."""
        return self.name in self._merged()

    @property
    def has_others(self) -> bool:
        """Whether the layer has adapters beside this one."""
        return sum(len(self.layer._modules.get(f"{kind}A") or ()) for kind in ("lora_", "lora_embedding_")) > 1  # type: ignore[arg-type]

    def _scale(self) -> float | Tensor:
        scale = float(self.layer.scaling[self.name])  # type: ignore[index]
        ranks = _held(self.layer, "ranknum", self.name)
        return scale if ranks is None else scale / (ranks.detach() + 1e-5)  # as AdaLoRA has it

    def _is_turned(self) -> bool:
        """Whether the base's rows are its inputs: an embedding, (tokens, width); experts stored (in, out)."""
        if self.experts > 1:
            return not getattr(self.layer, "_did_swap_in_out_features", False)
        return _held(self.layer, "lora_embedding_A", self.name) is not None

    def packed(self) -> Tensor:
        """Both factors in one tensor, (…, rows + cols, rank): what is kept of it as W0."""
        left, right = self.update_factors()
        return torch.cat([left, right.mT], dim=-2)

    @torch.no_grad()
    def initial_norm(self, cut: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> float:
        """‖W0‖_F of a matrix, W0 the base with what the adapter adds to it; 0 where the base is not ordinary numbers.

        Args:
            cut: this adapter's factors to those of the matrix; see `Matrix.cut`.
        """
        weight = self._base_weight()
        if weight is None or self.in_shards:
            return 0.0
        left, right = self.update_factors()
        whole, _ = cut(weight, right)
        left, right = cut(left, right)
        added = 0.0 if self.name in self._merged() or not _is_something(left, right) else left @ right
        return float(torch.linalg.vector_norm(whole.to(left.dtype) + added))

    def _base_weight(self) -> Tensor | None:
        """The base weight as (rows, cols); None if it is quantised, sharded or absent."""
        weight = self.base._parameters.get(self.attribute)
        if type(weight) is not nn.Parameter or weight.dtype not in _ORDINARY or weight.device.type == "meta":
            return None
        value = weight.detach()
        if value.ndim == 2 or self.experts > 1:
            return value.mT if type(self.base).__name__ == "Conv1D" else value
        return value.flatten(1)

    def refusal(self) -> str | None:
        """Why its update is not the product of its factors; None if it is."""
        variant = (getattr(self.layer, "lora_variant", None) or {}).get(self.name)
        if variant is not None and not type(variant).__name__.startswith(_PRODUCTS):
            return f"LoRA variant {type(variant).__name__}: its update is not B·A"
        if hasattr(self.layer, "is_parallel_a"):
            return "an adapter split over processes by Megatron"
        right, left = self._factors()
        weight = self.base._parameters.get(self.attribute)
        misfit = type(weight) is nn.Parameter and weight.dtype in _ORDINARY and weight.numel() != prod(self.shape)
        if left.shape[1:].numel() != right.shape[0] or misfit:
            return "an adapter whose B·A is not of the weight's shape (a grouped convolution, say)"
        return None

    def note(self) -> str:
        """What is measured, in words, for the coverage."""
        scale = self._scale()
        words = f"adapter {self.name!r}: {float(scale):.3g}·B·A of rank {self.capacity}"
        variant = (getattr(self.layer, "lora_variant", None) or {}).get(self.name)
        if variant is not None and type(variant).__name__.startswith("Dora"):
            words += " without DoRA's magnitudes"
        begun = all(bool(_local(part).any()) for part in self.parameters())
        return f"{words}, not zero now: less B·A at W0" if begun else words

    def _merged(self) -> Sequence[str]:
        return getattr(self.layer, "merged_adapters", None) or ()

    def _describe_state(self) -> str:
        if self.name in self._merged():
            return "merged into the base weight"
        if getattr(self.layer, "disable_adapters", False):
            return "disabled"
        active = getattr(self.layer, "active_adapters", [self.name])
        return "in use" if self.name in active else f"not active ({', '.join(active) or 'none'} is)"

    def news(self) -> str | None:
        """What has happened to it since this was last asked: merged, unmerged, switched, disabled; None for nothing."""
        before, self._state = self._state, self._describe_state()
        return None if self._state == before else f"adapter {self.name!r} is now {self._state}; it was {before}"


def _held(layer: nn.Module, dictionary: str, adapter: str) -> Tensor | None:
    """`layer.lora_A[adapter]`, its weight where that is a module; None if there is none."""
    held = layer._modules.get(dictionary)
    if held is None or adapter not in held:  # type: ignore[operator]
        return None
    value = held[adapter]  # type: ignore[index]
    return value if isinstance(value, Tensor) else getattr(value, "weight", None)


def _gathered(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if hasattr(value, "placements") else value
    return whole.detach()


def _local(value: Any) -> Tensor:
    piece: Tensor = value.to_local() if hasattr(value, "placements") else value
    return piece.detach()


def _is_something(left: Tensor, right: Tensor) -> bool:
    return bool(left.any() & right.any())


def since_start(left: Tensor, right: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Factors of B A − B0 A0, and whether B0 A0 was anything but zero.

    As (B − B0) A + B0 (A − A0), so that an adapter that has not moved gives zero exactly.

    Args:
        left: (…, rows, rank) s B now.
        right: (…, rank, cols) A now.
        packed: `Adapter.packed()` at the start; its rank may differ.
    """
    first_left, first_right = packed[..., : left.shape[-2], :], packed[..., left.shape[-2] :, :].mT
    if not _is_something(first_left, first_right):
        return left, right, False
    rank = max(left.shape[-1], first_left.shape[-1])
    left, first_left = (pad(float64(factor), (0, rank - factor.shape[-1])) for factor in (left, first_left))
    right, first_right = (pad(float64(factor), (0, 0, 0, rank - factor.shape[-2])) for factor in (right, first_right))
    return (
        torch.cat([left - first_left, first_left], dim=-1),
        torch.cat([right, right - first_right], dim=-2),
        True,
    )
