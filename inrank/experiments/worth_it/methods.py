"""What each arm does to the model: before the first step, between two steps, and after one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrank.demand import factorize, narrow, plan_widths
from inrank.demand.calibration import sides
from inrank.demand.factor_groups import split_off
from inrank.experiments.worth_it.arms import Arm
from inrank.experiments.worth_it.costs import Meter
from inrank.experiments.worth_it.data import backward
from inrank.gpt2.models import TARGETS
from inrank.growth import RankController, initialize_from_gradient
from inrank.layers import convert, feedforwards_of, growing_layers_of, kind_of, layers_of, matrix_of
from inrank.reproduction.pool import FINISHED_FILE
from inrank_monitor.matrices import glob


@dataclass
class Method:
    """An arm at work on one model.

    Attributes:
        arm: which.
        model: a fresh dense GPT-2.
        settings: of the training.
        calibration: batches, of the training text.
        meter: is told what costs something beside the steps.
        runs: where the trainings lie that this one needs.
        optimizer: once there is one.
        scheduler: of it.
        numbers: what the arm has to tell at the end.
        moment: the step after which the model changes.
    """

    arm: Arm
    model: nn.Module
    settings: Mapping[str, Any]
    calibration: list[Tensor]
    meter: Meter
    runs: Path
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: torch.optim.lr_scheduler.LambdaLR = field(init=False)
    numbers: dict[str, float] = field(default_factory=dict)
    _controller: RankController | None = None

    def __post_init__(self) -> None:
        self._shapes = {name: sides(layer) for name, layer in dense_mlps(self.model).items()}
        self.moment = max(1, round((self.arm.after or 0) * self.settings["steps"]))

    @property
    def last_step(self) -> int | None:
        """The moment, where nothing but the widths is asked for; None for all steps."""
        return self.moment if self.arm.kind == "widths" else None

    def shape_model(self) -> None:
        """Before the optimizer is made."""
        arm, settings = self.arm, self.settings
        if arm.kind == "narrow":
            narrow(self.model, self._widths())
        elif arm.kind in ("inrank", "inrank-efficient"):
            convert(
                self.model, TARGETS, initial_rank=2, buffer_rank=settings["buffer_rank"], seed=int(settings["seed"])
            )
            initialize_from_gradient(self.model, self._first_backward)

    def _widths(self) -> list[int]:
        """Hidden units of each block, as many weights as the budget allows."""
        assert self.arm.budget is not None
        if self.arm.allocation == "uniform":
            return [int(self.arm.budget * block.width) for block in feedforwards_of(self.model)]
        planned = json.loads((self.runs / self.settings["widths_from"] / FINISHED_FILE).read_text(encoding="utf-8"))
        numbers = planned["numbers"]
        self.meter.multiply_adds += numbers["multiply_adds"]  # a narrow model begins when the plan is paid for
        self.meter.seconds += numbers["seconds"]
        return [int(numbers[name]) for name in numbers if name.startswith(f"width {self.arm.budget:g} ")]

    def _first_backward(self) -> None:
        mode = self.model.training
        self.model.eval()
        backward(self.model, self.calibration[0])
        self.model.train(mode)

    def begin(self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
        """Before the first step."""
        self.optimizer, self.scheduler = optimizer, scheduler
        if self.arm.kind == "fixed":
            factorize(self.model, optimizer, targets=TARGETS, budget=self.arm.budget, allocation="uniform")
            self.meter.decompositions(self._shapes.values(), weighted=False)
        elif self.arm.kind in ("inrank", "inrank-efficient"):
            self._controller = RankController(
                self.model, optimizer, every=self.settings["every"], seed=int(self.settings["seed"])
            )

    def after_step(self, step: int) -> None:
        """`step` steps have been made, from 1."""
        if self._controller is not None:
            known = len(self._controller.history)
            self._controller.step()
            if len(self._controller.history) > known:
                self.meter.model_changed()
        if step != self.moment or not self.arm.after:
            return
        change = {
            "dense": self._raise_rate,
            "inrank-efficient": self._drop_initial_weights,
            "low-rank": self._factorize,
            "pruned": self._prune,
            "widths": self._plan,
        }[self.arm.kind]
        change()
        self.meter.model_changed()

    def _raise_rate(self) -> None:
        weights = [layer.weight for layer in dense_mlps(self.model).values()]
        split_off(self.optimizer, weights, self.arm.factor_rate, [self.scheduler])  # type: ignore[arg-type]

    def _drop_initial_weights(self) -> None:
        assert self._controller is not None
        self._controller.detach()
        self._controller = None
        factorize(self.model, self.optimizer)
        self.meter.decompositions(self._shapes.values(), weighted=False)

    def _factorize(self) -> None:
        assert self.arm.allocation is not None
        report = factorize(
            self.model,
            self.optimizer,
            targets=TARGETS,
            budget=self.arm.budget,
            allocation=self.arm.allocation,
            calibration=self.calibration,
            batch_loss=self.meter.batch_loss,
            factor_lr=self.arm.factor_rate,
            scheduler=self.scheduler,
        )
        self._charge(weighted=True)
        assert report.loss_before is not None
        assert report.loss_after is not None
        self.numbers["jump"] = report.loss_after - report.loss_before

    def _prune(self) -> None:
        assert self.arm.budget is not None
        plan = plan_widths(
            self.model, self.calibration, self.arm.budget, order="units", batch_loss=self.meter.batch_loss
        )
        narrow(self.model, plan, self.optimizer)
        self._charge(weighted=False)

    def _plan(self) -> None:
        for budget in self.settings["budgets"]:
            plan = plan_widths(self.model, self.calibration, budget, batch_loss=self.meter.batch_loss)
            self.numbers |= {f"width {budget:g} {name}": width for name, width in plan.widths.items()}
        self._charge(weighted=True)

    def _charge(self, *, weighted: bool) -> None:
        self.meter.covariances(self._shapes.values(), len(self.calibration))
        self.meter.decompositions(self._shapes.values(), weighted=weighted)

    def sizes(self) -> dict[str, float]:
        """The MLP matrices as they are now: `mlp_share` of their weights, and a rank or a number of units each."""
        factored, dense = layers_of(self.model), dense_mlps(self.model)
        left = sum(layer.rank * (layer.rows + layer.cols) for layer in factored.values())
        left += sum(layer.initial_weight.numel() for layer in growing_layers_of(self.model).values())  # type: ignore[union-attr]
        left += sum(matrix_of(layer).numel() for layer in dense.values())
        found: dict[str, float] = {f"rank {name}": layer.rank for name, layer in factored.items()}
        if dense:
            found = {f"units {block.name}": block.width for block in feedforwards_of(self.model)}
        return {"mlp_share": left / sum(rows * cols for rows, cols in self._shapes.values()), **found}


def dense_mlps(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a GPT-2's MLPs that are dense, in the model's order."""
    chosen = glob(TARGETS)
    return {name: each for name, each in model.named_modules() if chosen.fullmatch(name) and kind_of(each) == "Conv1D"}
