from __future__ import annotations

import numpy as np
import pytest
from helpers import oracles
from numpy.testing import assert_allclose

from inrank_monitor.ranks.metrics import DEFINITIONS
from inrank_monitor.ranks.null_model import null_rank, null_singular_values

GPT2_SHAPES = [(768, 768), (768, 2304), (768, 3072), (1024, 4096), (1280, 5120)]


# A Marchenko–Pastur quantile is the mean of a drawn value only up to a share of the spacing, and that is wide in small
# matrices; the mean of 200 draws itself is good to about 0.003.
@pytest.mark.parametrize(
    ("rows", "cols", "tolerance"),
    [(1, 1, 0.1), (1, 50, 0.03), (50, 1, 0.03), (2, 2, 0.05), (5, 9, 0.04), (60, 60, 0.01), (200, 40, 0.01)],
)
def test_null_values_are_the_means_of_drawn_ones(rows: int, cols: int, tolerance: float) -> None:
    generator = np.random.default_rng(0)
    drawn = np.mean([oracles.singular_values(generator.standard_normal((rows, cols))) for _ in range(200)], axis=0)
    values = null_singular_values(rows, cols)
    assert_allclose(values, drawn, atol=tolerance * drawn[0])
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("shape", [(30, 30), (64, 256), (768, 3072), (4096, 4096)])
def test_null_values_have_the_energy_of_their_entries(shape: tuple[int, int]) -> None:
    """E ‖A‖_F² = rows · cols; the trapezoid of the quantiles misses a little at the edges."""
    assert_allclose((null_singular_values(*shape) ** 2).sum(), shape[0] * shape[1], rtol=2e-3)


def test_null_values_know_no_transposition_and_cannot_be_changed() -> None:
    values = null_singular_values(20, 70)
    assert_allclose(values, null_singular_values(70, 20))
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 0


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("shape", [(60, 60), (40, 200), (70, 50)])
def test_gaussian_null_rank_is_that_of_drawn_matrices(shape: tuple[int, int], definition: str) -> None:
    for buffer_rank in (5, 32):
        for threshold in (0.8, 0.9):
            drawn = oracles.null_rank_of_draws(*shape, threshold, buffer_rank, definition, draws=8)
            # the rank of one draw is scattered by one or two
            assert abs(null_rank(*shape, threshold, buffer_rank, definition) - drawn) <= 1.5


@pytest.mark.parametrize(("buffer_rank", "least", "most"), [(10, 16, 19), (32, 48, 52), (100, 156, 179)])
def test_the_buffer_rank_sets_the_null_rank_at_gpt2_shapes(buffer_rank: int, least: int, most: int) -> None:
    assert all(least <= null_rank(*shape, 0.9, buffer_rank) <= most for shape in GPT2_SHAPES)


@pytest.mark.parametrize("buffer_rank", [10, 32, 100])
def test_the_null_rank_is_about_eight_fifths_of_b_for_matrices_much_larger_than_b(buffer_rank: int) -> None:
    for multiple in (8, 12, 20, 40):
        for aspect in (1, 2, 4):
            rank = null_rank(multiple * buffer_rank, aspect * multiple * buffer_rank, 0.9, buffer_rank)
            assert 1.52 * buffer_rank <= rank <= 1.72 * buffer_rank


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("shape", [(64, 64), (160, 64)])
def test_factors_null_rank_is_where_the_rule_mostly_ends_on_drawn_factors(
    shape: tuple[int, int], definition: str
) -> None:
    """The median, since now and then a draw makes the rule grow once more, by nearly b."""
    for buffer_rank, threshold in ((6, 0.8), (6, 0.9), (24, 0.8)):
        drawn = [oracles.rank_grown_on_noise(*shape, threshold, buffer_rank, definition, seed) for seed in range(3)]
        assert abs(null_rank(*shape, threshold, buffer_rank, definition, "factors") - np.median(drawn)) <= 2


@pytest.mark.parametrize(
    ("shape", "threshold", "expected"),
    [
        (shape, threshold, rank)
        for shape, ranks in {
            (768, 3072): (152, 192, 254),
            (1024, 4096): (168, 213, 286),
            (1280, 5120): (179, 230, 312),
        }.items()
        for threshold, rank in zip((0.8, 0.85, 0.9), ranks, strict=True)
    ],
)
def test_the_published_code_ends_at_table_3_on_random_factors(
    shape: tuple[int, int], threshold: float, expected: int
) -> None:
    """Zhao et al. 2023, Table 3 (GPT-2 small, medium, large), to within the scatter of a draw: no data, no training."""
    assert abs(null_rank(*shape, threshold, 100, "reference", "factors") - expected) <= 2


def test_factors_smaller_than_the_buffer_have_a_null_rank() -> None:
    for shape in ((1, 1), (1, 9), (4, 4), (12, 30)):
        for definition in DEFINITIONS:
            assert 1 <= null_rank(*shape, 0.9, 100, definition, "factors") <= min(shape)


def test_leading_values_clip_the_null_as_they_clip_the_update() -> None:
    values = null_singular_values(300, 500)[:64]
    assert null_rank(300, 500, 0.9, 32, leading=64) == oracles.intrinsic_rank(values, 0.9, 32, "paper")
    assert null_rank(300, 500, 0.9, 32, leading=1000) == null_rank(300, 500, 0.9, 32)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="rows and cols must be at least 1, got 0×4"):
        null_singular_values(0, 4)
    for kind in ("gaussian", "factors"):
        with pytest.raises(ValueError, match="rows and cols must be at least 1, got 3×0"):
            null_rank(3, 0, kind=kind)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must be in"):
        null_rank(3, 4, threshold=2.0)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        null_rank(3, 4, kind="uniform")  # type: ignore[arg-type]
