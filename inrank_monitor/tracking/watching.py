"""The built-in watches over one run: they remember the last snapshots, and say once what has happened to a matrix.

In the recorder's thread, on numbers that are there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inrank_monitor.matrices import Matrix
from inrank_monitor.ranks import WATCHES, History
from inrank_monitor.tracking.snapshot import Snapshot
from inrank_monitor.tracking.update_spectra import Problem

_METRICS = ("frobenius_norm", "spectral_norm", "nuclear_norm", "effective_rank")
_APART = 0.02  # of the steps: nearer to one another than this only the newest snapshots are kept
_MESSAGES = {
    "stopped_moving": "has not changed for {steps} steps, while others still move",
    "norm_exploded": "‖ΔW‖ = {frobenius_norm:.3g}, {times:.3g} times what such a matrix usually has, and growing fast",
    "spike": "one direction takes over: σ₁ = {spectral_norm:.3g} of ‖ΔW‖ = {frobenius_norm:.3g}",
    "rank_collapsed": "effective rank fell to {effective_rank:.3g}, and directions that were there are gone",
}


class Watches:
    """Of one run.

    Args:
        matrices: that it watches.
        norms: ‖W0‖_F, one a matrix.
    """

    def __init__(self, matrices: Sequence[Matrix], norms: Sequence[float]) -> None:
        self._sides = np.array([min(matrix.rows, matrix.cols) for matrix in matrices], dtype=float)
        self._names = [matrix.name for matrix in matrices]
        self._size = np.fmax(np.array(norms, dtype=float), np.sqrt(self._sides))
        self._steps: list[int] = []
        self._kept: list[np.ndarray] = []  # (metrics, matrices) of each
        self._ringing = {kind: np.zeros(len(norms), dtype=bool) for kind in WATCHES}
        self._rang = {kind: np.zeros(len(norms)) for kind in WATCHES}  # the last step at which each did

    def look(self, snapshot: Snapshot, columns: Mapping[str, Any]) -> list[Problem]:
        """What has happened since the last snapshot: (kind, matrix, message).

        Each once for as long as it lasts, and not again before the steps have doubled.
        """
        now = np.full((len(_METRICS), len(self._names)), np.nan)
        now[:, snapshot.places] = [columns[name] for name in _METRICS]
        self._keep(snapshot.step, now)
        kept = np.stack(self._kept, axis=1)  # (metrics, snapshots, matrices)
        history = History(np.array(self._steps), *kept, size=self._size, short_side=self._sides)
        found = []
        for kind, watch in WATCHES.items():
            rings = watch(history)
            for place in np.flatnonzero(rings & ~self._ringing[kind] & (snapshot.step >= 2 * self._rang[kind])):
                self._rang[kind][place] = snapshot.step
                found.append((kind, self._names[place], self._message(kind, history, int(place))))
            # where this snapshot says nothing of a matrix, what was said of it stands
            self._ringing[kind] = np.where(np.isfinite(now[0]), rings, self._ringing[kind])
        return found

    def _keep(self, step: int, now: np.ndarray) -> None:
        """The last doubling of steps and one before, thinned to 2 % of them, and the newest two."""
        while len(self._steps) > 2 and self._steps[1] * 2 < step:
            self._steps.pop(0)
            self._kept.pop(0)
        if len(self._steps) > 2 and self._steps[-1] - self._steps[-3] < _APART * step:
            self._steps.pop(-2)
            self._kept.pop(-2)
        self._steps.append(step)
        self._kept.append(now)

    def _message(self, kind: str, history: History, place: int) -> str:
        numbers = {name: float(getattr(history, name)[-1, place]) for name in _METRICS}
        same = history.frobenius_norm[:, place] == history.frobenius_norm[-1, place]
        first = int(np.argmax(same))  # the earliest snapshot that is kept with this norm
        steps = int(history.steps[-1] - history.steps[first])
        times = numbers["frobenius_norm"] / self._size[place]
        return _MESSAGES[kind].format(**numbers, steps=steps, times=times)
