"""Spectra of weights that lie on an accelerator: the device makes Gram matrices, the host solves them beside the loop.

All that concerns the device is queued by the loop's thread on its current stream, one matrix after the other, so that
the weights are those that the step left, and the device holds one matrix's worth more than before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from inrank_monitor.spectra import (
    Staging,
    bytes_of,
    gram_matrix,
    grams_of_product,
    has_float64,
    singular_values,
    singular_values_of_gram,
    singular_values_of_grams,
    singular_values_of_product,
    subtract,
)
from inrank_monitor.tracking.measuring import Measuring

_R = TypeVar("_R")
Solve = Callable[[list[Tensor]], Tensor]


def begin_update(now: Tensor, start: Tensor, staging: Staging) -> tuple[list[Tensor], Solve]:
    """What the host needs of W_t − W0 (rows, cols) for all its singular values, and how it finds them.

    The device subtracts some columns at a time, in float64: it never holds the update.

    Args:
        now: W_t, on a device that multiplies in float64.
        start: W0, there or on the host.
        staging: through which it goes there.
    """
    wide, first = (value if value.shape[0] <= value.shape[1] else value.mT for value in (now, start))

    def take_away(columns: Tensor, place: int) -> None:
        part = first[:, place : place + columns.shape[1]]
        if part.stride(1) != 1:  # as it lies in memory
            part, columns = part.mT, columns.mT
        if part.device.type == "cpu":
            staging.subtract(columns, part)
        else:
            subtract(columns, part.to(columns.device))

    return [gram_matrix(wide, take_away)], lambda held: singular_values_of_gram(held[0])


def begin_whole_update(update: Tensor) -> tuple[list[Tensor], Solve]:
    """The same of an update that the host multiplies too."""
    return [update.contiguous()], lambda held: singular_values(held[0])


def begin_product(left: Tensor, right: Tensor, moved: bool) -> tuple[list[Tensor], Solve]:
    """The same of U V; `moved`: of large factors that changed a little, whose Gram matrices have not the digits."""
    count = min(left.shape[0], *right.shape)
    if count == 0:  # no column yet: a zero update
        return [], lambda held: torch.zeros(1, dtype=torch.float64, device="cpu")
    if moved or not has_float64(left.device):
        method = "qr" if moved else "gram"
        factors = [left.contiguous(), right.contiguous()]
        return factors, lambda held: singular_values_of_product(held[0], held[1], method)  # type: ignore[arg-type]
    return list(grams_of_product(left, right)), lambda held: singular_values_of_grams(held[0], held[1], count)


def solve_later(measuring: Measuring, sources: Sequence[Tensor], solve: Callable[[list[Tensor]], _R]) -> Future[_R]:
    """Have the pool solve what is fetched from the device, beside the loop."""
    staging, answer, size = measuring.staging, Future[_R](), bytes_of(sources)

    def then(held: list[Tensor]) -> None:
        def run() -> _R:
            try:
                return solve(held)
            finally:
                held.clear()
                staging.room.give_back(size)

        measuring.pool.submit(run, answer)

    staging.fetch(sources, then)
    return answer
