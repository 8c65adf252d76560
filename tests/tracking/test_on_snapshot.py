"""attach(on_snapshot=): the caller's function gets each snapshot's table in the loop's thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.training import assert_same_weights, mlp, sgd, start, train, trained

from inrank_monitor import attach, open_run


def test_each_snapshot_is_handed_over_as_the_run_will_hold_it(tmp_path: Path) -> None:
    seen: list[pd.DataFrame] = []
    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=seen.append, every=3)
    with tracker:
        train(model, optimizer, 8)
    run = open_run(tmp_path / "run")
    assert [table["step"].unique().tolist() for table in seen] == [[3], [6], [8]]  # the last by close
    pd.testing.assert_frame_equal(pd.concat(seen, ignore_index=True), run.measurements, check_categorical=False)


def test_it_is_called_in_the_loops_thread_before_the_step_returns(tmp_path: Path) -> None:
    order: list[Any] = []

    def look(table: pd.DataFrame) -> None:
        order.append((int(table["step"].iloc[0]), threading.current_thread() is threading.main_thread()))

    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=look)
    with tracker:
        for step in range(2):
            train(model, optimizer, 1, first=step)
            order.append("loop")
    assert order == [(1, True), "loop", (2, True), "loop"]


def test_measure_hands_over_too_and_never_twice(tmp_path: Path) -> None:
    steps: list[int] = []
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    tracker = attach(
        model,
        optimizer,
        tmp_path / "run",
        schedule=lambda step: False,
        tensorboard=False,
        on_snapshot=lambda table: steps.append(int(table["step"].iloc[0])),
    )
    train(model, optimizer, 2)
    tracker.measure()
    tracker.measure()
    assert steps == [2]
    tracker.close()
    assert steps == [2]


def test_what_it_raises_is_an_event_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def fails(table: pd.DataFrame) -> None:
        calls.append(1)
        raise ValueError("no such column of mine")

    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=fails)
    with tracker:
        train(model, optimizer, 4)
    assert len(calls) == 4
    events = open_run(tmp_path / "run").events
    assert events["kind"].tolist() == ["error"]
    assert events["message"].iloc[0].strip().endswith("ValueError: no such column of mine")
    assert open_run(tmp_path / "run").measurements["step"].nunique() == 4
    assert sum("error in on_snapshot" in record.getMessage() for record in caplog.records) == 1
    assert_same_weights(model, trained(4))


def test_strict_raises_what_it_raises(tmp_path: Path) -> None:
    def fails(table: pd.DataFrame) -> None:
        raise KeyError("mine")

    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=fails, strict=True)
    with pytest.raises(KeyError, match="mine"):
        train(model, optimizer, 1)
    tracker.close("failed")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_it_can_end_the_training(tmp_path: Path, interruption: type[BaseException]) -> None:
    def stops(table: pd.DataFrame) -> None:
        if int(table["step"].iloc[0]) == 3:
            raise interruption

    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=stops)
    with pytest.raises(interruption), tracker:
        train(model, optimizer, 10)
    assert open_run(tmp_path / "run").measurements["step"].max() == 3


def test_it_may_log_measure_and_close(tmp_path: Path) -> None:
    def busy(table: pd.DataFrame) -> None:
        tracker.log(mine=1.5)
        tracker.event("seen", None, "by me")
        tracker.measure()
        if int(table["step"].iloc[0]) == 2:
            tracker.close()

    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=busy)
    train(model, optimizer, 5)
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == [1, 2]
    assert (run.scalars["name"] == "mine").sum() == 2
    assert run.events["kind"].tolist() == ["seen", "seen"]
    assert_same_weights(model, trained(5))


def test_a_snapshot_without_a_row_is_not_handed_over(tmp_path: Path) -> None:
    seen: list[int] = []
    model, optimizer, tracker = start(
        tmp_path / "run", on_snapshot=lambda table: seen.append(int(table["step"].iloc[0]))
    )
    train(model, optimizer, 1)
    del model[0].weight, model[2].weight
    tracker.measure()
    optimizer.step()
    tracker.close()
    assert seen == [1]


def test_the_wait_counts_as_the_trackers_and_a_disk_that_hangs_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inrank_monitor.tracking.snapshot_calls._PATIENCE_SECONDS", 0.2)
    seen: list[int] = []
    model, optimizer, tracker = start(
        tmp_path / "run", on_snapshot=lambda table: seen.append(int(table["step"].iloc[0]))
    )
    hanging = threading.Event()
    tracker._recorder._jobs.put(hanging.wait)  # type: ignore[union-attr,arg-type]
    before = tracker.seconds
    train(model, optimizer, 1)
    assert tracker.seconds - before >= 0.2
    hanging.set()
    tracker.flush()
    train(model, optimizer, 1, first=1)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert seen == [2]
    assert run.measurements["step"].unique().tolist() == [1, 2]
    assert "on_snapshot goes without a snapshot" in run.events["message"].iloc[0]


async def _later(table: pd.DataFrame) -> None: ...


def _in_turns(table: pd.DataFrame) -> Any:
    yield table


@pytest.mark.parametrize("wrong", [3, "print", lambda: None, lambda table, more: None, _later, _in_turns])
def test_attach_refuses_what_is_no_function_of_one_table(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(TypeError, match="on_snapshot must be a function of one argument"):
        start(tmp_path / "run", on_snapshot=wrong)
    assert not (tmp_path / "run").exists()


def test_a_closed_tracker_lets_go_of_the_function(tmp_path: Path) -> None:
    import weakref

    class Looks:
        def __call__(self, table: pd.DataFrame) -> None: ...

    looks = Looks()
    model, optimizer, tracker = start(tmp_path / "run", on_snapshot=looks)
    train(model, optimizer, 1)
    tracker.close()
    gone = weakref.ref(looks)
    del looks
    assert gone() is None
