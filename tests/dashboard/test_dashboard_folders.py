"""Folders of runs on the page: found, listed, searched, refused, damaged; runs that diverged, marked on every view."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.app_pages import APP, VIEWS, numbers, sent, show, specs, texts
from helpers.made_runs import make_run, names_of

from inrank_monitor import list_runs, open_run
from inrank_monitor.console import RUNS_VARIABLE
from inrank_monitor.runs.folder import RunFolder
from inrank_monitor.runs.log import RUN_FILE
from inrank_monitor.runs.log_files import LogFiles
from inrank_monitor.runs.notes import write_notes
from inrank_monitor.runs.shared_run import SharedRun


def test_table_of_runs_is_the_list_of_runs_newest_first(folder: Path) -> None:
    for place, name in enumerate(("old", "new", "middle")):
        make_run(folder / name, created=1e9 + (place * 2) % 3, seed=place)
    table = show("Runs").dataframe[0].value
    summaries = list_runs(folder)
    assert list(table["run"]) == [summary.path.name for summary in summaries]
    assert list(table["mean_rank"]) == [summary.mean_rank for summary in summaries]
    assert list(table["mean_rank_over_null_rank"]) == [summary.mean_rank_over_null_rank for summary in summaries]
    assert list(table["loss"]) == [summary.loss for summary in summaries]


def test_rows_of_the_table_follow_the_runs_of_the_page(folder: Path) -> None:
    make_run(folder / "one")
    make_run(folder / "two", created=2e9)
    app = show("Runs", run=["one", "two"])
    assert app.multiselect(key="run").value == ["one", "two"]
    app.multiselect(key="run").set_value(["one"]).run()
    assert not app.exception
    assert app.multiselect(key="run").value == ["one"]


@pytest.mark.slow
def test_forty_runs_are_listed_and_compared(folder: Path) -> None:
    names = [f"run-{place:02}" for place in range(40)]
    for place, name in enumerate(names):
        make_run(folder / name, created=1e9 + place, seed=place)
    assert list(show("Runs").dataframe[0].value["run"]) == names[::-1]
    for figure in specs(show("Compare", run=names)):
        assert [trace["name"] for trace in figure["data"]] == names


def test_an_empty_folder_is_explained(folder: Path) -> None:
    app = show("Overview")
    assert "inrank-monitor demo" in app.code[0].value
    assert "no runs" in app.warning[0].value
    make_run(folder / "run")
    app.button[0].click().run()
    assert app.header[0].value == "Overview"


def test_without_a_folder_the_page_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    app = show("Overview")
    assert "inrank-monitor demo" in app.code[0].value
    make_run(tmp_path / "elsewhere" / "run")
    app.text_input(key="folder_field").set_value("elsewhere").run()
    assert app.header[0].value == "Overview"
    make_run(tmp_path / "runs" / "demo")
    assert "demo" in texts(show("Overview"))


def test_a_damaged_run_is_named_with_what_is_wrong_and_the_others_are_shown(folder: Path) -> None:
    make_run(folder / "good")
    (make_run(folder / "bad") / RUN_FILE).write_text("{")
    app = show("Runs", run="good")
    assert list(app.dataframe[0].value["run"]) == ["good"]
    assert "bad" in app.warning[0].value
    assert "cannot be read" in app.warning[0].value
    assert "cannot be opened" in show("Overview", run=["good", "bad"]).error[0].value
    assert not show("Overview", run=["bad"]).exception


MARKUP = "**bold** <img src=x onerror=alert(1)> $x$ :smile: `code` [l](http:x)"


@pytest.mark.parametrize("view", VIEWS)
def test_markup_in_names_is_shown_as_text(folder: Path, view: str) -> None:
    name = MARKUP.replace("/", "")
    make_run(folder / name, names=[MARKUP, "h.0.mlp.c_fc.weight"])
    app = show(view, run=name)
    for figure in sent(app):
        assert "<img" not in figure
    for part in (*app.markdown, *app.caption, *app.error, *app.warning):
        assert not getattr(part.proto, "allow_html", False)
        assert "<img" not in re.sub(r"(`+) ?.*? ?\1(?!`)", "", part.value)  # but as code


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", ".", "", "run/../../secret", "a\0b", "..\\secret", "link"])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    make_run(folder.parent / "secret")
    make_run(folder / "run")
    (folder / "link").symlink_to(folder.parent / "secret")
    with pytest.raises(PermissionError):
        RunFolder(folder).path_of(name)
    assert RunFolder(folder).names() == ["run"]


@pytest.mark.parametrize("address", ["../secret", "{parent}/secret", "link"])
def test_an_address_that_leads_out_of_the_folder_shows_nothing_of_it(folder: Path, address: str) -> None:
    make_run(folder.parent / "secret", names=["hidden.weight"])
    make_run(folder / "run")
    (folder / "link").symlink_to(folder.parent / "secret")
    app = show("Overview", run=address.format(parent=folder.parent))
    assert "Refused" in app.error[0].value
    assert "hidden" not in "".join(sent(app))


def test_a_run_whose_files_lead_elsewhere_or_would_block_is_refused(folder: Path) -> None:
    outside = make_run(folder.parent / "secret")
    make_run(folder / "linked")
    (folder / "linked" / "measurements-000.arrows").unlink()
    (folder / "linked" / "measurements-000.arrows").symlink_to(outside / "measurements-000.arrows")
    make_run(folder / "pipe")
    os.mkfifo(folder / "pipe" / "measurements-001.arrows")
    make_run(folder / "good")
    runs = RunFolder(folder)
    assert runs.names() == ["good"]
    assert set(runs.refused()) == {"linked", "pipe"}
    assert len(show("Runs").warning) == 2


@pytest.mark.slow
def test_nothing_in_a_run_is_unpickled_or_executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory may hold anything else; none of it is opened."""
    for loader in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(loader, None)
    run = make_run(folder / "run")
    for name in ("model.pt", "checkpoint.pkl", "__init__.py", "views.py", "streamlit_app.py"):
        (run / name).write_bytes(b"raise SystemExit('executed')")
        (run / name).chmod(0)
    for view in VIEWS:
        show(view)


