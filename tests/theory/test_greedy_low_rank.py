"""Algorithm 1 on deep linear networks, and the experiment that sets it beside gradient descent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inrank.experiments.glrl.glrl import EXPERIMENTS
from inrank.experiments.glrl.training import Nearest
from inrank.reproduction.experiment import Outcome, Request
from inrank.theory.deep_linear_network import DeepLinearNetwork, curvature_bound
from inrank.theory.greedy_low_rank import GreedyResult, greedy_low_rank
from inrank.theory.matrix_costs import Cost, MatrixCompletion, MatrixRegression

pytestmark = pytest.mark.numeric


def target(size: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix with singular values 1, …, 1/rank."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    values = torch.arange(rank, 0, -1, dtype=torch.float64) / rank
    return left * values @ right.mT, values


def completion(matrix: Tensor, share: float, seed: int = 1) -> MatrixCompletion:
    return MatrixCompletion(matrix, torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed)) < share)


def regression(matrix: Tensor, samples: int = 60) -> MatrixRegression:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(matrix.shape[1], samples, generator=generator, dtype=torch.float64)
    return MatrixRegression(inputs, matrix @ inputs)


def learn(cost: Cost, depth: int, **options: Any) -> tuple[DeepLinearNetwork, GreedyResult]:
    network = DeepLinearNetwork(cost.rows, cost.cols, depth)
    return network, greedy_low_rank(network, cost, **options)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_greedy_learning_finds_rank_three_of_a_completion_problem_and_stops(depth: int) -> None:
    matrix, values = target(20, 3)
    _, result = learn(completion(matrix, 0.7), depth)
    assert (result.width, result.reason) == (3, "converged")
    torch.testing.assert_close(result.singular_values, values, rtol=0.01, atol=0)  # the bound
    torch.testing.assert_close(result.product, matrix, rtol=0, atol=1e-3)  # hidden entries too


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("rank", [1, 5])
def test_greedy_learning_finds_other_ranks_of_completion_problems(depth: int, rank: int) -> None:
    matrix, values = target(30, rank)
    _, result = learn(completion(matrix, 0.6), depth)
    assert (result.width, result.reason) == (rank, "converged")
    torch.testing.assert_close(result.singular_values, values, rtol=0.01, atol=0)


@pytest.mark.parametrize(("depth", "rank"), [(2, 1), (2, 5), (3, 3)])
def test_greedy_learning_finds_the_rank_of_a_regression(depth: int, rank: int) -> None:
    matrix, values = target(12, rank)
    _, result = learn(regression(matrix), depth)
    assert (result.width, result.reason) == (rank, "converged")
    torch.testing.assert_close(result.singular_values, values, rtol=0.01, atol=0)


def test_where_everything_is_observed_the_critical_points_are_the_truncated_svds() -> None:
    matrix, values = target(10, 3)
    _, result = learn(MatrixCompletion(matrix, torch.ones(10, 10, dtype=torch.bool)), 3)
    left, _, right = torch.linalg.svd(matrix)
    for growth in result.growths[1:]:
        best = left[:, : growth.width] * values[: growth.width] @ right[: growth.width]  # Eckart–Young
        torch.testing.assert_close(growth.product, best, rtol=0, atol=1e-3)
        assert growth.slope == pytest.approx(float(values[growth.width]), abs=1e-3)
    assert [growth.width for growth in result.growths] == [0, 1, 2]


def test_the_cost_falls_at_every_look_and_the_width_never_shrinks() -> None:
    matrix, _ = target(12, 3)
    _, result = learn(completion(matrix, 0.8), 3)
    _, widths, costs = (np.array(column) for column in zip(*result.history, strict=True))
    assert (np.diff(costs) < 0).all()
    assert (np.diff(widths) >= 0).all()
    assert (np.diff(widths) <= 1).all()


def test_greedy_learning_of_zero_stays_at_rank_zero() -> None:
    _, result = learn(MatrixCompletion(torch.zeros(4, 5).double(), torch.ones(4, 5, dtype=torch.bool)), 2)
    assert (result.width, result.reason, result.steps, result.cost) == (0, "converged", 0, 0.0)
    assert result.singular_values.shape == (0,)


def test_greedy_learning_is_the_same_in_a_network_with_less_room() -> None:
    matrix, _ = target(12, 2)
    wide, narrow = DeepLinearNetwork(12, 12, 3), DeepLinearNetwork(12, 12, 3, capacity=2)
    for network in (wide, narrow):
        greedy_low_rank(network, completion(matrix, 0.8))
    torch.testing.assert_close(wide.product(), narrow.product(), rtol=0, atol=1e-10)
    assert not wide.weights[1][2:].any()
    assert not wide.weights[1][:, 2:].any()  # units not in use stay exactly zero


def test_greedy_learning_stops_at_the_largest_width_and_at_the_last_step() -> None:
    matrix, _ = target(12, 3)
    _, result = learn(completion(matrix, 0.8), 2, max_width=2)
    assert (result.width, result.reason) == (2, "width")
    _, result = learn(completion(matrix, 0.8), 2, max_steps=33)
    assert (result.steps, result.reason) == (33, "steps")


def test_growth_adds_the_steepest_direction_and_nothing_else() -> None:
    network = DeepLinearNetwork(4, 3, 3)
    network.grow(torch.eye(4).double()[0], torch.eye(3).double()[1], 0.1)
    before = network.product().detach()
    network.grow(torch.eye(4).double()[2], torch.eye(3).double()[0], 0.2)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    expected[2, 0] = -(0.2**3)
    torch.testing.assert_close(network.product() - before, expected)
    network.grow(torch.eye(4).double()[1], torch.eye(3).double()[2], 0.1)
    with pytest.raises(ValueError, match="all 3 hidden units are in use"):
        network.grow(torch.eye(4).double()[1], torch.eye(3).double()[2], 0.1)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gradients_are_those_of_automatic_differentiation(depth: int) -> None:
    matrix, _ = target(6, 2)
    for cost in (completion(matrix, 0.5), regression(matrix, 20)):
        network = DeepLinearNetwork(6, 6, depth)
        network.randomize(0.7, torch.Generator().manual_seed(3))
        cost.value(network.product()).backward()
        found = network.gradients(cost.gradient(network.product().detach()))
        for weight, slope in zip(network.weights, found, strict=True):
            torch.testing.assert_close(slope, weight.grad)


def test_regression_costs_half_the_mean_squared_error() -> None:
    inputs, outputs, matrix = torch.randn(3, 7).double(), torch.randn(2, 7).double(), torch.randn(2, 3).double()
    cost = MatrixRegression(inputs, outputs)
    torch.testing.assert_close(cost.value(matrix), (matrix @ inputs - outputs).square().sum() / 14)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_curvature_bound_is_above_the_hessians_largest_eigenvalue(depth: int) -> None:
    matrix, _ = target(4, 2)
    for cost in (completion(matrix, 0.6), regression(matrix, 8)):
        for scale in (0.1, 1.0, 2.0):
            network = DeepLinearNetwork(4, 4, depth)
            network.randomize(scale, torch.Generator().manual_seed(4))
            flat = torch.cat([weight.detach().flatten() for weight in network.weights])

            def value(theta: Tensor, depth: int = depth, cost: Cost = cost) -> Tensor:
                parts = theta.reshape(depth, 4, 4)
                product = parts[0]
                for part in parts[1:]:
                    product = part @ product
                return cost.value(product)

            hessian = torch.autograd.functional.hessian(value, flat)
            gradient = cost.gradient(network.product().detach())
            bound = curvature_bound(network.norms(), cost.curvature, torch.linalg.matrix_norm(gradient, 2))
            assert float(torch.linalg.eigvalsh(hessian)[-1]) <= float(bound)


def test_norms_are_the_layers_spectral_norms() -> None:
    network = DeepLinearNetwork(5, 7, 3)
    network.randomize(1.0, torch.Generator().manual_seed(5))
    expected = torch.stack([torch.linalg.matrix_norm(weight.detach(), 2) for weight in network.weights])
    torch.testing.assert_close(network.norms(), expected)


def test_the_network_applies_its_product() -> None:
    network = DeepLinearNetwork(5, 7, 3)
    network.randomize(1.0, torch.Generator().manual_seed(5))
    inputs = torch.randn(2, 7).double()
    torch.testing.assert_close(network(inputs), inputs @ network.product().mT)


def test_wrong_arguments_are_named() -> None:
    matrix, _ = target(4, 1)
    cost = completion(matrix, 0.9)
    with pytest.raises(ValueError, match="depth must be at least 2"):
        DeepLinearNetwork(4, 4, 1)
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        DeepLinearNetwork(4, 4, 2, capacity=0)
    with pytest.raises(ValueError, match="cost's shape 4×4, got 4×5"):
        greedy_low_rank(DeepLinearNetwork(4, 5, 2), cost)
    used = DeepLinearNetwork(4, 4, 2)
    used.randomize(1.0)
    with pytest.raises(ValueError, match="network must be zero"):
        greedy_low_rank(used, cost)
    wrong = {"epsilon": 0.0, "tolerance": 1.0, "max_width": 5, "max_steps": 0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            learn(cost, 2, **{name: value})
    with pytest.raises(ValueError, match="no observed entry"):
        MatrixCompletion(matrix, torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="of booleans"):
        MatrixCompletion(matrix, torch.ones(4, 4))
    with pytest.raises(ValueError, match="entries must be finite"):
        MatrixCompletion(matrix / 0, torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="a column for each sample"):
        MatrixRegression(torch.ones(3, 5), torch.ones(2, 4))


def test_the_nearest_point_of_a_path_is_kept() -> None:
    points = {"rank_1": torch.eye(2).double()}
    near = Nearest(points, 1, "cpu")
    for step, factor in enumerate((0.0, 0.9, 3.0)):
        near.look(torch.eye(2).double() * factor, step)
    numbers = near.numbers()
    assert numbers["nearest_1"] == pytest.approx(0.1)
    assert numbers["nearest_step_1"] == 1
    assert numbers["nearest_effective_rank_1"] == pytest.approx(2)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, dict[str, Outcome]]:
    """The smoke scale's trainings, in this process."""
    request = Request(tmp_path_factory.mktemp("glrl"), "smoke", (0,))
    found = {}
    for training in EXPERIMENTS["glrl"].trainings(request):
        assert all(name in found for name in training.after)
        directory = Path(request.runs / training.name)
        directory.mkdir(parents=True)
        numbers = training.run(directory, training.settings, "cpu")
        found[training.name] = Outcome(training, directory, {name: float(n) for name, n in numbers.items()}, 0.0)
    return request, found


@pytest.mark.slow
def test_the_experiment_leaves_runs_whose_rank_grows(outcomes: tuple[Request, dict[str, Outcome]]) -> None:
    run = outcomes[1]["glrl-completion-depth-3-seed-0"].tables
    assert run.status == "finished"
    grown = run.events[run.events["kind"] == "rank_grown"]
    assert grown["message"].tolist() == ["width 1", "width 2"]
    values = run.singular_values(str(run.matrices.index[0])).iloc[-1].to_numpy()
    assert (values[:2] > 0.5).all()
    assert (values[2:] < 1e-6).all()


@pytest.mark.slow
def test_the_experiment_makes_findings_of_its_runs(outcomes: tuple[Request, dict[str, Outcome]]) -> None:
    findings = EXPERIMENTS["glrl"].analyse(*outcomes)
    assert findings.statements[0].verdict == "agrees"  # computed: rank found = truth
    assert {statement.verdict for statement in findings.statements[1:]} == {"not tested"}  # one seed
    assert "rank 2 in 4 of 4 trainings" in findings.reading
    assert len(findings.figures) == 4
    assert [len(table.rows) for table in findings.tables] == [4, 8]
    assert all(len(row) == len(table.heads) for table in findings.tables for row in table.rows)
