"""A slow, full, unwritable or vanished disk: nothing kills the training, and nothing is lost that can be kept."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.training import assert_same_weights, complaints, mlp, run_script, sgd, start, step_hooks, train, trained

from inrank_monitor import attach, open_run
from inrank_monitor.runs.log import AppendFile
from inrank_monitor.tracking.snapshot import Snapshot

RANKS = ("intrinsic_rank", "running_rank", "energy_rank", "numerical_rank")


def test_a_slow_disk_does_not_hold_up_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = threading.Event()
    append = AppendFile.append

    def slow(self: AppendFile, data: Any) -> None:
        assert free.wait(60)
        append(self, data)

    monkeypatch.setattr(AppendFile, "append", slow)
    monkeypatch.setattr("inrank_monitor.tracking.snapshots._MAX_BACKLOG", 4)
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 30)  # would last a minute a step
    tracker.log(loss=1.0)
    assert tracker.step_count == 30
    assert tracker.finished_steps == []
    free.set()
    tracker.flush()
    train(model, optimizer, 1, first=30)
    tracker.close()
    assert_same_weights(model, trained(31))
    run = open_run(tmp_path / "run")
    measured = run.measurements["step"].unique().tolist()
    assert measured[:4] == [1, 2, 3, 4]
    assert measured[-1] == 31
    assert set(run.events["kind"]) == {"snapshot_skipped"}
    assert set(range(1, 32)) - set(measured) <= set(range(run.events["step"].min(), 31))
    assert len(complaints(caplog)) == 1
    assert run.scalars.loc[run.scalars["name"] == "loss", "step"].tolist() == [30]


def test_memory_stays_bounded_while_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: AppendFile, data: Any) -> None:
        raise OSError(28, "No space left on device")

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Snapshot for thing in gc.get_objects())

    model, optimizer, tracker = start(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(AppendFile, "append", full)
        for step in range(60):
            train(model, optimizer, 1, first=step)
            tracker.flush()
        assert alive() <= 8
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == list(range(1, 61))


FULL_DISK = """
import resource, signal
import torch
from helpers.training import mlp, start, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model, optimizer, tracker = start(sys.argv[1], 40, 50, 30, tensorboard=True)
train(model, optimizer, 5)
tracker.flush()
size = __import__("pathlib").Path(sys.argv[1], "measurements-000.arrows").stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, hard))  # in the middle of the next batch
for step in range(5, 25):
    train(model, optimizer, 1, first=step)
    tracker.log(loss=step)
    tracker.flush()
