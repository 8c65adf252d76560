"""Weights → updates → spectra, of the matrices that fall to this process.

A whole matrix is measured by one worker of the pool, several at a time; a matrix in shards by all processes that hold a
part of it, one after the other. None of them waits for one that cannot give its part: that one adds NaN, or, where an
accelerator's memory may be full, all vote before they begin. What cannot be measured is a problem with a name.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from inrank_monitor.distributed import Outbox, Sharding, gram_of_shards, local_view, make_room
from inrank_monitor.matrices import InitialWeights, Matrix, has_memory, is_sharded, local, since_start
from inrank_monitor.spectra import (
    Spectrum,
    SpectrumMethod,
    not_finite,
    scratch,
    singular_values_of_gram,
    singular_values_of_product,
)
from inrank_monitor.tracking.measuring import Measuring

Problem = tuple[str, str, str]  # event kind, matrix name, message
GONE = "parameter_gone"
Measured = tuple[Spectrum | None, Problem | None]
Values = dict[str, tuple[Tensor, ...]]


def read_values(matrices: Sequence[Matrix], gone: Container[str] = ()) -> Values:
    """The parameters, or the two factors, by name; none if the module has it no more, or is itself `gone`.

    Read in one thread, since reading a parametrized weight is not thread-safe.
    """
    values: Values = {}
    for matrix in matrices:
        if matrix.parameter not in values:
            values[matrix.parameter] = () if matrix.name in gone else _read(matrix)
    return values


def _read(matrix: Matrix) -> tuple[Tensor, ...]:
    try:
        read = matrix.module.update_factors() if matrix.in_factors else (matrix.read(),)  # type: ignore[operator]
    except AttributeError:
        return ()
    return read if all(map(has_memory, read)) else ()


def measure_whole(measuring: Measuring, values: Values) -> Iterator[tuple[int, Measured]]:
    """(place, (spectrum, problem)) of each matrix that this process measures by itself."""
    measure = partial(_measure, values=values, initial=measuring.initial, method=measuring.method)
    whole = measuring.share.whole
    return zip(whole, measuring.pool.map(measure, [measuring.matrices[place] for place in whole]), strict=True)


def measure_shards(measuring: Measuring, values: Values) -> Iterator[tuple[int, Measured]]:
    """(place, (spectrum, problem)) of each matrix in shards that falls to this process; every process calls it."""
    matrices, share, initial, pool = measuring.matrices, measuring.share, measuring.initial, measuring.pool
    waiting: list[tuple[int, Tensor]] = []
    outbox = Outbox()
    last_part = {matrices[place].parameter: place for place in share.sharded}
    for turn, (place, sharding) in enumerate(share.sharded.items()):
        owner, matrix = sharding.owner(turn), matrices[place]
        takes_part = sharding.takes_part(owner)
        piece, problem = _piece(matrix, values, initial, sharding) if takes_part else (None, None)
        if last_part[matrix.parameter] == place:
            initial.forget()
        if problem:
            yield place, (None, problem)
        # An accelerator's memory may be full: there the processes vote before they begin.
        if (sharding.device == "cpu" or share.processes.agree(problem is None)) and takes_part:
            held = [_nothing(values[matrix.parameter], sharding) if piece is None else piece]
            del piece
            gram = gram_of_shards(held, sharding, int(matrix.rows > matrix.cols), owner, outbox)
            if gram is not None:
                waiting.append((place, gram))
        # When every process holds two Gram matrices a worker, all of them solve theirs at once.
        if (turn + 1) % (2 * sharding.mesh.size * pool.workers) == 0 or turn + 1 == len(share.sharded):
            solve = partial(_solve, method=measuring.method)
            solved = pool.map(solve, [(matrices[place].name, gram) for place, gram in waiting])
            yield from zip([place for place, _ in waiting], solved, strict=True)
            waiting = []
    outbox.empty()


def _nothing(value: tuple[Tensor, ...], sharding: Sharding) -> Tensor:
    """What a process adds that has no piece, so that nobody waits for it: NaN, which makes the spectrum void."""
    rows, cols = (int(sizes[sharding.place]) for sizes in sharding.sizes)
    dtype = torch.float64 if value and value[0].dtype == torch.float64 else torch.float32
    return torch.full((1, 1), torch.nan, dtype=dtype, device=sharding.device).expand(rows, cols)


@torch.no_grad()
def _measure(matrix: Matrix, values: Values, initial: InitialWeights, method: SpectrumMethod) -> Measured:
    value = values[matrix.parameter]
    if not value:
        return None, _gone(matrix)
    try:
        if matrix.in_factors:
            spectrum = method.known(_product_values(matrix, value[0], value[1], initial))
        else:
            spectrum = method.spectrum(matrix.name, update_of(matrix, value[0], initial))
    except _ShapeChangedError as error:
        return None, ("shape_changed", matrix.name, str(error))
    except LinAlgError as error:
        return _not_converged(matrix.name, error)
    return spectrum, _problem_of(matrix.name, spectrum)


@torch.no_grad()
def _piece(
    matrix: Matrix, values: Values, initial: InitialWeights, sharding: Sharding
) -> tuple[Tensor | None, Problem | None]:
    """This process's piece of the update, or why there is none."""
    value = values[matrix.parameter]
    if not value:
        return None, _gone(matrix)
    try:
        piece = _update(matrix, value[0], initial, lambda shard: local_view(matrix, value[0], shard))
        if piece.device.type != sharding.device:  # CPU offload: the mesh may be unable to talk from the CPU
            piece = piece.to(sharding.device)
        make_room(piece, min(matrix.rows, matrix.cols))
    except _ShapeChangedError as error:
        return None, ("shape_changed", matrix.name, str(error))
    except Exception as error:  # the others wait for an answer, whatever it is
        return None, ("not_measured", matrix.name, f"process {sharding.number}: {type(error).__name__}: {error}")
    return piece, None


