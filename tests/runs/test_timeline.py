"""Where the steps of runs lie: by step, share of training, wall-clock and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_runs import make_run

from inrank_monitor.runs import Configuration, align, common_axes, open_run, timeline_of
from inrank_monitor.runs.log import RUN_FILE, RunLog, write_json
from inrank_monitor.runs.timeline import Timeline, planned_steps

NOTHING = Configuration({}, False)


def made(directory: Path, name: str = "run", change: Any = None, **scalars: list[tuple[int, float]]) -> Timeline:
    """The timeline of a run of steps 0, 10, ..., 40 that were written at 1e9 + step seconds, and of some scalars."""
    run = make_run(directory / name, **({"ended": None} if change == "live" else {}))
    log = RunLog(run, 2)
    for scalar, points in scalars.items():
        steps = [step for step, _ in points]
        rows = {"step": steps, "time": [1e9 + step for step in steps], "name": [scalar] * len(steps)}
        log.append("scalars", rows | {"value": [value for _, value in points]})
    log.close()
    info = json.loads((run / RUN_FILE).read_text())
    info["segments"].append({"segment": 2, "resume_step": 40, "time": 1e9 + 40, "versions": {}})
    if callable(change):
        change(info)
    write_json(run / RUN_FILE, info)
    return timeline_of(open_run(run), NOTHING)


def test_steps_and_shares_of_a_run_that_has_ended(tmp_path: Path) -> None:
    found = made(tmp_path)
    steps = np.array([0, 10, 25, 40])
    np.testing.assert_array_equal(found.place("step", steps), steps)
    np.testing.assert_allclose(found.place("share", steps), steps / 40)
    np.testing.assert_allclose(found.place("time", steps), steps)
    assert found.axes == ("step", "share", "time")


def test_the_share_of_an_unfinished_run_is_of_the_steps_that_it_was_to_have(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", ended=None))
    for planned, last in ((80, 80), (30, 40), (None, 40)):
        found = timeline_of(run, Configuration({"steps": planned}, True))
        np.testing.assert_allclose(found.place("share", np.array([20])), [20 / last])
    title = align({"a": timeline_of(run, NOTHING)}, "share").title
    assert title != align({"a": timeline_of(run, Configuration({"steps": 80}, True))}, "share").title


@pytest.mark.parametrize("name", ["steps", "max_steps", "train.num_steps", "max_iters", "num_train_steps", "max_step"])
def test_the_planned_number_of_steps_has_many_names(name: str) -> None:
    assert planned_steps({name: 100, "eval_steps": 7, "warmup_steps": 3, "phase_steps": 9}, 40) == 100
    assert planned_steps({name: 100, "max_iterations": 90}, 40) is None
    assert planned_steps({name: 100.5}, 40) is None
    assert planned_steps({name: -1}, 0) is None


def test_the_time_between_an_interruption_and_the_resumption_does_not_count(tmp_path: Path) -> None:
    def interrupted(info: dict[str, Any]) -> None:
        info["created"] = 1e9 - 5
        info["segments"] = [
            {"segment": 0, "resume_step": None, "time": 1e9 - 5, "versions": {}},
            {"segment": 1, "resume_step": 25, "time": 1e9 + 21, "versions": {}},  # taken back by the next
            {"segment": 2, "resume_step": 20, "time": 1e9 + 24, "versions": {}},
        ]

    found = made(tmp_path, change=interrupted, late=[(30, 1.0), (50, 1.0)])
    np.testing.assert_allclose(found.place("time", np.array([0, 10, 20])), [5, 15, 25])
    np.testing.assert_allclose(found.place("time", np.array([30, 50])), [35 - 4, 55 - 4])


def test_a_clock_that_is_put_back_stands_still(tmp_path: Path) -> None:
    def late(info: dict[str, Any]) -> None:
        info["created"] = 2e9  # the clock was put back after the run's beginning

    assert made(tmp_path, change=late).place("time", np.array([0, 40])).tolist() == [0, 40]


def test_a_scan_of_checkpoints_has_no_time(tmp_path: Path) -> None:
    def scanned(info: dict[str, Any]) -> None:
        info["options"]["initial_weights"] = "checkpoint"

    found = made(tmp_path, change=scanned)
    assert found.axes == ("step", "share")
    with pytest.raises(ValueError, match=r"b has .* not 'time'"):
        align({"a": made(tmp_path, "a"), "b": found}, "time")


@pytest.mark.parametrize(
    "name", ["tokens", "train/tokens_seen", "num_input_tokens_seen", "consumed_tokens", "total.tokens"]
)
def test_tokens_that_grow_are_an_axis(tmp_path: Path, name: str) -> None:
    found = made(tmp_path, **{name: [(10, 100.0), (20, 300.0), (40, 500.0)]})
    np.testing.assert_allclose(found.place("tokens", np.array([0, 5, 10, 15, 30, 40])), [0, 50, 100, 200, 400, 500])
    assert np.isnan(found.place("tokens", np.array([41]))).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokens_per_second", (1, 2, 3)),
        ("tokens", (5, 5, 5)),
        ("tokens", (5, 4, 6)),
        ("tokens", (1, float("nan"), 3)),
        ("bad_tokens_share", (1, 2, 3)),
    ],
)
def test_what_is_no_count_of_tokens_is_none(tmp_path: Path, name: str, values: tuple[float, ...]) -> None:
    assert "tokens" not in made(tmp_path, **{name: list(zip((10, 20, 40), values, strict=True))}).axes


def test_only_axes_that_all_runs_have_are_common(tmp_path: Path) -> None:
    with_tokens, without = made(tmp_path, "a", tokens=[(10, 1.0), (40, 2.0)]), made(tmp_path, "b")
    assert common_axes({"a": with_tokens}) == ["step", "share", "time", "tokens"]
    assert common_axes({"a": with_tokens, "b": without}) == ["step", "share", "time"]


@pytest.mark.parametrize(
    ("seconds", "unit", "length"), [(100, "s", 1), (600, "min", 60), (1e4, "h", 3600), (1e6, "days", 86400)]
)
def test_the_clock_has_a_unit_that_fits(seconds: float, unit: str, length: float) -> None:
    one = Timeline(10, True, None, (np.array([0.0, 10.0]), np.array([0.0, seconds])), None)
    laid = align({"a": one}, "time")
    assert f"({unit})" in laid.title
    np.testing.assert_allclose(laid.place("a", np.array([5])), [seconds / 2 / length])
