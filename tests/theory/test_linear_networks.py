"""Theorem 2: closed forms against integrated flow, the differential equations, and their laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from inrank.experiments.theorem_2.flows import agreement, beyond_capacity, growth_rates, random_sets, residual
from inrank.theory.gradient_flow import gradient_flow, integrate
from inrank.theory.linear_networks import (
    learning_time,
    mode_strength,
    orthogonal_start,
    random_orthogonal,
    random_target,
    unbalanced_mode_strength,
)

GRID = torch.linspace(0, 12, 61, dtype=torch.float64)
S = torch.tensor([0.0, 0.3, 1.0, 2.0, 7.0], dtype=torch.float64)[:, None]
pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_closed_form_meets_the_integrated_flow_for_fifty_random_sets() -> None:
    found = agreement(random_sets(50, 6, seed=3))
    assert found["balanced"] < 1e-9  # the issue asks for 1e-3
    assert found["general"] < 1e-9
    assert found["crossed"] < 1e-12  # the modes never meet


def test_unbalanced_form_meets_the_flow_where_eq_4_does_not() -> None:
    found = agreement(random_sets(10, 6, seed=4, balanced=False))
    assert found["general"] < 1e-9
    assert found["balanced"] > 0.1


def test_closed_form_solves_equation_12_by_automatic_differentiation() -> None:
    assert residual(random_sets(50, 10, seed=5)) < 1e-13  # the issue asks for 1e-8


def test_unbalanced_form_solves_its_equation_by_automatic_differentiation() -> None:
    a0, b0, tau = numbers(40), numbers(40), 1.7
    times = GRID.expand(len(S), 40, -1).clone().requires_grad_()
    u = unbalanced_mode_strength(S[..., None], a0[:, None], b0[:, None], times, tau) + (a0 * b0)[:, None]
    (rate,) = torch.autograd.grad(u.sum(), times)
    balance = (a0**2 - b0**2)[:, None]
    expected = torch.sqrt(balance**2 + 4 * u**2) * (S[..., None] - u) / tau
    torch.testing.assert_close(rate, expected, rtol=0, atol=1e-12)


def test_mode_strength_is_equation_4_as_it_is_printed() -> None:
    s, u0, t, tau = 1.3, 0.2, np.linspace(0, 5, 11), 0.7
    grown = np.exp(2 * s * t / tau)
    np.testing.assert_allclose(mode_strength(s, u0, t, tau), s * grown / (grown - 1 + s / u0) - u0, atol=1e-15)


def test_both_forms_are_one_for_balanced_modes_of_either_order() -> None:
    root = torch.tensor([0.0, 1e-3, 0.4, 3.0], dtype=torch.float64)
    expected = mode_strength(S[:, None], root[:, None] ** 2, GRID)
    for sign in (1, -1):  # a = b < 0 is as good
        found = unbalanced_mode_strength(S[:, None], sign * root[:, None], sign * root[:, None], GRID)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_unbalanced_form_knows_no_order_of_layers_and_no_sign() -> None:
    a0, b0 = numbers(2, 20, 1)
    expected = unbalanced_mode_strength(S[:, None], a0, b0, GRID)
    for other in ((b0, a0), (-a0, -b0)):
        torch.testing.assert_close(unbalanced_mode_strength(S[:, None], *other, GRID), expected, rtol=0, atol=1e-13)


def test_ends_at_s_minus_u0_and_begins_at_zero_without_overflow() -> None:
    u0 = torch.tensor([1e-300, 1e-8, 0.5, 30.0], dtype=torch.float64)
    ends = mode_strength(S[1:], u0, 1e6)
    torch.testing.assert_close(ends, S[1:] - u0, rtol=1e-14, atol=0)
    assert mode_strength(S, u0, 0.0).abs().max() == 0
    assert mode_strength(S, 0.0, GRID).abs().max() == 0  # the saddle


def test_a_mode_without_target_is_forgotten_like_one_over_time() -> None:
    expected = 0.4 / (1 + 2 * 0.4 * GRID) - 0.4
    torch.testing.assert_close(mode_strength(0.0, 0.4, GRID), expected)
    torch.testing.assert_close(unbalanced_mode_strength(0.0, 0.4**0.5, 0.4**0.5, GRID), expected)


def test_only_the_ratio_of_u0_and_s_shapes_the_curve() -> None:
    for factor in (0.01, 3.0):
        scaled = mode_strength(factor * S, factor * 0.2, GRID / factor)
        torch.testing.assert_close(scaled, factor * mode_strength(S, 0.2, GRID), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(mode_strength(S, 0.2, 5 * GRID, tau=5.0), mode_strength(S, 0.2, GRID))


def test_learning_time_is_when_the_mode_is_there() -> None:
    u0 = torch.tensor([1e-5, 0.1, 1.0, 20.0], dtype=torch.float64)
    for fraction in (0.0, 0.1, 0.5, 0.999):
        times = learning_time(S, u0, fraction, tau=2.0)
        torch.testing.assert_close(mode_strength(S, u0, times, tau=2.0), fraction * (S - u0), rtol=1e-9, atol=1e-12)


def test_a_stronger_target_is_learned_sooner_from_any_equal_start() -> None:
    times = learning_time(torch.linspace(0, 20, 101), torch.logspace(-4, 2, 7)[:, None])
    assert (times.diff(dim=-1) < 0).all()


def test_negative_start_ends_at_the_saddle_and_the_flow_agrees() -> None:
    s, root = [1.0, 0.5], [0.3, 0.2]
    target = random_target(s, 3, 4)
    weights = orthogonal_start(target, root, [-r for r in root])
    found = target.strengths_in(gradient_flow(*weights, target.correlation, GRID))
    torch.testing.assert_close(
        found, unbalanced_mode_strength(s, root, [-0.3, -0.2], GRID[:, None]), rtol=0, atol=1e-7
    )  # 1e-11 a step, grown near the saddle by e^12
    torch.testing.assert_close(found[-1], torch.tensor([0.09, 0.04]).double(), rtol=0, atol=1e-6)


def test_equation_4_taken_literally_has_its_pole_at_the_learning_time_of_the_magnitude() -> None:
    s, u0 = 2.0, -0.05
    pole = float(learning_time(s, -u0))
    assert math.isclose(math.exp(2 * s * pole), 1 - s / u0)  # the denominator of eq. 4 is zero


def test_modes_without_a_hidden_unit_are_never_learned() -> None:
    kept, beyond = beyond_capacity(8, seed=0)
    assert kept < 1e-6
    assert beyond < 1e-9


def test_early_modes_grow_at_twice_their_target_strength() -> None:
    found, expected = growth_rates(6)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_orthogonal_start_is_the_theorems() -> None:
    target = random_target([3.0, 2.0, 1.0], 6, 5)
    m1, m2 = [0.1, 0.2, -0.3], [0.5, 0.6, 0.7]
    first, second = orthogonal_start(target, m1, m2)
    diagonal = torch.tensor(m1, dtype=torch.float64) * torch.tensor(m2, dtype=torch.float64)
    torch.testing.assert_close(target.strengths_in(second @ first), diagonal)
    torch.testing.assert_close(second @ first, (target.left * diagonal) @ target.right)
    torch.testing.assert_close(torch.linalg.svdvals(first), torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.svdvals(target.correlation)[:3], target.strengths)


def test_random_orthogonal_is_orthogonal_and_follows_its_generator() -> None:
    one, same = (random_orthogonal(7, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(one @ one.mT, torch.eye(7, dtype=torch.float64))
    assert torch.equal(one, same)


def test_gradient_flow_is_the_limit_of_gradient_descent() -> None:
    first, second, correlation = numbers(3, 5), numbers(4, 3), numbers(4, 5)
    flow = gradient_flow(first, second, correlation, [0.5])[0]
    errors = []
    for steps in (1000, 2000):
        w1, w2 = first, second
        for _ in range(steps):
            error = correlation - w2 @ w1
            w1, w2 = w1 + 0.5 / steps * w2.mT @ error, w2 + 0.5 / steps * error @ w1.mT
        errors.append(float((w2 @ w1 - second @ first - flow).norm()))
    assert errors[0] < 0.02
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.01)  # Euler's order is one


def test_flow_of_a_batch_is_the_flow_of_each_with_its_own_pace() -> None:
    first, second, correlation, tau = (
        numbers(3, 2, 4),
        numbers(3, 5, 2),
        numbers(3, 5, 4),
        torch.tensor([1.0, 0.5, 3.0]),
    )
    together = gradient_flow(first, second, correlation, [0.3, 1.0], tau)
    for i in range(3):
        alone = gradient_flow(first[i], second[i], correlation[i], [0.3, 1.0], float(tau[i]))
        torch.testing.assert_close(together[:, i], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("slope", "solution"),
    [
        (lambda y: -y, lambda t: math.exp(-t)),
        (lambda y: y**2, lambda t: 1 / (1 - t)),
        (lambda y: y * (3 - y), lambda t: 3 / (1 + 2 * math.exp(-3 * t))),
    ],
)
def test_integrate_solves_equations_with_known_solutions(
    slope: Callable[[Tensor], Tensor], solution: Callable[[float], float]
) -> None:
    times = [0.0, 0.1, 0.1, 0.9]
    found = torch.cat(list(integrate(slope, torch.ones(1, dtype=torch.float64), times)))
    np.testing.assert_allclose(found, [solution(t) for t in times], rtol=1e-8)


def test_integrate_error_falls_with_the_tolerance() -> None:
    def error(tolerance: float) -> float:
        (end,) = integrate(lambda y: torch.cos(y) * y, torch.ones(1, dtype=torch.float64), [3.0], tolerance)
        (best,) = integrate(lambda y: torch.cos(y) * y, torch.ones(1, dtype=torch.float64), [3.0], 1e-14)
        return float((end - best).abs())

    assert error(1e-10) < error(1e-6) / 100 < 1e-6


def test_integrate_gives_up_at_a_pole() -> None:
    with pytest.raises(ArithmeticError, match="integration stopped at t = "):
        list(integrate(lambda y: y**2, torch.ones(1, dtype=torch.float64), [2.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mode_strength(1.0, [0.1, -0.3], 1.0), "u0 must be at least 0 .* got -0.3"),
        (lambda: mode_strength(-1.0, 0.1, 1.0), "s must be at least 0, got -1"),
        (lambda: mode_strength(1.0, 0.1, -2.0), "t must be at least 0, got -2"),
        (lambda: mode_strength(1.0, 0.1, 1.0, 0.0), "tau must be above 0, got 0"),
        (lambda: mode_strength(1.0, math.nan, 1.0), "u0 must be finite"),
        (lambda: learning_time(1.0, 0.0), "u0 must be above 0"),
        (lambda: random_target([1.0, 2.0, 3.0], 2, 5), r"at most min\(2, 5\) numbers, got 3"),
        (lambda: orthogonal_start(random_target([1.0], 2, 2), [1.0], [1.0, 2.0]), "got 1 and 2"),
        (lambda: gradient_flow(numbers(2, 3), numbers(4, 2), numbers(4, 3), [1.0, 0.5]), "times must ascend"),
        (lambda: gradient_flow(numbers(2, 3), numbers(4, 2), numbers(4, 3), [1.0], tau=-1.0), "tau must be above 0"),
    ],
)
def test_errors_say_what_was_required(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
