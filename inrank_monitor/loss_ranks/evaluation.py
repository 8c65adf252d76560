"""The caller's loss at ranks of one's choice, counted, and the model as it was afterwards, whatever happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrank_monitor.loss_ranks.interrupts import HeldSignals
from inrank_monitor.loss_ranks.places import Place
from inrank_monitor.loss_ranks.surroundings import Surroundings

Loss = Callable[[], Any]


class Evaluation:
    """Evaluates the loss with truncated updates; a context, on leaving which the model is what it was.

    Args:
        model: the live model.
        places: of its matrices.
        loss: the caller's, of no argument; evaluated without gradients, always from the same random state.

    Attributes:
        count: evaluations so far.
        told: called after each.
    """

    def __init__(
        self, model: nn.Module, places: Sequence[Place], loss: Loss, told: Callable[[], object] = lambda: None
    ) -> None:
        self._model, self._places, self._loss, self.told = model, places, loss, told
        self._full = np.array([place.size.full_rank for place in places], dtype=np.int64)
        self._put = self._full.copy()
        self._signals = HeldSignals()
        self.count = 0

    def __enter__(self) -> Evaluation:
        self._surroundings = Surroundings(self._model)
        self._signals.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            for index in np.flatnonzero(self._put != self._full).tolist():
                self._places[index].restore()
            self._surroundings.restore()
        finally:
            self._signals.__exit__()

    @torch.no_grad()
    def at(self, ranks: np.ndarray) -> float:
        """The loss at these ranks, one a matrix; infinity where it is not finite.

        Raises:
            TypeError: it is no number.
        """
        for index in np.flatnonzero(ranks != self._put).tolist():
            self._put[index] = -1  # until it is whole
            self._places[index].put(int(ranks[index]))
            self._put[index] = ranks[index]
        self.count += 1
        try:
            with self._signals.let_through():
                value = number(self._loss())
        finally:
            self._surroundings.restore()
        self.told()
        return value if math.isfinite(value) else math.inf


def number(value: Any) -> float:
    """What the loss returned, as a float.

    Raises:
        TypeError: it is no number.
    """
    several = isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex())
    if value is None or several or isinstance(value, str | bytes | bool | complex):
        raise TypeError(f"loss() must return one number, got {_described(value)}")
    if not isinstance(value, Tensor) and getattr(value, "size", None) == 1 and hasattr(value, "item"):
        value = value.item()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"loss() must return one number, got {_described(value)}") from None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    return f"{value!r:.80}" if value is None or isinstance(value, str | bool | complex) else type(value).__name__
