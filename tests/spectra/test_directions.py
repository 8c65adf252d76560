"""Leading singular vectors and principal angles: against float64 SVDs, known rotations, and laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from inrank_monitor.spectra import leading_directions, leading_directions_of_product, turn

pytestmark = pytest.mark.numeric
SHAPES = [(12, 30), (30, 12), (20, 20), (1, 9), (9, 1)]


def orthonormal(rows: int, cols: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, dtype=torch.float64)).Q


def spread(rows: int, cols: int) -> Tensor:
    """Singular values 10, 9, 8, ... so that every vector is well defined."""
    rank = min(rows, cols)
    values = torch.arange(rank, 0, -1, dtype=torch.float64)
    return orthonormal(rows, rank) * values @ orthonormal(cols, rank).mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leading_directions_are_those_of_an_exact_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = spread(*shape).to(dtype)
    found = leading_directions(matrix, 5)
    assert found is not None
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    count = min(5, *shape)
    assert found.left.shape == (shape[0], count)
    assert found.right.shape == (shape[1], count)
    identity = torch.eye(count, dtype=torch.float64)
    torch.testing.assert_close((found.left.mT @ left[:, :count]).abs(), identity, atol=1e-6, rtol=0)
    torch.testing.assert_close((found.right.mT @ right.mT[:, :count]).abs(), identity, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_of_factors_has_the_directions_of_the_product(shape: tuple[int, int]) -> None:
    left, right = torch.randn(shape[0], 4), torch.randn(4, shape[1])
    found, dense = leading_directions_of_product(left, right, 3), leading_directions(left.double() @ right.double(), 3)
    assert found is not None
    assert dense is not None
    assert found.left.shape == dense.left.shape
    assert turn(found.left, dense.left).angle < 1e-4
    assert turn(found.right, dense.right).angle < 1e-4


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_only_directions_that_are_there_are_given(rank: int) -> None:
    matrix = (orthonormal(20, rank) @ orthonormal(14, rank).mT).float()  # rounding makes it full rank
    found = leading_directions(matrix, 10)
    assert found is not None
    assert found.left.shape == (20, rank)
    assert found.right.shape == (14, rank)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_none(bad: float) -> None:
    matrix = torch.ones(4, 6)
    matrix[2, 3] = bad
    assert leading_directions(matrix, 2) is None
    assert leading_directions_of_product(matrix, torch.ones(6, 5), 2) is None


@pytest.mark.parametrize("degrees", [0.0, 0.001, 1.0, 30.0, 60.0, 89.0, 90.0])
def test_a_rotation_by_a_known_angle_gives_that_angle(degrees: float) -> None:
    whole = orthonormal(40, 40)
    first, beside = whole[:, :5], whole[:, 5]
    second = first.clone()
    angle = math.radians(degrees)
    second[:, 4] = math.cos(angle) * first[:, 4] + math.sin(angle) * beside
    found = turn(first, second)
    assert found.angle == pytest.approx(degrees, abs=1e-6)
    assert found.overlap == pytest.approx((4 + math.cos(angle) ** 2) / 5, abs=1e-12)


def test_the_angles_are_those_of_an_exact_svd_of_the_product_of_the_bases() -> None:
    first, second = orthonormal(50, 6), orthonormal(50, 6)
    cosines = torch.linalg.svdvals(first.mT @ second)
    found = turn(first, second)
    assert found.overlap == pytest.approx(float(cosines.square().mean()), abs=1e-12)
    assert found.angle == pytest.approx(math.degrees(math.acos(float(cosines[-1]))), abs=1e-6)


def test_a_subspace_inside_a_larger_one_has_not_turned() -> None:
    large = orthonormal(30, 8)
    small = large @ orthonormal(8, 3)
    for found in (turn(large, small), turn(small, large)):
        assert found.overlap == pytest.approx(1.0, abs=1e-12)
        assert found.angle == pytest.approx(0.0, abs=1e-6)


def test_bases_rotations_and_order_do_not_matter() -> None:
    first, second, rotation = orthonormal(25, 4), orthonormal(25, 4), orthonormal(25, 25)
    expected = turn(first, second)
    mixed = turn(first @ orthonormal(4, 4), -second @ orthonormal(4, 4))
    turned, swapped = turn(rotation @ first, rotation @ second), turn(second, first)
    for found in (mixed, turned, swapped):
        assert found == pytest.approx(expected, abs=1e-6)


def test_random_subspaces_overlap_by_k_over_n_on_average() -> None:
    overlaps = [turn(orthonormal(64, 8), orthonormal(64, 8)).overlap for _ in range(60)]
    assert sum(overlaps) / 60 == pytest.approx(8 / 64, abs=0.01)  # each has a standard deviation of 0.016


def test_nothing_overlaps_with_nothing() -> None:
    found = turn(torch.zeros(7, 0), orthonormal(7, 2))
    assert math.isnan(found.overlap)
    assert math.isnan(found.angle)


def test_the_size_of_the_matrix_does_not_matter() -> None:
    matrix = spread(12, 18)
    one = leading_directions(matrix, 4)
    assert one is not None
    for scale in (1e-12, 1e12):
        other = leading_directions(scale * matrix, 4)
        assert other is not None
        assert turn(one.left, other.left).angle < 1e-5
