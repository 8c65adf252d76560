"""What the tracker does to an accelerator, counted on one that is not there; `helpers.pretended` says how."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pretended import Pretended, Record, move, on_device, pretending, recording, set_gradients
from helpers.training import mlp
from torch import nn

from inrank_monitor import SpectrumTracker, attach, open_run
from inrank_monitor.tracking import device_spectra

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
            assert (record.reads, record.waits, record.copies.total()) == (0, 0, 0)
        tracker.close()
    assert open_run(tmp_path).scalars.query("name == 'loss'")["value"].tolist() == [1.0] * 4


def test_the_step_after_a_snapshot_reads_nothing_either(tmp_path: Path) -> None:
    """It looks whether the weights have been changed since, and a device says so when it comes to it."""
    model = mlp(48, 64, 32)
    with pretending():
        move(model)
        tracker, optimizer = watched(model, tmp_path, every=3, strict=False)
        step(model, optimizer)
        for number in range(2, 9):
            if number == 7:
                model[0].weight.data[16:48].zero_()  # type: ignore[union-attr, operator, index]
            record = step(model, optimizer)
            if number % 3 != 0:
                assert record.reads == 0
                assert record.copies.total() == record.copies["to host"] == (number in (4, 7))
        tracker.close()
    events = open_run(tmp_path).events.query("kind == 'changed_between_steps'")
    assert events["step"].tolist() == [6]
    assert "0.weight" in events["message"].item()


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
@pytest.mark.parametrize(
    "kind", [{}, {"float64": False}, {"slow": True}], ids=["float64", "no float64", "slow float64"]
)
def test_spectra_of_a_device_are_those_of_the_cpu(tmp_path: Path, keep: str, kind: dict[str, bool]) -> None:
    found = {}
    for where in ("cpu", "cuda:0"):
        torch.manual_seed(1)
        model = mlp(48, 64, 32)
        with pretending(**kind), recording() as record:
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
    assert bool(record.kernels["addmm_"]) == (not kind)  # on the device where it is quick there
    np.testing.assert_allclose(found["cuda:0"], found["cpu"], rtol=0, atol=1e-6 * found["cpu"].max())


def test_slow_eigenproblems_do_not_delay_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = device_spectra.singular_values_of_gram

    def slow(gram: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        return solve(gram)

    monkeypatch.setattr(device_spectra, "singular_values_of_gram", slow)
    model = mlp(48, 64, 32, 32, 16)
    with pretending():
        move(model)
        tracker, optimizer = watched(model, tmp_path, strict=False)
        step(model, optimizer)
        began = time.perf_counter()
        step(model, optimizer)  # with a snapshot of four matrices
        step(model, optimizer)  # changes the weights while they are still solved
        assert time.perf_counter() - began < 0.5
        assert tracker.finished_steps == []
        before = [parameter.detach().clone() for parameter in model.parameters()]
        tracker.flush()
        assert tracker.finished_steps == [2]
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
        tracker.close()
    rows = open_run(tmp_path).measurements
    assert rows.groupby("step").size().tolist() == [4, 4]


def test_a_matrix_that_finds_no_memory_is_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(512, 512), nn.Linear(32, 16))
    with pretending() as machine:
        move(model)
        tracker, optimizer = watched(model, tmp_path, strict=False)
        step(model, optimizer)
        set_gradients(model)
        machine.limit = machine.bytes + 600_000
        optimizer.step()
        machine.limit = None
        tracker.close("enough")
    run = open_run(tmp_path)
    assert run.measurements["matrix"].tolist() == ["0.weight", "2.weight"]
    events = run.events.query("kind == 'not_measured'")
    assert events["matrix"].tolist() == ["1.weight"]
    assert "do not fit" in events["message"].item()


def test_a_snapshot_holds_one_matrix_and_sends_each_part_of_w0_once(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 64, 128))

    model = Experts()
    entries = model.weight.numel()
    with pretending():
        move(model)
        tracker, optimizer = watched(model, tmp_path)
        step(model, optimizer)
        record = step(model, optimizer)
        tracker.close()
    assert len(open_run(tmp_path).matrices) == 8
    assert record.bytes["to device"] == 4 * entries
    assert record.bytes["to host"] == 8 * 8 * 64**2
    assert record.threads == {"MainThread"}
    assert record.peak <= 8 * 64**2 + 8 * 64 * 128 + 4 * 64 * 128  # Gram matrix, its float64 columns, W0's piece


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_two_devices(tmp_path: Path, dtype: torch.dtype) -> None:
    model = mlp(24, 40, 16).to(dtype)
    with pretending():
        move(model, lambda name: "cuda:1" if name == "2" else "cuda:0")
        start = [parameter.inner.clone() for parameter in (model[0].weight, model[2].weight)]
        tracker, optimizer = watched(model, tmp_path)
        step(model, optimizer)
        step(model, optimizer)
        tracker.close()
        now = [parameter.inner.clone() for parameter in (model[0].weight, model[2].weight)]
    run = open_run(tmp_path)
    for name, before, after in zip(("0.weight", "2.weight"), start, now, strict=True):
        expected = torch.linalg.svdvals(after.double() - before.double())
        found = run.singular_values(name).to_numpy()[-1]
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6 * float(expected[0]))


def test_logged_values_travel_in_one_copy_a_flush_from_the_loops_thread(tmp_path: Path) -> None:
    model = mlp(16, 16)
    with pretending():
        move(model)
        tracker, optimizer = watched(model, tmp_path, every=100)
        with recording() as record:
            for k in range(20):
                step(model, optimizer)
                values = {"a": on_device(torch.tensor(float(k))), "b": on_device(torch.tensor([k])), "c": k}
                tracker.log(values)
            before = record.copies.total()
            tracker.flush()
        assert record.copies.total() - before == 1
        assert record.threads == {"MainThread"}
        tracker.close()
    found = open_run(tmp_path).scalars
    for name in "abc":
        assert found[found["name"] == name]["value"].tolist() == list(range(20))


class Scaled(torch.optim.SGD):
    """Counts its own steps on the device and leaves some out there, as a fused Adam under a GradScaler does."""

    skips: tuple[int, ...] = ()
    found_inf: torch.Tensor
    called = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One, or none."""
        skipped = self.called in self.skips
        self.called += 1
        self.found_inf = on_device(torch.tensor(float(skipped)))
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", on_device(torch.tensor(0.0))) + (0 if skipped else 1)
                if not skipped:
                    parameter.data.add_(parameter.grad, alpha=-0.1)


def test_steps_that_a_scaler_left_out_on_the_device_are_taken_back_at_snapshots(tmp_path: Path) -> None:
    model = mlp(16, 16)
    with pretending():
        move(model)
        optimizer = Scaled(model.parameters(), lr=0.1)
        optimizer.skips = (1, 2, 7)
        tracker = attach(model, optimizer, tmp_path, every=5, tensorboard=False, strict=True)
        for _ in range(13):
            step(model, optimizer)
        tracker.close()
        assert tracker.step_count == 10
    run = open_run(tmp_path)
    assert run.measurements["step"].tolist() == [5, 10]
    assert run.info["ended"]["step"] == 10
