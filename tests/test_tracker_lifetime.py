"""How a tracker ends: closed, forgotten, dropped, or by an error; and that it lets go of everything."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from training import mlp, run_script, sgd, start, train

from inrank_monitor import attach, open_run


def hooks(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("inrank")}


def test_close_takes_a_last_snapshot_and_removes_every_hook_and_thread(tmp_path: Path) -> None:
    before = threads()
    model, optimizer, tracker = start(tmp_path / "run", every=4)
    train(model, optimizer, 6)
    assert hooks(optimizer) == 1
    tracker.close()
    assert hooks(optimizer) == 0
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
    assert hooks(optimizer) == 0
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
    assert hooks(optimizer) == 0


def test_an_error_at_the_last_snapshot_still_closes_in_strict_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    before = threads()
    model, optimizer, tracker = start(tmp_path / "run", every=4, strict=True)
    train(model, optimizer, 6)
    monkeypatch.setattr("inrank_monitor.tracker.take_snapshot", broken)
    with pytest.raises(ArithmeticError, match="no spectrum today"):
        tracker.close()
    assert hooks(optimizer) == 0
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
            monkeypatch.setattr("inrank_monitor.tracker.take_snapshot", broken)
            raise ZeroDivisionError("the loop's")

    with pytest.raises(Exception, match=r"the loop's|no spectrum") as caught:
        loop()
    errors = [caught.value, caught.value.__context__, caught.value.__cause__]
    assert any(isinstance(error, ZeroDivisionError) for error in errors)
    assert hooks(optimizer) == 0
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


# --- scripts that forget

FORGETFUL = """
import torch
from training import start, train
model, optimizer, tracker = start(sys.argv[1], 6, 8, 8, 5, every=4, tensorboard=True)
train(model, optimizer, 6)
tracker.log(loss=0.5)
"""


def test_a_script_that_forgets_to_close_ends_with_a_finished_run(tmp_path: Path) -> None:
    answer = run_script(FORGETFUL, tmp_path / "run")
    assert (answer.returncode, answer.stderr) == (0, "")
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == [4, 6]
    assert run.scalars.loc[run.scalars["name"] == "loss", "value"].tolist() == [0.5]
    assert run.events.empty
    assert run.problems == []


def test_a_script_that_fails_leaves_an_interrupted_run(tmp_path: Path) -> None:
    answer = run_script(f"{FORGETFUL}\nraise LookupError('the loop broke')", tmp_path / "run")
    assert answer.returncode == 1
    assert answer.stderr.count("Traceback") == 1
    assert "LookupError: the loop broke" in answer.stderr
    run = open_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert run.info["ended"]["reason"] == "LookupError"
    assert run.measurements["step"].unique().tolist() == [4, 6]


@pytest.mark.slow
def test_a_script_that_never_measured_before_its_exit_measures_then(tmp_path: Path) -> None:
    # no thread of the tracker's has started yet, and the interpreter starts no more
    script = FORGETFUL.replace("every=4", "every=400")
    answer = run_script(script, tmp_path / "run")
    assert (answer.returncode, answer.stderr) == (0, "")
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == [6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"), [("sys.exit(3)", "finished"), ("raise KeyboardInterrupt", "interrupted")]
)
def test_other_ways_out_of_a_script(tmp_path: Path, ending: str, status: str) -> None:
    answer = run_script(f"{FORGETFUL}\n{ending}", tmp_path / "run")
    assert answer.returncode != 0
    run = open_run(tmp_path / "run")
    assert run.status == status
    assert run.measurements["step"].max() == 6


@pytest.mark.slow
def test_a_forked_child_that_exits_does_not_end_its_parents_run(tmp_path: Path) -> None:
    script = f"""{FORGETFUL}
import os
if os.fork() == 0:
    sys.exit(0)  # runs the exit handlers that it inherited
os.wait()
from inrank_monitor import open_run
print(open_run(sys.argv[1]).status)
train(model, optimizer, 4)
tracker.close()
run = open_run(sys.argv[1])
print(run.status, run.problems, run.measurements["step"].unique().tolist())
"""
    answer = run_script(script, tmp_path / "run", timeout=60)
    assert answer.stdout.splitlines() == ["live", "finished [] [4, 8, 10]"], answer.stderr[-1000:]


@pytest.mark.slow
def test_a_data_loaders_workers_do_not_keep_the_run_locked(tmp_path: Path) -> None:
    script = f"""{FORGETFUL}
