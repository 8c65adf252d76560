"""`inrank reproduce`: bad input, resumption, pages; and every experiment at smoke scale."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inrank.cli import main
from inrank.reproduction.catalogue import NAMES, experiment, experiments
from inrank.reproduction.document import document
from inrank.reproduction.experiment import ExperimentError, Request
from inrank.reproduction.pages import collecting_page, experiment_page
from inrank.reproduction.reproduce import reproduce
from inrank_monitor import list_runs

RESULTS: dict[str, Any] = {
    "experiment": "figure-3",
    "title": "A title | with <b>marks</b>",
    "shown_in_paper": "Lines.",
    "scale": "tiny",
    "seeds": [0, 1, 2],
    "machine": "2 CPU cores",
    "runs": ["one-seed-0"],
    "seconds": 12.3,
    "reading": "It holds <script>alert(1)</script>.",
    "statements": [
        {"claim": "a < b", "paper": "3 | 4", "ours": "1 ± 0.1", "verdict": "agrees", "why": "w*h*y", "values": {}},
        {"claim": "c", "paper": "–", "ours": "2", "verdict": "disagrees", "why": "so", "values": {}},
    ],
    "tables": [{"title": "T", "heads": ["a", "b"], "rows": [["x", "1"]], "note": "n"}],
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give the NAME of an experiment"),
        (["figure-3", "--all"], "give the NAME of an experiment"),
        (["figure-99"], "NAME must be one of theorem-2"),
        (["figure-3", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["figure-3", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["figure-8", "--text", "missing.txt"], "--text must name a readable file"),
        (["figure-8", "--test-text", "missing.txt"], "--test-text goes with --text"),
        (["figure-3", "--device", "tpu"], "--device must be auto, cpu, cuda"),
        (["figure-3", "--document", "nowhere/x.md"], "--document must be a file in a directory that exists"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", *arguments, "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_out_directory_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["reproduce", "table-1", "--scale", "paper", "--output", str(tmp_path / "file")]) == 2
    assert "--output must be a directory that can be written" in capsys.readouterr().err


def test_the_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)


def test_figure_2_is_theorem_2_and_the_order_is_the_papers() -> None:
    assert experiment("figure-2").name == "theorem-2"
    assert [one.name for one in experiments(["table-1", "figure-2", "theorem-2"])] == ["theorem-2", "table-1"]
    with pytest.raises(ExperimentError, match="NAME must be one of"):
        experiment("figure-16")


def test_results_of_another_scale_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request.json").write_text(json.dumps({"scale": "tiny", "text": [], "test_text": None}))
    assert main(["reproduce", "null-ranks", "--scale", "smoke", "--output", str(tmp_path)]) == 2
    assert "holds results with scale 'tiny', asked for 'smoke'" in capsys.readouterr().err


def test_the_document_is_one_markdown_row_a_statement() -> None:
    text = document([RESULTS])
    rows = [line for line in text.splitlines() if line.startswith("| a \\<") or line.startswith("| c ")]
    assert len(rows) == 2
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert "2 statements: agrees 1, disagrees 1." in text
    assert "\\<script>" in text
    assert "| x | 1 |" in text


@pytest.mark.parametrize("page", [experiment_page(RESULTS, ()), collecting_page([RESULTS], {})])
def test_pages_escape_what_they_are_given(page: str) -> None:
    assert "<script>alert" not in page
    assert "<b>marks" not in page
    assert "&lt;script&gt;alert" in page
    assert "a &lt; b" in page
    assert "disagrees" in page


def test_the_collecting_page_links_to_each_experiment() -> None:
    assert 'href="figure-3/index.html"' in collecting_page([RESULTS], {})


@pytest.mark.slow
def test_an_experiment_whose_training_failed_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory of one training holds a damaged run."""
    request = Request(tmp_path, "smoke", (0,))
    directory = request.runs / experiment("figure-15").trainings(request)[-1].name
    directory.mkdir(parents=True)
    (directory / "run.json").write_text("{")
    assert reproduce(request, ["figure-15", "figure-3"], jobs=2, quiet=True) == 1
    assert "inrank reproduce: figure-15: perceptron-kaiming-muon-seed-0: " in capsys.readouterr().err
    assert (tmp_path / "figure-3" / "results.json").exists()
    assert not (tmp_path / "figure-15").exists()


def _reproduce(out: Path, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "inrank", "reproduce", *arguments, "--scale", "smoke", "--output", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, **keywords)


def _numbers(out: Path, name: str) -> Any:
    content = json.loads((out / name / "results.json").read_text())
    return [content[key] for key in ("reading", "statements", "tables", "runs", "seeds")]


@pytest.mark.slow
@pytest.mark.alone
def test_every_experiment_at_smoke_scale_within_two_minutes(tmp_path: Path) -> None:
    """And again: nothing is trained twice."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, transformers.models.gpt2.modeling_gpt2"], check=True)
    # Two minutes where an interpreter starts like that in three seconds; a slower machine is given as much longer.
    allowed = 120 * max(1.0, (time.monotonic() - began) / 3)
    began = time.monotonic()
    process = _reproduce(tmp_path, *NAMES, "--document", str(tmp_path / "copy.md"), stdout=subprocess.PIPE)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert time.monotonic() - began < allowed
    page, text = (tmp_path / "index.html").read_text(), (tmp_path / "reproduction.md").read_text()
    assert text == (tmp_path / "copy.md").read_text()
    runs = {run.path.name for run in list_runs(tmp_path / "runs")}
    numbers_only = set()
    for name in NAMES:
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["statements"], name
        assert results["planned"] == len(results["runs"])
        if results["watched"]:
            assert set(results["runs"]) <= runs
        else:
            numbers_only |= set(results["runs"])
        assert f"{name}: " in printed
        assert f'href="{name}/index.html"' in page
        assert f"## {name}: " in text
        assert "data-figure" in (tmp_path / name / "index.html").read_text() or name.startswith("table")
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/training.json")}
    assert {file.parent.name for file in finished} == runs | numbers_only
    again = _reproduce(tmp_path, "--all", "--quiet")
    assert again.wait() == 0
    assert finished == {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/training.json")}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_reproduction_goes_on_to_the_same_numbers(how: signal.Signals, tmp_path: Path) -> None:
    arguments = ("figure-3", "--seeds", "2", "--jobs", "1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert _reproduce(whole, *arguments, "--quiet").wait() == 0
    process = _reproduce(cut, *arguments, stderr=subprocess.PIPE)
    while len(list(cut.glob("runs/*/training.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, printed = process.communicate()
    assert process.returncode == (-9 if how is signal.SIGKILL else 130)
    assert how is signal.SIGKILL or "The same command goes on." in printed
    before = {file: file.stat().st_mtime_ns for file in cut.glob("runs/*/training.json")}
    assert _reproduce(cut, *arguments, "--quiet").wait() == 0
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())
    assert _numbers(cut, "figure-3") == _numbers(whole, "figure-3")
