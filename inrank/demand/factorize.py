"""`inrank.factorize`: a dense model in training goes on in factors, or Algorithm 3 where it is converted already."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from inrank import growth
from inrank.demand.calibration import BatchLoss
from inrank.demand.choosing_ranks import Wanted
from inrank.demand.dense import Dense, factorize_dense
from inrank.growth import Factorization
from inrank.layers import Gain, growing_layers_of, layers_of

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker


def factorize(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    targets: str | Sequence[str] | None = None,
    ranks: int | Mapping[str, int] | None = None,
    budget: float | None = None,
    allocation: str | Mapping[str, float] = "demand",
    calibration: Iterable[Any] | None = None,
    batch_loss: BatchLoss | None = None,
    truncation: str = "best",
    least_rank: int = 1,
    tolerance: float = 0.01,
    factor_lr: float = 1.0,
    scheduler: Any = None,
    gain: Gain = "match",
    tracker: SpectrumTracker | None = None,
    loss: Callable[[], float | Tensor] | None = None,
) -> Factorization:
    """Replace weights by factors of low rank, W ≈ κ U V, in place, and let training go on with them.

    Of a dense model, for which nothing need be prepared, `targets`, and `ranks` or a `budget`, say what becomes of
    which layer. A model that `inrank.convert` made, W0 + U V, takes Algorithm 3: every growing layer at its rank, or at
    `ranks`. The module objects stay. The optimizer gets U and V in the place of the weight. Call it between two
    optimizer steps; in a distributed training on every process, with its own calibration batches: sums are over
    processes, and process 0's factors are sent to all. Unwrap DistributedDataParallel before, and wrap anew after.

    **Optimizer state**, of a dense model: averages of gradients (Adam's first moment, SGD's momentum, and `.grad` where
    one is being accumulated) are projected, exactly; averages of squares by squared factors; counters stay. Whatever
    else an optimizer keeps is reset, and the report says so. After `convert` the factors begin anew.

    **Resume**: factorize a fresh model with `ranks=report.ranks` and the same `factor_lr`, then load the states.

    Args:
        model: any module.
        optimizer: the one that trains it, if training goes on.
        targets: of a dense model: globs over dotted names of Linear, Conv1D (transformers') and Conv2d layers.
            Default: those that `ranks` names, else `"*.mlp.*"`.
        ranks: one for all, or by layer name.
        budget: instead of ranks: parameters of all factors together, as a share of the chosen weights' (biases and all
            other layers not counted), in (0, 1].
        allocation: how a budget is shared out. `"demand"`: all directions of all layers in one order, by σ² / (p + q)
            of G^½ W C^½ (see `inrank.demand`); `"energy"`: the same share of ‖W‖² everywhere; `"uniform"`: one rank
            for all; `"loss"`: in proportion to `inrank_monitor.ranks_by_loss`; or in proportion to sizes by layer
            name. Ranks stay below break-even, where factors would be as large as the weight.
        calibration: batches for demand and for the report; the first 24 are used, in evaluation mode.
        batch_loss: of the model and a batch, with a gradient. Default: `model(**batch).loss`.
        truncation: `"weighted"`: under the same metric as demand, damped by 1 % of the mean eigenvalue, so that the
            loss changes least; `"plain"`: by the SVD of W; `"best"`: of both the one that has the lower loss on the
            calibration batches, plain without any.
        least_rank: that each layer gets of a budget.
        tolerance: of `"loss"`: how far the loss may rise at the ranks whose proportions are taken.
        factor_lr: learning rate of the factors, times their weight's: above or below 1 they go into parameter groups
            of their own, behind the others.
        scheduler: or several, of this optimizer; needed for a `factor_lr` other than 1, to know the new groups.
        gain: κ of W = κ U V, as for `inrank.convert`; 1 is the paper's.
        tracker: gets an event, and goes on: of a weight it measures κ U V - W0.
        loss: of no argument, measured just before and just after for the report. Without `calibration` it is its
            batch, and is called with gradients, too.

    Raises:
        ValueError: an argument out of range, or one that does not go with the others; a layer that cannot be
            factorized (shared, sharded, quantised, parametrized); an optimizer that does not hold the weights; a model
            in DistributedDataParallel; a weight that is not finite. The model is untouched.
        TypeError: an argument, or what a loss returns, is of a wrong type.

    References:
        Zhao et al. 2023, arXiv:2306.11250, Algorithm 3.
    """
    dense = targets is not None or budget is not None or calibration is not None
    if not dense and (growing_layers_of(model) or ranks is None or layers_of(model)):
        return growth.factorize(model, optimizer, ranks=ranks, gain=gain, tracker=tracker, loss=loss)
    wanted = Wanted(ranks, budget, allocation, truncation, least_rank, tolerance)
    asked = _asked(model, optimizer, targets, wanted, gain, factor_lr, scheduler)
    return factorize_dense(asked, calibration, batch_loss, loss, tracker)


def _asked(
    model: nn.Module,
    optimizer: Optimizer | None,
    targets: str | Sequence[str] | None,
    wanted: Wanted,
    gain: Gain,
    factor_lr: float,
    scheduler: Any,
) -> Dense:
    named = list(wanted.ranks) if isinstance(wanted.ranks, Mapping) else "*.mlp.*"
    return Dense(
        model=model,
        optimizer=optimizer,
        targets=named if targets is None else targets,
        wanted=wanted,
        gain=gain,
        factor_lr=factor_lr,
        schedulers=list(scheduler) if isinstance(scheduler, list | tuple) else [] if scheduler is None else [scheduler],
    )


def check_later(model: nn.Module, optimizer: Optimizer | None, options: Mapping[str, Any]) -> list[str]:
    """Find now what `factorize(model, optimizer, **options)` of a dense model would refuse later.

    Returns:
        The names of the layers that will be factorized.

    Raises:
        ValueError, TypeError: as `factorize`; batches are not looked at.
    """
    bound = inspect.signature(factorize).bind(model, optimizer, **options)
    bound.apply_defaults()
    given = bound.arguments
    wanted = Wanted(*(given[name] for name in [field.name for field in fields(Wanted)]))
    chosen = (given[name] for name in ("gain", "factor_lr", "scheduler"))
    asked = _asked(model, optimizer, given["targets"], wanted, *chosen)
    if given["calibration"] is None and given["loss"] is None:
        wanted.check_without_batches()
    return list(asked.layers)
