"""Weights → updates → spectra, of the matrices that fall to this process.

A whole matrix on the CPU is measured by one worker of the pool, several at a time; of one on an accelerator the loop's
thread queues all that concerns the device, and a worker solves the rest later; a matrix in shards by all processes
that hold a part of it, one after the other. None of them waits for one that cannot give its part: that one adds NaN,
or, where an accelerator's memory may be full, all vote before they begin. What cannot be measured is a problem with a
name.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from inrank_monitor.distributed import Outbox, Sharding, gram_of_shards, local_view, make_room
from inrank_monitor.matrices import InitialWeights, Matrix, has_memory, is_sharded, local, since_start
from inrank_monitor.spectra import (
    Spectrum,
    SpectrumMethod,
    Staging,
    is_accelerator,
    is_out_of_memory,
    multiplies_in_float64,
    not_finite,
    scratch,
    singular_values_of_gram,
    singular_values_of_product,
    subtract,
)
from inrank_monitor.tracking.device_spectra import begin_product, begin_update, begin_whole_update, solve_later
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


def measure_whole(measuring: Measuring, values: Values) -> list[tuple[int, Measured | Future[Measured]]]:
    """(place, (spectrum, problem)) of each matrix that this process measures by itself; some are still to come.

    The weights have been read when this returns.
    """
    away = [place for place in measuring.share.whole if on_accelerator(values[measuring.matrices[place].parameter])]
    found: list[tuple[int, Measured | Future[Measured]]] = []
    try:
        for place in away:
            matrix = measuring.matrices[place]
            found.append((place, _begin(matrix, values[matrix.parameter], measuring)))
    finally:
        measuring.staging.flush()
    apart = set(away)
    whole = [place for place in measuring.share.whole if place not in apart]
    measure = partial(_measure, values=values, initial=measuring.initial, method=measuring.method)
    # Block iterations of few matrices may use several threads; whatever else there is goes one a thread.
    method, sides = measuring.method, [min(measuring.matrices[p].rows, measuring.matrices[p].cols) for p in whole]
    here = len(whole) < measuring.pool.workers and bool(sides) and not any(map(method.takes_all, sides))
    found += zip(whole, measuring.pool.map(measure, [measuring.matrices[p] for p in whole], here), strict=True)
    return found


def on_accelerator(value: tuple[Tensor, ...]) -> bool:
    """Whether a parameter's values lie on a device that works beside the host."""
    return bool(value) and is_accelerator(value[0].device)


@torch.no_grad()
def _begin(matrix: Matrix, value: tuple[Tensor, ...], measuring: Measuring) -> Measured | Future[Measured]:
    """Queue what the device has to do, in the loop's thread; the rest is to come."""
    method, initial, name = measuring.method, measuring.initial, matrix.name
    try:
        if matrix.in_factors:
            sources, solve = begin_product(*factors_since_start(matrix, value[0], value[1], initial))
        else:
            now, first = local(value[0]), _first_of(matrix, value[0], initial)
            if method.takes_all(min(matrix.rows, matrix.cols)) and multiplies_in_float64(now.device):
                sources, solve = begin_update(matrix.view(now), matrix.view(first), measuring.staging)
            else:
                update = update_of(matrix, value[0], initial, measuring.staging)
                if not method.takes_all(min(update.shape)):
                    spectrum = method.spectrum(update)
                    return spectrum, _problem_of(name, spectrum)
                sources, solve = begin_whole_update(update)
                del update
        return solve_later(measuring, sources, lambda held: _answer(name, method, lambda: solve(held)))
    except Exception as error:
        return _failed(matrix, error)


def _answer(name: str, method: SpectrumMethod, solve: Callable[[], Tensor]) -> Measured:
    try:
        spectrum = method.known(solve())
    except LinAlgError as error:
        return _not_converged(name, error)
    return spectrum, _problem_of(name, spectrum)


def _failed(matrix: Matrix, error: Exception) -> Measured:
    """What an error says of a matrix; one that says nothing of it is raised."""
    if isinstance(error, _ShapeChangedError):
        return None, ("shape_changed", matrix.name, str(error))
    if isinstance(error, LinAlgError):
        return _not_converged(matrix.name, error)
    if is_out_of_memory(error):
        return None, ("not_measured", matrix.name, f"{type(error).__name__}: {error}")
    raise error


def measure_shards(measuring: Measuring, values: Values) -> Iterator[tuple[int, Measured | Future[Measured]]]:
    """(place, (spectrum, problem)) of each matrix in shards that falls to this process; every process calls it.

    Gram matrices on an accelerator go to the host at once; what the pool makes of them is to come.
    """
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
            if gram is not None and is_accelerator(gram.device):
                yield place, solve_later(measuring, [gram], partial(_solve_fetched, matrix.name, measuring.method))
                del gram
            elif gram is not None:
                waiting.append((place, gram))
        # When every process holds two Gram matrices a worker, all of them solve theirs at once.
        if (turn + 1) % (2 * sharding.mesh.size * pool.workers) == 0 or turn + 1 == len(share.sharded):
            solve = partial(_solve, method=measuring.method)
            solved = pool.map(solve, [(matrices[place].name, gram) for place, gram in waiting])
            yield from zip([place for place, _ in waiting], solved, strict=True)
            waiting = []
    outbox.empty()
    measuring.staging.flush()


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
            spectrum = method.spectrum(update_of(matrix, value[0], initial))
    except Exception as error:
        return _failed(matrix, error)
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
    return _answer(name, method, lambda: singular_values_of_gram(gram))


def _solve_fetched(name: str, method: SpectrumMethod, held: list[Tensor]) -> Measured:
    return _solve((name, held[0]), method)


class _ShapeChangedError(Exception):
    pass


def _update(
    matrix: Matrix,
    value: Tensor,
    initial: InitialWeights,
    view: Callable[[Tensor], Tensor],
    staging: Staging | None = None,
) -> Tensor:
    """W_t − W0 as this matrix sees it, or the piece of it that this process holds; in float32 or wider."""
    now, first = local(value), _first_of(matrix, value, initial)
    # not by promote_types, which knows no 8-bit floats
    dtype = torch.float64 if torch.float64 in (now.dtype, first.dtype) else torch.float32
    start = view(first)
    update = scratch(start.shape, dtype, now.device).copy_(view(now))
    if staging is not None and start.device.type == "cpu":
        staging.subtract(update, start)
    else:
        subtract(update, start.to(now.device))
    return update


def _first_of(matrix: Matrix, value: Tensor, initial: InitialWeights) -> Tensor:
    """W0 of its parameter, where it is kept.

    Raises:
        _ShapeChangedError: the parameter has another shape by now.
    """
    now, first = local(value), initial.kept(matrix.parameter)
    if now.shape != first.shape:
        late = "; attach after the model is put into shards" if is_sharded(value) else ""
        raise _ShapeChangedError(
            f"the parameter is now {tuple(now.shape)}, at attach it was {tuple(first.shape)}{late}"
        )
    return first


def update_of(matrix: Matrix, value: Tensor, initial: InitialWeights, staging: Staging | None = None) -> Tensor:
    """W_t − W0 of a dense matrix that this process holds whole; on a device W0 comes through `staging`, if given."""
    if staging is None or not is_accelerator(local(value).device):
        return _update(matrix, value, initial, matrix.view)
    return matrix.orient(_update(matrix, value, initial, matrix.piece, staging))


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
