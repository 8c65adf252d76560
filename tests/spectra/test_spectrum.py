from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

import numpy as np
import pytest
import torch
from helpers import oracles
from numpy.testing import assert_allclose
from torch import Tensor

from inrank_monitor.spectra.leading import leading_singular_values
from inrank_monitor.spectra.pool import SpectrumPool
from inrank_monitor.spectra.spectrum import (
    singular_values,
    singular_values_of_product,
)

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 30), (30, 5), (64, 64), (127, 200), (128, 128), (200, 131), (300, 150)]
METHODS = ["gram", "svd"]
# Squaring halves the digits (gram); svd keeps them. Shares of σ₁.
ERROR = {"gram": 1e-7, "svd": 1e-13}


def random_matrices() -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]


def with_values(values: np.ndarray, rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(oracles.matrix_with(values, rows, cols, seed))


def assert_spectrum(found: Tensor, matrix: Tensor, method: str) -> None:
    expected = oracles.singular_values(matrix.detach().double().numpy())
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert (found.diff() <= 0).all()
    assert_allclose(found.numpy(), expected, rtol=0, atol=ERROR[method] * max(expected[0], 1e-300))


@pytest.mark.parametrize("method", METHODS)
def test_singular_values_meet_numpy(method: str) -> None:
    for matrix in random_matrices():
        assert_spectrum(singular_values(matrix, method), matrix, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_dtype_is_squared_in_float64(dtype: torch.dtype, method: str) -> None:
    matrix = (torch.randn(40, 60) * 1e4).to(dtype)  # the squares overflow float16
    assert_spectrum(singular_values(matrix, method), matrix, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values",
    [
        10.0 ** -np.arange(40.0),
        10.0 ** -np.linspace(0, 12, 150),
        np.where(np.arange(150) < 5, 1.0, 1e-9),
        np.where(np.arange(150) < 75, 1.0, 0.0),
        np.full(150, 3.0),
        np.repeat([5.0, 5.0 - 1e-9, 1.0], 50),
        1 / np.sqrt(np.arange(1, 151.0)),
    ],
    ids=["geometric", "graded", "cliff", "half rank", "flat", "clusters", "slow"],
)
def test_ill_conditioned_spectra_keep_their_absolute_accuracy(values: np.ndarray, method: str) -> None:
    for rows, cols in ((150, 170), (170, 150)):
        matrix = with_values(values, rows, cols)
        found = singular_values(matrix, method)
        assert_spectrum(found, matrix, method)
        assert_allclose(found[: len(values)].numpy(), values, rtol=0, atol=ERROR[method] * values[0])


@pytest.mark.parametrize("method", METHODS)
def test_known_matrices(method: str) -> None:
    assert singular_values(torch.zeros(3, 5), method).tolist() == [0, 0, 0]
    assert singular_values(torch.eye(4, 6), method).tolist() == [1, 1, 1, 1]
    assert_allclose(singular_values(torch.diag(torch.tensor([1.0, -4.0, 2.0])), method).numpy(), [4, 2, 1])
    row = torch.tensor([[3.0, 4.0]])
    assert_allclose(singular_values(row, method).numpy(), [5])
    assert_allclose(singular_values(row.mT, method).numpy(), [5])
    rank_one = singular_values(torch.outer(torch.ones(9), torch.ones(4)), method)
    assert_allclose(rank_one.numpy(), [6, 0, 0, 0], atol=6 * ERROR[method])
    orthogonal = torch.linalg.qr(torch.randn(150, 150, dtype=torch.float64)).Q
    assert_allclose(singular_values(orthogonal, method).numpy(), 1, rtol=1e-12)


def test_singular_values_ignore_rotation_transposition_and_sign() -> None:
    matrix = torch.randn(40, 60, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    expected = singular_values(matrix).numpy()
    for same in (left @ matrix @ right, matrix.mT, -matrix, matrix.flip(0), matrix[torch.randperm(40)]):
        assert_allclose(singular_values(same).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_singular_values_scale_with_the_matrix(scale: float) -> None:
    """By a power of two, which rounds nothing: to the bit, whatever the processor makes of the products."""
    matrix = torch.randn(40, 60)
    assert torch.equal(singular_values(matrix * scale), singular_values(matrix) * scale)


def test_squares_add_up_to_the_frobenius_norm() -> None:
    for matrix in random_matrices():
        assert_allclose(float(singular_values(matrix).square().sum()), float(matrix.square().sum()), rtol=1e-12)


def test_eckart_young() -> None:
    """What the best matrix of rank r misses is exactly the values after r."""
    matrix = torch.randn(30, 50, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 7, 29):
        missed = matrix - (left[:, :rank] * values[:rank]) @ right[:rank]
        expected = torch.cat([values[rank:], torch.zeros(rank, dtype=torch.float64)])
        assert_allclose(singular_values(missed).numpy(), expected.numpy(), atol=1e-7 * float(values[rank]))


def test_weyl() -> None:
    """|σ_i(A + E) − σ_i(A)| ≤ ‖E‖₂."""
    matrix = torch.randn(50, 30, dtype=torch.float64)
    for size in (1e-3, 1.0, 30.0):
        change = size * torch.randn(50, 30, dtype=torch.float64)
        moved = (singular_values(matrix + change) - singular_values(matrix)).abs().max()
        assert moved <= singular_values(change)[0] * (1 + 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_views_are_read_as_they_are(method: str) -> None:
    storage = torch.randn(60, 90, 2)
    for view in (storage[..., 1], storage[..., 0].mT, storage[::3, ::2, 0], storage[:, :1, 0].expand(60, 40)):
        assert not view.is_contiguous()
        assert_spectrum(singular_values(view, method), view, method)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_that_is_not_finite_gives_nan_throughout(method: str, bad: float) -> None:
    for shape in ((4, 6), (6, 4), (150, 200)):
        for place in ((0, 0), (shape[0] - 1, 1), (1, shape[1] - 1)):
            matrix = torch.randn(shape)
            matrix[place] = bad
            values = singular_values(matrix, method)
            assert values.shape == (min(shape),)
            assert values.isnan().all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_a_matrix_without_entries_gives_no_values(shape: tuple[int, int]) -> None:
    for method in METHODS:
        assert singular_values(torch.zeros(shape), method).shape == (0,)


MATRIX = 150, 200
CALLS: dict[str, Callable[[Tensor], object]] = {
    "gram": lambda matrix: singular_values(matrix),
    "svd": lambda matrix: singular_values(matrix, "svd"),
    "product gram": lambda matrix: singular_values_of_product(matrix.mT, matrix),
    "product qr": lambda matrix: singular_values_of_product(matrix.mT, matrix, "qr"),
    "leading": lambda matrix: leading_singular_values(matrix, 8, iterations=2),
}


@pytest.mark.usefixtures("unchecked")  # the checks of types themselves draw from `random`
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_but_the_answer_comes_of_it(call: Callable[[Tensor], object], dtype: torch.dtype) -> None:
    matrix = torch.randn(MATRIX, dtype=dtype, requires_grad=True)
    before, version = matrix.detach().clone(), matrix._version
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    call(matrix)
    assert torch.equal(matrix.detach(), before)
    assert matrix._version == version
    assert matrix.grad is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert torch.is_grad_enabled()


PLACES = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def backend(place: str) -> object:
    return attrgetter(place)(torch.backends) if place else torch.backends


def precision_settings() -> dict[str, str]:
    found: dict[str, str] = {place: backend(place).fp32_precision for place in PLACES}  # type: ignore[attr-defined]
    try:
        return found | {"older": torch.get_float32_matmul_precision()}
    except RuntimeError:  # torch refuses to answer where settings were made through the newer interface
        return found


@pytest.fixture
def precision() -> Iterator[None]:
    """Puts back what the test does to torch's float32 settings."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has only the older setting")
    before = precision_settings()
    yield
    torch.set_float32_matmul_precision("highest")
    for place in PLACES:
        set_precision(backend(place), before[place])
    assert precision_settings() == before


def set_precision(owner: object, value: object, name: str = "fp32_precision") -> None:
    setattr(owner, name, value)


@pytest.mark.parametrize(
    "choose",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: set_precision(torch.backends.cuda.matmul, True, "allow_tf32"),
        lambda: set_precision(torch.backends, "tf32"),
        lambda: set_precision(torch.backends.cuda.matmul, "tf32"),
        lambda: set_precision(torch.backends.mkldnn.matmul, "bf16"),
    ],
    ids=["high", "medium", "allow_tf32", "all tf32", "cuda tf32", "mkldnn bf16"],
)
@pytest.mark.usefixtures("precision")
def test_the_float32_precision_that_training_chose_is_left_alone(choose: Callable[[], None]) -> None:
    choose()
    before = precision_settings()
    leading_singular_values(torch.randn(MATRIX), 8)
    assert precision_settings() == before


@pytest.mark.usefixtures("precision")
def test_the_float32_precision_is_left_alone_by_many_at_once() -> None:
    torch.set_float32_matmul_precision("medium")
    matrices = [torch.randn(MATRIX) for _ in range(40)]
    pool = SpectrumPool(4)
    for _ in range(3):
        list(pool.map(lambda matrix: leading_singular_values(matrix, 8, iterations=2), matrices))
        assert torch.get_float32_matmul_precision() == "medium"
    pool.close()


FACTORS = [
    (9, 3, 12),
    (12, 3, 9),
    (5, 8, 20),
    (20, 8, 5),
    (6, 30, 7),
    (1, 1, 1),
    (1, 4, 9),
    (140, 130, 150),
    (40, 1, 3),
]
PRODUCT_ERROR = {"gram": 3e-8, "qr": 1e-14}  # shares of ‖U‖‖V‖, as the docstring has them


def assert_product(left: Tensor, right: Tensor) -> None:
    expected = oracles.singular_values((left.double() @ right.double()).numpy())
    count = min(left.shape[0], *right.shape)
    scale = float(torch.linalg.vector_norm(left.double()) * torch.linalg.vector_norm(right.double()))
    for method, error in PRODUCT_ERROR.items():
        found = singular_values_of_product(left, right, method)
        assert found.shape == (count,)
        assert (found.diff() <= 0).all()
        assert_allclose(found.numpy(), expected[:count], rtol=0, atol=error * scale, err_msg=method)
    assert_allclose(expected[count:], 0, atol=1e-14 * scale)


@pytest.mark.parametrize(("rows", "inner", "cols"), FACTORS)
def test_a_product_has_the_values_of_the_dense_matrix(rows: int, inner: int, cols: int) -> None:
    left, right = torch.randn(rows, inner, dtype=torch.float64), torch.randn(inner, cols, dtype=torch.float64)
    assert_product(left, right)
    new = torch.rand(inner) < 0.5
    assert_product(torch.where(new, 0.0, left), right)  # new columns, at zero
    assert_product(left, torch.where(new[:, None], 0.0, right))
    assert_product(left[:, :1].repeat(1, inner), right)  # dependent columns
    assert_product(left * 10.0 ** -torch.arange(inner).clamp(max=12), right)
    assert_product(left * 0, right)
    assert_product(left.float(), right.bfloat16())


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_product_that_cancels_keeps_its_absolute_accuracy(size: float) -> None:
    """U V = (A + E) B − A B: factors of size 1 whose product is small."""
    shared, other = torch.randn(30, 6, dtype=torch.float64), torch.randn(6, 40, dtype=torch.float64)
    change = size * torch.randn(30, 6, dtype=torch.float64)
    assert_product(torch.cat([shared + change, -shared], dim=1), torch.cat([other, other]))


@pytest.mark.parametrize("method", PRODUCT_ERROR)
def test_a_product_that_is_not_finite_or_empty(method: str) -> None:
    for bad in (float("nan"), float("inf")):
        for place in ((0, 1), (7, 0)):
            left, right = torch.randn(8, 3), torch.randn(3, 5)
            left[place] = bad
            assert singular_values_of_product(left, right, method).isnan().all()
            assert singular_values_of_product(right.mT, left.mT, method).isnan().all()
    for rows, inner, cols in ((4, 0, 5), (0, 2, 3), (3, 2, 0)):
        assert singular_values_of_product(torch.zeros(rows, inner), torch.zeros(inner, cols), method).shape == (0,)


COUNT = 150


INDEX = np.arange(1, COUNT + 1.0)
DECAYING = {
    "fast": 0.8**INDEX,
    "very fast": 0.3**INDEX,
    "slow": INDEX**-0.5,
    "flat": np.ones(COUNT),
    "low rank": np.where(INDEX <= 12, 2.0, 0.0),
    "graded low rank": np.where(INDEX <= 12, 10.0**-INDEX, 0.0),
    "zero": np.zeros(COUNT),
    "clusters": np.where(INDEX <= 10, 1.0, np.where(INDEX <= 30, 0.5, 0.01)),
    "clusters wider than the sketch": np.where(INDEX <= 40, 1.0, 0.95),
    "few above a flat rest": np.where(INDEX <= 4, 1.05, 1.0),
    "weak flat rest": np.where(INDEX <= 5, 1.0, 2e-5),
}


# What the bound leaves aside, as a share of ‖A‖_F: float32 products are rounded to 1.2e-7; in float64 the values are
# roots of eigenvalues of a Gram matrix, which ends their digits at 1.5e-8.
LEADING_ROUNDING = {torch.float32: 1e-6, torch.float64: 3e-8}


def assert_leading(matrix: Tensor, count: int, calls: Iterable[dict[str, float]]) -> None:
    expected = oracles.singular_values(matrix.double().numpy())
    norm = float(np.linalg.norm(expected))
    rounding = LEADING_ROUNDING[matrix.dtype] * norm
    for options in calls:
        found = leading_singular_values(matrix, count, **options)  # type: ignore[arg-type]
        assert found.values.shape == (count,)
        assert found.values.dtype == torch.float64
        error = float(np.abs(found.values.numpy() - expected[:count]).max())
        assert error <= found.error_bound + rounding, f"{error=:.3g} {found.error_bound=:.3g} {count=} {options}"
        assert (found.values.numpy() <= expected[:count] + rounding).all()  # σ(QᵀA) ≤ σ(A)
        assert_allclose(found.frobenius_norm, norm, rtol=1e-5 if matrix.dtype == torch.float32 else 1e-12)


def every_limit(seed: int) -> list[dict[str, float]]:
    return [{"seed": seed, "iterations": limit} for limit in range(5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DECAYING)
def test_leading_values_are_within_their_bound(name: str, dtype: torch.dtype) -> None:
    for seed, (rows, cols) in enumerate([(150, 160), (163, 150), (150, 603)]):
        matrix = with_values(DECAYING[name], rows, cols, seed).to(dtype)
        for count in (1, 16):
            assert_leading(matrix, count, every_limit(seed))


@pytest.mark.parametrize("shape", [(150, 200), (200, 150), (160, 1000)])
def test_leading_values_of_gaussian_matrices_are_within_their_bound(shape: tuple[int, int]) -> None:
    for seed in range(3):
        assert_leading(torch.randn(shape), 16, every_limit(seed))


@pytest.mark.parametrize(
    ("cols", "columns"),
    [(603, [0]), (603, [602]), (603, [600, 601, 602]), (640, [5, 165]), (640, [5, 165, 325, 485]), (640, [9, 10])],
)
def test_leading_values_that_live_in_few_columns_are_found(cols: int, columns: list[int]) -> None:
    """As those of an embedding do, of which a batch touches a few rows: none may be dropped or cancel on the way."""
    matrix = 0.02 * torch.randn(150, cols)
    matrix[0] = 0.0
    matrix[:, columns] = 0.0
    matrix[0, columns] = 10.0
    assert_leading(matrix, 8, [{"seed": seed} for seed in range(8)])


def test_more_iterations_give_a_smaller_error_and_bound() -> None:
    """Of a matrix in float64 without decay: elsewhere the products' rounding is all that is left of the error."""
    matrix = torch.randn(150, 200, dtype=torch.float64)
    expected = torch.linalg.svdvals(matrix)[:16]
    found = [leading_singular_values(matrix, 16, iterations=limit) for limit in range(5)]
    errors = [float((expected - one.values).max()) for one in found]
    assert errors[4] < 0.1 * errors[2] < 0.05 * errors[0]
    assert found[4].error_bound < found[0].error_bound


def test_leading_values_know_their_seed_and_no_other() -> None:
    matrix = torch.randn(150, 200)
    first = leading_singular_values(matrix, 8, seed=3)
    torch.manual_seed(99)
    again = leading_singular_values(matrix, 8, seed=3)
    assert torch.equal(first.values, again.values)
    assert first.error_bound == again.error_bound
    assert not torch.equal(first.values, leading_singular_values(matrix, 8, seed=4).values)


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**70])
def test_leading_values_and_their_bound_scale_with_the_matrix(scale: float) -> None:
    matrix = with_values(DECAYING["slow"], 150, 200).float()
    one, other = (leading_singular_values(value, 16) for value in (matrix, matrix * scale))
    assert torch.equal(other.values, one.values * scale)  # to the bit: a power of two rounds nothing
    assert (other.error_bound, other.frobenius_norm) == (one.error_bound * scale, one.frobenius_norm * scale)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 40), (60, 90)])
