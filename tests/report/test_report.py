"""The report page and the terminal table, of a run that is made up here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.null_model import null_rank
from inrank_monitor.report import matrix_table, report_table, verdict, write_html
from inrank_monitor.report.document import unpack
from inrank_monitor.runs import SCHEMAS

STEPS = (0, 1, 5, 20, 100)
EVIL = "<script>alert(1)</script>"


@dataclass
class FakeRun:
    """The documented attributes of a run, as plain tables."""

    name: str
    matrices: pd.DataFrame
    measurements: pd.DataFrame
    spectra: dict[str, pd.DataFrame]
    scalars: pd.DataFrame
    events: pd.DataFrame
    coverage: pd.DataFrame
    status: str = "finished"
    problems: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.9
    buffer_rank: int = 4
    definition: Any = "paper"
    leading: int | None = None
    measured: int | None = None
    too_few_points: str | None = None
    loss_ranks: pd.DataFrame = field(default_factory=pd.DataFrame)
    width_plans: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SCHEMAS["width_plans"].names))

    def singular_values(self, name: str) -> pd.DataFrame:
        return self.spectra[name]


def make_run(names: list[str], steps: tuple[int, ...] = STEPS, nan: tuple[str, int] | None = None) -> FakeRun:
    """Rank-k updates over a flat tail, k the place of the matrix; `nan` makes one measurement non-finite."""
    rows, spectra = [], {}
    null = null_rank(12, 16, 0.9, 4)
    for place, name in enumerate(names):
        shape = np.r_[np.linspace(9, 5, place % 8 + 1), np.linspace(1.0, 0.1, 12 - place % 8 - 1)]
        values = np.sqrt(np.array(steps, dtype=float))[:, None] * shape
        if nan and nan[0] == name:
            values[steps.index(nan[1]) :] = np.nan
        spectra[name] = pd.DataFrame(values, pd.Index(steps, name="step"), pd.RangeIndex(1, 13))
        rows += _measure(name, steps, values, null)
    measurements = pd.DataFrame(rows)
    measurements["matrix"] = pd.Categorical(measurements["matrix"], categories=names)
    ranks = ["intrinsic_rank", "running_rank", "layer_rank", "null_rank"]
    measurements = measurements.sort_values(["step", "matrix"], kind="stable", ignore_index=True)
    columns = {"parameter": names, "part": None, "kind": "Linear", "rows": 12, "cols": 16}
    index = pd.Index(names, name="matrix")
    coverage = {
        "parameter": [*names, "ln.weight", "ln.bias"],
        "shape": "12×16",
        "watched": True,
        "note": "watched",
    }
    table = pd.DataFrame(coverage)
    table.loc[len(names) :, ["watched", "note"]] = [False, "has one dimension"]
    logged = [("loss", 1.0), ("tracker_seconds", 0.5), ("tracker_overhead", 0.004)]
    return FakeRun(
        name="first",
        matrices=pd.DataFrame({**columns, "null_rank": null, "initial_norm": 1.0}, index),
        measurements=measurements.astype(dict.fromkeys(ranks, "Int32")),
        spectra=spectra,
        scalars=pd.DataFrame(
            [(step, 0.0, name, value / (step + 1)) for step in steps for name, value in logged],
            columns=["step", "time", "name", "value"],
        ),
        events=pd.DataFrame({"step": [], "time": [], "kind": [], "matrix": [], "message": []}),
        coverage=table,
    )


def _measure(name: str, steps: tuple[int, ...], values: np.ndarray, null: int) -> list[dict[str, Any]]:
    rank = rank_metrics.intrinsic_rank(values, 0.9, 4)
    running = rank_metrics.running_rank(rank)
    rows = []
    for i, step in enumerate(steps):
        finite = bool(np.isfinite(values[i]).all())
        numbers = {"explained_ratio": 0.5, "stable_rank": float(rank_metrics.stable_rank(values[i]))}
        numbers |= {"effective_rank": float(rank_metrics.effective_rank(values[i])), "relative_norm": 0.25}
        numbers |= {"spectral_norm": float(values[i][0])}
        ranks = {"intrinsic_rank": int(rank[i]), "running_rank": int(running[i])}
        row = {key: value if finite else np.nan for key, value in numbers.items()}
        row |= {key: value if finite else pd.NA for key, value in ranks.items()}
        rows.append({"step": step, "time": 0.0, "matrix": name, **row, "layer_rank": pd.NA, "null_rank": null})
    return rows


def event(step: int, kind: str, matrix: str | None, message: str) -> pd.DataFrame:
    return pd.DataFrame({"step": [step], "time": [0.0], "kind": [kind], "matrix": [matrix], "message": [message]})


@pytest.fixture(autouse=True)
def _short_plotly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the 5 MB of plotly.js, which take a second to parse, save where they are the point."""
    if "whole_plotly" not in request.fixturenames:
        monkeypatch.setattr("inrank_monitor.report.document.get_plotlyjs", lambda: "var Plotly = {};")


