"""The page that compares runs: what it opens on, what it draws of groups, and what it warns of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from helpers.app_pages import numbers, show, specs, texts
from helpers.dashboard_browser import serving, streamlit, visit
from helpers.dashboard_page import DashboardPage
from helpers.dashboard_widgets import select, slide
from helpers.expected_figures import Drawn, comparison
from helpers.made_runs import make_run

from inrank_monitor import open_run
from inrank_monitor.console import RUNS_VARIABLE
from inrank_monitor.figures.curves import smooth
from inrank_monitor.runs.log import RUN_FILE, RunLog, write_json

TRACES = re.compile(r", (± standard deviation|as logged)$")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    return tmp_path / "runs"


def trained(folder: Path, name: str, config: dict[str, Any], seed: int, **made: Any) -> Path:
    """A run that says what it was trained with, with a validation loss and tokens."""
    run = make_run(folder / name, seed=seed, **made)
    info = json.loads((run / RUN_FILE).read_text())
    info["training"] = {"optimizers": [], "config": config | {"seed": seed}}
    info["segments"].append({"segment": 1, "resume_step": 1000, "time": 1e9 + 100, "versions": {}})
    write_json(run / RUN_FILE, info)
    log = RunLog(run, 1)
    steps = [10, 20, 30, 40]
    for scalar, values in (("val_loss", [3 - step / 20 + seed for step in steps]), ("tokens", [64 * s for s in steps])):
        rows = {"step": steps, "time": [1e9 + step for step in steps], "name": [scalar] * 4, "value": values}
        log.append("scalars", rows)
    log.close()
    return run


@pytest.fixture
def groups(folder: Path) -> list[str]:
    """Two widths with two seeds each."""
    names = []
    for place in range(4):
        names.append(f"w{8 << place // 2}-{place % 2}")
        trained(folder, names[-1], {"width": 8 << place // 2}, place % 2)
    return names


def drawn(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Lines by name; bands, what is behind and keys left out."""
    traces = {trace["name"]: trace for trace in figure["data"]}
    return {name: trace for name, trace in traces.items() if trace.get("meta") and not TRACES.search(name)}


def test_it_opens_on_the_validation_loss_and_the_mean_of_seeds(groups: list[str], folder: Path) -> None:
    app = show("Compare", run=groups)
    assert app.selectbox(key="scalar").value == "validation loss"
    loss, ranks = specs(app)
    assert list(drawn(loss)) == list(drawn(ranks)) == ["width 8 (2 runs)", "width 16 (2 runs)"]
    line = drawn(loss)["width 8 (2 runs)"]
    values = np.array([[3 - step / 20 + seed for step in (10, 20, 30, 40)] for seed in (0, 1)])
    np.testing.assert_allclose(numbers(line["y"]), values.mean(axis=0))
    np.testing.assert_allclose(numbers(line["customdata"]), values.std(axis=0, ddof=1))
    tables = [open_run(folder / name).measurements for name in groups[:2]]
    means = np.array([table.groupby("step")["intrinsic_rank"].mean().to_numpy(dtype=float) for table in tables])
    np.testing.assert_allclose(numbers(drawn(ranks)["width 8 (2 runs)"]["y"]), means.mean(axis=0))
    (table,) = (frame.value for frame in app.dataframe)
    assert table.loc["width"].tolist() == ["8", "16"]
    assert table.loc["last validation loss"].tolist() == ["1.5 ± 0.71"] * 2
    assert not app.expander or not [one for one in app.expander if one.label.startswith("To mind")]


def test_single_runs_are_one_choice_away_and_a_run_alone_has_no_such_choice(groups: list[str]) -> None:
    app = show("Compare", run=groups)
    app.selectbox(key="seeds").set_value("single runs").run()
    assert [list(drawn(figure)) for figure in specs(app)] == [groups, groups]
    assert not [one for one in show("Compare", run=groups[:1]).radio if one.label == "Draw"]


@pytest.mark.parametrize(
    ("axis", "title", "factor"),
    [
        ("step", "step", 1),
        ("share", "share of training", 1 / 40),
        ("time", "wall-clock of the training (s)", 1),
        ("tokens", "tokens", 64),
    ],
)
def test_the_x_axis_is_the_chosen_one(groups: list[str], axis: str, title: str, factor: float) -> None:
    app = show("Compare", run=groups)
    app.selectbox(key="align").set_value(axis).run()
    for figure, steps in zip(specs(app), ([10, 20, 30, 40], [0, 10, 20, 30, 40]), strict=True):
        assert figure["layout"]["xaxis"]["title"]["text"] == title
        for line in drawn(figure).values():
            np.testing.assert_allclose(numbers(line["x"]), np.array(steps) * factor)


