"""What each arm does to the MLP matrices: before the first step, and after each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from inrank.demand import factorize
from inrank.demand.calibration import sides
from inrank.demand.weighted import exact, plain
from inrank.experiments.from_the_start.arms import BUDGET, FIRST_SHARE, Start, is_first
from inrank.experiments.worth_it.costs import Meter
from inrank.experiments.worth_it.data import Data, held_out_loss
from inrank.experiments.worth_it.methods import dense_mlps
from inrank.gpt2.models import TARGETS
from inrank.layers import FactoredLayer, convert, matrix_of
from inrank_monitor.ranks import effective_rank

EARLY = 0.4  # of the steps: where the losses are compared, too


@dataclass
class Starting:
    """An arm at work on one model.

    Attributes:
        start: the arm.
        model: a fresh dense GPT-2.
        settings: of the training.
        data: whose validation part tells the loss early in the training.
        meter: counts the steps.
        optimizer: once there is one.
        scheduler: of it.
        numbers: what the arm has to tell at the end.
    """

    start: Start
    model: nn.Module
    settings: Mapping[str, Any]
    data: Data
    meter: Meter
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: torch.optim.lr_scheduler.LambdaLR = field(init=False)
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mlps = dense_mlps(self.model)
        self._names = list(mlps)
        self._layers = {name: layer for name, layer in mlps.items() if self.start.takes(name)}
        self._moment = round(self.start.after * self.settings["steps"])
        self._early = max(1, round(EARLY * self.settings["steps"]))

    @property
    def last_step(self) -> None:
        """All steps are made."""

    def _rank(self, name: str) -> int:
        rows, cols = sides(self._layers[name])
        if self.start.ranks == "full":
            return min(rows, cols)
        share = BUDGET
        if self.start.ranks == "uneven":
            blocks = len(self._names) // 2
            share *= FIRST_SHARE * blocks if is_first(name) else (1 - FIRST_SHARE) * blocks / (blocks - 1)
        return max(1, int(min(share, 1.0) * rows * cols / (rows + cols)))  # at most break-even

    @property
    def _ranks(self) -> dict[str, int]:
        return {name: self._rank(name) for name in self._layers}

    def shape_model(self) -> None:
        """Before the optimizer is made."""
        generator = torch.Generator("cpu").manual_seed(int(self.settings["seed"]))
        if self.start.begins != "initial":
            for name, layer in self._layers.items():
                weight = matrix_of(layer).detach()
                weight.copy_(self._beginning(weight, self._rank(name), generator))
        if self.start.trains == "added":  # its columns are trained, used or not: a rank and a buffer of one
            ranks = {name: rank - 1 for name, rank in self._ranks.items()}
            convert(self.model, TARGETS, initial_rank=ranks, buffer_rank=1, seed=int(self.settings["seed"]))

    def _beginning(self, weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
        if self.start.begins == "cut":
            return best_approximation(weight, rank)
        left, right = (torch.randn(side, rank, generator=generator, device="cpu") for side in weight.shape)
        begun: Tensor = (left @ right.mT).to(weight)
        return begun.mul_(weight.norm() / begun.norm())

    def begin(self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
        """Before the first step."""
        self.optimizer, self.scheduler = optimizer, scheduler
        if self._moment == 0:
            self._factorize()

    def _factorize(self) -> None:
        if self.start.trains != "factors":
            return
        factorize(
            self.model,
            self.optimizer,
            ranks=self._ranks,
            truncation="plain",
            gain=self.start.gain,
            factor_lr=self.start.factor_rate,
            scheduler=self.scheduler,
        )
        self.meter.model_changed()

    def after_step(self, step: int) -> None:
        """`step` steps have been made, from 1."""
        if step == self._moment:
            self._factorize()
        if self.start.trains == "cut":
            for name, layer in self._layers.items():
                weight = matrix_of(layer).detach()
                weight.copy_(best_approximation(weight, self._rank(name)))
        if step == self._early:
            self.numbers["early"] = held_out_loss(self.model, self.data.validation)

    def sizes(self) -> dict[str, float]:
        """Effective rank of the MLP matrices as they are now: the mean, and that of the first."""
        ranks = [_effective_rank(self.model.get_submodule(name)) for name in self._names]
        return {"effective_rank": fmean(ranks), "first_effective_rank": ranks[0]}


def best_approximation(weight: Tensor, rank: int) -> Tensor:
    """Of a rank, in the Frobenius norm (Eckart and Young 1936); computed in float64."""
    left, values, right = plain(exact(weight)).truncated(rank)
    return ((left * values) @ right).to(weight)


def _effective_rank(layer: nn.Module) -> float:
    """Of the matrix that a layer multiplies by."""
    weight = layer.exact_weight() if isinstance(layer, FactoredLayer) else matrix_of(layer).double()
    return float(effective_rank(torch.linalg.svdvals(weight.detach()).cpu().numpy()))
