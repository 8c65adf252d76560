"""b is each matrix's own wherever a rank is computed or shown: run, log, recomputation, reports, figures, scan."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracles
from helpers.training import mlp, record, sgd, start, train

from inrank_monitor import attach, open_run, scan
from inrank_monitor.figures import explained_ratio_curve, spectrum_density
from inrank_monitor.ranks import RankRule, null_rank
from inrank_monitor.report import report_table
from inrank_monitor.report.page import render
from inrank_monitor.runs import Run, SharedRun, recompute

SIZES = (90, 120, 40, 6)
EXPECTED = {"0.weight": 11, "2.weight": 5, "4.weight": 4}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without `buffer_rank` whose matrices have three different ones."""
    return open_run(record(tmp_path_factory.mktemp("runs") / "run", 4, *SIZES))


def without(path: Path, *entries: str) -> Run:
    """The run as a version wrote it that did not know these entries of a matrix."""
    info = json.loads((path / "run.json").read_text())
    for matrix in info["matrices"]:
        for entry in entries:
            del matrix[entry]
    (path / "run.json").write_text(json.dumps(info))
    return open_run(path)


def assert_ranks_by(run: Run, table: Any, buffer_ranks: dict[str, int], threshold: float = 0.9) -> None:
    """Every intrinsic rank and null rank of a table, against the oracle on the stored spectra."""
    for name, b in buffer_ranks.items():
        spectra, rows = run.singular_values(name), table[table["matrix"] == name]
        for step, rank in zip(rows["step"], rows["intrinsic_rank"], strict=True):
            values = spectra.loc[step].to_numpy()
            assert rank == (oracles.intrinsic_rank(values, threshold, b, "paper") if values[0] > 0 else 0)
        shape = run.matrices.loc[name, ["rows", "cols"]]
        assert set(rows["null_rank"]) == {null_rank(*map(int, shape), threshold, b)}


def test_a_run_holds_what_was_asked_and_the_b_of_each_matrix(several: Run) -> None:
    assert several.info["options"]["buffer_rank"] is None
    assert {entry["name"]: entry["buffer_rank"] for entry in several.info["matrices"]} == EXPECTED
    assert several.matrices["buffer_rank"].to_dict() == EXPECTED
    assert several.buffer_rank is None
    assert "is not below" not in report_table(several)  # nothing was given that a hint could be about


def test_logged_ranks_are_by_the_b_of_each_matrix(several: Run) -> None:
    assert_ranks_by(several, several.measurements, EXPECTED)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RankRule(0.7), EXPECTED),
        (RankRule(0.9, 7), dict.fromkeys(EXPECTED, 7)),
        (RankRule(0.8, 50), dict.fromkeys(EXPECTED, 50)),
    ],
)
def test_recomputed_ranks_are_by_the_b_of_the_rule_or_of_each_matrix(
    several: Run, rule: RankRule, expected: dict[str, int]
) -> None:
    assert_ranks_by(several, recompute(several, rule), expected, rule.threshold)


def test_a_run_of_one_b_recomputes_to_what_fits_each_matrix(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "run", 3, *SIZES, buffer_rank=3))
    assert run.buffer_rank == 3
    assert set(run.matrices["buffer_rank"]) == {3}
    assert_ranks_by(run, recompute(run, RankRule()), EXPECTED)
    state = SharedRun(run.path).tables(RankRule())
    assert state.matrices["buffer_rank"].to_dict() == EXPECTED
    assert state.matrices["null_rank"].to_dict() == {
        name: null_rank(int(rows), int(cols), 0.9, b)
        for (name, b), rows, cols in zip(EXPECTED.items(), run.matrices["rows"], run.matrices["cols"], strict=True)
    }


def test_reports_say_the_span_and_show_a_column(several: Run) -> None:
    text = report_table(several)
    assert "and b = 4 to 11, which fits each matrix" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["matrix"][2] == "b"
    assert {name: int(lines[name][2]) for name in EXPECTED} == EXPECTED
    page = re.sub(r"<script.*", "", render(several), flags=re.DOTALL)
    assert "b = 4 to 11" in page
    assert "<th>b</th>" in page


def test_reports_of_one_b_need_no_column(tmp_path: Path) -> None:
    text = report_table(open_run(record(tmp_path / "run", 2, *SIZES, buffer_rank=3)))
    assert "α = 0.9 and b = 3\n" in text
    assert re.search(r"^matrix +shape +rank", text, re.MULTILINE)


