"""A snapshot's spectra as the columns of its record batch: spectrum → metrics → log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from inrank_monitor.matrices import Matrix
from inrank_monitor.ranks import RankRule
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
    when it decides whether to grow.
    """
    rows = len(snapshot.places)
    columns: dict[str, Any] = {name: np.full(rows, np.nan) for name in FLOAT_METRICS}
    columns |= {name: np.zeros(rows, dtype=np.int64) for name in INTEGER_METRICS}
    rule = options.rule
    groups: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
    for row, (place, spectrum) in enumerate(zip(snapshot.places, snapshot.spectra, strict=True)):
        matrix = matrices[place]
        padded = min(matrix.rows, matrix.cols) if matrix.in_factors and options.stored is None else 0
        buffer_rank = rule.buffer_rank_of(matrix.rows, matrix.cols)
        groups[len(spectrum.values), max(padded, len(spectrum.values)), buffer_rank].append(row)
    places = np.array(snapshot.places, dtype=np.int64)
    for (_, size, buffer_rank), members in groups.items():
        values = np.stack([snapshot.spectra[row].values.numpy() for row in members])
        whole = np.array([snapshot.spectra[row].frobenius_norm for row in members])
        group = _metrics(values, whole, size, replace(rule, buffer_rank=buffer_rank), running[places[members]])
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
    values: np.ndarray, whole: np.ndarray, size: int, rule: RankRule, previous: np.ndarray
) -> dict[str, np.ndarray]:
    rank = rank_metrics.intrinsic_rank(values, rule.threshold, rule.buffer_rank, rule.definition, size)
    at = np.clip(previous, 1, size)
    return {
        "intrinsic_rank": rank,
        "running_rank": np.maximum(previous, rank),
        "explained_ratio": rank_metrics.explained_ratio(values, at, rule.buffer_rank, rule.definition, size),
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
