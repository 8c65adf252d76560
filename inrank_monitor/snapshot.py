"""One snapshot: every matrix's cumulative update, its spectrum, and the rows of metrics that are logged.

weights → matrices → update → spectrum → metrics, for one step. The tracker says when; the run log keeps the result.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from inrank_monitor import rank_metrics
from inrank_monitor.initial_weights import InitialWeights
from inrank_monitor.leading import leading_singular_values
from inrank_monitor.matrices import Matrix
from inrank_monitor.rank_metrics import Definition
from inrank_monitor.run_log import FLOAT_METRICS, INTEGER_METRICS
from inrank_monitor.spectrum import (
    Spectrum,
    SpectrumPool,
    singular_values,
    singular_values_of_product,
)

ENERGY_SHARE = 0.9
Problem = tuple[str, str, str]  # event kind, matrix name, message


@dataclass(frozen=True)
class RankOptions:
    """How ranks are drawn from spectra; see `rank_metrics`. `leading` keeps only that many values."""

    threshold: float = 0.9
    buffer_rank: int = 100
    definition: Definition = "paper"
    leading: int | None = None


@dataclass
class Snapshot:
    """Spectra of the matrices that could be measured at one step.

    Attributes:
        step: optimizer steps since attach.
        time: unix seconds.
        places: which matrices, by place in the tracker's list.
        spectra: one each; NaN where the update is not finite.
        layer_ranks: (rank, capacity) of a layer held in factors, (None, None) of a dense one.
        problems: what could not be measured.
    """

    step: int
    time: float
    places: list[int] = field(default_factory=list)
    spectra: list[Spectrum] = field(default_factory=list)
    layer_ranks: list[tuple[int | None, int | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def take_snapshot(
    step: int, matrices: Sequence[Matrix], initial: InitialWeights, leading: int | None, pool: SpectrumPool
) -> Snapshot:
    """Measure every matrix as it is now. The model is only read; the spectra are complete when this returns."""
    snapshot = Snapshot(step, time.time())
    values: dict[str, tuple[Tensor, ...]] = {}  # read here, since reading a parametrized weight is not thread-safe
    for matrix in matrices:
        if matrix.parameter not in values:
            values[matrix.parameter] = _read(matrix)
    measure = partial(_measure, values=values, initial=initial, leading=leading)
    for place, (matrix, (spectrum, problem)) in enumerate(zip(matrices, pool.map(measure, matrices), strict=True)):
        if problem:
            snapshot.problems.append(problem)
        if spectrum is None:
            continue
        snapshot.places.append(place)
        snapshot.spectra.append(spectrum)
        factors = values[matrix.parameter]
        snapshot.layer_ranks.append(
            (int(matrix.module.rank), factors[0].shape[1]) if matrix.in_factors else (None, None)  # type: ignore[arg-type]
        )
    return snapshot


def _read(matrix: Matrix) -> tuple[Tensor, ...]:
    """The parameter, or the two factors; empty if the module has it no more."""
    try:
        return matrix.module.update_factors() if matrix.in_factors else (matrix.read(),)  # type: ignore[operator]
    except AttributeError:
        return ()


@torch.no_grad()
def _measure(
    matrix: Matrix, values: dict[str, tuple[Tensor, ...]], initial: InitialWeights, leading: int | None
) -> tuple[Spectrum | None, Problem | None]:
    value = values[matrix.parameter]
    if not value:
        return None, ("parameter_gone", matrix.name, "the module has this parameter no more")
    try:
        spectrum = (
            _factored(value[0], value[1], leading) if matrix.in_factors else _dense(matrix, value[0], initial, leading)
        )
    except _ShapeChangedError as error:
        return None, ("shape_changed", matrix.name, str(error))
    except LinAlgError as error:
        return Spectrum(torch.full((1,), torch.nan), 0.0, float("nan")), (
            "not_converged",
            matrix.name,
            str(error),
        )
    if bool(torch.isfinite(spectrum.values).all()):
        return spectrum, None
    return spectrum, ("non_finite", matrix.name, "the weights hold NaN or infinity")


class _ShapeChangedError(Exception):
    pass


def _dense(matrix: Matrix, value: Tensor, initial: InitialWeights, leading: int | None) -> Spectrum:
    """Spectrum of W_t − W0, subtracted in float32 or wider."""
    first = initial.of(matrix.parameter, value.device)
    if value.shape != first.shape:
        raise _ShapeChangedError(f"the parameter is now {tuple(value.shape)}, at attach it was {tuple(first.shape)}")
    dtype = torch.promote_types(torch.promote_types(value.dtype, first.dtype), torch.float32)
    update = matrix.view(value).to(dtype) - matrix.view(first).to(dtype)
    count = min(update.shape)
    if leading is not None and leading < count:
        return leading_singular_values(update, leading, iterations=1)
    values = singular_values(update)
    return Spectrum(values, 0.0, float(torch.linalg.vector_norm(values)))


def _factored(left: Tensor, right: Tensor, leading: int | None) -> Spectrum:
    values = singular_values_of_product(left.detach(), right.detach())
    if len(values) == 0:  # no column yet: a zero update
        values = torch.zeros(1, dtype=torch.float64, device="cpu")
    return Spectrum(values[:leading], 0.0, float(torch.linalg.vector_norm(values)))


def metric_columns(
    snapshot: Snapshot,
    matrices: Sequence[Matrix],
    norms: Sequence[float],
    options: RankOptions,
    running: np.ndarray,
) -> dict[str, Any]:
    """The columns of the snapshot's record batch; `running` (one rank a matrix) is brought up to date.

    `explained_ratio` is g at the rank that had been reached before this step (at least 1): what Algorithm 2 looks at
    when it decides whether to grow.
    """
    rows = len(snapshot.places)
    columns: dict[str, Any] = {name: np.full(rows, np.nan) for name in FLOAT_METRICS}
    columns |= {name: np.zeros(rows, dtype=np.int64) for name in INTEGER_METRICS}
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, (place, spectrum) in enumerate(zip(snapshot.places, snapshot.spectra, strict=True)):
        matrix = matrices[place]
        padded = min(matrix.rows, matrix.cols) if matrix.in_factors and options.leading is None else 0
        groups[len(spectrum.values), max(padded, len(spectrum.values))].append(row)
    places = np.array(snapshot.places, dtype=np.int64)
    for (_, size), members in groups.items():
        values = np.stack([snapshot.spectra[row].values.numpy() for row in members])
        whole = np.array([snapshot.spectra[row].frobenius_norm for row in members])
        group = _metrics(values, whole, size, options, running[places[members]])
        for row, member in enumerate(members):
            matrix = matrices[snapshot.places[member]]
            group["numerical_rank"][row] = rank_metrics.numerical_rank(values[row], matrix.rows, matrix.cols)
        for name, column in group.items():
            columns[name][members] = column
    running[places] = columns["running_rank"]
    initial = np.array([norms[place] for place in snapshot.places])
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["relative_norm"] = columns["frobenius_norm"] / initial
    bounds = np.array([spectrum.error_bound for spectrum in snapshot.spectra])
    columns["error_bound"] = np.where(np.isfinite(columns["spectral_norm"]), bounds, np.nan)
    return columns | _identity_columns(snapshot, columns)


def _metrics(
    values: np.ndarray, whole: np.ndarray, size: int, options: RankOptions, previous: np.ndarray
) -> dict[str, np.ndarray]:
    rank = rank_metrics.intrinsic_rank(values, options.threshold, options.buffer_rank, options.definition, size)
    at = np.clip(previous, 1, size)
    return {
        "intrinsic_rank": rank,
        "running_rank": np.maximum(previous, rank),
        "explained_ratio": rank_metrics.explained_ratio(values, at, options.buffer_rank, options.definition, size),
        "stable_rank": rank_metrics.stable_rank(values, whole),
        "effective_rank": rank_metrics.effective_rank(values),
        "energy_rank": rank_metrics.energy_rank(values, ENERGY_SHARE, whole),
        "numerical_rank": np.zeros(len(values), dtype=np.int64),
        "spectral_norm": values[:, 0],
        "frobenius_norm": whole,
        "nuclear_norm": values.sum(axis=1),
    }


def _identity_columns(snapshot: Snapshot, columns: dict[str, Any]) -> dict[str, Any]:
    """Step, time, matrix and spectrum; where the update is not finite, ranks become nulls and the spectrum empty."""
    rows = len(snapshot.places)
    finite = np.isfinite(columns["spectral_norm"])
    missing = ("intrinsic_rank", "running_rank", "energy_rank", "numerical_rank")
    ranks, capacities = zip(*snapshot.layer_ranks, strict=True) if rows else ((), ())
    return {
        **{name: [int(v) if ok else None for v, ok in zip(columns[name], finite, strict=True)] for name in missing},
        "layer_rank": list(ranks),
        "capacity": list(capacities),
        "step": [snapshot.step] * rows,
        "time": [snapshot.time] * rows,
        "matrix": snapshot.places,
        "singular_values": [
            spectrum.values.float().numpy() if ok else [] for spectrum, ok in zip(snapshot.spectra, finite, strict=True)
        ],
    }
