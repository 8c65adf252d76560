"""Runs in folders of folders: which are found, by which names, and that nothing outside of the folder is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from helpers.run_files import edit, write_run

from inrank_monitor import cli, list_runs
from inrank_monitor.runs import RUN_FILE, RunFolder, finding, folder, read_runs, write_notes

DEEP = "reproduce-small/runs/theorem-1"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Three runs at three depths, as a tracker, `inrank train` and `inrank reproduce` leave them."""
    for created, name in ((1.0, "flat"), (2.0, "gpt2/dense-seed-0"), (3.0, DEEP)):
        edit(write_run(tmp_path / "runs" / name), created=created)
    (tmp_path / "runs" / "gpt2" / "tokens-0a").mkdir()
    return tmp_path / "runs"


def test_runs_at_any_depth_have_their_paths_as_names_newest_first(shelf: Path) -> None:
    names = [DEEP, "gpt2/dense-seed-0", "flat"]
    assert RunFolder(shelf).names() == names
    assert [summary.name for summary in list_runs(shelf)] == names
    assert [RunFolder(shelf).path_of(name) for name in names] == [shelf / name for name in names]
    assert RunFolder(shelf).refused() == {}


def test_nothing_is_looked_for_in_a_run_in_a_hidden_folder_too_deep_or_behind_a_link(shelf: Path) -> None:
    write_run(shelf / "flat" / "checkpoints" / "inner")
    write_run(shelf / ".cache" / "hidden")
    write_run(shelf.joinpath(*"abcdef", "too deep"))
    write_run(shelf.joinpath(*"abcde", "just"))
    (shelf / "again").symlink_to(shelf / "gpt2")  # no run: else each of them would be there twice
    (shelf / "gpt2" / "around").symlink_to(shelf)
    assert set(RunFolder(shelf).names()) == {DEEP, "gpt2/dense-seed-0", "flat", "a/b/c/d/e/just"}


@pytest.mark.parametrize(
    "name",
    ["gpt2/../../secret", "gpt2/out", "gpt2/through/secret", "/gpt2/dense-seed-0", "gpt2//dense-seed-0", "gpt2/."],
)
def test_no_name_of_several_folders_leads_out(shelf: Path, name: str) -> None:
    write_run(shelf.parent / "secret")
    (shelf / "gpt2" / "out").symlink_to(shelf.parent / "secret")
    (shelf / "gpt2" / "through").symlink_to(shelf.parent)
    runs = RunFolder(shelf)
    with pytest.raises(PermissionError):
        runs.path_of(name)
    with pytest.raises(PermissionError):
        runs.stamp(name)
    assert set(runs.refused()) == {"gpt2/out"}


def test_a_name_of_no_run_is_not_found(shelf: Path) -> None:
    for name in ("gpt2", "gpt2/none", "none/none"):
        with pytest.raises(FileNotFoundError, match="no run"):
            RunFolder(shelf).path_of(name)


def test_a_directory_is_examined_once_as_long_as_it_stays_as_it_is(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, looked = RunFolder(shelf), []
    runs.names()
    check = folder.check_run
    monkeypatch.setattr(folder, "check_run", lambda *paths: looked.append(paths[1].name) or check(*paths))
    assert len(runs.names()) == 3
    assert looked == []
    os.mkfifo(shelf / "flat" / "scalars-001.arrows")
    assert "plain file" in runs.refused()["flat"]
    assert looked == ["flat"]


@pytest.mark.parametrize("age", [0, 60])
def test_what_is_found_changes_with_the_disk(shelf: Path, age: int) -> None:
    """Of folders that have long been as they are, too, of which is kept what is in them."""
    runs = RunFolder(shelf)
    for path in (shelf, *shelf.rglob("*")):
        os.utime(path, (time.time() - age,) * 2)
    runs.names()
    before = runs.stamp("flat")
    write_notes(shelf / "flat", ["tag"])
    assert runs.stamp("flat") != before
    (shelf / "gpt2").rename(shelf / "gpt3")
    assert "gpt3/dense-seed-0" in runs.names()
    assert "gpt2/dense-seed-0" not in runs.names()
    write_run(shelf / "gpt3" / "tokens-0a")  # a folder that becomes a run, whose parent stays as it is
    write_run(shelf / "reproduce-small" / "runs" / "theorem-2")
    assert {"gpt3/tokens-0a", "reproduce-small/runs/theorem-2"} <= set(runs.names())


def test_a_whole_disk_is_not_searched(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "MOST_FOLDERS", 2)
    found, cut = finding.find_runs(shelf)
    assert cut
    assert set(found) == {"flat", "gpt2/dense-seed-0"}
    assert "folders" in RunFolder(shelf).refused()["runs"]
    assert "folders" in read_runs(shelf)[1]["runs"]


def test_list_shows_tags_and_can_be_asked_for_some(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_notes(shelf / "flat", ["baseline", "AdamW"], "with warm-up")
    write_notes(shelf / DEEP, ["baseline"])

    def listed(*arguments: str) -> list[str]:
        assert cli.main(["list", str(shelf), *arguments]) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]

    assert listed() == [DEEP, "gpt2/dense-seed-0", "flat"]
    assert listed("--tag", "baseline") == [DEEP, "flat"]
    assert listed("--tag", "baseline", "--tag", "AdamW") == listed("--search", "WARM adamw fla") == ["flat"]
    cli.main(["list", str(shelf)])
    assert capsys.readouterr().out.splitlines()[-1].endswith("baseline, AdamW")
    cli.main(["list", str(shelf), "--tag", "base"])
    assert "none of the 3 runs" in capsys.readouterr().out


def test_list_says_what_it_leaves_out_and_what_it_cannot_read(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / "gpt2" / "dense-seed-0" / RUN_FILE).write_text("{")
    (shelf / "pipe").mkdir()
    os.mkfifo(shelf / "pipe" / RUN_FILE)
    (shelf / "flat" / "notes.json").write_text('{"tags": ["a"')
    assert cli.main(["list", str(shelf)]) == 0
    out, said = capsys.readouterr()
    assert "flat" in out
    for name in ("gpt2/dense-seed-0: ", "pipe: ", "flat: notes.json"):
        assert name in said
