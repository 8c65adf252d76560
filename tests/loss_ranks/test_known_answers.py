"""Ranks by loss where the answer is known: planted updates, losses that look at one matrix alone, synthetic curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inrank_monitor import loss_at_ranks, ranks_by_loss
from inrank_monitor.loss_ranks.problem import Problem, SpentError
from inrank_monitor.loss_ranks.search import groups_of, search

State = Mapping[str, Tensor]


def planted(rows: int, cols: int, rank: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, State]:
    """A linear layer whose update has this rank, all directions of length 1, and its W0."""
    layer = nn.Linear(cols, rows, bias=False, dtype=dtype)
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    left, right = (torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64)).Q for size in (rows, cols))
    with torch.no_grad():
        layer.weight += (left @ right.mT).to(dtype)
    return layer, start


def distance(layer: nn.Module) -> Callable[[], Tensor]:
    """‖W − W now‖², which depends on nothing but what is left out."""
    target = layer.weight.detach().clone()
    return lambda: (layer.weight - target).double().square().sum()


@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (1, 12), (12, 1), (25, 25)])
def test_a_planted_rank_is_found_exactly(shape: tuple[int, int]) -> None:
    for rank in {1, min(5, *shape), min(shape)}:
        layer, start = planted(*shape, rank)
        found = ranks_by_loss(layer, start, distance(layer), 1e-3, 60)
        assert found.ranks == {"weight": rank}
        assert found.uniform_rank == rank
        assert found.table.loc["weight", "parameters"] == rank * sum(shape)


def test_a_tolerance_leaves_out_as_many_directions_as_it_pays_for() -> None:
    layer, start = planted(30, 40, 9)
    found = ranks_by_loss(layer, start, distance(layer), 3.5, 60)
    assert found.ranks == {"weight": 6}
    assert found.rise == pytest.approx(3, abs=1e-3)
    assert found.rise <= found.tolerance


def test_a_matrix_that_the_loss_does_not_see_has_rank_zero() -> None:
    model = nn.ModuleList([planted(20, 30, 4)[0] for _ in range(3)])
    start = {f"{i}.weight": torch.zeros(20, 30) for i in range(3)}
    found = ranks_by_loss(model, start, distance(model[1]), 1e-2, 100)
    assert [found.ranks[f"{i}.weight"] for i in (0, 2)] == [0, 0]
    assert found.ranks["1.weight"] > 0


def test_an_update_of_nothing_needs_no_rank_and_few_evaluations() -> None:
    layer = nn.Linear(5, 4)
    found = ranks_by_loss(layer, layer.state_dict(), distance(layer))
    assert found.ranks == {"weight": 0}
    assert found.rise == 0
    assert found.evaluations <= 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_full_ranks_are_the_model_to_the_bit_and_rank_zero_is_its_start_to_the_bit(dtype: torch.dtype) -> None:
    layer, start = planted(12, 20, 6, dtype)
    now = layer.weight.detach().clone()
    for rank, expected in ((12, now), (999, now), (0, start["weight"])):
        kept: list[Tensor] = []
        loss_at_ranks(layer, start, lambda kept=kept: kept.append(layer.weight.clone()) or 0.0, rank)
        assert torch.equal(kept[0], expected)
        assert torch.equal(layer.weight, now)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_every_rank_is_the_truncated_svd_of_the_update(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], shape[0], bias=False)
    start = {"weight": torch.randn(shape)}
    left, values, right = torch.linalg.svd((layer.weight.detach() - start["weight"]).double(), full_matrices=False)
    for rank in range(min(shape) + 1):
        truncated = start["weight"].double() + (left[:, :rank] * values[:rank]) @ right[:rank]
        off = loss_at_ranks(layer, start, lambda t=truncated: (layer.weight - t).abs().max(), rank)
        assert off < 1e-5


def test_a_rank_alone_leaves_the_other_matrices_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False))
    start = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    expected = float((model[1].weight.detach() ** 2).sum())
    rest = loss_at_ranks(model, start, lambda: sum((layer.weight**2).sum() for layer in model), {"0.weight": 0})
    assert rest == pytest.approx(expected, rel=1e-6)


def synthetic(matrices: int, limit: int, power: float = 1.0) -> tuple[Problem, np.ndarray, list[int]]:
    """A rise that is the left-out energies' sum, each matrix at a weight of its own; and those, and the calls."""
    random = np.random.default_rng(matrices)
    weights = 10.0 ** random.uniform(-2, 2, matrices)
    spectra = [np.arange(1, 65) ** -random.uniform(0.5, 1.5) for _ in range(matrices)]
    tails = [np.append(np.cumsum(values[::-1] ** 2)[::-1], 0) for values in spectra]
    calls = [0]

    def rise(ranks: np.ndarray) -> float:
        calls[0] += 1
        return float(sum(w * tail[r] for w, tail, r in zip(weights, tails, ranks, strict=True)) ** power)

    return Problem(spectra, [128] * matrices, rise, 1.0, limit), weights, calls


@pytest.mark.parametrize("matrices", [1, 6, 24])
def test_the_search_comes_near_to_the_optimum_that_is_known(matrices: int) -> None:
    problem, weights, _ = synthetic(matrices, 200)
    gains = np.sort(np.concatenate([w * -np.diff(t) for w, t in zip(weights, problem.tails, strict=True)]))
    optimum = len(gains) - int(np.searchsorted(np.cumsum(gains), 1.0, side="right"))
    found = search(problem, list(range(matrices)))
    assert found.rise <= 1.0
    assert optimum <= found.ranks.sum() <= 1.06 * optimum + 1
    assert found.uniform is not None
    assert found.ranks.sum() <= found.uniform * matrices


@pytest.mark.parametrize("limit", [0, 1, 7, 30, 200])
@pytest.mark.parametrize("matrices", [3, 60, 300])
def test_the_evaluations_are_never_more_than_allowed_and_the_result_is_within_the_tolerance(
    limit: int, matrices: int
) -> None:
    problem, _, calls = synthetic(matrices, limit, 0.8)
    found = search(problem, ["a", "b", "c"] * (matrices // 3))
    assert calls[0] <= limit
    assert found.rise <= problem.tolerance
    assert found.rise == problem.best_rise


def test_a_spent_problem_answers_what_it_knows_and_nothing_else() -> None:
    problem, _, _ = synthetic(2, 1)
    first = problem.rise(np.array([3, 4]))
    assert problem.rise(np.array([3, 4])) == first
    assert problem.rise(problem.full) == 0
    with pytest.raises(SpentError):
        problem.rise(np.array([4, 3]))


def test_groups_hold_every_matrix_once_and_are_not_too_many() -> None:
    for count in (1, 5, 48, 333):
        for most in (2, 7, 40):
            groups = groups_of([place % 6 for place in range(count)], most)
            assert sorted(place for group in groups for place in group) == list(range(count))
            assert len(groups) <= most
    assert groups_of([1, 2, 3], 1) == []


def test_truncation_that_lowers_the_loss_is_taken() -> None:
    layer, start = planted(20, 30, 8)
    size = start["weight"]
    found = ranks_by_loss(layer, start, lambda: (layer.weight - size).square().sum(), 1e-3, 40)
    assert found.ranks == {"weight": 0}
    assert found.rise == pytest.approx(-8, rel=1e-4)


def test_a_loss_that_is_infinite_at_low_ranks_is_a_loss_like_another() -> None:
    layer, start = planted(20, 30, 8)
    near = distance(layer)
    found = ranks_by_loss(layer, start, lambda: near() if near() < 2.5 else torch.tensor(float("nan")), 1.5, 40)
    assert found.ranks == {"weight": 7}