def test_a_folder_that_is_a_run_shows_that_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(folder / "run")
    monkeypatch.setenv(RUNS_VARIABLE, str(run))
    assert "run" in texts(show("Overview"))
    assert RunFolder(run).names() == ["run"]


def test_a_run_written_anew_in_the_same_place_is_read_anew(folder: Path) -> None:
    shared = SharedRun(make_run(folder / "run", matrices=3))
    assert not shared.update(max_age=0)
    (folder / "run").rename(folder / "old")
    make_run(folder / "run", matrices=7, created=3e9)
    assert shared.update(max_age=0)
    assert list(shared.tables().matrices.index) == names_of(7)
    (folder / "run").rename(folder / "gone")
    shared.update(max_age=0)
    assert "no run" in shared.tables().problems[-1]
    assert len(shared.tables().measurements)


def test_the_app_is_bound_to_this_machine_and_sends_no_statistics() -> None:
    config = tomllib.loads((APP.parent / ".streamlit" / "config.toml").read_text())
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False


def test_runs_in_folders_are_listed_and_opened_by_their_paths(folder: Path) -> None:
    for name in ("gpt2/dense-seed-0", "reproduce-small/runs/dense-seed-0"):
        make_run(folder / name, created=2e9 if "gpt2" in name else 1e9, matrices=5 if "gpt2" in name else 10)
    assert list(show("Runs").dataframe[0].value["run"]) == ["gpt2/dense-seed-0", "reproduce-small/runs/dense-seed-0"]
    app = show("Overview", run="reproduce-small/runs/dense-seed-0")
    assert "`reproduce-small/runs/dense-seed-0` finished" in texts(app)
    assert len(next(frame.value for frame in app.dataframe if "verdict" in frame.value)) == 10


