from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from helpers.app_pages import VIEWS, numbers, open_papers, sent, show, specs, texts, turn_to
from helpers.loss_ranks import write_loss_ranks
from helpers.made_runs import append_steps, make_run, names_of
from helpers.training import record
from helpers.width_plans import write_width_plan

from inrank_monitor import open_run
from inrank_monitor.advice import NO_PLAN, advise, advise_widths
from inrank_monitor.figures import column_title, figure_table, natural_width, paper_figure_bytes
from inrank_monitor.ranks import RankRule
from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.report import matrix_table, verdict, widths_line
from inrank_monitor.runs.lock import Lock
from inrank_monitor.runs.log import RUN_FILE, RunLog, write_json
from inrank_monitor.runs.recomputation import recompute

WITH_FIGURES = VIEWS[1:-1]
MEGABYTE = 1_000_000


def by_name(figure: dict[str, Any], matrices: pd.Index) -> dict[str, dict[str, Any]]:
    """Traces that stand for a matrix."""
    return {t["meta"][0]: t for t in figure["data"] if t.get("meta") and t["meta"][0] in set(matrices)}


@pytest.fixture
def run(folder: Path) -> Any:
    return open_run(make_run(folder / "first", matrices=10))


def test_map_is_rank_over_null_rank_by_kind_and_depth_and_the_loss_stands_beside_it(run: Any) -> None:
    heat, loss = specs(show("Overview"))
    rows = run.measurements.drop_duplicates("matrix", keep="last").astype({"matrix": str}).set_index("matrix")
    drawn = numbers(heat["data"][0]["z"])
    kinds = ["attn.c_attn.weight[q]", "attn.c_attn.weight[k]", "attn.c_attn.weight[v]", "attn.c_proj.weight"]
    for depth in (0, 1):
        ranks = rows.loc[[f"h.{depth}.{kind}" for kind in (*kinds, "mlp.c_fc.weight")]]
        np.testing.assert_allclose(drawn[:, depth], ranks["rank_over_null_rank"], rtol=1e-6)
    assert heat["layout"]["yaxis"]["ticktext"] == ["q", "k", "v", "attention output", "MLP in"]
    logged = run.scalars[run.scalars["name"] == "loss"]["value"]
    np.testing.assert_allclose(numbers(loss["data"][0]["y"]), logged)


def test_map_is_of_the_step_and_the_matrices_that_are_chosen(run: Any) -> None:
    heat, _ = specs(show("Overview", step="20", filter=r"h\.\d\.mlp", colour="stable rank"))
    rows = run.measurements[(run.measurements["step"] == 20)].astype({"matrix": str}).set_index("matrix")
    expected = rows["stable_rank"].loc[["h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"]]
    np.testing.assert_allclose(numbers(heat["data"][0]["z"]), [expected], rtol=1e-6)


def test_a_filter_that_fits_nothing_says_so_and_hides_nothing(run: Any) -> None:
    for text in ("nowhere", "/(/"):
        app = show("Overview", filter=text)
        assert "filter" in app.warning[0].value
        assert len(next(frame.value for frame in app.dataframe if "verdict" in frame.value)) == 10


def test_the_page_of_a_matrix_draws_its_spectrum_and_its_ranks(run: Any) -> None:
    name = "h.1.mlp.c_fc.weight"
    app = show("Matrix", matrix=name, step="30")
    figures = specs(app)
    mine = run.measurements[run.measurements["matrix"] == name]
    ranks = next(figure for figure in figures if by_name(figure, run.matrices.index))
    np.testing.assert_array_equal(
        numbers(by_name(ranks, run.matrices.index)[name]["y"]), mine["intrinsic_rank"].astype(float)
    )
    assert "step 30" in json.dumps(figures[0])
    assert "`MLP in` at depth `1`" in texts(app).replace("\u2060", "")


