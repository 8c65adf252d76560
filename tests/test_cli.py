from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.cli import main

COMMANDS = ("demo", "scan", "plan", "report", "export", "list", "dashboard", "doctor")


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, path, every=2, buffer_rank=4) as tracker:
        for _ in range(6):
            loss = model(torch.randn(4, 12)).square().mean()
            loss.backward()
            optimizer.step()
            tracker.log(loss=loss)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert error.value.code == 0
    assert "examples:" in text
    assert f"inrank-monitor {command}" in text


def test_report_shows_ranks_beside_null_ranks(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_directory)]) == 0
    text = capsys.readouterr().out
    assert "0.weight" in text
    assert "null" in text


def test_report_writes_a_page(run_directory: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(run_directory), "--output", str(page)]) == 0
    assert "0.weight" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_export_equals_the_tables(run_directory: Path, tmp_path: Path, file_format: str) -> None:
    assert main(["export", str(run_directory), "--format", file_format, "--output", str(tmp_path)]) == 0
    read = pd.read_csv if file_format == "csv" else pd.read_parquet
    run = open_run(run_directory)
    measured = read(tmp_path / f"measurements.{file_format}")
    assert measured["intrinsic_rank"].tolist() == run.measurements["intrinsic_rank"].tolist()
    spectra = read(tmp_path / f"singular_values.{file_format}")
    rows = spectra[spectra["matrix"] == "1.weight"]
    expected = run.singular_values("1.weight").to_numpy()
    found = rows[[str(i) for i in range(1, 9)]].to_numpy() if file_format == "csv" else list(rows["singular_values"])
    for values, row in zip(found, expected, strict=True):
        assert list(values) == pytest.approx(list(row))


def test_list_names_the_runs(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run_directory.parent)]) == 0
    text = capsys.readouterr().out
    assert "first" in text
    assert "finished" in text


def test_list_of_an_empty_directory_says_how_to_make_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 0
    assert "inrank-monitor demo" in capsys.readouterr().out


def test_doctor_passes_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "missing"],
        ["report", "missing", "--html", "page.html"],
        ["export", "missing"],
        ["list", "missing"],
        ["export", "missing", "--format", "xml"],
        ["demo", "--steps", "many"],
        ["nonsense"],
        [],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    text = capsys.readouterr().err
    assert code == 2
    assert len(text.strip().splitlines()) == 1
    assert "Traceback" not in text


def test_a_damaged_run_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err
