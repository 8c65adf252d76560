"""Runs are renamed and deleted, and nothing else is: not what is live, no run, behind a link, or beside it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run_files import write_run

from inrank_monitor import open_run
from inrank_monitor.runs import (
    LOCK_FILE,
    RUN_FILE,
    WRITER_FILE,
    RunFolder,
    contents,
    delete_run,
    rename_run,
    write_notes,
)

OUTSIDE = "outside"


@pytest.fixture
def shelf(tmp_path: Path) -> RunFolder:
    """Runs `a`, `b` and `group/c`, and one outside of the folder."""
    for name in ("runs/a", "runs/b", "runs/group/c", OUTSIDE):
        run = write_run(tmp_path / name)
        (run / LOCK_FILE).touch()
    return RunFolder(tmp_path / "runs")


def tree(folder: RunFolder) -> set[str]:
    """All paths below the folder's parent, links not followed."""
    top = folder.path.parent
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def both(act: str) -> Callable[[RunFolder, str], object]:
    return delete_run if act == "delete" else lambda folder, name: rename_run(folder, name, "new")


def test_a_run_is_deleted_and_nothing_beside_it(shelf: RunFolder) -> None:
    write_notes(shelf.path / "a", ["tag"])
    (shelf.path / "a" / "tensorboard").mkdir()
    (shelf.path / "a" / "tensorboard" / "events.0").write_bytes(b"x")
    before = {path for path in tree(shelf) if not path.startswith("runs/a")}
    assert delete_run(shelf, "a") == ()
    assert tree(shelf) == before
    assert delete_run(shelf, "group/c") == ()
    assert (shelf.path / "group").is_dir()
    assert shelf.names() == ["b"]


def test_what_the_tracker_has_not_written_is_deleted_only_on_demand(shelf: RunFolder) -> None:
    for name in ("train.py", "checkpoints/step-10.pt", "scalars-first.arrows"):
        (shelf.path / "a" / name).parent.mkdir(exist_ok=True)
        (shelf.path / "a" / name).write_bytes(b"x" * 1000)
    inside = contents(shelf, "a")
    assert inside.others == ("checkpoints", "scalars-first.arrows", "train.py")
    assert {RUN_FILE, LOCK_FILE, "measurements-000.arrows"} <= set(inside.own)
    assert inside.size >= 3000
    assert delete_run(shelf, "a") == inside.others
    assert {path.name for path in (shelf.path / "a").iterdir()} == set(inside.others)
    (shelf.path / "b" / "checkpoints").mkdir()
    assert delete_run(shelf, "b", everything=True) == ()
    assert not (shelf.path / "b").exists()


def test_links_in_a_run_are_deleted_and_not_what_they_lead_to(shelf: RunFolder) -> None:
    outside, run = shelf.path.parent / OUTSIDE, shelf.path / "a"
    (run / "tensorboard").symlink_to(outside)
    (run / "model").symlink_to(outside)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last").symlink_to(outside)
    before = {path for path in tree(shelf) if not path.startswith("runs/a")}
    assert delete_run(shelf, "a", everything=True) == ()
    assert tree(shelf) == before
    assert open_run(outside).status == "finished"


@pytest.mark.parametrize("act", ["delete", "rename"])
@pytest.mark.parametrize(
    "name", ["none", "group", "notes", "", ".", "..", "../outside", "group/../a", "link", "alias", "way/c", "fo\0o"]
)
def test_only_a_run_in_the_folder_itself_is_touched(shelf: RunFolder, act: str, name: str) -> None:
    (shelf.path / "notes").mkdir()
    (shelf.path / "notes" / "text").touch()
    (shelf.path / "link").symlink_to(shelf.path.parent / OUTSIDE)
    (shelf.path / "alias").symlink_to(shelf.path / "a")
    (shelf.path / "way").symlink_to(shelf.path / "group")
    before = tree(shelf)
    with pytest.raises((OSError, ValueError)):
        both(act)(shelf, name)
    assert tree(shelf) == before


@pytest.mark.parametrize("act", ["delete", "rename"])
@pytest.mark.parametrize("content", ["{", "[]", '{"name": "of another program"}', '{"schema_version": 999}'])
def test_a_directory_whose_run_json_is_not_ours_is_left(shelf: RunFolder, act: str, content: str) -> None:
    (shelf.path / "a" / RUN_FILE).write_text(content)
    before = tree(shelf)
    with pytest.raises(ValueError, match="by hand"):
        both(act)(shelf, "a")
    assert tree(shelf) == before


