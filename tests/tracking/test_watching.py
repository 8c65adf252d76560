"""The built-in alarms in a run: events of what happened, once, and quiet where nothing did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import mlp, record, sgd, start, train
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.figures.event_marks import event_look
from inrank_monitor.ranks import WATCHES
from inrank_monitor.tracking.watching import Watches

SIZES = (16, 20, 24, 12)


def alarms(directory: Path) -> list[tuple[int, str, Any]]:
    events = open_run(directory).events
    events = events[events["kind"].isin(list(WATCHES))]
    return list(zip(events["step"], events["kind"], events["matrix"], strict=True))


def directed(directory: Path, plant: Any, steps: int = 120) -> list[tuple[int, str, Any]]:
    """Alarms of a run in which something happens to the middle matrix from step 60 on."""
    model, optimizer, tracker = start(directory, *SIZES, every=5)
    weight = model[2].weight
    first = weight.detach().clone()
    with tracker:
        for step in range(1, steps + 1):
            if step >= 60:
                with torch.no_grad():
                    plant(weight, first, step - 60)
            train(model, optimizer, 1, first=step)
    return alarms(directory)


def test_an_ordinary_run_rings_nothing(tmp_path: Path) -> None:
    assert alarms(record(tmp_path / "run", 150, *SIZES, every=5)) == []


def test_a_matrix_that_is_frozen_rings_once(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", *SIZES, every=5)
    with tracker:
        train(model, optimizer, 60)
        model[2].weight.requires_grad_(False)
        model[2].weight.grad = None
        train(model, optimizer, 140, first=60)
    assert alarms(tmp_path / "run") == [(110, "stopped_moving", "2.weight")]
    message = open_run(tmp_path / "run").events["message"].iloc[0]
    assert message == "has not changed for 50 steps, while others still move"


def test_a_direction_that_takes_over_rings(tmp_path: Path) -> None:
    model = nn.Linear(20, 24, bias=False)
    first, noise = model.weight.detach().clone(), 0.02 * torch.randn(24, 20)
    direction = torch.outer(torch.ones(24), torch.ones(20)) / 480**0.5
    with attach(model, None, tmp_path / "run", every=5, tensorboard=False) as tracker, torch.no_grad():
        for step in range(1, 121):
            model.weight.copy_(first + step**0.5 * noise + 0.4 * max(step - 60, 0) * direction)
            tracker.step()
    ((step, kind, _),) = alarms(tmp_path / "run")
    assert kind == "spike"
    assert 60 < step <= 90


def test_directions_that_are_lost_ring(tmp_path: Path) -> None:
    def plant(weight: torch.Tensor, first: torch.Tensor, late: int) -> None:
        left, values, right = torch.linalg.svd(weight - first, full_matrices=False)
        values[2:] *= 0.5
        weight.copy_(first + left * values @ right)

    assert "rank_collapsed" in [kind for _, kind, matrix in directed(tmp_path / "run", plant) if matrix == "2.weight"]


def test_a_norm_that_explodes_rings(tmp_path: Path) -> None:
    def plant(weight: torch.Tensor, first: torch.Tensor, late: int) -> None:
        weight.copy_(first + 1.5 * (weight - first))

    kinds = {kind for _, kind, matrix in directed(tmp_path / "run", plant) if matrix == "2.weight"}
    assert "norm_exploded" in kinds


def test_several_matrices_that_stop_at_once_are_one_event(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", *SIZES, every=5)
    with tracker:
        train(model, optimizer, 60)
        for layer in (model[0], model[2]):
            layer.requires_grad_(False)  # type: ignore[operator]
            layer.weight.grad = layer.bias.grad = None  # type: ignore[union-attr]
        train(model, optimizer, 80, first=60)
    ((step, kind, matrix),) = alarms(tmp_path / "run")
    assert (step, kind) == (110, "stopped_moving")
    assert not isinstance(matrix, str)
    assert "2 matrices (0.weight, 2.weight)" in open_run(tmp_path / "run").events["message"].iloc[0]


def test_a_network_that_steps_now_and_then_has_not_stopped(tmp_path: Path) -> None:
    one, other = mlp(16, 20), mlp(16, 20, seed=1)
    model = nn.ModuleList([one, other])
    often, seldom = sgd(one), sgd(other)
    with attach(model, [seldom, often], tmp_path / "run", every=1, tensorboard=False):
        for step in range(200):
            train(one, often, 1, first=step)
            if step % 10 == 0:
                train(other, seldom, 1, first=step)
    assert alarms(tmp_path / "run") == []


def test_history_stays_small_however_long_a_run_is(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 8, 8)
    watches = tracker._recorder._watches  # type: ignore[union-attr]
    with tracker:
        train(model, optimizer, 1)
        tracker.flush()
        assert isinstance(watches, Watches)
        for step in range(2, 20_000):
            watches._keep(step, watches._kept[-1])
            assert len(watches._kept) < 110
        assert watches._steps[0] * 2 < step
        assert watches._steps[-2:] == [step - 1, step]
        tracker.step_count = 1


def test_a_resumed_run_begins_with_no_history(tmp_path: Path) -> None:
    record(tmp_path / "run", 100, *SIZES, every=5)
    model, optimizer, tracker = start(tmp_path / "run", *SIZES, every=5, resume=100)
    model[2].weight.requires_grad_(False)
    with tracker:
        train(model, optimizer, 40, first=100)
    assert alarms(tmp_path / "run") == []


@pytest.mark.parametrize("kind", WATCHES)
def test_every_alarm_has_a_look_of_its_own(kind: str) -> None:
    assert event_look(kind) != event_look("something_else")
    assert len({event_look(one)[:2] for one in WATCHES}) == len(WATCHES)
