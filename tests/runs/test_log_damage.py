from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import damage
from helpers.run_files import NAMES, write_run

from inrank_monitor import Run, open_run
from inrank_monitor.runs.log import SCHEMAS

SCRIPT = Path(damage.__file__)
TABLES = tuple(SCHEMAS)


def sweep(directory: Path, patterns: str) -> None:
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), patterns],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, f"the reader died ({answer.returncode}): {answer.stderr[-2000:]}"
    found = json.loads(answer.stdout)
    assert found["files"] > 10_000
    assert found["bytes"] < 1 << 20
    wrong = found["wrong"]
    assert not wrong, f"{len(wrong)} of {found['files']} damaged files were misread:\n" + "\n".join(wrong[:20])


def test_no_cut_and_no_damaged_byte_is_misread(tmp_path: Path) -> None:
    sweep(tmp_path, "few")


@pytest.mark.slow
def test_no_damaged_byte_is_misread_whatever_the_pattern(tmp_path: Path) -> None:
    sweep(tmp_path, "others")


def rows(run: Run) -> dict[tuple[object, ...], tuple[object, ...]]:
    """Everything that a run shows, one entry a row."""
    found: dict[tuple[object, ...], tuple[object, ...]] = {}
    for table in TABLES:
        frame: pd.DataFrame = getattr(run, table)
        for number, row in enumerate(frame.itertuples(index=False)):
            key = (table, row.step, row.matrix if table == "measurements" else number)
            found[key] = tuple(row)
            if table != "measurements":  # numbered from the end: damage may take any of them
                found[(table, row.step)] = found.pop(key)
    for name in NAMES:
        for step, values in run.singular_values(name).iterrows():
            found["spectrum", step, name] = tuple(values)
    return found


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, ...], tuple[object, ...]]:
    return rows(open_run(write_run(tmp_path_factory.mktemp("whole"), range(1, 4))))


def check(directory: Path, truth: dict[tuple[object, ...], tuple[object, ...]]) -> Run:
    """The run opens, shows nothing that was not written, and says what is missing."""
    run = open_run(directory)
    for _ in range(2):
        found = rows(run)
        assert found.items() <= truth.items()
        assert len(found) == len(truth) or run.problems
        run.refresh()
    return run


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_a_damaged_run_hold_true_rows_only(
    tmp_path: Path, table: str, truth: dict[tuple[object, ...], tuple[object, ...]]
) -> None:
    directory = write_run(tmp_path / "run", range(1, 4))
    path = directory / f"{table}-000.arrows"
    data = path.read_bytes()
    for offset in np.linspace(0, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])
        check(directory, truth)


def test_damage_to_one_batch_costs_that_batch_alone(
    tmp_path: Path, truth: dict[tuple[object, ...], tuple[object, ...]]
) -> None:
    directory = write_run(tmp_path / "run", range(1, 4))
    path = directory / "measurements-000.arrows"
    data = path.read_bytes()
    middle = data.index(np.float32(3.5 * 3).tobytes())  # σ₁ of the last row of step 2
    path.write_bytes(data[:middle] + b"\xff" + data[middle + 1 :])
    run = check(directory, truth)
    assert run.measurements["step"].unique().tolist() == [1, 3]
    assert run.singular_values(NAMES[0]).index.tolist() == [1, 3]
    assert run.problems == ["measurements-000.arrows: 1 damaged batches were left out."]


def test_a_torn_tail_is_named_with_its_size(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", range(1, 4))
    path = directory / "scalars-000.arrows"
    path.write_bytes(path.read_bytes()[:-10])
    run = open_run(directory)
    assert run.scalars["step"].tolist() == [1, 2]
    (problem,) = run.problems
    assert problem.startswith("scalars-000.arrows: the last ")
    assert "2 batches before them were read" in problem


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("junk", [b"", b"\x00", b"not an Arrow stream at all", bytes(5000), b"\xff" * 5000])
def test_a_file_that_is_no_log_leaves_its_table_empty(tmp_path: Path, table: str, junk: bytes) -> None:
    directory = write_run(tmp_path / "run")
    (directory / f"{table}-000.arrows").write_bytes(junk)
    run = open_run(directory)
    run.refresh()
    assert getattr(run, table).empty
    assert len(run.problems) == bool(junk)
    assert not any(getattr(run, other).empty for other in TABLES if other != table)


@pytest.mark.parametrize("table", TABLES)
def test_the_stream_of_another_table_is_not_taken_for_this_one(tmp_path: Path, table: str) -> None:
    directory = write_run(tmp_path / "run")
    other = next(name for name in TABLES if name != table)
    (directory / f"{table}-000.arrows").write_bytes((directory / f"{other}-000.arrows").read_bytes())
    run = open_run(directory)
    run.refresh()
    assert getattr(run, table).empty
    assert len(run.problems) == 1


def test_a_log_that_was_removed_while_open_does_not_break_refresh(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    run = open_run(directory)
    (directory / "events-000.arrows").unlink()
    run.refresh()
    assert run.measurements["step"].nunique() == 3
