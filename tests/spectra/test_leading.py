"""How near leading values and their bound are; more single matrices are in test_spectrum.py."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, factorial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracles
from torch import Tensor

from inrank_monitor.spectra.blocks import outside
from inrank_monitor.spectra.krylov import krylov_sizes, krylov_space
from inrank_monitor.spectra.leading import leading_singular_values
from inrank_monitor.spectra.norm_bound import LEAST, PROBES, norm_bound
from inrank_monitor.spectra.spectrum import Spectrum

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
COUNT = 16
STRENGTHS = {
    "slow": torch.arange(1, 61).rsqrt(),
    "fast": 1 / torch.arange(1, 61),
    "spikes": torch.where(torch.arange(60) < 5, 1.0, 0.0),
}


def walk(strength: Tensor, snapshots: int, rows: int = 150, cols: int = 400, seed: int = 0) -> Iterator[Tensor]:
    """An update that changes by a few per cent a snapshot: strong directions that turn, over noise that builds up."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, len(strength), generator=generator)
    right = torch.randn(cols, len(strength), generator=generator)
    noise = torch.randn(rows, cols, generator=generator)
    for _ in range(snapshots):
        yield (left * strength) @ right.mT + 0.3 * noise
        left = left + 0.03 * torch.randn(left.shape, generator=generator)
        right = right + 0.03 * torch.randn(right.shape, generator=generator)
        noise = noise + 0.03 * torch.randn(noise.shape, generator=generator)


def exact_and_found(matrix: Tensor, count: int, **options: Any) -> tuple[np.ndarray, Spectrum]:
    """The leading values of an oracle, and ours, which may be neither too large nor outside their bound."""
    exact = oracles.singular_values(matrix.double().numpy())
    found = leading_singular_values(matrix, count, **options)
    errors, rounding = exact[:count] - found.values.numpy(), 1e-6 * np.linalg.norm(exact)
    assert (errors >= -rounding).all()
    assert errors.max() <= found.error_bound + rounding
    return exact[:count], found


PLACE = np.arange(1.0, 401)
DECAYS = {
    "1/i": (1 / PLACE, 64),
    "1/i, few": (1 / PLACE, 16),
    "exponential": (np.exp(-PLACE / 50), 64),
    "exponential, few": (np.exp(-PLACE / 50), 16),
    "steep": (np.exp(-PLACE / 12), 64),
    "1/i over noise": (np.maximum(1 / PLACE, 1 / 120), 40),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DECAYS)
def test_values_that_decay_are_right_to_a_thousandth_and_known_to_a_hundredth(name: str, seed: int) -> None:
    values, count = DECAYS[name]
    matrix = torch.from_numpy(oracles.matrix_with(values, 400, 900, seed)).float()
    for given in (matrix, matrix.mT):
        exact, found = exact_and_found(given, count, seed=seed)
        assert (np.abs(exact - found.values.numpy()) <= 1e-3 * exact + 1e-6 * exact[0]).all()
        assert found.error_bound <= 1e-2 * exact[-1] + 1e-6 * exact[0]


def test_slow_decay_is_met_to_a_hundredth_and_its_bound_says_that_less_is_known() -> None:
    matrix = torch.from_numpy(oracles.matrix_with(PLACE**-0.5, 400, 900)).float()
    exact, found = exact_and_found(matrix, 64)
    assert (exact - found.values.numpy()).max() <= 0.01 * exact[-1]
    assert 0.01 * exact[-1] < found.error_bound < 0.6 * exact[-1]
    closer = exact_and_found(matrix, 64, iterations=6)[1]
    assert closer.error_bound <= 1e-2 * exact[-1]  # what it takes: half as many products again