def test_the_ranks_of_all_rules_are_marked_on_the_spectrum_and_on_the_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inrank_monitor.runs.shared_run.MAX_AGE", 0.0)
    make_run(folder / "lossy", matrices=10)
    name = "h.1.mlp.c_fc.weight"
    assert len(specs(show("Matrix", run="lossy", matrix=name))) == 5
    write_loss_ranks(folder / "lossy", dict.fromkeys(names_of(10), 3), 40)
    spectrum, loss = specs(show("Matrix", run="lossy", matrix=name))[-2:]
    run = open_run(folder / "lossy")
    row = run.measurements[run.measurements["matrix"] == name].iloc[-1]
    values = run.singular_values(name).iloc[-1].to_numpy()
    marked = {trace["name"].split(":")[0]: trace for trace in spectrum["data"]}
    for rule, rank in (
        ("paper's rule", row["intrinsic_rank"]),
        ("90 % of the energy", row["energy_rank"]),
        ("by loss", 3),
    ):
        assert marked[rule]["x"] == [rank]
        np.testing.assert_allclose(marked[rule]["y"], values[int(rank) - 1])
    lines = {trace["name"]: trace for trace in loss["data"]}
    assert list(numbers(lines["one rank for all"]["x"])) == [1, 2, 4, 8, 16]
    assert numbers(lines["by loss: 3"]["y"]) == pytest.approx(1 + (0.05 / 2 + 0.05 / 4) / 2)


def test_heat_map_is_rank_over_null_rank_at_every_step(run: Any) -> None:
    (heat,) = specs(show("Rank evolution", draw="heat map"))
    table = run.measurements.astype({"matrix": str})
    expected = (table["intrinsic_rank"] / table["null_rank"]).astype(float)
    expected.index = pd.MultiIndex.from_frame(table[["matrix", "step"]])
    expected = expected.unstack().loc[heat["data"][0]["y"]]
    np.testing.assert_allclose(numbers(heat["data"][0]["z"]), expected, rtol=1e-6)


@pytest.mark.parametrize("view", ["Overview", "Rank evolution", "Advice"])
def test_a_run_with_too_few_points_says_so_and_one_with_enough_does_not(folder: Path, view: str) -> None:
    make_run(folder / "few", steps=[1, 250, 500])
    make_run(folder / "many", steps=range(1, 14))
    few, many = (texts(show(view, run=name)).replace("\\", "") for name in ("few", "many"))
    assert "Only 3 snapshots in 500 steps: too few for a curve. Pass every=20 to attach." in few.replace("\u2060", "")
    assert "too few" not in many


def test_rank_lines_are_the_logged_ranks_beside_their_null_rank(run: Any) -> None:
    (figure,) = specs(show("Rank evolution", group="block"))
    lines = by_name(figure, run.matrices.index)
    assert set(lines) == set(run.matrices.index)
    for name, rows in run.measurements.groupby("matrix", observed=True):
        np.testing.assert_array_equal(numbers(lines[str(name)]["y"]), rows["intrinsic_rank"].astype(float))
        assert set(numbers(lines[str(name)]["customdata"])) == {float(run.matrices.loc[name, "null_rank"])}
    assert {"block 0", "block 1"} <= {trace.get("name") for trace in figure["data"]}


def test_filters_in_the_address_leave_only_their_matrices(run: Any) -> None:
    (figure,) = specs(show("Rank evolution", block="block 1", role=["q", "MLP in"]))
    assert set(by_name(figure, run.matrices.index)) == {"h.1.attn.c_attn.weight[q]", "h.1.mlp.c_fc.weight"}


@pytest.mark.parametrize(
    ("when", "steps"), [("two steps", [10, 40]), ("one step", [40]), ("all steps", [10, 20, 30, 40])]
)
def test_density_fills_the_rank_of_each_step(run: Any, when: str, steps: list[int]) -> None:
    (figure,) = specs(show("Spectrum density", when=when, matrix="h.0.mlp.c_fc.weight"))
    drawn = {t["meta"][0]: t["meta"][1] for t in figure["data"] if len(t.get("meta") or []) == 3}
    mine = run.measurements[run.measurements["matrix"] == "h.0.mlp.c_fc.weight"].set_index("step")["intrinsic_rank"]
    assert drawn == {step: int(mine[step]) for step in steps}