def _solve(held: tuple[str, Tensor], method: SpectrumMethod) -> Measured:
    name, gram = held
    try:
        values = singular_values_of_gram(gram)
    except LinAlgError as error:
        return _not_converged(name, error)
    spectrum = method.known(values)
    return spectrum, _problem_of(name, spectrum)


class _ShapeChangedError(Exception):
    pass


def _update(matrix: Matrix, value: Tensor, initial: InitialWeights, view: Callable[[Tensor], Tensor]) -> Tensor:
    """W_t − W0 as this matrix sees it, or the piece of it that this process holds; in float32 or wider."""
    now = local(value)
    first = initial.of(matrix.parameter, now.device)
    if now.shape != first.shape:
        late = "; attach after the model is put into shards" if is_sharded(value) else ""
        raise _ShapeChangedError(
            f"the parameter is now {tuple(now.shape)}, at attach it was {tuple(first.shape)}{late}"
        )
    # not by promote_types, which knows no 8-bit floats
    dtype = torch.float64 if torch.float64 in (now.dtype, first.dtype) else torch.float32
    start = view(first)
    return scratch(start.shape, dtype, now.device).copy_(view(now)).sub_(start.to(dtype))


def update_of(matrix: Matrix, value: Tensor, initial: InitialWeights) -> Tensor:
    """W_t − W0 of a dense matrix that this process holds whole."""
    return _update(matrix, value, initial, matrix.view)


def factors_since_start(
    matrix: Matrix, left: Tensor, right: Tensor, initial: InitialWeights
) -> tuple[Tensor, Tensor, bool]:
    """Factors of the update, and whether those at the start were anything but zero."""
    moved = False
    if matrix.has_start:
        left, right, moved = since_start(left, right, initial.of(matrix.parameter, left.device))
    return *matrix.cut(left.detach(), right.detach()), moved


def _product_values(matrix: Matrix, left: Tensor, right: Tensor, initial: InitialWeights) -> Tensor:
    left, right, moved = factors_since_start(matrix, left, right, initial)
    # A small change of large factors would drown in the rounding of their Gram matrices.
    values = singular_values_of_product(left, right, "qr" if moved else "gram")
    if len(values) == 0:  # no column yet: a zero update
        return torch.zeros(1, dtype=torch.float64, device="cpu")
    return values


def _gone(matrix: Matrix) -> Problem:
    return GONE, matrix.name, "the module has this parameter no more, or its memory is freed"


def _not_converged(name: str, error: LinAlgError) -> Measured:
    return Spectrum(not_finite(1), 0.0, float("nan")), ("not_converged", name, str(error))


def _problem_of(name: str, spectrum: Spectrum) -> Problem | None:
    if bool(torch.isfinite(spectrum.values).all()):
        return None
    return "non_finite", name, "the weights hold NaN or infinity"
