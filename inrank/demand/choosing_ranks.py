"""Which rank each layer gets: as given, or from a budget by one of the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrank.demand.allocation import Ranks, Room, Shapes, by_demand, by_energy, in_proportion
from inrank.demand.weighted import Decomposed
from inrank_monitor.loss_ranks import Start, ranks_by_loss
from inrank_monitor.matrices import InitialWeights

ALLOCATIONS = ("demand", "energy", "uniform", "loss")
TRUNCATIONS = ("best", "weighted", "plain")


@dataclass(frozen=True)
class Wanted:
    """What the caller asks of ranks and truncation; see `inrank.factorize`.

    Raises:
        ValueError: an argument out of range, or both or none of `ranks` and `budget`.
    """

    ranks: int | Mapping[str, int] | None = None
    budget: float | None = None
    allocation: str | Mapping[str, float] = "demand"
    truncation: str = "best"
    least_rank: int = 1
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if (self.ranks is None) == (self.budget is None):
            raise ValueError("give either ranks or a budget")
        if not isinstance(self.allocation, Mapping) and self.allocation not in ALLOCATIONS:
            raise ValueError(f"allocation must be one of {ALLOCATIONS} or sizes by name, got {self.allocation!r}")
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"truncation must be one of {TRUNCATIONS}, got {self.truncation!r}")

    @property
    def by_demand(self) -> bool:
        """Whether ranks need the layers' covariances."""
        return self.budget is not None and self.allocation == "demand"

    @property
    def by_norm(self) -> bool:
        """Whether ranks or truncation need the weights' own SVDs."""
        return self.truncation != "weighted" or (self.budget is not None and self.allocation == "energy")

    @property
    def _by_batches(self) -> bool:
        """Whether ranks are chosen by calibration batches."""
        return self.budget is not None and self.allocation in ("demand", "loss")

    @property
    def wants_batches(self) -> bool:
        """Whether batches decide anything: ranks, or which truncation is the better one."""
        return self._by_batches or self.truncation != "plain"

    def check_without_batches(self) -> None:
        """Raise a ValueError if these ranks, or this truncation, cannot do without calibration batches."""
        if self._by_batches or self.truncation == "weighted":
            what = self.allocation if self.budget is not None else "a weighted truncation"
            raise ValueError(f"calibration: {what} needs batches (or a loss): give some")

    def check(self, shapes: Shapes) -> None:
        """Raise a ValueError unless ranks, sizes and budget fit these layers."""
        for argument, given in (("ranks", self.ranks), ("allocation", self.allocation)):
            if isinstance(given, Mapping):
                _check_names(argument, given, shapes)
        if self.ranks is not None:
            for name, shape in shapes.items():
                _check_rank(name, shape, self.ranks[name] if isinstance(self.ranks, Mapping) else self.ranks)
        else:
            self.room(shapes)
        if isinstance(self.allocation, Mapping):
            for name, size in self.allocation.items():
                if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < math.inf:
                    raise ValueError(f"allocation must hold sizes of at least 0, got {size!r} for {name!r}")

    def room(self, shapes: Shapes) -> Room:
        """The budget over these layers."""
        assert self.budget is not None
        return Room(shapes, self.budget, self.least_rank)


def _check_names(argument: str, given: Mapping[str, object], shapes: Shapes) -> None:
    if unknown := set(given) - set(shapes):
        raise ValueError(f"{argument} names {sorted(unknown)[0]!r}, which is no chosen layer")
    if missing := [name for name in shapes if name not in given]:
        raise ValueError(f"{argument} does not name {missing[0]!r}, which is chosen")


def _check_rank(name: str, shape: tuple[int, int], rank: object) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape):
        raise ValueError(f"rank must be in 1..{min(shape)} for {name!r} ({shape[0]}×{shape[1]}), got {rank!r}")


def ranks_for(
    wanted: Wanted,
    shapes: Shapes,
    plain: Mapping[str, Decomposed],
    weighted: Mapping[str, Decomposed],
    by_loss: Callable[[], Mapping[str, float]],
) -> Ranks:
    """The rank of each layer.

    Args:
        wanted: checked against `shapes`.
        shapes: (rows, cols) by name.
        plain: SVDs; needed for energy.
        weighted: those under the metric of the loss; needed for demand.
        by_loss: gives the ranks that the loss asks for.
    """
    if wanted.ranks is not None:
        return {name: wanted.ranks[name] if isinstance(wanted.ranks, Mapping) else wanted.ranks for name in shapes}
    room = wanted.room(shapes)
    if wanted.allocation == "demand":
        return by_demand(room, {name: weighted[name].demands.cpu().numpy() for name in shapes})
    if wanted.allocation == "energy":
        return by_energy(room, {name: plain[name].values.cpu().numpy() for name in shapes})
    if wanted.allocation == "uniform":
        return in_proportion(room, dict.fromkeys(shapes, 1.0))
    sizes = wanted.allocation if isinstance(wanted.allocation, Mapping) else by_loss()
    return in_proportion(room, {name: sizes[name] for name in shapes})


def loss_ranks(
    model: nn.Module, layers: Mapping[str, nn.Module], loss: Callable[[], float | None], tolerance: float
) -> Mapping[str, float]:
    """`ranks_by_loss` of whole weights: their updates are counted from zero."""
    weights = {f"{name}.weight": layer.weight for name, layer in layers.items()}

    def zero(name: str) -> Tensor:
        return torch.zeros_like(weights[name])  # type: ignore[arg-type]

    selection = {"include": list(weights), "split_parts": False}
    start = Start("a weight of zero", InitialWeights(zero), selection=selection)
    found = ranks_by_loss(model, start, loss, tolerance, progress=False, save=False)
    return {name: float(found.ranks[f"{name}.weight"]) for name in layers}