def test_density_steps_come_from_the_address(run: Any) -> None:
    (figure,) = specs(show("Spectrum density", steps=["20", "30"]))
    assert {t["meta"][0] for t in figure["data"] if len(t.get("meta") or []) == 3} == {20, 30}


def test_spectrum_lines_are_the_stored_singular_values(run: Any) -> None:
    app = show("Spectrum evolution", matrices=["h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"])
    for figure, name in zip(specs(app), ("h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"), strict=True):
        values = run.singular_values(name)
        lines = {t["meta"][0]: numbers(t["y"]) for t in figure["data"] if t.get("meta")}
        assert set(lines) == set(values.columns)
        for index, line in lines.items():
            np.testing.assert_allclose(line, values[index])


def test_explained_ratio_curve_is_that_of_the_spectrum_with_its_rank_ringed(run: Any) -> None:
    curve, lines = specs(show("Explained ratio", matrix="h.0.mlp.c_fc.weight", step="30"))
    values = run.singular_values("h.0.mlp.c_fc.weight").loc[30].to_numpy()
    expected = rank_metrics.explained_ratio_curve(values, run.buffer_rank)
    np.testing.assert_allclose(numbers(curve["data"][0]["y"]), expected)
    assert numbers(curve["data"][1]["x"]) == [rank_metrics.intrinsic_rank(values, run.threshold, run.buffer_rank)]
    mine = run.measurements[run.measurements["matrix"] == "h.0.mlp.c_fc.weight"]["explained_ratio"]
    np.testing.assert_allclose(numbers(by_name(lines, run.matrices.index)["h.0.mlp.c_fc.weight"]["y"]), mine)


def test_compare_draws_a_line_a_run_aligned_by_share_of_training(folder: Path) -> None:
    for place, name in enumerate(("short", "long")):
        make_run(folder / name, steps=range(0, 30 + 30 * place, 10), seed=place)
    loss, figure = specs(
        show("Compare", run=["short", "long"], align="share of training", compared="h.0.mlp.c_fc.weight")
    )
    for trace, name in zip(figure["data"], ("short", "long"), strict=True):
        table = open_run(folder / name).measurements
        mine = table[table["matrix"] == "h.0.mlp.c_fc.weight"]
        assert trace["name"] == name
        np.testing.assert_array_equal(numbers(trace["y"]), mine["intrinsic_rank"].astype(float))
        np.testing.assert_allclose(numbers(trace["x"]), mine["step"] / mine["step"].max())
    assert [trace["name"] for trace in loss["data"]] == ["short", "long"]


def test_the_overview_has_each_matrix_with_its_verdict_and_the_sentence_of_the_report(run: Any) -> None:
    app = show("Overview")
    expected = matrix_table(run)
    table = next(frame.value for frame in app.dataframe if "verdict" in frame.value)
    assert list(table["matrix"]) == list(expected.index)
    for column in ("verdict", "intrinsic_rank", "null_rank", "rank_over_null_rank", "peak_rank", "peak_step"):
        if column == "verdict":
            assert list(table[column]) == list(expected[column])
        else:
            np.testing.assert_allclose(table[column].astype(float), expected[column], rtol=1e-6)
    shown = re.sub(r"\\(.)", r"\1", texts(app)).replace("\u2060", "")  # as Markdown shows it
    assert verdict(expected) in shown


