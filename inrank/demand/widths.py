"""`plan_widths` and `narrow`: how many hidden units each feed-forward block deserves, and a model that has no more.

What hidden unit j of a block does for the loss is, in the metric of `inrank.demand`, C_jj (Wᵀ G W)_jj of the layer W
that goes out of the hidden units: ½ tr(Dᵀ G D C) for D that takes column j away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inrank.demand.allocation import Room, by_demand, check_budget
from inrank.demand.calibration import BatchLoss, Covariances, calibrate, losses_of, sides, undisturbed
from inrank.demand.weighted import exact, weighted
from inrank.demand.width_plan import WidthPlan, keep_in, place_in
from inrank.growth import broadcast, broadcast_integers
from inrank.layers import FeedForward, check_widths, feedforwards_of, matrix_of, note_widths
from inrank_monitor.tracking import unwrap_optimizer

Order = Literal["directions", "units"]


def plan_widths(
    model: nn.Module,
    calibration: Iterable[Any],
    budget: float,
    *,
    order: Order = "directions",
    least_width: int = 8,
    batch_loss: BatchLoss | None = None,
    run: Any = None,
) -> WidthPlan:
    """Widths of the feed-forward blocks of a trained (or half-trained) model, by what its loss asks for.

    Args:
        model: GPT-2, Llama-like, ViT, BERT, or another whose blocks' layers have such names; left as it is.
        calibration: batches, of which the first 24 are used, in evaluation mode.
        budget: weights of all blocks together, as a share of what they have now, in (0, 1].
        order: `"directions"`: a block gets what `inrank.factorize` would spend on its matrices, all directions of all
            layers in one order: what a model trained again needs. `"units"`: hidden units as they are in one order:
            what pruning this one loses least by.
        least_width: of every block, as far as it has so many.
        batch_loss: of the model and a batch, with a gradient. Default: `model(**batch).loss`.
        run: that keeps the plan, for Advice ("if you trained again"): a live tracker, a `Run`, or its directory. Of
            the order of directions alone.

    Raises:
        ValueError: an argument out of range, no known block, a layer that the batches do not reach.
        TypeError: batches that are no mapping, without a `batch_loss`; `run` is none.
        FileNotFoundError: `run` is a directory without a run.
    """
    if order not in ("directions", "units"):
        raise ValueError(f"order must be 'directions' or 'units', got {order!r}")
    if isinstance(least_width, bool) or not isinstance(least_width, int) or least_width < 1:
        raise ValueError(f"least_width must be an integer of at least 1, got {least_width!r}")
    if run is not None and order != "directions":
        raise ValueError("run keeps plans for a model that is trained again: give order='directions', or no run")
    place = None if run is None else place_in(run)
    blocks = feedforwards_of(model)
    layers = {name: layer for block in blocks for name, layer in block.layers.items()}
    check_budget(budget)
    most = int(budget * sum(block.width * block.cost for block in blocks))
    least = [min(least_width, block.width) for block in blocks]
    if (needed := _cost(blocks, least)) > most:
        raise ValueError(f"budget {budget:g} holds {most:,} weights, and width {least_width} takes {needed:,}")
    with undisturbed(model):
        covariances = calibrate(layers, losses_of(model, calibration, batch_loss, None))
    uses = [_uses(block, covariances).cpu() for block in blocks]
    if order == "units":
        widths = _by_unit(blocks, uses, least, most)
    else:
        room = Room({name: sides(layer) for name, layer in layers.items()}, budget)
        widths = _by_direction(blocks, covariances, room, least)
    plan = _plan(blocks, uses, broadcast_integers(widths))
    if place is not None:
        keep_in(place, plan)
    return plan


def narrow(
    model: nn.Module, plan: WidthPlan | Mapping[str, int] | Sequence[int], optimizer: Optimizer | None = None
) -> nn.Module:
    """Give the feed-forward blocks of a model fewer hidden units, in place.

    By a plan a trained model is pruned: its most useful units stay. By widths, a mapping by block or a list in the
    model's order, each block keeps its first ones: what a fresh model needs to be trained from the start.

    Args:
        model: as for `plan_widths`.
        plan: of this model, or of one like it; or widths.
        optimizer: the one that trains it; its state is cut alike. Its Parameters stay the same objects.

    Returns:
        The model.

    Raises:
        ValueError: the plan is not of such a model, a width out of range; the model is untouched.
    """
    blocks = {block.name: block for block in feedforwards_of(model)}
    if optimizer is not None:
        optimizer = unwrap_optimizer(optimizer, "give the optimizer inside")
    widths = plan.widths if isinstance(plan, WidthPlan) else plan
    if not isinstance(widths, Mapping):
        if len(widths) != len(blocks):
            raise ValueError(f"plan has {len(widths)} widths, the model {len(blocks)} feed-forward blocks")
        widths = dict(zip(blocks, widths, strict=True))
    check_widths(blocks, widths)
    if isinstance(plan, WidthPlan):
        for name in widths:
            if plan.full[name] != blocks[name].width:
                raise ValueError(
                    f"{name!r} has {blocks[name].width} hidden units, and the plan is of {plan.full[name]}"
                )
    for name, width in widths.items():
        units = plan.units[name] if isinstance(plan, WidthPlan) else torch.arange(width, device="cpu")
        blocks[name].keep(units, optimizer)
    note_widths(model, blocks)
    return model


def _cost(blocks: Sequence[FeedForward], widths: Sequence[int]) -> int:
    """Weights of blocks of these widths."""
    return sum(width * block.cost for block, width in zip(blocks, widths, strict=True))


def _uses(block: FeedForward, covariances: Mapping[str, Covariances]) -> Tensor:
    """What each hidden unit does for the loss, (width,), in float64."""
    name, layer = block.out_of
    weight, seen = exact(matrix_of(layer)), covariances[name]
    through = (weight * (seen.outputs.to(weight) @ weight)).sum(0)
    return seen.inputs.to(weight).diagonal() * through


def _by_unit(blocks: Sequence[FeedForward], uses: Sequence[Tensor], least: Sequence[int], most: int) -> list[int]:
    """All units in one order, by use over cost, as far as the budget goes."""
    widths = list(least)
    left = most - _cost(blocks, widths)
    gains = [
        (float(use) / blocks[place].cost, place)
        for place, each in enumerate(uses)
        for use in each.sort(descending=True).values[least[place] :]
    ]
    for _, place in sorted(gains, key=lambda gain: -gain[0]):
        left -= blocks[place].cost
        if left < 0:
            break  # and no cheaper one in its place: widths would fall as the budget rises
        widths[place] += 1
    return widths


def _by_direction(
    blocks: Sequence[FeedForward], covariances: Mapping[str, Covariances], room: Room, least: Sequence[int]
) -> list[int]:
    """What the order of directions spends on each block, in hidden units; scaled where the least widths need it."""
    demands = {}
    for block in blocks:
        for name, layer in block.layers.items():
            demands[name] = weighted(exact(matrix_of(layer)), covariances[name]).demands.cpu().numpy()
    ranks = by_demand(room, demands)
    spent = [room.cost({name: ranks[name] for name in block.layers}) / block.cost for block in blocks]

    def widths(factor: float) -> list[int]:
        sizes = zip(spent, least, blocks, strict=True)
        return [max(low, min(int(factor * size + 1e-9), block.width)) for size, low, block in sizes]

    low, high = 0.0, max(block.width / size for block, size in zip(blocks, spent, strict=True))
    if _cost(blocks, widths(high)) <= room.parameters:
        return widths(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(blocks, widths(middle)) <= room.parameters else (low, middle)
    return widths(low)


def _plan(blocks: Sequence[FeedForward], uses: Sequence[Tensor], widths: Sequence[int]) -> WidthPlan:
    units = {}
    for block, each, width in zip(blocks, uses, widths, strict=True):
        kept = each.argsort(descending=True, stable=True)[:width].sort().values
        on_device = kept.to(matrix_of(block.out_of[1]).device)
        broadcast(on_device)
        units[block.name] = on_device.cpu()
    names = [block.name for block in blocks]
    full = {block.name: block.width for block in blocks}
    return WidthPlan(dict(zip(names, widths, strict=True)), full, units, {block.name: block.cost for block in blocks})
