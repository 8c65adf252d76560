"""How a tracker ends: closed, forgotten, dropped, or by an error; and that it lets go of everything."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.training import mlp, sgd, start, step_hooks, train
from torch import nn
from torch.optim import SGD

from inrank_monitor import attach, open_run


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("inrank")}


def test_close_takes_a_last_snapshot_and_removes_every_hook_and_thread(tmp_path: Path) -> None:
    before = threads()
    gc.collect()  # trackers of other tests that were let go
    others = step_hooks(SGD([torch.zeros(1)]))
    model, optimizer, tracker = start(tmp_path / "run", every=4)
    train(model, optimizer, 6)
    assert step_hooks(optimizer) == others + 2
    tracker.close()
    assert step_hooks(optimizer) == others
    assert threads() <= before
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [4, 6]
    assert run.info["ended"]["status"] == run.status == "finished"
    assert run.info["ended"]["step"] == 6


@pytest.mark.timeout(60)
def test_a_closed_tracker_ignores_the_loop_and_closes_once(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 2)
    tracker.close()
    content = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    train(model, optimizer, 2)
    tracker.log(loss=1.0)
    tracker.measure()
    tracker.close()
    tracker.flush()
    tracker.close("late")
    assert tracker.step_count == 2
    assert tracker.finished_steps == [1, 2]
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == content


def test_a_closed_tracker_holds_neither_model_nor_optimizer(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", initial_weights="memory")
    train(model, optimizer, 2)
    tracker.close()
    gone = [weakref.ref(model), weakref.ref(model[0]), weakref.ref(model[0].weight), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None] * 4
    assert tracker.finished_steps == [1, 2]  # and is of use still
    assert "0.weight" in tracker.summary()


def test_snapshots_hold_no_weights_while_attached(tmp_path: Path) -> None:
    # what a loop replaces is freed at once, although the tracker looked at it
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 2)
    tracker.flush()
    old = weakref.ref(model[0].weight)
    model[0].weight = nn.Parameter(torch.randn(8, 6))
    del optimizer
    gc.collect()
    assert old() is None
    tracker.close()


def test_leaving_the_with_block_closes(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False) as tracker:
        train(model, optimizer, 3)
    assert step_hooks(optimizer) == 0
    assert tracker.finished_steps == [1, 2, 3]
    assert open_run(tmp_path / "run").status == "finished"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_with_block_marks_the_run_interrupted_and_passes(
    tmp_path: Path, error: type[BaseException]
) -> None:
    model = mlp(6, 8, 5)
    optimizer = sgd(model)

    def loop() -> None:
        with attach(model, optimizer, tmp_path / "run", every=4, tensorboard=False):
            train(model, optimizer, 6)
            raise error

    with pytest.raises(error):
        loop()
    run = open_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert run.info["ended"]["reason"] == error.__name__
    assert run.measurements["step"].unique().tolist() == [4, 6]
    assert step_hooks(optimizer) == 0


def test_an_error_at_the_last_snapshot_still_closes_in_strict_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    before = threads()
    model, optimizer, tracker = start(tmp_path / "run", every=4, strict=True)
    train(model, optimizer, 6)
    monkeypatch.setattr("inrank_monitor.tracking.snapshots.take_snapshot", broken)
    with pytest.raises(ArithmeticError, match="no spectrum today"):
        tracker.close()
    assert step_hooks(optimizer) == 0
    assert threads() <= before
    assert open_run(tmp_path / "run").status != "live"


def test_an_error_in_the_loop_is_not_hidden_by_one_at_the_last_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    model, optimizer, tracker = start(tmp_path / "run", every=4, strict=True)

    def loop() -> None:
        with tracker:
            train(model, optimizer, 3)
            monkeypatch.setattr("inrank_monitor.tracking.snapshots.take_snapshot", broken)
            raise ZeroDivisionError("the loop's")

    with pytest.raises(Exception, match=r"the loop's|no spectrum") as caught:
        loop()
    errors = [caught.value, caught.value.__context__, caught.value.__cause__]
    assert any(isinstance(error, ZeroDivisionError) for error in errors)
    assert step_hooks(optimizer) == 0
    assert open_run(tmp_path / "run").status == "interrupted"


def drop_with_its_optimizer(directory: Path) -> None:
    model, optimizer, _ = start(directory)
    train(model, optimizer, 3)


def drop_in_a_cycle(directory: Path) -> None:
    model, optimizer, _ = start(directory)
    optimizer.myself = optimizer  # type: ignore[attr-defined]
    train(model, optimizer, 3)


def drop_with_a_scheduler(directory: Path) -> None:
    model, optimizer, _ = start(directory)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)  # wraps optimizer.step: a cycle of its own
    train(model, optimizer, 3)


def drop_without_optimizer(directory: Path) -> None:
    tracker = attach(mlp(6, 8, 5), None, directory, every=1, tensorboard=False)
    for _ in range(3):
        tracker.step()


@pytest.mark.parametrize(
    "drop", [drop_with_its_optimizer, drop_in_a_cycle, drop_with_a_scheduler, drop_without_optimizer]
)
def test_a_tracker_that_is_dropped_ends_its_run(tmp_path: Path, drop: Callable[[Path], None]) -> None:
    before = threads()
    drop(tmp_path / "run")
    gc.collect()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == [1, 2, 3]
    assert threads() <= before


def test_a_tracker_may_be_collected_in_its_own_thread(tmp_path: Path) -> None:
    # The collector runs in whichever thread allocates: here in the one that the run's end must wait for.
    model, optimizer, tracker = start(tmp_path / "run")
    optimizer.myself = optimizer  # type: ignore[attr-defined]
    train(model, optimizer, 3)
    tracker.flush()
    recorder, thread, jobs = tracker._recorder, tracker._recorder._thread, tracker._recorder._jobs
    gc.disable()
    try:
        del model, optimizer, tracker, recorder
        jobs.put(lambda: gc.collect() and None)
        thread.join(60)
    finally:
        gc.enable()
    assert not thread.is_alive()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == [1, 2, 3]


def test_two_models_in_turn_can_use_one_process(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = mlp(6, 8, 5)
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, tmp_path / name, every=1):
            train(model, optimizer, 2)
    first, second = (open_run(tmp_path / name).measurements.drop(columns="time") for name in ("a", "b"))
    assert first.equals(second)
