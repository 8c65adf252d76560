"""Shapes of matrices and speeds of a machine -> what a snapshot costs. Arithmetic alone.

It follows what the tracker does: which process measures which matrix (`share`), in what order and by how many workers
(`update_spectra`, `SpectrumPool`). Where that depends on the moment it takes the dearer case.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from inrank_monitor.distributed import deal_out
from inrank_monitor.plan.memory import memory
from inrank_monitor.plan.quantities import (
    Cost,
    Layout,
    PlannedMatrix,
    Rates,
    Recorded,
    Speed,
    exchanges,
    is_full,
    parameter_bytes,
    rows_held,
    values_of,
)
from inrank_monitor.spectra import krylov_sizes

RECORD_BYTES = 28  # of the recorder, for a singular value: two float64 copies, three float32 ones


def leading_work(rows: int, cols: int, count: int) -> float:
    """Work of the `leading` values, in products.

    With the matrix: each block of the space twice, a folded start, 32 probes through six products. With the basis: what
    lies outside of it, two to three times, and its rotation on the short side; on the long one the Gram matrix in
    float64, which counts twice, of which five eighths are made.
    """
    block, blocks = krylov_sizes(count)
    width, (short, long) = block * blocks, sorted((rows, cols))
    return rows * cols * (block / 4 + 2 * width + 6 * 32) + (3 * short + 1.25 * long) * width**2


def spectrum_seconds(matrix: PlannedMatrix, leading: int | None, speed: Speed) -> float:
    """Of one worker, from the weights and W0 to the spectrum of a whole matrix."""
    short, seconds = matrix.short, matrix.entries * speed.update
    if is_full(short, leading):
        seconds += short * matrix.entries * speed.products.at(short) + short**3 * speed.eigenvalues.at(short)
    else:
        assert leading is not None
        seconds += leading_work(matrix.rows, matrix.cols, leading) * speed.leading[leading]
    return seconds


def shard_seconds(matrix: PlannedMatrix, layout: Layout, speed: Speed) -> float:
    """Of all threads of a process, from its shard to its part of the Gram matrix; others wait for the largest shard."""
    piece, short = matrix.largest_piece(layout.processes), matrix.short
    seconds = piece * matrix.entries * speed.update
    if exchanges(matrix, layout):
        seconds += 2 * piece * matrix.entries * speed.update  # packed, and unpacked: memory is what both take
        piece = 1 / layout.processes
    return seconds + piece * short * matrix.entries * speed.products.at(short)


def cost(
    matrices: Sequence[PlannedMatrix], leading: int | None, layout: Layout, rates: Rates, recorded: Recorded
) -> Cost:
    """What it costs to watch these matrices, by all singular values or by `leading` ones."""
    owned = _owned(matrices, layout)
    weights = [_weights(own, layout) for own in owned]
    total = sum(weights)
    if layout.sharded:  # the last shards may be smaller, or empty
        of_one, of_all = (_data(matrices, each) for each in (layout, replace(layout, sharded=False)))
        total = (total - of_one) * layout.processes + of_all
    room = rates.available is None or max(weights) * layout.per_machine <= rates.available / 2
    fetch = rates.fetch if room else rates.fetch_from_disk
    write = rates.write if room else rates.write_to_disk
    if layout.sharded:
        measuring = _seconds_in_shards(matrices, layout, rates, fetch)
    else:
        measuring = max(_seconds_alone(own, leading, layout, rates, fetch) for own in owned)
    values = sum(values_of(matrix, leading) for matrix in matrices)
    sent = _sent(matrices, leading, layout)
    entries = max(sum(_held(matrix, layout) for matrix in own) for own in owned)
    host, device = zip(*(memory(own, leading, layout) for own in owned), strict=True)
    return Cost(
        seconds=measuring + (sent / layout.bandwidth if layout.bandwidth else 0.0),
        record_seconds=recorded.seconds,
        attach_seconds=max(weights) * (write + fetch) + entries * rates.alone.update,
        memory=max(host) + RECORD_BYTES * values,
        device_memory=max(device),
        weights=total,
        weights_here=max(weights),
        log=recorded.log,
        events=recorded.events,
        sent=sent,
        from_disk=not room,
    )


def _held(matrix: PlannedMatrix, layout: Layout) -> float:
    """Entries of a matrix that lie on the process that holds most of it."""
    return matrix.entries * (matrix.largest_piece(layout.processes) if layout.sharded else 1)


def _owned(matrices: Sequence[PlannedMatrix], layout: Layout) -> list[list[PlannedMatrix]]:
    """The matrices of each process; in shards all processes are alike, and one stands for all."""
    if layout.sharded:
        return [list(matrices)]
    places: dict[str, list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.parameter, []).append(place)
    return [[matrices[place] for place in own] for own in deal_out(matrices, places, layout.processes)]


def _parameters(matrices: Iterable[PlannedMatrix]) -> dict[str, PlannedMatrix]:
    """One matrix of each parameter."""
    return {matrix.parameter: matrix for matrix in matrices}


def _data(matrices: Iterable[PlannedMatrix], layout: Layout) -> int:
    """Bytes of W0 that one process holds of these matrices' parameters."""
    return sum(parameter_bytes(matrix, layout) for matrix in _parameters(matrices).values())


