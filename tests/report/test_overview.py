"""The overview's table: trends of known lines, and outliers that were planted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inrank_monitor.report.overview import standing_out, trends, unusual

NO_EVENTS = pd.DataFrame({"kind": [], "matrix": [], "step": []})


def table(ranks: list[float], kind: str = "q") -> pd.DataFrame:
    columns = {name: [1.0] * len(ranks) for name in ("relative_norm", "stable_rank", "signal_rank")}
    return pd.DataFrame(
        {"intrinsic_rank": ranks, **columns, "kind": kind, "verdict": "structured"},
        [f"h.{place}.q" for place in range(len(ranks))],
    )


def test_a_trend_is_what_a_line_rises_by_over_the_later_half() -> None:
    steps = np.arange(0, 110, 10)
    rising, flat = 3 + steps / 10.0, np.where(steps < 50, 40.0, 7.0)
    gaps = np.where(steps == 80, np.nan, rising)
    np.testing.assert_allclose(trends(steps, np.stack([rising, flat, gaps])), [5, 0, 5], atol=1e-12)


def test_below_four_points_there_is_no_trend() -> None:
    assert np.isnan(trends(np.array([0, 50, 100]), np.array([[1.0, 2.0, 3.0]]))).all()
    assert np.isnan(trends(np.array([], dtype=int), np.empty((2, 0)))).all()


def test_a_rank_far_from_its_kind_is_unusual_and_says_why() -> None:
    found = unusual(table([10, 11, 9, 10, 12, 40, 10, 11]), NO_EVENTS)
    assert found[5] == "rank 3.8 × the median of its kind"
    assert not any(found[:5] + found[6:])


def test_ranks_that_differ_everywhere_are_not_unusual() -> None:
    assert not any(unusual(table([4, 7, 12, 20, 33, 54, 90, 150]), NO_EVENTS))


def test_what_is_not_finite_and_what_had_an_alarm_is_unusual() -> None:
    here = table([10.0] * 6)
    here.loc["h.2.q", ["verdict", "intrinsic_rank"]] = ["not finite", np.nan]
    events = pd.DataFrame({"kind": ["spike", "resumed"], "matrix": ["h.4.q", "h.1.q"], "step": [30, 40]})
    assert unusual(here, events) == ["", "", "not finite", "", "spike at step 30", ""]


def test_where_most_are_not_finite_that_is_not_unusual() -> None:
    assert not any(unusual(table([10.0] * 6).assign(verdict="not finite"), NO_EVENTS))


def test_where_more_than_a_third_stand_out_none_is_ringed() -> None:
    table = pd.DataFrame({"unusual": ["", "", "far", "", ""]}, ["a", "b", "c", "d", "e"])
    assert standing_out(table) == ["c"]
    assert standing_out(table.assign(unusual=["far", "far", "", "", ""])) == []
