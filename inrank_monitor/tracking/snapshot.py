"""One snapshot: every matrix's cumulative update and its spectrum, at one step.

weights → matrices → update → spectrum. The tracker says when; `columns` draws the metrics, the run log keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from inrank_monitor.matrices import Adapter, Matrix
from inrank_monitor.spectra import Spectrum
from inrank_monitor.tracking.beside import Directions, measure_directions, measure_weights
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.update_spectra import Measured, Problem, measure_shards, measure_whole, read_values

_NON_FINITE = "non_finite"


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
        weights: spectra of W_t by place, where they were asked for.
        directions: of the updates by place, likewise.
        coming: what `finish` takes in: place, what was found or will be, the layer's rank, why its weights are gone.
    """

    step: int
    time: float
    places: list[int] = field(default_factory=list)
    spectra: list[Spectrum] = field(default_factory=list)
    layer_ranks: list[tuple[int | None, int | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    weights: dict[int, Spectrum] = field(default_factory=dict)
    directions: dict[int, Directions] = field(default_factory=dict)
    coming: list[tuple[int, Measured | Future[Measured], tuple[int | None, int | None], str | None]] = field(
        default_factory=list, repr=False
    )

    @property
    def is_finished(self) -> bool:
        """Whether `finish` has nothing to wait for."""
        return not any(isinstance(found, Future) for _, found, _, _ in self.coming)

    def finish(self) -> Self:
        """Wait for what is solved beside the loop, and take it in."""
        coming, self.coming = self.coming, []
        for place, found, ranks, gone in coming:
            spectrum, problem = found.result() if isinstance(found, Future) else found
            if problem:
                kind, name, message = problem
                self.problems.append((kind, name, gone or message))
            if spectrum is None:
                self.failed.append(place)
                continue
            self.places.append(place)
            self.spectra.append(spectrum)
            self.layer_ranks.append(ranks)
        return self

    def events(self) -> list[tuple[str, str | None, str]]:
        """One event a kind of problem or notice: a diverged model must not fill the log with one a matrix."""
        return one_event_a_kind([*self.problems, *self.notices])


def one_event_a_kind(problems: Sequence[Problem]) -> list[tuple[str, str | None, str]]:
    """(kind, matrix, message) of each kind; of several matrices no matrix, and their names in the message."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for kind, matrix, message in problems:
        by_kind.setdefault(kind, []).append((matrix, message))
    rows: list[tuple[str, str | None, str]] = []
    for kind, found in by_kind.items():
        names = ", ".join(name for name, _ in found[:5]) + (", …" if len(found) > 5 else "")
        message = found[0][1] if len(found) == 1 else f"{len(found)} matrices ({names}): {found[0][1]}"
        rows.append((kind, found[0][0] if len(found) == 1 else None, message))
    return rows


def take_snapshot(step: int, measuring: Measuring) -> Snapshot:
    """Measure this process's share of the matrices as they are now.

    The model is only read, and has been when this returns; of weights on an accelerator the spectra are complete after
    `finish`. Where matrices lie in shards, every process calls it.
    """
    matrices, share = measuring.matrices, measuring.share
    held = [matrices[place] for place in share.held]
    failure = None
    try:
        share.reshard()
        snapshot = Snapshot(step, time.time(), notices=_news_of_adapters(held))
        gone = measuring.gone()
        values = read_values(held, gone)
        found = list(measure_whole(measuring, values))
        snapshot.weights = measure_weights(measuring, values)
        snapshot.directions = measure_directions(measuring, values, step)
    except Exception as error:
        failure = error
    together = bool(share.sharded) and share.processes.agree(failure is None)
    if failure is not None:
        raise failure
    if together:  # otherwise another process tells why what lies in shards is left out
        found += measure_shards(measuring, values)
    for place, measured in found:
        matrix = matrices[place]
        factors = values[matrix.parameter]
        ranks = (int(matrix.module.rank), factors[0].shape[-1]) if matrix.in_factors and factors else (None, None)  # type: ignore[arg-type]
        snapshot.coming.append((place, measured, ranks, gone.get(matrix.name)))
    return snapshot if not snapshot.is_finished else snapshot.finish()


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
    whole = Snapshot(snapshots[0].step, snapshots[0].time, places, spectra, layer_ranks, problems, notices)
    for part in snapshots:
        whole.weights |= part.weights
        whole.directions |= part.directions
    return whole