def test_figures_of_a_run_take_the_b_of_their_matrix(several: Run) -> None:
    for name, b in EXPECTED.items():
        values, logged = several.singular_values(name), several.measurements
        rank = int(logged[(logged["matrix"] == name) & (logged["step"] == 4)]["intrinsic_rank"].iloc[0])
        curve = explained_ratio_curve(values, 4, buffer_rank=several.buffer_rank)
        assert curve.data[0].name == f"step 4: rank {rank}"
        assert curve.data[0].y[0] == pytest.approx(oracles.explained_ratio(values.loc[4].to_numpy(), 1, b, "paper"))
        assert any(
            trace.meta and trace.meta[1] == rank
            for trace in spectrum_density(values, 4).data
            if len(trace.meta or ()) > 2
        )


def test_a_cut_spectrum_keeps_the_b_of_its_matrix(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "run", 3, *SIZES, leading=20))
    values = run.singular_values("0.weight")
    assert values.shape[1] == 20
    assert values.attrs["buffer_rank"] == 11
    rows = run.measurements[run.measurements["matrix"] == "0.weight"]
    curve = explained_ratio_curve(values)
    assert curve.data[0].name == f"step 3: rank {rows['intrinsic_rank'].iloc[-1]}"


@pytest.mark.parametrize(("given", "matrices"), [(6, "1 of 3 matrices (4.weight is 6×40)"), (100, "3 of 3 matrices")])
def test_a_number_too_large_is_obeyed_and_said_in_every_report(tmp_path: Path, given: int, matrices: str) -> None:
    _, _, tracker = start(tmp_path / "run", *SIZES, buffer_rank=given)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert set(run.matrices["buffer_rank"]) == {given}
    hint = f"buffer_rank={given} is not below the short side of {matrices}"
    assert hint in tracker.summary().replace("\n  ", " ")
    assert hint in html.unescape(render(run))
    assert run.events.empty


def test_a_number_below_every_short_side_needs_no_hint(tmp_path: Path) -> None:
    text = report_table(open_run(record(tmp_path / "run", 1, *SIZES, buffer_rank=5)))
    assert "Worth knowing" not in text


def test_a_run_of_an_older_version_has_the_b_that_it_was_given(tmp_path: Path) -> None:
    run = without(record(tmp_path / "run", 2, *SIZES, buffer_rank=3), "buffer_rank")
    assert run.buffer_rank == 3
    assert set(run.matrices["buffer_rank"]) == {3}
    assert "b = 3" in report_table(run)


def test_a_run_goes_on_where_b_comes_to_the_same(tmp_path: Path) -> None:
    path = record(tmp_path / "run", 2, 64, 70, 66, buffer_rank=8)
    model = mlp(64, 70, 66)
    optimizer = sgd(model)
    with attach(model, optimizer, path, every=1, tensorboard=False, resume=2):  # 8 is what fits both
        train(model, optimizer, 1, first=2)
    assert open_run(path).info["options"]["buffer_rank"] == 8
    with pytest.raises(ValueError, match="begun with buffer_rank=8, got 9"):
        attach(model, optimizer, path, every=1, tensorboard=False, resume=2, buffer_rank=9)


def test_a_scan_without_b_has_what_fits_each_matrix_and_is_resumed(tmp_path: Path) -> None:
    model, files = mlp(*SIZES), []
    for step in range(3):
        files.append(tmp_path / f"step_{step}.pt")
        torch.save(model.state_dict(), files[-1])
        train(model, sgd(model), 1, first=step)
    run = scan(files[:2], tmp_path / "run", tensorboard=False)
    assert run.matrices["buffer_rank"].to_dict() == EXPECTED
    assert_ranks_by(run, run.measurements, EXPECTED)
    resumed = scan(files, tmp_path / "run", tensorboard=False, resume=True)
    assert np.array_equal(resumed.measurements["step"].unique(), [1, 2])
    hinted = scan(files, tmp_path / "other", tensorboard=False, buffer_rank=50)
    assert "buffer_rank=50 is not below the short side of 2 of 3" in report_table(hinted).replace("\n  ", " ")


def test_a_scan_of_an_older_version_goes_on(tmp_path: Path) -> None:
    model, files = mlp(*SIZES), []
    for step in range(3):
        files.append(tmp_path / f"step_{step}.pt")
        torch.save(model.state_dict(), files[-1])
        train(model, sgd(model), 1, first=step)
    without(scan(files[:2], tmp_path / "run", tensorboard=False, buffer_rank=3).path, "buffer_rank")
    resumed = scan(files, tmp_path / "run", tensorboard=False, buffer_rank=3, resume=True)
    assert set(resumed.matrices["buffer_rank"]) == {3}
