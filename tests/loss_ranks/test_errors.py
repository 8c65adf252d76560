"""What is wrong is named: of the arguments, of W0, of the loss; and the model is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inrank_monitor import attach, loss_at_ranks, ranks_by_loss

LAYER = nn.Linear(6, 5)
START = {name: torch.zeros_like(value) for name, value in LAYER.state_dict().items()}


def fine() -> Any:
    return LAYER.weight.square().sum()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "gpt2"}, TypeError, "model must be a torch.nn.Module"),
        ({"loss": 3.0}, TypeError, "loss must be a function"),
        ({"tolerance": 0}, ValueError, "tolerance must be above 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be above 0"),
        ({"max_evaluations": 9}, ValueError, "max_evaluations must be at least 10"),
        ({"max_evaluations": 1e3}, TypeError, "max_evaluations must be an integer"),
        ({"run": 7}, TypeError, "run must be a run"),
        ({"run": "/nowhere/at/all"}, FileNotFoundError, "neither a run nor a checkpoint"),
        ({"run": {"weight": "text"}}, ValueError, "holds no tensors"),
        ({"run": {"other": torch.zeros(5, 6)}}, ValueError, "no W0 of weight; it has other"),
        (
            {"run": {"weight": torch.zeros(5, 7)}},
            ValueError,
            "weight cannot be truncated: it is 5×6 here, and W0 is 5×7",
        ),
        ({"loss": lambda: None}, TypeError, "one number, got None"),
        ({"loss": lambda: torch.zeros(3)}, TypeError, r"one number, got a tensor of torch.float32, shape \(3,\)"),
        ({"loss": lambda: "0.3"}, TypeError, "one number, got '0.3'"),
        ({"loss": lambda: float("inf")}, ValueError, "not finite of the model as it is"),
        ({"loss": iter([0.5, 0.6]).__next__}, ValueError, r"not repeatable: 0.5, then 0.6 .* 0.1 .*model.eval\(\)"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    before = LAYER.weight.detach().clone()
    given = {"model": LAYER, "run": START, "loss": fine} | options
    with pytest.raises(error, match=message):
        ranks_by_loss(**given)
    assert torch.equal(LAYER.weight, before)


@pytest.mark.parametrize("value", [np.float32(2), np.array([2.0]), torch.tensor([2.0]), 2, torch.tensor(2)])
def test_a_number_may_come_in_any_of_its_forms(value: Any) -> None:
    assert loss_at_ranks(LAYER, START, lambda: value, 3) == 2


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (-1, "at least 0, got -1"),
        (2.5, "integers of at least 0, got 2.5"),
        ({"wieght": 1}, "no matrix 'wieght'; names look like weight"),
    ],
)
def test_wrong_ranks_are_named(ranks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_at_ranks(LAYER, START, fine, ranks)


def test_a_loss_at_ranks_that_is_not_finite_is_said() -> None:
    with pytest.raises(ValueError, match="not finite at these ranks"):
        loss_at_ranks(LAYER, START, lambda: 1 / LAYER.weight.abs().sum(), 0)


def test_a_run_of_another_model_is_told_by_its_matrices(tmp_path: Path) -> None:
    attach(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), None, tmp_path / "run", tensorboard=False).close()
    with pytest.raises(ValueError, match=r"not of this model: the model has no matrix 1.weight \(4×5\)"):
        ranks_by_loss(nn.Sequential(nn.Linear(6, 5)), tmp_path / "run", fine)
    with pytest.raises(ValueError, match=r"1\.weight is 3×5 in the model, 4×5 in the run"):
        ranks_by_loss(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), tmp_path / "run", fine)


def test_weights_that_are_not_finite_are_named() -> None:
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight cannot be truncated: it holds NaN"):
        ranks_by_loss(layer, {"weight": torch.zeros(3, 3)}, lambda: 1.0)


def test_w0_is_read_from_files_of_every_usual_form(tmp_path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in START.items()}}, tmp_path / "one.pt")
    save_file(START, tmp_path / "one.safetensors")
    (tmp_path / "folder").mkdir()
    for name, value in START.items():
        save_file({name: value}, tmp_path / "folder" / f"model-{name}.safetensors")
    expected = ranks_by_loss(LAYER, START, fine, 0.1, 30).ranks
    for path in ("one.pt", "one.safetensors", "folder"):
        assert ranks_by_loss(LAYER, tmp_path / path, fine, 0.1, 30).ranks == expected
    (tmp_path / "one.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"one\.pt cannot be read as a state dict"):
        ranks_by_loss(LAYER, tmp_path / "one.pt", fine)


def test_frozen_weights_are_truncated_as_others() -> None:
    layer = nn.Linear(6, 5).requires_grad_(False)
    target = layer.weight.clone()
    assert loss_at_ranks(layer, START, lambda: (layer.weight - target).abs().sum(), 0) > 0
