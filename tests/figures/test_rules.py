"""The ranks of all rules lie on the curve that they are marked on, and on nothing that was not measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from inrank_monitor.figures import category, loss_against_rank, rank_evolution, spectrum_with_ranks
from inrank_monitor.figures.event_marks import _KINDS
from inrank_monitor.figures.style import INK, STRENGTH, _luminance

VALUES = np.geomspace(8.0, 0.01, 40)
RANKS = {"paper": 3.0, "stable": 2.5, "signal": 0.0, "energy": np.nan, "by loss": 40.0}


def marks(figure: object) -> dict[str, tuple[float | None, float | None]]:
    """Rule -> where it is marked."""
    return {t.name.split(":")[0]: (t.x[0], t.y[0]) for t in figure.data if t.mode == "markers" and ":" in t.name}  # type: ignore[attr-defined]


def test_each_rule_is_marked_at_its_rank_on_the_spectrum() -> None:
    found = marks(spectrum_with_ranks(VALUES, RANKS))
    assert found["paper"] == (3.0, pytest.approx(VALUES[2]))
    assert found["stable"] == (2.5, pytest.approx((VALUES[1] + VALUES[2]) / 2))
    assert found["by loss"] == (40.0, pytest.approx(VALUES[-1]))
    assert found["signal"] == found["energy"] == (None, None)


def test_noise_is_drawn_with_the_strength_of_the_update_and_its_edge_where_it_is_known() -> None:
    figure = spectrum_with_ranks(VALUES, RANKS, edge=0.5, null=np.linspace(2.0, 0.1, 40))
    lines = {trace.name: trace for trace in figure.data}
    assert np.square(lines["noise of the same shape"].y).sum() == pytest.approx(np.square(VALUES).sum())
    assert list(lines["edge of noise"].y) == [0.5, 0.5]
    assert "edge of noise" not in {t.name for t in spectrum_with_ranks(VALUES, RANKS, edge=np.nan).data}


@pytest.mark.parametrize("values", [np.zeros(4), np.full(4, np.nan), np.array([])])
def test_without_an_update_there_is_a_reason_in_place_of_a_spectrum(values: np.ndarray) -> None:
    assert "no update to draw" in spectrum_with_ranks(values, RANKS).layout.annotations[0].text


def curve(uniform: list[int | None], losses: list[float]) -> pd.DataFrame:
    ranks = [5.0 if rank is None else float(rank) for rank in uniform]
    return pd.DataFrame({"mean_rank": ranks, "uniform_rank": pd.array(uniform, dtype="Int32"), "loss": losses})


def test_the_loss_is_drawn_where_it_was_evaluated_and_rules_only_between() -> None:
    figure = loss_against_rank(
        curve([64, 0, 8, 16, None, 32], [1.0, 4.0, 1.2, 1.1, 1.01, 1.005]), RANKS | {"energy": 12.0}, tolerance=0.01
    )
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["one rank for all"].x) == [8, 16, 32, 64]
    assert list(lines["one rank for all"].y) == [1.2, 1.1, 1.005, 1.0]
    assert list(lines["ranks of their own, at their mean"].y) == [1.01]
    assert list(lines["the loss as it is + 0.01"].y) == [1.01, 1.01]
    found = marks(figure)
    assert found["energy"] == (12.0, pytest.approx(1.15))
    assert found["paper"] == found["stable"] == (None, None)
    assert "paper: 3" in lines


def test_a_result_without_its_evaluations_says_so() -> None:
    assert "no evaluation" in loss_against_rank(curve([], []), RANKS).layout.annotations[0].text


def test_no_colour_comes_twice_and_text_is_seen_on_white() -> None:
    colours = [category(place) for place in range(60)] + [look[2] for look in _KINDS.values()] + [INK, STRENGTH]
    assert len({colour.lower() for colour in colours}) == len(colours)
    for colour in colours[6:60]:
        light = luminance(colour)
        assert 1.05 / (light + 0.05) >= 3
        assert (light + 0.05) / (luminance("#0f1419") + 0.05) >= 3
    assert 1.05 / (luminance(INK) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return _luminance((red, green, blue))


def test_of_many_lines_the_nearest_is_told_with_its_place_and_of_few_all_are() -> None:
    ranks = {f"h.{place}.weight": [place, 30 - place] for place in range(12)}
    rows = [
        {"step": step, "matrix": name, "intrinsic_rank": rank, "null_rank": 40}
        for name, each in ranks.items()
        for step, rank in zip((1, 2), each, strict=True)
    ]
    table = pd.DataFrame(rows)
    many = {t.meta[0]: t for t in rank_evolution(table).data if t.meta and t.meta[0] in ranks}
    assert list(many["h.11.weight"].text) == ["1", "12"]
    assert list(many["h.9.weight"].text) == ["3", "10"]
    assert "place %{text} of 12" in many["h.9.weight"].hovertemplate
    few = rank_evolution(table, matrices=list(ranks)[:4])
    assert few.layout.hovermode == "x unified"
    assert all(trace.text is None for trace in few.data)


def test_a_legend_says_what_faint_lines_are_and_repeats_no_colour() -> None:
    names = [f"h.{block}.{kind}" for block in range(3) for kind in "abcdefgh"]
    table = pd.DataFrame({"step": 1, "matrix": names, "intrinsic_rank": 3, "null_rank": range(30, 54)})
    figure = rank_evolution(table, groups={name: name[-1] for name in names})
    assert figure.layout.legend.title.text == "fainter: earlier in the model"
    entries = [trace.line.color for trace in figure.data if trace.showlegend is not False]
    assert len(entries) == len(set(entries)) == 9
    alone = rank_evolution(table[:8], groups={name: name[-1] for name in names})
    assert alone.layout.legend.title.text is None
