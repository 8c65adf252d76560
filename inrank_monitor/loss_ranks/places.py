"""Where the truncated update of a matrix is put into the live model, and how the model gets its own value back.

In place, into the memory that the weight has: whatever else looks at that memory (tied weights, a captured graph, a
flattened buffer) sees it too. Not through the Parameter but through `.data`, so that no version counter rises: autograd
and the tracker see weights that nobody has touched, which they are again in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from inrank_monitor.loss_ranks.directions import Directions, directions, left_vectors
from inrank_monitor.loss_ranks.result import Size
from inrank_monitor.matrices import Adapter, InitialWeights, Matrix, is_sharded, since_start


class Place(Protocol):
    """One matrix in the live model.

    Attributes:
        name: of the matrix.
        size: of it.
        singular_values: of its update, descending, in float64 on the CPU.
    """

    name: str
    size: Size
    singular_values: Tensor

    def put(self, rank: int) -> None:
        """Let the weight be W0 + the leading `rank` directions of its update."""
        ...

    def restore(self) -> None:
        """Let it be what it was, to the bit."""
        ...


class Memory:
    """A part of a weight in place: a view of it, or, where it does not lie in one, the places of its entries.

    Args:
        whole: the weight as the model holds it.
        view: cuts the part out.
    """

    def __init__(self, whole: Tensor, view: Callable[[Tensor], Tensor]) -> None:
        whole = whole.data  # in-place changes of it raise no version counter of the Parameter's
        seen = view(whole)
        self._places: Tensor | None = None
        if seen.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            self._places = view(torch.arange(whole.numel(), device=whole.device).view(whole.shape)).contiguous()
        self._target = seen if self._places is None else whole
        self.before = seen.clone(memory_format=torch.contiguous_format)

    def write(self, values: Tensor) -> None:
        """Put values of the part's shape there."""
        if self._places is None:
            self._target.copy_(values)
        else:
            self._target.put_(self._places, values.to(self._target.dtype).contiguous())


class DensePlace:
    """A matrix whose weight is a tensor of the model.

    Args:
        matrix: the matrix.
        initial: W0.

    Raises:
        ValueError: it cannot be taken apart; see `why_not`.
    """

    def __init__(self, matrix: Matrix, initial: InitialWeights) -> None:
        whole = matrix.read()
        if is_sharded(whole):
            raise ValueError("it lies in shards on several processes (DTensor)")
        first = initial.of(matrix.parameter, whole.device)
        if first.shape != whole.shape:
            raise ValueError(f"it is {_sides(whole)} here, and W0 is {_sides(first)}")
        self.name = matrix.name
        self._memory = Memory(whole, matrix.view)
        now, start = self._memory.before, matrix.view(first)
        dtype = torch.float64 if torch.float64 in (now.dtype, start.dtype) else torch.float32
        self._first = start.to(now.dtype).contiguous()
        self._directions = directions(now.to(dtype) - start.to(dtype))
        self.singular_values = self._directions.singular_values
        self.size = Size(matrix.rows, matrix.cols, self._directions.full_rank)

    def put(self, rank: int) -> None:
        """See `Place`."""
        self._memory.write(self._truncated(rank))

    def _truncated(self, rank: int) -> Tensor:
        found: Directions = self._directions
        if rank >= found.full_rank:
            return self._memory.before
        if rank == 0:
            return self._first
        if 2 * rank <= found.full_rank:
            return self._first.to(found.left.dtype) + found.leading(rank)
        # what is left out is the smaller product
        return self._memory.before.to(found.left.dtype) - found.left[:, rank:] @ found.right[rank:]

    def restore(self) -> None:
        """See `Place`."""
        self._memory.write(self._memory.before)


class FactorPlace:
    """A matrix whose update is a product of factors of its own: the left one is projected on the leading directions.

    U_r U_rᵀ (L R) is the update's leading part, and (U_r U_rᵀ L) R has the factors' own shapes; R may be shared.

    Args:
        matrix: the matrix.
        held: the tensor that holds the left factor, as (rows, rank) where the whole parameter's rows are.

    Raises:
        ValueError: it cannot be taken apart.
    """

    def __init__(self, matrix: Matrix, held: Tensor) -> None:
        left, right = (factor.detach() for factor in matrix.module.update_factors())  # type: ignore[operator]
        left, right = matrix.cut(left, right)
        self.name = matrix.name
        self._memory = Memory(held, matrix.view)
        self._vectors, self.singular_values = left_vectors(left, right)
        self._vectors = self._vectors.to(left.device)
        self.size = Size(matrix.rows, matrix.cols, min(matrix.rows, matrix.cols, left.shape[1]))

    def put(self, rank: int) -> None:
        """See `Place`."""
        before = self._memory.before
        if rank >= self.size.full_rank:
            self._memory.write(before)
            return
        vectors = self._vectors[:, :rank]
        self._memory.write(vectors @ (vectors.mT @ before.to(vectors.dtype)))

    def restore(self) -> None:
        """See `Place`."""
        self._memory.write(self._memory.before)


def place_of(matrix: Matrix, initial: InitialWeights) -> Place:
    """Where the truncated update of this matrix is put.

    Raises:
        ValueError: it cannot be put anywhere; the message names the matrix and says why.
    """
    try:
        if isinstance(matrix.module, Adapter):
            return _of_adapter(matrix, matrix.module, initial)
        if matrix.in_factors:
            return FactorPlace(matrix, _own_left(matrix))
        if not _is_plain(matrix):
            raise ValueError("it is computed from other parameters (a parametrization, weight_norm, pruning)")
        return DensePlace(matrix, initial)
    except ValueError as error:
        raise ValueError(f"{matrix.name} cannot be truncated: {error}") from error


def _is_plain(matrix: Matrix) -> bool:
    return matrix.attribute in matrix.module._parameters  # type: ignore[union-attr]


def _own_left(matrix: Matrix) -> Tensor:
    """The layer's own left factor, up to a scale: `used_factors` where it has that."""
    module = matrix.module
    shown = module.used_factors if hasattr(module, "used_factors") else module.update_factors
    left: Tensor = shown()[0]  # type: ignore[operator]
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    if left.untyped_storage().data_ptr() not in own:
        raise ValueError("its layer shows factors that are no part of its Parameters (used_factors() may give them)")
    return left


def _of_adapter(matrix: Matrix, adapter: Adapter, initial: InitialWeights) -> Place:
    left, right = adapter.update_factors()
    _, _, moved = since_start(left, right, initial.of(matrix.parameter, left.device))
    if moved:
        raise ValueError("its adapter was not zero at the start")
    raise ValueError("adapters come later")


def _sides(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "one number"
