"""The perceptron of Figures 3 and 15: greedy order against known courses, its training, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from inrank.experiments.perceptron import figure_3, figure_15
from inrank.experiments.perceptron.greedy_order import greedy_order, half_times, null_order
from inrank.experiments.perceptron.images import Images
from inrank.experiments.perceptron.training import (
    OPTIMIZERS,
    SCALES,
    Perceptron,
    errors_without_structure,
    make_optimizers,
    snapshot_steps,
    training,
)
from inrank.reproduction.experiment import ExperimentError, Outcome, Request
from inrank.reproduction.verdicts import Sample, all_of, is_below

pytestmark = pytest.mark.numeric

STEPS = np.arange(1, 101)


def theorem_2(strengths: np.ndarray, start: float = 1e-3) -> np.ndarray:
    """Eq. 4 with τ = 20 at STEPS, a column a strength."""
    growth = np.exp(2 * strengths * STEPS[:, None] / 20)
    course: np.ndarray = strengths * growth / (growth - 1 + strengths / start) - start
    return course


def test_half_times_of_straight_lines_are_half_of_the_end() -> None:
    values = STEPS[:, None] * np.array([4.0, 2.0, 1.0])
    np.testing.assert_allclose(half_times(STEPS, values), [50.0, 50.0, 50.0])


def test_half_times_lie_between_the_measured_steps() -> None:
    steps, values = np.array([10, 30]), np.array([[1.0, 8.0, 0.0], [8.0, 8.0, 0.0]])
    # 1 at step 10, 8 at step 30: 4 at 10 + 20 · 3/7; 8 already at 10: 4 at 5
    np.testing.assert_allclose(half_times(steps, values), [10 + 20 * 3 / 7, 5.0, 0.0])


def test_half_times_of_theorem_2_are_its_own() -> None:
    strengths, start = np.array([4.0, 3.0, 2.0]), 1e-3
    # u + u0 = x with x = (s − u0)/2 + u0 at the half: t = τ/(2s) · ln(x (s − u0) / (u0 (s − x)))
    x = (strengths - start) / 2 + start
    expected = 20 / (2 * strengths) * np.log(x * (strengths - start) / (start * (strengths - x)))
    np.testing.assert_allclose(half_times(STEPS, theorem_2(strengths, start)), expected, atol=0.1)


def test_greedy_order_of_theorem_2_is_one_and_of_the_reverse_minus_one() -> None:
    assert greedy_order(STEPS, theorem_2(np.linspace(3, 1, 9))) == pytest.approx(1.0)
    late_first = np.sqrt(STEPS[:, None] / 100) ** np.arange(9, 0, -1) * np.linspace(3, 1, 9)
    assert greedy_order(STEPS, late_first) == pytest.approx(-1.0)


def test_greedy_order_of_one_shape_that_grows_is_zero() -> None:
    assert greedy_order(STEPS, STEPS[:, None] * np.array([4.0, 2.0, 1.0])) == 0.0


def test_greedy_order_of_two_strong_values_is_not_a_number() -> None:
    assert math.isnan(greedy_order(STEPS, STEPS[:, None] * np.array([1.0, 0.5, 0.05])))


def test_noise_that_grows_has_no_greedy_order() -> None:
    steps = np.arange(1, 31)
    found = [null_order(steps, np.sqrt(steps), (24, 40), seed, draws=4) for seed in range(8)]
    assert abs(np.mean(found)) < 0.25  # 32 draws, each with a deviation of about 0.4
    assert np.mean(found) < greedy_order(STEPS, theorem_2(np.linspace(3, 1, 9)))


def test_half_times_refuse_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        half_times(np.array([1]), np.array([[math.nan]]))


def test_errors_without_structure_have_the_images_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(50, 4, generator=generator) @ torch.randn(4, 20, generator=generator)
    images = Images(few, torch.zeros(50, dtype=torch.int64), few, torch.zeros(50, dtype=torch.int64))
    values = errors_without_structure(images, 32, 0)
    assert len(values) == 20
    assert (values[:4] > 1).all()
    assert (values[4:] < 1e-3 * values[0]).all()  # four directions of images: four of the update
    squared = np.mean([(errors_without_structure(images, 32, seed) ** 2).sum() for seed in range(200)])
    assert squared == pytest.approx(32 * float(few.double().pow(2).sum()), rel=0.05)  # E‖E X‖² = width · ‖X‖²


def test_without_the_mean_image_its_direction_is_gone() -> None:
    generator = torch.Generator().manual_seed(0)
    around = torch.randn(50, 6, generator=generator) + 100 * torch.ones(6)
    images = Images(around, torch.zeros(50, dtype=torch.int64), around, torch.zeros(50, dtype=torch.int64))
    whole, centred = (errors_without_structure(images, 32, 0, centred=one) for one in (False, True))
    assert whole[0] > 50 * whole[1]
    assert centred[0] < 5 * centred[1]


def test_early_steps_are_measured_closer_together_and_the_last_one_too() -> None:
    steps = sorted(snapshot_steps(2000, 80))
    assert steps[0] == 1
    assert steps[-1] == 2000
    gaps = np.diff(steps)
    assert gaps[0] < 5 < gaps[-1]
    assert 40 <= len(steps) <= 100


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("one", OPTIMIZERS)
def test_every_parameter_has_one_optimizer(scale: str, one: str) -> None:
    model = Perceptron(6, 5, 4)
    optimizers = make_optimizers(model, training(scale, "kaiming", one, 0).settings)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_an_optimizer_that_torch_has_not_is_named() -> None:
    settings = dict(training("smoke", "kaiming", "sgd", 0).settings) | {"optimizer": "Newton"}
    with pytest.raises(ExperimentError, match=r"torch\.optim\.Newton needs a newer torch"):
        make_optimizers(Perceptron(3, 2, 2), settings)


def test_figure_15_takes_figure_3s_training_of_kaiming_and_sgd() -> None:
    request = Request(Path("nowhere"), "tiny", (0, 1))
    both = [{one.name: one for one in figure.trainings(request)} for figure in (figure_3, figure_15)]
    shared = both[0].keys() & both[1].keys()
    assert shared == {"perceptron-kaiming-sgd-seed-0", "perceptron-kaiming-sgd-seed-1"}
    assert all(both[0][name] == both[1][name] for name in shared)


def trained(directory: Path, initialization: str, optimizer: str) -> Outcome:
    one = training("smoke", initialization, optimizer, 0)
    return Outcome(one, directory / one.name, one.run(directory / one.name, one.settings, "cpu"), 1.0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    directory, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    torch.set_num_threads(1)
    kinds = [("orthogonal", "sgd"), ("zero", "sgd"), *(("kaiming", one) for one in OPTIMIZERS)]
    every = [trained(directory, *kind) for kind in kinds]
    torch.set_num_threads(threads)
    return {outcome.training.name: outcome for outcome in every}


@pytest.mark.slow
def test_every_training_learns(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        numbers = outcome.numbers
        assert numbers["train_loss"] < 0.8 * numbers["start_loss"], name
        assert numbers["test_accuracy"] > 0.3, name  # guessing: 0.1
        assert outcome.tables.status == "finished"
        assert outcome.tables.problems == []


def test_a_training_is_the_same_twice_also_after_an_interruption(tmp_path: Path, one_thread: None) -> None:
    before = trained(tmp_path / "first", "kaiming", "sgd")
    one = before.training
    one.run(tmp_path / "second" / one.name, dict(one.settings) | {"steps": 20}, "cpu")  # as far as a killed one came
    again = trained(tmp_path / "second", "kaiming", "sgd")
    assert again.numbers == before.numbers
    for matrix in ("fc1.weight", "fc2.weight"):
        assert again.tables.singular_values(matrix).equals(before.tables.singular_values(matrix))


@pytest.mark.slow
@pytest.mark.parametrize(("figure", "statements", "rows"), [(figure_3, 5, 6), (figure_15, 6, 6)])
def test_one_seed_decides_nothing_but_all_is_shown(
    outcomes: dict[str, Outcome], figure: object, statements: int, rows: int
) -> None:
    request = Request(Path("nowhere"), "smoke", (0,))
    findings = figure.analyse(request, outcomes)  # type: ignore[attr-defined]
    assert [one.verdict for one in findings.statements] == ["not tested"] * statements
    assert len(findings.tables[0].rows) == rows
    for table in findings.tables:
        assert {len(row) for row in table.rows} == {len(table.heads)}
    assert len(findings.figures) == 6
    assert "nan" not in findings.reading


def test_a_claim_of_several_parts_has_its_worst_verdict() -> None:
    low, mixed, high = (
        Sample("low", [0.1, 0.11, 0.12]),
        Sample("mixed", [0.1, 0.5, 0.9]),
        Sample("high", [0.9, 0.91, 0.92]),
    )
    holds, open_, fails = (is_below(one.name, one, 0.5, "half") for one in (low, mixed, high))
    assert all_of("all", [holds, holds]).verdict == "agrees"
    assert all_of("all", [holds, open_]).verdict == "within noise"
    together = all_of("all", [holds, open_, fails])
    assert together.verdict == "disagrees"
    assert together.values == {one.name: one.values for one in (low, mixed, high)}
    assert all(f"{part.claim} {part.verdict}: " in together.why for part in (holds, open_, fails))
