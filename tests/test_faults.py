"""Promise 3: after attach nothing kills the training, nothing is lost that can be kept, and everything is said."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import mlp, run_script, sgd, start, train

from inrank_monitor import attach, open_run
from inrank_monitor.run_log import FLOAT_METRICS, AppendFile
from inrank_monitor.snapshot import Snapshot

RANKS = ("intrinsic_rank", "running_rank", "energy_rank", "numerical_rank")


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the tracker said at warning level or above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "inrank_monitor" and record.levelno >= logging.WARNING
    ]


def plain(steps: int, *sizes: int) -> nn.Sequential:
    """The same training, untracked."""
    model = mlp(*(sizes or (6, 8, 5)))
    train(model, sgd(model), steps)
    return model


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


# --- the weights


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("leading", [None, 3])
def test_a_non_finite_matrix_is_an_event_and_its_row_says_so(tmp_path: Path, bad: float, leading: int | None) -> None:
    model = mlp(60, 70, 50)
    with attach(model, None, tmp_path / "run", every=1, leading=leading, tensorboard=True) as tracker:
        tracker.step()
        kept = model[0].weight[3, 2].item()  # type: ignore[index]
        with torch.no_grad():
            model[0].weight[3, 2] = bad  # type: ignore[index]
            model[2].weight[0, 0] += 1  # type: ignore[index]
        tracker.step()
        with torch.no_grad():
            model[0].weight[3, 2] = kept + 1  # type: ignore[index]
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.events[["step", "kind", "matrix"]].to_numpy().tolist() == [[2, "non_finite", "0.weight"]]
    rows = run.measurements[run.measurements["matrix"] == "0.weight"]
    assert rows["step"].tolist() == [1, 2, 3]
    broken = rows.iloc[1]
    assert [name for name in FLOAT_METRICS if not np.isnan(float(broken[name]))] == []
    assert rows[list(RANKS)].iloc[1].isna().all()
    assert run.singular_values("0.weight").loc[2].isna().all()
    assert rows["running_rank"].iloc[2] == 1  # it recovers
    assert rows["spectral_norm"].iloc[2] == pytest.approx(1, rel=1e-5)
    other = run.measurements[run.measurements["matrix"] == "2.weight"]
    assert other["spectral_norm"].tolist() == pytest.approx([0, 1, 1], rel=1e-5)


def test_a_model_that_diverged_is_one_event_a_snapshot_and_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 6, 8, 8, 8, 8, 8, 8, 5, tensorboard=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    train(model, optimizer, 5)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.events["step"].tolist() == [1, 2, 3, 4, 5]
    assert set(run.events["kind"]) == {"non_finite"}
    assert run.events["message"].str.startswith("7 matrices (0.weight, 2.weight").all()
    assert run.measurements[list(RANKS)].isna().all(axis=None)
    assert len(run.measurements) == 5 * 7
    assert run.status == "finished"
    assert complaints(caplog) == []
    assert run.summary().mean_rank is None


def test_a_non_finite_update_raises_in_strict_mode_inside_the_loop(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    train(model, optimizer, 2)
    with torch.no_grad():
        model[2].weight.fill_(float("inf"))  # type: ignore[operator, union-attr]
    with pytest.raises(RuntimeError, match=r"non_finite in (0|2)\.weight at step 3"):
        train(model, optimizer, 1, first=2)
    tracker.close("diverged")
    run = open_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert run.events["kind"].tolist() == ["non_finite"]
    assert run.measurements["step"].max() == 3


class Clock:
    """Stands for the module `time`: time passes when a test says so."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


