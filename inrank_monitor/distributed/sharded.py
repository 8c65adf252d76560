"""A matrix that lies in shards on several processes (DTensor: FSDP2, tensor parallel): its Gram matrix, never gathered.

Along the side that a Gram matrix sums over, the shards' Gram matrices add up. Where the shards cut the other side, the
processes first exchange pieces, so that each holds all rows of some columns: as much memory as its shard. Then one sum
of a small square. Uneven and empty shards, both sides cut, and meshes of several dimensions are all the same to it.

Every process calls the same functions for the same matrices in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from inrank_monitor.distributed.processes import Processes
from inrank_monitor.matrices import Matrix, local
from inrank_monitor.spectra import gram_matrix, scratch

_BANDS, _FEW, _ON_THE_WAY = 8, 4, 2


@dataclass(frozen=True)
class Sharding:
    """How one matrix lies on a mesh of processes.

    Attributes:
        mesh: (…) the processes' numbers. The first dimension counts meshes that hold the same matrix, of which each
            process sees only its own: data parallel replicas of a tensor parallel model, say.
        groups: one a mesh dimension.
        axes: one a mesh dimension: the side of the matrix that it cuts (0 rows, 1 columns), or None if it repeats it.
        sizes: (2, …) rows and columns of the piece that each process holds.
        place: of this process in the mesh.
        device: type of the device over which the mesh communicates.
    """

    mesh: np.ndarray
    groups: tuple[Any, ...]
    axes: tuple[int | None, ...]
    sizes: np.ndarray
    place: tuple[int, ...]
    device: str

    @property
    def number(self) -> int:
        """Of this process."""
        return int(self.mesh[self.place])

    def cut(self) -> list[int]:
        """The mesh dimensions over which the matrix is spread."""
        return [dimension for dimension, axis in enumerate(self.axes) if axis is not None]

    def is_first_copy(self) -> bool:
        """Whether this process's piece is of the mesh's first copy of the matrix."""
        return self.takes_part((0,) * len(self.axes))

    def owner(self, turn: int) -> tuple[int, ...]:
        """Place of the process that ends up with the matrix's spectrum; another one each turn."""
        return tuple(int(index) for index in np.unravel_index(turn % self.mesh.size, self.mesh.shape))

    def takes_part(self, owner: tuple[int, ...]) -> bool:
        """Whether this process holds a piece that the owner needs: it is in the same copy of the matrix."""
        return all(
            axis is not None or here == there for axis, here, there in zip(self.axes, self.place, owner, strict=True)
        )


def cut_axes(matrix: Matrix, value: Tensor) -> tuple[int | None, ...]:
    """For each mesh dimension the side of the matrix that it cuts, or None where it repeats the matrix or is 1 long."""
    lengths = value.device_mesh.shape  # type: ignore[attr-defined]
    dimensions = [getattr(placement, "dim", None) for placement in value.placements]  # type: ignore[attr-defined]
    return tuple(
        None if dimension is None or length == 1 else matrix.axis_of(dimension, value.shape)
        for dimension, length in zip(dimensions, lengths, strict=True)
    )


def local_view(matrix: Matrix, value: Tensor, piece: Tensor) -> Tensor:
    """The part of the matrix that lies in `piece`, this process's share of a parameter laid out as `value` is."""
    if matrix.block is None:
        return matrix.orient(piece)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)  # type: ignore[attr-defined]
    return matrix.orient(matrix.block.of(piece, offsets[matrix.block.dimension]))


def shardings(matrices: Sequence[Matrix], processes: Processes) -> list[Sharding]:
    """How each of these matrices lies. One exchange of sizes for all of them.

    Raises:
        ValueError: not every process holds a part of each.
    """
    values = [matrix.read() for matrix in matrices]
    meshes: dict[Any, Any] = {}  # pickled once each, however many matrices lie on them
    own = []
    for matrix, value in zip(matrices, values, strict=True):
        mesh = value.device_mesh  # type: ignore[attr-defined]
        outside = mesh.get_coordinate() is None
        shape = (0, 0) if outside else tuple(local_view(matrix, value, local(value)).shape)
        own.append((shape, meshes.setdefault(mesh, mesh.mesh.cpu().numpy())))
    everyone = processes.collect(own)
    found = []
    for index, (matrix, value) in enumerate(zip(matrices, values, strict=True)):
        mesh = value.device_mesh  # type: ignore[attr-defined]
        numbers = _meshes(matrix, [held[index][1] for held in everyone])
        sizes = np.array([[everyone[other][index][0][axis] for other in numbers.flat] for axis in range(2)])
        place = tuple(int(at) for at in np.argwhere(numbers == processes.number)[0])
        groups = (None, *(mesh.get_group(dimension) for dimension in range(mesh.ndim)))
        axes = (None, *cut_axes(matrix, value))
        found.append(Sharding(numbers, groups, axes, sizes.reshape(2, *numbers.shape), place, mesh.device_type))
    return found


def _meshes(matrix: Matrix, held: Sequence[np.ndarray]) -> np.ndarray:
    """The distinct meshes among those that the processes hold, one upon another."""
    distinct = {numbers.tobytes(): numbers for numbers in held}
    found = list(distinct.values())
    everyone = sorted(int(number) for numbers in found for number in numbers.flat)
    if everyone != list(range(len(held))) or len({numbers.shape for numbers in found}) > 1:
        raise ValueError(
            f"{matrix.name} lies on the processes {everyone} of {len(held)}: a run watches what all processes hold"
        )
    return np.stack(found)


