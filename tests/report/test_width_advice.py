"""If you trained again: the plan of widths that a run keeps, in the command, the report and its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.made_runs import make_run
from helpers.width_plans import write_width_plan

from inrank_monitor import open_run
from inrank_monitor.advice import NO_PLAN, advise_widths, width_text
from inrank_monitor.cli import main
from inrank_monitor.report import report_table, write_html
from inrank_monitor.runs import Run

WIDTHS = {"h.0.mlp": 270, "h.1.mlp": 64, "h.2.mlp": 64, "h.3.mlp": 63}
SAVED, WHOLE = (4 * 768 - sum(WIDTHS.values())) * 384, 4 * 768 * 384


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(make_run(tmp_path / "run"))


def test_the_newest_plan_counts_and_says_what_it_saves(run: Run) -> None:
    write_width_plan(run.path, dict.fromkeys(WIDTHS, 500), 9, time=2e9)
    write_width_plan(run.path, WIDTHS, 8, time=3e9)
    table = advise_widths(open_run(run.path))
    assert table.index.tolist() == list(WIDTHS)
    assert table["d_ff"].tolist() == list(WIDTHS.values())
    assert table["advice"].iloc[1] == "d_ff 64 of 768"
    assert set(table["step"]) == {8}
    assert table["parameters_saved"].sum() == SAVED
    assert table["parameters"].sum() == WHOLE
    assert table["share_saved"].iloc[1] == pytest.approx(1 - 64 / 768)


def test_without_a_plan_it_is_said_how_to_get_one(run: Run, tmp_path: Path) -> None:
    table = advise_widths(run)
    assert table.empty
    assert " ".join(width_text(table).split()) == NO_PLAN
    assert "trained again" not in report_table(run)
    assert "trained again" not in write_html(run, tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_command_the_report_and_its_page_show_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_width_plan(run.path, WIDTHS, 8)
    sentence = (
        f"f you trained again: d_ff 270, 64, 64, 63 in the 4 feed-forward blocks, {SAVED:,} of their {WHOLE:,} weights "
        f"less ({SAVED / WHOLE:.1%}), by what the loss asked for at step 8."
    )
    assert main(["advise", str(run.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(maxsplit=2) for line in lines if line.startswith(("h.0.mlp ", "h.3.mlp "))]
    assert rows == [
        ["h.0.mlp", f"{(768 - 270) * 384:,}", "d_ff 270 of 768"],
        ["h.3.mlp", f"{(768 - 63) * 384:,}", "d_ff 63 of 768"],
    ]
    assert sentence in " ".join(lines)
    again = open_run(run.path)
    assert sentence in " ".join(report_table(again).split())
    page = write_html(again, tmp_path / "page.html").read_text(encoding="utf-8")
    assert sentence in page
    assert '<td class="text">h.1.mlp</td><td class="text">d_ff 64 of 768</td>' in page


def test_many_blocks_are_summed_up_in_the_sentence_and_listed_by_the_command(run: Run) -> None:
    write_width_plan(run.path, {f"h.{place}.mlp": 10 + place for place in range(40)}, 8)
    text = width_text(advise_widths(open_run(run.path)))
    assert "d_ff 10 to 49 in the 40 feed-forward blocks" in text
    assert text.count(" of 768") == 40
