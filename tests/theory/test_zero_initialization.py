"""ZerO initialization against its laws and an oracle written as the paper's product of three matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard

from inrank.theory.zero_initialization import hadamard, zero_initialize_, zero_matrix

pytestmark = pytest.mark.numeric

SHAPES = [(1, 1), (2, 1), (3, 2), (8, 8), (10, 128), (32, 64), (33, 20), (64, 10), (100, 99), (128, 64)]


def oracle(rows: int, cols: int) -> np.ndarray:
    """Algorithm 1 as it stands there: I* c H_m I*."""
    if rows <= cols:
        return np.eye(rows, cols)
    order = math.ceil(math.log2(rows))
    scale = 2.0 ** (-(order - 1) / 2)
    product: np.ndarray = np.eye(rows, 2**order) @ (scale * scipy_hadamard(2**order)) @ np.eye(2**order, cols)
    return product


@pytest.mark.parametrize("shape", SHAPES)
def test_the_matrix_is_the_papers_product_of_three(shape: tuple[int, int]) -> None:
    np.testing.assert_allclose(zero_matrix(*shape, dtype=torch.float64).numpy(), oracle(*shape), rtol=1e-15)


@pytest.mark.parametrize("order", range(7))
def test_hadamard_matrices_are_orthogonal_up_to_their_size(order: int) -> None:
    matrix = hadamard(order, torch.float64)
    assert torch.equal(matrix @ matrix.T, 2**order * torch.eye(2**order, dtype=torch.float64))
    assert set(matrix.flatten().tolist()) <= {1.0, -1.0}
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("shape", [(16, 5), (64, 10), (128, 64)])
def test_columns_are_orthogonal_of_norm_root_two_where_the_outputs_are_a_power_of_two(shape: tuple[int, int]) -> None:
    matrix = zero_matrix(*shape, dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix, 2 * torch.eye(shape[1], dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_no_layer_is_short_of_rank(shape: tuple[int, int]) -> None:
    assert int(torch.linalg.matrix_rank(zero_matrix(*shape, dtype=torch.float64))) == min(shape)


def test_rows_half_the_hadamard_size_apart_are_equal_for_few_inputs() -> None:
    matrix = zero_matrix(128, 64)
    assert torch.equal(matrix[:64], matrix[64:])
    assert not torch.equal(matrix[0], matrix[1])


def test_a_parameter_is_filled_in_place_and_keeps_its_type() -> None:
    layer = torch.nn.Linear(3, 5, dtype=torch.float64)
    weight = layer.weight
    assert zero_initialize_(weight) is weight is layer.weight
    assert torch.equal(weight, zero_matrix(5, 3, dtype=torch.float64))
    assert weight.requires_grad
    assert weight.grad_fn is None


def test_wrong_arguments_are_named(unchecked: None) -> None:
    with pytest.raises(ValueError, match="order must be at least 0, got -1"):
        hadamard(-1)
    with pytest.raises(ValueError, match="rows and cols must be at least 1, got 0×4"):
        zero_matrix(0, 4)
    with pytest.raises(ValueError, match=r"weight must be a matrix, got shape \(3,\)"):
        zero_initialize_(torch.zeros(3))
