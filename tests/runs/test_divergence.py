"""A run that diverged is marked on all of its matrices, wherever its ranks are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.made_runs import make_run, names_of
from helpers.run_files import edit, info, scalar

from inrank_monitor import cli, open_run
from inrank_monitor.advice import advise
from inrank_monitor.report import matrix_table, report_table, runs_table, verdict, write_html
from inrank_monitor.runs import RunLog, SharedRun, list_runs, with_divergence


def with_losses(directory: Path, values: list[float], name: str = "loss") -> Path:
    """A run of 40 steps and five matrices, to which a value a step is added from step 41 on."""
    make_run(directory)
    log = RunLog(directory, 1)
    for place, value in enumerate(values):
        log.append("scalars", scalar(41 + place, value, name))
    log.close()
    edit(directory, segments=info((0, None), (1, 40))["segments"])
    return directory


def test_a_loss_that_is_not_finite_at_the_end_marks_every_matrix(tmp_path: Path) -> None:
    run = open_run(with_losses(tmp_path / "run", [1.0, np.nan, np.inf, np.nan]))
    assert run.diverged is not None
    assert run.diverged.step == 42
    assert run.diverged.text == "diverged: loss is not finite since step 42"
    table = matrix_table(run)
    assert set(table["verdict"]) == {"diverged"}
    assert verdict(table).startswith("Of 5 matrices: 5 diverged.")
    assert set(advise(run)["verdict"]) == {"diverged"}
    assert advise(run)["advice"].str.contains("diverged").all()


def test_wherever_a_run_is_told_of_its_divergence_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_losses(tmp_path / "run", [np.nan])
    run, said = open_run(path), "diverged: loss is not finite since step 41"
    text = report_table(run)
    assert text.splitlines()[3] == f"! {said}"
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("h.0.")] == ["diverged"] * 5
    page = write_html(run, tmp_path / "page.html").read_text()
    assert said in page
    assert page.count(">diverged<") >= 5
    assert said in run._repr_html_()
    assert "finished, diverged" in runs_table(list_runs(tmp_path))
    assert cli.main(["list", str(path)]) == 0
    assert "finished, diverged" in capsys.readouterr().out
    state = SharedRun(path).tables()
    assert state.diverged == run.diverged
    mark = state.marked_events.iloc[-1]
    assert (mark["step"], mark["kind"], mark["message"]) == (41, "diverged", said)
    assert len(state.marked_events) == len(run.events) + 1 == len(with_divergence(run.events, run.diverged))
    assert len(state.divergence_mark) == 1


@pytest.mark.parametrize("name", ["val/loss", "eval_loss", "train.Loss", "validation loss"])
def test_any_loss_that_is_not_finite_at_the_end_tells(tmp_path: Path, name: str) -> None:
    run = open_run(with_losses(tmp_path / "run", [1.0, np.nan], name))
    assert run.diverged is not None
    assert run.diverged.text == f"diverged: {name} is not finite since step 42"


@pytest.mark.parametrize(
    ("name", "values"),
    [("gloss", [np.nan]), ("loss_scale", [np.inf]), ("loss", [np.nan, 1.0]), ("val/loss", [1.0] * 10 + [9.0] * 10)],
)
def test_what_is_no_loss_or_has_come_back_tells_nothing(tmp_path: Path, name: str, values: list[float]) -> None:
    run = open_run(with_losses(tmp_path / "run", values, name))
    assert run.diverged is None
    assert "diverged" not in report_table(run) + runs_table(list_runs(tmp_path))
    state = SharedRun(run.path).tables()
    assert len(state.marked_events) == len(run.events)
    assert state.divergence_mark.empty


def test_a_loss_that_rose_for_good_is_marked_where_it_left_its_beginning(tmp_path: Path) -> None:
    run = open_run(with_losses(tmp_path / "run", [3.0] * 20 + [1.0] * 5 + [50.0] * 15))
    assert run.diverged is not None
    assert run.diverged.step == 66
    assert "above" in run.diverged.text
    assert set(matrix_table(run)["verdict"]) == {"diverged"}


@pytest.mark.parametrize(("bad", "others"), [([2], "structured"), ([0, 1, 2], "diverged"), (range(5), "not finite")])
def test_matrices_that_are_not_finite_tell_where_no_loss_does(tmp_path: Path, bad: list[int], others: str) -> None:
    run = open_run(make_run(tmp_path / "run", not_finite=lambda step: bad if step >= 30 else [1] if step == 10 else []))
    assert run.diverged is not None
    assert run.diverged.step == 30
    assert run.diverged.text == f"not finite: {len(bad)} of 5 matrices since step 30"
    found = matrix_table(run)["verdict"].to_dict()
    assert [found.pop(names_of(5)[place]) for place in bad] == ["not finite"] * len(bad)
    assert set(found.values()) <= {others}
    assert "not finite: " in report_table(run)
    assert "finished, not finite" in runs_table(list_runs(tmp_path))


def test_a_matrix_that_was_not_finite_for_a_while_is_an_event_and_no_divergence(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", not_finite=lambda step: [0, 1, 2, 3, 4] if step == 20 else []))
    assert run.diverged is None
    assert len(run.events) == 1
