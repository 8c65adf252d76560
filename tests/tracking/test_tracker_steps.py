"""Which steps are measured, and what counts as a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.training import mlp, sgd, start, train
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from inrank_monitor import attach, open_run
from inrank_monitor.distributed import training_processes
from inrank_monitor.tracking import Every
from inrank_monitor.tracking.pace import Pace


def steps_of(directory: Path) -> list[int]:
    return [int(step) for step in open_run(directory).measurements["step"].unique()]


# --- which steps


@pytest.mark.parametrize(("every", "steps"), [(1, 12), (3, 12), (5, 12), (50, 12)])
def test_the_steps_logged_are_those_scheduled_and_the_last(tmp_path: Path, every: int, steps: int) -> None:
    model, optimizer, tracker = start(tmp_path / "run", every=every)
    train(model, optimizer, steps)
    tracker.flush()
    scheduled = list(range(every, steps + 1, every))
    assert tracker.finished_steps == scheduled
    tracker.close()
    assert steps_of(tmp_path / "run") == sorted({*scheduled, steps})


def test_a_fixed_cadence_is_obeyed_however_fast_the_loop_is(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 4, 3, every=1)
    train(model, optimizer, 200)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].tolist() == list(range(1, 201))
    assert run.events.empty


def test_a_schedule_function_chooses_the_steps(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", schedule=lambda step: step in (2, 3, 8))
    train(model, optimizer, 9)
    tracker.close()
    assert steps_of(tmp_path / "run") == [2, 3, 8, 9]


def test_a_schedule_object_is_told_the_cost_and_the_time(tmp_path: Path) -> None:
    class Told:
        def __init__(self) -> None:
            self.asked: list[tuple[int, float, float]] = []
            self.costs: list[tuple[int, float]] = []

        def due(self, step: int, elapsed: float, spent: float) -> bool:
            self.asked.append((step, elapsed, spent))
            return step % 2 == 0

        def measured(self, step: int, cost: float) -> None:
            self.costs.append((step, cost))

    told = Told()
    model, optimizer, tracker = start(tmp_path / "run", schedule=told)
    train(model, optimizer, 5)
    tracker.close()
    assert [step for step, _, _ in told.asked] == [1, 2, 3, 4, 5]
    assert [step for step, _ in told.costs] == [2, 4, 5]
    assert all(cost > 0 for _, cost in told.costs)
    times = [elapsed for _, elapsed, _ in told.asked]
    assert times == sorted(times)
    assert all(spent > 0 for _, _, spent in told.asked)


def test_a_schedule_is_told_what_the_thread_has_done_since_too_but_not_attaching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Thread:
        seconds = 0.5

    class Told(Every):
        costs: ClassVar[list[float]] = []

        def measured(self, step: int, cost: float) -> None:
            self.costs.append(cost)

    clock, thread = [10.0], Thread()
    monkeypatch.setattr("inrank_monitor.tracking.pace.now", lambda: clock[0])
    pace = Pace(Told(1), training_processes(False), (thread,), began=7.0)
    assert pace.seconds == 3.5  # attaching
    for step, (loop, beside) in enumerate([(1.0, 0.25), (2.0, 0.0), (0.5, 4.0)]):
        clock[0] += 100
        began, clock[0] = clock[0], clock[0] + loop
        thread.seconds += beside
        pace.spend(began)
        pace.measured(step)
    assert Told.costs == [1.25, 2.0, 4.5]
    assert pace.seconds == 3.5 + sum(Told.costs)


def test_the_automatic_schedule_measures_the_first_and_the_last_step(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", max_overhead=0.01)
    train(model, optimizer, 100)
    tracker.close()
    steps = steps_of(tmp_path / "run")
    assert (steps[0], steps[-1]) == (1, 100)


def test_measure_takes_a_snapshot_out_of_turn_once(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", every=100)
    train(model, optimizer, 4)
    tracker.measure()
    tracker.measure()
    train(model, optimizer, 2, first=4)
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].tolist() == [4, 4, 6, 6]


def test_a_run_of_no_step_has_no_snapshot(tmp_path: Path) -> None:
    _, _, tracker = start(tmp_path / "run")
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.measurements.empty
    assert run.status == "finished"


# --- counting


def test_without_an_optimizer_the_loop_counts(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    tracker = attach(model, None, tmp_path / "run", every=2, tensorboard=False)
    for _ in range(5):
        train(model, sgd(model), 1)
        tracker.step()
    assert tracker.step_count == 5
    tracker.close()
    assert steps_of(tmp_path / "run") == [2, 4, 5]


def test_step_is_refused_where_the_optimizer_counts(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 3)
    with pytest.raises(RuntimeError, match=r"step\(\) at step 3.*optimizer"):
        tracker.step()
    assert tracker.step_count == 3
    tracker.close()


def test_of_several_optimizers_the_last_one_counts(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    first = SGD(model[0].parameters(), lr=0.1)
    last = AdamW(model[2].parameters())
    with attach(model, [first, last], tmp_path / "run", every=1, tensorboard=False) as tracker:
        for count in range(1, 4):
            train(model, first, 1)
            assert tracker.step_count == count - 1
            last.step()
            assert tracker.step_count == count


def test_gradient_accumulation_counts_one_step(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    for batch in range(12):
        (model(torch.randn(4, 6)).square().mean() / 4).backward()
        if batch % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert tracker.step_count == 3
    tracker.close()


def scaled(directory: Path, optimizer: Any, model: nn.Module) -> int:
    """Steps counted of six, of which a gradient scaler lets the optimizer skip two."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with attach(model, optimizer, directory, every=1, tensorboard=False) as tracker:
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 6)).square().mean() * (float("inf") if step in (1, 4) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert open_run(directory).measurements["numerical_rank"].notna().all()
    return tracker.step_count


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_steps_that_a_grad_scaler_skips_are_not_counted(tmp_path: Path, kind: type[Any]) -> None:
    model = mlp(6, 8, 5)
    assert scaled(tmp_path / "run", kind(model.parameters(), lr=0.1), model) == 4


def test_steps_that_a_fused_optimizer_skips_for_a_grad_scaler_are_not_counted(tmp_path: Path) -> None:
    # the scaler calls its step() all the same, and hands it `found_inf`; Adam's own counter does not count it either
    model = mlp(6, 8, 5)
    optimizer = AdamW(model.parameters(), fused=True)
    assert scaled(tmp_path / "run", optimizer, model) == 4
    assert int(optimizer.state[model[0].weight]["step"]) == 4


def test_a_closure_and_a_scheduler_do_not_disturb_the_count(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    inputs = torch.randn(16, 6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (model(inputs) - 1).square().mean()
        loss.backward()
        return loss

    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False) as tracker:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(3):
            optimizer.step(closure)
            scheduler.step()
    assert tracker.step_count == 3
