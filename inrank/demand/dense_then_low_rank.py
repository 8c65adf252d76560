"""DenseThenLowRank: counts the steps of a loop and calls `inrank.factorize` once, when its moment has come.

Everything that can be wrong is looked for before the first step. In a distributed training process 0 looks at the ranks
and tells the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from torch import nn
from torch.optim import Optimizer

from inrank.demand.factorize import check_later, factorize
from inrank.demand.measured_ranks import MeasuredRanks
from inrank.demand.moment import At, Moment
from inrank.growth import INSTEAD, Factorization, Factorized, broadcast_integers, process_number
from inrank.layers import layers_of
from inrank_monitor.matrices import unwrap
from inrank_monitor.tracking import OptimizerSteps, untraced, unwrap_optimizer

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker

logger = logging.getLogger("inrank")


class DenseThenLowRank:
    """Factorizes a dense model in the midst of its training, once.

        moment = inrank.DenseThenLowRank(
            model, optimizer, at=0.25, total_steps=len(loader), budget=0.45, calibration=held_out
        )
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            moment.step()

    Args:
        model: dense, and not in DistributedDataParallel: give `model.module`, and wrap it anew where `step` returned a
            report.
        optimizer: trains it.
        at: an integer: after this step; a share in (0, 1) of `total_steps`; `"settled"`: when the ranks that `tracker`
            measures have settled, by the rule of `inrank.Settled`, of which one with other numbers may be given, too.
        total_steps: of the training; needed for everything but a step.
        every: steps between looks at the ranks.
        tracker: a `SpectrumTracker` of this model, or a `TrackerCallback` that will have one: gets the events.
        options: as for `inrank.factorize`: targets, ranks or budget, allocation, calibration, batch_loss, truncation,
            factor_lr, scheduler, gain, loss, ... `calibration` is iterated over when the moment has come.

    Attributes:
        step_count: optimizer steps seen.
        report: what the factorization did; None before.

    Raises:
        ValueError, TypeError: what `inrank.factorize` would refuse, an argument out of range or missing, `"settled"`
            without a tracker.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        at: At = 0.25,
        total_steps: int | None = None,
        every: int = 25,
        tracker: Any = None,
        **options: Any,
    ) -> None:
        self._moment = Moment(at, total_steps, every)
        if self._moment.rule is not None and tracker is None:
            raise ValueError("at='settled' looks at measured ranks: give tracker, what inrank_monitor.attach returned")
        self._model, self._given, self._tracker, self._options = model, optimizer, tracker, dict(options)
        self._optimizer = unwrap_optimizer(optimizer, INSTEAD)
        self._ranks: MeasuredRanks | None = None
        self._steps: OptimizerSteps | None = None
        if not layers_of(model):  # else a checkpoint's: `load_state_dict` says whether it is the right one
            self._ranks = MeasuredRanks(check_later(model, optimizer, options))
        self.step_count = 0
        self.report: Factorization | None = None

    def attach(self) -> Self:
        """Let the optimizer's steps drive it, with no line in the loop; attach a tracker before."""
        if self._steps is None:
            self._steps = OptimizerSteps([self._optimizer], self._parameters, self)
        return self

    def _parameters(self) -> set[int]:
        return {id(parameter) for parameter in unwrap(self._model).parameters()}

    @untraced
    def step(self) -> Factorization | None:
        """Count one optimizer step, and factorize if the moment has come. Call it after `optimizer.step()`.

        Returns:
            The report, at the one step at which it happened.

        Raises:
            RuntimeError: it is attached, and counts by itself.
        """
        if self._steps is not None:
            raise RuntimeError(f"step() at step {self.step_count}: this is attached and counts by itself")
        before = self.report
        self.after_steps(1)
        return self.report if before is None else None

    def before_step(self, optimizer: Optimizer) -> None:
        """Nothing. The optimizer's hook calls it."""

    def after_steps(self, count: int) -> None:
        """So many steps have ended, the last of them now. The optimizer's hook calls it."""
        self.step_count += count
        if self.report is None and (why := self._reason()):
            self._factorize(why)

    def optimizer_changed(self, optimizer: Optimizer, message: str) -> None:
        """The loop goes on with another optimizer. Its hook calls it."""
        self._say("optimizer_changed", message)
        self._given = self._optimizer = optimizer

    def failed(self, error: Exception) -> None:
        """A factorization failed: it is the training's own, so that it ends."""
        raise error

    def _reason(self) -> str:
        """Why now; empty: it is not the moment yet."""
        moment, step = self._moment, self.step_count
        if moment.rule is None:
            return f"after step {step}" if moment.step is not None and step >= moment.step else ""
        if not moment.is_look(step):
            return ""
        assert moment.total_steps is not None
        settled, seen = False, ""
        if process_number() == 0:
            steps, ranks = self._measured()
            spread = moment.rule.spread(steps, ranks, moment.total_steps)
            settled = moment.rule.is_settled(steps, ranks, moment.total_steps)
            told = "too few snapshots" if spread is None else f"energy rank {ranks[-1]:.1f}, it moved by {spread:.1%}"
            seen = f"step {step}: {told} in the last {moment.rule.window:.0%} of the steps"
            logger.debug(seen)
        if broadcast_integers([int(settled)])[0]:
            return f"ranks have settled; {seen}"
        return f"ranks have not settled, but this is the latest; {seen}" if step == moment.latest else ""

    def _measured(self) -> tuple[list[int], list[float]]:
        tracker = self._watching()
        if tracker is None or self._ranks is None:
            raise ValueError("at='settled': the tracker is not attached to this training's model")
        return self._ranks.read(tracker)

    def _watching(self) -> SpectrumTracker | None:
        """The tracker, or the one that a callback has by now."""
        found: SpectrumTracker | None = getattr(self._tracker, "tracker", self._tracker)
        return found

    def _factorize(self, why: str) -> None:
        if self._moment.rule is not None:
            self._say("factorizing", why)
        self.report = factorize(self._model, self._given, tracker=self._watching(), **self._options)
        logger.info("step %d: factorized (%s)\n%s", self.step_count, why, self.report)

    def _say(self, kind: str, message: str) -> None:
        logger.debug("step %d: %s: %s", self.step_count, kind, message)
        if (tracker := self._watching()) is not None:
            tracker.event(kind, None, message)

    def detach(self) -> None:
        """Let go of the optimizer; say so if the moment never came. Call it when training has ended."""
        if self._steps is not None:
            self._steps.remove()
        self._steps = None
        if self.report is None and self.step_count:
            message = f"the model is still dense after step {self.step_count}: {self._why_not()}"
            logger.warning(message)
            self._say("not_factorized", message)

    def _why_not(self) -> str:
        if self._moment.rule is None:
            return f"it was to be factorized after step {self._moment.step}"
        return "its ranks have not settled"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs beside the model's and the optimizer's state; JSON."""
        return {"step_count": self.step_count, "report": None if self.report is None else asdict(self.report)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up `state_dict()`, before the states of model and optimizer are loaded.

        A model that is dense, as at the start, becomes one of the same ranks, and its optimizer's parameters are
        exchanged, so that both states fit.

        Raises:
            ValueError: the model has other ranks than the state, or the state is of a dense model and it is not.
        """
        report = report_of(state["report"])
        here = {name: layer.rank for name, layer in layers_of(self._model).items()}
        if report is not None and not here:
            options = {name: self._options[name] for name in ("factor_lr", "scheduler") if name in self._options}
            factorize(self._model, self._given, ranks=report.ranks, **options)
        elif here != ({} if report is None else report.ranks):
            raise ValueError(f"the state is of ranks {report.ranks if report else 'none'}, the model has {here}")
        self.step_count, self.report = state["step_count"], report


def report_of(state: Mapping[str, Any] | None) -> Factorization | None:
    """A report from its own `dataclasses.asdict`, which may have been JSON meanwhile."""
    if state is None:
        return None
    layers = tuple(Factorized(**{**layer, "shape": tuple(layer["shape"])}) for layer in state["layers"])
    return Factorization(**{**state, "layers": layers, "reset": tuple(state["reset"])})
