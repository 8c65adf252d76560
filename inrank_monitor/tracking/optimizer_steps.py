"""Which calls of which optimizer's `step` are the training's steps.

All optimizers of the process are listened to, since a loop may go on with another than the one that was given: made
anew for a second phase, or wrapped. Copies and pickles of an optimizer carry nothing along.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from inrank_monitor.spectra import is_capturing
from inrank_monitor.tracking.optimizers import may_have_skipped, own_steps, was_skipped
from inrank_monitor.tracking.untraced import untraced

_FIRST_PATIENCE, _PATIENCE = 200, 10  # steps of the others: before the first count, and in longest gaps so far


class Listener(Protocol):
    """Who is told of the steps."""

    def before_step(self, optimizer: Optimizer) -> None:
        """A step begins, of an optimizer that holds parameters of the model."""
        ...

    def after_steps(self, count: int) -> None:
        """So many steps have ended, all but the last of them earlier than now."""
        ...

    def optimizer_changed(self, optimizer: Optimizer, message: str) -> None:
        """From now on the steps of another optimizer count."""
        ...

    def failed(self, error: Exception) -> None:
        """An error of ours, inside somebody's `optimizer.step()`."""
        ...


class _Role(Enum):
    COUNTS, WAITS, FOREIGN = "its steps are counted", "given, but not the last", "holds nothing of ours"


