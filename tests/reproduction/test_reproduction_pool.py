"""Trainings in processes: each once, in order, resumable whatever happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_trainings import log_of, train

from inrank.reproduction.experiment import ExperimentError, Training
from inrank.reproduction.pool import ERROR_FILE, Pool, unique


def toy(name: str, after: tuple[str, ...] = (), **settings: Any) -> Training:
    return Training(name, train, settings, after)


def run(runs: Path, *trainings: Training, jobs: int = 2) -> tuple[dict[str, float], dict[str, str]]:
    outcomes, failed = Pool(runs, "cpu", jobs, quiet=True).run(trainings)
    return {name: outcome.numbers["value"] for name, outcome in outcomes.items()}, dict(failed)


def begun(runs: Path) -> list[str]:
    return [line.split()[1] for line in log_of(runs) if line.startswith("begin")]


def test_a_training_that_two_experiments_name_runs_once(tmp_path: Path) -> None:
    values, failed = run(tmp_path, toy("a", value=1), toy("b", value=2), toy("a", value=1))
    assert values == {"a": 1.0, "b": 2.0}
    assert not failed
    assert sorted(begun(tmp_path)) == ["a", "b"]


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    run(tmp_path, toy("a", value=1))
    values, _ = run(tmp_path, toy("a", value=1), toy("b", value=2))
    assert values == {"a": 1.0, "b": 2.0}
    assert begun(tmp_path) == ["a", "b"]


def test_a_training_waits_for_those_it_needs(tmp_path: Path) -> None:
    run(tmp_path, toy("last", after=("first", "second")), toy("first"), toy("second"))
    lines = [line.split()[:2] for line in log_of(tmp_path)]
    assert lines.index(["begin", "last"]) > max(lines.index(["end", "first"]), lines.index(["end", "second"]))


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    values, failed = run(tmp_path, toy("bad", fail=True), toy("child", after=("bad",)), toy("good", value=3))
    assert values == {"good": 3.0}
    assert failed["bad"].startswith("ValueError: the loss is not a number")
    assert failed["child"] == "bad failed, which it needs"
    assert "Traceback" in (tmp_path / "bad" / ERROR_FILE).read_text()


def test_what_has_ended_is_told_at_once_and_at_the_end_completely(tmp_path: Path) -> None:
    told: list[set[str]] = []
    trainings = [toy("first"), toy("bad", fail=True), toy("child", after=("bad",)), toy("last")]
    Pool(tmp_path, "cpu", 1, quiet=True).run(trainings, lambda outcomes, failed: told.append({*outcomes, *failed}))
    assert told[:3] == [set(), {"first"}, {"first", "bad"}]
    assert told[-1] == {"first", "bad", "child", "last"}


def test_a_failed_training_is_tried_again(tmp_path: Path) -> None:
    run(tmp_path, toy("a", kill=True))
    (tmp_path / "a" / "leftover").touch()
    values, failed = run(tmp_path, toy("a", value=4))
    assert (values, failed) == ({"a": 4.0}, {})


def test_an_error_of_ours_is_named_without_its_module(tmp_path: Path) -> None:
    _, failed = run(tmp_path, toy("a", refuse=True))
    assert failed["a"].startswith("ExperimentError: there is no data (see ")


def test_a_killed_process_is_named_with_its_signal(tmp_path: Path) -> None:
    values, failed = run(tmp_path, toy("a", kill=True), toy("b", value=1))
    assert values == {"b": 1.0}
    assert failed == {"a": "its process was ended by signal 9"}


def test_a_directory_with_other_settings_is_refused_before_anything_begins(tmp_path: Path) -> None:
    run(tmp_path, toy("a", value=1))
    with pytest.raises(ExperimentError, match="differs in value: choose another --output"):
        run(tmp_path, toy("b"), toy("a", value=2))
    assert begun(tmp_path) == ["a"]


def test_a_torn_end_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run(tmp_path, toy("a"))
    file = tmp_path / "a" / "training.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(ExperimentError, match=r"cannot be read .* delete .*a$"):
        run(tmp_path, toy("a"))


def test_one_name_for_two_trainings_is_an_error() -> None:
    with pytest.raises(ValueError, match="two trainings are named a"):
        unique([toy("a", value=1), toy("a", value=2)])


def test_waiting_for_nobody_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a waits for nobody, which nobody trains"):
        run(tmp_path, toy("a", after=("nobody",)))


def _pool_process(runs: Path) -> None:
    Pool(runs, "cpu", 2, quiet=True).run([toy("done", value=1), toy("hangs", hang=True), toy("too", hang=True)])


@pytest.mark.slow
def test_a_killed_parent_leaves_no_training_behind_and_loses_none(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    parent = context.Process(target=_pool_process, args=(tmp_path,))
    parent.start()
    while not {"hangs", "too"} <= set(begun(tmp_path)):
        parent.join(0.05)
        assert parent.is_alive()
    os.kill(parent.pid or 0, signal.SIGKILL)
    parent.join()
    children = [int(line.split()[2]) for line in log_of(tmp_path) if line.startswith("begin") and "done" not in line]
    deadline = time.monotonic() + 30
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, children))
    values, failed = run(tmp_path, toy("done", value=1), toy("more", value=2))
    assert (values, failed) == ({"done": 1.0, "more": 2.0}, {})
    assert begun(tmp_path).count("done") == 1


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
