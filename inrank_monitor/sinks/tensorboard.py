"""Measurements -> TensorBoard event file: summaries by role, scalars a matrix, histograms of log10 σ, one layout.

Records go straight to the file, in the caller's thread, so that a full disk is an error here and now.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inrank_monitor.matrices.roles import role_of
from inrank_monitor.runs import AppendFile
from inrank_monitor.sinks.measurements import Measurements

MAX_MATRICES = 100  # from here on only summaries: thousands of charts freeze the page; the log has them all
_BINS = 40


def import_protocol() -> None:
    """Import what an event file needs: a third of a second, once a process, like every import not part of the cost."""
    import tensorboard.compat.proto.event_pb2
    import tensorboard.plugins.custom_scalar.layout_pb2
    import tensorboard.summary.writer.record_writer  # noqa: F401


class EventFile:
    """Writes one event file.

    Args:
        directory: where TensorBoard looks; made if need be.
        names: of the watched matrices. They may become more.
        resume_step: steps after it, from an earlier file, no longer count.
        roles: of the matrices by name; told from the name where it is not among them.
        every_matrix: scalars and a histogram for each, however many there are, and not only of fewer than 100.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        resume_step: int | None,
        roles: Mapping[str, str] | None = None,
        every_matrix: bool = False,
    ) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2, summary_pb2
        self.names, self._roles, self._every_matrix = names, roles or {}, every_matrix
        records = [event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")]
        # TensorBoard takes the second start in a directory, not the first, for a restart that voids later steps.
        first = 0 if resume_step is None else resume_step + 1
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        records.append(event_pb2.Event(wall_time=time.time(), step=first, session_log=start))
        records.append(event_pb2.Event(wall_time=time.time(), step=resume_step or 0, summary=_layout(self._shown())))
        directory.mkdir(exist_ok=True)
        host = socket.gethostname()
        name = f"events.out.tfevents.{time.time():.0f}.{host}.{os.getpid()}.{resume_step or 0}.inrank"
        self._file = AppendFile.begin(directory / name, self._records(records))

    def add_scalars(self, rows: Sequence[tuple[int, float, str, float]]) -> None:
        """Append (step, unix seconds, tag, value) rows."""
        self._append(
            self._event.Event(
                wall_time=when, step=step, summary=self._summary.Summary(value=[self._scalar(tag, value)])
            )
            for step, when, tag, value in rows
        )

    def add_measurements(self, measurements: Measurements) -> None:
        """Append one snapshot."""
        shown = frozenset(self.names if self._shown() else ())
        roles = [self._roles.get(name) or role_of(name) for name in measurements.names]
        found = measurements.by_role(roles) | measurements.by_matrix(matrices=shown)
        values = [self._scalar(tag, value) for tag, value in found.items()]
        for name, spectrum in zip(measurements.names, measurements.singular_values, strict=True):
            if name in shown and (histogram := self._histogram(spectrum)) is not None:
                values.append(self._summary.Summary.Value(tag=f"log10_singular_values/{name}", histo=histogram))
        if values:
            event = self._event.Event(wall_time=measurements.time, step=measurements.step)
            event.summary.CopyFrom(self._summary.Summary(value=values))
            self._append([event])

    def _shown(self) -> bool:
        """Whether each matrix has scalars of its own."""
        return self._every_matrix or len(self.names) < MAX_MATRICES

    def _scalar(self, tag: str, value: float) -> Any:
        return self._summary.Summary.Value(tag=tag, simple_value=float(value))

    def _histogram(self, singular_values: np.ndarray) -> Any:
        """Histogram of log10 σ over the values above 1e-8 σ₁, where float32 weights end; None of a zero update."""
        kept = singular_values[singular_values > 1e-8 * singular_values.max(initial=0.0)]
        if kept.size == 0:
            return None
        logs = np.log10(kept.astype(np.float64))
        counts, edges = np.histogram(logs, bins=min(_BINS, max(kept.size, 1)))
        return self._summary.HistogramProto(
            min=logs.min(),
            max=logs.max(),
            num=logs.size,
            sum=logs.sum(),
            sum_squares=(logs**2).sum(),
            bucket_limit=edges[1:].tolist(),
            bucket=counts.tolist(),
        )

    def _append(self, events: Any) -> None:
        self._file.append(self._records(events))

    def _records(self, events: Any) -> bytes:
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        return records.getvalue()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _layout(every_matrix: bool) -> Any:
    """Charts with a line a matrix, of the rank, the explained ratio and the rank over null rank; or a line a role."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    def chart(title: str, tag: str) -> Any:
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$"]))

    charts = [
        chart("Rank of every matrix", "running_rank/.*"),
        chart("Explained ratio of every matrix", "explained_ratio/.*"),
        chart("Rank over null rank of every matrix", "rank_over_null_rank/.*"),
    ]
    if not every_matrix:
        charts = [
            chart("Median rank by role", "intrinsic_rank_by_role/.*/median"),
            chart("Highest rank by role", "intrinsic_rank_by_role/.*/max"),
            chart("Median rank over null rank by role", "rank_over_null_rank_by_role/.*/median"),
            chart("Median ‖ΔW‖ / ‖W0‖ by role", "relative_norm_by_role/.*/median"),
        ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="InRank Monitor", chart=charts)])
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        string_val=[layout.SerializeToString()],
        tensor_shape=tensor_shape_pb2.TensorShapeProto(),
    )
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    value = summary_pb2.Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        tensor=tensor,
        metadata=summary_pb2.SummaryMetadata(plugin_data=plugin),
    )
    return summary_pb2.Summary(value=[value])
