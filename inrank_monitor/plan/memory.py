"""What is in memory at a time, beside the training.

Workers may be at their peak together, so their peaks are added up. Of what is freed the C library may keep some for
later, in pieces; that is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from inrank_monitor.plan.quantities import Layout, PlannedMatrix, exchanges, is_full, parameter_bytes
from inrank_monitor.spectra import PIECE_BYTES, PIECES, columns_at_a_time, krylov_sizes, waiting_bytes


def memory(own: Sequence[PlannedMatrix], leading: int | None, layout: Layout) -> tuple[int, int]:
    """Bytes at most in use at a time, of the host and of the device, in a snapshot; attaching takes no more.

    W0 is read one parameter at a time, on the host.
    """
    first = max((parameter_bytes(matrix, layout) for matrix in own), default=0)
    if layout.sharded:
        workers = min(layout.threads, -(-len(own) // layout.processes))
        squares = _largest((8 * matrix.short**2 for matrix in own), workers)
        solving = 2 * sum(squares)  # each is copied where its eigenvalues are found
        waiting = sum(squares[layout.processes == 1 :])  # for their turn, while the last one is summed
        product = waiting + max((_shard_peak(matrix, layout) for matrix in own), default=0.0)
        on_device, on_host = max(product, solving / 2), solving
        host = max(product, solving)
    else:
        workers = min(layout.threads, len(own))
        peaks = [_whole_peak(matrix, leading) for matrix in own]
        squares = [8 * matrix.short**2 for matrix in own if is_full(matrix.short, leading)]
        solving = 2 * sum(_largest(squares, workers))
        # Of an accelerator one matrix at a time; its Gram matrix then waits on the host, with all others at most.
        on_device = PIECE_BYTES + max((_device_peak(matrix, leading) for matrix in own), default=0.0)
        on_host = PIECES * PIECE_BYTES + min(sum(squares), waiting_bytes()) + solving / 2
        other = first if workers > 1 else 0  # one worker reads while another one is at its peak
        host = first + other + max(sum(_largest(peaks, workers)), solving)
    return (first + round(on_host), round(on_device)) if layout.on_device else (round(max(first, host)), 0)


def _largest(sizes: Iterable[float], count: int) -> list[float]:
    return sorted(sizes, reverse=True)[:count]


def _whole_peak(matrix: PlannedMatrix, leading: int | None) -> float:
    """Beside W0: the update, and the larger of what comes before and after it."""
    update = matrix.entries * matrix.width
    widened = matrix.entries * matrix.width if matrix.itemsize < 4 else 0
    if is_full(matrix.short, leading):
        return update + max(widened, _gram_peak(matrix.short, max(matrix.rows, matrix.cols)), 16 * matrix.short**2)
    assert leading is not None
    long, (block, blocks) = max(matrix.rows, matrix.cols), krylov_sizes(leading)
    width = block * blocks
    folded = update / (4 if long >= 16 * block else 1)  # for the random start
    space = matrix.width * width * (2 * matrix.short + 2 * long)  # the basis, what is left over, the products twice
    return update + max(widened, folded, space + 8 * width * (2 * width + columns_at_a_time(width, long)))


def _device_peak(matrix: PlannedMatrix, leading: int | None) -> float:
    """Of a whole matrix on an accelerator, which subtracts a few columns at a time where all values are asked for."""
    if is_full(matrix.short, leading):
        return _gram_peak(matrix.short, max(matrix.rows, matrix.cols))
    return _whole_peak(matrix, leading)


def _shard_peak(matrix: PlannedMatrix, layout: Layout) -> float:
    """From W0's shard to a part of a Gram matrix: what is at hand at one time is let go before the next but one."""
    piece = matrix.largest_piece(layout.processes)
    held = piece * matrix.entries * matrix.width
    widened = held if matrix.itemsize < 4 else 0
    weights = parameter_bytes(matrix, layout)
    later = weights if matrix.block is not None else 0  # its other parts are still to come
    summed = (16 if layout.processes > 1 else 8) * matrix.short**2  # the processes' sum needs as much again
    if exchanges(matrix, layout):
        received = matrix.entries * matrix.width / layout.processes
        multiplied = max(_gram_peak(matrix.short, math.ceil(max(matrix.rows, matrix.cols) / layout.processes)), summed)
        return max(weights + held + widened, later + held + max(held, received), later + received + multiplied)
    multiplied = max(_gram_peak(matrix.short, math.ceil(max(matrix.rows, matrix.cols) * piece)), summed)
    return max(weights + held + widened, later + held + multiplied)


def _gram_peak(short: int, long: int) -> float:
    """A Gram matrix, and the float64 copy of some columns at a time."""
    return 8 * short**2 + 8 * short * columns_at_a_time(short, long)
