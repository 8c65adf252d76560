"""What ended a training that did not close its tracker: how the process left, or what its caller caught."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.training import mlp, run_script, sgd, start, train

from inrank_monitor import attach, open_run

_BEGIN = """
import sys, torch
from inrank_monitor import attach
def begin():
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(model, optimizer, sys.argv[1], every=1, tensorboard=False)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    tracker.log(loss=1.0)
    return tracker, optimizer
def caught(code):
    try:
        sys.exit(code)
    except SystemExit:
        pass
"""
_IN_MAIN = "def main():\n    kept = begin()\n    {}\n"
_EXITS = {  # how the script goes on -> status and reason
    "t = begin(); sys.exit(3)": ("interrupted", "SystemExit: 3"),
    "t = begin(); sys.exit('no data')": ("interrupted", "SystemExit: no data"),
    "t = begin(); sys.exit(0)": ("finished", ""),
    "t = begin(); sys.exit()": ("finished", ""),
    "t = begin()": ("finished", ""),
    "t = begin(); exit(2)": ("interrupted", "SystemExit: 2"),
    "t = begin(); quit()": ("finished", ""),
    "t = begin(); raise SystemExit(4)": ("interrupted", "SystemExit: 4"),
    "t = begin(); raise SystemExit('text')": ("interrupted", "SystemExit: text"),
    "t = begin(); raise SystemExit": ("finished", ""),
    "t = begin(); 1 / 0": ("interrupted", "ZeroDivisionError"),
    "t = begin(); raise KeyboardInterrupt": ("interrupted", "KeyboardInterrupt"),
    "t = begin(); caught(5)": ("finished", ""),
    "t = begin(); caught(5); t[1].step(); sys.exit(0)": ("finished", ""),
    _IN_MAIN.format("sys.exit(6)") + "main()": ("interrupted", "SystemExit: 6"),
    _IN_MAIN.format("raise SystemExit(7)") + "main()": ("interrupted", "SystemExit"),
    _IN_MAIN.format("return 0") + "raise SystemExit(main())": ("finished", "never closed"),
    _IN_MAIN.format("return 0") + "sys.exit(main())": ("finished", "never closed"),
    _IN_MAIN.format("1 / 0") + "main()": ("interrupted", "ZeroDivisionError"),
    _IN_MAIN.format("1 / 0") + "try: main()\nexcept ZeroDivisionError: sys.exit(1)": ("interrupted", "SystemExit: 1"),
    _IN_MAIN.format("import argparse; argparse.ArgumentParser().error('wrong')") + "main()": (
        "interrupted",
        "SystemExit: 2",
    ),
}


def ended(directory: Path) -> tuple[str, str]:
    run = open_run(directory)
    losses = run.scalars[run.scalars["name"] == "loss"]
    assert len(losses) == 1, "what was logged is lost"
    return run.status, run.info["ended"]["reason"]


def check_exit(directory: Path, how: str) -> None:
    run_script(_BEGIN + how, directory)
    assert ended(directory) == _EXITS[how]


@pytest.mark.parametrize("how", list(_EXITS)[:2])
def test_a_script_that_leaves_with_an_error_interrupts_its_run(tmp_path: Path, how: str) -> None:
    check_exit(tmp_path / "run", how)


@pytest.mark.slow
@pytest.mark.parametrize("how", list(_EXITS)[2:])
def test_a_script_ends_its_run_by_how_it_leaves(tmp_path: Path, how: str) -> None:
    check_exit(tmp_path / "run", how)


@pytest.mark.slow
def test_a_module_run_by_name_ends_its_run_by_how_it_leaves(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(_BEGIN + "t = begin(); sys.exit(9)", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "job", str(tmp_path / "run")], cwd=tmp_path, check=False)
    assert ended(tmp_path / "run") == ("interrupted", "SystemExit: 9")


# --- within a process that goes on


def fails(directory: Path) -> None:
    model, optimizer, tracker = start(directory)
    train(model, optimizer, 2)
    tracker.log(loss=1.0)
    raise RuntimeError("out of luck")


def caught(directory: Path) -> None:
    try:  # noqa: SIM105 - the other way is the next one
        fails(directory)
    except RuntimeError:
        pass


def suppressed(directory: Path) -> None:
    with contextlib.suppress(RuntimeError):
        fails(directory)


def caught_and_named(directory: Path) -> str:
    try:
        fails(directory)
    except RuntimeError as error:
        return str(error)
    return ""


def caught_in_a_loop_over_seeds(directory: Path) -> None:
    problems = []
    for _ in range(1):
        try:
            fails(directory)
        except RuntimeError as error:
            problems.append(repr(error))


def dropped_while_it_is_handled(directory: Path) -> None:
    model, optimizer, tracker = start(directory)
    train(model, optimizer, 2)
    tracker.log(loss=1.0)
    try:
        raise RuntimeError
    except RuntimeError:
        del tracker, optimizer


def in_a_thread(directory: Path) -> None:
    shows, threading.excepthook = threading.excepthook, lambda _: None
    thread = threading.Thread(target=fails, args=(directory,))
    thread.start()
    thread.join()
    threading.excepthook = shows


@pytest.mark.parametrize(
    "how", [caught, suppressed, caught_and_named, caught_in_a_loop_over_seeds, dropped_while_it_is_handled, in_a_thread]
)
def test_a_tracker_that_an_exception_drops_leaves_an_interrupted_run(
    tmp_path: Path, how: Callable[[Path], object]
) -> None:
    how(tmp_path / "run")
    gc.collect()
    status, reason = ended(tmp_path / "run")
    assert status == "interrupted"
    assert reason in ("RuntimeError", "an exception that was caught")


def test_an_exception_of_before_has_not_interrupted_anything(tmp_path: Path) -> None:
    def job() -> None:
        model, optimizer, tracker = start(tmp_path / "run")
        train(model, optimizer, 2)
        tracker.log(loss=1.0)

    try:
        raise ImportError("a faster way is not there")
    except ImportError:
        job()  # what people do in place of it
    gc.collect()
    assert ended(tmp_path / "run") == ("finished", "never closed")


def test_an_error_that_a_notebook_showed_interrupts_unless_the_training_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, goes_on in (("stopped", False), ("went-on", True)):
        model, optimizer, tracker = start(tmp_path / name)
        train(model, optimizer, 1)
        tracker.log(loss=1.0)
        monkeypatch.setattr(sys, "last_value", ValueError(name), raising=False)
        if goes_on:
            train(model, optimizer, 1)
        del tracker, optimizer
        gc.collect()
        assert ended(tmp_path / name)[0] == ("finished" if goes_on else "interrupted")


def test_sys_exit_is_itself_again_when_the_last_tracker_is_closed(tmp_path: Path) -> None:
    gc.collect()
    before = sys.exit
    trackers = [attach(mlp(6, 5), None, tmp_path / name, tensorboard=False) for name in "ab"]
    for tracker in trackers:
        assert sys.exit is not before
        with pytest.raises(SystemExit) as left:
            sys.exit(3)
        assert left.value.code == 3
        tracker.close()
    assert sys.exit is before


def test_what_somebody_else_has_put_in_the_place_of_sys_exit_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = attach(mlp(6, 5), None, tmp_path / "run", tensorboard=False)

    def other(code: object = None) -> None:
        raise SystemExit(code)

    ours = sys.exit
    monkeypatch.setattr(sys, "exit", other)
    tracker.close()
    assert sys.exit is other
    monkeypatch.undo()
    sys.exit = ours.__wrapped__  # type: ignore[attr-defined]


def test_what_waits_is_written_when_a_tracker_is_dropped(tmp_path: Path) -> None:
    def job() -> None:
        model = mlp(6, 8, 5)
        optimizer = sgd(model)
        tracker = attach(model, optimizer, tmp_path / "run", every=100, tensorboard=False)
        for step in range(7):
            train(model, optimizer, 1, first=step)
            tracker.log({"loss": torch.tensor(float(step))})

    job()
    gc.collect()
    scalars = open_run(tmp_path / "run").scalars
    assert scalars.loc[scalars["name"] == "loss", "value"].tolist() == list(range(7))
