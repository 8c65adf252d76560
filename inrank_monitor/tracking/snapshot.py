"""One snapshot: every matrix's cumulative update, its spectrum, and the rows of metrics that are logged.

weights → matrices → update → spectrum → metrics, for one step. The tracker says when; the run log keeps the result.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inrank_monitor.distributed import Share
from inrank_monitor.matrices import Adapter, InitialWeights, Matrix
from inrank_monitor.ranks import Definition
from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.runs import FLOAT_METRICS, INTEGER_METRICS
from inrank_monitor.spectra import Spectrum, SpectrumMethod, SpectrumPool
from inrank_monitor.tracking.update_spectra import Problem, measure_shards, measure_whole, read_values

ENERGY_SHARE = 0.9
_NON_FINITE = "non_finite"


@dataclass(frozen=True)
class RankOptions:
    """How ranks are drawn from spectra; see `rank_metrics`. `leading` and `density`: see `SpectrumMethod`."""

    threshold: float = 0.9
    buffer_rank: int = 100
    definition: Definition = "paper"
    leading: int | None = None
    density: bool = False


def check_leading(leading: int | None, density: bool = False) -> None:
    """Raise a ValueError unless `leading` is None or an integer of at least 2; `density` needs it."""
    if leading is not None and (isinstance(leading, bool) or not isinstance(leading, int) or leading < 2):
        raise ValueError(f"leading must be an integer of at least 2, got {leading!r}")
    if density and leading is None:
        raise ValueError(
            "density=True estimates the values after the leading ones: give leading, how many are measured"
        )


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
        failed: the matrices of which this process could not give its part.
        notices: what happened to adapters: merged, switched, disabled.
    """

    step: int
    time: float
    places: list[int] = field(default_factory=list)
    spectra: list[Spectrum] = field(default_factory=list)
    layer_ranks: list[tuple[int | None, int | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


def take_snapshot(
    step: int,
    matrices: Sequence[Matrix],
    initial: InitialWeights,
    method: SpectrumMethod,
    pool: SpectrumPool,
    share: Share,
) -> Snapshot:
    """Measure this process's share of the matrices as they are now. The model is only read; the spectra are complete
    when this returns. Where matrices lie in shards, every process calls it.
    """
    held = [matrices[place] for place in share.held]
    failure = None
    try:
        share.reshard()
        snapshot = Snapshot(step, time.time(), notices=_news_of_adapters(held))
        values = read_values(held)
        found = list(measure_whole(matrices, values, initial, method, pool, share))
    except Exception as error:
        failure = error
    together = bool(share.sharded) and share.processes.agree(failure is None)
    if failure is not None:
        raise failure
    if together:  # otherwise another process tells why what lies in shards is left out
        found += measure_shards(matrices, values, initial, method, pool, share)
    for place, (spectrum, problem) in found:
        matrix = matrices[place]
        if problem:
            snapshot.problems.append(problem)
        if spectrum is None:
            snapshot.failed.append(place)
            continue
        snapshot.places.append(place)
        snapshot.spectra.append(spectrum)
        factors = values[matrix.parameter]
        snapshot.layer_ranks.append(
            (int(matrix.module.rank), factors[0].shape[-1]) if matrix.in_factors else (None, None)  # type: ignore[arg-type]
        )
    return snapshot


def _news_of_adapters(matrices: Sequence[Matrix]) -> list[Problem]:
    return [  # one a layer: an adapter that is watched as several matrices tells its news once
        ("adapter_changed", matrix.name, news)
        for matrix in matrices
        if isinstance(matrix.module, Adapter) and (news := matrix.module.news())
    ]


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The processes' shares of one step as one snapshot, in the order of the matrices."""
    found: dict[int, tuple[Spectrum, tuple[int | None, int | None]]] = {}
    for part in snapshots:
        for place, spectrum, ranks in zip(part.places, part.spectra, part.layer_ranks, strict=True):
            found.setdefault(place, (spectrum, ranks))
    for place in {place for part in snapshots for place in part.failed}:
        found.pop(place, None)  # measured without that part, which says nothing
    places = sorted(found)
    spectra, layer_ranks = [found[place][0] for place in places], [found[place][1] for place in places]
    problems = list(dict.fromkeys(problem for part in snapshots for problem in part.problems))
    told = {matrix for kind, matrix, _ in problems if kind != _NON_FINITE}
    problems = [problem for problem in problems if problem[0] != _NON_FINITE or problem[1] not in told]
    notices = list(dict.fromkeys(notice for part in snapshots for notice in part.notices))
    return Snapshot(snapshots[0].step, snapshots[0].time, places, spectra, layer_ranks, problems, notices)


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
        padded = (
            min(matrix.rows, matrix.cols) if matrix.in_factors and (options.leading is None or options.density) else 0
        )
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
