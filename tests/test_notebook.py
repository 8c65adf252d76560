"""What tracker, run and coverage show of themselves in a notebook: escaped, cheap, never an error."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import record, start, train
from torch import nn

from inrank_monitor import find_matrices, open_run
from inrank_monitor.console import ROWS_AT_MOST, html_rows, never_raises
from inrank_monitor.matrices import Coverage, CoverageRow

EVIL = "<script>alert('x')</script>&\""


class Cells(HTMLParser):
    """The texts of a table's cells, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_everything_is_escaped() -> None:
    cells = Cells(html_rows((EVIL, "n"), [(EVIL, 1)], EVIL))
    assert cells.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert cells.texts.count(EVIL) == 3
    coverage = Coverage([CoverageRow(EVIL, (2, 3), True, EVIL), CoverageRow(EVIL, (), False, EVIL)])
    assert "script" not in Cells(str(coverage._repr_html_())).tags


def test_a_long_table_says_how_much_is_left_out() -> None:
    texts = Cells(html_rows(("name", "number"), [(f"m{i}", i) for i in range(ROWS_AT_MOST + 7)])).texts
    assert "m19" in texts
    assert "m20" not in texts
    assert "and 7 more" in texts


def test_an_error_leaves_the_plain_repr() -> None:
    class Broken:
        @never_raises
        def _repr_html_(self) -> str:
            raise RuntimeError("no")

    assert Broken()._repr_html_() is None


def test_coverage_shows_what_is_watched_and_why_not() -> None:
    _, coverage = find_matrices(nn.Linear(4, 3))
    texts = Cells(str(coverage._repr_html_())).texts
    assert {"weight", "3×4", "bias", "a vector", "1 of 2 parameters are watched"} <= set(texts)


def test_a_run_shows_each_matrix_beside_its_null_rank(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "run", 3, buffer_rank=2))
    last = run.measurements[run.measurements["step"] == 3]
    texts = Cells(str(run._repr_html_())).texts
    assert "run: finished, step 3, 3 snapshots, 2 matrices; rank at α = 0.9, b = 2" in texts
    place = texts.index("0.weight")
    assert texts[place + 1 : place + 3] == [str(last.iloc[0]["intrinsic_rank"]), str(last.iloc[0]["null_rank"])]


def test_a_run_without_a_measurement_and_one_with_nan_show_themselves(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    assert "nothing measured yet" in str(open_run(tmp_path / "run")._repr_html_())
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    train(model, optimizer, 1)
    tracker.close()
    assert "–" in Cells(str(open_run(tmp_path / "run")._repr_html_())).texts


def test_the_tracker_shows_itself_without_measuring_or_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, tracker = start(tmp_path / "run", every=2)
    train(model, optimizer, 3)
    for name in ("flush", "measure", "summary"):
        monkeypatch.setattr(tracker, name, lambda *_: pytest.fail("it measured or waited"))
    texts = Cells(str(tracker._repr_html_())).texts
    assert texts[texts.index("optimizer steps") + 1] == "3"
    assert texts[texts.index("parameters watched") + 1] == "2 of 4"
    assert "watching" in texts
    monkeypatch.undo()
    tracker.close()
    assert "closed" in Cells(str(tracker._repr_html_())).texts