def test_the_overview_has_the_ranks_by_loss_where_they_were_taken(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inrank_monitor.runs.shared_run.MAX_AGE", 0.0)
    before = next(frame.value for frame in show("Overview").dataframe if "verdict" in frame.value)
    assert "loss_rank" not in before
    ranks = {str(name): 2 + number for number, name in enumerate(run.matrices.index)}
    write_loss_ranks(run.path, ranks, 8)
    table = next(frame.value for frame in show("Overview").dataframe if "verdict" in frame.value)
    assert dict(zip(table["matrix"], table["loss_rank"], strict=True)) == ranks


def test_the_page_says_what_a_cut_spectrum_leaves_open(folder: Path) -> None:
    path = make_run(folder / "cut")
    info = json.loads((path / "run.json").read_text())
    write_json(path / "run.json", info | {"options": info["options"] | {"leading": 9}})
    assert "9 leading ones were taken" in texts(show("Overview", run=["cut"]))


def test_advice_is_the_advice_of_the_package(folder: Path) -> None:
    run = open_run(make_run(folder / "first", matrices=10, steps=range(0, 48, 4)))
    app = show("Advice")
    table, expected = app.dataframe[0].value, advise(run)
    assert list(table["matrix"]) == list(expected.index)
    assert expected["rank"].notna().any()
    for column in ("rank", "rank_from", "peak_rank", "null_rank", "trainable_saved", "verdict", "advice"):
        assert table[column].fillna(-1).tolist() == expected[column].fillna(-1).tolist()
    labels = [button.proto.label for button in app.get("download_button")]
    assert labels == ["Advice as CSV", "LoraConfig for PEFT (JSON)"]


def test_advice_shows_the_plan_of_widths_and_without_one_how_to_get_it(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inrank_monitor.runs.shared_run.MAX_AGE", 0.0)
    before = show("Advice")
    assert NO_PLAN in re.sub(r"\\(.)", r"\1", texts(before)).replace("\u2060", "")
    assert len(before.dataframe) == 1
    write_width_plan(run.path, {"h.0.mlp": 270, "h.1.mlp": 64}, 40)
    app = show("Advice")
    drawn, expected = app.dataframe[1].value, advise_widths(open_run(run.path))
    assert drawn["block"].tolist() == ["h.0.mlp", "h.1.mlp"]
    assert drawn["advice"].tolist() == ["d_ff 270 of 768", "d_ff 64 of 768"]
    assert drawn["parameters_saved"].tolist() == expected["parameters_saved"].tolist()
    assert set(drawn["step"]) == {40}
    shown = re.sub(r"\\(.)", r"\1", texts(app)).replace("\u2060", "")
    assert widths_line(expected)[1:] in shown
    assert NO_PLAN not in shown


def test_changing_the_rule_recomputes_ranks_from_the_stored_spectra(run: Any) -> None:
    app = show("Rank evolution")
    app.slider(key="alpha").set_value(0.6)
    app.number_input(key="b").set_value(4)
    app.run()
    table = recompute(run, RankRule(0.6, 4))
    lines = by_name(specs(app)[0], run.matrices.index)
    for name, rows in table.groupby("matrix", observed=True):
        np.testing.assert_array_equal(numbers(lines[str(name)]["y"]), rows["intrinsic_rank"].astype(float))
    assert "recomputed" in texts(app)
    app.radio(key="definition").set_value("reference").run()
    assert not app.exception
    next(button for button in app.button if button.label.startswith("Back to")).click().run()
    assert "recomputed" not in texts(app)
    assert not app.exception


def test_a_buffer_rank_of_0_is_what_fits_each_matrix(run: Any) -> None:
    app = show("Explained ratio", matrix="h.0.mlp.c_fc.weight", b="0")
    values = run.singular_values("h.0.mlp.c_fc.weight").iloc[-1].to_numpy()
    (curve, *_), text = specs(app), texts(app)
    np.testing.assert_allclose(numbers(curve["data"][0]["y"]), rank_metrics.explained_ratio_curve(values, 4))
    assert "b = 4" in text
    assert "logged at α = 0.9, b = 8" in text


def test_a_buffer_rank_beyond_the_short_side_is_hinted_at(run: Any) -> None:
    app = show("Overview", b="15")
    assert "is not below the short side" not in texts(app)
    app.number_input(key="b").set_value(16).run()
    assert "is not below the short side of 10 of 10 matrices" in texts(app).replace("\\", "")


def test_a_run_without_a_buffer_rank_of_its_own_is_shown_by_what_fits_each_matrix(run: Any) -> None:
    info = json.loads((run.path / RUN_FILE).read_text())
    info["options"]["buffer_rank"] = None
    (run.path / RUN_FILE).write_text(json.dumps(info))
    app = show("Overview")
    assert app.number_input(key="b").value == 0
    assert "recomputed" not in texts(app)
    app.number_input(key="b").set_value(8).run()
    assert "recomputed (logged at α = 0.9, b that fits each matrix, paper)" in texts(app)
    assert not app.exception


def test_what_is_chosen_stands_in_the_address(run: Any) -> None:
    app = show("Overview")
    assert app.query_params["run"] == "first"
    turn_to(app, "Advice")
    app.slider(key="alpha").set_value(0.75).run()
    assert not app.exception
    again = show("Advice", run="first", alpha="0.75")
    assert again.slider(key="alpha").value == 0.75
    assert again.header[0].value == "Advice"


@pytest.mark.parametrize("typed", ["h.1.mlp.c_fc", "1.mlp.c_fc", "*1.mlp.c_fc*"])
def test_matrices_in_the_address_may_be_named_as_tables_print_them(run: Any, typed: str) -> None:
    name = "h.1.mlp.c_fc.weight"
    app = show("Explained ratio", matrix=typed)
    assert app.selectbox(key="matrix").value == name
    assert show("Spectrum evolution", matrices=[typed, "h.0.attn.c_proj"]).multiselect(key="matrices").value == [
        name,
        "h.0.attn.c_proj.weight",
    ]
    assert show("Compare", compared=typed).selectbox(key="compared").value == name
    first = show("Explained ratio", matrix="c_fc")  # could be several
    assert first.selectbox(key="matrix").value == run.matrices.index[0]
    assert not first.exception


@pytest.mark.slow
def test_choices_that_another_run_does_not_have_fall_back(folder: Path) -> None:
    make_run(folder / "one", matrices=10)
    make_run(folder / "two", steps=range(0, 9, 3), names=["other.weight"])
    for view in VIEWS:
        chosen = {"step": "20", "steps": ["10", "30"], "matrix": "h.1.mlp.c_fc.weight", "block": "block 1"}
        app = show(view, run="one", when="one step", **chosen)
        app.multiselect(key="run").set_value(["two"]).run()
        assert not app.exception
        assert not app.error


def test_a_live_run_is_followed_to_its_newest_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inrank_monitor.runs.shared_run.MAX_AGE", 0.0)
    path = make_run(folder / "live", steps=range(0, 30, 10), ended=None)
    lock, log = Lock(path), RunLog(path, 1)
    app = show("Spectrum density", when="one step")
    assert "step 20" in json.dumps(specs(app)[0])
    for _ in append_steps(log, 5, [30], (24, 16)):
        app.run()
    assert "step 30" in json.dumps(specs(app)[0])
    assert "live" in texts(app)
    app.toggle(key="newest").set_value(False).run()
    app.select_slider(key="step").set_value(10).run()
    assert "step 10" in json.dumps(specs(app)[0])
    log.close()
    lock.release()


def torn(path: Path) -> Path:
    log = path / "measurements-000.arrows"
    log.write_bytes(log.read_bytes()[:-100])
    return path


def test_events_are_marked_where_they_happened(folder: Path) -> None:
    make_run(folder / "run", not_finite=lambda step: [2] if step in (20, 30) else [])
    (heat,), (_, loss) = specs(show("Rank evolution", draw="heat map")), specs(show("Overview"))
    assert [(t["name"], list(t["x"])) for t in heat["data"][1:]] == [("not finite", ["20", "30"])]
    (marks,) = (trace for trace in loss["data"] if trace["name"] == "not finite")
    np.testing.assert_array_equal(numbers(marks["x"]), [20, 30])


CASES: dict[str, Any] = {
    "one snapshot": lambda folder: make_run(folder / "run", steps=[5]),
    "no snapshot": lambda folder: make_run(folder / "run", steps=[], ended=None),
    "no update": lambda folder: make_run(folder / "run", steps=[0]),
    "NaN": lambda folder: make_run(folder / "run", not_finite=lambda step: range(5) if step >= 30 else []),
    "only NaN": lambda folder: make_run(folder / "run", not_finite=lambda step: range(5)),
    "torn log": lambda folder: torn(make_run(folder / "run")),
    "no scalars": lambda folder: (make_run(folder / "run") / "scalars-000.arrows").unlink(),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_every_kind_of_run(folder: Path, case: str, view: str) -> None:
    CASES[case](folder)
    app = show(view)
    assert app.header[0].value == view
    assert bool(specs(app)) == (view in WITH_FIGURES)
    if case == "torn log" and view != "Runs":
        assert "torn or damaged" in app.warning[0].value


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_many_matrices_is_small_enough_to_send(folder: Path, view: str) -> None:
    make_run(folder / "run", matrices=300, steps=range(0, 300, 10))
    app = show(view)
    assert sum(len(figure) for figure in sent(app)) < 5 * MEGABYTE


def test_what_was_measured_beside_the_updates_can_be_drawn(folder: Path) -> None:
    record(folder / "beside", 4, 24, 30, 20, of=("update", "weight"), directions=4)
    run = open_run(folder / "beside")
    for quantity, values in (
        ("weight_stable_rank", run.weights.set_index("matrix")["stable_rank"]),
        ("intruder_dimensions", run.directions.set_index("matrix")["intruder_dimensions"]),
        ("left_initial_overlap", run.directions.set_index("matrix")["left_initial_overlap"]),
    ):
        (figure,) = specs(show("Rank evolution", run="beside", quantity=column_title(quantity)))
        lines = by_name(figure, run.matrices.index)
        assert set(lines) == set(run.matrices.index)
        for name, line in lines.items():
            np.testing.assert_allclose(numbers(line["y"]), values.loc[name].astype(float))
    app = show("Spectrum evolution", run="beside", matrices=["0.weight"], of="the weight W")
    spectrum = run.singular_values("0.weight", of="weight")
    lines = {t["meta"][0]: numbers(t["y"]) for t in specs(app)[0]["data"] if t.get("meta")}
    for index, line in lines.items():
        np.testing.assert_allclose(line, spectrum[index])


def test_a_run_that_did_not_measure_it_does_not_offer_it(run: Any) -> None:
    app = show("Rank evolution")
    offered = next(box for box in app.selectbox if box.label == "Quantity").options
    assert not any("of W" in option or "overlap" in option for option in offered)
    assert "Spectrum of" not in [box.label for box in show("Spectrum evolution").selectbox]


def unpacked(spec: dict[str, Any]) -> go.Figure:
    """A figure out of what is sent, its arrays as numbers."""
    for trace in spec["data"]:
        trace |= {key: numbers(value) for key, value in trace.items() if isinstance(value, dict) and "bdata" in value}
        if isinstance(error := trace.get("error_y", {}).get("array"), dict):
            trace["error_y"]["array"] = numbers(error)
    return go.Figure(spec)


@pytest.mark.parametrize("view", WITH_FIGURES)
def test_beside_each_figure_are_a_papers_formats_which_hold_what_it_draws(folder: Path, view: str) -> None:
    make_run(folder / "first", matrices=10, steps=range(0, 48, 4), not_finite=lambda step: [1] if step == 20 else [])
    make_run(folder / "second", matrices=10, steps=range(0, 48, 4), seed=2)
    app = open_papers(show(view, run=["first", "second"]))
    labels = [button.proto.label for button in app.get("download_button")]
    figures = [unpacked(spec) for spec in specs(app)]
    for label in ("Figure as HTML", "Figure as PDF", "Figure as SVG", "Figure as PNG", "Numbers as CSV"):
        assert labels.count(label) == len(figures) > 0
    for figure in figures:
        svg = paper_figure_bytes(figure, "svg", width=natural_width(figure)).decode()
        lines = [trace for trace in figure.data if trace.type == "scatter" and "lines" in (trace.mode or "lines")]
        seen = [one for one in lines if one.line.width != 0 and one.x[0] is not None]
        assert svg.count('id="panel-') == len(seen)
        assert len(figure_table(figure)) > 5


def test_a_page_without_matplotlib_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(folder / "first")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    app = open_papers(show("Rank evolution"))
    labels = [button.proto.label for button in app.get("download_button")]
    assert labels == ["Figure as HTML", "Numbers as CSV"]
    assert "pip install" in texts(app)
    assert "inrank\\-monitor\\[figures\\]" in texts(app)