def test_a_large_part_of_the_spectrum_is_the_exact_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    count = min(shape)
    found = leading_singular_values(matrix, count)
    assert found.error_bound == 0
    assert torch.equal(found.values, singular_values(matrix))
    assert_allclose(found.frobenius_norm, float(torch.linalg.vector_norm(matrix.double())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_leading_values_of_half_precision_are_worked_out_in_float32(dtype: torch.dtype) -> None:
    matrix = (with_values(DECAYING["slow"], 150, 200) * 1000).to(dtype)
    assert torch.equal(leading_singular_values(matrix, 8).values, leading_singular_values(matrix.float(), 8).values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_leading_values_that_are_not_finite(bad: float) -> None:
    for shape in ((150, 200), (20, 30)):
        matrix = torch.randn(shape)
        matrix[3, 5] = bad
        found = leading_singular_values(matrix, 8)
        assert found.values.shape == (8,)
        assert found.values.isnan().all()
        assert np.isnan(found.frobenius_norm)


def test_a_pool_gives_what_a_loop_gives_in_order() -> None:
    matrices = [torch.randn(size, 2 * size) for size in (5, 100, 40, 130, 7, 60)]
    for workers in (1, 2, 3, 50):
        pool = SpectrumPool(workers)
        for _ in range(2):  # the threads are kept
            for found, matrix in zip(pool.map(singular_values, matrices), matrices, strict=True):
                assert_allclose(found.numpy(), singular_values(matrix).numpy(), rtol=1e-12, atol=1e-7)
        pool.close()
        assert len(list(pool.map(singular_values, matrices))) == 6  # and made again after that
        pool.close()
    assert list(SpectrumPool(2).map(singular_values, [])) == []


@pytest.mark.parametrize("workers", [2, 8])
def test_a_pool_leaves_the_number_of_threads_alone(workers: int) -> None:
    expected = torch.get_num_threads()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        pool = SpectrumPool(workers)
        everyone = threading.Barrier(workers, timeout=60)
        list(pool.map(lambda _, barrier=everyone: barrier.wait(), range(workers)))  # now each worker has been started
        seen: list[int] = []
        thread = threading.Thread(target=lambda seen=seen: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        mine = torch.get_num_threads()
        theirs = set(pool.map(lambda _: torch.get_num_threads(), range(3 * workers)))
        pool.close()
        torch.set_num_threads(expected)
        assert (mine, seen) == (threads, [threads])
        assert theirs == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_is_raised(workers: int) -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise ZeroDivisionError(f"job {item}")
        return item

    pool = SpectrumPool(workers)
    results = pool.map(fail, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="job 3"):
        next(results)
    assert list(pool.map(fail, range(3))) == [0, 1, 2]
    pool.close()


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"a matrix has two dimensions, got shape \(2, 3, 4\)"):
        singular_values(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="method must be 'gram' or 'svd', got 'qr'"):
        singular_values(torch.zeros(2, 3), "qr")
    with pytest.raises(ValueError, match="method must be 'gram' or 'qr', got 'svd'"):
        singular_values_of_product(torch.zeros(2, 3), torch.zeros(3, 2), "svd")
    for left, right in (((2, 3), (2, 3)), ((3,), (3, 2)), ((2, 3), (3,))):
        with pytest.raises(ValueError, match=r"factors must be \(rows, k\) and \(k, cols\), got"):
            singular_values_of_product(torch.zeros(left), torch.zeros(right))
    for count in (0, 3):
        with pytest.raises(ValueError, match=rf"count must be in 1\.\.2 for a 2×3 matrix, got {count}"):
            leading_singular_values(torch.zeros(2, 3), count)
    with pytest.raises(ValueError, match="two dimensions"):
        leading_singular_values(torch.zeros(2, 3, 4), 1)
