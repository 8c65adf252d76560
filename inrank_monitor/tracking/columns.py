"""A snapshot's spectra as the columns of its record batch: spectrum → metrics → log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from inrank_monitor.matrices import Matrix
from inrank_monitor.ranks import RankRule, blank_cut, is_cut
from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.runs import FLOAT_METRICS, INTEGER_METRICS, RunOptions
from inrank_monitor.tracking.snapshot import Snapshot

ENERGY_SHARE = 0.9


def metric_columns(
    snapshot: Snapshot,
    matrices: Sequence[Matrix],
    norms: Sequence[float],
    options: RunOptions,
    running: np.ndarray,
) -> dict[str, Any]:
    """The columns of the snapshot's record batch; `running` (one rank a matrix) is brought up to date.

    `explained_ratio` is g at the rank that had been reached before this step (at least 1): what Algorithm 2 looks at
    when it decides whether to grow. What a cut spectrum cannot say is null or NaN.
    """
    rows = len(snapshot.places)
    columns: dict[str, Any] = {name: np.full(rows, np.nan) for name in (*FLOAT_METRICS, *INTEGER_METRICS)}
    places = np.array(snapshot.places, dtype=np.int64)
    for kind, members in _alike(snapshot, matrices, options).items():
        values = np.stack([snapshot.spectra[row].values.numpy() for row in members])
        whole = np.array([snapshot.spectra[row].frobenius_norm for row in members])
        bounds = np.array([snapshot.spectra[row].error_bound for row in members])
        rule = replace(options.rule, buffer_rank=options.rule.buffer_rank_of(kind.rows, kind.cols))
        group, reached = _metrics(values, whole, kind, rule, running[places[members]])
        _add_signal(group, values, kind, bounds)
        running[places[members]] = reached
        for name, column in group.items():
            columns[name][members] = column
    initial = np.array([norms[place] for place in snapshot.places])
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["relative_norm"] = columns["frobenius_norm"] / initial
    bounds = np.array([spectrum.error_bound for spectrum in snapshot.spectra])
    columns["error_bound"] = np.where(np.isfinite(columns["spectral_norm"]), bounds, np.nan)
    return columns | _identity_columns(snapshot, columns)


class _Kind(NamedTuple):
    """Spectra that are looked at together: of matrices of one shape, with as many values.

    Attributes:
        taken: how many values are given.
        size: how many values there are, with the zeros beyond those of a product of factors.
        in_factors: whether it is one.
    """

    rows: int
    cols: int
    taken: int
    size: int
    in_factors: bool


def _alike(snapshot: Snapshot, matrices: Sequence[Matrix], options: RunOptions) -> dict[_Kind, list[int]]:
    """The rows of the snapshot by kind."""
    kinds: defaultdict[_Kind, list[int]] = defaultdict(list)
    for row, (place, spectrum) in enumerate(zip(snapshot.places, snapshot.spectra, strict=True)):
        matrix, count = matrices[place], len(spectrum.values)
        ends = matrix.in_factors and (options.stored is None or count < options.stored)
        size = max(min(matrix.rows, matrix.cols) if ends else 0, count)
        kinds[_Kind(matrix.rows, matrix.cols, count, size, matrix.in_factors)].append(row)
    return kinds


def _metrics(
    values: np.ndarray, whole: np.ndarray, kind: _Kind, rule: RankRule, previous: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The metrics of spectra of one kind, and the rank that each has reached."""
    assert rule.buffer_rank is not None
    rank = rank_metrics.intrinsic_rank(values, rule.threshold, rule.buffer_rank, rule.definition, kind.size)
    at = np.clip(previous, 1, kind.size)
    reached = np.maximum(previous, rank)
    columns = {
        "intrinsic_rank": rank.astype(float),
        "running_rank": reached.astype(float),
        "explained_ratio": rank_metrics.explained_ratio(values, at, rule.buffer_rank, rule.definition, kind.size),
        "stable_rank": rank_metrics.stable_rank(values, whole),
        "effective_rank": rank_metrics.effective_rank(values),
        "energy_rank": rank_metrics.energy_rank(values, ENERGY_SHARE, whole).astype(float),
        "numerical_rank": rank_metrics.numerical_rank(values, kind.rows, kind.cols).astype(float),
        "spectral_norm": values[:, 0],
        "frobenius_norm": whole,
        "nuclear_norm": values.sum(axis=1),
    }
    if kind.size < min(kind.rows, kind.cols):
        cut = is_cut(values, min(kind.rows, kind.cols))
        blank_cut(columns, cut, kind.taken, rule.buffer_rank, rule.definition, at)
    return columns, reached


def _add_signal(columns: dict[str, np.ndarray], values: np.ndarray, kind: _Kind, bounds: np.ndarray) -> None:
    """Signal rank and its share: of whole spectra of dense updates, all of them measured."""
    columns["signal_rank"] = columns["signal_share"] = np.full(len(values), np.nan)
    if not kind.in_factors:
        found = rank_metrics.signal_rank(values, kind.rows, kind.cols)
        columns["signal_rank"] = found = np.where(bounds > 0, np.nan, found)
        columns["signal_share"] = rank_metrics.energy_share(values, found)


def _identity_columns(snapshot: Snapshot, columns: dict[str, Any]) -> dict[str, Any]:
    """Step, time, matrix and spectrum; what is not known becomes null, the spectrum of a non-finite update empty."""
    rows = len(snapshot.places)
    finite = np.isfinite(columns["spectral_norm"])
    ranks, capacities = zip(*snapshot.layer_ranks, strict=True) if rows else ((), ())
    return {
        **{name: _whole_numbers(columns[name], finite) for name in INTEGER_METRICS},
        "layer_rank": list(ranks),
        "capacity": list(capacities),
        "step": [snapshot.step] * rows,
        "time": [snapshot.time] * rows,
        "matrix": snapshot.places,
        "singular_values": [
            spectrum.values.float().numpy() if ok else [] for spectrum, ok in zip(snapshot.spectra, finite, strict=True)
        ],
    }


def _whole_numbers(values: np.ndarray, finite: np.ndarray) -> list[int | None]:
    return [int(value) if ok and value == value else None for value, ok in zip(values, finite, strict=True)]
