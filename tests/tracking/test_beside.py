"""What attach measures beside the updates where it is asked: `of=("update", "weight")` and `directions=`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import assert_same_weights, mlp, record, sgd, start, train, trained
from torch import Tensor, nn

from inrank_monitor import attach, open_run
from inrank_monitor.ranks import tail_exponent

pytestmark = pytest.mark.numeric
BOTH: dict[str, Any] = {"of": ("update", "weight"), "directions": 4}


def orthonormal(rows: int, cols: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, dtype=torch.float64)).Q


def steps_of(directory: Path, weights: list[Tensor], start_weight: Tensor, **options: Any) -> Any:
    """A run of one matrix that has these values after its steps."""
    model = nn.Linear(start_weight.shape[1], start_weight.shape[0], bias=False).to(start_weight.dtype)
    with torch.no_grad():
        model.weight.copy_(start_weight)
    with attach(model, None, directory, every=1, tensorboard=False, **options) as tracker:
        for weight in weights:
            with torch.no_grad():
                model.weight.copy_(weight)
            tracker.step()
    return open_run(directory)


def test_by_default_nothing_of_it_is_there(tmp_path: Path) -> None:
    directory = record(tmp_path / "run")
    run = open_run(directory)
    assert run.weights.empty
    assert run.directions.empty
    assert not list(directory.glob("weights-*")) + list(directory.glob("directions-*"))


def test_training_is_the_same_to_the_bit_with_everything_measured(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 20, 24, 12, on_snapshot=lambda table: None, **BOTH)
    before = torch.get_rng_state()
    with tracker:
        train(model, optimizer, 30)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(model, trained(30, 20, 24, 12))


def test_the_updates_rows_are_what_they_are_without(tmp_path: Path) -> None:
    alone = open_run(record(tmp_path / "alone", 6, 20, 24, 12)).measurements
    beside = open_run(record(tmp_path / "beside", 6, 20, 24, 12, **BOTH)).measurements
    assert alone.drop(columns="time").equals(beside.drop(columns="time"))


# --- W_t itself


def test_the_weights_spectrum_is_that_of_an_exact_svd(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 30, 40, 25, **BOTH)
    expected: dict[tuple[int, str], np.ndarray] = {}
    for step in range(1, 5):
        train(model, optimizer, 1, first=step - 1)
        for name in ("0.weight", "2.weight"):
            values = np.linalg.svd(model.get_parameter(name).detach().double().numpy(), compute_uv=False)
            expected[step, name] = values
    tracker.close()
    run = open_run(tmp_path / "run")
    assert len(run.weights) == len(expected)
    for row in run.weights.itertuples():
        values = expected[row.step, row.matrix]
        assert row.spectral_norm == pytest.approx(values[0], rel=1e-9)
        assert row.frobenius_norm == pytest.approx(np.linalg.norm(values), rel=1e-9)
        assert row.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
        assert row.condition == pytest.approx(values[0] / values[-1], rel=1e-6)
        assert row.tail_exponent == pytest.approx(tail_exponent(values), rel=1e-6)
        logged = run.singular_values(row.matrix, of="weight").loc[row.step]
        np.testing.assert_allclose(logged, values, rtol=0, atol=6e-8 * values[0])


def test_a_singular_weight_has_no_finite_condition_and_zero_none(tmp_path: Path) -> None:
    low = (orthonormal(20, 3) @ orthonormal(12, 3).mT).float()
    run = steps_of(tmp_path / "run", [low, torch.zeros(20, 12)], torch.randn(20, 12), of=["weight", "update"])
    assert run.weights["condition"].iloc[0] == math.inf
    assert math.isnan(run.weights["condition"].iloc[1])
    assert run.weights["stable_rank"].tolist() == pytest.approx([3.0, 0.0], rel=1e-5)


def test_of_a_cut_spectrum_there_is_no_condition_and_no_tail(tmp_path: Path) -> None:
    directory = record(tmp_path / "run", 3, 60, 70, 50, leading=4, of=("update", "weight"))
    weights = open_run(directory).weights
    assert weights[["condition", "tail_exponent"]].isna().all(axis=None)
    assert weights[["spectral_norm", "stable_rank"]].notna().all(axis=None)


def test_a_weight_that_is_not_finite_has_a_row_without_numbers(tmp_path: Path) -> None:
    broken = torch.randn(20, 12)
    broken[3, 4] = math.nan
    run = steps_of(tmp_path / "run", [broken], torch.randn(20, 12), **BOTH)
    numbers = run.weights.drop(columns=["step", "time", "matrix"])
    assert numbers.isna().all(axis=None)
    assert run.directions.drop(columns=["step", "time", "matrix"]).isna().all(axis=None)
    assert "error" not in set(run.events["kind"])


# --- directions


def test_a_known_turn_of_the_update_is_told(tmp_path: Path) -> None:
    left, right = orthonormal(40, 40), orthonormal(30, 30)
    first = torch.zeros(40, 30, dtype=torch.float64)
    angle = math.radians(25)
    turned = left[:, :3].clone()
    turned[:, 2] = math.cos(angle) * left[:, 2] + math.sin(angle) * left[:, 9]
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    update, after = (left[:, :3] * values) @ right[:, :3].mT, (turned * values) @ right[:, :3].mT
    run = steps_of(tmp_path / "run", [update, after, 5 * after], first, directions=True)
    rows = run.directions
    assert rows["since"].tolist()[1:] == [1, 2]
    assert rows[["since", "left_angle", "right_overlap"]].iloc[0].isna().all()
    np.testing.assert_allclose(rows["left_angle"][1:], [25, 0], atol=1e-4)
    np.testing.assert_allclose(rows["right_angle"][1:], [0, 0], atol=1e-4)
    np.testing.assert_allclose(rows["left_overlap"][1:], [(2 + math.cos(angle) ** 2) / 3, 1], atol=1e-6)
    assert rows["intruder_dimensions"].isna().all()  # W0 is zero: there is nothing to be unlike


def test_the_overlap_with_w0_is_that_of_exact_svds(tmp_path: Path) -> None:
    start_weight, update = torch.randn(40, 30), torch.randn(40, 30) @ torch.randn(30, 30)
    run = steps_of(tmp_path / "run", [start_weight + update], start_weight, directions=6)
    initial = torch.linalg.svd(start_weight.double(), full_matrices=False)
    moved = torch.linalg.svd((start_weight + update).double() - start_weight.double(), full_matrices=False)
    row = run.directions.iloc[0]
    left = torch.linalg.svdvals(initial.U[:, :6].mT @ moved.U[:, :6]).square().mean()
    right = torch.linalg.svdvals(initial.Vh[:6] @ moved.Vh[:6].mT).square().mean()
    assert row["left_initial_overlap"] == pytest.approx(float(left), abs=1e-4)
    assert row["right_initial_overlap"] == pytest.approx(float(right), abs=1e-4)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_planted_intruders_are_counted_and_a_scaled_w0_has_none(tmp_path: Path, shape: tuple[int, int]) -> None:
    rank = min(shape)
    left, right = orthonormal(shape[0], rank), orthonormal(shape[1], rank)
    start_weight = left * torch.linspace(3, 1, rank, dtype=torch.float64) @ right.mT
    outer = [left @ torch.ones(rank, 1, dtype=torch.float64) / rank**0.5 for _ in range(1)]
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(rank)[:rank, None]
    outer.append(left @ signs / rank**0.5)  # spread evenly over all of W0's vectors: cosine 0.18
    inner = [orthonormal(shape[1], 1), orthonormal(shape[1], 1)]
    one = start_weight + 100 * outer[0] @ inner[0].mT
    two = one + 60 * outer[1] @ inner[1].mT
    run = steps_of(tmp_path / "run", [start_weight, 2 * start_weight, one, two], start_weight, directions=True)
    assert run.directions["intruder_dimensions"].tolist() == [0, 0, 1, 2]


def test_an_update_that_stands_still_has_not_turned(tmp_path: Path) -> None:
    start_weight, moved = torch.randn(30, 20), torch.randn(30, 20)
    rows = steps_of(tmp_path / "run", [moved, moved], start_weight, directions=5).directions
    assert rows["left_angle"].iloc[1] == pytest.approx(0, abs=1e-3)
    assert rows["right_overlap"].iloc[1] == pytest.approx(1, abs=1e-6)


def test_no_update_no_direction(tmp_path: Path) -> None:
    weight = torch.randn(30, 20)
    rows = steps_of(tmp_path / "run", [weight, weight], weight, directions=5).directions
    assert rows[["left_overlap", "left_angle", "left_initial_overlap"]].isna().all(axis=None)
    assert rows["intruder_dimensions"].tolist() == [0, 0]


# --- kinds of models, resumption, arguments


def test_parts_convolutions_and_gates_have_rows_of_their_own(tmp_path: Path) -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"conv": nn.Conv2d(3, 12, 3), "lstm": nn.LSTM(10, 12)})
    model["h"] = nn.ModuleDict({"c_attn": Conv1D(36, 12)})
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False, **BOTH) as tracker:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        tracker.step()
    run = open_run(tmp_path / "run")
    names = {"conv.weight", "h.c_attn.weight[k]", "lstm.weight_hh_l0[i]"}
    assert names <= set(run.matrices.index)
    assert set(run.weights["matrix"]) == set(run.directions["matrix"]) == set(run.matrices.index)
    queries = model["h"]["c_attn"].weight.detach()[:, :12].double()  # type: ignore[index,union-attr]
    row = run.weights[run.weights["matrix"] == "h.c_attn.weight[q]"].iloc[0]
    assert row["spectral_norm"] == pytest.approx(float(torch.linalg.svdvals(queries)[0]), rel=1e-6)


def test_a_resumed_run_goes_on_without_a_last_subspace(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 20, 24, 12, **BOTH)
    with tracker:
        train(model, optimizer, 4)
    model, optimizer, tracker = start(tmp_path / "run", 20, 24, 12, resume=2, **BOTH)
    with tracker:
        train(model, optimizer, 2, first=2)
    run = open_run(tmp_path / "run")
    rows = run.directions[run.directions["matrix"] == "0.weight"]
    assert rows["step"].tolist() == [1, 2, 3, 4]
    assert rows["since"].isna().tolist() == [True, False, True, False]
    assert rows["intruder_dimensions"].notna().all()
    assert run.weights["step"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert run.options.of == ("update", "weight")
    assert run.options.directions == 4


def test_w0_that_is_taken_anew_is_w0_for_directions_too(tmp_path: Path) -> None:
    model = mlp(20, 24, 12)
    optimizer = sgd(model)
    tracker = attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, directions=4)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(24, 20))
    with tracker:
        train(model, optimizer, 1)
    rows = open_run(tmp_path / "run").directions
    assert rows["intruder_dimensions"].tolist() == [0, 0]


def test_tensorboard_gets_the_means(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = record(tmp_path / "run", 3, 40, 50, 30, tensorboard=True, **BOTH)
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    run = open_run(directory)
    for tag, column in (
        ("mean/weights/stable_rank", run.weights.groupby("step")["stable_rank"].mean()),
        ("mean/directions/left_initial_overlap", run.directions.groupby("step")["left_initial_overlap"].mean()),
    ):
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(column.tolist(), rel=1e-5)


@pytest.mark.parametrize("wrong", ["weight", "weights", ("update", "gradient"), 3, ()])
def test_attach_refuses_an_of_that_it_does_not_know(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match="of must be 'update' or"):
        start(tmp_path / "run", of=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "all"])
def test_attach_refuses_directions_that_are_no_number(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match="directions must be True, False or an integer of at least 1"):
        start(tmp_path / "run", directions=wrong)


def test_adapters_turn_and_their_base_has_no_row(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = mlp(20, 24, 12)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0"], modules_to_save=["2"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, **BOTH):
        for step in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
            (model(inputs) - 1).square().mean().backward()
            optimizer.step()
    run = open_run(tmp_path / "run")
    adapter = next(name for name in run.matrices.index if "modules_to_save" not in name)
    rows = run.directions[run.directions["matrix"] == adapter]
    assert rows["left_overlap"].iloc[1:].notna().all()
    assert rows["intruder_dimensions"].isna().all()
    assert adapter not in set(run.weights["matrix"])
    assert len(run.weights) > 0


def test_a_model_of_adapters_alone_has_no_weight_to_measure(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(mlp(20, 24, 12), peft.LoraConfig(r=4, target_modules=["0", "2"]))
    with pytest.raises(ValueError, match=r"of=.*held in factors"):
        attach(model, None, tmp_path / "run", of=("update", "weight"))