def make_room(piece: Tensor, side: int) -> None:
    """Raise now, before anybody waits for this process, if its memory cannot hold what `gram_of_shards` needs.

    Args:
        piece: (rows, cols) what this process holds.
        side: of the Gram matrix.
    """
    if piece.device.type != "cpu":  # which promises memory that it does not have
        room = [torch.empty_like(piece), torch.empty_like(piece), piece.new_empty(2 * side**2, dtype=torch.float64)]
        del room


class Outbox:
    """What is on its way to other processes, which need not be waited for at once."""

    def __init__(self) -> None:
        self._sent: list[tuple[Any, Tensor]] = []

    def send(self, value: Tensor, receiver: int, group: Any) -> None:
        """Begin to send; the value may not change until it is on its way."""
        self._sent.append((dist.isend(value, receiver, group=group), value))
        self.empty(_ON_THE_WAY)

    def empty(self, left: int = 0) -> None:
        """Wait until at most this many are on their way."""
        while len(self._sent) > left:
            self._sent.pop(0)[0].wait()


def gram_of_shards(
    held: list[Tensor], sharding: Sharding, axis: int, owner: tuple[int, ...], outbox: Outbox
) -> Tensor | None:
    """Lower triangle of the Gram matrix between the rows (axis 0) or the columns (axis 1), on the owner.

    Args:
        held: one tensor, (rows, cols), what this process holds; taken out of the list, to be freed on the way.
        sharding: of the whole matrix.
        axis: the side that stays.
        owner: place of the process that gets it; the others get None.
        outbox: of this process.
    """
    wide = held.pop() if axis == 0 else held.pop().mT
    lengths = sharding.sizes[axis]
    for dimension in sharding.cut():
        if sharding.axes[dimension] == axis:
            line = _line(sharding.place, dimension)
            along = lengths[line][np.argsort(sharding.mesh[line])]  # a group is in the order of its processes' numbers
            sent, edges = _by_receiver(wide, len(along))
            del wide
            wide = _exchange(sent, edges, [int(length) for length in along], sharding.groups[dimension])
            del sent
            lengths = np.broadcast_to(lengths.sum(axis=dimension, keepdims=True), lengths.shape)
    gram = gram_matrix(wide)
    place = list(sharding.place)
    for dimension in sharding.cut():
        line = sharding.mesh[_line(tuple(place), dimension)].tolist()
        _add_up(gram, line, line[owner[dimension]], sharding.groups[dimension], outbox)
        if place[dimension] != owner[dimension]:
            return None
    return gram


def _line(place: tuple[int, ...], dimension: int) -> tuple[Any, ...]:
    """Index of the processes that differ from this one in one mesh dimension only."""
    return tuple(slice(None) if index == dimension else here for index, here in enumerate(place))


def _add_up(gram: Tensor, line: Sequence[int], owner: int, group: Any, outbox: Outbox) -> None:
    """The sum of the processes' lower triangles, on the owner; half of the square goes over the wire."""
    packed = scratch((sum(block.numel() for block in _lower_blocks(gram)),), gram.dtype, gram.device)
    blocks = torch.split(packed, [block.numel() for block in _lower_blocks(gram)])
    for block, kept in zip(blocks, _lower_blocks(gram), strict=True):
        block.view(kept.shape).copy_(kept)
    if gram.device.type != "cpu" or len(line) > _FEW:
        dist.reduce(packed, owner, group=group)
        if dist.get_rank() == owner:
            for block, kept in zip(blocks, _lower_blocks(gram), strict=True):
                kept.copy_(block.view(kept.shape))
    elif dist.get_rank() != owner:
        outbox.send(packed, owner, group)
    else:  # few processes on CPUs: a third of the time of gloo's reduce
        for other in line:
            if other != owner:
                dist.recv(packed, other, group=group)
                for block, kept in zip(blocks, _lower_blocks(gram), strict=True):
                    kept.add_(block.view(kept.shape))


def _lower_blocks(gram: Tensor) -> list[Tensor]:
    """Bands of rows up to the diagonal, which hold the lower triangle."""
    edges = [len(gram) * band // _BANDS for band in range(_BANDS + 1)]
    return [gram[top:bottom, :bottom] for top, bottom in pairwise(edges)]


def _by_receiver(wide: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """The entries, those of the first receiver's columns first; and where each one's columns begin and end."""
    edges = [wide.shape[1] * index // count for index in range(count + 1)]
    sent = scratch((wide.numel(),), wide.dtype, wide.device)
    for start, end in pairwise(edges):
        piece = sent[wide.shape[0] * start : wide.shape[0] * end]
        piece.view(wide.shape[0], end - start).copy_(wide[:, start:end])
    return sent, edges


def _exchange(sent: Tensor, edges: list[int], lengths: list[int], group: Any) -> Tensor:
    """From my rows of all columns to all rows of my columns.

    Args:
        sent: (lengths[me] · cols) by `_by_receiver`.
        edges: where each process's columns begin and end.
        lengths: rows of each process of the group.
        group: its processes.

    Returns:
        (sum of lengths, my columns), the rows in the group's order.
    """
    me = dist.get_rank(group)
    widths = [end - start for start, end in pairwise(edges)]
    received = scratch((sum(lengths) * widths[me],), sent.dtype, sent.device)
    dist.all_to_all_single(
        received,
        sent,
        [length * widths[me] for length in lengths],
        [lengths[me] * width for width in widths],
        group=group,
    )
    return received.reshape(sum(lengths), widths[me])