@pytest.mark.parametrize("act", ["delete", "rename"])
def test_the_folder_itself_is_left_where_it_is_a_run(shelf: RunFolder, act: str) -> None:
    with pytest.raises(ValueError, match="the folder that was opened"):
        both(act)(RunFolder(shelf.path / "a"), "a")
    assert "a" in shelf.names()


@pytest.mark.parametrize("act", ["delete", "rename"])
def test_a_run_that_another_process_writes_is_left(shelf: RunFolder, act: str) -> None:
    """Also a finished one, to which ranks by loss are being added."""
    hold = f"import fcntl,sys;f=open({str(shelf.path / 'a' / LOCK_FILE)!r},'ab');fcntl.flock(f,fcntl.LOCK_EX);"
    command = [sys.executable, "-c", f"{hold}print('held',flush=True);sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        before = tree(shelf)
        with pytest.raises(ValueError, match="'a' is live"):
            both(act)(shelf, "a")
        assert tree(shelf) == before
        writer.communicate(b"")
    both(act)(shelf, "a")
    assert not (shelf.path / "a").exists()


@pytest.mark.parametrize("act", ["delete", "rename"])
def test_where_locks_say_nothing_a_young_unfinished_run_is_left(shelf: RunFolder, act: str) -> None:
    """One without a lock; and one whose writer may be on another machine."""
    for name, sign in (("no lock", None), ("claimed", WRITER_FILE)):
        run = write_run(shelf.path / name, ended=None)
        if sign:
            (run / LOCK_FILE).touch()
            (run / sign).write_text("token process 1 on elsewhere\n")
        write_notes(run, ["mine"])
        with pytest.raises(ValueError, match="is live"):
            both(act)(shelf, name)
        for file in run.iterdir():
            os.utime(file, (time.time() - 300,) * 2)
        write_notes(run, ["a note is no sign of life"])
        both(act)(shelf, name)
        assert not run.exists()
        if act == "rename":
            delete_run(shelf, "new")


def test_a_run_with_another_inside_is_not_deleted_with_everything(shelf: RunFolder) -> None:
    write_run(shelf.path / "a" / "sub" / "inner")
    before = tree(shelf)
    with pytest.raises(ValueError, match="sub/inner"):
        delete_run(shelf, "a", everything=True)
    assert tree(shelf) == before
    assert delete_run(shelf, "a") == ("sub",)
    assert set(shelf.names()) == {"b", "a/sub/inner", "group/c"}


def test_a_deletion_that_failed_can_be_asked_for_again(shelf: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("scalars"):
            raise OSError(errno.EIO, "Input/output error", str(self))
        whole(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(OSError, match=r"Input/output.*scalars-000"):
            delete_run(shelf, "a")
    assert "a" in shelf.names()
    assert delete_run(shelf, "a") == ()


def test_a_run_is_renamed_with_all_that_is_in_it(shelf: RunFolder) -> None:
    (shelf.path / "a" / "checkpoints").mkdir()
    before = sorted(path.name for path in (shelf.path / "a").iterdir())
    for name, new, now in (("a", " z ", "z"), ("z", "sweep/lr 4e-3/seed-0", "sweep/lr 4e-3/seed-0"), (None, "a", "a")):
        assert rename_run(shelf, name or "sweep/lr 4e-3/seed-0", new) == now
        assert sorted(path.name for path in (shelf.path / now).iterdir()) == before
    assert set(shelf.names()) == {"a", "b", "group/c"}
    assert open_run(shelf.path / "a").problems == []


@pytest.mark.parametrize(
    "new",
    [
        *(
            "b",
            "group",
            "group/c",
            "a",
            "file",
            "empty",
            "dangling",
            "",
            " ",
            ".",
            "..",
            "../outside",
            "../new",
            "/new",
        ),
        *(
            "x/../../new",
            ".hidden",
            "x/.hidden",
            "a/b",
            "b/c/d",
            "out/new",
            "in/new",
            "file/new",
            "x\0",
            "x\ny",
            "x\\y",
        ),
        *("x" * 201, "ä" * 200, "/".join("abcdefg")),
    ],
)
def test_a_name_that_exists_leaves_the_folder_or_cannot_be_one_is_refused(shelf: RunFolder, new: str) -> None:
    (shelf.path / "file").write_text("kept")
    (shelf.path / "empty").mkdir()
    (shelf.path / "dangling").symlink_to("nowhere")
    (shelf.path / "out").symlink_to(shelf.path.parent)
    (shelf.path / "in").symlink_to(shelf.path / "group")
    before = tree(shelf)
    with pytest.raises((OSError, ValueError)):
        rename_run(shelf, "a", new)
    assert tree(shelf) == before
    assert (shelf.path / "file").read_text() == "kept"
