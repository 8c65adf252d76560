"""Measuring in a training loop: when, what, and where it is written."""

from __future__ import annotations

from inrank_monitor.tracking.attaching import attach
from inrank_monitor.tracking.optimizer_steps import was_skipped
from inrank_monitor.tracking.recorder import Recorder, ScalarRow
from inrank_monitor.tracking.run_start import check_same, describe_matrix, open_directory, versions
from inrank_monitor.tracking.schedule import SPENDABLE, Automatic, Every, Where
from inrank_monitor.tracking.snapshot import RankOptions, Snapshot, check_leading, merged, metric_columns, take_snapshot
from inrank_monitor.tracking.tracker import SpectrumTracker

__all__ = [
    "SPENDABLE",
    "Automatic",
    "Every",
    "RankOptions",
    "Recorder",
    "ScalarRow",
    "Snapshot",
    "SpectrumTracker",
    "Where",
    "attach",
    "check_leading",
    "check_same",
    "describe_matrix",
    "merged",
    "metric_columns",
    "open_directory",
    "take_snapshot",
    "versions",
    "was_skipped",
]
