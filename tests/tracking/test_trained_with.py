"""run.json says what a training was run with; what is wrong with it is found at attach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.runs import SharedRun, group_runs


def train(directory: Path, lr: float = 0.1, seed: int = 0, config: Any = None, **options: Any) -> dict[str, Any]:
    """What run.json says of a short training."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.01)
    with attach(model, optimizer, directory, every=1, tensorboard=False, config=config, **options):
        model(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    found: dict[str, Any] = open_run(directory).info["training"]
    return found


def test_the_optimizer_and_what_was_given_are_in_run_json(tmp_path: Path) -> None:
    config = {"seed": 3, "data": {"path": Path("x")}, "layers": (4, 5)}
    found = train(tmp_path / "run", config=config)
    (optimizer,) = found["optimizers"]
    assert optimizer["class"] == "AdamW"
    wanted = {"lr": 0.1, "weight_decay": 0.3, "betas": [0.9, 0.999], "eps": 1e-8}
    assert {name: optimizer["values"][name] for name in wanted} == wanted  # not the rate of the warm-up
    assert "params" not in optimizer["values"]
    assert found["config"] == {"seed": 3, "data": {"path": "x"}, "layers": [4, 5]}


def test_groups_of_parameters_with_other_rates_are_told_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    groups = [{"params": model[0].parameters(), "lr": torch.tensor(0.5)}, {"params": model[1].parameters(), "lr": 0.25}]
    attach(model, torch.optim.SGD(groups, momentum=0.9), tmp_path / "run", tensorboard=False).close()
    values = open_run(tmp_path / "run").info["training"]["optimizers"][0]["values"]
    assert (values["lr"], values["momentum"]) == ([0.5, 0.25], 0.9)


def test_runs_of_other_rates_are_other_groups_without_a_word_of_the_user(tmp_path: Path) -> None:
    runs = {}
    for name, lr, seed in (("a", 0.1, 0), ("b", 0.1, 1), ("c", 0.2, 0)):
        train(tmp_path / name, lr, seed)
        runs[name] = SharedRun(tmp_path / name).tables().configuration
    assert [(group.runs, group.label) for group in group_runs(runs)] == [
        (("a", "b"), "optimizer.lr 0.1"),
        (("c",), "optimizer.lr 0.2"),
    ]


def test_a_resumed_run_keeps_what_it_began_with(tmp_path: Path) -> None:
    before = train(tmp_path / "run", config={"note": 1})
    assert train(tmp_path / "run", lr=0.9, resume=1, config={"note": 2}) == before


@pytest.mark.parametrize("config", [3, "a", [("a", 1)], {("a", "b"): 1}])
def test_a_config_that_cannot_be_kept_is_named_at_once(tmp_path: Path, config: Any) -> None:
    with pytest.raises(TypeError, match="config must"):
        train(tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()
