"""A run directory, finished or live, as pandas tables.

Reading never writes, never runs or unpickles anything, and keeps what it has: `refresh` reads only what was appended
since. What cannot be read is left out and named in `Run.problems`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from inrank_monitor.runs import run_file
from inrank_monitor.runs.log import CHECKSUM, INTEGER_METRICS, RUN_FILE, SCHEMAS, existing_segments, is_locked
from inrank_monitor.runs.segment import Segment

Status = Literal["live", "finished", "interrupted"]
_SILENT_SECONDS = 120.0  # without locks, a run is live while its files are younger than this


def open_run(path: str | Path) -> Run:
    """Open a run directory.

    Raises:
        FileNotFoundError: the directory holds no run.
        ValueError: its run.json cannot be read, or was written by a newer version.
    """
    return Run(Path(path))


def is_run(path: Path) -> bool:
    """Whether a directory holds a run."""
    return (path / RUN_FILE).is_file()


@dataclass(frozen=True)
class RunSummary:
    """One line of a list of runs; None where nothing was measured or logged yet.

    Attributes:
        path: of the run directory.
        status: live, finished or interrupted.
        created: unix seconds.
        model: class name.
        matrices: how many are watched.
        parameters: of the whole model.
        step: the last one known.
        snapshots: how many.
        loss: the last one logged.
        mean_rank: over the matrices, at the last snapshot.
        mean_rank_over_null: mean of rank / null rank there.
        overhead: the tracker's share of wall time.
    """

    path: Path
    status: Status
    created: float
    model: str
    matrices: int
    parameters: int
    step: int
    snapshots: int
    loss: float | None
    mean_rank: float | None
    mean_rank_over_null: float | None
    overhead: float | None


def list_runs(directory: str | Path) -> list[RunSummary]:
    """The runs directly below a directory, newest first; one that cannot be opened is left out."""
    summaries = []
    for path in sorted(Path(directory).iterdir()) if Path(directory).is_dir() else []:
        if is_run(path):
            try:
                summaries.append(open_run(path).summary())
            except (ValueError, OSError):
                continue
    return sorted(summaries, key=lambda summary: summary.created, reverse=True)


class Run:
    """One run directory as tables; see `open_run`.

    Attributes:
        path: of the directory.
        info: what run.json holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = {}
        self._info_text: str | None = None
        self._segments: dict[Path, Segment] = {}
        self._cache: dict[str, Any] = {}
        self.refresh()

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def threshold(self) -> float:
        """α of the logged ranks."""
        return float(self.info["options"]["threshold"])

    @property
    def buffer_rank(self) -> int:
        """B of the logged ranks."""
        return int(self.info["options"]["buffer_rank"])

    @property
    def leading(self) -> int | None:
        """How many singular values are logged of each spectrum; None: all of them."""
        options = self.info["options"]
        return None if options.get("density") else options.get("leading")

    @property
    def measured(self) -> int | None:
        """How many values of a spectrum were measured, where those after them are estimates; None: there are none."""
        options = self.info["options"]
        return options["leading"] if options.get("density") else None

    @property
    def definition(self) -> Literal["paper", "reference"]:
        """Which explained ratio the logged ranks come from."""
        return "reference" if self.info["options"]["definition"] == "reference" else "paper"

    def refresh(self) -> bool:
        """Read what is new; whether there was anything.

        Raises:
            FileNotFoundError, ValueError: as `open_run`.
        """
        changed = self._read_info()
        for table in SCHEMAS:
            for number, path in existing_segments(self.path, table).items():
                if path not in self._segments:
                    self._segments[path] = Segment(path, table, number)
        for segment in self._segments.values():
            changed |= segment.read()
        if changed:
            self._cache.clear()
        return changed

    def _read_info(self) -> bool:
        text = run_file.read_text(self.path)
        if text == self._info_text:
            return False
        info = run_file.parse(text, self.path / RUN_FILE)
        if info["id"] != self.info.get("id"):  # another run has taken the place of this one
            self._segments.clear()
        self.info, self._info_text = info, text
        return True

    @property
    def status(self) -> Status:
        """`live` while a process writes it, `finished` once closed, `interrupted` otherwise."""
        if self.info["ended"]:
            return "finished" if self.info["ended"]["status"] == "finished" else "interrupted"
        locked = is_locked(self.path)
        if locked is None:
            youngest = max(path.stat().st_mtime for path in self.path.iterdir())
            locked = time.time() - youngest < _SILENT_SECONDS
        return "live" if locked else "interrupted"

    @property
    def problems(self) -> list[str]:
        """What could not be read, in sentences; an unfinished batch of a live run is none."""
        live = self.status == "live"
        newest = max((segment.number for segment in self._segments.values()), default=0)
        found = []
        for segment in self._segments.values():
            if segment.damaged:
                found.append(f"{segment.path.name}: {segment.damaged} damaged batches were left out.")
            if segment.unread and not (live and segment.number == newest):
                found.append(
                    f"{segment.path.name}: the last {segment.unread} bytes are torn or damaged; "
                    f"{len(segment.batches)} batches before them were read."
                )
        return found

    @property
    def matrices(self) -> pd.DataFrame:
        """The watched matrices in model order, by name: parameter, part, kind, rows, cols, null_rank, initial_norm."""
        if "matrices" not in self._cache:
            table = pd.DataFrame(self.info["matrices"]).set_index("name")
            table.index.name = "matrix"
            self._cache["matrices"] = table
        matrices: pd.DataFrame = self._cache["matrices"]
        return matrices

    @property
    def coverage(self) -> pd.DataFrame:
        """Every parameter of the model: parameter, shape, watched, note."""
        return pd.DataFrame(self.info["coverage"], columns=["parameter", "shape", "watched", "note"])

    def _batches(self, table: str) -> list[pa.RecordBatch]:
        """The batches that count: a segment ends where a later one resumed."""
        resumed_at = {entry["segment"]: entry["resume_step"] for entry in self.info["segments"]}
        kept = []
        for segment in sorted(self._segments.values(), key=lambda segment: segment.number):
            if segment.table != table:
                continue
            later = [step for number, step in resumed_at.items() if number > segment.number and step is not None]
            end = min(later, default=None)
            for batch in segment.batches:
                if end is not None and (steps := batch.column("step").to_numpy()).max() > end:
                    batch = batch.filter(pa.array(steps <= end))
                if batch.num_rows:
                    kept.append(batch)
        return kept

    def _table(self, table: str) -> pd.DataFrame:
        if table not in self._cache:
            heavy = [CHECKSUM, "singular_values"] if table == "measurements" else [CHECKSUM]
            light = pa.Table.from_batches(self._batches(table), SCHEMAS[table]).drop_columns(heavy)
            frame = light.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)
            self._cache[table] = _finish_measurements(frame, self.matrices) if table == "measurements" else frame
        frame_: pd.DataFrame = self._cache[table]
        return frame_

    @property
    def measurements(self) -> pd.DataFrame:
        """One row a matrix and step: step, time, matrix, the metrics, null_rank. Do not change it in place."""
        return self._table("measurements")

    @property
    def scalars(self) -> pd.DataFrame:
        """What was logged beside: step, time, name, value."""
        return self._table("scalars")

    @property
    def events(self) -> pd.DataFrame:
        """What happened: step, time, kind, matrix, message."""
        return self._table("events")

    def singular_values(self, name: str) -> pd.DataFrame:
        """Spectra of one matrix: index step, columns 1..q, descending; NaN where the update was not finite.

        Raises:
            KeyError: there is no such matrix; names close to it are listed.
        """
        if name not in self.matrices.index:
            names = list(self.matrices.index)
            near = get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
            raise KeyError(f"no matrix {name!r} in {self.path}; there are {', '.join(near)}")
        code = int(self.matrices.index.get_indexer(pd.Index([name]))[0])
        steps, rows = [], []
        for codes, batch_steps, offsets, values in self.spectra():
            places = [code] if code < len(codes) and codes[code] == code else np.flatnonzero(codes == code)
            for place in places:
                steps.append(batch_steps[place])
                rows.append(values[offsets[place] : offsets[place + 1]])
        width = max((len(row) for row in rows), default=0)
        table = np.full((len(rows), width), np.nan)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        by_step = pd.Index(np.array(steps, dtype=np.int64), name="step")
        return pd.DataFrame(table, index=by_step, columns=pd.RangeIndex(1, width + 1))

    def spectra(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """All that was measured, batch by batch, as views: places of the matrices, steps, offsets, values.

        The singular values of a batch's row i are values[offsets[i] : offsets[i + 1]].
        """
        if "spectra" not in self._cache:
            self._cache["spectra"] = [
                (
                    batch.column("matrix").to_numpy(),
                    batch.column("step").to_numpy(),
                    batch.column("singular_values").offsets.to_numpy(),
                    batch.column("singular_values").values.to_numpy(zero_copy_only=False),
                )
                for batch in self._batches("measurements")
            ]
        spectra: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = self._cache["spectra"]
        return spectra

    def summary(self) -> RunSummary:
        """The run in one line."""
        measured, scalars = self.measurements, self.scalars
        last = measured[measured["step"] == measured["step"].max()]
        ranks = last["intrinsic_rank"].astype("Float64")

        def latest(*names: str) -> float | None:
            values = scalars.loc[scalars["name"].isin(names), "value"]
            return float(values.iloc[-1]) if len(values) else None

        def mean(values: pd.Series) -> float | None:
            return None if values.dropna().empty else float(values.mean())

        known = [int(table["step"].max()) for table in (measured, scalars) if len(table)]
        return RunSummary(
            path=self.path,
            status=self.status,
            created=float(self.info["created"]),
            model=str(self.info["model"]["class"]),
            matrices=len(self.info["matrices"]),
            parameters=int(self.info["model"].get("parameters", 0)),
            step=max(known, default=0),
            snapshots=int(measured["step"].nunique()),
            loss=latest("loss", "train/loss", "train_loss"),
            mean_rank=mean(ranks),
            mean_rank_over_null=mean(ranks / last["null_rank"].clip(lower=1)),
            overhead=latest("tracker_overhead"),
        )


def _finish_measurements(frame: pd.DataFrame, matrices: pd.DataFrame) -> pd.DataFrame:
    """Names in place of numbers, the null rank beside every rank, sorted by step and model order."""
    codes = frame["matrix"].to_numpy(dtype=np.int64)
    known = (codes >= 0) & (codes < len(matrices))
    frame = frame[known].assign(matrix=pd.Categorical.from_codes(codes[known], pd.Index(matrices.index)))
    frame["null_rank"] = matrices["null_rank"].to_numpy()[codes[known]]
    for column in (*INTEGER_METRICS, "null_rank"):
        frame[column] = frame[column].astype("Int32")
    return frame.sort_values(["step", "matrix"], kind="stable", ignore_index=True)
