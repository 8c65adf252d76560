"""The same word for the same thing in every command, and errors in the words that were typed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from helpers.made_runs import make_run

import inrank.cli
import inrank_monitor.cli
from inrank_monitor import open_run
from inrank_monitor.demo.options import OPTIONS_FILE
from inrank_monitor.files import named_after, replaced
from inrank_monitor.runs import write_json

PROGRAMS = {"inrank-monitor": inrank_monitor.cli, "inrank": inrank.cli}


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command of both programs."""
    return {
        f"{program} {name}": parser
        for program, module in PROGRAMS.items()
        for action in module._build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, parser in action.choices.items()
    }


WRITING = ("demo", "scan", "plan", "report", "advise", "export", "train", "compare", "reproduce")


def test_whatever_writes_takes_output_and_its_help_knows_no_other_word() -> None:
    found = {command.split()[1]: parser for command, parser in commands().items()}
    assert set(WRITING) <= set(found)
    for name in WRITING:
        text = found[name].format_help()
        assert "--output" in text, name
        for old in ("--out ", "--html", "--csv", "--lora", "--json"):
            assert old not in text, (name, old)
        assert "DIRECTORY" not in text.replace("DIRECTORY_", ""), name


@pytest.mark.parametrize(
    ("program", "line", "dest", "value"),
    [
        ("inrank-monitor", "demo --out a", "output", "a"),
        ("inrank-monitor", "scan x --run a", "directory", Path("a")),
        ("inrank-monitor", "plan gpt2 --json a", "output", "a"),
        ("inrank-monitor", "plan gpt2 --budget 0.5", "budget", 0.5),
        ("inrank-monitor", "export x --out a", "output", "a"),
        ("inrank-monitor", "report x --html a", "html", "a"),
        ("inrank-monitor", "advise x --csv a", "csv", "a"),
        ("inrank-monitor", "advise x --lora a", "lora", "a"),
        ("inrank", "compare x --csv a", "output", "a"),
        ("inrank", "reproduce figure-3 --out a", "output", "a"),
    ],
)
def test_earlier_spellings_still_work(program: str, line: str, dest: str, value: object) -> None:
    assert getattr(PROGRAMS[program]._build_parser().parse_args(line.split()), dest) == value


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


def test_the_ending_of_a_file_says_what_is_written(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main = inrank_monitor.cli.main
    assert main(["report", str(run_path), "--output", "table.txt"]) == 0
    assert main(["advise", str(run_path), "--output", "ranks.csv", "--output", "lora.json"]) == 0
    assert "wrote table.txt" in capsys.readouterr().out
    assert str(open_run(run_path).matrices.index[0]) in Path("table.txt").read_text(encoding="utf-8")
    assert "," in Path("ranks.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "rank_pattern" in json.loads(Path("lora.json").read_text(encoding="utf-8"))
    assert main(["report", str(run_path), "--output", "page.pdf"]) == 2
    assert "--output must end in .html or .txt, got page.pdf" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        *("report RUN --output WHERE.html", "report RUN --output WHERE.txt", "report RUN --html WHERE"),
        *("advise RUN --output WHERE.csv", "advise RUN --output WHERE.json", "plan gpt2 --output WHERE"),
    ],
)
def test_what_cannot_be_written_is_named_as_it_was_typed(
    line: str, run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for where in ("nowhere/deep/it", "file/it", "folder"):
        given = [word.replace("RUN", str(run_path)).replace("WHERE", where) for word in line.split()]
        if where == "folder":
            Path(given[-1]).mkdir(exist_ok=True)
        assert inrank_monitor.cli.main(given) == 2
        out, error = capsys.readouterr()
        assert error.count("\n") == 1
        assert given[-1] in error
        assert ".tmp" not in error
        assert "wrote" not in out


def test_a_run_that_is_listed_is_said_to_be_one(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inrank_monitor.cli.main(["list", str(run_path)]) == 0
    out = capsys.readouterr().out
    assert f"{run_path} is a run itself" in out
    assert f"report {run_path}" in out
    assert "finished" in out
    assert "no runs" not in out


def test_errors_on_what_lies_beside_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "none" / OPTIONS_FILE, FileNotFoundError), (tmp_path / "folder", IsADirectoryError)):
        with pytest.raises(kind) as raised:
            write_json(path, {"a": 1})
        assert (raised.value.filename, raised.value.filename2) == (str(path), None)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "folder"]
    with pytest.raises(FileNotFoundError) as raised, named_after(tmp_path / "whole", tmp_path / "whole.tmp"):
        (tmp_path / "whole.tmp/in/it").read_text()
    assert raised.value.filename == str(tmp_path / "whole/in/it")


def test_an_error_on_another_file_keeps_its_name_and_the_old_file_stays(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("old")
    with pytest.raises(FileNotFoundError) as raised, replaced(place) as beside:
        beside.write_text((tmp_path / "source").read_text())
    assert raised.value.filename == str(tmp_path / "source")
    assert place.read_text() == "old"
    with replaced(place) as beside:
        beside.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]
