"""Leading values of a matrix that is followed from snapshot to snapshot; single matrices are in test_spectrum.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import exp, factorial

import numpy as np
import pytest
import torch
from helpers import oracles
from torch import Tensor

from inrank_monitor.spectra.blocks import outside
from inrank_monitor.spectra.leading import LeadingSubspace, leading_singular_values
from inrank_monitor.spectra.norm_bound import LEAST, PROBES, norm_bound

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


def follow(updates: Iterator[Tensor] | list[Tensor], count: int = COUNT) -> list[tuple[float, float]]:
    """(error, bound) at each snapshot as shares of the last value; no value may be too large or outside its bound."""
    subspace, found = LeadingSubspace(), []
    for update in updates:
        exact = oracles.singular_values(update.double().numpy())
        rounding = 1e-6 * np.linalg.norm(exact)
        spectrum = leading_singular_values(update, count, subspace=subspace)
        errors = exact[:count] - spectrum.values.numpy()
        assert (errors >= -rounding).all()
        assert errors.max() <= spectrum.error_bound + rounding
        # Each value has the bound that follows from that of the last.
        last = float(spectrum.values[-1])
        rest = (last + spectrum.error_bound) ** 2 - last**2
        assert (exact[:count] <= (spectrum.values.square() + rest).sqrt().numpy() + rounding).all()
        found.append((float(errors.max()) / exact[count - 1], spectrum.error_bound / exact[count - 1]))
    return found


@pytest.mark.parametrize("shape", [(150, 400), (400, 150), (150, 150)])
@pytest.mark.parametrize("name", STRENGTHS)
def test_twenty_snapshots_of_a_slowly_changing_update_are_within_their_bound(name: str, shape: tuple[int, int]) -> None:
    found = follow(walk(STRENGTHS[name], 20, *shape))
    assert found[0][0] > 0.15  # what a random start misses ...
    assert max(error for error, _ in found[6:]) < 0.1  # ... is made good, at one product a snapshot
    assert max(bound for _, bound in found[6:]) < 1.4


def test_an_update_that_stays_is_met_ever_better() -> None:
    update = next(walk(STRENGTHS["slow"], 1))
    errors = [error for error, _ in follow([update] * 30)]
    assert errors[29] < 0.01 < 0.1 < errors[0]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(errors))


def test_one_product_a_snapshot_is_enough_for_a_slow_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert half_steps(monkeypatch, list(walk(STRENGTHS["slow"], 8))) == [1] * 8


def test_a_jump_is_seen_and_iterated_until_the_bound_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other update shares nothing with the first; one twice as strong has new directions beside the old ones."""
    before, after = list(walk(STRENGTHS["slow"], 6)), list(walk(STRENGTHS["slow"], 2, seed=1))
    for jumped in (after, [before[-1] + after[0]] * 2):
        updates = before + jumped
        found = follow(updates)
        assert found[6][1] < 1.5 * found[5][1]
        assert found[7][0] < 0.15
        taken = half_steps(monkeypatch, updates)
        assert taken[:6] == [1] * 6
        assert taken[6] > 1
        assert taken[7] == 1


def half_steps(monkeypatch: pytest.MonkeyPatch, updates: list[Tensor]) -> list[int]:
    """How many wide products each snapshot took."""
    with monkeypatch.context() as patch:
        taken: list[int] = []
        plain = Tensor.__matmul__

        def counted(left: Tensor, right: Tensor) -> Tensor:
            of_update = [150, 400] in (sorted(left.shape), sorted(right.shape))
            taken[-1] += of_update and min(*left.shape, *right.shape) == COUNT + 8 + PROBES
            return plain(left, right)

        patch.setattr(Tensor, "__matmul__", counted)
        subspace = LeadingSubspace()
        for update in updates:
            taken.append(0)
            leading_singular_values(update, COUNT, subspace=subspace)
        return taken


def test_new_directions_are_taken_up_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    update, updates = torch.randn(150, 400, generator=generator), []
    for _ in range(12):
        left, right = (torch.randn(size, generator=generator) for size in (150, 400))
        update = update + 0.3 * torch.outer(left, right)
        updates.append(update)
    follow(updates)


def test_a_rank_that_grows_from_nothing_is_followed() -> None:
    """Of an embedding ever more rows are touched: from a zero update over a few exact directions to many."""
    whole = torch.randn(150, 400)
    updates = [
        torch.cat([whole[:touched], torch.zeros(150 - touched, 400)]) for touched in (0, 0, 3, 10, 40, 40, 80, 150)
    ]
    found = []
    subspace = LeadingSubspace()
    for update in updates:
        exact = oracles.singular_values(update.numpy())
        spectrum = leading_singular_values(update, COUNT, subspace=subspace)
        assert np.abs(spectrum.values.numpy() - exact[:COUNT]).max() <= spectrum.error_bound + 1e-6 * np.linalg.norm(
            exact
        )
        found.append(spectrum)
    assert not found[1].values.any()
    assert found[1].error_bound == 0
    assert found[3].error_bound < 1e-3 * float(found[3].values[0])


