"""Measuring in a training loop: when, what, and where it is written."""

from __future__ import annotations

from inrank_monitor.tracking.attaching import attach
from inrank_monitor.tracking.automatic import SPENDABLE, TEN_MINUTES, Automatic
from inrank_monitor.tracking.columns import metric_columns
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.optimizer_steps import Listener, OptimizerSteps
from inrank_monitor.tracking.optimizers import unwrap_optimizer, was_skipped
from inrank_monitor.tracking.recorder import Recorder, ScalarRow
from inrank_monitor.tracking.schedule import Every, Schedule, Where
from inrank_monitor.tracking.simulation import Simulated, simulate
from inrank_monitor.tracking.snapshot import Snapshot, merged, take_snapshot
from inrank_monitor.tracking.started_run import StartedRun, add_segment, check_same, first_info, open_directory
from inrank_monitor.tracking.tracker import SpectrumTracker
from inrank_monitor.tracking.true_rows import weights_were_rewritten
from inrank_monitor.tracking.untraced import untraced, untraced_hook
from inrank_monitor.tracking.watched import Watched

__all__ = [
    "SPENDABLE",
    "TEN_MINUTES",
    "Automatic",
    "Every",
    "Listener",
    "Measuring",
    "OptimizerSteps",
    "Recorder",
    "ScalarRow",
    "Schedule",
    "Simulated",
    "Snapshot",
    "SpectrumTracker",
    "StartedRun",
    "Watched",
    "Where",
    "add_segment",
    "attach",
    "check_same",
    "first_info",
    "merged",
    "metric_columns",
    "open_directory",
    "simulate",
    "take_snapshot",
    "untraced",
    "untraced_hook",
    "unwrap_optimizer",
    "was_skipped",
    "weights_were_rewritten",
]