class OptimizerSteps:
    """Counts the steps of one training, whoever takes them.

    The last of the given optimizers counts, and any other that holds its parameters. The step of one inside another's
    ends with the outer one's. What steps in the backward pass, one optimizer a parameter, makes one step together, when
    the pass ends. If the last of several stops, another's steps count.

    Args:
        optimizers: given, in the order in which the loop steps them; none: nothing is counted.
        watched: ids of the parameters that the model has now; asked when an unknown optimizer steps.
        listener: lives at least as long as the optimizers that count; when it goes, so do the hooks.

    Attributes:
        counts: whether any optimizer was given.
    """

    def __init__(self, optimizers: Sequence[Optimizer], watched: Callable[[], set[int]], listener: Listener) -> None:
        self._watched, self._listener = watched, weakref.ref(listener)
        self._given = [weakref.ref(optimizer) for optimizer in optimizers]
        self._roles: dict[int, tuple[weakref.ref[Optimizer], _Role, int]] = {}  # by id; with parameters held
        self._since: dict[int, int] = {}  # steps since the last count, of those that wait
        self._held = {id(parameter) for parameter in _parameters(optimizers[-1])} if optimizers else set()
        self._open: list[int] = []  # optimizers, by id, whose step has begun and not ended
        self._inner: bool | None = None  # whether an optimizer inside the open one took its step
        self._backward = -1  # the pass in which a step has been taken already
        self._longest_gap = 0
        self.counts = bool(optimizers)
        self._own = (
            (own_steps(optimizers[-1]) or 0) if optimizers else 0
        )  # of the last one, less what was counted since
        self._unsure = False  # whether any of these may have been left out, on a GPU
        self._kept = [_keep(listener, optimizer) for optimizer in optimizers[-1:]]
        _listen(self)

    def remove(self) -> None:
        """Listen no more."""
        _listening[:] = [reference for reference in _listening if reference() not in (self, None)]
        for reference in self._kept:
            if (kept := reference()) is not None:
                kept.let_go(now=not self._open)

    def before(self, optimizer: Optimizer) -> None:
        """A step of any optimizer begins."""
        if (listener := self._present()) is None or is_capturing():
            return
        try:
            if self._role(optimizer) is _Role.FOREIGN:
                return
            self._close(optimizer)  # a step that an exception ended never told
            self._open.append(id(optimizer))
            if len(self._open) == 1:
                self._inner = None
                listener.before_step(optimizer)
        except Exception as error:
            listener.failed(error)

    def after(self, optimizer: Optimizer) -> None:
        """A step of any optimizer has ended."""
        if (listener := self._present()) is None or not self.counts or is_capturing():  # which takes no step
            return
        try:
            role = self._role(optimizer)
            if role is not _Role.FOREIGN:
                self._ended(optimizer, role, listener)
        except Exception as error:
            listener.failed(error)

    def _ended(self, optimizer: Optimizer, role: _Role, listener: Listener) -> None:
        self._close(optimizer)
        taken = not was_skipped(optimizer)
        if self._open:  # inside another's
            self._inner = bool(self._inner) or taken
            return
        taken = taken if self._inner is None else self._inner
        self._inner = None
        if not taken:
            return
        if (backward := torch._C._current_graph_task_id()) != -1:
            if backward != self._backward:
                self._backward = backward
                torch.autograd.Variable._execution_engine.queue_callback(self._backward_ended)
            return
        if role is _Role.COUNTS:
            if optimizer is self._given[-1]():
                self._own += 1
                self._unsure |= may_have_skipped(optimizer)
            if self._since:
                self._longest_gap = max(self._longest_gap, *self._since.values())
                self._since.clear()
            listener.after_steps(1)
        else:
            self._wait(optimizer, listener)

    def counted_too_many(self) -> int:
        """How many of the counted steps a GradScaler had left out on a GPU, by the optimizer's own counter.

        It waits for the GPU if that may be any: a snapshot asks it, not a step.
        """
        optimizer = self._given[-1]() if self._given and self._unsure else None
        if optimizer is None or (own := own_steps(optimizer)) is None:
            return 0
        too_many, self._unsure = max(self._own - own, 0), False
        self._own -= too_many
        return too_many

    def _backward_ended(self) -> None:
        self._backward = -1
        if (listener := self._present()) is not None:
            listener.after_steps(1)

    def _wait(self, optimizer: Optimizer, listener: Listener) -> None:
        """Another of the given ones has stepped; if that goes on without the last one, its steps count."""
        count = self._since[id(optimizer)] = self._since.get(id(optimizer), 0) + 1
        if count < (_PATIENCE * self._longest_gap or _FIRST_PATIENCE):
            return
        self._since.clear()
        for other, (reference, role, size) in self._roles.items():
            if role is _Role.COUNTS:
                self._roles[other] = reference, _Role.WAITS, size
        self._count_too(optimizer)
        kind = type(optimizer).__name__
        listener.optimizer_changed(
            optimizer,
            f"{count} steps of a {kind} without one of the last optimizer given to attach: the {kind}'s count now",
        )
        listener.after_steps(count)

    def _role(self, optimizer: Optimizer) -> _Role:
        known = self._roles.get(id(optimizer))
        if known is not None and known[0]() is optimizer and known[1] is not _Role.FOREIGN:
            return known[1]
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        if known is not None and known[0]() is optimizer and known[2] == size:
            return known[1]
        given = [reference() for reference in self._given]
        role = _Role.FOREIGN
        if any(optimizer is one for one in given):
            role = _Role.COUNTS if optimizer is given[-1] else _Role.WAITS
        else:
            waiting = {id(one) for other in given[:-1] if other is not None for one in _parameters(other)}
            own = {id(parameter) for parameter in _parameters(optimizer)}
            if own & ((self._watched() - waiting) | self._held):
                role = _Role.COUNTS
        self._roles[id(optimizer)] = weakref.ref(optimizer), role, size
        if role is _Role.COUNTS and given and optimizer is not given[-1]:
            self._count_too(optimizer)
            kind = type(optimizer).__name__
            if (listener := self._listener()) is not None:
                listener.optimizer_changed(
                    optimizer,
                    f"another optimizer, a {kind}, trains these parameters: its steps count like those of the one "
                    "given to attach",
                )
        return role

    def _count_too(self, optimizer: Optimizer) -> None:
        own = _parameters(optimizer)
        self._roles[id(optimizer)] = weakref.ref(optimizer), _Role.COUNTS, len(own)
        self._held |= {id(parameter) for parameter in own}
        if (listener := self._listener()) is not None:
            self._kept.append(_keep(listener, optimizer))

    def _close(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._open:
            del self._open[self._open.index(id(optimizer)) :]

    def _present(self) -> Listener | None:
        listener = self._listener()
        if listener is None:
            self.remove()
        return listener


class _Kept:
    """A hook that does nothing but hold whoever listens, for as long as the optimizer lives: nobody else may."""

    def __init__(self, listener: Listener, optimizer: Optimizer) -> None:
        self.listener: Listener | None = listener
        self.handle = optimizer.register_step_post_hook(self)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Nothing."""

    def let_go(self, now: bool) -> None:
        """Hold it no more; the hook goes too, unless torch is calling the optimizer's hooks just now."""
        self.listener = None
        if now:
            self.handle.remove()


def _keep(listener: Listener, optimizer: Optimizer) -> weakref.ref[_Kept]:
    return weakref.ref(_Kept(listener, optimizer))


# One pair of hooks for all, which stays: torch runs over its hooks, and may meet a collection of garbage meanwhile.
_listening: list[weakref.ref[OptimizerSteps]] = []


@cache
def _hook_once() -> None:
    @untraced
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for reference in tuple(_listening):
            if (steps := reference()) is not None:
                steps.before(optimizer)

    @untraced
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for reference in tuple(_listening):
            if (steps := reference()) is not None:
                steps.after(optimizer)

    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)


def _listen(steps: OptimizerSteps) -> None:
    _hook_once()
    _listening[:] = [reference for reference in _listening if reference() is not None]
    _listening.append(weakref.ref(steps))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
