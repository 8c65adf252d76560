"""Scans, and what makes two runs the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from inrank_monitor import scan
from inrank_monitor.runs.run import Run


def scanned(paths: list[Path], directory: Path, **options: Any) -> Run:
    return scan(paths, directory, **{"buffer_rank": 3, "tensorboard": False} | options)


def assert_same_measurements(run: Run, other: Run) -> None:
    """Every column but the time, and the spectra, to float32 rounding; matrices, null ranks and their order."""
    columns = ["name", "parameter", "part", "kind", "rows", "cols", "null_rank"]
    tables = [pd.DataFrame(each.info["matrices"]) for each in (run, other)]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])
    pd.testing.assert_series_equal(tables[0]["initial_norm"], tables[1]["initial_norm"], rtol=1e-6)
    measured = [each.measurements.drop(columns="time") for each in (run, other)]
    assert len(measured[0]) > 0
    pd.testing.assert_frame_equal(measured[0], measured[1], rtol=1e-5)
    for name in run.matrices.index:
        one, two = (each.singular_values(str(name)) for each in (run, other))
        # absolute: a singular value that is rounding noise has no digits of its own
        pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=1e-6 * float(one.to_numpy().max()))
