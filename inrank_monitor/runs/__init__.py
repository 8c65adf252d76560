"""A run on disk: written while training runs, read back as tables, ranked anew by another rule.

Writing needs no pandas, and reading needs it at once: what reads is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inrank_monitor.runs.adding import add_tables
from inrank_monitor.runs.append_file import AppendFile
from inrank_monitor.runs.claim import WRITER_FILE, Claim, OtherWriterError, SegmentTakenError
from inrank_monitor.runs.lock import LOCK_FILE, Lock, is_locked
from inrank_monitor.runs.log import (
    DIRECTION_METRICS,
    FLOAT_METRICS,
    INTEGER_METRICS,
    RUN_FILE,
    SCHEMA_VERSION,
    SCHEMAS,
    TENSORBOARD_DIR,
    WEIGHT_METRICS,
    WEIGHTS_FILE,
    RunLog,
    existing_segments,
    make_batch,
    segment_path,
    storable,
    write_json,
)
from inrank_monitor.runs.notes import NOTES_FILE, RunNotes, is_found, read_notes, write_notes
from inrank_monitor.runs.options import RunOptions, check_leading
from inrank_monitor.runs.paths import local_name, local_path, output_file
from inrank_monitor.runs.run_file import read_info

if TYPE_CHECKING:
    from inrank_monitor.runs.comparability import Caveat, caveats, common_matrices, lacking
    from inrank_monitor.runs.configuration import (
        Configuration,
        RunGroup,
        configuration_of,
        difference_table,
        group_runs,
    )
    from inrank_monitor.runs.divergence import DIVERGED, Divergence, find_divergence, loss_divergence, with_divergence
    from inrank_monitor.runs.export import export_run
    from inrank_monitor.runs.folder import RunFolder, list_runs, read_runs
    from inrank_monitor.runs.group_table import comparison_table
    from inrank_monitor.runs.judging import verdicts
    from inrank_monitor.runs.keeping import Contents, contents, delete_run, rename_run
    from inrank_monitor.runs.losses import (
        LOSS_KINDS,
        first_choice,
        lacking_scalar,
        last_value,
        loss_name,
        named_scalar,
        scalar_choices,
        scalar_rows,
    )
    from inrank_monitor.runs.peak import FIRST_STEPS, peak_ranks, peaks, running_ranks
    from inrank_monitor.runs.recomputation import logged_rule, recompute
    from inrank_monitor.runs.run import Run, is_run, open_run, snapshot_table
    from inrank_monitor.runs.shared_run import RunState, SharedRun
    from inrank_monitor.runs.summary import RunSummary
    from inrank_monitor.runs.timeline import AXES, Alignment, Axis, Timeline, align, common_axes, timeline_of

_READING = {
    "comparison_table": "group_table",
    "scalar_rows": "losses",
    "lacking_scalar": "losses",
    "AXES": "timeline",
    "Alignment": "timeline",
    "Axis": "timeline",
    "Timeline": "timeline",
    "align": "timeline",
    "common_axes": "timeline",
    "timeline_of": "timeline",
    "LOSS_KINDS": "losses",
    "first_choice": "losses",
    "last_value": "losses",
    "loss_name": "losses",
    "named_scalar": "losses",
    "scalar_choices": "losses",
    "Configuration": "configuration",
    "RunGroup": "configuration",
    "configuration_of": "configuration",
    "difference_table": "configuration",
    "group_runs": "configuration",
    "common_matrices": "comparability",
    "lacking": "comparability",
    "caveats": "comparability",
    "Caveat": "comparability",
    "Contents": "keeping",
    "DIVERGED": "divergence",
    "Divergence": "divergence",
    "FIRST_STEPS": "peak",
    "Run": "run",
    "RunFolder": "folder",
    "RunState": "shared_run",
    "RunSummary": "summary",
    "SharedRun": "shared_run",
    "contents": "keeping",
    "delete_run": "keeping",
    "export_run": "export",
    "find_divergence": "divergence",
    "is_run": "run",
    "list_runs": "folder",
    "logged_rule": "recomputation",
    "loss_divergence": "divergence",
    "open_run": "run",
    "peak_ranks": "peak",
    "peaks": "peak",
    "read_runs": "folder",
    "recompute": "recomputation",
    "rename_run": "keeping",
    "snapshot_table": "run",
    "running_ranks": "peak",
    "verdicts": "judging",
    "with_divergence": "divergence",
}
__all__ = [
    "AXES",
    "DIRECTION_METRICS",
    "DIVERGED",
    "FIRST_STEPS",
    "FLOAT_METRICS",
    "INTEGER_METRICS",
    "LOCK_FILE",
    "LOSS_KINDS",
    "NOTES_FILE",
    "RUN_FILE",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "TENSORBOARD_DIR",
    "WEIGHTS_FILE",
    "WEIGHT_METRICS",
    "WRITER_FILE",
    "Alignment",
    "AppendFile",
    "Axis",
    "Caveat",
    "Claim",
    "Configuration",
    "Contents",
    "Divergence",
    "Lock",
    "OtherWriterError",
    "Run",
    "RunFolder",
    "RunGroup",
    "RunLog",
    "RunNotes",
    "RunOptions",
    "RunState",
    "RunSummary",
    "SegmentTakenError",
    "SharedRun",
    "Timeline",
    "add_tables",
    "align",
    "caveats",
    "check_leading",
    "common_axes",
    "common_matrices",
    "comparison_table",
    "configuration_of",
    "contents",
    "delete_run",
    "difference_table",
    "existing_segments",
    "export_run",
    "find_divergence",
    "first_choice",
    "group_runs",
    "is_found",
    "is_locked",
    "is_run",
    "lacking",
    "lacking_scalar",
    "last_value",
    "list_runs",
    "local_name",
    "local_path",
    "logged_rule",
    "loss_divergence",
    "loss_name",
    "make_batch",
    "named_scalar",
    "open_run",
    "output_file",
    "peak_ranks",
    "peaks",
    "read_info",
    "read_notes",
    "read_runs",
    "recompute",
    "rename_run",
    "running_ranks",
    "scalar_choices",
    "scalar_rows",
    "segment_path",
    "snapshot_table",
    "storable",
    "timeline_of",
    "verdicts",
    "with_divergence",
    "write_json",
    "write_notes",
]


def __getattr__(name: str) -> Any:
    if name in _READING:
        return getattr(import_module(f"inrank_monitor.runs.{_READING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
