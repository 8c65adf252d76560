"""Whether a run says that it has too few points, and what would give it more."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from helpers.run_files import edit, write_run

from inrank_monitor import cli, open_run
from inrank_monitor.report import report_table, write_html
from inrank_monitor.runs import RunOptions
from inrank_monitor.runs.curve import too_few_points
from inrank_monitor.runs.shared_run import SharedRun


def said(
    measured: list[int],
    steps: int,
    cost: float = 0.2,
    step_seconds: float = 0.1,
    status: str = "finished",
    attaching: float = 0.5,
    **options: object,
) -> str | None:
    """Of a run with a loss at every step, measured at these."""
    times = {step: 1e9 + step * step_seconds + sum(m <= step for m in measured) * cost for step in range(1, steps + 1)}
    rows = [(step, time, "loss", 1.0) for step, time in times.items()]
    rows += [(step, times[step], "tracker_seconds", attaching + cost * (i + 1)) for i, step in enumerate(measured)]
    scalars = pd.DataFrame(rows, columns=["step", "time", "name", "value"]).sort_values("step", kind="stable")
    measurements = pd.DataFrame({"step": measured * 2, "time": [times[step] for step in measured * 2]})
    return too_few_points(status, RunOptions(**options), measurements, scalars)  # type: ignore[arg-type]


def test_a_run_with_a_curve_says_nothing() -> None:
    assert said(list(range(1, 13)), 500) is None
    assert said([1, 2, 3, 4, 5], 5) is None
    assert said(list(range(5, 101, 5)), 100, every=5) is None


def test_what_is_said_names_an_interval_its_cost_and_a_budget() -> None:
    text = said([1, 246, 500], 500)
    assert text == (
        "Only 3 snapshots in 500 steps: too few for a curve. One takes 0.2 s. Pass every=20 to attach (9.1 % of the "
        "time) or max_overhead=0.02."
    )


@pytest.mark.parametrize(
    ("steps", "interval"),
    [(1, 1), (19, 1), (40, 2), (99, 2), (100, 5), (199, 5), (200, 10), (999, 20), (1_000_000, 50_000)],
)
def test_the_interval_gives_about_twenty(steps: int, interval: int) -> None:
    measurements = pd.DataFrame({"step": [0, steps], "time": [1.0, 1.0]})
    text = too_few_points(
        "finished", RunOptions(), measurements[1:], pd.DataFrame(columns=["step", "time", "name", "value"])
    )
    if steps == 1:
        assert text is None
    else:
        assert text is not None
        assert f"Pass every={interval} to attach." in text
        assert 20 <= steps / interval <= 50 or interval == 1


def test_an_interval_that_was_given_is_what_to_change() -> None:
    text = said([50, 100], 100, every=50)
    assert text is not None
    assert "Only 2 snapshots in 100 steps" in text
    assert "Pass every=5 to attach" in text
    assert text.endswith("or leave every out.")
    assert "max_overhead" not in text


def test_a_snapshot_that_is_too_dear_says_what_the_budget_buys_and_what_is_cheaper() -> None:
    text = said([1, 900], 900, cost=60.0, step_seconds=1.0)
    assert text is not None
    assert "One takes 60 s." in text
    assert "1 % of the time buys one in 2.2 h" in text
    assert "leading=K or include=PATTERN makes them cheaper: `inrank-monitor plan` says how much." in text
    assert "max_overhead" not in text  # none would do


def test_attaching_is_no_part_of_what_a_snapshot_costs() -> None:
    text = said([1, 500], 500, attaching=30.0)
    assert text is not None
    assert "One takes 0.2 s." in text


def test_a_live_run_is_waited_for() -> None:
    assert said([1, 2], 150, status="live") is None
    assert said([50, 100], 600, status="live", every=50) is None
    text = said([1, 2], 250, status="live")
    assert text is not None
    assert "Only 2 snapshots in 250 steps so far" in text


def test_a_scan_of_checkpoints_has_the_points_that_there_are() -> None:
    assert said([100, 200, 300], 300, initial_weights="checkpoint") is None


def test_report_page_advice_and_dashboard_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_run(tmp_path / "run", range(40, 121, 40))
    sentence = open_run(directory).too_few_points
    assert sentence == "Only 3 snapshots in 120 steps: too few for a curve. Pass every=5 to attach."
    assert sentence in " ".join(report_table(open_run(directory)).split())
    assert sentence in write_html(open_run(directory), tmp_path / "r.html").read_text(encoding="utf-8")
    assert SharedRun(directory).tables().too_few_points == sentence
    assert cli.main(["advise", str(directory)]) == 0
    assert sentence in capsys.readouterr().out
    edit(directory, options={**open_run(directory).info["options"], "initial_weights": "checkpoint"})
    assert open_run(directory).too_few_points is None
    assert "too few" not in report_table(open_run(directory))