def test_it_takes_five_products_a_value_and_a_few_hundred_more(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [0]
    plain = Tensor.__matmul__

    def counted(left: Tensor, right: Tensor) -> Tensor:
        for one, other in ((left, right.shape[-1]), (right, left.shape[0])):
            if sorted(one.shape) == [400, 900]:
                columns[0] += other
        return plain(left, right)

    monkeypatch.setattr(Tensor, "__matmul__", counted)
    leading_singular_values(torch.randn(400, 900), 64)
    block, blocks = krylov_sizes(64)
    assert columns[0] == 2 * block * blocks + 6 * PROBES - PROBES <= 5 * 64 + 300  # the probes' last product is not


@pytest.mark.parametrize("name", STRENGTHS)
def test_snapshots_of_an_update_that_changes_are_within_their_bound(name: str) -> None:
    for shape in ((150, 400), (400, 150), (150, 150)):
        for seed, update in enumerate(walk(STRENGTHS[name], 4, *shape)):
            exact, found = exact_and_found(update, COUNT, seed=seed)
            assert (exact - found.values.numpy()).max() < 0.02 * exact[-1]


@pytest.mark.parametrize("rank", [0, 1, 3, 40, 80, 150])
def test_any_rank_is_found_whole(rank: int) -> None:
    """Of an embedding ever more rows are touched: from a zero update over a few exact directions to many."""
    update = torch.cat([torch.randn(rank, 400), torch.zeros(150 - rank, 400)])
    exact, found = exact_and_found(update, COUNT)
    assert np.abs(exact - found.values.numpy()).max() <= 1e-2 * (exact[0] or 1.0)
    if rank < COUNT:
        assert found.error_bound <= 1e-3 * (exact[0] or 1.0)
        assert float(found.values[rank:].abs().max()) <= 1e-3 * exact[0]


@pytest.mark.parametrize("copies", [2, 9, 30, 150])
def test_values_that_are_alike_are_all_found(copies: int) -> None:
    """More of them than a block has columns: a Krylov space of a single block would know no more than those."""
    values = np.concatenate([np.ones(copies), 0.3 / np.arange(1, 151 - copies)])
    exact, found = exact_and_found(torch.from_numpy(oracles.matrix_with(values, 150, 400)).float(), COUNT)
    assert np.abs(exact - found.values.numpy()).max() <= 1e-3


def test_a_space_is_orthonormal_even_where_the_matrix_has_nothing_to_add() -> None:
    for matrix in (torch.zeros(150, 400), torch.eye(150, 400), torch.randn(150, 2) @ torch.randn(2, 400)):
        space = krylov_space(matrix, 5, 13, torch.Generator().manual_seed(0))
        assert float((space.basis.mT @ space.basis - torch.eye(65)).abs().max()) < 1e-5
        assert (space.squares.diff() <= 0).all()


def test_no_more_columns_than_the_matrix_has_rows() -> None:
    assert exact_and_found(torch.randn(131, 140), 16, iterations=90)[1].error_bound < 1e-3


def test_a_matrix_that_is_not_finite_gives_nan() -> None:
    broken = torch.randn(150, 400)
    broken[3, 4] = torch.nan
    assert leading_singular_values(broken, COUNT).values.isnan().all()


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e15])
def test_no_scale_hides_what_was_missed(scale: float) -> None:
    """Powers of small numbers vanish in float32; the bound must not vanish with them."""
    update = torch.randn(150, 400)
    plain, scaled = (exact_and_found(matrix, COUNT)[1] for matrix in (update, update * scale))
    assert scaled.error_bound / scale == pytest.approx(plain.error_bound, rel=0.02)


def test_the_probes_fall_short_once_in_ten_billion_times() -> None:
    """χ² with 32 degrees of freedom: P(‖g‖² < x) = e^(−x/2) Σ_{i≥16} (x/2)^i / i!."""
    half = LEAST**2 / 2
    assert PROBES == 32
    assert exp(-half) * sum(half**i / factorial(i) for i in range(16, 60)) == pytest.approx(1e-10, rel=0.01)


NOISE = torch.randn(200, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REST = {
    "noise": NOISE,
    "flat": torch.eye(200, 500, dtype=torch.float64),
    "rank one": torch.outer(NOISE[:, 0], NOISE[0]),
    "one above noise": 3 * torch.outer(NOISE[:, 0], NOISE[0]) / 10 + NOISE,
    "slow": torch.from_numpy(oracles.matrix_with(np.arange(1, 201.0) ** -0.5, 200, 500)),
    "zero": torch.zeros(200, 500, dtype=torch.float64),
}


@pytest.mark.parametrize("name", REST)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_norm_bound_is_above_the_norm_and_near_it(name: str, transposed: bool) -> None:
    """Near: at most half as much again, for every seed; exact where there is but one value."""
    matrix = REST[name].mT if transposed else REST[name]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(matrix.shape[1], 12, generator=generator, dtype=torch.float64)).Q
        probes = outside(basis, torch.randn(matrix.shape[1], PROBES, generator=generator, dtype=torch.float64))
        rest = matrix - matrix @ basis @ basis.mT
        exact = float(oracles.singular_values(rest.numpy())[0])
        bound = norm_bound(matrix, basis, probes, matrix @ probes)
        assert exact * (1 - 1e-9) <= bound**0.5 <= 1.5 * exact * (1 + 1e-9)
        if name in ("rank one", "zero"):
            assert bound**0.5 == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_an_update_of_low_rank_is_never_found_stronger_than_it_is(rank: int) -> None:
    # What is left beside its directions is nothing, of which no basis can be made.
    generator = torch.Generator().manual_seed(rank)
    rows, cols = torch.randperm(60, generator=generator)[:rank], torch.randperm(90, generator=generator)[:rank]
    for strength in (0.0, 1.0, 2.0):
        update = torch.zeros(60, 90)
        update[rows, cols] = strength * torch.arange(1.0, rank + 1)
        found = leading_singular_values(update, 3)
        exact = torch.linalg.svdvals(update.double())[:3]
        assert (found.values <= exact + 1e-6 * float(exact[0])).all()
        assert (exact <= found.values + found.error_bound + 1e-6 * float(exact[0])).all()
