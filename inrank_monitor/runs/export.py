"""A run's tables as CSV or Parquet files, for other tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from inrank_monitor.runs.paths import local_path

if TYPE_CHECKING:
    from inrank_monitor.runs.run import Run


def export_run(run: Run, directory: Path, file_format: Literal["csv", "parquet"]) -> Iterator[Path]:
    """Write every table and the singular values; yields each file once it is written.

    Singular values are one row a matrix and step: columns 1..q in CSV (as many as the widest matrix has), one list
    column in Parquet.

    Raises:
        OSError: the directory cannot be written.
    """
    directory = local_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tables = {
        "matrices": run.matrices.reset_index(),
        "measurements": run.measurements,
        "scalars": run.scalars,
        "events": run.events,
    }
    tables |= {name: table for name in ("weights", "directions") if len(table := getattr(run, name))}
    for name, table in tables.items():
        path = directory / f"{name}.{file_format}"
        if file_format == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
        yield path
    path = directory / f"singular_values.{file_format}"
    if file_format == "csv":
        _spectra_csv(run, path)
    else:
        _spectra_parquet(run, path)
    yield path


def _spectra(run: Run) -> Iterator[tuple[str, pd.DataFrame]]:
    for name in tqdm(run.matrices.index, desc="singular values", unit="matrix", delay=2, disable=None):
        yield name, run.singular_values(name)


def _spectra_csv(run: Run, path: Path) -> None:
    width = int(run.matrices[["rows", "cols"]].min(axis=1).max())
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, (name, values) in enumerate(_spectra(run)):
            table = values.reindex(columns=range(1, width + 1)).reset_index()
            table.insert(0, "matrix", name)
            table.to_csv(file, index=False, header=place == 0)


def _spectra_parquet(run: Run, path: Path) -> None:
    schema = pa.schema([("matrix", pa.string()), ("step", pa.int64()), ("singular_values", pa.list_(pa.float64()))])
    with pq.ParquetWriter(path, schema) as writer:
        for name, values in _spectra(run):
            columns = [[name] * len(values), values.index.to_list(), list(values.to_numpy())]
            writer.write_table(pa.table(columns, schema=schema))