def _weights(own: Sequence[PlannedMatrix], layout: Layout) -> int:
    """Bytes of a process's file of W0: eight of length, a JSON header, the data."""
    header: dict[str, object] = {}
    end = 0
    for name, matrix in _parameters(own).items():
        begin, end = end, end + parameter_bytes(matrix, layout)
        shape = [rows_held(matrix, layout), *matrix.shape[1:]]
        header[name] = {"dtype": matrix.dtype, "shape": shape, "data_offsets": [begin, end]}
    return 8 + -(-len(json.dumps(header)) // 8) * 8 + end


def _seconds_alone(
    own: Sequence[PlannedMatrix], leading: int | None, layout: Layout, rates: Rates, fetch: float
) -> float:
    """A process's whole matrices, taken up in order by its workers; few leading ones by all threads at once."""
    few = len(own) < layout.threads and not any(is_full(matrix.short, leading) for matrix in own)
    pooled = layout.threads > 1 and not few
    speed = rates.pool if pooled else rates.alone
    fetched: set[str] = set()
    seconds = []
    for matrix in own:
        seconds.append(spectrum_seconds(matrix, leading, speed))
        if matrix.parameter not in fetched:
            fetched.add(matrix.parameter)
            seconds[-1] += fetch * parameter_bytes(matrix, layout)
    return _makespan(seconds, layout.threads if pooled else 1)


def _seconds_in_shards(matrices: Sequence[PlannedMatrix], layout: Layout, rates: Rates, fetch: float) -> float:
    """Gram matrices by all processes, one after the other; their eigenvalues by turns, a group at a time."""
    seconds = fetch * _data(matrices, layout)
    seconds += sum(shard_seconds(matrix, layout, rates.alone) for matrix in matrices)
    for group in _batches(matrices, layout.processes * layout.threads):
        longest = 0.0
        for number in range(min(layout.processes, len(group))):
            held = group[number :: layout.processes]
            pooled = layout.threads > 1
            curve = (rates.pool if pooled else rates.alone).eigenvalues
            times = [matrix.short**3 * curve.at(matrix.short) for matrix in held]
            longest = max(longest, _makespan(times, layout.threads if pooled else 1))
        seconds += longest
    return seconds


def _batches(items: Sequence[PlannedMatrix], size: int) -> Iterator[list[PlannedMatrix]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """Until all are done, when each worker takes the next one."""
    busy = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(busy, busy[0] + each)
    return max(busy)


def _sent(matrices: Sequence[PlannedMatrix], leading: int | None, layout: Layout) -> int:
    """Bytes that a process sends a snapshot: pieces, its part of each Gram matrix, its spectra."""
    others = layout.processes - 1
    if others == 0:
        return 0
    values = sum(values_of(matrix, leading) for matrix in matrices)
    sent = 8 * values / layout.processes
    for matrix in matrices if layout.sharded else ():
        sent += 8 * matrix.short**2
        if exchanges(matrix, layout):
            sent += matrix.largest_piece(layout.processes) * matrix.entries * matrix.width * others / layout.processes
    return round(sent)