print("while full", tracker.finished_steps)
if sys.argv[2] == "room again":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    train(model, optimizer, 1, first=25)
tracker.close()
print("weights", sum(float(p.detach().double().sum()) for p in model.parameters()).hex())
"""


def weights_sum(steps: int) -> str:
    return sum(float(p.detach().double().sum()) for p in trained(steps, 40, 50, 30).parameters()).hex()


def test_after_a_full_disk_everything_that_waited_is_written(tmp_path: Path) -> None:
    answer = run_script(FULL_DISK, tmp_path / "run", "room again")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [f"while full {[1, 2, 3, 4, 5]}", f"weights {weights_sum(26)}"]
    assert answer.stderr.count("File too large") == 1
    assert "Traceback" not in answer.stderr
    run = open_run(tmp_path / "run")
    assert run.problems == []
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == list(range(1, 27))
    assert run.scalars.loc[run.scalars["name"] == "loss", "value"].tolist() == list(range(5, 25))
    assert run.events["message"].str.contains("File too large").sum() == 1
    assert all(len(run.singular_values(name)) == 26 for name in run.matrices.index)


@pytest.mark.slow
def test_a_disk_that_stays_full_costs_only_what_did_not_fit(tmp_path: Path) -> None:
    answer = run_script(FULL_DISK, tmp_path / "run", "for good")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[1] == f"weights {weights_sum(25)}"
    assert "batches could not be written and are lost" in answer.stderr
    assert "Traceback" not in answer.stderr
    run = open_run(tmp_path / "run")
    assert run.problems == []
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4, 5]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_full_file_system_is_waited_out(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, tracker = start(tiny_disk / "run", tensorboard=True)
    train(model, optimizer, 3)
    tracker.flush()
    fill(tiny_disk / "filler")
    for step in range(3, 43):  # a file may have room left in its last page
        train(model, optimizer, 1, first=step)
        tracker.log(loss=float(step))
        tracker.flush()
    assert tracker.finished_steps[-1] < 43
    during = open_run(tiny_disk / "run")
    assert during.status == "live"
    assert set(during.measurements["step"]) == set(tracker.finished_steps)
    (tiny_disk / "filler").unlink()
    train(model, optimizer, 1, first=43)
    tracker.close()
    assert_same_weights(model, trained(44))
    run = open_run(tiny_disk / "run")
    assert run.problems == []
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == list(range(1, 45))
    assert run.scalars.loc[run.scalars["name"] == "loss", "value"].tolist() == list(range(3, 43))
    assert run.events["message"].str.contains("No space left").sum() == 1
    assert len(complaints(caplog)) == 1
    assert "No space left" in complaints(caplog)[0]


def test_attach_to_a_full_file_system_raises_and_leaves_the_training_alone(tiny_disk: Path) -> None:
    fill(tiny_disk / "filler")
    model = mlp(200, 300, 100)
    optimizer = sgd(model)
    with pytest.raises(OSError, match="No space left"):
        attach(model, optimizer, tiny_disk / "run")
    assert step_hooks(optimizer) == 0
    (tiny_disk / "filler").unlink()
    attach(model, optimizer, tiny_disk / "run", tensorboard=False).close()  # and is no obstacle later
    assert open_run(tiny_disk / "run").status == "finished"


@pytest.mark.parametrize("below", ["run", "a/b/run"])
@pytest.mark.parametrize("place", ["/proc/sys", "file"])
def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path: Path, place: str, below: str) -> None:
    (tmp_path / "file").touch()
    directory = (Path(place) if place.startswith("/") else tmp_path / place) / below
    model = mlp(6, 5)
    optimizer = sgd(model)
    with pytest.raises(OSError, match=f"cannot write the run directory.*{directory}"):
        attach(model, optimizer, directory)
    assert step_hooks(optimizer) == 0


def test_a_file_in_place_of_the_directory_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OSError, match="cannot write the run directory"):
        attach(mlp(6, 5), None, tmp_path / "run")


def test_a_run_directory_that_is_deleted_mid_run_does_not_stop_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, tracker = start(tmp_path / "run", tensorboard=True)
    train(model, optimizer, 3)
    tracker.flush()
    shutil.rmtree(tmp_path / "run")
    train(model, optimizer, 3, first=3)
    tracker.log(loss=1.0)
    tracker.close()
    assert_same_weights(model, trained(6))
    assert not (tmp_path / "run" / "run.json").exists()
    assert 1 <= len(complaints(caplog)) <= 3
    assert any("run.json" in text for text in complaints(caplog))


@pytest.mark.parametrize("tensorboard", [True, False])
def test_a_run_directory_that_is_deleted_before_the_first_snapshot_does_not_stop_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tensorboard: bool
) -> None:
    model, optimizer, tracker = start(tmp_path / "run", tensorboard=tensorboard)
    shutil.rmtree(tmp_path / "run")
    train(model, optimizer, 3)
    tracker.close()
    assert_same_weights(model, trained(3))
    assert any("lost" in text for text in complaints(caplog))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_w0_file_that_is_cut_mid_run_does_not_kill_the_training(tmp_path: Path) -> None:
    # A memory map of a file that shrinks, or of one on a network disk that goes away, is a SIGBUS at the next look.
    script = """
import os
from helpers.training import start, train
model, optimizer, tracker = start(sys.argv[1], 100, 200, 100)
train(model, optimizer, 2)
tracker.flush()
os.truncate(sys.argv[1] + "/initial_weights.safetensors", 100)
train(model, optimizer, 2, first=2)
tracker.close()
print("survived")
"""
    answer = run_script(script, tmp_path / "run")
    assert (answer.returncode, answer.stdout) == (0, "survived\n"), answer.stderr[-1000:]
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist()[:2] == [1, 2]
