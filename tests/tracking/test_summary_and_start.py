"""Runs that begin with weights that are not finite, and `summary()` of runs with which something is wrong."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import complaints, start, train
from safetensors.torch import save_file

from inrank_monitor import SpectrumTracker, attach, cli, list_runs, open_run, scan
from inrank_monitor.advice import advice_text, advise
from inrank_monitor.report import report_table, write_html
from inrank_monitor.runs import SharedRun, export_run


def broken_start(directory: Path, value: float, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 5)).to(dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = value
    tracker = attach(model, None, directory, every=1)
    for _ in range(3):
        with torch.no_grad():
            model[1].weight += 0.1
        tracker.step()
    assert "0.weight" in tracker.summary()
    tracker.close()
    return directory


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.float32),
        (float("-inf"), torch.bfloat16),
        (1e300, torch.float64),  # whose square is infinite
    ],
)
def test_a_w0_that_is_not_finite_is_an_event_and_the_run_is_like_any_other(
    tmp_path: Path, value: float, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken_start(tmp_path / "runs" / "x", value, dtype)
    json.loads((path / "run.json").read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
    run = open_run(path)
    assert run.status == "finished"
    assert run.measurements.query("matrix == '1.weight'")["step"].tolist() == [1, 2, 3]
    (message,) = run.events.loc[run.events["kind"] == "non_finite_start", "message"]
    assert "0.weight" in message
    assert "1.weight" not in message
    assert len(complaints(caplog)) == 1
    assert [found.path for found in list_runs(tmp_path / "runs")] == [path]
    for text in (report_table(run), advice_text(advise(run)), run._repr_html_() or ""):
        assert "1.weight" in text
    write_html(run, tmp_path / "page.html")
    assert len(list(export_run(run, tmp_path / "tables", "parquet"))) == 5
    shared = SharedRun(path)
    assert len(shared.tables().matrices) == 2
    assert shared.singular_values("1.weight").notna().all(axis=None)


def test_a_run_with_such_a_w0_is_resumed(tmp_path: Path) -> None:
    model = torch.nn.Linear(5, 5)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    for resume in (False, True):
        tracker = attach(model, None, tmp_path / "run", every=1, resume=resume, tensorboard=False)
        tracker.step()
        tracker.close()
    assert open_run(tmp_path / "run").status == "finished"


def test_a_run_that_says_nan_where_an_earlier_version_wrote_it_opens(tmp_path: Path) -> None:
    path = broken_start(tmp_path / "run", float("nan"))
    text = (path / "run.json").read_text(encoding="utf-8")
    assert text.count('"initial_norm": null') == 1
    (path / "run.json").write_text(text.replace('"initial_norm": null', '"initial_norm": NaN'), encoding="utf-8")
    assert len(open_run(path).measurements)


def test_a_scan_of_checkpoints_that_begin_so_opens(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        weight = torch.randn(6, 6)
        weight[0, 0] = float("nan") if number == 0 else 1.0
        files.append(tmp_path / f"step_{number}.safetensors")
        save_file({"a.weight": weight, "b.weight": torch.randn(6, 6)}, files[-1])
    run = scan(files[:2], tmp_path / "run", buffer_rank=2)
    assert "b.weight" in report_table(run)
    assert "non_finite_start" in set(run.events["kind"])
    run = scan(files, tmp_path / "run", buffer_rank=2, resume=True)
    assert run.measurements.query("matrix == 'b.weight'")["step"].tolist() == [1, 2]


# --- summary


def deleted(tracker: SpectrumTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tracker.path)


def cut(tracker: SpectrumTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tracker.path / "run.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")


def another_file(tracker: SpectrumTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tracker.path)
    tracker.path.write_text("a file now", encoding="utf-8")


def no_pandas(tracker: SpectrumTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("inrank_monitor.report"):
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return imported(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)


Harm = Callable[[SpectrumTracker, pytest.MonkeyPatch], None]
HARMS = pytest.mark.parametrize("harm", [deleted, cut, another_file, no_pandas])


@HARMS
def test_summary_of_a_run_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 2)
    tracker.flush()
    harm(tracker, monkeypatch)
    for _ in range(2):
        assert tracker.summary().startswith(f"there is no summary of {tracker.path}: ")
    assert len([text for text in complaints(caplog) if "error in summary" in text]) == 1
    train(model, optimizer, 1, first=2)
    tracker.close()
    monkeypatch.undo()
    mended = harm in (cut, no_pandas)  # closing writes run.json anew
    assert tracker.summary().startswith("there is no summary of") != mended


@HARMS
def test_in_strict_mode_it_raises(tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    train(model, optimizer, 1)
    harm(tracker, monkeypatch)
    with pytest.raises((OSError, ValueError, ImportError)):
        tracker.summary()
    monkeypatch.undo()
    tracker.close()


def test_torn_tails_are_told_and_no_error(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 3)
    tracker.close()
    file = tmp_path / "run/measurements-000.arrows"
    file.write_bytes(file.read_bytes()[:-20])
    assert "torn or damaged" in tracker.summary()


def test_every_reader_takes_such_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken_start(tmp_path / "runs" / "x", float("nan"))
    for command in (["report", str(path)], ["advise", str(path)], ["list", str(path.parent)], ["export", str(path)]):
        assert cli.main(command) == 0
    assert "x" in capsys.readouterr().out
