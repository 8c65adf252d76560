"""How a run ends with its process: scripts that forget to close, fail, fork, or are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training import run_script

from inrank_monitor import open_run

FORGETFUL = """
import torch
from helpers.training import start, train
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
@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise KeyboardInterrupt"])
def test_other_ways_out_of_a_script_interrupt_the_run_and_measure(tmp_path: Path, ending: str) -> None:
    answer = run_script(f"{FORGETFUL}\n{ending}", tmp_path / "run")
    assert answer.returncode != 0
    run = open_run(tmp_path / "run")
    assert run.status == "interrupted"
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


KILLED = """
import os, random, signal, time
from itertools import count
from pathlib import Path
import torch
torch.set_num_threads(1)  # so that no thread is lost by the forks
from inrank_monitor import open_run
from helpers.training import start, train

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
from helpers.training import start, train
first, second = start(sys.argv[1] + "/first"), start(sys.argv[1] + "/second")
train(first[0], first[1], 2)
train(second[0], second[1], 2)
first[2].close()
"""
    answer = run_script(script, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert [open_run(tmp_path / name).status for name in ("first", "second")] == ["finished", "finished"]
