"""Algorithm 3: after the initial phase W0 + U V becomes plain U* V*, smaller and faster, and training goes on.

References:
    Zhao et al. 2023, arXiv:2306.11250, Algorithm 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inrank.growth.optimizer_state import INSTEAD, check_holds, replace_parameters
from inrank.growth.processes import broadcast
from inrank.layers import (
    Gain,
    InRankLinear,
    check_gain,
    check_whole,
    growing_layers_of,
    layers_of,
    matching_gain,
    note_ranks,
)
from inrank_monitor.spectra import svd
from inrank_monitor.tracking import unwrap_optimizer

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker


@dataclass(frozen=True)
class Factorized:
    """One layer: its rank now, and the share of ‖W_T‖² that its leading singular values kept."""

    name: str
    shape: tuple[int, int]
    rank: int
    energy_kept: float


@dataclass(frozen=True)
class Factorization:
    """What a factorization did.

    Attributes:
        layers: one entry a layer.
        loss_before: of the function given, just before; None without one.
        loss_after: just after.
        truncation: `"plain"`, by the SVD of the weight, or `"weighted"`, under the metric of the loss.
        reset: layers of which the optimizer's state was unknown and begins anew; always all after `convert`, where that
            is not said.
    """

    layers: tuple[Factorized, ...]
    loss_before: float | None
    loss_after: float | None
    truncation: str = "plain"
    reset: tuple[str, ...] = ()

    @property
    def ranks(self) -> dict[str, int]:
        """By layer name; with these as `ranks` a fresh model becomes like this one."""
        return {layer.name: layer.rank for layer in self.layers}

    @property
    def share(self) -> float:
        """Parameters of all factors together over those of the weights that they stand for."""
        dense = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return sum(layer.rank * sum(layer.shape) for layer in self.layers) / dense

    @property
    def loss_jump(self) -> float | None:
        """How much the truncation cost in loss."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_after - self.loss_before

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer':<{width}}  {'shape':>11}  rank  of ‖W‖² kept"]
        for layer in self.layers:
            shape = f"{layer.shape[0]}×{layer.shape[1]}"
            lines.append(f"{layer.name:<{width}}  {shape:>11}  {layer.rank:>4}  {layer.energy_kept:.1%}")
        if self.loss_before is not None and self.loss_after is not None:
            lines.append(f"loss {self.loss_before:.4f} -> {self.loss_after:.4f} ({self.loss_jump:+.4f})")
        if self.reset:
            lines.append(f"optimizer state begun anew: {', '.join(self.reset)}")
        return "\n".join(lines)


def factorize(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    ranks: int | Mapping[str, int] | None = None,
    gain: Gain = "match",
    tracker: SpectrumTracker | None = None,
    loss: Callable[[], float | Tensor] | None = None,
) -> Factorization:
    """Replace W0 + U V by its best approximation U* V* of rank r in every layer, in place; W0 and buffer are gone.

    W_T = Σ s_i u_i v_iᵀ: √κ U* = [√s_i u_i], √κ V* = [√s_i v_i]ᵀ for i ≤ r. The module objects stay. The optimizer
    gets the new factors in the places of the old ones, with empty state: Adam begins them anew with its bias
    correction, since the old averages belong to other coordinates. In a distributed training rank 0's factors are sent
    to all; unwrap DistributedDataParallel before, and wrap anew after.

    Args:
        model: converted by `inrank.convert`.
        optimizer: the one that trains it, if training goes on.
        ranks: instead of the layers' own: one for all, or by layer name.
        gain: κ of W = κ U* V*, as for `convert`; 1 is the paper's.
        tracker: gets an event; from here on it measures W itself, since there is no W0 left to take away.
        loss: measured just before and just after, without gradients, for the report.

    Raises:
        ValueError: nothing is converted, a rank out of range, an optimizer that does not hold the factors, a model in
            DistributedDataParallel or sharded (FSDP), a weight that is not finite; the model is untouched.
    """
    if isinstance(getattr(model, "_orig_mod", model), nn.parallel.DistributedDataParallel):
        raise ValueError("model is in DistributedDataParallel: factorize model.module and wrap it anew")
    check_gain(gain)
    layers = growing_layers_of(model)
    if not layers:
        reason = (
            "it is factorized already"
            if layers_of(model)
            else "call inrank.convert first, or give a budget or ranks for a dense model"
        )
        raise ValueError(f"the model has no InRankLinear layer to factorize: {reason}")
    check_whole(layers, "factorize")
    chosen = {name: _rank_of(name, layer, ranks) for name, layer in layers.items()}
    if isinstance(ranks, Mapping) and (unknown := set(ranks) - set(layers)):
        raise ValueError(f"ranks names {sorted(unknown)[0]!r}, which is no converted layer")
    if optimizer is not None:
        optimizer = unwrap_optimizer(optimizer, INSTEAD)
        check_holds(optimizer, layers)
    truncated = {name: _truncate(name, layer, chosen[name], gain) for name, layer in layers.items()}
    before = _measure(loss)
    for name, layer in layers.items():
        _install(layer, truncated[name], optimizer)
    note_ranks(model)
    rows = tuple(
        Factorized(name, (layer.rows, layer.cols), chosen[name], truncated[name].energy_kept)
        for name, layer in layers.items()
    )
    report = Factorization(rows, before, _measure(loss))
    if tracker is not None:
        tracker.event("factorized", None, str(report))
    return report


def _rank_of(name: str, layer: InRankLinear, ranks: int | Mapping[str, int] | None) -> int:
    rank = ranks.get(name) if isinstance(ranks, Mapping) else ranks
    if rank is None:
        rank = layer.current_rank(name)
    most = min(layer.rows, layer.cols)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise ValueError(f"rank must be in 1..{most} for {name!r} ({layer.rows}×{layer.cols}), got {rank!r}")
    return rank


@dataclass(frozen=True)
class _Truncated:
    U: Tensor
    V: Tensor
    gain: float
    energy_kept: float


@torch.no_grad()
def _truncate(name: str, layer: InRankLinear, rank: int, gain: Gain) -> _Truncated:
    """The leading singular triplets with √s in both factors, and the share of ‖W‖² that they hold."""
    weight = layer.exact_weight()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"the weight of {name!r} holds NaN or infinity")
    left, values, right = svd(weight)
    energy, total = values.square(), float(values[:rank].sum())
    chosen = matching_gain(layer.rows, layer.cols, total, total) if gain == "match" else float(gain)
    root = (values[:rank] / chosen).sqrt()
    U, V = (left[:, :rank] * root).to(layer.U).contiguous(), (root[:, None] * right[:rank]).to(layer.V).contiguous()
    exact = U.new_full((), chosen, dtype=weight.dtype)
    broadcast(U, V, exact)
    if weight.dtype == torch.float64:
        chosen = float(exact)
    return _Truncated(U, V, chosen, float(energy[:rank].sum() / energy.sum()) if total else 1.0)


def _install(layer: InRankLinear, factors: _Truncated, optimizer: Optimizer | None) -> None:
    old_U, old_V, old_W0 = layer.U, layer.V, layer.initial_weight
    layer.become_low_rank(factors.U, factors.V, factors.gain)
    if optimizer is not None:
        new: dict[nn.Parameter, nn.Parameter | None] = {old_U: layer.U, old_V: layer.V}
        if old_W0 is not None:
            new[old_W0] = None
        replace_parameters(optimizer, new)


def _measure(loss: Callable[[], float | Tensor] | None) -> float | None:
    if loss is None:
        return None
    with torch.no_grad():
        return float(loss())
