"""How the truncated update of a matrix is put into the live model, and how the model gets its own value back.

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
from inrank_monitor.loss_ranks.instead import Instead
from inrank_monitor.loss_ranks.result import Size
from inrank_monitor.matrices import Matrix


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
    """A matrix whose truncated weight is put into a tensor that the model multiplies by.

    Args:
        matrix: the matrix.
        memory: where.
        update: ΔW, (rows, cols), in float32 or wider.
        first: W0, where it is known by itself; else it is what is there less the update.

    Raises:
        ValueError: the update is not finite.
    """

    def __init__(self, matrix: Matrix, memory: Memory, update: Tensor, first: Tensor | None = None) -> None:
        self.name, self._memory = matrix.name, memory
        self._directions = directions(update)
        self._first = memory.before.to(update.dtype) - update if first is None else first.contiguous()
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
        held: the tensor that holds the left factor of the whole parameter, a scale of its columns aside.
        left: that of the update itself.
        right: of it.

    Raises:
        ValueError: it cannot be taken apart.
    """

    def __init__(self, matrix: Matrix, held: Tensor, left: Tensor, right: Tensor) -> None:
        left, right = matrix.cut(left.detach(), right.detach())
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


class ReplacedPlace:
    """A matrix whose weight the layer computes: see `Instead`, whose value takes the truncated one.

    Args:
        dense: puts it there.
        instead: lets the layer have it.
    """

    def __init__(self, dense: DensePlace, instead: Instead) -> None:
        self.name, self.size, self.singular_values = dense.name, dense.size, dense.singular_values
        self._dense, self._instead = dense, instead

    def put(self, rank: int) -> None:
        """See `Place`."""
        self._dense.put(rank)
        self._instead.put()

    def restore(self) -> None:
        """See `Place`."""
        self._dense.restore()
        self._instead.remove()