def test_only_axes_that_all_chosen_runs_have_are_offered(groups: list[str], folder: Path) -> None:
    make_run(folder / "plain")
    words = ["step", "share of training", "wall-clock"]
    assert show("Compare", run=groups).selectbox(key="align").options == [*words, "tokens"]
    assert show("Compare", run=[*groups, "plain"]).selectbox(key="align").options == words
    app = show("Compare", run=[*groups, "plain"], align="tokens")
    assert app.selectbox(key="align").value == "step"


def test_smoothing_and_logarithmic_axes(groups: list[str], folder: Path) -> None:
    app = show("Compare", run=groups[:1])
    app.selectbox(key="scalar").set_value("training loss").run()
    app.slider(key="smoothing").set_value(0.6).run()
    loss, ranks = specs(app)
    scalars = open_run(folder / groups[0]).scalars
    values = scalars[scalars["name"] == "loss"]["value"].to_numpy()
    np.testing.assert_allclose(numbers(drawn(loss)[groups[0]]["y"]), smooth(values, 0.6))
    behind = next(trace for trace in loss["data"] if trace["name"] == f"{groups[0]}, as logged")
    np.testing.assert_allclose(numbers(behind["y"]), values)
    assert len(ranks["data"]) == 1
    app.toggle(key="log_x").set_value(True).run()
    app.toggle(key="log_y").set_value(True).run()
    for figure in specs(app):
        assert figure["layout"]["xaxis"]["type"] == figure["layout"]["yaxis"]["type"] == "log"
        assert (numbers(drawn(figure)[groups[0]]["x"]) > 0).all()


def test_what_makes_the_runs_less_alike_is_said(groups: list[str], folder: Path) -> None:
    run = trained(folder, "other", {"width": 8}, 3, matrices=3, steps=range(0, 45, 5), buffer_rank=4)
    info = json.loads((run / RUN_FILE).read_text())
    info["options"]["threshold"] = 0.8
    write_json(run / RUN_FILE, info)
    app = show("Compare", run=["other", *groups])
    (warning,) = (one for one in app.expander if one.label.startswith("To mind"))
    assert warning.label == "To mind: other rules, other steps measured, matrices that a run lacks"
    said = re.sub(r"\\(.)", r"\1", texts(app)).replace("\u2060", "")
    assert "other: α = 0.8, b = 4" in said
    assert "other: 9 snapshots from step 0 to 40" in said
    assert "other lacks h.0.attn.c_proj, h.0.mlp.c_fc." in said
    assert "other finished at step 40" in said.replace("`", "")
    app = show("Compare", run=["other", *groups], compared="h.0.mlp.c_fc.weight")
    assert "h.0.mlp.c_fc is not in other." in re.sub(r"\\(.)", r"\1", texts(app)).replace("\u2060", "")
    assert "a matrix that a run lacks" in next(one.label for one in app.expander)


def test_all_ranks_are_by_the_rule_of_the_page(groups: list[str], folder: Path) -> None:
    run = trained(folder, "other", {"width": 99}, 0)
    info = json.loads((run / RUN_FILE).read_text())
    info["options"] |= {"threshold": 0.5, "buffer_rank": 2}
    write_json(run / RUN_FILE, info)
    ranks = specs(show("Compare", run=["other", "w8-0"], alpha=0.85, b=4))[1]
    one, other = (numbers(line["y"]) for line in drawn(ranks).values())
    np.testing.assert_array_equal(one, other)  # the same spectra


@pytest.mark.slow
def test_seeds_are_put_together_and_parted_and_laid_over_tokens_in_a_browser(
    browser: Any, groups: list[str], folder: Path
) -> None:
    runs = {name: Drawn(folder / name) for name in groups}
    both = {"width 8": groups[:2], "width 16": groups[2:]}

    def expected(**look: Any) -> list[go.Figure]:
        return comparison(runs, scalar="val_loss", title="validation loss", **look)

    with serving(*streamlit(), folder=str(folder)) as address:
        page = DashboardPage(visit(browser, address), address, folder)
        page.begin("Compare", tuple(groups))
        page.use(select("Draw", "single runs"), expected(groups=both), expected())
        page.use(select("Draw", "mean ± spread"), expected(), expected(groups=both))
        page.use(select("x axis", "tokens"), expected(groups=both), expected(groups=both, axis="tokens"))
        page.use(
            slide("Smoothing", "End"),
            expected(groups=both, axis="tokens"),
            expected(groups=both, axis="tokens", smoothing=0.99),
        )