class Odd(nn.Module):
    """Parameters without entries beside one with."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, 5))
        self.thin = nn.Parameter(torch.zeros(3, 0))
        self.stack = nn.Parameter(torch.zeros(0, 4, 4))
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.fine = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.fine(inputs) * self.scalar + self.empty.sum() + self.thin.sum() + self.stack.sum()
        return out


def test_parameters_without_entries_are_skipped_and_said(tmp_path: Path) -> None:
    model = Odd()
    optimizer = sgd(model)
    with attach(model, optimizer, tmp_path / "run", every=1) as tracker:
        for _ in range(2):
            model(torch.randn(2, 4)).square().mean().backward()
            optimizer.step()
    notes = {row.parameter: (row.watched, row.note) for row in tracker.coverage}
    assert {name for name, (watched, _) in notes.items() if watched} == {"fine.weight"}
    assert {notes[name][1] for name in ("empty", "thin", "stack")} == {"it has no entries"}
    run = open_run(tmp_path / "run")
    assert run.events.empty
    assert run.measurements["step"].tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(9, 6), (8, 7), (0, 6), (8,)])
@pytest.mark.parametrize("all_matrices", [True, False])
def test_a_changed_shape_is_an_event_and_the_others_are_measured(
    tmp_path: Path, shape: tuple[int, ...], all_matrices: bool
) -> None:
    model = mlp(6, 8, 5)
    include = "0.*" if all_matrices else None
    with attach(model, None, tmp_path / "run", every=1, include=include) as tracker:
        tracker.step()
        original = model[0].weight
        model[0].weight = nn.Parameter(torch.zeros(shape))
        tracker.step()
        model[0].weight = original
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.events[["step", "kind", "matrix"]].to_numpy().tolist() == [[2, "shape_changed", "0.weight"]]
    assert str(tuple(shape)) in run.events["message"].iloc[0]
    assert "(8, 6)" in run.events["message"].iloc[0]
    rows = run.measurements
    assert rows.loc[rows["matrix"] == "0.weight", "step"].tolist() == [1, 3]
    if not all_matrices:
        assert rows.loc[rows["matrix"] == "2.weight", "step"].tolist() == [1, 2, 3]


def test_a_parameter_that_went_away_is_an_event_and_the_others_are_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlp(6, 8, 5)
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        tracker.step()
        del model[0].weight
        tracker.step()
        tracker.step()
    run = open_run(tmp_path / "run")
    assert not run.events.empty
    rows = run.measurements
    assert rows.loc[rows["matrix"] == "2.weight", "step"].tolist() == [1, 2, 3]
    assert len(complaints(caplog)) <= 1


# --- errors of our own


def test_an_error_in_a_spectrum_is_logged_once_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 2)
    with monkeypatch.context() as patch:
        patch.setattr("inrank_monitor.snapshot.singular_values", broken)
        train(model, optimizer, 4, first=2)
    train(model, optimizer, 1, first=6)
    tracker.close()
    assert_same_weights(model, plain(7))
    (complaint,) = complaints(caplog)
    assert "no spectrum today" in complaint
    assert "in broken" in complaint  # the traceback
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [1, 2, 7]
    (event,) = run.events.itertuples()
    assert (event.step, event.kind) == (3, "error")
    assert "Traceback" in event.message
    assert "no spectrum today" in event.message
    assert run.status == "finished"


def test_an_error_in_the_metrics_is_logged_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no metric today")

    model, optimizer, tracker = start(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("inrank_monitor.recorder.metric_columns", broken)
        train(model, optimizer, 4)
        tracker.flush()
    train(model, optimizer, 1, first=4)
    tracker.close()
    assert_same_weights(model, plain(5))
    assert len(complaints(caplog)) == 1
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [5]
    assert run.events["kind"].tolist() == ["error"]
    assert "no metric today" in run.events["message"].iloc[0]


def test_an_error_in_tensorboard_costs_only_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no events today")

    monkeypatch.setattr("inrank_monitor.tensorboard.EventFile.add_measurements", broken)
    model, optimizer, tracker = start(tmp_path / "run", tensorboard=True)
    train(model, optimizer, 4)
    tracker.close()
    assert len(complaints(caplog)) == 1
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4]
    assert run.events["kind"].tolist() == ["error"]
    assert run.status == "finished"


def test_an_error_raises_inside_the_loop_in_strict_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    train(model, optimizer, 2)
    with monkeypatch.context() as patch:
        patch.setattr("inrank_monitor.snapshot.singular_values", broken)
        with pytest.raises(ArithmeticError, match="no spectrum today"):
            train(model, optimizer, 1, first=2)
    tracker.close()


def test_an_error_in_the_trackers_thread_raises_at_a_later_snapshot_in_strict_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no metric today")

    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    monkeypatch.setattr("inrank_monitor.recorder.metric_columns", broken)
    train(model, optimizer, 1)
    tracker.flush()
    with pytest.raises(ArithmeticError, match="no metric today"):
        train(model, optimizer, 1, first=1)
    tracker.close("failed")
    assert open_run(tmp_path / "run").status == "interrupted"


def test_errors_with_ever_new_messages_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(step: int) -> bool:
        raise ValueError(f"step {step} is a bad one")

    model, optimizer, tracker = start(tmp_path / "run", schedule=broken)
    train(model, optimizer, 100)
    tracker.close()
    assert len(complaints(caplog)) <= 10
    assert len(open_run(tmp_path / "run").events) <= 10


def test_a_snapshot_that_fails_again_and_again_stays_inside_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    tried = []

    def broken(*_: object) -> None:
        tried.append(clock.now)
        clock.now += 0.05
        raise ArithmeticError("no spectrum today")

    monkeypatch.setattr("inrank_monitor.tracker.time", clock)
    monkeypatch.setattr("inrank_monitor.tracker.take_snapshot", broken)
    model, optimizer, tracker = start(tmp_path / "run", max_overhead=0.01)
    for step in range(300):
        clock.now += 0.1
        train(model, optimizer, 1, first=step)
    tracker.close()
    assert 2 <= len(tried) <= 1 + 0.01 * 60 / 0.05  # a minute's budget, spent in the first minute


# --- the disk


def test_a_slow_disk_does_not_hold_up_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = threading.Event()
    append = AppendFile.append

    def slow(self: AppendFile, data: Any) -> None:
        assert free.wait(60)
        append(self, data)

    monkeypatch.setattr(AppendFile, "append", slow)
    monkeypatch.setattr("inrank_monitor.tracker._MAX_BACKLOG", 4)
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 30)  # would last a minute a step
    tracker.log(loss=1.0)
    assert tracker.step_count == 30
    assert tracker.finished_steps == []
    free.set()
    tracker.flush()
    train(model, optimizer, 1, first=30)
    tracker.close()
    assert_same_weights(model, plain(31))
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
from training import mlp, start, train
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
    return sum(float(p.detach().double().sum()) for p in plain(steps, 40, 50, 30).parameters()).hex()


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
    assert_same_weights(model, plain(44))
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
    assert not optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]
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
    assert not optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]


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
    assert_same_weights(model, plain(6))
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
    assert_same_weights(model, plain(3))
    assert any("lost" in text for text in complaints(caplog))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_w0_file_that_is_cut_mid_run_does_not_kill_the_training(tmp_path: Path) -> None:
    # A memory map of a file that shrinks, or of one on a network disk that goes away, is a SIGBUS at the next look.
    script = """
import os
from training import start, train
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
