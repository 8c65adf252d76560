"""What an optimizer must be told when ranks change: columns that are new, parameters that are gone.

Columns that have never been used have zero state, so nothing has to be carried when a rank grows. But Adam corrects its
averages by the step counter of the whole parameter: a column whose second moment begins at zero at step 1000 would move
by up to 5.2 times the learning rate (β₂ = .999), 6.6 times at step 10000. `FreshColumns` lifts the second moment of
young columns just as far as is needed for no entry to move by more than the learning rate.

References:
    Kingma and Ba 2015, Adam, section 2.1: a step is about the learning rate at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from inrank.growth.young_columns import Young, bound_young
from inrank.layers import FactoredLayer, InRankLinear
from inrank_monitor.tracking import untraced_hook

INSTEAD = "give the optimizer inside, and call step() after each of the wrapper's steps"


def check_holds(optimizer: Optimizer, layers: Mapping[str, FactoredLayer]) -> None:
    """Raise a ValueError that names the first factor that the optimizer does not train."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, layer in layers.items():
        for factor in ("U", "V"):
            if id(getattr(layer, factor)) not in held:
                raise ValueError(
                    f"optimizer does not hold '{name}.{factor}': make the optimizer after inrank.convert, "
                    "from the converted model's parameters"
                )


class FreshColumns:
    """Keeps the updates of young columns of U and V within the learning rate, under Adam and AdamW.

    A column is young for 1/(1 − β₂) steps, the memory of the second moment. Each step before the update, v of its
    entries is raised to where |m̂| ≤ √v̂; entries that have enough already are left alone. No synchronisation; other
    optimizers, whose states have no `exp_avg_sq`, are left alone.
    """

    def __init__(self, optimizer: Optimizer, layers: Mapping[str, InRankLinear]) -> None:
        self._layers = dict(layers)
        self._births: dict[str, list[tuple[int, int]]] = {}  # first column, step of birth; columns follow each other
        self.step = 0
        self._handle: RemovableHandle | None = None
        self.follow(optimizer)

    def born(self, name: str, first: int) -> None:
        """From `first` on, the used columns of a layer are new."""
        self._births.setdefault(name, []).append((first, self.step))

    def state_dict(self) -> dict[str, Any]:
        """Steps and births."""
        return {"step": self.step, "births": {name: list(births) for name, births in self._births.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up `state_dict()`."""
        self.step = state["step"]
        self._births = {name: [(first, step) for first, step in births] for name, births in state["births"].items()}

    def follow(self, optimizer: Optimizer) -> None:
        """The loop goes on with this one."""
        self.remove()
        self._optimizer = optimizer
        self._handle = optimizer.register_step_pre_hook(untraced_hook(self._before_step))

    def remove(self) -> None:
        """Let go of the optimizer."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is not self._optimizer:  # a copy of it, which has taken the hook with it
            return
        self.step += 1
        if not self._births:
            return
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        young: list[Young] = []
        for name in list(self._births):
            layer = self._layers[name]
            if not isinstance(layer, InRankLinear):  # factorized since: all its state is new
                del self._births[name]
                continue
            for parameter, axis in ((layer.U, 1), (layer.V, 0)):
                group = groups.get(id(parameter))
                if group is None or "betas" not in group or parameter.grad is None:
                    continue
                first = self._first_young(name, float(group["betas"][1]))
                state = optimizer.state.get(parameter, {})
                if first is not None and "exp_avg_sq" in state and isinstance(state.get("step"), Tensor):
                    young.append(Young(parameter, group, axis, first, layer.used))
            if not self._births[name]:
                del self._births[name]
        bound_young(optimizer, young)

    def _first_young(self, name: str, beta2: float) -> int | None:
        """The first of the young columns; births that are too long ago are forgotten."""
        memory = 1 / max(1 - beta2, 1e-6)  # steps
        self._births[name] = [(first, step) for first, step in self._births[name] if self.step - step <= memory]
        return min((first for first, _ in self._births[name]), default=None)


def replace_parameters(
    optimizer: Optimizer, new: Mapping[nn.Parameter, nn.Parameter | Sequence[nn.Parameter] | None]
) -> None:
    """Put new parameters where the old ones were, one or several; None takes the old one out.

    Their state is dropped, so that Adam begins them anew, bias correction and all: after a change of basis momentum
    belongs to coordinates that no longer exist. The groups stay, so schedulers do not notice.
    """
    by_id = {id(old): parameter for old, parameter in new.items()}
    for group in optimizer.param_groups:
        swapped: list[nn.Parameter] = []
        for parameter in group["params"]:
            instead = by_id.get(id(parameter), parameter)
            swapped += [] if instead is None else [instead] if isinstance(instead, nn.Parameter) else list(instead)
        group["params"] = swapped
    for old in new:
        optimizer.state.pop(old, None)