from inrank_monitor import attach
from torch.utils.data import DataLoader
loader = DataLoader(range(8), num_workers=1, persistent_workers=True)
list(loader)  # the worker was forked while the run was open, and lives on
tracker.close()
attach(model, optimizer, sys.argv[1], every=4, resume=6).close()
print("taken up again")
"""
    answer = run_script(script, tmp_path / "run")
    assert answer.stdout == "taken up again\n", answer.stderr[-1000:]


def test_the_main_module_imports_without_its_heavy_parts() -> None:
    script = "import inrank_monitor\nprint(sorted({'pandas', 'plotly', 'tensorboard'} & set(sys.modules)))"
    answer = run_script(script)
    assert answer.stdout == "[]\n", answer.stderr


def test_two_models_in_turn_can_use_one_process(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = mlp(6, 8, 5)
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, tmp_path / name, every=1):
            train(model, optimizer, 2)
    first, second = (open_run(tmp_path / name).measurements.drop(columns="time") for name in ("a", "b"))
    assert first.equals(second)


KILLED = """
import os, random, signal, time
from itertools import count
from pathlib import Path
import torch
torch.set_num_threads(1)  # so that no thread is lost by the forks
from inrank_monitor import open_run
from training import start, train

def reported_before_the_kill(path, delay):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        model, optimizer, tracker = start(path, 30, 40, 20, tensorboard=True)
        told = 0
        for step in count():
            train(model, optimizer, 1, first=step)
            for finished in tracker.finished_steps[told:]:
                os.write(writer, b"%d " % finished)
                told += 1
    os.close(writer)
    time.sleep(delay)  # the moment of the kill
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return [int(step) for step in pipe.read().split()]

def take_up(path, step):
    child = os.fork()
    if child == 0:
        model, optimizer, tracker = start(path, 30, 40, 20, tensorboard=True, resume=step)
        with tracker:
            train(model, optimizer, 3, first=step)
        os._exit(0 if tracker.finished_steps == [step + 1, step + 2, step + 3] else 1)
    return os.waitpid(child, 0)[1]

random.seed(0)
model, optimizer, tracker = start(Path(sys.argv[1], "warm"), 30, 40, 20, tensorboard=True)  # imports, for all forks
train(model, optimizer, 3)
tracker.close()
for number in range(50):
    path = Path(sys.argv[1], str(number))
    reported = reported_before_the_kill(path, random.uniform(0.0, 0.3))
    try:
        run = open_run(path)
    except FileNotFoundError:
        assert not reported, reported
        print("before run.json")
        continue
    assert run.status == "interrupted", run.status
    found = run.measurements["step"].unique().tolist()
    assert found == list(range(1, len(found) + 1)), found
    assert set(reported) <= set(found), (reported[-3:], found[-3:])
    last = len(found)
    assert take_up(path, last) == 0
    run = open_run(path)
    assert run.status == "finished"
    assert run.measurements["step"].unique().tolist() == list(range(1, last + 4))
    print("torn" if run.problems else "clean", last)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_keeps_what_was_reported_and_can_be_taken_up(tmp_path: Path) -> None:
    answer = run_script(KILLED, tmp_path, timeout=250)
    assert answer.returncode == 0, answer.stderr[-2000:]
    lines = answer.stdout.splitlines()
    assert len(lines) == 50
    assert sum(line.startswith(("clean", "torn")) and not line.endswith(" 0") for line in lines) >= 20


def test_closing_one_tracker_leaves_the_exit_handler_of_another(tmp_path: Path) -> None:
    script = """
from training import start, train
first, second = start(sys.argv[1] + "/first"), start(sys.argv[1] + "/second")
train(first[0], first[1], 2)
train(second[0], second[1], 2)
first[2].close()
"""
    answer = run_script(script, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert [open_run(tmp_path / name).status for name in ("first", "second")] == ["finished", "finished"]
