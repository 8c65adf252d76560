"""Runs of version 1: they open, with the columns that they did not log, and without those that they could not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import earlier_runs
from helpers.damage import content
from helpers.earlier_runs import FLOATS, INTEGERS, NAMES, SHAPES, STEPS, spectrum, write_earlier_run
from helpers.run_files import measurement

from inrank_monitor import open_run
from inrank_monitor.ranks import RankRule, null_rank, signal_rank, signal_share
from inrank_monitor.report import matrix_table, report_table
from inrank_monitor.runs import RunLog, SharedRun, export_run, list_runs, recompute, verdicts, write_json
from inrank_monitor.runs.log import RUN_FILE, SCHEMA_VERSION, SCHEMAS
from inrank_monitor.runs.segment import Segment


def row(table: pd.DataFrame, name: str, step: int) -> pd.Series:
    found = table[(table["matrix"] == name) & (table["step"] == step)]
    assert len(found) == 1
    return found.iloc[0]


def test_the_signal_rank_is_drawn_from_the_stored_spectra(tmp_path: Path) -> None:
    run = open_run(write_earlier_run(tmp_path / "run"))
    assert run.problems == []
    for step in STEPS:
        values = spectrum(0, step)
        assert values is not None
        found = row(run.measurements, NAMES[0], step)
        if step == 0:
            assert pd.isna(found["signal_rank"])  # a zero update
            continue
        assert found["signal_rank"] == signal_rank(values, *SHAPES[0]) >= 1
        assert found["signal_share"] == pytest.approx(float(signal_share(values, *SHAPES[0])))
        for name in NAMES[1:]:  # thin, and a product of factors
            assert pd.isna(row(run.measurements, name, step)["signal_rank"])
            assert np.isnan(row(run.measurements, name, step)["signal_share"])
    assert str(run.measurements["signal_rank"].dtype) == "Int32"


def test_what_it_logged_is_as_it_was(tmp_path: Path) -> None:
    run = open_run(write_earlier_run(tmp_path / "run"))
    running = np.zeros(len(SHAPES), dtype=np.int64)
    for step in STEPS:
        written = earlier_runs.columns(step, running, None)
        for place, name in enumerate(NAMES):
            found = row(run.measurements, name, step)
            for column in (*INTEGERS, *FLOATS):
                value = written[column][place]
                if value is None or value != value:
                    assert pd.isna(found[column])
                else:
                    assert found[column] == value
    np.testing.assert_array_equal(run.singular_values(NAMES[0]).loc[12], spectrum(0, 12))


def test_another_rule_keeps_the_signal_rank(tmp_path: Path) -> None:
    run = open_run(write_earlier_run(tmp_path / "run"))
    for table in (recompute(run, RankRule(0.7, 6)), SharedRun(run.path).tables(RankRule(0.7, 6)).measurements):
        pd.testing.assert_series_equal(table["signal_rank"], run.measurements["signal_rank"])
        pd.testing.assert_series_equal(table["signal_share"], run.measurements["signal_share"])
        ratio = table["intrinsic_rank"].astype("Float64").astype(float) / table["null_rank"].clip(lower=1).astype(float)
        pd.testing.assert_series_equal(table["rank_over_null_rank"], ratio, check_names=False)


def test_it_goes_on_in_streams_of_the_present_version(tmp_path: Path) -> None:
    path = write_earlier_run(tmp_path / "run")
    before = open_run(path).measurements
    info = json.loads((path / RUN_FILE).read_text())
    info["segments"].append({"segment": 1, "resume_step": 12, "time": 1e9, "versions": {}})
    write_json(path / RUN_FILE, info)
    log = RunLog(path, 1)
    for step in (13, 14):
        log.append("measurements", measurement(step, rows=3))
    log.close()
    run = open_run(path)
    both = run.measurements
    assert both["step"].unique().tolist() == [0, 1, 12, 13, 14]
    old = both[both["step"] <= 12].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, before[before["step"] <= 12].reset_index(drop=True))
    assert both.loc[both["step"] == 13, "signal_rank"].tolist() == measurement(13, rows=3)["signal_rank"].tolist()
    assert run.info["schema_version"] == SCHEMA_VERSION


def test_every_cut_and_every_damaged_byte_of_its_stream_is_noticed(tmp_path: Path) -> None:
    path = write_earlier_run(tmp_path / "run", steps=(1, 12)) / "measurements-000.arrows"
    data = path.read_bytes()
    whole = Segment(path, "measurements", 0)
    whole.read()
    truth = [content(batch) for batch in whole.batches]
    assert len(truth) == 2
    copy = tmp_path / "copy.arrows"
    for offset in range(0, len(data), 3):
        for changed in (data[:offset], data[:offset] + bytes([data[offset] ^ 0x81]) + data[offset + 1 :]):
            copy.write_bytes(changed)
            segment = Segment(copy, "measurements", 0)
            segment.read()
            found = [content(batch) for batch in segment.batches]
            assert set(found) <= set(truth)
            shorter = len(changed) < len(data)
            assert len(found) == 2 or segment.damaged or segment.unread or shorter


def test_a_damaged_header_costs_no_row(tmp_path: Path) -> None:
    path = write_earlier_run(tmp_path / "run")
    file = path / "measurements-000.arrows"
    data = bytearray(file.read_bytes())
    place = data.index(b"stable_rank")
    data[place : place + 6] = b"unable"
    file.write_bytes(data)
    assert open_run(path).measurements["step"].unique().tolist() == list(STEPS)


def test_a_new_run_is_not_read_by_the_earlier_schema(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.append("measurements", measurement(1))
    log.close()
    segment = Segment(tmp_path / "measurements-000.arrows", "measurements", 0)
    segment.read()
    assert [batch.schema.names for batch in segment.batches] == [SCHEMAS["measurements"].names]


def test_reports_lists_and_exports_take_it(tmp_path: Path) -> None:
    run = open_run(write_earlier_run(tmp_path / "runs" / "run"))
    found = verdicts(run.matrices, run.measurements)
    assert found.tolist()[:2] == ["structured", "not finite"]
    assert matrix_table(run)["signal_rank"].iloc[0] >= 1
    assert "structured" in report_table(run)
    assert [summary.mean_rank_over_null_rank for summary in list_runs(tmp_path / "runs")] == [
        pytest.approx(run.measurements.loc[run.measurements["step"] == 40, "rank_over_null_rank"].mean())
    ]
    written = list(export_run(run, tmp_path / "out", "parquet"))
    table = pd.read_parquet(written[1])
    assert table["signal_rank"].notna().any()


def test_a_cut_spectrum_gives_up_what_was_of_its_leading_values_alone(tmp_path: Path) -> None:
    run = open_run(write_earlier_run(tmp_path / "run", leading=8))
    whole = open_run(write_earlier_run(tmp_path / "whole")).measurements
    table = run.measurements
    for name in NAMES:
        for step in STEPS:
            cut, full = row(table, name, step), row(whole, name, step)
            for column in ("intrinsic_rank", "energy_rank", "numerical_rank", "stable_rank", "spectral_norm"):
                assert pd.isna(cut[column]) or cut[column] == pytest.approx(full[column], rel=1e-6)
            for column in ("effective_rank", "nuclear_norm", "signal_rank"):
                same = name == NAMES[2] or step == 0  # four columns, and a zero update, lie within eight values
                assert pd.isna(cut[column]) or (same and cut[column] == pytest.approx(full[column], rel=1e-6))
    assert pd.isna(row(table, NAMES[0], 12)["effective_rank"])
    assert pd.isna(row(table, NAMES[0], 12)["intrinsic_rank"]) or row(table, NAMES[0], 12)["intrinsic_rank"] <= 4
    assert run.matrices["null_rank"].tolist()[:2] == [null_rank(32, 48, 0.9, 4), null_rank(10, 96, 0.9, 4)]
    assert run.matrices["null_rank"].iloc[2] == open_run(tmp_path / "whole").matrices["null_rank"].iloc[2]
