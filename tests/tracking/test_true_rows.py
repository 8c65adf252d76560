"""A row is of the weights that its step left, or it is not there and an event says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import complaints, mlp
from helpers.truth import TrueLoop, assert_rows_are_true, events, rows
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import inrank
from inrank_monitor import SpectrumTracker, attach, open_run


def begin(path: Path, every: int = 40, **options: Any) -> tuple[TrueLoop, SpectrumTracker]:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    return loop, attach(model, loop.optimizer, path, every=every, tensorboard=False, **options)


def exchange_data(model: nn.Module, others: list[Tensor]) -> None:
    for parameter, other in zip(model.parameters(), others, strict=True):
        parameter.data = other.clone()


def copy_into_data(model: nn.Module, others: list[Tensor]) -> None:
    for parameter, other in zip(model.parameters(), others, strict=True):
        parameter.data.copy_(other)


def load(model: nn.Module, others: list[Tensor]) -> None:
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(dict(zip(names, others, strict=True)))


def assign(model: nn.Module, others: list[Tensor]) -> None:
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(dict(zip(names, map(torch.clone, others), strict=True)), assign=True)


def blend(model: nn.Module, others: list[Tensor]) -> None:
    """As an optimizer without a schedule does in its `eval()`."""
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), others, 0.3)


EXCHANGES = [exchange_data, copy_into_data, load, assign, blend]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_other_weights_put_in_before_close_have_no_row(
    tmp_path: Path, exchange: Callable[[nn.Module, list[Tensor]], None]
) -> None:
    loop, tracker = begin(tmp_path / "run")
    loop.run(10)
    best = [parameter.detach().clone() for parameter in loop.model.parameters()]
    loop.run(50)
    exchange(loop.model, best)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [40])
    (message,) = events(tmp_path / "run", "weights_changed")
    assert "no longer those that step 60 left (0.weight, 2.weight)" in message


@pytest.mark.parametrize("exchange", EXCHANGES[:3])
def test_averaged_weights_swapped_in_for_an_evaluation_have_no_row_and_training_goes_on(
    tmp_path: Path, exchange: Callable[[nn.Module, list[Tensor]], None]
) -> None:
    loop, tracker = begin(tmp_path / "run", every=7)
    averaged = [parameter.detach().clone() for parameter in loop.model.parameters()]
    for _ in range(4):
        loop.run(5)
        own = [parameter.detach().clone() for parameter in loop.model.parameters()]
        for average, value in zip(averaged, own, strict=True):
            average.lerp_(value, 0.5)
        exchange(loop.model, averaged)
        tracker.measure()
        tracker.measure()
        exchange(loop.model, own)
    loop.run(3)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [7, 14, 21, 23])
    assert len(events(tmp_path / "run", "weights_changed")) == 4
    assert not events(tmp_path / "run", "changed_between_steps")  # they were put back


def test_weights_that_moved_without_a_change_keep_their_row(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run")
    loop.run(6)
    exchange_data(loop.model, [parameter.detach().clone() for parameter in loop.model.parameters()])
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [6])


def test_what_is_clipped_after_each_step_belongs_to_the_next_row(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run", every=4)

    def clip() -> None:
        with torch.no_grad():
            loop.model[0].weight.mul_(0.99)  # type: ignore[index,operator]

    loop.run(10, after=clip)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [4, 8])
    assert "step 10 left (0.weight)" in events(tmp_path / "run", "weights_changed")[0]
    (message,) = events(tmp_path / "run", "changed_between_steps")
    assert "the optimizer's step 4 and the next (0.weight)" in message


def test_a_loop_that_counts_itself_after_clipping_has_the_clipped_weights(tmp_path: Path) -> None:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    tracker = attach(model, None, tmp_path / "run", every=3, tensorboard=False)
    for _ in range(7):
        loop.optimizer.zero_grad()
        loop.backward()
        loop.optimizer.step()
        with torch.no_grad():
            model[0].weight.clamp_(-0.2, 0.2)  # type: ignore[operator]
        loop.note()
        tracker.step()
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [3, 6, 7])


def test_a_hook_of_the_optimizer_that_projects_is_part_of_the_step(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run", every=2)
    loop.optimizer.register_step_post_hook(lambda *_: copy_into_data(loop.model, list(loop.model.parameters())))

    def project(*_: object) -> None:
        with torch.no_grad():
            loop.model[2].weight.mul_(0.9)  # type: ignore[index,operator]

    loop.optimizer.register_step_post_hook(project)
    loop.run(5)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [2, 4, 5])


def test_weights_that_were_put_back_before_the_first_step_are_no_other_start(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run", every=1)
    own = [parameter.detach().clone() for parameter in loop.model.parameters()]
    load(loop.model, [value + 1 for value in own])
    load(loop.model, own)
    loop.run(2)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [1, 2])
    assert not events(tmp_path / "run", "initial_weights_anew")


@pytest.mark.parametrize("keep", ["disk", "memory", "device"])
@pytest.mark.parametrize("exchange", EXCHANGES[:3])
@pytest.mark.parametrize("counted", [True, False])
def test_a_checkpoint_loaded_after_attach_is_where_training_starts(
    tmp_path: Path, exchange: Callable[[nn.Module, list[Tensor]], None], keep: str, counted: bool
) -> None:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, SGD(model.parameters(), lr=0.1))
    given = loop.optimizer if counted else None
    tracker = attach(model, given, tmp_path / "run", every=1, initial_weights=keep, tensorboard=False)  # type: ignore[arg-type]
    exchange(model, [parameter.detach() + 0.1 for parameter in model.parameters()])
    loop.begin()
    loop.run(3, after=None if counted else tracker.step)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [1, 2, 3])
    (message,) = events(tmp_path / "run", "initial_weights_anew")
    assert "0.weight, 2.weight" in message
    run = open_run(tmp_path / "run")
    assert run.matrices.loc["0.weight", "initial_norm"] == pytest.approx(float(loop.start["0.weight"].norm()))


def test_a_run_whose_start_was_taken_anew_is_resumed(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run", every=1)
    copy_into_data(loop.model, [parameter.detach() + 0.1 for parameter in loop.model.parameters()])
    loop.begin()
    loop.run(3)
    tracker.close()
    tracker = attach(loop.model, loop.optimizer, tmp_path / "run", every=1, tensorboard=False, resume=3)
    loop.run(3)
    tracker.close()
    assert_rows_are_true(tmp_path / "run", loop, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_checkpoint_loaded_after_a_resuming_attach_voids_nothing_that_can_be_told(
    tmp_path: Path, kind: type[Any]
) -> None:
    model = mlp(16, 32, 8)
    loop = TrueLoop(model, kind(model.parameters(), lr=0.01))
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=1, tensorboard=False)
    loop.run(5)
    saved = copy.deepcopy((model.state_dict(), loop.optimizer.state_dict()))
    tracker.close()

    loop.model = model = mlp(16, 32, 8)
    loop.optimizer = kind(model.parameters(), lr=0.01)
    tracker = attach(model, loop.optimizer, tmp_path / "run", every=1, tensorboard=False, resume=True)
    model.load_state_dict(saved[0])
    loop.optimizer.load_state_dict(saved[1])
    loop.run(2)
    tracker.close()
    message = events(tmp_path / "run", "resumed")[-1]
    assert "changed between attach and the first step" in message
    if kind is AdamW:
        assert_rows_are_true(tmp_path / "run", loop, [1, 2, 3, 4, 5, 6, 7])
        assert "taken up at step 5" in message
    else:
        assert "load the checkpoint before attach" in message


def test_a_growing_layer_keeps_its_last_row(tmp_path: Path) -> None:
    model = mlp(16, 32, 32, 8)
    inrank.convert(model, targets=["2"], buffer_rank=4)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tracker = attach(model, optimizer, tmp_path / "run", every=4, tensorboard=False)
    controller = inrank.RankController(model, optimizer, every=1, rule=lambda seen: seen.rank + 1).attach()
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        assert len(controller.history) == step + 1
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [4, 6]
    assert not events(tmp_path / "run", "weights_changed")


def test_a_run_that_is_closed_lets_a_copy_of_the_weights_go_on(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run", every=2)
    twin = copy.deepcopy(loop.model)
    other = TrueLoop(twin, SGD(twin.parameters(), lr=0.1))
    other.run(5)
    loop.run(4)
    tracker.close()
    assert tracker.step_count == 4
    assert_rows_are_true(tmp_path / "run", loop, [2, 4])
    assert rows(tmp_path / "run")[4] == pytest.approx(loop.truth[4]["0.weight"])


def test_values_logged_while_nobody_counts_are_said_to_stand_still(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = attach(mlp(16, 32, 8), None, tmp_path / "run", every=1, tensorboard=False)
    for _ in range(3):
        tracker.log(loss=1.0)
    assert not complaints(caplog)
    tracker.close()
    (message,) = events(tmp_path / "run", "no_steps")
    assert "no step was counted" in message
    assert "call tracker.step()" in message
    assert len(complaints(caplog)) == 1


def test_an_evaluation_that_logs_much_is_no_standstill_and_steps_of_a_stranger_are(tmp_path: Path) -> None:
    loop, tracker = begin(tmp_path / "run", every=1)
    loop.run(2, after=lambda: [tracker.log(validation=1.0) for _ in range(30)])
    assert tracker.step_count == 2
    for _ in range(50):  # steps that no optimizer takes
        with torch.no_grad():
            loop.model[0].weight.mul_(0.99)  # type: ignore[index,operator]
        tracker.log(loss=1.0)
    tracker.close()
    (message,) = events(tmp_path / "run", "no_steps")
    assert "since step 2, although the weights changed" in message
    assert_rows_are_true(tmp_path / "run", loop, [1, 2])
