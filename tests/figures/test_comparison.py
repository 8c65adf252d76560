"""Runs beside each other: smoothing, mean and spread, axes, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from inrank_monitor.figures import loss_comparison, run_comparison
from inrank_monitor.figures.curves import Curve, mean_and_spread, smooth
from inrank_monitor.runs import align
from inrank_monitor.runs.timeline import Timeline

RNG = np.random.default_rng(14)


def as_tensorboard_does(values: Sequence[float], weight: float) -> list[float]:
    """Its loop, in float64."""
    last, count, found = 0.0, 0, []
    for value in values:
        if not np.isfinite(value):
            found.append(float("nan"))
            continue
        last = last * weight + (1 - weight) * value
        count += 1
        found.append(last / (1 - weight**count))
    return found


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("size", [1, 2, 500])
def test_smoothing_is_that_of_tensorboard(weight: float, size: int) -> None:
    values = RNG.normal(3, 1, size)
    np.testing.assert_allclose(smooth(values, weight), as_tensorboard_does(values, weight), rtol=1e-9)


def test_smoothing_passes_over_what_is_not_finite_and_keeps_its_place() -> None:
    values = RNG.normal(size=40)
    values[[0, 7, 8, 39]] = [np.nan, np.inf, -np.inf, np.nan]
    np.testing.assert_allclose(smooth(values, 0.9), as_tensorboard_does(values, 0.9))
    assert np.isnan(smooth(np.full(3, np.nan), 0.5)).all()
    np.testing.assert_allclose(smooth(np.full(9, 2.5), 0.9), 2.5)
    assert not len(smooth(np.array([]), 0.9))


@pytest.mark.parametrize("weight", [-0.1, 1.0, 2.0])
def test_a_weight_out_of_range_is_named(weight: float) -> None:
    with pytest.raises(ValueError, match="smoothing must be"):
        smooth(np.ones(3), weight)


def test_mean_and_spread_of_curves_with_the_same_points_are_numpys() -> None:
    values = RNG.normal(size=(4, 30))
    found = mean_and_spread([Curve(np.arange(30.0), row) for row in values])
    np.testing.assert_allclose(found.mean.y, values.mean(axis=0))
    np.testing.assert_allclose(found.deviation, values.std(axis=0, ddof=1))
    assert found.count == 4


@pytest.mark.parametrize("held", [False, True])
def test_curves_of_other_points_are_taken_at_the_points_of_all_where_all_are_known(held: bool) -> None:
    xs = [np.sort(RNG.choice(np.arange(100.0), 20, replace=False)) for _ in range(3)]
    curves = [Curve(x, RNG.normal(size=20), held) for x in xs]
    found = mean_and_spread(curves)
    begin, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    expected_x = [x for x in np.unique(np.concatenate(xs)) if begin <= x <= end]
    np.testing.assert_array_equal(found.mean.x, expected_x)

    def at(curve: Curve, x: float) -> float:
        if held:
            return float(curve.y[np.flatnonzero(curve.x <= x)[-1]])
        return float(np.interp(x, curve.x, curve.y))

    values = np.array([[at(curve, x) for x in expected_x] for curve in curves])
    np.testing.assert_allclose(found.mean.y, values.mean(axis=0))
    np.testing.assert_allclose(found.deviation, values.std(axis=0, ddof=1))


def test_where_one_run_is_not_finite_there_is_no_mean_of_the_rest() -> None:
    broken = Curve(np.array([0.0, 2.0, 4.0, 6.0]), np.array([1.0, 1.0, np.nan, np.nan]))
    found = mean_and_spread([Curve(np.arange(7.0), np.arange(7.0)), broken])
    np.testing.assert_allclose(found.mean.y[:3], [0.5, 1.0, 1.5])
    assert np.isnan(found.mean.y[3:]).all()


def test_runs_that_share_no_stretch_have_no_mean_and_a_curve_alone_is_itself() -> None:
    one, other = Curve(np.array([0.0, 1.0]), np.ones(2)), Curve(np.array([5.0, 6.0]), np.ones(2))
    assert not len(mean_and_spread([one, other]).mean.x)
    assert not len(mean_and_spread([one, Curve(np.array([]), np.array([]))]).mean.x)
    twice = Curve(np.array([0.0, 1.0, 1.0]), np.array([3.0, 4.0, 5.0]))
    assert mean_and_spread([twice]).mean is twice
    np.testing.assert_allclose(twice.at(np.array([-1, 0, 0.5, 1, 2.0])), [np.nan, 3, 3.5, 5, np.nan])


def measured(ranks: Sequence[Sequence[int]], steps: Sequence[int] = (0, 10, 20, 30)) -> pd.DataFrame:
    """Intrinsic ranks of matrices m0, m1, ... at steps."""
    rows = [
        {"step": step, "matrix": f"m{place}", "intrinsic_rank": each[at], "null_rank": 12, "stable_rank": 1.5}
        for at, step in enumerate(steps)
        for place, each in enumerate(ranks)
    ]
    return pd.DataFrame(rows)


def logged(values: Sequence[float], name: str = "loss") -> pd.DataFrame:
    """A value at steps 1, 2, ..."""
    return pd.DataFrame({"step": np.arange(1, len(values) + 1), "name": name, "value": values})


def lines(figure: go.Figure) -> dict[str, Any]:
    """Traces by their name."""
    return {trace.name: trace for trace in figure.data}


def test_a_group_is_drawn_as_its_mean_within_a_band_and_a_run_alone_as_its_line() -> None:
    values = RNG.uniform(1, 5, (3, 50))
    runs = {name: logged(row) for name, row in zip("abc", values, strict=True)}
    figure = loss_comparison(runs, groups={"wide": ["a", "b"], "narrow": ["c"]})
    found = lines(figure)
    mean, deviation = values[:2].mean(axis=0), values[:2].std(axis=0, ddof=1)
    np.testing.assert_allclose(found["wide (2 runs)"].y, mean)
    np.testing.assert_allclose(found["wide (2 runs)"].customdata, deviation)
    np.testing.assert_allclose(found["narrow"].y, values[2])
    band = found["wide, ± standard deviation"]
    np.testing.assert_allclose(band.y, np.concatenate([mean + deviation, (mean - deviation)[::-1]]))
    np.testing.assert_allclose(band.x, np.concatenate([np.arange(1, 51), np.arange(50, 0, -1)]))
    assert band.fill == "toself"
    assert {"a", "b"}.isdisjoint(found)
    colours = [found[name].line.color for name in ("wide (2 runs)", "narrow")]
    assert len(set(colours)) == 2
    single = loss_comparison(runs)
    assert list(lines(single)) == ["a", "b", "c"]
    assert len({trace.line.color for trace in single.data}) == 3


def test_the_band_has_a_gap_where_there_is_no_mean() -> None:
    values = np.array([[1.0, 2, np.nan, 4, 5], [1.0, 3, 3, 3, 3]])
    runs = {name: logged(row) for name, row in zip("ab", values, strict=True)}
    band = lines(loss_comparison(runs, groups={"g": ["a", "b"]}))["g, ± standard deviation"]
    assert np.isnan(band.y).sum() == 1
    np.testing.assert_array_equal(np.asarray(band.x)[~np.isnan(band.y)], [1, 2, 2, 1, 4, 5, 5, 4])


def test_ranks_are_a_staircase_and_so_is_their_band() -> None:
    runs = {"a": measured([[1, 2, 3, 4]]), "b": measured([[3, 4, 5, 8]])}
    found = lines(run_comparison(runs, groups={"g": ["a", "b"]}))
    assert found["g (2 runs)"].line.shape == "hv"
    np.testing.assert_allclose(found["g (2 runs)"].y, [2, 3, 4, 6])
    upper = np.asarray(found["g, ± standard deviation"].y)[:7]
    np.testing.assert_allclose(upper, np.array([2, 2, 3, 3, 4, 4, 6]) + np.sqrt([2, 2, 2, 2, 2, 2, 8]))
    np.testing.assert_allclose(found["g, ± standard deviation"].x[:7], [0, 10, 10, 20, 20, 30, 30])


def test_smoothed_lines_have_what_was_logged_lightly_behind() -> None:
    values = RNG.uniform(1, 5, (2, 60))
    runs = {name: logged(row) for name, row in zip("ab", values, strict=True)}
    found = lines(loss_comparison(runs, smoothing=0.9))
    for name, row in zip("ab", values, strict=True):
        np.testing.assert_allclose(found[name].y, smooth(row, 0.9))
        np.testing.assert_allclose(found[f"{name}, as logged"].y, row)
        assert "0.3" in found[f"{name}, as logged"].line.color
    group = lines(loss_comparison(runs, smoothing=0.9, groups={"g": ["a", "b"]}))
    np.testing.assert_allclose(group["g (2 runs)"].y, np.mean([smooth(row, 0.9) for row in values], axis=0))
    np.testing.assert_allclose(group["g, as logged"].y, values.mean(axis=0))
    order = list(group)
    assert order.index("g, as logged") < order.index("g (2 runs)")
    assert not [name for name in lines(loss_comparison(runs)) if "logged" in name]


def test_logarithmic_axes_leave_out_what_is_not_above_zero() -> None:
    runs = {"a": measured([[0, 2, 3, 4]]), "b": measured([[0, 4, 5, 8]])}
    figure = run_comparison(runs, log_x=True, log_y=True)
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    np.testing.assert_array_equal(lines(figure)["a"].x, [10, 20, 30])
    assert figure.layout.shapes[0].y0 == 12
    np.testing.assert_allclose(figure.layout.annotations[0].y, np.log10(12))  # a note lies at the exponent
    figure = run_comparison(runs, log_y=True, groups={"g": ["a", "b"]})
    band = np.asarray(lines(figure)["g, ± standard deviation"].y)
    assert (band[~np.isnan(band)] > 0).all()
    assert np.isnan(lines(figure)["g (2 runs)"].y[0])
    plain = run_comparison(runs)
    assert (plain.layout.xaxis.type, plain.layout.yaxis.type) == (None, None)


def test_runs_are_laid_where_their_timelines_say() -> None:
    clocks = {"a": 2.0, "b": 3.0}
    known = {
        name: Timeline(30, True, None, (np.array([0.0, 30.0]), np.array([0.0, 30 * pace])), None)
        for name, pace in clocks.items()
    }
    runs = {"a": measured([[1, 2, 3, 4]]), "b": measured([[3, 4, 5, 8]])}
    figure = run_comparison(runs, align=align(known, "time"))
    for name, pace in clocks.items():
        np.testing.assert_allclose(lines(figure)[name].x, np.array([0, 10, 20, 30]) * pace)
    assert "wall-clock" in figure.layout.xaxis.title.text
    assert (
        "wall-clock"
        in loss_comparison({"a": logged([1, 2]), "b": logged([3])}, align=align(known, "time")).layout.xaxis.title.text
    )


def test_a_mean_over_some_matrices_is_over_these() -> None:
    runs = {"a": measured([[1, 2, 3, 4], [5, 5, 5, 5], [9, 9, 9, 9]])}
    np.testing.assert_allclose(run_comparison(runs, matrix=["m0", "m1"]).data[0].y, [3, 3.5, 4, 4.5])
    np.testing.assert_allclose(run_comparison(runs).data[0].y, [5, 16 / 3, 17 / 3, 6])


def test_a_run_that_logged_nothing_takes_no_colour_from_the_others() -> None:
    whole = lines(loss_comparison({"a": logged([1, 2]), "b": logged([2, 3]), "c": logged([3, 4])}))
    figure = loss_comparison({"a": logged([1, 2]), "b": logged([], "other"), "c": logged([3, 4])})
    assert lines(figure)["c"].line.color == whole["c"].line.color
    assert "b" not in lines(figure)


def test_null_ranks_close_to_each_other_share_a_note_and_have_a_line_each() -> None:
    nulls = {"a": 50, "b": 48, "c": 20}
    figure = run_comparison({name: measured([[1, 2, 3, 4]]).assign(null_rank=null) for name, null in nulls.items()})
    assert [shape.y0 for shape in figure.layout.shapes] == [20, 48, 50]
    assert [note.text for note in figure.layout.annotations] == ["null rank 20", "null rank 48, 50"]
