"""A run directory, finished or live, as pandas tables.

It keeps what it has: `refresh` reads only what was appended since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from inrank_monitor.console import html_rows, never_raises
from inrank_monitor.naming import find_name
from inrank_monitor.ranks import Definition, RankRule, buffer_rank_text
from inrank_monitor.runs.curve import too_few_points
from inrank_monitor.runs.divergence import Divergence, find_divergence
from inrank_monitor.runs.log import CHECKSUM, INTEGER_METRICS, RUN_FILE, SCHEMAS, make_batch
from inrank_monitor.runs.log_files import LogFiles, Status
from inrank_monitor.runs.options import RunOptions
from inrank_monitor.runs.paths import local_path
from inrank_monitor.runs.summary import RunSummary, summarise


def open_run(path: str | Path) -> Run:
    """Open a run directory.

    Raises:
        FileNotFoundError: the directory holds no run.
        ValueError: its run.json cannot be read, or was written by a newer version.
    """
    return Run(local_path(path, "path"))


def is_run(path: Path) -> bool:
    """Whether a directory holds a run."""
    return (path / RUN_FILE).is_file()


class Run:
    """One run directory as tables; see `open_run`.

    Attributes:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = LogFiles(path)
        self._cache: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Read what is new; whether there was anything.

        Raises:
            FileNotFoundError, ValueError: as `open_run`.
        """
        changed = self._files.refresh()
        if changed:
            self._cache.clear()
        return changed

    @property
    def info(self) -> dict[str, Any]:
        """What run.json holds."""
        return self._files.info

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def options(self) -> RunOptions:
        """How it was measured."""
        return RunOptions.from_json(self.info["options"])

    @property
    def threshold(self) -> float:
        """α of the logged ranks."""
        return float(self.options.threshold)

    @property
    def buffer_rank(self) -> int | None:
        """B of the logged ranks; None where it differs from matrix to matrix, see `matrices`."""
        found = self.matrices["buffer_rank"].unique()
        return int(found[0]) if len(found) == 1 else None

    @property
    def definition(self) -> Definition:
        """Which explained ratio the logged ranks come from."""
        return self.options.definition

    @property
    def leading(self) -> int | None:
        """How many singular values are logged of each spectrum; None: all of them."""
        return self.options.stored

    @property
    def measured(self) -> int | None:
        """How many values of a spectrum were measured, where those after them are estimates; None: there are none."""
        return self.options.measured

    @never_raises
    def _repr_html_(self) -> str:
        measured = self.measurements
        steps = measured["step"]
        last = measured.drop_duplicates("matrix", keep="last")
        columns = ["matrix", "intrinsic_rank", "null_rank", "stable_rank", "relative_norm"]
        rows = [
            (name, *("–" if pd.isna(rank) else rank for rank in ranks), f"{stable:.1f}", f"{norm:.3g}")
            for name, *ranks, stable, norm in last[columns].itertuples(index=False)
        ]
        seen = f"step {steps.max()}, {steps.nunique()} snapshots" if len(steps) else "nothing measured yet"
        rule = f"rank at α = {self.threshold:g}, {buffer_rank_text(self.matrices['buffer_rank'])}"
        heads = ("matrix", "rank", "null rank", "stable rank", "‖ΔW‖/‖W0‖")
        ended = f"{self.status}, {self.diverged.text}" if self.diverged else self.status
        return html_rows(heads, rows, f"{self.name}: {ended}, {seen}, {len(self.matrices)} matrices; {rule}")

    @property
    def status(self) -> Status:
        """`live` while a process writes it, `finished` once closed, `interrupted` otherwise."""
        return self._files.status

    @property
    def problems(self) -> list[str]:
        """What could not be read, in sentences; an unfinished batch of a live run is none."""
        return self._files.problems

    @property
    def too_few_points(self) -> str | None:
        """A sentence or two if it is too sparsely measured for a curve: how sparsely, and what to pass to `attach`."""
        return too_few_points(self.status, self.options, self.measurements, self.scalars)

    @property
    def diverged(self) -> Divergence | None:
        """Whether it has diverged, by its loss, or by matrices that are not finite; since when, and how it is known."""
        if "diverged" not in self._cache:
            self._cache["diverged"] = find_divergence(self.scalars, self.measurements)
        found: Divergence | None = self._cache["diverged"]
        return found

    @property
    def matrices(self) -> pd.DataFrame:
        """The watched matrices in model order, by name.

        Columns: parameter, part, kind, rows, cols, buffer_rank, null_rank, initial_norm.
        """
        if "matrices" not in self._cache:
            table = _by_name(self.info["matrices"])
            table["buffer_rank"] = buffer_ranks(table, self.options.rule)
            self._cache["matrices"] = table
        matrices: pd.DataFrame = self._cache["matrices"]
        return matrices

    @property
    def coverage(self) -> pd.DataFrame:
        """Every parameter of the model: parameter, shape, watched, note."""
        return pd.DataFrame(self.info["coverage"], columns=["parameter", "shape", "watched", "note"])

    def _table(self, table: str) -> pd.DataFrame:
        if table not in self._cache:
            frame = _frame(table, self._files.batches(table))
            finish = {"measurements": _finish_measurements, "weights": _named, "directions": _named}.get(table)
            self._cache[table] = finish(frame, self.matrices) if finish else frame
        frame_: pd.DataFrame = self._cache[table]
        return frame_

    @property
    def measurements(self) -> pd.DataFrame:
        """One row a matrix and step: step, time, matrix, the metrics, null_rank, rank_over_null_rank.

        What is not known is NA or NaN. Do not change it in place.
        """
        return self._table("measurements")

    @property
    def weights(self) -> pd.DataFrame:
        """Of W_t itself, where `attach(of=)` asked for it: step, time, matrix, norms, condition, tail exponent."""
        return self._table("weights")

    @property
    def directions(self) -> pd.DataFrame:
        """How ΔW's leading directions turned, where `attach(directions=)` asked for it: overlaps, angles, intruders."""
        return self._table("directions")

    @property
    def scalars(self) -> pd.DataFrame:
        """What was logged beside: step, time, name, value."""
        return self._table("scalars")

    @property
    def events(self) -> pd.DataFrame:
        """What happened: step, time, kind, matrix, message."""
        return self._table("events")

    @property
    def loss_ranks(self) -> pd.DataFrame:
        """Ranks by loss, one row a matrix and result, the newest result last; empty where none was taken.

        Columns: step, time, matrix, rank, loss, loss_at_ranks, tolerance, evaluations, uniform_rank.
        """
        if "newest loss_ranks last" not in self._cache:  # several processes may have written streams of their own
            found = self._table("loss_ranks").sort_values("time", kind="stable", ignore_index=True)
            self._cache["newest loss_ranks last"] = found
        loss_ranks: pd.DataFrame = self._cache["newest loss_ranks last"]
        return loss_ranks

    @property
    def loss_curve(self) -> pd.DataFrame:
        """Each evaluation behind the ranks by loss: step, time (the result's), mean_rank, uniform_rank, loss.

        Empty for results of versions that did not keep them.
        """
        return self._table("loss_curve")

    @property
    def width_plans(self) -> pd.DataFrame:
        """Plans of `inrank.plan_widths(run=)`, one row a feed-forward block and plan, the newest plan last.

        Columns: step, time, block, width, full_width, unit_parameters (weights of one hidden unit). Empty where none
        was kept.
        """
        if "newest width_plans last" not in self._cache:
            found = self._table("width_plans").sort_values("time", kind="stable", ignore_index=True)
            self._cache["newest width_plans last"] = found
        width_plans: pd.DataFrame = self._cache["newest width_plans last"]
        return width_plans

    def matrix(self, name: str) -> str:
        """The full name of the matrix that is meant: by that name, as a table prints it, or by a glob for it alone.

        Raises:
            KeyError: there is no such matrix, or there are several; names close to it are listed.
        """
        if name in self.matrices.index:
            return name
        try:
            return find_name(name, self.matrices.index)
        except LookupError as error:
            raise KeyError(f"{error} (in {self.path})") from None

    def singular_values(self, name: str, of: Literal["update", "weight"] = "update") -> pd.DataFrame:
        """Spectra of one matrix: index step, columns 1..q, descending; NaN where the update was not finite.

        The table's `attrs` hold the matrix's buffer_rank, which figures take where none is given, and `leading`, how
        many values were kept where a spectrum may have more (else None).

        Args:
            name: of the matrix, as `matrix` takes it.
            of: the update ΔW, or `"weight"`: W_t itself, where it was measured.

        Raises:
            KeyError: as `matrix`.
        """
        name = self.matrix(name)
        code = int(self.matrices.index.get_indexer(pd.Index([name]))[0])
        steps, rows = [], []
        for codes, batch_steps, offsets, values in self.spectra("weights" if of == "weight" else "measurements"):
            places = [code] if code < len(codes) and codes[code] == code else np.flatnonzero(codes == code)
            for place in places:
                steps.append(batch_steps[place])
                rows.append(values[offsets[place] : offsets[place + 1]])
        width = max((len(row) for row in rows), default=0)
        table = np.full((len(rows), width), np.nan)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        by_step = pd.Index(np.array(steps, dtype=np.int64), name="step")
        found = pd.DataFrame(table, index=by_step, columns=pd.RangeIndex(1, width + 1))
        found.attrs["buffer_rank"] = int(self.matrices["buffer_rank"].iloc[code])
        short = int(self.matrices[["rows", "cols"]].iloc[code].min())
        found.attrs["leading"] = self.leading if self.leading is not None and self.leading < short else None
        return found

    def spectra(self, table: str = "measurements") -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """All that was measured, batch by batch, as views: places of the matrices, steps, offsets, values.

        The singular values of a batch's row i are values[offsets[i] : offsets[i + 1]].
        """
        if f"spectra {table}" not in self._cache:
            self._cache[f"spectra {table}"] = [
                (
                    batch.column("matrix").to_numpy(),
                    batch.column("step").to_numpy(),
                    batch.column("singular_values").offsets.to_numpy(),
                    batch.column("singular_values").values.to_numpy(zero_copy_only=False),
                )
                for batch in self._files.batches(table)
            ]
        spectra: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = self._cache[f"spectra {table}"]
        return spectra

    def summary(self) -> RunSummary:
        """The run in one line."""
        return summarise(self)


