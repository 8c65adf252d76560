from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.run_files import NAMES, edit, info, measurement, scalar, write_run, write_tables
from helpers.training import python

from inrank_monitor import list_runs, open_run
from inrank_monitor.runs.lock import Lock
from inrank_monitor.runs.log import FLOAT_METRICS, INTEGER_METRICS, RUN_FILE, RunLog, write_json

# --- tables


def test_measurements_hold_what_was_logged_sorted_by_step_then_model_order(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", range(1, 4)))
    frame = run.measurements
    assert list(zip(frame["step"], frame["matrix"], strict=True)) == [(s, name) for s in (1, 2, 3) for name in NAMES]
    assert list(frame["matrix"].cat.categories) == list(NAMES)
    assert (frame["null_rank"] == 2).all()
    for name in (*INTEGER_METRICS, *FLOAT_METRICS):
        expected = np.concatenate([measurement(step)[name] for step in (1, 2, 3)])
        assert frame[name].to_numpy(dtype=float).tolist() == expected.tolist(), name
    assert {str(frame[name].dtype) for name in (*INTEGER_METRICS, "null_rank")} == {"Int32"}
    assert run.status == "finished"
    assert run.problems == []


def test_spectra_come_by_step_and_place(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", range(1, 4)))
    for row, name in enumerate(NAMES):
        spectra = run.singular_values(name)
        assert spectra.index.tolist() == [1, 2, 3]
        assert spectra.index.name == "step"
        assert spectra.columns.tolist() == [1, 2, 3]
        assert spectra.to_numpy().tolist() == [[3 * s, 2 * s, s] for s in (1.5 + row, 2.5 + row, 3.5 + row)]
        assert spectra.to_numpy().dtype == np.float64


def test_a_matrix_that_is_missing_from_some_snapshots_keeps_its_own_spectra(tmp_path: Path) -> None:
    # the second matrix alone at step 2 (the first had changed its shape), and an empty row: a non-finite update
    directory = write_run(tmp_path / "run", range(1, 2))
    only = {name: values[1:] for name, values in measurement(2).items()}
    broken = measurement(3) | {"singular_values": [[], np.ones(3, dtype=np.float32)], "intrinsic_rank": [None, 1]}
    log = RunLog(directory, 1)
    log.append("measurements", only)
    log.append("measurements", broken | {"spectral_norm": [np.nan, 1.0]})
    log.close()
    edit(directory, segments=info((0, None), (1, 1))["segments"])
    run = open_run(directory)
    first, second = (run.singular_values(name) for name in NAMES)
    assert first.index.tolist() == [1, 3]
    assert first.loc[3].isna().all()
    assert second.index.tolist() == [1, 2, 3]
    assert second.loc[2].tolist() == [10.5, 7.0, 3.5]
    table = run.measurements.set_index(["step", "matrix"])
    assert table["intrinsic_rank"].loc[3, NAMES[0]] is pd.NA
    assert np.isnan(table["spectral_norm"].loc[3, NAMES[0]])


def test_an_unknown_matrix_is_answered_with_names_like_it(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    with pytest.raises(KeyError, match=r"no matrix 'encoder\.weigth'.*encoder\.weight"):
        run.singular_values("encoder.weigth")
    with pytest.raises(KeyError, match=r"there are encoder\.weight"):
        run.singular_values("zzz")


def test_a_run_without_any_snapshot_has_empty_tables_with_their_columns(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", range(0)))
    assert {"step", "matrix", "null_rank", *INTEGER_METRICS, *FLOAT_METRICS} <= set(run.measurements)
    assert list(run.scalars) == ["step", "time", "name", "value"]
    assert list(run.events) == ["step", "time", "kind", "matrix", "message"]
    assert run.singular_values(NAMES[0]).empty
    summary = run.summary()
    assert (summary.step, summary.snapshots, summary.loss, summary.mean_rank) == (0, 0, None, None)


# --- resumed runs


def test_rows_past_the_resume_point_no_longer_count(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", range(1, 9))
    write_tables(directory, range(5, 8), segment=1, mark=0.5)
    edit(directory, segments=info((0, None), (1, 4))["segments"])
    run = open_run(directory)
    steps = [1, 2, 3, 4, 5, 6, 7]
    assert run.measurements["step"].unique().tolist() == steps
    assert run.scalars["step"].tolist() == steps
    assert run.events["step"].tolist() == steps
    assert run.events["message"].tolist() == ["segment 0"] * 4 + ["segment 1"] * 3
    for name in NAMES:
        spectra = run.singular_values(name)
        assert spectra.index.tolist() == steps
        assert (spectra[3] % 1 == 0).tolist() == [False] * 4 + [True] * 3  # the mark of the second segment


def test_an_earlier_resume_point_rules_over_every_segment_before_it(tmp_path: Path) -> None:
    # resumed at 6, then again at 2: what segments 0 and 1 hold past 2 is gone; segment 2 left no file at all
    directory = write_run(tmp_path / "run", range(1, 9))
    write_tables(directory, range(7, 12), segment=1)
    write_tables(directory, range(3, 5), segment=3)
    edit(directory, segments=info((0, None), (1, 6), (2, 2), (3, 2))["segments"])
    run = open_run(directory)
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4]
    assert run.singular_values(NAMES[1]).index.tolist() == [1, 2, 3, 4]
    assert run.problems == []


def test_a_batch_is_cut_at_the_resume_point_between_its_rows(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", range(0))
    log = RunLog(directory, 0)
    rows = [scalar(step) for step in range(1, 7)]
    log.append("scalars", {name: [row[name][0] for row in rows] for name in rows[0]})
    log.close()
    edit(directory, segments=info((0, None), (1, 4))["segments"])
    assert open_run(directory).scalars["step"].tolist() == [1, 2, 3, 4]


def test_segments_past_999_are_read_in_order(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", range(1, 3))
    write_tables(directory, range(3, 5), segment=999)
    write_tables(directory, range(5, 7), segment=1000)
    edit(directory, segments=info((0, None), (999, 2), (1000, 4))["segments"])
    assert open_run(directory).scalars["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_files_that_are_not_of_the_log_are_left_alone(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    before = open_run(directory).measurements
    shutil.copy(directory / "measurements-000.arrows", directory / "measurements-000 (copy).arrows")
    shutil.copy(directory / "measurements-000.arrows", directory / "measurements-old.arrows")
    run = open_run(directory)
    pd.testing.assert_frame_equal(run.measurements, before)
    assert run.problems == []


# --- a live run


def test_refresh_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_run(tmp_path / "run", range(0), ended=None)
    log = RunLog(directory, 0)
    for step in range(1, 51):
        log.append("measurements", measurement(step))
    run = open_run(directory)
    taken: list[int] = []
    plain = Path.open

    class Counting:
        def __init__(self, file: Any) -> None:
            self._file = file

        def read(self, *size: int) -> bytes:
            taken.append(len(data := self._file.read(*size)))
            return bytes(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    def opened(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        file = plain(path, mode, *more, **options)
        return Counting(file) if path.suffix == ".arrows" else file

    monkeypatch.setattr(Path, "open", opened)
    assert run.refresh() is False
    assert sum(taken) == 0
    path = directory / "measurements-000.arrows"
    before = path.stat().st_size
    log.append("measurements", measurement(51))
    assert run.refresh() is True
    assert sum(taken) == path.stat().st_size - before
    assert run.measurements["step"].max() == 51
    assert run.singular_values(NAMES[0]).index[-1] == 51
    log.close()


def test_a_batch_that_arrives_in_pieces_is_shown_once_it_is_whole(tmp_path: Path) -> None:
    whole = (write_run(tmp_path / "whole", range(1, 3)) / "scalars-000.arrows").read_bytes()
    directory = write_run(tmp_path / "run", range(0), ended=None)
    lock = Lock(directory)
    path = directory / "scalars-000.arrows"
    path.touch()
    run = open_run(directory)
    seen = []
    with path.open("ab") as file:
        for offset in range(0, len(whole), 5):
            file.write(whole[offset : offset + 5])
            file.flush()
            run.refresh()
            seen.append(len(run.scalars))
            assert run.problems == []  # a live run is allowed an unfinished batch
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2}
    assert run.scalars["value"].tolist() == [1 / 2, 1 / 3]
    lock.release()


def test_a_new_segment_and_a_new_ending_are_seen(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", range(1, 5), ended=None)
    run = open_run(directory)
    assert run.measurements["step"].max() == 4
    write_json(directory / RUN_FILE, info((0, None), (1, 2), ended="finished"))
    write_tables(directory, range(3, 4), segment=1)
    assert run.refresh() is True
    assert run.measurements["step"].unique().tolist() == [1, 2, 3]
    assert run.status == "finished"


def test_another_run_in_the_same_place_replaces_the_first(tmp_path: Path) -> None:
    # what `demo --overwrite` does below a dashboard that has the run open
    directory = write_run(tmp_path / "run", range(1, 9))
    run = open_run(directory)
    shutil.rmtree(directory)
    write_run(directory, range(1, 3), names=("other.weight", "last.weight"))
    edit(directory, id="1", created=2.0e9)
    run.refresh()
    assert list(run.matrices.index) == ["other.weight", "last.weight"]
    assert run.measurements["step"].unique().tolist() == [1, 2]
    assert run.problems == []


# --- how it ended


def test_status_tells_live_finished_and_interrupted_apart(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", ended=None)
    run = open_run(directory)
    lock = Lock(directory)
    assert run.status == "live"
    lock.release()
    assert run.status == "interrupted"
    for ended in ("finished", "interrupted"):
        edit(directory, ended={"status": ended, "reason": "", "time": 0.0, "step": 3})
        assert run.refresh() is True
        assert run.status == ended


@pytest.mark.slow
def test_a_killed_process_leaves_an_interrupted_run_with_every_finished_snapshot(tmp_path: Path) -> None:
    script = """
import os, signal
from helpers.training import start, train
model, optimizer, tracker = start(sys.argv[1])
train(model, optimizer, 7)
tracker.flush()
print(max(tracker.finished_steps), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    directory = tmp_path / "run"
    with subprocess.Popen(
        python(script, directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "7\n"
            run = open_run(directory)
            assert run.status == "live"
            assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(timeout=60) == -9
        finally:
            process.kill()
    assert run.status == "interrupted"
    assert open_run(directory).measurements["step"].max() == 7


# --- many runs


def test_runs_are_listed_newest_first_and_broken_ones_left_out(tmp_path: Path) -> None:
    for created, name in ((3.0, "c"), (1.0, "a"), (2.0, "b")):
        edit(write_run(tmp_path / name), created=created)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / RUN_FILE).write_text("{", encoding="utf-8")
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    runs = list_runs(tmp_path)
    assert [run.path.name for run in runs] == ["c", "b", "a"]
    first = runs[0]
    assert (first.status, first.model, first.matrices, first.parameters) == ("finished", "Net", 2, 24)
    assert (first.step, first.snapshots, first.loss) == (3, 3, 1 / 4)
    assert first.mean_rank == 3.5  # ranks 3 and 4 at step 3
    assert first.mean_rank_over_null_rank == 1.75
    assert list_runs(tmp_path / "missing") == []
