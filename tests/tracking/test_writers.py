"""Who writes a run: a tracker of this process that was left open, or another process where the disk has no locks."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import torch
from helpers.training import complaints, mlp, sgd, start, train

from inrank_monitor import SpectrumTracker, attach, list_runs, open_run
from inrank_monitor.runs import lock as run_lock
from inrank_monitor.runs.claim import Claim, OtherWriterError
from inrank_monitor.runs.log import AppendFile
from inrank_monitor.tracking import holders

# --- a cell that is run again


@pytest.mark.parametrize("resume", [False, True, 2])
def test_an_open_tracker_of_this_process_is_named(tmp_path: Path, resume: bool | int) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 3)
    tracker.flush()
    said = r"a tracker of this process, attached at \d\d:\d\d:\d\d and now at step 3, .* call its close\(\) first"
    with pytest.raises((FileExistsError, RuntimeError), match=said):
        attach(model, optimizer, tmp_path / "run", resume=resume)
    train(model, optimizer, 1, first=3)
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [1, 2, 3, 4]
    with attach(model, optimizer, tmp_path / "run", resume=4, every=1, tensorboard=False):
        train(model, optimizer, 1, first=4)
    assert open_run(tmp_path / "run").measurements["step"].max() == 5


def test_it_is_found_by_any_path_that_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("link", "./run", tmp_path / "other/../run"):
        with pytest.raises(FileExistsError, match="a tracker of this process"):
            attach(model, optimizer, path)
    tracker.close()


def test_one_that_was_dropped_is_none(tmp_path: Path) -> None:
    def cell() -> SpectrumTracker:
        model, optimizer, tracker = start(tmp_path / "run", resume=True)
        train(model, optimizer, 2)
        return tracker

    tracker = cell()
    with pytest.raises(RuntimeError, match="a tracker of this process"):
        cell()
    del tracker
    assert not holders.holder_of(tmp_path / "run")
    tracker = cell()
    tracker.close()


# --- two writers without locks


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, and a tracker that knows of no other: as of another machine."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    monkeypatch.setattr("inrank_monitor.tracking.started_run.holder_of", lambda directory: "")


def losses(directory: Path) -> list[float]:
    scalars = open_run(directory).scalars
    return scalars.loc[scalars["name"] == "loss", "value"].tolist()


def measured(directory: Path) -> list[int]:
    run = open_run(directory)
    assert not run.problems
    return [int(step) for step in run.measurements["step"].unique()]


def go(model: torch.nn.Sequential, optimizer: torch.optim.Optimizer, tracker: SpectrumTracker, *steps: int) -> None:
    for step in steps:
        train(model, optimizer, 1, first=step)
        tracker.log(loss=float(step))


@pytest.mark.usefixtures("_no_locks")
def test_one_whose_run_is_taken_up_by_another_goes_on_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(tmp_path / "run", tensorboard=True)
    go(*first, 1, 2, 3)
    first[2].flush()
    second = mlp(6, 8, 5), None, None
    optimizer = sgd(second[0])
    tracker = attach(second[0], optimizer, tmp_path / "run", every=1, resume=2, tensorboard=False)
    go(second[0], optimizer, tracker, 10, 11)
    go(*first, 4, 5)
    first[2].flush()
    go(second[0], optimizer, tracker, 12)
    elsewhere = first[2].path
    assert elsewhere != tmp_path / "run"
    assert elsewhere.parent == tmp_path
    assert elsewhere.name.startswith("run-")
    assert "0.weight" in first[2].summary()
    first[2].close()
    tracker.close()
    assert losses(elsewhere) == [1, 2, 3, 4, 5]
    assert measured(elsewhere) == [1, 2, 3, 4, 5]
    assert losses(tmp_path / "run") == [1, 2, 10, 11, 12]
    assert measured(tmp_path / "run") == [1, 2, 3, 4, 5]
    assert {run.status for run in list_runs(tmp_path)} == {"finished"}
    (message,) = open_run(elsewhere).events.query("kind == 'other_writer'")["message"]
    assert re.search(r"process \d+ on .* writes .*run too.*this run goes on in", message)
    assert any("this run goes on in" in text for text in complaints(caplog))
    assert open_run(tmp_path / "run").events["kind"].tolist() == ["resumed"]


@pytest.mark.usefixtures("_no_locks")
def test_two_that_begin_at_once_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find an empty directory; the first has written some batches when the second claims it."""
    first = start(tmp_path / "run")
    go(*first, 1, 2)
    first[2].flush()
    exists = Path.exists
    with monkeypatch.context() as patch:  # it looked before the first one wrote
        patch.setattr(Path, "exists", lambda self, **more: self.name != "run.json" and exists(self, **more))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        second = start(tmp_path / "run")
    for step in (3, 4):
        go(*second, step)
        second[2].flush()
        go(*first, step)
        first[2].flush()
    first[2].close()
    second[2].close()
    one, other = first[2].path, second[2].path
    assert one != other
    assert other == tmp_path / "run"
    assert losses(one) == [1, 2, 3, 4]
    assert measured(one) == [1, 2, 3, 4]
    assert losses(other) == [3, 4]
    assert measured(other) == [1, 2]
    assert {run.status for run in list_runs(tmp_path)} == {"finished"}


@pytest.mark.usefixtures("_no_locks")
def test_one_that_only_closes_finds_out_too(tmp_path: Path) -> None:
    first = start(tmp_path / "run")
    go(*first, 1, 2)
    first[2].flush()
    optimizer = sgd(model := mlp(6, 8, 5))
    second = attach(model, optimizer, tmp_path / "run", every=1, resume=2, tensorboard=False)
    first[2].close()
    assert open_run(tmp_path / "run").info["ended"] is None
    assert losses(first[2].path) == [1, 2]
    second.close("a test")


def test_a_claim_holds_until_another_is_made(tmp_path: Path) -> None:
    one = Claim(tmp_path)
    one.check()
    other = Claim(tmp_path)
    other.check()
    with pytest.raises(OtherWriterError, match=rf"process \d+ on .* writes {tmp_path} too"):
        one.check()
    one.release()
    other.check()
    other.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b"half a tok", b"\xff\xfe"])
def test_a_claim_that_cannot_be_read_is_no_other_writers(tmp_path: Path, content: bytes | None) -> None:
    claim = Claim(tmp_path)
    if content is None:
        (tmp_path / "writer").unlink()
    else:
        (tmp_path / "writer").write_bytes(content)
    claim.check()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        AppendFile.begin(tmp_path / "file", b"ours", exclusive=True)
    assert (tmp_path / "file").read_bytes() == b"theirs"