def snapshot_table(columns: Mapping[str, Any], matrices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One snapshot's rows of `Run.measurements`, before they are on disk.

    Args:
        columns: of its record batch.
        matrices: as run.json describes them.
    """
    return _finish_measurements(_frame("measurements", [make_batch("measurements", columns)]), _by_name(matrices))


def _frame(table: str, batches: list[pa.RecordBatch]) -> pd.DataFrame:
    """Without checksums and spectra."""
    heavy = [name for name in (CHECKSUM, "singular_values") if name in SCHEMAS[table].names]
    light = pa.Table.from_batches(batches, SCHEMAS[table]).drop_columns(heavy)
    frame: pd.DataFrame = light.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)
    return frame.astype({"since": "Int64"}) if table == "directions" else frame


def _by_name(matrices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(matrices).set_index("name")
    table.index.name = "matrix"
    return table


def buffer_ranks(matrices: pd.DataFrame, rule: RankRule) -> list[int]:
    """B of each matrix by a rule."""
    shapes = zip(matrices["rows"], matrices["cols"], strict=True)
    return [rule.buffer_rank_of(int(rows), int(cols)) for rows, cols in shapes]


def _finish_measurements(frame: pd.DataFrame, matrices: pd.DataFrame) -> pd.DataFrame:
    """Names in place of numbers, the null rank beside every rank."""
    frame = _named(frame, matrices)
    frame["null_rank"] = null = matrices["null_rank"].to_numpy()[frame["matrix"].cat.codes.to_numpy()]
    frame["rank_over_null_rank"] = frame["intrinsic_rank"].astype("Float64").astype(float) / np.maximum(null, 1)
    for column in (*INTEGER_METRICS, "null_rank"):
        frame[column] = frame[column].astype("Int32")
    return frame


def _named(frame: pd.DataFrame, matrices: pd.DataFrame) -> pd.DataFrame:
    """Names in place of numbers, sorted by step and model order."""
    codes = frame["matrix"].to_numpy(dtype=np.int64)
    known = (codes >= 0) & (codes < len(matrices))
    frame = frame[known].assign(matrix=pd.Categorical.from_codes(codes[known], pd.Index(matrices.index)))
    return frame.sort_values(["step", "matrix"], kind="stable", ignore_index=True)
