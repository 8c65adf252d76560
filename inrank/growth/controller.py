"""RankController: between optimizer steps, on schedule, spectrum -> rule -> grow. Wiring only.

A check reads the factors, never the dense product, and costs one small eigenproblem a layer; between checks a step
costs nothing. In a distributed training rank 0 decides and tells the others, and the new columns come from a generator
of the controller's own, so ranks and weights stay equal to the bit.

References:
    Zhao et al. 2023, arXiv:2306.11250, Algorithm 2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inrank.growth.dense_gradient import DenseGradient
from inrank.growth.new_columns import draw_columns
from inrank.growth.observing import observe
from inrank.growth.optimizer_state import INSTEAD, FreshColumns, check_holds
from inrank.growth.options import GrowthOptions, rule_of
from inrank.growth.processes import broadcast_integers, process_number
from inrank.growth.rule import ExplainedRatio, Observation, Rule
from inrank.layers import InRankLinear, check_whole, growing_layers_of, note_ranks
from inrank_monitor.matrices import unwrap
from inrank_monitor.ranks import Definition
from inrank_monitor.spectra import SpectrumPool, is_accelerator
from inrank_monitor.tracking import OptimizerSteps, untraced, unwrap_optimizer, weights_were_rewritten

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker

logger = logging.getLogger("inrank")


@dataclass(frozen=True)
class Growth:
    """One rank that grew: after which step, which layer, from where to where, g at the old rank before."""

    step: int
    name: str
    old_rank: int
    new_rank: int
    explained_ratio: float


class RankController:
    """Grows the ranks of a converted model while it trains.

    Args:
        model: converted by `inrank.convert`, and for a distributed training wrapped already: while the gradient of
            W0 is taken, DistributedDataParallel would take W0 for a parameter to train.
        optimizer: trains it; made after the conversion.
        threshold: α of the paper's rule.
        every: steps between checks, or a function step -> bool.
        definition: of the explained ratio, for the paper's rule.
        rule: another rule; see `inrank.growth_rule`. Then `threshold` and `definition` are not used.
        until: last step that may be checked (T of Algorithm 3); None for no end.
        gradient_steps: over how many steps the gradient is averaged for a rule that needs it.
        tracker: growths become its `rank_grown` events.
        seed: of the new columns.

    Attributes:
        step_count: optimizer steps seen.
        history: every growth so far.

    Raises:
        ValueError: nothing is converted, the model is sharded (FSDP), the optimizer does not hold a factor, an option
            out of range.

    References:
        Section 6 and appendix C of the paper: α = 0.9; `every` = 25 is ours ("each k iterations").
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        threshold: float = 0.9,
        every: int | Callable[[int], bool] = 25,
        definition: Definition = "paper",
        rule: Rule | None = None,
        until: int | None = None,
        gradient_steps: int = 8,
        tracker: SpectrumTracker | None = None,
        seed: int = 0,
    ) -> None:
        options = GrowthOptions(
            rule=rule_of(rule, threshold, definition),
            every=every,
            until=until,
            gradient_steps=gradient_steps,
            seed=seed,
        )
        self._begin(model, optimizer, options, tracker)

    @classmethod
    def with_options(
        cls, model: nn.Module, optimizer: Optimizer, options: GrowthOptions, tracker: SpectrumTracker | None = None
    ) -> Self:
        """The same from options that are checked already."""
        controller = cls.__new__(cls)
        controller._begin(model, optimizer, options, tracker)
        return controller

    def _begin(
        self, model: nn.Module, optimizer: Optimizer, options: GrowthOptions, tracker: SpectrumTracker | None
    ) -> None:
        self._options, self.rule = options, options.rule
        self._all_layers: dict[str, InRankLinear] = growing_layers_of(model)
        if not self._all_layers:
            raise ValueError("the model has no InRankLinear layer: call inrank.convert first")
        check_whole(self._all_layers, "grow it")
        without = [name for name, layer in self._all_layers.items() if layer.initial_weight is None]
        if options.needs_gradient and without:
            raise ValueError(f"the rule needs the gradient of W0: {without[0]!r} has none (initialization='kaiming')")
        self._optimizer = unwrap_optimizer(optimizer, INSTEAD)
        check_holds(self._optimizer, self._all_layers)
        self._model, self._tracker = model, tracker
        self._fresh = FreshColumns(self._optimizer, self._all_layers)
        self._gradient = DenseGradient(self._all_layers)
        self._pool = SpectrumPool()
        self._steps: OptimizerSteps | None = None
        self._gone: set[str] = set()
        self.step_count = 0
        self.history: list[Growth] = []
        self._watch_gradient()

    @property
    def _layers(self) -> dict[str, InRankLinear]:
        """Those that can grow; none after a factorization."""
        return {name: layer for name, layer in self._all_layers.items() if isinstance(layer, InRankLinear)}

    @property
    def ranks(self) -> dict[str, int]:
        """The present ranks by layer name."""
        return {name: layer.rank for name, layer in self._layers.items()}

    def attach(self) -> Self:
        """Let the optimizer's steps drive the controller, with no line in the loop."""
        if self._steps is None:
            self._steps = OptimizerSteps([self._optimizer], self._factors, self)
        return self

    def _factors(self) -> set[int]:
        return {id(factor) for layer in self._layers.values() for factor in (layer.U, layer.V)}

    def before_step(self, optimizer: Optimizer) -> None:
        """Nothing: the new columns look after themselves."""

    def after_steps(self, count: int) -> None:
        """So many steps have ended, the last of them now. The optimizer's hook calls it."""
        self.step_count += count
        if self._options.due(self.step_count):
            self.check()
        self._watch_gradient()

    def optimizer_changed(self, optimizer: Optimizer, message: str) -> None:
        """The loop goes on with another optimizer. Its hook calls it."""
        self._say("optimizer_changed", None, message)
        self._optimizer = optimizer
        self._fresh.follow(optimizer)

    def failed(self, error: Exception) -> None:
        """A check failed: the ranks are the training's own, so that it ends."""
        raise error

    @untraced
    def step(self) -> None:
        """Count one optimizer step, and check the ranks if they are due. Call it after `optimizer.step()`.

        Raises:
            RuntimeError: the controller is attached, and counts by itself.
        """
        if self._steps is not None:
            raise RuntimeError(f"step() at step {self.step_count}: the controller is attached and counts by itself")
        self.after_steps(1)

    def _watch_gradient(self) -> None:
        """Open or close the gradient's average for the checks of the next steps."""
        if not self._options.needs_gradient:
            return
        ahead = range(self.step_count + 1, self.step_count + 1 + self._options.gradient_steps)
        if not self._layers or not any(self._options.due(step) for step in ahead):  # none after a factorization
            self._gradient.close()
        elif not self._gradient.is_open:
            self._gradient.open()

    @torch.no_grad()
    def check(self) -> list[Growth]:
        """Ask the rule for every layer's rank now, and grow where it asks for more."""
        gradients = self._gradient.pop() if self._options.needs_gradient else {}
        layers = self._present()
        names = list(layers)
        wanted, ratios = [layers[name].rank for name in names], [float("nan")] * len(names)
        if process_number() == 0:
            here = any(is_accelerator(layers[name].U.device) for name in names)  # whose stream is this thread's
            seen = list(self._pool.map(lambda name: self._observe(name, gradients.get(name)), names, here))
            for place, observation in enumerate(seen):
                if observation is not None:
                    wanted[place] = self._ask(observation)
                    ratios[place] = self._ratio(observation)
        grown = []
        for name, rank, ratio in zip(names, broadcast_integers(wanted), ratios, strict=True):
            if rank > layers[name].rank:
                grown.append(self._grow(name, rank, ratio))
        if grown:
            note_ranks(self._model)
            weights_were_rewritten()
        self.history += grown
        return grown

    def _present(self) -> dict[str, InRankLinear]:
        """The layers that can grow and are still the model's: others may stand in their place by now."""
        there = {id(module) for module in unwrap(self._model).modules()}
        for name in self._layers:
            if id(self._layers[name]) not in there and name not in self._gone:
                self._gone.add(name)
                self._say("parameter_gone", name, f"{name} is no longer in the model: its rank stays as it is")
        return {name: layer for name, layer in self._layers.items() if name not in self._gone}

    def _observe(self, name: str, gradient: Tensor | None) -> Observation | None:
        if self._options.needs_gradient and gradient is None:  # no backward pass gave one
            return None
        seen = observe(name, self._all_layers[name], self.step_count, gradient)
        if seen is None:
            self._say("non_finite", name, "the factors or the gradient hold NaN or infinity: the rank stays")
        return seen

    def _ask(self, seen: Observation) -> int:
        answer = self.rule(seen)
        if isinstance(answer, bool) or not isinstance(answer, int | np.integer):
            raise TypeError(f"the rule must return an integer rank, got {answer!r} for {seen.name!r}")
        return max(seen.rank, min(int(answer), seen.max_rank))

    def _ratio(self, seen: Observation) -> float:
        """G at the present rank, by the rule's own definition if it is the paper's rule."""
        return (self.rule if isinstance(self.rule, ExplainedRatio) else ExplainedRatio()).ratio(seen)

    def _grow(self, name: str, rank: int, ratio: float) -> Growth:
        layer = self._all_layers[name]
        old, first = layer.rank, layer.used
        new_columns, new_rows = draw_columns(layer, rank, f"{self._options.seed} {name} {first}")
        layer.grow(rank, new_columns, new_rows)
        if layer.used > first:
            self._fresh.born(name, first)
        growth = Growth(self.step_count, name, old, rank, ratio)
        self._say("rank_grown", name, f"rank {old} -> {rank}, explained ratio {ratio:.3f}")
        return growth

    def _say(self, kind: str, name: str | None, message: str) -> None:
        logger.debug("step %d: %s: %s", self.step_count, name, message)
        if self._tracker is not None:
            self._tracker.event(kind, name, message)

    def detach(self) -> None:
        """Let go of the optimizer; the ranks stay as they are."""
        if self._steps is not None:
            self._steps.remove()
        self._steps = None
        self._fresh.remove()
        self._gradient.close()
        self._pool.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs beside the model's and the optimizer's state; torch.save it.

        JSON can hold it too, unless the rule needs the gradient.
        """
        state: dict[str, Any] = {
            "step_count": self.step_count,
            "ranks": self.ranks,
            "history": [asdict(growth) for growth in self.history],
            "fresh": self._fresh.state_dict(),
        }
        if self._options.needs_gradient:
            state["gradient"] = self._gradient.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up `state_dict()`; load the model's state first.

        Raises:
            ValueError: the state is of other layers, or the model's ranks are not those of the state.
        """
        if state["ranks"] != self.ranks:
            there, here = state["ranks"], self.ranks
            name = next(n for n in there | here if there.get(n) != here.get(n))
            raise ValueError(
                f"the state has rank {there.get(name)} for {name!r}, the model {here.get(name)}: "
                "load the model's state_dict before the controller's"
            )
        self.step_count = state["step_count"]
        self.history = [Growth(**entry) for entry in state["history"]]
        self._fresh.load_state_dict(state["fresh"])
        self._watch_gradient()
        if self._options.needs_gradient:
            self._gradient.load_state_dict(state["gradient"])