def test_a_subspace_of_another_matrix_is_begun_anew() -> None:
    subspace = LeadingSubspace()
    matrices = [torch.randn(150, 400), torch.randn(150, 300), torch.randn(150, 300, dtype=torch.float64)]
    for matrix in matrices:
        found = leading_singular_values(matrix, COUNT, subspace=subspace, seed=-subspace.snapshots)
        alone = leading_singular_values(matrix, COUNT)
        assert torch.equal(found.values, alone.values)
        assert subspace.basis is not None
        assert subspace.basis.dtype == matrix.dtype
    leading_singular_values(matrices[-1], COUNT + 1, subspace=subspace)
    assert subspace.basis is not None
    assert subspace.basis.shape[1] == COUNT + 9


def test_the_subspace_is_orthonormal_and_a_small_part_of_the_matrix() -> None:
    subspace = LeadingSubspace()
    for update in walk(STRENGTHS["fast"], 6, 200, 2000):
        leading_singular_values(update, COUNT, subspace=subspace)
        basis = subspace.basis
        assert basis is not None
        assert basis.shape in ((200, COUNT + 8), (2000, COUNT + 8))
        assert float((basis.mT @ basis - torch.eye(COUNT + 8)).abs().max()) < 1e-5


def test_a_matrix_that_is_not_finite_leaves_the_subspace_alone() -> None:
    subspace = LeadingSubspace()
    update = torch.randn(150, 400)
    leading_singular_values(update, COUNT, subspace=subspace)
    basis = subspace.basis
    broken = update.clone()
    broken[3, 4] = torch.nan
    assert leading_singular_values(broken, COUNT, subspace=subspace).values.isnan().all()
    assert subspace.basis is basis


def test_following_draws_from_no_generator_but_its_own_and_repeats() -> None:
    updates = list(walk(STRENGTHS["slow"], 4))
    state, found = torch.get_rng_state(), []
    for _ in range(2):
        subspace = LeadingSubspace()
        found.append([leading_singular_values(update, COUNT, subspace=subspace).values for update in updates])
        torch.randn(3)
        assert all(torch.equal(*pair) for pair in zip(found[0], found[-1], strict=True))
    torch.set_rng_state(state)
    leading_singular_values(updates[0], COUNT, subspace=LeadingSubspace())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e15])
def test_no_scale_hides_what_was_missed(scale: float) -> None:
    """Powers of small numbers vanish in float32; the bound must not vanish with them."""
    updates = [update * scale for update in walk(STRENGTHS["slow"], 4)]
    for (error, bound), (plain, other) in zip(follow(updates), follow(walk(STRENGTHS["slow"], 4)), strict=True):
        assert error == pytest.approx(plain, rel=0.02)
        assert bound == pytest.approx(other, rel=0.02)


def test_the_probes_fall_short_once_in_ten_billion_times() -> None:
    """χ² with 16 degrees of freedom: P(‖g‖² < x) = e^(−x/2) Σ_{i≥8} (x/2)^i / i!."""
    half = LEAST**2 / 2
    assert PROBES == 16
    assert exp(-half) * sum(half**i / factorial(i) for i in range(8, 40)) == pytest.approx(1e-10, rel=0.01)


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
    """Near: at most twice it, for every seed; exact where there is but one value."""
    matrix = REST[name].mT if transposed else REST[name]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(matrix.shape[1], 12, generator=generator, dtype=torch.float64)).Q
        probes = outside(basis, torch.randn(matrix.shape[1], PROBES, generator=generator, dtype=torch.float64))
        rest = matrix - matrix @ basis @ basis.mT
        exact = float(oracles.singular_values(rest.numpy())[0])
        bound, strong = norm_bound(matrix, basis, probes, matrix @ probes)
        assert exact * (1 - 1e-9) <= bound**0.5 <= 2 * exact * (1 + 1e-9)
        assert strong.shape == (matrix.shape[0], PROBES)
        if name in ("rank one", "zero"):
            assert bound**0.5 == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_an_update_of_low_rank_is_never_found_stronger_than_it_is(rank: int) -> None:
    # What is left beside its directions is nothing, of which no basis can be made.
    generator = torch.Generator().manual_seed(rank)
    rows, cols = torch.randperm(60, generator=generator)[:rank], torch.randperm(90, generator=generator)[:rank]
    subspace = LeadingSubspace()
    for strength in (0.0, 1.0, 1.0, 1.0, 1.0, 2.0):
        update = torch.zeros(60, 90)
        update[rows, cols] = strength * torch.arange(1.0, rank + 1)
        found = leading_singular_values(update, 3, subspace=subspace)
        exact = torch.linalg.svdvals(update.double())[:3]
        assert (found.values <= exact + 1e-6 * float(exact[0])).all()
        assert (exact <= found.values + found.error_bound + 1e-6 * float(exact[0])).all()
