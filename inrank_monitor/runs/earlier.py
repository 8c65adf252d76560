"""What earlier versions wrote, as this one would have: columns that they did not log are drawn from the spectra.

Version 1 knew no signal rank; of cut spectra it logged what the leading values gave, as if they were all, and null
ranks of spectra that were cut as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from inrank_monitor.ranks import blank_cut, energy_share, intrinsic_rank, null_rank, signal_rank
from inrank_monitor.runs.log import SCHEMAS
from inrank_monitor.runs.options import RunOptions

_CHANGED = (
    "intrinsic_rank",
    "running_rank",
    "energy_rank",
    "numerical_rank",
    "explained_ratio",
    "effective_rank",
    "nuclear_norm",
)


def up_to_date(info: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds, as the present version writes it."""
    if info["schema_version"] >= 2:
        return info
    options = RunOptions.from_json(info["options"])
    matrices = [entry | {"null_rank": _whole_null_rank(entry, options)} for entry in info["matrices"]]
    return info | {"schema_version": 2, "matrices": matrices}


def _whole_null_rank(entry: dict[str, Any], options: RunOptions) -> int:
    """The null rank of a whole spectrum, where that of a cut one was written; those of factors never were cut."""
    rows, cols, rule = entry["rows"], entry["cols"], options.rule
    arguments = (rows, cols, rule.threshold, rule.buffer_rank_of(rows, cols), rule.definition)
    written: int = entry["null_rank"]
    if options.stored is None or written != null_rank(*arguments, leading=options.stored):
        return written
    return null_rank(*arguments)


def completed(batch: pa.RecordBatch, info: dict[str, Any]) -> pa.RecordBatch:
    """A batch of measurements by the present schema; one that is of it already is left as it is.

    Args:
        batch: whole and undamaged.
        info: what run.json holds.
    """
    schema = SCHEMAS["measurements"]
    if batch.schema.names == schema.names:
        return batch
    drawn = _drawn(batch, info)
    held = {name: batch.column(name) for name in batch.schema.names}
    arrays = [
        _array(drawn[field.name], field.type) if field.name in drawn else held.get(field.name) for field in schema
    ]
    return pa.RecordBatch.from_arrays(
        [
            pa.nulls(len(batch), field.type) if array is None else array
            for array, field in zip(arrays, schema, strict=True)
        ],
        schema=schema,
    )


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Floats as a column; NaN is null where the column is of whole numbers."""
    return pa.array(values, pa.float64(), from_pandas=pa.types.is_integer(kind)).cast(kind)


def _drawn(batch: pa.RecordBatch, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns that are new, and those of which cut spectra know less than was written."""
    options, rows = RunOptions.from_json(info["options"]), _Rows(batch, info)
    columns = {name: rows.numbers(name) for name in _CHANGED}
    columns |= {name: np.full(len(batch), np.nan) for name in ("signal_rank", "signal_share")}
    whole = (rows.lengths == rows.short) & np.isnan(rows.numbers("layer_rank")) & ~(rows.numbers("error_bound") > 0)
    for shape in np.unique(rows.shapes[whole], axis=0).tolist():
        places = np.flatnonzero(whole & (rows.shapes == shape).all(axis=1))
        values = rows.spectra(places)
        columns["signal_rank"][places] = found = signal_rank(values, *shape)
        columns["signal_share"][places] = energy_share(values, found)
    if options.stored is not None:
        buffer_ranks = np.array([options.rule.buffer_rank_of(*shape) for shape in rows.shapes.tolist()])
        at = columns["running_rank"]
        blank_cut(columns, rows.cut(options.stored), rows.lengths, buffer_ranks, options.definition, at)
        _end_with_zeros(columns, rows, options)
    return columns


def _end_with_zeros(columns: dict[str, np.ndarray], rows: _Rows, options: RunOptions) -> None:
    """Products of fewer columns than were kept: their spectra end with zeros, which the rule was not told of."""
    factored = np.isfinite(rows.numbers("layer_rank")) & (rows.lengths > 0) & (rows.lengths < rows.short)
    for place in np.flatnonzero(factored & (rows.lengths < (options.stored or 0))):
        shape = rows.shapes[place].tolist()
        rule = replace(options.rule, buffer_rank=options.rule.buffer_rank_of(*shape))
        values = rows.spectra(np.array([place]))[0]
        rank = intrinsic_rank(values, rule.threshold, rule.buffer_rank, rule.definition, min(shape))
        columns["intrinsic_rank"][place] = rank
        columns["running_rank"][place] = columns["explained_ratio"][place] = np.nan  # what was reached is not known


class _Rows:
    """A batch's rows beside the shapes of their matrices; (0, 0) of a matrix that run.json does not have (yet)."""

    def __init__(self, batch: pa.RecordBatch, info: dict[str, Any]) -> None:
        self._batch = batch
        sides = [(entry["rows"], entry["cols"]) for entry in info["matrices"]]
        codes = batch.column("matrix").to_pylist()
        shapes = [sides[code] if 0 <= code < len(sides) else (0, 0) for code in codes]
        self.shapes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
        self.short = self.shapes.min(axis=1)
        lists = batch.column("singular_values")
        self._offsets = lists.offsets.to_numpy()
        self._values = lists.values.to_numpy(zero_copy_only=False)
        self.lengths = np.diff(self._offsets)

    def numbers(self, name: str) -> np.ndarray:
        """A column as floats; NaN for null."""
        return np.array(self._batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)

    def spectra(self, places: np.ndarray) -> np.ndarray:
        """The singular values of rows that have the same number of them."""
        count = int(self.lengths[places[0]])
        return np.asarray(self._values[self._offsets[places][:, None] + np.arange(count)], dtype=np.float64)

    def cut(self, stored: int) -> np.ndarray:
        """Which rows may have had more values above zero than the `stored` leading ones."""
        last = np.zeros(len(self.lengths))
        full = (self.lengths == stored) & (self.lengths < self.short)
        last[full] = self._values[self._offsets[1:][full] - 1]
        return np.asarray(last > 0)
