"""What the tracker's thread makes of a snapshot: a made-up one is recorded, and looked at."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from inrank_monitor.matrices import Matrix
from inrank_monitor.matrices.roles import role_of
from inrank_monitor.plan.quantities import Recorded
from inrank_monitor.runs import RunOptions, make_batch
from inrank_monitor.sinks import EventFile, Measurements, import_protocol
from inrank_monitor.spectra import Spectrum
from inrank_monitor.tracking import Snapshot, metric_columns


def recorded(matrices: Sequence[Matrix], leading: int | None = None, tensorboard: bool = True) -> Recorded:
    """Seconds and bytes of a snapshot of these matrices; the numbers in it decide neither.

    Args:
        matrices: with their sides; what they hold is not looked at.
        leading: how many values are logged; None: all.
        tensorboard: write the event file too.
    """
    if tensorboard:
        import_protocol()  # once a process, and no part of the cost
    lengths = [min(matrix.rows, matrix.cols, leading or matrix.rows) for matrix in matrices]
    spectra = [Spectrum(torch.arange(1, length + 1, device="cpu").double().rsqrt(), 0.0, 10.0) for length in lengths]
    places = list(range(len(matrices)))
    snapshot = Snapshot(1, time.time(), places, spectra, [(None, None)] * len(matrices))
    names, ones = [matrix.name for matrix in matrices], [1] * len(matrices)
    began = time.thread_time()
    running = np.zeros(len(matrices), dtype=np.int64)
    columns = metric_columns(snapshot, matrices, ones, RunOptions(leading=leading), running)
    log = make_batch("measurements", columns).serialize().size + _own_scalars()
    events = _events(Measurements.of(1, snapshot.time, columns, names, ones), matrices) if tensorboard else 0
    return Recorded(time.thread_time() - began, log, events)


def _own_scalars() -> int:
    """Bytes of the two numbers that the tracker logs of itself."""
    columns = {"step": [1, 1], "time": [1.0, 1.0], "name": ["tracker_seconds", "tracker_overhead"], "value": [1.0, 1.0]}
    return int(make_batch("scalars", columns).serialize().size)


def _events(measurements: Measurements, matrices: Sequence[Matrix]) -> int:
    roles = {matrix.name: role_of(matrix.name, matrix.part, matrix.kind) for matrix in matrices}
    with tempfile.TemporaryDirectory() as folder:
        file = EventFile(Path(folder) / "events", list(roles), None, roles)
        try:
            before = _size(folder)
            file.add_measurements(measurements)
            file.add_scalars([(1, measurements.time, name, 1.0) for name in ("tracker_seconds", "tracker_overhead")])
            return _size(folder) - before
        finally:
            file.close()


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
