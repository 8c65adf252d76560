"""Figures by their trace data: what they show is what the table holds, and nothing breaks them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from helpers.tables import NAMES, STEPS, spectra, table

from inrank_monitor.figures import (
    CAPTIONS,
    depth_map,
    explained_ratio_curve,
    explained_ratio_evolution,
    families,
    loss_against_rank,
    loss_curve,
    rank_evolution,
    rank_heatmap,
    representative,
    short_names,
    spectrum_density,
    spectrum_evolution,
    spectrum_with_ranks,
)
from inrank_monitor.figures.kernel import bandwidth, density
from inrank_monitor.figures.tables import geometric, spread, thin
from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.null_model import null_singular_values

MEBIBYTE = 2**20


def size(figure: go.Figure) -> int:
    return len(figure.to_json())


def line_of(figure: go.Figure, name: str) -> go.Scatter:
    return next(trace for trace in figure.data if trace.meta is not None and trace.meta[0] == name)


def all_figures(measurements: pd.DataFrame, values: pd.DataFrame, scalars: pd.DataFrame) -> list[go.Figure]:
    return [
        rank_evolution(measurements),
        rank_evolution(measurements, log_steps=True),
        rank_heatmap(measurements),
        rank_heatmap(measurements, relative_to_null=True),
        explained_ratio_evolution(measurements),
        loss_curve(scalars),
        *(spectrum_evolution(values, log=log, log_steps=log) for log in (False, True)),
        *(spectrum_density(values, kind=k, log=log) for k in ("density", "count", "profile") for log in (False, True)),
        spectrum_density(values, steps=list(values.index) or None),
        explained_ratio_curve(values, null=null_singular_values(4, 4)),
    ]


def losses(count: int = 50) -> pd.DataFrame:
    steps = np.repeat(np.arange(1, count + 1), 2)
    names = np.tile(["loss", "lr"], count)
    return pd.DataFrame({"step": steps, "time": 0.0, "name": names, "value": 1.0 / steps})


def test_a_rank_line_holds_the_table_and_its_null_rank() -> None:
    measurements = table()
    figure = rank_evolution(measurements)
    for name in NAMES:
        rows = measurements[measurements["matrix"] == name]
        line = line_of(figure, name)
        assert list(line.x) == STEPS
        np.testing.assert_array_equal(line.y, rows["intrinsic_rank"].astype(float))
        np.testing.assert_array_equal(line.customdata, rows["null_rank"].astype(float))


def test_a_shared_null_rank_is_one_neutral_line_and_an_own_one_has_its_matrix_colour() -> None:
    shared = rank_evolution(table(null=(16, 17)))
    dashed = [trace for trace in shared.data if trace.line.dash == "dash"]
    assert sorted(trace.y[0] for trace in dashed) == [16, 17]
    assert len({trace.line.color for trace in dashed}) == 1
    own = rank_evolution(table(null=(16, 17, 18, 19)))
    for trace, name in zip([t for t in own.data if t.line.dash == "dash" and t.meta], NAMES, strict=True):
        assert trace.line.color == line_of(own, name).line.color


def test_only_ranks_of_the_rule_have_a_null_line() -> None:
    assert not any(trace.line.dash == "dash" for trace in rank_evolution(table(), "stable_rank").data)


def test_a_filter_keeps_model_order_and_an_unknown_matrix_is_named() -> None:
    figure = rank_evolution(table(), matrices=[NAMES[2], NAMES[0]])
    shown = [trace.meta[0] for trace in figure.data if trace.meta and trace.meta[0] in NAMES]
    assert shown == [NAMES[0], NAMES[2]]
    with pytest.raises(ValueError, match=r"'h.0.mlp.weigth'.*h.0.mlp.weight"):
        rank_evolution(table(), matrices=["h.0.mlp.weigth"])
    with pytest.raises(ValueError, match=r"column must be one of .*running_rank.* got 'rank'"):
        rank_evolution(table(), "rank")


def test_groups_share_colour_and_legend_entry() -> None:
    figure = rank_evolution(table(), groups=families(NAMES))
    assert [t.name for t in figure.data if t.showlegend is None] == ["h.*.attn.weight[q]", "h.*.mlp.weight"]
    groups = {name: line_of(figure, name).legendgroup for name in NAMES}
    assert groups[NAMES[0]] == groups[NAMES[2]] != groups[NAMES[1]]


def test_of_many_lines_only_values_that_stand_alone_have_markers() -> None:
    names = [f"h.{depth}.mlp.weight" for depth in range(12)]
    rows = pd.concat([table().query("matrix == @NAMES[1]").assign(matrix=name) for name in names])
    rows.loc[(rows["matrix"] == names[3]) & (rows["step"] == 10), "stable_rank"] = np.nan
    once = rows[(rows["matrix"] != names[5]) | (rows["step"] == 10)]
    figure = rank_evolution(once, "stable_rank", groups=dict.fromkeys(names, "mlp"))
    marked = [name for name in names if line_of(figure, name).mode == "lines+markers"]
    assert marked == [names[3], names[5]]
    few = rank_evolution(once, "stable_rank", names[:2], groups=dict.fromkeys(names, "mlp"))
    assert {line_of(few, name).mode for name in names[:2]} == {"lines+markers"}


def test_growth_events_lie_on_their_line() -> None:
    events = pd.DataFrame(
        {"step": [10, 11, 2], "time": 0.0, "kind": ["rank_grown", "rank_grown", "error"]}
        | {"matrix": [NAMES[1], NAMES[0], NAMES[0]], "message": ["3 -> 5", "<b>", "x"]}
    )
    marks = next(trace for trace in rank_evolution(table(), events=events).data if trace.name == "rank grown")
    assert list(marks.x) == [10, 11]
    assert list(marks.y) == [STEPS.index(10) + 1, STEPS.index(10)]
    assert "&lt;b&gt;" in marks.text[1]


def test_the_heat_map_is_the_table_and_relative_cells_are_rank_over_null() -> None:
    measurements = table(nan_at=5)
    grid = measurements.pivot(index="matrix", columns="step", values="intrinsic_rank").astype("Float64").astype(float)
    absolute, relative = (rank_heatmap(measurements, relative_to_null=r).data[0] for r in (False, True))
    assert list(absolute.y) == NAMES
    assert list(absolute.x) == [str(step) for step in STEPS]
    np.testing.assert_array_equal(absolute.z, grid.to_numpy())
    np.testing.assert_allclose(relative.z, grid.to_numpy() / np.array([[16], [17], [16], [17]]), rtol=1e-6)
    assert relative.zmax == pytest.approx(1.0)
    with pytest.raises(ValueError, match="relative_to_null needs one of the columns"):
        rank_heatmap(measurements, "stable_rank", relative_to_null=True)


def test_singular_values_are_drawn_as_they_are_and_stronger_ones_have_more_ink() -> None:
    values = spectra()
    figure = spectrum_evolution(values, "h.0")
    lines = {trace.meta[0]: trace for trace in figure.data if trace.meta is not None}
    assert sorted(lines) == list(values.columns)
    for i, line in lines.items():
        np.testing.assert_array_equal(line.y, values[i])
        assert list(line.x) == STEPS
    inks = [float(lines[i].line.color.rstrip(")").split(",")[-1]) for i in values.columns]
    assert inks == sorted(inks, reverse=True)
    assert len(set(inks)) == len(inks)
    drawn = [trace.meta[0] for trace in figure.data if trace.meta is not None]
    assert drawn == sorted(drawn, reverse=True), "the strongest lies on top"


def test_thinned_spectra_keep_the_first_and_the_last_value_and_stay_small() -> None:
    steps = list(range(1000))
    values = spectra(steps, 768)
    values.iloc[517, 0] = 1e4
    figure = spectrum_evolution(values)
    drawn = {trace.meta[0]: trace for trace in figure.data if trace.meta is not None}
    assert {1, 2, 3, 768} <= set(drawn)
    assert len(drawn) <= 64
    assert max(drawn[1].y) == 1e4
    assert (drawn[1].x[0], drawn[1].x[-1]) == (0, 999)
    assert size(figure) < 2 * MEBIBYTE
    assert len([t for t in spectrum_evolution(values, count=5).data if t.meta is not None]) == 5


def test_a_spectrum_with_more_values_at_later_steps_is_no_gap() -> None:
    values = spectra()
    values.iloc[:4, 10:] = np.nan
    curve = explained_ratio_curve(values, step=2)
    assert len(curve.data[0].x) == 10
    assert "not finite" not in str(spectrum_density(values, steps=STEPS).layout.yaxis.ticktext)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["density", "profile"])
def test_the_solid_area_is_the_share_that_the_rank_holds(kind: Any, log: bool) -> None:
    values = spectra(count=40)
    # A gap, so that no kernel reaches over the edge between the third value and the fourth.
    values.iloc[:, :3] *= 20
    figure = spectrum_density(values, steps=100, rank=3, kind=kind, log=log, buffer_rank=100)
    outline = next(trace for trace in figure.data if trace.customdata is not None)
    solid = next(trace for trace in figure.data if trace.name == "held by the rank")
    whole = values.loc[100].sum()
    expected = values.loc[100].iloc[:3].sum() / whole
    assert outline.meta == pytest.approx((100, 3, expected))

    def area(x: np.ndarray, height: np.ndarray) -> float:
        along = np.log10(x) if log and kind == "density" else x
        return float(np.trapezoid(height, along))

    half = len(solid.x) // 2
    scale = np.max(outline.y) / np.max(outline.customdata)
    total = area(np.asarray(outline.x), np.asarray(outline.customdata))
    filled = area(np.asarray(solid.x)[:half], np.asarray(solid.y)[:half]) / scale
    # The kernel on a grid of 240 points is good to about a percent.
    assert filled / total == pytest.approx(expected, abs=0.01)
    assert total == pytest.approx(1.0, abs=0.02)


def test_density_rows_are_the_first_and_the_last_update_with_their_intrinsic_ranks() -> None:
    values = spectra()
    figure = spectrum_density(values, buffer_rank=5)
    rows = [trace.meta for trace in figure.data if trace.customdata is not None]
    ranks = rank_metrics.intrinsic_rank(values.loc[[1, 100]].to_numpy(), 0.9, 5)
    assert [(row[0], row[1]) for row in rows] == [(1, ranks[0]), (100, ranks[1])]
    given = spectrum_density(values, steps=[10, 100], rank={10: 2, 100: 4})
    assert [trace.meta[1] for trace in given.data if trace.customdata is not None] == [2, 4]
    with pytest.raises(ValueError, match=r"got 7; the nearest are \[5, 10\]"):
        spectrum_density(values, steps=7)


@pytest.mark.parametrize("kind", ["density", "count", "profile"])
def test_an_estimated_density_says_which_values_were_measured(kind: Any) -> None:
    values = spectra()
    drawn = {measured: spectrum_density(values, kind=kind, measured=measured) for measured in (None, 8, 24)}
    assert "Values after the 8 largest are estimated" in drawn[8].layout.xaxis.title.text
    assert drawn[24].layout == drawn[None].layout  # all of them were measured
    assert [trace.y.tolist() for trace in drawn[8].data] == [trace.y.tolist() for trace in drawn[None].data]
    nothing_yet = spectrum_density(values, steps=0, measured=8)
    assert "estimated" not in str(nothing_yet.layout.xaxis.title.text)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'histogram'"):
        spectrum_density(spectra(), kind="histogram")  # type: ignore[arg-type]


def test_density_of_zero_and_non_finite_steps_says_so() -> None:
    values = spectra()
    values.loc[30] = np.nan
    labels = spectrum_density(values, steps=STEPS).layout.yaxis.ticktext
    assert labels[0] == "step 0: no update yet"
    assert labels[STEPS.index(30)] == "step 30: not finite"


@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_the_explained_ratio_curve_is_g_with_a_ring_at_the_intrinsic_rank(definition: Any) -> None:
    values = spectra()
    figure = explained_ratio_curve(values, [5, 100], 0.8, 6, definition, null_singular_values(24, 30))
    for step in (5, 100):
        row = values.loc[step].to_numpy()
        rank = int(rank_metrics.intrinsic_rank(row, 0.8, 6, definition))
        line = next(trace for trace in figure.data if trace.name == f"step {step}: rank {rank}")
        ring = next(trace for trace in figure.data if trace.name == f"step {step}: intrinsic rank")
        expected = rank_metrics.explained_ratio_curve(row, 6, definition)
        np.testing.assert_array_equal(line.x, np.arange(1, 25))
        np.testing.assert_array_equal(line.y, expected)
        assert (ring.x[0], ring.y[0]) == (rank, expected[rank - 1])
    assert figure.layout.shapes[0].y0 == 0.8
    assert any(trace.name.startswith("noise: rank") for trace in figure.data)


def test_a_thinned_ratio_curve_keeps_ends_lowest_and_marked_rank() -> None:
    values = spectra([1], 5000)
    curve = rank_metrics.explained_ratio_curve(values.loc[1].to_numpy(), 50)
    rank = int(rank_metrics.intrinsic_rank(values.loc[1].to_numpy(), 0.9, 50))
    line = explained_ratio_curve(values, buffer_rank=50).data[0]
    assert {1, rank, int(curve.argmin()) + 1, 5000} <= set(line.x)
    assert len(line.x) < 700


def test_zeros_beyond_the_factors_count_when_the_size_is_given() -> None:
    values = spectra([1], 6)
    assert len(explained_ratio_curve(values, size=20).data[0].x) == 20


def test_explained_ratio_over_steps_is_the_column() -> None:
    measurements = table(nan_at=5)
    figure = explained_ratio_evolution(measurements, 0.7)
    rows = measurements[measurements["matrix"] == NAMES[1]]
    np.testing.assert_array_equal(line_of(figure, NAMES[1]).y, rows["explained_ratio"])
    assert figure.layout.shapes[0].y0 == 0.7


def test_losses_share_a_panel_and_the_trackers_cost_is_left_out() -> None:
    scalars = losses()
    extra = scalars.assign(name=scalars["name"].map({"loss": "val_loss", "lr": "tracker_seconds"}))
    figure = loss_curve(pd.concat([scalars, extra]))
    panels = {trace.meta[0]: trace.yaxis for trace in figure.data}
    assert panels == {"loss": "y", "val_loss": "y", "lr": "y2"}
    np.testing.assert_array_equal(figure.data[0].y, scalars.loc[scalars["name"] == "loss", "value"])
    assert [trace.meta[0] for trace in loss_curve(scalars, ["lr"]).data] == ["lr"]
    with pytest.raises(ValueError, match=r"no scalar named 'acc' was logged, only \['loss', 'lr'\]"):
        loss_curve(scalars, ["acc"])


def test_a_logarithmic_step_axis_leaves_out_step_zero() -> None:
    for figure in (rank_evolution(table(), log_steps=True), spectrum_evolution(spectra(), log_steps=True)):
        assert figure.layout.xaxis.type == "log"
        assert all(x is None or x > 0 for trace in figure.data for x in trace.x)


EMPTY = table().iloc[:0], spectra().iloc[:0], losses().iloc[:0]


def test_empty_tables_give_a_figure_that_says_so() -> None:
    for figure in all_figures(*EMPTY):
        assert not figure.data
        assert figure.layout.annotations[0].text in ("no measurements yet", "no scalars logged yet")


@pytest.mark.parametrize(
    "values",
    [
        spectra([1]),
        spectra(count=1),
        spectra([3], 1),
        spectra() * 0.0,
        spectra() * np.nan,
        spectra().iloc[:, :0],
        pd.DataFrame(np.ones((7, 24)), pd.Index(STEPS), pd.RangeIndex(1, 25)),
        pd.concat([spectra([1, 2]), spectra([2, 5])]),
    ],
    ids=["one snapshot", "one value", "one of one", "zero", "nan", "no values", "all equal", "a step twice"],
)
def test_degenerate_spectra_are_drawn(values: pd.DataFrame) -> None:
    for figure in all_figures(table(), values, losses()):
        json.loads(figure.to_json())
        assert figure.data or figure.layout.annotations


@pytest.mark.parametrize(
    "measurements",
    [table(steps=[0]), table(steps=[3], nan_at=3), table(names=["only"]), table(steps=[0, 1], nan_at=1)],
    ids=["one snapshot at 0", "all nan", "one matrix", "ends in nan"],
)
def test_degenerate_measurements_are_drawn(measurements: pd.DataFrame) -> None:
    for figure in all_figures(measurements, spectra(), losses(1)):
        json.loads(figure.to_json())
        assert figure.data or figure.layout.annotations


def test_drawing_changes_no_table() -> None:
    tables = table(nan_at=5), spectra(), losses()
    before = [frame.copy(deep=True) for frame in tables]
    all_figures(*tables)
    for frame, copy in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(frame, copy)


def test_markup_and_templates_in_names_are_text() -> None:
    name = '<a href="javascript:x">%{x}</a>'
    for figure in (
        rank_evolution(table([name])),
        rank_heatmap(table([name])),
        spectrum_evolution(spectra(), name),
        spectrum_density(spectra(), name=name),
        explained_ratio_curve(spectra(), name=name),
        loss_curve(losses().assign(name=name)),
    ):
        shown = json.dumps(json.loads(figure.to_json()))
        assert "&lt;a" in shown
        assert "<a" not in shown
        assert "%{x}&lt;" not in shown


def test_many_matrices_and_steps_stay_small_and_keep_the_largest_cell() -> None:
    names = [f"h.{i}.weight" for i in range(300)]
    steps = np.arange(1000)
    codes = np.tile(np.arange(300), 1000)
    rank = (np.repeat(steps, 300) % 7 + 1).astype(float)
    rank[123_456] = 99.0
    measurements = pd.DataFrame({"step": np.repeat(steps, 300), "intrinsic_rank": rank, "null_rank": 50})
    measurements["matrix"] = pd.Categorical.from_codes(codes, names)
    heat = rank_heatmap(measurements, relative_to_null=True)
    assert (heat.data[0].x[0], heat.data[0].x[-1]) == ("0", "999")
    assert np.nanmax(heat.data[0].z) == pytest.approx(99 / 50)
    assert size(heat) < 5 * MEBIBYTE
    lines = rank_evolution(measurements, groups=families(names))
    assert max(np.max(trace.y) for trace in lines.data if trace.customdata is not None) == 99
    assert size(lines) < 5 * MEBIBYTE


@pytest.mark.parametrize("gaps", [False, True])
def test_thinning_keeps_first_last_and_extremes(gaps: bool) -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(5000).cumsum()
    if gaps:
        values[1000:1010] = np.nan
    kept = thin(values, 200)
    assert len(kept) <= 200
    assert {0, 4999, int(np.nanargmax(values)), int(np.nanargmin(values))} <= set(kept.tolist())
    assert np.isnan(values[kept]).any() == gaps
    assert (np.diff(kept) > 0).all()


def test_thinning_by_ratio_keeps_every_early_point() -> None:
    kept = thin(np.random.default_rng(0).standard_normal(5000), 200, by_ratio=True)
    assert len(kept) <= 200
    assert set(range(10)) <= set(kept.tolist())
    assert {0, 4999} <= set(kept.tolist())


@pytest.mark.parametrize("log_steps", [False, True])
def test_a_spectrum_of_a_thousand_snapshots_is_thinned_and_says_so(log_steps: bool) -> None:
    steps = np.arange(1, 1001) * 10
    values = -np.sort(-np.random.default_rng(0).random((1000, 256)), axis=1)
    many = spectrum_evolution(pd.DataFrame(values, index=steps, columns=range(1, 257)), log_steps=log_steps)
    few = spectrum_evolution(pd.DataFrame(values[:50], index=steps[:50], columns=range(1, 257)), log_steps=log_steps)
    assert "thinned" in many.layout.xaxis.title.text
    assert few.layout.xaxis.title.text == "step"
    assert size(many) < MEBIBYTE / 4
    first = next(trace for trace in many.data if trace.name == "σ1")
    assert (first.x[0], first.x[-1]) == (10, 10_000)
    assert (max(first.y), min(first.y)) == (values[:, 0].max(), values[:, 0].min())


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 100, 768, 10_000])
def test_spacings_keep_both_ends_within_the_limit(count: int) -> None:
    for spacing in (spread, geometric):
        places = spacing(count, 64)
        assert len(places) == min(count, len(places)) <= 64
        assert (places[0], places[-1]) == (0, count - 1)
        assert (np.diff(places) > 0).all()


def test_kernel_density_keeps_mass_and_place() -> None:
    points, weights = np.array([0.0, 0.2, 3.0]), np.array([0.5, 0.3, 0.2])
    grid = np.linspace(-5, 8, 4001)
    width = bandwidth(points, weights)
    plain, reflected = density(grid, points, weights, width), density(grid, points, weights, width, floor=0.0)
    assert np.trapezoid(plain, grid) == pytest.approx(1.0, abs=1e-6)
    # One grid cell at the jump is what the trapezoids miss.
    assert np.trapezoid(reflected, grid) == pytest.approx(1.0, abs=0.02)
    assert (reflected[grid < 0] == 0).all()
    assert bandwidth(np.ones(5), np.full(5, 0.2)) > 0


def test_short_names_are_distinct_and_representatives_span_families_and_depth() -> None:
    names = [f"model.decoder.layers.{i}.{part}.weight" for i in range(40) for part in ("self_attn.q_proj", "mlp.up")]
    labels = short_names(names, 20)
    assert len(set(labels.values())) == len(names)
    assert max(map(len, labels.values())) <= 20
    assert short_names([*names, "x"], 6).keys() == {*names, "x"}
    chosen = representative(names, 10, keep=[names[7]])
    assert names[7] in chosen
    assert len(chosen) == 10
    assert chosen == [name for name in names if name in chosen]
    assert set(families(chosen).values()) == set(families(names).values())
    assert {names[0], names[-1]} <= set(representative(names, 10))


def test_captions_are_two_lines_for_each_figure() -> None:
    drawn = [depth_map, rank_evolution, rank_heatmap, explained_ratio_evolution, spectrum_evolution, spectrum_density]
    drawn += [spectrum_with_ranks, loss_against_rank]
    assert set(CAPTIONS) == {function.__name__ for function in [*drawn, explained_ratio_curve, loss_curve]}
    assert all(caption.look and caption.conclude for caption in CAPTIONS.values())


def test_figures_import_neither_torch_nor_streamlit() -> None:
    code = (
        "import sys, types; package = types.ModuleType('inrank_monitor'); "
        f"package.__path__ = [{str(next(iter(__import__('inrank_monitor').__path__)))!r}]; "
        "sys.modules['inrank_monitor'] = package; import inrank_monitor.figures; "
        "print(sorted({'torch', 'streamlit', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
