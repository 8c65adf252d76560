"""The peak rank: the highest after step 10, and where; whatever else was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from inrank_monitor.runs import peak_ranks, peaks, running_ranks


def measured(steps: list[int], ranks: list[int | None], name: str = "a") -> pd.DataFrame:
    stable = np.where(pd.isna(np.array(ranks, dtype=object)), np.nan, 1.5)
    table = {"step": steps, "matrix": name, "intrinsic_rank": pd.array(ranks, dtype="Int32"), "stable_rank": stable}
    return pd.DataFrame({**table, "spectral_norm": stable, "running_rank": pd.array(ranks, dtype="Int32")})


@pytest.mark.parametrize(
    ("steps", "ranks", "peak", "where"),
    [
        ([0, 1, 500], [0, 90, 3], 3, 500),  # the first step's signs do not count
        ([1, 10, 11, 500], [90, 80, 7, 3], 7, 11),
        ([20, 30, 40], [4, 9, 9], 9, 30),  # the first of several
        ([1, 11, 12], [9, None, 2], 2, 12),
    ],
)
def test_steps_after_the_tenth_count(steps: list[int], ranks: list[int | None], peak: int, where: int) -> None:
    row = peaks(measured(steps, ranks)).loc["a"]
    assert (row["peak_rank"], row["peak_step"]) == (peak, where)
    assert peak_ranks(measured(steps, ranks))["a"] == peak


@pytest.mark.parametrize(("steps", "ranks"), [([1, 2, 3], [9, 4, 4]), ([1, 500], [8, None]), ([10], [3])])
def test_there_is_none_where_nothing_later_was_measured(steps: list[int], ranks: list[int | None]) -> None:
    assert peaks(measured(steps, ranks)).loc["a"].isna().all()


def test_what_else_was_measured_changes_nothing() -> None:
    """The peak of a long run is that of its measured steps, whether they reach to step 100 or to 100,000."""
    steps, ranks = [3, 11, 60], [30, 12, 8]
    for last in (100, 1000, 100_000):
        row = peaks(measured([*steps, last], [*ranks, 2])).loc["a"]
        assert (row["peak_rank"], row["peak_step"]) == (12, 11)


def test_matrices_have_their_own_and_unmeasured_ones_have_no_row() -> None:
    table = pd.concat([measured([11, 20], [5, 3], "a"), measured([11, 20], [None, None], "b"), measured([2], [1], "c")])
    assert list(peaks(table).index) == ["a", "c"]
    assert peaks(table)["peak_rank"].tolist() == [5, pd.NA]


def test_a_rank_beyond_a_cut_spectrum_leaves_the_peak_open() -> None:
    table = measured([11, 20, 30], [5, None, 3])
    table.loc[1, ["stable_rank", "spectral_norm"]] = 2.0  # finite: the rank is only not known
    assert peaks(table).loc["a"].isna().all()
    table["matrix"] = pd.Categorical(table["matrix"])
    assert running_ranks(table[:1]).tolist() == [5]
    assert running_ranks(table)[0] > 10**6  # and stays unknown where the run is taken up


def test_a_run_that_measured_nothing_has_no_peaks() -> None:
    assert peaks(measured([], [])).empty
