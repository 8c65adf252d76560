"""A run that version 1 began is taken up: its rows are completed, and what follows is written by the present schema."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.earlier_runs import SCHEMA, as_version_1
from helpers.training import mlp, record, sgd, train

from inrank_monitor import attach, open_run
from inrank_monitor.runs.log import RUN_FILE, SCHEMA_VERSION, SCHEMAS
from inrank_monitor.runs.segment import Segment

SIZES = (40, 32, 20)


@pytest.mark.parametrize("leading", [None, 6])
def test_a_run_of_version_1_goes_on_as_if_it_had_been_of_this(tmp_path: Path, leading: int | None) -> None:
    record(tmp_path / "whole", 9, *SIZES, leading=leading)
    expected = open_run(tmp_path / "whole").measurements
    path = record(tmp_path / "parts", 5, *SIZES, leading=leading)
    before = open_run(path).measurements
    as_version_1(path)
    assert json.loads((path / RUN_FILE).read_text())["schema_version"] == 1
    assert_same(open_run(path).measurements, before)

    model = mlp(*SIZES)
    optimizer = sgd(model)
    train(model, optimizer, 5)  # as a checkpoint would bring it back
    with attach(model, optimizer, path, every=1, tensorboard=False, resume=5, leading=leading):
        train(model, optimizer, 4, first=5)
    run = open_run(path)
    assert json.loads((path / RUN_FILE).read_text())["schema_version"] == SCHEMA_VERSION
    assert_same(run.measurements.drop(columns="time"), expected.drop(columns="time"))
    names = [_schema(path, number) for number in (0, 1)]
    assert names == [SCHEMA.names, SCHEMAS["measurements"].names]
    assert not run.problems


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """But for a ratio at a rank that the row does not tell, at the first step whose own rank is not known."""
    ratio = found["explained_ratio"]
    left_out = ratio.isna() & found["running_rank"].isna()
    assert (ratio[~left_out] == expected["explained_ratio"][~left_out]).all()
    pd.testing.assert_frame_equal(found.drop(columns="explained_ratio"), expected.drop(columns="explained_ratio"))


def _schema(path: Path, number: int) -> list[str]:
    segment = Segment(path / f"measurements-{number:03d}.arrows", "measurements", number)
    segment.read()
    return list(segment.batches[0].schema.names)


def test_a_reader_that_is_open_takes_up_what_is_added(tmp_path: Path) -> None:
    path = record(tmp_path / "run", 3, *SIZES)
    as_version_1(path)
    run = open_run(path)
    assert len(run.measurements) == 6
    model = mlp(*SIZES)
    with attach(model, None, path, every=1, tensorboard=False, resume=3) as tracker:
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn_like(weight)
        tracker.step()
    assert run.refresh()
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4]
    late = run.measurements.query("step == 4")
    assert late["signal_rank"].tolist() == [0, 0]  # random steps are noise
