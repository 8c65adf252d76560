"""What may be measured beside the update's spectrum, where `attach` is asked for it: W_t itself, and directions.

Of matrices that this process holds whole. The update is read and subtracted once more for the directions: who does not
ask for them pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from inrank_monitor.matrices import InitialWeights, Matrix
from inrank_monitor.spectra import (
    Spectrum,
    SpectrumMethod,
    Subspaces,
    leading_directions,
    leading_directions_of_product,
    turn,
)
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.update_spectra import Values, factors_since_start, on_accelerator, update_of

INTRUDERS, INTRUDER_COSINE = 10, 0.5  # arXiv:2410.21228


class Directions(NamedTuple):
    """One row of the table of directions; NaN or None where there is none.

    Attributes:
        since: the step of the snapshot before, from which they turned.
        left_overlap: mean cos² between the leading left subspaces then and now.
        right_overlap: of the right ones.
        left_angle: their largest principal angle, in degrees.
        right_angle: of the right ones.
        left_initial_overlap: mean cos² with W0's leading left subspace.
        right_initial_overlap: of the right ones.
        intruder_dimensions: leading left vectors of W_t that are like none of W0's.
    """

    since: int | None = None
    left_overlap: float = math.nan
    right_overlap: float = math.nan
    left_angle: float = math.nan
    right_angle: float = math.nan
    left_initial_overlap: float = math.nan
    right_initial_overlap: float = math.nan
    intruder_dimensions: int | None = None


@dataclass
class Beside:
    """What is asked for, and what is remembered of each matrix: vectors in float32 on the CPU.

    Attributes:
        weights: whether the spectrum of W_t is.
        directions: how many leading ones; None: none.
        method: how W_t's spectrum is taken.
    """

    weights: bool
    directions: int | None
    method: SpectrumMethod
    _last: dict[str, tuple[int, Subspaces]] = field(default_factory=dict, repr=False)
    _initial: dict[str, Subspaces | None] = field(default_factory=dict, repr=False)

    def begin_anew(self) -> None:
        """W0 is another one."""
        self._last.clear()
        self._initial.clear()

    def turned(self, matrix: Matrix, step: int, now: Subspaces | None) -> Directions:
        """How far the update's directions turned since the snapshot before; they are kept for the next."""
        before = self._last.get(matrix.name)
        if now is None:
            return Directions()
        self._last[matrix.name] = step, Subspaces(now.left.float(), now.right.float())
        if before is None:
            return Directions()
        left, right = turn(before[1].left, now.left), turn(before[1].right, now.right)
        return Directions(before[0], left.overlap, right.overlap, left.angle, right.angle)

    def initial(self, matrix: Matrix, initial: InitialWeights) -> Subspaces | None:
        """All left singular vectors of W0, rows × min(rows, cols) at most, and the leading right ones."""
        if matrix.name not in self._initial:
            assert self.directions is not None
            found = leading_directions(matrix.view(initial.of(matrix.parameter, torch.device("cpu"))).float())
            right = found and found.right[:, : count_of(matrix, self.directions)]
            self._initial[matrix.name] = found and Subspaces(found.left.float(), right.float())  # type: ignore[union-attr]
        return self._initial[matrix.name]


def count_of(matrix: Matrix, directions: int) -> int:
    """At most half of the short side: all directions of a side always span the same space."""
    return max(1, min(directions, min(matrix.rows, matrix.cols) // 2))


def measure_weights(measuring: Measuring, values: Values) -> dict[int, Spectrum]:
    """The spectrum of W_t of each dense matrix of this process, by place."""
    beside = measuring.beside
    if beside is None or not beside.weights:
        return {}
    places = [place for place in _there(measuring, values) if not measuring.matrices[place].in_factors]

    def measure(place: int) -> Spectrum:
        matrix = measuring.matrices[place]
        weight = matrix.view(values[matrix.parameter][0])
        wide = weight if weight.dtype == torch.float64 else weight.float()
        return beside.method.spectrum(wide)

    return dict(zip(places, measuring.pool.map(measure, places, _on_accelerator(measuring, values)), strict=True))


def measure_directions(measuring: Measuring, values: Values, step: int) -> dict[int, Directions]:
    """The directions of each matrix of this process, by place."""
    beside = measuring.beside
    if beside is None or beside.directions is None:
        return {}
    places = list(_there(measuring, values))

    def measure(place: int) -> Directions:
        matrix = measuring.matrices[place]
        return _directions(matrix, values[matrix.parameter], measuring.initial, beside, step)

    return dict(zip(places, measuring.pool.map(measure, places, _on_accelerator(measuring, values)), strict=True))


def _on_accelerator(measuring: Measuring, values: Values) -> bool:
    """Whether what is measured lies on a device: then only the loop's thread knows the stream that it is written on."""
    return any(on_accelerator(values[measuring.matrices[place].parameter]) for place in measuring.share.whole)


def _there(measuring: Measuring, values: Values) -> Iterable[int]:
    return (place for place in measuring.share.whole if values[measuring.matrices[place].parameter])


@torch.no_grad()
def _directions(
    matrix: Matrix, value: tuple[Tensor, ...], initial: InitialWeights, beside: Beside, step: int
) -> Directions:
    assert beside.directions is not None
    count = count_of(matrix, beside.directions)
    if matrix.in_factors:
        left, right, _ = factors_since_start(matrix, value[0], value[1], initial)
        return beside.turned(matrix, step, leading_directions_of_product(left, right, count))
    now = leading_directions(update_of(matrix, value[0], initial), count)
    row = beside.turned(matrix, step, now)
    start = beside.initial(matrix, initial)
    if now is None or start is None:
        return row
    weight = leading_directions(matrix.view(value[0]).float(), INTRUDERS)
    return row._replace(
        left_initial_overlap=turn(start.left[:, :count], now.left).overlap,
        right_initial_overlap=turn(start.right, now.right).overlap,
        intruder_dimensions=None if weight is None else intruder_dimensions(weight.left, start.left),
    )


def intruder_dimensions(leading: Tensor, initial: Tensor) -> int | None:
    """How many of the columns have no |cosine| of 0.5 with any column of W0's left vectors; None where W0 has none.

    References:
        Shuttleworth et al. 2024, LoRA vs full fine-tuning: an illusion of equivalence, arXiv:2410.21228; k = 10 and
        ε = 0.5 are those of its published code.
    """
    if initial.shape[1] == 0:
        return None
    nearest = (leading.float().mT @ initial.float()).abs().amax(dim=1)
    return int((nearest < INTRUDER_COSINE).sum())


def check_beside(beside: Mapping[str, object], sharded: bool, matrices: Iterable[Matrix]) -> None:
    """Raise a ValueError that names the argument where what is asked for cannot be measured.

    Args:
        beside: `of` and `directions`, as the run's options have them.
        sharded: whether a matrix lies in shards.
        matrices: all.
    """
    asked = [name for name, value in beside.items() if value is not None and value != ("update",)]
    for name in asked:
        if sharded:
            raise ValueError(
                f"{name}={beside[name]!r} needs whole matrices, and this model lies in shards (DTensor): leave it out, "
                "or measure its checkpoints"
            )
    if "of" in asked and all(matrix.in_factors for matrix in matrices):
        raise ValueError(
            f"of={beside['of']!r}: every watched matrix is held in factors (adapters), of which the update alone is "
            "measured"
        )
