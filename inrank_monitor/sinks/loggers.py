"""Sinks for W&B, MLflow and trackio. Each finds its run in the thread that attaches: others may not see it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from inrank_monitor.matrices import glob
from inrank_monitor.sinks.interface import Sink
from inrank_monitor.sinks.measurements import CURVES, METRICS, Measurements

PREFIX = "inrank/"
_WANDB_STEP = "inrank/step"
_MLFLOW_BATCH = 1000  # metrics that its server takes at once


class _LoggerSink(Sink):
    """What the loggers have in common: which numbers become charts; see `Measurements.scalars`.

    Args:
        curves: metrics that each matrix has a chart of.
        matrices: globs over the names of the matrices that have them. Default: all if they are at most 32, else one
            chart for matrices that differ only in their numbers.
    """

    def __init__(self, curves: Sequence[str], matrices: str | Sequence[str] | None) -> None:
        self._curves = [curves] if isinstance(curves, str) else list(curves)
        if unknown := [curve for curve in self._curves if curve not in METRICS]:
            raise ValueError(f"curves must be of {', '.join(METRICS)}; got {unknown[0]!r}")
        self._patterns = [matrices] if isinstance(matrices, str) else matrices
        self._matrices: frozenset[str] | None = None

    def connect(self, names: Sequence[str]) -> None:
        """Find the matrices."""
        if self._patterns is None:
            return
        chosen: set[str] = set()
        for pattern in self._patterns:
            found = [name for name in names if glob(pattern).fullmatch(name)]
            if not found:
                raise ValueError(
                    f"matrices pattern {pattern!r} of {type(self).__name__} matches no watched matrix. "
                    f"Names look like {', '.join(names[:3])}."
                )
            chosen.update(found)
        self._matrices = frozenset(chosen)

    def _scalars(self, measurements: Measurements) -> dict[str, float]:
        values = measurements.scalars(self._curves, self._matrices)
        return {PREFIX + tag: value for tag, value in values.items()}


class WandbSink(_LoggerSink):
    """Weights & Biases: `inrank/...` in a run, over `inrank/step`.

    W&B has one row counter a run, which only goes up, and drops rows whose `step=` is below it. So a snapshot takes a
    row of its own only while the counter is below the optimizer step; else it joins the next row of the loop's own.
    Whoever gives `run.log` no `step=`, or the optimizer step or more, loses nothing while the tracker is open; closing
    it writes what still waits.

    Args:
        run: what `wandb.init` returned. Default: the active run when the tracker is attached.
        curves: metrics that each matrix has a chart of.
        matrices: globs over the names of the matrices that have them.
        own_rows: False always joins the row that is open: for loops that give `run.log` a `step=` that counts something
            slower than optimizer steps, such as epochs. Of several snapshots in one row the last stays.

    Raises:
        ImportError: at attach: wandb is not installed.
        RuntimeError: at attach: there is no run.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        curves: Sequence[str] = CURVES,
        matrices: str | Sequence[str] | None = None,
        own_rows: bool = True,
    ) -> None:
        super().__init__(curves, matrices)
        self._given, self._own_rows = run, own_rows
        self._run: Any = None
        self._defined: set[str] = set()
        self._waiting: deque[dict[str, float]] = deque()
        self._joined = -1  # the row that holds a snapshot already

    def connect(self, names: Sequence[str]) -> None:
        """Find the run."""
        super().connect(names)
        import wandb

        self._run, self._joined = self._given or wandb.run, -1
        self._defined.clear()
        self._waiting.clear()
        if self._run is None:
            raise RuntimeError("WandbSink finds no run: call wandb.init() before attach, or give run=")

    def write(self, measurements: Measurements) -> None:
        """Log one snapshot."""
        self._check_open()
        values = self._scalars(measurements)
        # One by one: of two globs that fit, such as the "*" of transformers' Trainer, W&B takes either.
        for name in sorted(values.keys() - self._defined):
            self._run.define_metric(name, step_metric=_WANDB_STEP)
            self._defined.add(name)
        self._waiting.append({**values, _WANDB_STEP: measurements.step})
        if self._own_rows:
            self._send()
        else:
            self._run.log(self._waiting.pop(), commit=False)

    def _send(self, closing: bool = False) -> None:
        while self._waiting:
            row, step = self._waiting[0], self._run.step
            own = step < row[_WANDB_STEP]
            if step == self._joined:
                if not own and not closing:
                    return  # until the loop begins another row
                self._run.log({}, commit=True)
                self._joined = -1
                continue
            self._run.log(row, commit=own)
            self._joined = -1 if own else self._run.step
            self._waiting.popleft()

    def close(self) -> None:
        """Write what waits for rows of the loop's, which may have ended."""
        if self._waiting:
            self._check_open()
            self._send(closing=True)

    def _check_open(self) -> None:
        """Raise at once if the run is finished; asked for its step, W&B would wait half a minute for an answer."""
        self._run.define_metric(_WANDB_STEP, hidden=True)