@pytest.fixture
def whole_plotly() -> None:
    """Asks for the real one."""


VERDICT = "too thin to tell"  # 12 rows
NAMES = [f"transformer.h.{i}.{part}.weight" for i in range(3) for part in ("attn.c_proj", "mlp.c_fc")]


class Page(HTMLParser):
    """What a browser would make of the page: tags with attributes, the scripts, the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.text += data


def blocks_of(page: Page) -> dict[str, str]:
    """What the page has packed, by id."""
    return {
        str(a["id"]): unpack(text, int(a["data-bytes"] or 0))
        for a, text in page.scripts
        if a.get("type") == "text/plain"
    }


def figures_of(page: Page) -> Any:
    return json.loads(blocks_of(page)["packed-figures"])


def page_of(run: FakeRun, tmp_path: Path) -> Page:
    return Page(write_html(run, tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_table_of_matrices_is_the_last_finite_measurement() -> None:
    run = make_run(NAMES, nan=(NAMES[1], 20))
    table = matrix_table(run)
    assert list(table.index) == NAMES
    for name in NAMES:
        step = 5 if name == NAMES[1] else 100
        values = run.spectra[name].loc[step].to_numpy()
        assert table.loc[name, "step"] == step
        assert table.loc[name, "intrinsic_rank"] == rank_metrics.intrinsic_rank(values, 0.9, 4)
        assert table.loc[name, "stable_rank"] == pytest.approx(float(rank_metrics.stable_rank(values)))
        assert table.loc[name, "rank_over_null_rank"] == table.loc[name, "intrinsic_rank"] / null_rank(12, 16, 0.9, 4)
        ranks = rank_metrics.intrinsic_rank(run.spectra[name].to_numpy(), 0.9, 4)
        late = pd.Series(ranks, STEPS).loc[11:] if name != NAMES[1] else pd.Series(dtype=int)
        assert [table.loc[name, "peak_rank"]] == [late.max()] or (late.empty and np.isnan(table.loc[name, "peak_rank"]))
        assert late.empty or table.loc[name, "peak_step"] == late.idxmax()


def test_the_terminal_table_is_aligned_and_holds_every_matrix() -> None:
    run = make_run(NAMES, nan=(NAMES[1], 20))
    run.events = event(20, "non_finite", NAMES[1], "the weights hold NaN or infinity")
    run.problems = ["events-000.arrows: the last 17 bytes are torn."]
    text = report_table(run)
    lines = text.splitlines()
    assert lines[0] == "first"
    assert lines[1].startswith("finished at step 100 · 5 snapshots of 6 matrices · tracker ")
    assert "not finite: 1 of 6 matrices since step 20" in " ".join(lines)
    head = next(i for i, line in enumerate(lines) if line.startswith("matrix"))
    assert "α = 0.9 and b = 4" in " ".join(lines[:head])
    rows = lines[head + 2 : head + 2 + len(NAMES)]
    at = lines[head].index("verdict")  # the last column is left-aligned, all others end under their heads
    assert {line[at - 2 : at] for line in rows} == {"  "}
    assert [line[at:] for line in rows] == [VERDICT if name != NAMES[1] else "not finite" for name in NAMES]
    table = matrix_table(run)
    for name, row in zip(NAMES, rows, strict=True):
        cells = row.split()
        assert cells[:2] == [name, "12×16"]
        assert cells[2].rstrip("*") == str(int(table.loc[name, "intrinsic_rank"]))
        assert cells[3] == str(null_rank(12, 16, 0.9, 4))
        assert cells[4] == f"{table.loc[name, 'rank_over_null_rank']:.2f}"
    assert [row.split()[2].endswith("*") for row in rows] == [name == NAMES[1] for name in NAMES]
    assert f"- non_finite: step 20, {NAMES[1]}: the weights hold NaN or infinity" in text.replace("\n  ", " ")
    assert "- events-000.arrows: the last 17 bytes are torn." in text


def test_long_lists_and_long_names_fit_100_columns() -> None:
    names = [f"model.decoder.{'very_long_module_name.' * 6}layers.{i}.self_attn.q_proj.weight" for i in range(90)]
    run = make_run(names)
    text = report_table(run)
    assert max(map(len, text.splitlines())) <= 100
    assert "... and 30 more (--all shows them)" in text
    shown = [line for line in text.splitlines() if "12×16" in line]
    assert len(shown) == 60
    assert len({line.split()[0] for line in shown}) == 60
    everything = report_table(run, limit=None)
    assert everything.count("12×16") == 90
    assert "more (--all" not in everything


@pytest.mark.parametrize("width", [40, 80, 93, 120, 160, 200, 400])
def test_the_table_fits_the_width_and_uses_it(width: int) -> None:
    names = [f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(3) for part in "qkvo"]
    run = make_run(names)
    run.measurements["signal_rank"] = pd.array([3] * len(run.measurements), dtype="Int32")
    run.problems = ["a problem that needs a good many words before it is said, " * 4]
    lines = report_table(run, width=width).splitlines()
    head = next(line for line in lines if line.startswith("matrix"))
    assert max(map(len, lines)) <= min(max(width, 80), 200)
    assert ("effective" in head) == (width > 120)
    assert {"rank", "null", "signal", "verdict"} <= set(head.split())
    assert len({line.split()[0] for line in lines if line.endswith(VERDICT)}) == len(names)
    if width >= 160:
        assert any(line.startswith(names[0]) for line in lines)


def test_the_width_is_the_terminal_s(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(NAMES)
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert report_table(run) == report_table(run, width=int(columns))


def test_what_a_run_holds_cannot_steer_the_terminal() -> None:
    run = make_run(["a\x1b[31m.weight"])
    run.events = event(1, "error", None, "Traceback\n  line\nValueError: \x1b]0;title\x07")
    text = report_table(run)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "ValueError: ?]0;title?" in text


@pytest.mark.parametrize("status", ["live", "interrupted"])
def test_a_run_without_measurements_says_so(status: str, tmp_path: Path) -> None:
    run = make_run(NAMES)
    run.status = status
    run.measurements = run.measurements.iloc[:0]
    run.scalars = run.scalars.iloc[:0]
    assert f"{status}, no step measured yet" in report_table(run)
    page = page_of(run, tmp_path)
    assert "No matrix has a finite measurement yet." in page.text
    assert "no measurements yet" in blocks_of(page)["packed-figures"]


def test_the_table_says_where_the_peak_was_and_what_the_newest_spectrum_is(tmp_path: Path) -> None:
    run = make_run(NAMES, nan=(NAMES[1], 20))
    run.matrices = run.matrices.assign(rows=64, cols=80)
    run.measurements["signal_rank"] = pd.array([3] * len(run.measurements), dtype="Int32")
    table = matrix_table(run)
    assert table["verdict"].tolist() == ["structured", "not finite", *["structured"] * 4]
    text = " ".join(report_table(run).split())
    assert "Of 6 matrices: 5 structured, 1 not finite." in text
    row = next(line for line in report_table(run).splitlines() if line.startswith(NAMES[0])).split()
    peak = [str(int(table.loc[NAMES[0], column])) for column in ("signal_rank", "peak_rank", "peak_step")]
    assert row[5:] == [*peak, "structured"]
    page = page_of(run, tmp_path)
    assert "peakat step" in page.text
    assert page.text.count("structured") >= 5


def test_one_matrix_has_its_ratio_in_the_sentence() -> None:
    table = matrix_table(make_run(["only"]))
    assert verdict(table).startswith("Of 1 matrix: 1 too thin to tell. The rank is at ")


@pytest.mark.usefixtures("whole_plotly")
def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page = page_of(make_run(NAMES), tmp_path)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    assert "@import" not in "".join(str(text) for text in page.text)
    assert sum("Plotly.newPlot" in text and len(text) < 2000 for _, text in page.scripts) == 1
    assert sum(len(text) > 10**6 for _, text in page.scripts) == 1
    assert (tmp_path / "report.html").stat().st_size < 2e6


@pytest.mark.usefixtures("whole_plotly")
def test_the_page_runs_only_the_scripts_that_its_policy_names(tmp_path: Path) -> None:
    page = page_of(make_run(NAMES), tmp_path)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    running = [text for attributes, text in page.scripts if attributes.get("type") != "text/plain"]
    running.append(blocks_of(page)["packed-plotly"])
    hashes = ["'sha256-" + base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() + "'" for t in running]
    assert re.findall(r"'sha256-[^']*'", policy) == hashes
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy


def test_every_figure_has_its_place_and_its_data(tmp_path: Path) -> None:
    page = page_of(make_run(NAMES), tmp_path)
    places = [a["data-figure"] for _, a in page.tags if "data-figure" in a]
    data = figures_of(page)
    assert sorted(places) == sorted(data)
    # Heat map, lines, loss, and three close-ups of the highest and of the lowest matrix.
    assert len(places) == 9
    assert data["figure-1"]["data"][0]["type"] == "heatmap"
    assert sum(tag == "p" and a.get("class") == "caption" for tag, a in page.tags) >= 12
    assert "has one dimension" in page.text
    assert "ln.bias" in page.text
    assert all(name in page.text for name in NAMES)


def test_markup_from_a_run_is_shown_as_text(tmp_path: Path) -> None:
    run = make_run([EVIL, "b.weight", '"><img src=x onerror=alert(1)>'])
    run.name = run.status = EVIL
    run.problems = [EVIL]
    run.events = event(1, EVIL, EVIL, EVIL)
    run.coverage.loc[3:, "note"] = EVIL
    run.scalars.loc[0, "name"] = EVIL
    path = write_html(run, tmp_path / "report.html")
    assert EVIL not in path.read_text(encoding="utf-8")
    page = Page(path.read_text(encoding="utf-8"))
    assert "img" not in {tag for tag, _ in page.tags}
    assert sum(a.get("type") != "text/plain" for a, _ in page.scripts) == 2
    assert page.text.count(EVIL) >= 6


def test_many_matrices_are_selected_for_the_lines_and_folded_in_the_table(tmp_path: Path) -> None:
    names = [f"h.{i}.{part}.weight" for i in range(40) for part in ("q", "k")]
    page = page_of(make_run(names), tmp_path)
    data = figures_of(page)
    lines = [trace for trace in data["figure-2"]["data"] if trace.get("meta", [None])[0] in names]
    table = matrix_table(make_run(names))
    shown = {trace["meta"][0] for trace in lines}
    assert len(shown) == 24
    assert {table["rank_over_null_rank"].idxmax(), table["rank_over_null_rank"].idxmin()} <= shown
    assert "the other 20" in page.text


def test_one_snapshot_of_one_matrix_makes_a_page(tmp_path: Path) -> None:
    for steps in ((0,), (3,)):
        page = page_of(make_run(["only"], steps), tmp_path)
        assert "only" in page.text


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_html(make_run(NAMES), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
