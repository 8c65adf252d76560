"""b where none is given: 100 for matrices of 768 rows and more, an eighth of the short side below, at least 4."""

from __future__ import annotations

import numpy as np
import pytest

from inrank_monitor.ranks import (
    RankRule,
    buffer_rank_text,
    default_buffer_rank,
    explained_ratio_curve,
    intrinsic_rank,
    next_rank,
    null_rank,
    too_large_text,
)


@pytest.mark.parametrize(
    ("short", "expected"),
    [(1, 4), (4, 4), (16, 4), (32, 4), (39, 4), (40, 5), (64, 8), (256, 32), (767, 95), (768, 100), (4096, 100)],
)
def test_the_default_fits_the_short_side_whichever_it_is(short: int, expected: int) -> None:
    assert default_buffer_rank(short, 5000) == default_buffer_rank(5000, short) == expected
    assert RankRule().buffer_rank_of(short, 5000) == expected


def test_a_number_given_is_obeyed_for_every_shape() -> None:
    assert [RankRule(buffer_rank=9).buffer_rank_of(side, side) for side in (2, 64, 4096)] == [9, 9, 9]


def test_functions_of_a_spectrum_take_what_fits_it() -> None:
    values = np.geomspace(10, 0.1, 80)
    assert intrinsic_rank(values) == intrinsic_rank(values, buffer_rank=10) != intrinsic_rank(values, buffer_rank=100)
    np.testing.assert_array_equal(explained_ratio_curve(values), explained_ratio_curve(values, 10))
    padded = explained_ratio_curve(values, size=400)  # zeros beyond belong to it: the short side is 400
    np.testing.assert_array_equal(padded, explained_ratio_curve(values, 50, size=400))
    assert next_rank(values, 2) == next_rank(values, 2, buffer_rank=10)
    assert null_rank(64, 80) == null_rank(64, 80, buffer_rank=8) < null_rank(64, 80, buffer_rank=100)
    assert null_rank(96, 80, kind="factors") == null_rank(96, 80, buffer_rank=10, kind="factors")


def test_the_words_say_one_b_or_the_span_of_several() -> None:
    assert buffer_rank_text([8, 8]) == "b = 8"
    assert buffer_rank_text([100, 4, 8]) == "b = 4 to 100, which fits each matrix"


def test_a_b_that_reaches_the_short_side_is_hinted_at_with_the_smallest_matrix() -> None:
    shapes = [("wide", 64, 500), ("head", 10, 64), ("small", 8, 9)]
    assert too_large_text(7, shapes) is None
    assert "buffer_rank=8 is not below the short side of 1 of 3 matrices (small is 8×9)" in (
        too_large_text(8, shapes) or ""
    )
    assert "2 of 3 matrices (small is 8×9)" in (too_large_text(10, shapes) or "")