def test_runs_are_searched_by_names_tags_and_notes_and_what_is_hidden_stays_chosen(folder: Path) -> None:
    for place, name in enumerate(("sweep/a", "sweep/b", "c")):
        make_run(folder / name, created=2e9 - place)
    write_notes(folder / "sweep/b", ["AdamW"], "with warm-up")
    write_notes(folder / "c", ["SGD"])
    (folder / "sweep/a/notes.json").write_text("{")

    def found(words: str) -> list[str]:
        app = show("Runs", search=words, run="sweep/a")
        assert app.session_state["run"] == ["sweep/a"]
        assert "notes.json cannot be read" in app.warning[0].value.replace("\\", "")
        return list(app.dataframe[0].value["run"])

    assert found("") == ["sweep/a", "sweep/b", "c"]
    assert found("sweep") == ["sweep/a", "sweep/b"]
    assert found("adamw UP") == ["sweep/b"]
    assert found("nothing like it") == []
    table = show("Runs").dataframe[0].value.set_index("run")
    assert [list(tags) for tags in table["tags"]] == [[], ["AdamW"], ["SGD"]]
    assert table.loc["sweep/b", "notes"] == "with warm-up"


def test_runs_that_stay_as_they_are_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_run(folder / "group 0" / "run 0", matrices=1, steps=[1])
    for place in range(1, 60):
        shutil.copytree(first, folder / f"group {place % 10}" / f"run {place}")
    app = show("Runs")
    assert len(app.dataframe[0].value) == 60
    read: list[str] = []
    begin = LogFiles.__init__
    monkeypatch.setattr(LogFiles, "__init__", lambda self, path: read.append(path.name) or begin(self, path))
    write_notes(folder / "group 7" / "run 7", ["changed"])
    app.run()
    assert not app.exception
    assert read == ["run 7"]
    assert list(app.dataframe[0].value.set_index("run")["tags"]["group 7/run 7"]) == ["changed"]


@pytest.mark.parametrize("view", VIEWS[1:])
def test_a_diverged_run_is_marked_on_every_view(folder: Path, view: str) -> None:
    lost = range(5)
    make_run(folder / "sweep" / "lost", created=2e9, not_finite=lambda step: lost if step >= 30 else ())
    make_run(folder / "fine")
    app = show(view, run=["sweep/lost", "fine"])
    said = texts(app).replace("\\", "").replace("\u2060", "")
    assert "⚠ not finite: 5 of 5 matrices since step 30" in said
    assert said.count("⚠") == 1
    if view == "Compare":
        names = {trace.get("name") for figure in specs(app) for trace in figure["data"]}
        assert {"sweep/lost (not finite)", "fine"} <= names
    if view in ("Overview", "Rank evolution", "Matrix", "Spectrum evolution", "Explained ratio"):
        assert any(trace.get("name") == "diverged" for figure in specs(app) for trace in figure["data"])


def test_the_map_of_a_run_that_diverged_is_of_its_last_finite_step(folder: Path) -> None:
    path = make_run(
        folder / "lost", matrices=5, steps=range(0, 60, 10), not_finite=lambda step: range(5 * (step >= 30))
    )
    app = show("Overview", run="lost")
    rows = open_run(path).measurements.query("step == 20")
    drawn = numbers(specs(app)[0]["data"][0]["z"])
    np.testing.assert_allclose(drawn.ravel(), rows["rank_over_null_rank"], rtol=1e-6)
    assert "The map is of step 20, the last that is finite: at step 50 nothing is." in texts(app)
    assert "The map is of" not in texts(show("Overview", run="lost", step="10"))


def test_a_diverged_run_is_marked_in_the_table_of_runs(folder: Path) -> None:
    make_run(folder / "lost", not_finite=lambda step: [0] if step >= 30 else ())
    make_run(folder / "fine", created=2e9)
    assert list(show("Runs").dataframe[0].value["status"]) == ["finished", "⚠ not finite, finished"]