class MlflowSink(_LoggerSink):
    """MLflow: metrics `inrank/...` of a run, at the optimizer step; `[q]` becomes `.q`, other odd characters `_`.

    Args:
        run_id: of a run of the current tracking server. Default: the active run when the tracker is attached.
        curves: metrics that each matrix has a chart of.
        matrices: globs over the names of the matrices that have them.

    Raises:
        ImportError: at attach: mlflow is not installed.
        RuntimeError: at attach: there is no run.
    """

    def __init__(
        self,
        run_id: str | None = None,
        *,
        curves: Sequence[str] = CURVES,
        matrices: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(curves, matrices)
        self._given, self._run_id = run_id, ""
        self._client: Any = None

    def connect(self, names: Sequence[str]) -> None:
        """Find the run: MLflow's active run is known to this thread alone."""
        super().connect(names)
        import mlflow

        active = mlflow.active_run()
        run_id = self._given or (active.info.run_id if active else None)
        if run_id is None:
            raise RuntimeError("MlflowSink finds no run: call mlflow.start_run() before attach, or give run_id=")
        self._client = mlflow.MlflowClient(mlflow.get_tracking_uri())
        self._run_id = self._client.get_run(run_id).info.run_id

    def write(self, measurements: Measurements) -> None:
        """Log one snapshot."""
        from mlflow.entities import Metric

        milliseconds = int(measurements.time * 1000)
        metrics = [
            Metric(_mlflow_name(tag), value, milliseconds, measurements.step)
            for tag, value in self._scalars(measurements).items()
        ]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self._run_id, metrics[start : start + _MLFLOW_BATCH], synchronous=True)


class TrackioSink(_LoggerSink):
    """trackio: `inrank/...` in a run, at the optimizer step.

    Args:
        run: what `trackio.init` returned. Default: the active run when the tracker is attached.
        curves: metrics that each matrix has a chart of.
        matrices: globs over the names of the matrices that have them.

    Raises:
        ImportError: at attach: trackio is not installed, or too old.
        RuntimeError: at attach: there is no run.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        curves: Sequence[str] = CURVES,
        matrices: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(curves, matrices)
        self._given, self._run = run, run

    def connect(self, names: Sequence[str]) -> None:
        """Find the run: trackio's active run is known to this thread alone."""
        super().connect(names)
        try:
            from trackio import context_vars
        except ImportError as error:
            raise ImportError(f"TrackioSink needs trackio, version 0.43 or newer: {error}") from error
        self._run = self._given or context_vars.current_run.get()
        if self._run is None:
            raise RuntimeError("TrackioSink finds no run: call trackio.init() before attach, or give run=")

    def write(self, measurements: Measurements) -> None:
        """Log one snapshot."""
        self._run.log(self._scalars(measurements), step=measurements.step)


def _mlflow_name(tag: str) -> str:
    return re.sub(r"[^\w./ -]", "_", re.sub(r"\[(.*?)\]", r".\1", tag))
