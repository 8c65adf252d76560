"""What a plan is made of: matrices by their shapes, who trains, speeds of a machine, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from inrank_monitor.matrices import Block
from inrank_monitor.spectra import is_large_part


@dataclass(frozen=True)
class PlannedMatrix:
    """A matrix that is there by its shape alone.

    Attributes:
        name: as the tracker would name it.
        parameter: name of the parameter that it is cut from.
        rows: output side.
        cols: input side.
        shape: of the parameter.
        dtype: of the parameter, as safetensors names it.
        itemsize: bytes of one of its entries.
        block: of the parameter that this matrix is; None for all of it.
        cut: the side, 0 or 1, along which shards of the parameter's first dimension lie.
    """

    name: str
    parameter: str
    rows: int
    cols: int
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    block: Block | None
    cut: int

    @property
    def entries(self) -> int:
        """Of the matrix."""
        return self.rows * self.cols

    @property
    def short(self) -> int:
        """The side of its Gram matrix."""
        return min(self.rows, self.cols)

    @property
    def width(self) -> int:
        """Bytes of an entry of the update."""
        return max(self.itemsize, 4)

    def largest_piece(self, processes: int) -> float:
        """The share of it that lies on one process when the parameter's first dimension is cut into equal chunks."""
        chunk = -(-self.shape[0] // processes)
        if self.block is not None and self.block.runs > 1:  # as evenly spread as the parameter
            return chunk / self.shape[0]
        length = self.block.length if self.block is not None and self.block.dimension == 0 else self.shape[0]
        return min(length, chunk) / length


@dataclass(frozen=True)
class Layout:
    """Who trains.

    Attributes:
        processes: how many train together.
        sharded: whether each holds a shard of every parameter (FSDP2), or all of the model.
        threads: of PyTorch in each process.
        per_machine: processes that share a machine's memory.
        on_device: whether the weights are on an accelerator.
        bandwidth: bytes a second that a process can send; None: the time of sending is not counted.
    """

    processes: int = 1
    sharded: bool = False
    threads: int = 1
    per_machine: int = 1
    on_device: bool = False
    bandwidth: float | None = None


@dataclass(frozen=True)
class Curve:
    """Seconds for a unit of work at some sides, ascending; between them by a power law, outside as at the nearest."""

    sides: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, side: int) -> float:
        """Seconds for a unit of work where the short side is this long."""
        if side <= self.sides[0]:
            return self.seconds[0]
        for low, high, first, last in zip(self.sides, self.sides[1:], self.seconds, self.seconds[1:], strict=False):
            if side <= high:
                return first * math.exp(math.log(last / first) * math.log(side / low) / math.log(high / low))
        return self.seconds[-1]


@dataclass(frozen=True)
class Speed:
    """Of one worker, while as many work as will.

    Attributes:
        products: for each of the p² q products of a p × q matrix's Gram matrix.
        eigenvalues: for each of p³.
        leading: for each unit of `leading_work`, by number of values.
        update: for each entry of W_t − W0.
    """

    products: Curve
    eigenvalues: Curve
    leading: Mapping[int, float]
    update: float


@dataclass(frozen=True)
class Rates:
    """What was measured of a machine.

    Attributes:
        pool: speed of one of `threads` workers that measure a matrix each.
        alone: speed of all threads on one matrix.
        fetch: seconds to read a byte of W0 that is in the system's cache, and to bring it to the device.
        fetch_from_disk: the same where it is not.
        write: seconds to write and hash a byte of W0.
        write_to_disk: the same until it is on the disk.
        available: bytes of memory that are free; None if the system does not say.
    """

    pool: Speed
    alone: Speed
    fetch: float
    fetch_from_disk: float
    write: float
    write_to_disk: float
    available: int | None


@dataclass(frozen=True)
class Recorded:
    """What the tracker's thread does with a snapshot.

    Attributes:
        seconds: of its processor time.
        log: bytes that the log grows by.
        events: bytes that TensorBoard's file grows by.
    """

    seconds: float
    log: int
    events: int


@dataclass(frozen=True)
class Cost:
    """Of one way to measure; seconds and bytes, of the process that has most to do.

    Attributes:
        seconds: a snapshot holds up the training.
        record_seconds: of the tracker's thread, a snapshot; beside the training.
        attach_seconds: until the training can begin: writing W0, mostly.
        memory: at most in use beside the training, on the host.
        device_memory: the same on the accelerator.
        weights: W0 on disk, of all processes.
        weights_here: W0 on disk, of the process that holds most.
        log: the log grows by, a snapshot.
        events: TensorBoard's file grows by, a snapshot.
        sent: to other processes, a snapshot.
        from_disk: whether W0 is too large for the system's cache.
    """

    seconds: float
    record_seconds: float
    attach_seconds: float
    memory: int
    device_memory: int
    weights: int
    weights_here: int
    log: int
    events: int
    sent: int
    from_disk: bool

    @property
    def counted(self) -> float:
        """Seconds a snapshot that the tracker counts against its budget."""
        return self.seconds + self.record_seconds

    @property
    def recorded(self) -> Recorded:
        """The part of it that is the tracker's thread's."""
        return Recorded(self.record_seconds, self.log, self.events)


def is_full(short: int, leading: int | None) -> bool:
    """Whether all of a matrix's singular values are computed, however few are asked for."""
    return leading is None or leading >= short or is_large_part(leading, short)


def values_of(matrix: PlannedMatrix, leading: int | None) -> int:
    """How many singular values are logged."""
    return matrix.short if leading is None else min(leading, matrix.short)


def exchanges(matrix: PlannedMatrix, layout: Layout) -> bool:
    """Whether the shards cut the side of the Gram matrix, so that pieces are exchanged first."""
    return layout.processes > 1 and matrix.cut == int(matrix.rows > matrix.cols)


def rows_held(matrix: PlannedMatrix, layout: Layout) -> int:
    """Of the first dimension of a matrix's parameter, by the process that holds most."""
    return -(-matrix.shape[0] // layout.processes) if layout.sharded else matrix.shape[0]


def parameter_bytes(matrix: PlannedMatrix, layout: Layout) -> int:
    """Of a matrix's parameter, on the process that holds most of it."""
    return rows_held(matrix, layout) * math.prod(matrix.shape[1:]) * matrix.itemsize
