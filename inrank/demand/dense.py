"""A dense model's weights become factors: calibrate, share out ranks, truncate, compare, exchange."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inrank.demand.calibration import BatchLoss, Losses, calibrate, losses_of, mean_loss, sides, undisturbed
from inrank.demand.carried_state import Carrier
from inrank.demand.choosing_ranks import Wanted, loss_ranks, ranks_for
from inrank.demand.factor_groups import check_factor_rate, split_off
from inrank.demand.weighted import Decomposed, exact, plain, weighted
from inrank.growth import INSTEAD, Factorization, Factorized, broadcast, broadcast_integers, meeting_device
from inrank.layers import (
    KINDS,
    Gain,
    LowRankLinear,
    Origin,
    check_gain,
    check_layer,
    choose_layers,
    convolution_of,
    kind_of,
    matching_gain,
    matrix_of,
    note_ranks,
    oriented,
)
from inrank_monitor.matrices import unwrap
from inrank_monitor.tracking import unwrap_optimizer, weights_were_rewritten

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker

logger = logging.getLogger("inrank")


@dataclass
class Dense:
    """What is to be factorized, checked; see `inrank.factorize`.

    Attributes:
        layers: that were chosen, by name.
        shapes: (rows, cols) of each.
    """

    model: nn.Module
    optimizer: Optimizer | None
    targets: str | Sequence[str]
    wanted: Wanted
    gain: Gain = "match"
    factor_lr: float = 1.0
    schedulers: Sequence[Any] = ()
    layers: dict[str, Any] = field(init=False)
    shapes: dict[str, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(getattr(self.model, "_orig_mod", self.model), nn.parallel.DistributedDataParallel):
            raise ValueError("model is in DistributedDataParallel: factorize model.module and wrap it anew")
        check_gain(self.gain)
        self.layers = dict(choose_layers(unwrap(self.model), self.targets, KINDS))
        for name, layer in self.layers.items():
            check_layer(self.model, name, layer)
            if not bool(torch.isfinite(matrix_of(layer)).all()):
                raise ValueError(f"the weight of {name!r} holds NaN or infinity")
        self.shapes = {name: sides(layer) for name, layer in self.layers.items()}
        self.wanted.check(self.shapes)
        if self.optimizer is not None:
            self.optimizer = unwrap_optimizer(self.optimizer, INSTEAD)
            held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
            for name, layer in self.layers.items():
                if layer.weight.requires_grad and id(layer.weight) not in held:
                    raise ValueError(f"optimizer does not hold '{name}.weight'")
        check_factor_rate(self.factor_lr, self.optimizer, self.schedulers)


@dataclass(frozen=True)
class _Plan:
    """How each weight is truncated, and what the loss is before."""

    ranks: dict[str, int]
    truncation: str
    decomposed: Mapping[str, Decomposed]
    loss_before: float | None


def factorize_dense(
    asked: Dense,
    calibration: Iterable[Any] | None,
    batch_loss: BatchLoss | None,
    loss: Callable[[], float | Tensor] | None,
    tracker: SpectrumTracker | None,
) -> Factorization:
    """What `inrank.factorize` does of a dense model; see there."""
    with undisturbed(asked.model):
        losses = losses_of(asked.model, calibration, batch_loss, loss)
        shown: Losses = losses if loss is None else [loss]
        plan = _plan(asked, losses, shown, calibration is not None)
    rows, reset = [], []
    for name in asked.layers:
        row, carried = _exchange(asked, name, plan)
        rows.append(row)
        reset += [] if carried else [name]
    _set_rate(asked)
    note_ranks(asked.model)
    weights_were_rewritten()
    with undisturbed(asked.model):
        after = mean_loss(shown)
    report = Factorization(tuple(rows), plan.loss_before, after, plan.truncation, tuple(reset))
    if reset:
        logger.warning("factorize: %s: the optimizer's state of the weight is unknown; its factors begin anew", reset)
    if tracker is not None:
        tracker.event("factorized", None, str(report))
    return report


def _plan(asked: Dense, losses: Losses, shown: Losses, has_batches: bool) -> _Plan:
    wanted = asked.wanted
    metric = wanted.by_demand or wanted.truncation == "weighted" or (wanted.truncation == "best" and has_batches)
    if not losses:
        wanted.check_without_batches()
    before = mean_loss(shown)
    covariances = calibrate(asked.layers, losses) if metric else {}
    whole = {name: exact(matrix_of(layer)) for name, layer in asked.layers.items()}
    usual = {name: plain(weight) for name, weight in whole.items()} if wanted.by_norm else {}
    under = {name: weighted(whole[name], each) for name, each in covariances.items()}
    by_loss = partial(loss_ranks, asked.model, asked.layers, partial(mean_loss, losses), wanted.tolerance)
    ranks = ranks_for(wanted, asked.shapes, usual, under, by_loss)
    ranks = dict(zip(ranks, broadcast_integers(list(ranks.values())), strict=True))
    candidates = {"plain": usual, "weighted": under}
    chosen = wanted.truncation
    if chosen == "best" and not under:
        chosen = "plain"
    elif chosen == "best":
        tried = {kind: _loss_with(asked.layers, candidates[kind], ranks, losses) for kind in candidates}
        chosen = "weighted" if tried["weighted"] <= tried["plain"] else "plain"
    return _Plan(ranks, chosen, candidates[chosen], before)


@torch.no_grad()
def _loss_with(
    layers: Mapping[str, nn.Module], decomposed: Mapping[str, Decomposed], ranks: Mapping[str, int], losses: Losses
) -> float:
    """The calibration loss with truncated weights; they come back to the bit."""
    kept = {name: matrix_of(layer).clone() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            left, values, right = decomposed[name].truncated(ranks[name])
            view = matrix_of(layer).detach()
            view.data.copy_((left * values @ right).view_as(view))
        found = mean_loss(losses)
    finally:
        for name, layer in layers.items():
            matrix_of(layer).detach().data.copy_(kept[name])
    assert found is not None
    return found if found == found else float("inf")


def _exchange(asked: Dense, name: str, plan: _Plan) -> tuple[Factorized, bool]:
    """One layer; whether its optimizer state went along."""
    layer, rank = asked.layers[name], plan.ranks[name]
    weight: Any = layer.weight
    dense = exact(matrix_of(layer))
    left, values, right = plan.decomposed[name].truncated(rank)
    total = float(values.sum())
    chosen = matching_gain(*asked.shapes[name], total, total) if asked.gain == "match" else float(asked.gain)
    root = (values / chosen).sqrt()
    U, V = ((left * root).to(weight).contiguous(), (root[:, None] * right).to(weight).contiguous())
    agreed = torch.tensor(chosen, dtype=torch.float64, device=meeting_device())
    broadcast(U, V, agreed)
    origin = Origin(kind_of(layer), convolution_of(layer))
    factored = LowRankLinear.take_over(layer, U, V, gain=float(agreed), origin=origin)
    carrier = Carrier(weight, partial(oriented, origin.name), factored.U, factored.V, factored.gain)
    carrier.gradient()
    carried = asked.optimizer is None or carrier.state(asked.optimizer)
    error = float((dense - left * values @ right).square().sum() / dense.square().sum()) if dense.any() else 0.0
    return Factorized(name, asked.shapes[name], rank, 1 - error), carried


def _set_rate(asked: Dense) -> None:
    if asked.optimizer is None or asked.factor_lr == 1:
        return
    layers = unwrap(asked.model)
    factors = [factor for name in asked.layers for factor in _factors_of(layers.get_submodule(name))]
    split_off(asked.optimizer, factors, asked.factor_lr, asked.schedulers)


def _factors_of(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    assert isinstance(layer, LowRankLinear)
    return layer.U, layer.V
