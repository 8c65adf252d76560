"""Copies and pickles of what holds a tracker: they hold a closed one, and the run goes on with one writer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import mlp, sgd, start, train
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.optim.swa_utils import AveragedModel

from inrank_monitor import SpectrumTracker, attach, open_run
from inrank_monitor.sinks import Measurements, Sink


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved])


def check_closed(tracker: SpectrumTracker, path: Path) -> None:
    """Everything that a loop may ask of it works and changes nothing."""
    steps = tracker.step_count
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    assert isinstance(tracker, SpectrumTracker)
    assert tracker.path == path
    assert any(row.watched for row in tracker.coverage)
    assert tracker.seconds > 0
    assert tracker.overhead > 0
    tracker.log({"loss": 1.0}, other=object())  # type: ignore[arg-type]
    tracker.step()
    tracker.event("mine", None, "nothing")
    tracker.measure()
    tracker.flush()
    assert "0.weight" in tracker.summary()
    assert "closed" in (tracker._repr_html_() or "")
    with tracker as same:
        assert same is tracker
    tracker.close("late")
    assert tracker.step_count == steps
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before


@WAYS
def test_a_copied_tracker_is_closed_and_the_run_goes_on(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 2)
    tracker.flush()
    other = copied(tracker)
    assert other.step_count == 2
    assert other.finished_steps == [1, 2]
    check_closed(other, tmp_path / "run")
    check_closed(copied(other), tmp_path / "run")
    train(model, optimizer, 1, first=2)
    tracker.close()
    assert tracker.finished_steps == [1, 2, 3]
    assert open_run(tmp_path / "run").status == "finished"


@WAYS
def test_a_model_that_holds_its_tracker_can_be_copied(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    model.tracker = tracker  # type: ignore[assignment]
    train(model, optimizer, 1)
    tracker.flush()
    other = copied(model)
    if copied is not copy.copy:  # which shares what it holds, as it does with every attribute
        check_closed(other.tracker, tmp_path / "run")
    tracker.close()


def test_an_averaged_model_can_be_made_of_one_that_holds_its_tracker(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    model.tracker = tracker  # type: ignore[assignment]
    average = AveragedModel(model)
    train(model, optimizer, 2)
    average.update_parameters(model)
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [1, 2]


class SharingSGD(torch.optim.SGD):
    """Somebody's optimizer, which copies all that it has, hooks included."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, SharingSGD])
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_a_copied_optimizer_counts_no_steps(
    tmp_path: Path, kind: type[torch.optim.Optimizer], copied: Callable[[Any], Any]
) -> None:
    model = mlp(6, 8, 5)
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    tracker = attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False)
    train(model, optimizer, 2)
    other = copied(optimizer)
    for _ in range(3):
        other.step()
    shared = copied is copy.copy  # then it trains the same parameters, as an optimizer made anew would
    assert tracker.step_count == (5 if shared else 2)
    train(model, optimizer, 1, first=2)
    assert tracker.step_count == (6 if shared else 3)
    tracker.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_an_optimizer_and_its_schedule_can_be_copied(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    schedule = StepLR(optimizer, 1)
    optimizer.tracker = schedule.tracker = tracker  # type: ignore[attr-defined]
    train(model, optimizer, 1)
    tracker.flush()
    copied(optimizer).step()
    check_closed(copied(schedule).tracker, tmp_path / "run")
    copied(LambdaLR(sgd(mlp(6, 5)), [_half]))
    assert tracker.step_count == 1
    tracker.close()


def _half(step: int) -> float:
    return 0.5**step


class Deaf(Sink):
    """A logger's connection, which cannot be copied."""

    def connect(self, names: Any) -> None:
        self.lock = __import__("threading").Lock()

    def write(self, measurements: Measurements) -> None:
        pass


def test_what_holds_a_tracker_and_its_sinks_can_be_copied(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self, tracker: SpectrumTracker, sinks: list[Sink]) -> None:
            super().__init__()
            self.tracker, self.sinks = tracker, sinks

    sinks: list[Sink] = [Deaf()]
    model, optimizer, tracker = start(tmp_path / "run", sinks=sinks)
    train(model, optimizer, 1)
    tracker.flush()
    other = copy.deepcopy(Holder(tracker, sinks))
    assert other.sinks[0] is sinks[0]
    check_closed(other.tracker, tmp_path / "run")
    tracker.close()
