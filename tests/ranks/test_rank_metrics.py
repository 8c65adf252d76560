from __future__ import annotations

import numpy as np
import pytest
from helpers import oracles
from numpy.testing import assert_allclose, assert_array_equal

from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.metrics import (
    DEFINITIONS,
    FLOAT32_EPSILON,
    effective_rank,
    energy_rank,
    explained_ratio,
    explained_ratio_curve,
    frobenius_norm,
    intrinsic_rank,
    is_finite,
    numerical_rank,
    running_rank,
    stable_rank,
)

pytestmark = pytest.mark.numeric

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 40), (30, 30), (64, 17), (50, 60)]
BUFFER_RANKS = [1, 7, 500]
THRESHOLDS = [0.3, 0.9]
# Running sums against np.var on each window: rounding grows with the length of the window.
ROUNDING = 1e-9


def spectra(length: int) -> dict[str, np.ndarray]:
    """Spectra of every character, descending."""
    generator = np.random.default_rng(length)
    index = np.arange(1, length + 1.0)
    return {
        "fast": 0.7**index,
        "slow": 1 / np.sqrt(index),
        "flat": np.full(length, 0.1),
        "zero": np.zeros(length),
        "rank one": np.where(index == 1, 3.0, 0.0),
        "low rank": np.where(index <= max(length // 3, 1), 2.0 / index, 0.0),
        "clusters": np.where(index <= length // 2, 5.0, 0.5),
        "nearly flat": 1 - 1e-3 * np.sqrt(index / length),
        "graded": 10.0 ** (-14 * (index - 1) / length),
        "weak tail": np.where(index == 1, 1.0, 1e-5 / index),
        "random": np.sort(generator.exponential(size=length))[::-1].copy(),
        "float32": np.sort(generator.exponential(size=length).astype(np.float32))[::-1].copy(),
    }


def all_spectra() -> list[np.ndarray]:
    measured = [
        oracles.singular_values(np.random.default_rng(seed).standard_normal(shape)) for seed, shape in enumerate(SHAPES)
    ]
    return measured + [values for length in (1, 2, 5, 60) for values in spectra(length).values()]


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("buffer_rank", BUFFER_RANKS)
def test_explained_ratio_is_the_formula(definition: str, buffer_rank: int) -> None:
    for values in all_spectra():
        for size in (None, len(values) + 7):
            curve = explained_ratio_curve(values, buffer_rank, definition, size)
            expected = [
                oracles.explained_ratio(values, rank, buffer_rank, definition, size)
                for rank in range(1, (size or len(values)) + 1)
            ]
            assert_allclose(curve, expected, rtol=ROUNDING, atol=ROUNDING)
            for rank in {1, len(values) // 2 + 1, len(values)}:
                assert explained_ratio(values, rank, buffer_rank, definition, size) == curve[rank - 1]


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("buffer_rank", BUFFER_RANKS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_intrinsic_rank_is_the_first_that_reaches_the_threshold(
    threshold: float, buffer_rank: int, definition: str
) -> None:
    for values in all_spectra():
        expected = oracles.intrinsic_rank(values, threshold, buffer_rank, definition)
        assert intrinsic_rank(values, threshold, buffer_rank, definition) == expected
        size = len(values) + 7
        padded = np.append(values, np.zeros(7))
        assert intrinsic_rank(values, threshold, buffer_rank, definition, size) == intrinsic_rank(
            padded, threshold, buffer_rank, definition
        )


@pytest.mark.parametrize("buffer_rank", [2, 7, 500])
def test_a_threshold_of_one_asks_for_a_flat_rest(buffer_rank: int) -> None:
    """A window of zeros or of a single value has no variance, to the last bit."""
    for length in (2, 3, 17, 30):
        values = np.sort(np.random.default_rng(length).exponential(size=length))[::-1].copy()
        assert intrinsic_rank(values, 1.0, buffer_rank) == length - 1
        assert intrinsic_rank(values, 1.0, buffer_rank, size=length + 5) == length
        assert intrinsic_rank(values, 1.0, buffer_rank, "reference") == length


def test_other_ranks_and_norms_meet_their_oracles() -> None:
    for values in all_spectra():
        assert_allclose(stable_rank(values), oracles.stable_rank(values), rtol=1e-12)
        assert_allclose(effective_rank(values), oracles.effective_rank(values), rtol=1e-12)
        assert_allclose(frobenius_norm(values), np.sqrt((values.astype(np.float64) ** 2).sum()), rtol=1e-12)
        for share in (0.01, 0.5, 0.9, 0.999):
            assert energy_rank(values, share) == oracles.energy_rank(values, share)
        for rows, cols, epsilon in ((len(values), 300, FLOAT32_EPSILON), (len(values), 2, 1e-3)):
            assert numerical_rank(values, rows, cols, epsilon) == oracles.numerical_rank(values, rows, cols, epsilon)


def test_eq_7_by_hand() -> None:
    values = np.array([5.0, 3.0, 1.0, 1.0])
    # b = 2: var(3, 1) / var(5, 3, 1) = 1 / (8/3), then var(1, 1) = 0; the windows end at four values.
    assert_allclose(explained_ratio_curve(values, 2), [1 - 3 / 8, 1, 1, 1])
    # var(0, 3, 1, 1) / var(5, 3, 1, 1) = 1.1875 / 2.75, then var(0, 0, 1, 1), var(0, 0, 0, 1)
    assert_allclose(
        explained_ratio_curve(values, 2, "reference"), [1 - 1.1875 / 2.75, 1 - 0.25 / 2.75, 1 - 0.1875 / 2.75, 1]
    )
    assert intrinsic_rank(values, 0.9, 2) == 2
    assert intrinsic_rank(values, 0.9, 2, "reference") == 2


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("buffer_rank", [1, 4, 1000])
def test_all_the_ranks_explain_everything(definition: str, buffer_rank: int) -> None:
    for values in all_spectra():
        assert explained_ratio_curve(values, buffer_rank, definition)[-1] == 1


def test_a_buffer_of_one_leaves_nothing_to_explain() -> None:
    """The window of eq. 7 then holds a single value, which has no variance."""
    assert_allclose(explained_ratio_curve(spectra(60)["slow"], 1), 1, rtol=ROUNDING)


def test_explained_ratio_can_be_negative_and_fall() -> None:
    clusters = np.array([10.0, 10.0, 10.0, 1.0])
    curve = explained_ratio_curve(clusters, 2)
    assert_allclose(curve, [1, 1 - 20.25 / 15.1875, 1, 1])


def test_a_convex_spectrum_is_explained_more_by_every_rank() -> None:
    """If b covers it: then its largest value lies farthest from the mean, and without it the variance falls."""
    for name in ("fast", "slow", "graded", "flat", "rank one"):
        assert (np.diff(explained_ratio_curve(spectra(60)[name], 1000)) >= -ROUNDING).all(), name


def test_a_higher_threshold_never_gives_a_lower_rank() -> None:
    for values in all_spectra():
        for definition in DEFINITIONS:
            ranks = [int(intrinsic_rank(values, threshold, 10, definition)) for threshold in (0.1, 0.5, 0.8, 0.9, 0.99)]
            assert ranks == sorted(ranks)


def test_ranks_know_no_scale() -> None:
    for values in all_spectra():
        for scale in (2.0**-90, 2.0**90):  # powers of two, so that σ/σ₁ is the same to the bit
            scaled = values * scale if values.dtype == np.float64 else values.astype(np.float64) * scale
            assert_array_equal(explained_ratio_curve(scaled, 10), explained_ratio_curve(values, 10))
            assert intrinsic_rank(scaled, 0.9, 10) == intrinsic_rank(values, 0.9, 10)
            assert_allclose(stable_rank(scaled), stable_rank(values), rtol=1e-14)
            assert_allclose(effective_rank(scaled), effective_rank(values), rtol=1e-14)
            assert energy_rank(scaled) == energy_rank(values)
            assert numerical_rank(scaled, 60, 60) == numerical_rank(values, 60, 60)


def test_ranks_know_no_transposition_and_no_rotation() -> None:
    generator = np.random.default_rng(0)
    matrix = oracles.matrix_with(spectra(30)["slow"], 30, 45)
    rotation = np.linalg.qr(generator.standard_normal((30, 30)))[0]
    values = oracles.singular_values(matrix)
    for same in (matrix.T, rotation @ matrix):
        other = oracles.singular_values(same)
        assert_allclose(explained_ratio_curve(other, 5), explained_ratio_curve(values, 5), rtol=ROUNDING, atol=ROUNDING)
        assert intrinsic_rank(other, 0.9, 5) == intrinsic_rank(values, 0.9, 5)


def test_stable_is_at_most_effective_is_at_most_the_number_of_values() -> None:
    for values in all_spectra():
        if values[0] > 0:
            assert 1 <= stable_rank(values) <= effective_rank(values) * (1 + 1e-12)
            assert effective_rank(values) <= (values > 0).sum() * (1 + 1e-12)


@pytest.mark.parametrize("length", [1, 2, 50])
def test_known_matrices(length: int) -> None:
    zero, identity, rank_one = np.zeros(length), np.ones(length), np.eye(1, length)[0] * 4
    for definition in DEFINITIONS:
        assert intrinsic_rank(zero, 0.9, 10, definition) == 0
        assert (explained_ratio_curve(zero, 10, definition) == 1).all()
        assert intrinsic_rank(rank_one, 0.9, 10, definition) == 1
    assert intrinsic_rank(identity, 0.9, 10) == 1  # a flat window: nothing left to explain
    for metric in (stable_rank, effective_rank, energy_rank):
        assert metric(zero) == 0
        assert metric(rank_one) == 1
    assert numerical_rank(zero, length, length) == 0
    assert_allclose([stable_rank(identity), effective_rank(identity)], length)
    assert numerical_rank(identity, length, length) == length
    assert energy_rank(identity, 1.0) == length
    assert energy_rank(identity, 0.5) == np.ceil(length / 2)


def test_a_flat_window_stays_flat_under_rounding() -> None:
    """The values of an orthogonal matrix are equal but for their last bits, in which there is nothing to explain."""
    orthogonal = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 200)))[0]
    values = oracles.singular_values(orthogonal)
    assert np.ptp(values) > 0
    assert intrinsic_rank(values, 0.9, 10) == 1
    assert intrinsic_rank(values.astype(np.float32), 0.9, 10) == 1


def test_leading_axes_are_worked_on_at_once() -> None:
    generator = np.random.default_rng(0)
    batch = np.sort(generator.exponential(size=(4, 3, 21)))[..., ::-1].copy()
    ranks = generator.integers(0, 22, size=(4, 3))
    norms = frobenius_norm(batch) * 1.5
    answers = {
        "curve": explained_ratio_curve(batch, 5, size=25),
        "ratio": explained_ratio(batch, ranks, 5),
        "intrinsic": intrinsic_rank(batch, 0.9, 5),
        "stable": stable_rank(batch, norms),
        "effective": effective_rank(batch),
        "energy": energy_rank(batch, 0.8, norms),
        "numerical": numerical_rank(batch, 21, 30),
        "norm": frobenius_norm(batch),
    }
    for place in np.ndindex(4, 3):
        row, norm = batch[place], np.asarray(norms[place])
        alone = {
            "curve": explained_ratio_curve(row, 5, size=25),
            "ratio": explained_ratio(row, int(ranks[place]), 5),
            "intrinsic": intrinsic_rank(row, 0.9, 5),
            "stable": stable_rank(row, norm),
            "effective": effective_rank(row),
            "energy": energy_rank(row, 0.8, norm),
            "numerical": numerical_rank(row, 21, 30),
            "norm": frobenius_norm(row),
        }
        for name, answer in answers.items():
            assert_allclose(answer[place], alone[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_claims_nothing_and_spoils_no_other(bad: float) -> None:
    good = spectra(6)["slow"]
    batch = np.stack([good, np.full(6, bad)])
    assert is_finite(batch).tolist() == [True, False]
    for definition in DEFINITIONS:
        curve = explained_ratio_curve(batch, 2, definition)
        assert_allclose(curve[0], explained_ratio_curve(good, 2, definition))
        assert np.isnan(curve[1]).all()
        assert intrinsic_rank(batch, 0.9, 2, definition)[1] == 0
    assert np.isnan(explained_ratio(batch, 0, 2)[1])
    for metric in (stable_rank, effective_rank):
        assert_allclose(metric(batch)[0], metric(good))
        assert np.isnan(metric(batch)[1])
    for rank in (energy_rank(batch), numerical_rank(batch, 6, 6)):
        assert rank[0] > 0
        assert rank[1] == 0


def test_one_nan_is_a_nan_row() -> None:
    values = np.array([3.0, 2.0, 1.0, np.nan])
    assert np.isnan(explained_ratio_curve(values, 1)).all()
    assert intrinsic_rank(values, 0.5, 1) == 0
    assert energy_rank(values, 0.1) == 0
    assert numerical_rank(values, 4, 4) == 0
    for metric in (stable_rank, effective_rank, frobenius_norm):
        assert np.isnan(metric(values))


def test_no_values_are_a_zero_update() -> None:
    none = np.zeros((2, 0))
    for definition in DEFINITIONS:
        assert explained_ratio_curve(none, 5, definition).shape == (2, 0)
        assert explained_ratio_curve(none, 5, definition, size=3).tolist() == [[1.0] * 3] * 2
        assert intrinsic_rank(none, 0.9, 5, definition).tolist() == [0, 0]
        assert intrinsic_rank(none, 0.9, 5, definition, size=3).tolist() == [0, 0]
    assert explained_ratio(none, 0).tolist() == [0, 0]
    for metric in (stable_rank, effective_rank, energy_rank, frobenius_norm):
        assert metric(none).tolist() == [0, 0]
    assert numerical_rank(none, 0, 3).tolist() == [0, 0]


def test_no_rank_explains_nothing() -> None:
    assert explained_ratio(spectra(9)["slow"], 0, 3) == 0


def test_running_rank_never_falls() -> None:
    ranks = np.array([[0, 3, 2, 5, 1], [1, 1, 4, 4, 9]])
    assert running_rank(ranks).tolist() == [[0, 3, 3, 5, 5], [1, 1, 4, 4, 9]]


def test_the_norm_of_the_whole_speaks_where_only_leading_values_are_known() -> None:
    values = 1 / np.arange(1, 101.0)
    whole = np.asarray(frobenius_norm(values))
    assert_allclose(stable_rank(values[:10], whole), stable_rank(values))
    for share in (0.5, 0.9):
        assert energy_rank(values[:20], share, whole) == energy_rank(values, share)
    assert energy_rank(values[:20], 0.999, whole) == 21  # more than what is known
    low = np.asarray(frobenius_norm(values[:10]) * (1 - 1e-7))  # a float32 norm may be a little too small
    assert energy_rank(values[:10], 1.0, low) == 10
    assert stable_rank(np.ones(1), np.asarray(1 - 1e-7)) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\], got 0.0"),
        ({"threshold": 1.1}, r"threshold must be in \(0, 1\], got 1.1"),
        ({"threshold": float("nan")}, "threshold must be in .*, got nan"),
        ({"buffer_rank": 0}, "buffer_rank must be an integer of at least 1, got 0"),
        ({"buffer_rank": 2.5}, "buffer_rank must be an integer of at least 1, got 2.5"),
        ({"definition": "eq7"}, r"definition must be one of .*paper.*reference.*, got 'eq7'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intrinsic_rank(np.ones(3), **arguments)  # type: ignore[arg-type]


def test_ranks_out_of_range_are_named() -> None:
    for rank in (-1, 5):
        with pytest.raises(ValueError, match=rf"rank must be in 0\.\.4, got {rank}"):
            explained_ratio(np.ones(4), rank)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got"):
            energy_rank(np.ones(4), share)


def test_every_public_function_is_tested_here() -> None:
    import inspect

    names = {
        name
        for name, item in inspect.getmembers(rank_metrics, inspect.isfunction)
        if item.__module__ == rank_metrics.__name__ and not name.startswith("_")
    }
    assert names - {"check_options", "next_rank"} <= set(globals())  # the rule: test_growth_rule.py
