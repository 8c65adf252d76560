"""What the tracker does to an accelerator, counted on one that is not there; `helpers.pretended` says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pretended import Pretended, Record, move, on_device, pretending, recording, set_gradients
from helpers.training import mlp
from torch import nn

from inrank_monitor import SpectrumTracker, attach, open_run

pytestmark = pytest.mark.usefixtures("one_thread")


def watched(model: nn.Module, directory: Path, **options: Any) -> tuple[SpectrumTracker, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    given: dict[str, Any] = {"every": 2, "tensorboard": False, "strict": True} | options
    return attach(model, optimizer, directory, **given), optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tracker: SpectrumTracker | None = None) -> Record:
    set_gradients(model)
    with recording() as record:
        optimizer.step()
        if tracker:
            tracker.log(loss=on_device(torch.tensor(1.0, device="cpu")))
    return record


def test_an_ordinary_step_reads_nothing_and_copies_nothing(tmp_path: Path) -> None:
    model = mlp(48, 64, 32)
    with pretending():
        move(model)
        tracker, optimizer = watched(model, tmp_path, every=100)
        step(model, optimizer, tracker)  # the first step looks whether the weights are W0 still
        for _ in range(3):
            record = step(model, optimizer, tracker)
            assert (record.reads, record.copies.total()) == (0, 0)
        tracker.close()
    assert open_run(tmp_path).scalars.query("name == 'loss'")["value"].tolist() == [1.0] * 4


def test_devices_that_mix_raise_and_copies_that_are_not_waited_for_do_not_arrive() -> None:
    with pretending():
        here, there = on_device(torch.ones(3)), on_device(torch.ones(3), "cuda:1")
        for other in (there, torch.ones(3)):
            with pytest.raises(RuntimeError, match="same device"):
                here + other
        assert isinstance(torch.zeros(2, device="cuda"), Pretended)
        arrived = torch.zeros(3)
        arrived.copy_(here, non_blocking=True)
        assert arrived.isnan().all()
        torch.cuda.current_stream().synchronize()
        assert arrived.tolist() == [1, 1, 1]
        source = torch.ones(3)
        on_device(torch.zeros(3)).copy_(source, non_blocking=True)
        source.fill_(2)
        with pytest.raises(AssertionError, match="on its way"):
            torch.cuda.current_stream().synchronize()
    with pretending(limit=100), pytest.raises(torch.OutOfMemoryError):
        torch.zeros(26, device="cuda")


@pytest.mark.parametrize("keep", ["disk", "memory", "device"])
def test_spectra_of_a_device_are_those_of_the_cpu(tmp_path: Path, keep: str) -> None:
    found = {}
    for where in ("cpu", "cuda:0"):
        torch.manual_seed(1)
        model = mlp(48, 64, 32)
        with pretending():
            if where != "cpu":
                move(model)
            tracker, optimizer = watched(model, tmp_path / where, initial_weights=keep)
            torch.manual_seed(2)
            for _ in range(4):
                if where != "cpu":
                    set_gradients(model)
                else:
                    for parameter in model.parameters():
                        parameter.grad = torch.randn(parameter.shape)
                optimizer.step()
            tracker.close()
        run = open_run(tmp_path / where)
        found[where] = np.concatenate([run.singular_values(name).to_numpy().ravel() for name in run.matrices.index])
        assert run.measurements["step"].unique().tolist() == [2, 4]
    np.testing.assert_allclose(found["cuda:0"], found["cpu"], rtol=0, atol=1e-6 * found["cpu"].max())
