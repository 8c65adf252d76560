"""Promise 3: after attach nothing kills the training, nothing is lost that can be kept, and everything is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import assert_same_weights, complaints, mlp, sgd, start, train, trained
from torch import Tensor, nn

from inrank_monitor import attach, open_run
from inrank_monitor.runs.log import FLOAT_METRICS

RANKS = ("intrinsic_rank", "running_rank", "energy_rank", "numerical_rank")


# --- the weights


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("leading", [None, 3])
def test_a_non_finite_matrix_is_an_event_and_its_row_says_so(tmp_path: Path, bad: float, leading: int | None) -> None:
    model = mlp(60, 70, 50)
    with attach(model, None, tmp_path / "run", every=1, leading=leading, tensorboard=True) as tracker:
        tracker.step()
        kept = model[0].weight[3, 2].item()  # type: ignore[index]
        with torch.no_grad():
            model[0].weight[3, 2] = bad  # type: ignore[index]
            model[2].weight[0, 0] += 1  # type: ignore[index]
        tracker.step()
        with torch.no_grad():
            model[0].weight[3, 2] = kept + 1  # type: ignore[index]
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.events[["step", "kind", "matrix"]].to_numpy().tolist() == [[2, "non_finite", "0.weight"]]
    rows = run.measurements[run.measurements["matrix"] == "0.weight"]
    assert rows["step"].tolist() == [1, 2, 3]
    broken = rows.iloc[1]
    assert [name for name in FLOAT_METRICS if not np.isnan(float(broken[name]))] == []
    assert rows[list(RANKS)].iloc[1].isna().all()
    assert run.singular_values("0.weight").loc[2].isna().all()
    assert rows["running_rank"].iloc[2] == 1  # it recovers
    assert rows["spectral_norm"].iloc[2] == pytest.approx(1, rel=1e-5)
    other = run.measurements[run.measurements["matrix"] == "2.weight"]
    assert other["spectral_norm"].tolist() == pytest.approx([0, 1, 1], rel=1e-5)


def test_a_model_that_diverged_is_one_event_a_snapshot_and_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 6, 8, 8, 8, 8, 8, 8, 5, tensorboard=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    train(model, optimizer, 5)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.events["step"].tolist() == [1, 2, 3, 4, 5]
    assert set(run.events["kind"]) == {"non_finite"}
    assert run.events["message"].str.startswith("7 matrices (0.weight, 2.weight").all()
    assert run.measurements[list(RANKS)].isna().all(axis=None)
    assert len(run.measurements) == 5 * 7
    assert run.status == "finished"
    assert complaints(caplog) == []
    assert run.summary().mean_rank is None


def test_a_non_finite_update_raises_in_strict_mode_inside_the_loop(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    train(model, optimizer, 2)
    with torch.no_grad():
        model[2].weight.fill_(float("inf"))  # type: ignore[operator, union-attr]
    with pytest.raises(RuntimeError, match=r"non_finite in (0|2)\.weight at step 3"):
        train(model, optimizer, 1, first=2)
    tracker.close("diverged")
    run = open_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert run.events["kind"].tolist() == ["changed_between_steps", "non_finite"]
    assert run.measurements["step"].max() == 3


class Clock:
    """Stands for the module `time`: time passes when a test says so."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


class Odd(nn.Module):
    """Parameters without entries beside one with."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, 5))
        self.thin = nn.Parameter(torch.zeros(3, 0))
        self.stack = nn.Parameter(torch.zeros(0, 4, 4))
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.fine = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.fine(inputs) * self.scalar + self.empty.sum() + self.thin.sum() + self.stack.sum()
        return out


def test_parameters_without_entries_are_skipped_and_said(tmp_path: Path) -> None:
    model = Odd()
    optimizer = sgd(model)
    with attach(model, optimizer, tmp_path / "run", every=1) as tracker:
        for _ in range(2):
            model(torch.randn(2, 4)).square().mean().backward()
            optimizer.step()
    notes = {row.parameter: (row.watched, row.note) for row in tracker.coverage}
    assert {name for name, (watched, _) in notes.items() if watched} == {"fine.weight"}
    assert {notes[name][1] for name in ("empty", "thin", "stack")} == {"it has no entries"}
    run = open_run(tmp_path / "run")
    assert run.events.empty
    assert run.measurements["step"].tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(9, 6), (8, 7), (0, 6), (8,)])
@pytest.mark.parametrize("all_matrices", [True, False])
def test_a_changed_shape_is_an_event_and_the_others_are_measured(
    tmp_path: Path, shape: tuple[int, ...], all_matrices: bool
) -> None:
    model = mlp(6, 8, 5)
    include = "0.*" if all_matrices else None
    with attach(model, None, tmp_path / "run", every=1, include=include) as tracker:
        tracker.step()
        original = model[0].weight
        model[0].weight = nn.Parameter(torch.zeros(shape))
        tracker.step()
        model[0].weight = original
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.events[["step", "kind", "matrix"]].to_numpy().tolist() == [[2, "shape_changed", "0.weight"]]
    assert str(tuple(shape)) in run.events["message"].iloc[0]
    assert "(8, 6)" in run.events["message"].iloc[0]
    rows = run.measurements
    assert rows.loc[rows["matrix"] == "0.weight", "step"].tolist() == [1, 3]
    if not all_matrices:
        assert rows.loc[rows["matrix"] == "2.weight", "step"].tolist() == [1, 2, 3]


def test_a_parameter_that_went_away_is_an_event_and_the_others_are_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlp(6, 8, 5)
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        tracker.step()
        del model[0].weight
        tracker.step()
        tracker.step()
    run = open_run(tmp_path / "run")
    assert not run.events.empty
    rows = run.measurements
    assert rows.loc[rows["matrix"] == "2.weight", "step"].tolist() == [1, 2, 3]
    assert len(complaints(caplog)) <= 1


# --- errors of our own


def test_an_error_in_a_spectrum_is_logged_once_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 2)
    with monkeypatch.context() as patch:
        patch.setattr("inrank_monitor.spectra.method.singular_values", broken)
        train(model, optimizer, 4, first=2)
    train(model, optimizer, 1, first=6)
    tracker.close()
    assert_same_weights(model, trained(7))
    (complaint,) = complaints(caplog)
    assert "no spectrum today" in complaint
    assert "in broken" in complaint  # the traceback
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [1, 2, 7]
    (event,) = run.events.itertuples()
    assert (event.step, event.kind) == (3, "error")
    assert "Traceback" in event.message
    assert "no spectrum today" in event.message
    assert run.status == "finished"


def test_an_error_in_the_metrics_is_logged_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no metric today")

    model, optimizer, tracker = start(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("inrank_monitor.tracking.recorder.metric_columns", broken)
        train(model, optimizer, 4)
        tracker.flush()
    train(model, optimizer, 1, first=4)
    tracker.close()
    assert_same_weights(model, trained(5))
    assert len(complaints(caplog)) == 1
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [5]
    assert run.events["kind"].tolist() == ["error"]
    assert "no metric today" in run.events["message"].iloc[0]


def test_an_error_in_tensorboard_costs_only_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no events today")

    monkeypatch.setattr("inrank_monitor.sinks.tensorboard.EventFile.add_measurements", broken)
    model, optimizer, tracker = start(tmp_path / "run", tensorboard=True)
    train(model, optimizer, 4)
    tracker.close()
    assert len(complaints(caplog)) == 1
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [1, 2, 3, 4]
    assert run.events["kind"].tolist() == ["error"]
    assert run.status == "finished"


def test_an_error_raises_inside_the_loop_in_strict_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no spectrum today")

    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    train(model, optimizer, 2)
    with monkeypatch.context() as patch:
        patch.setattr("inrank_monitor.spectra.method.singular_values", broken)
        with pytest.raises(ArithmeticError, match="no spectrum today"):
            train(model, optimizer, 1, first=2)
    tracker.close()


def test_an_error_in_the_trackers_thread_raises_at_a_later_snapshot_in_strict_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("no metric today")

    model, optimizer, tracker = start(tmp_path / "run", strict=True)
    monkeypatch.setattr("inrank_monitor.tracking.recorder.metric_columns", broken)
    train(model, optimizer, 1)
    tracker.flush()
    with pytest.raises(ArithmeticError, match="no metric today"):
        train(model, optimizer, 1, first=1)
    tracker.close("failed")
    assert open_run(tmp_path / "run").status == "interrupted"


def test_errors_with_ever_new_messages_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(step: int) -> bool:
        raise ValueError(f"step {step} is a bad one")

    model, optimizer, tracker = start(tmp_path / "run", schedule=broken)
    train(model, optimizer, 100)
    tracker.close()
    assert len(complaints(caplog)) <= 10
    assert len(open_run(tmp_path / "run").events) <= 10


def test_a_snapshot_that_fails_again_and_again_stays_inside_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    tried = []

    def broken(*_: object) -> None:
        tried.append(clock.now)
        clock.now += 0.05
        raise ArithmeticError("no spectrum today")

    monkeypatch.setattr("inrank_monitor.tracking.pace.time", clock)
    monkeypatch.setattr("inrank_monitor.tracking.snapshots.take_snapshot", broken)
    model, optimizer, tracker = start(tmp_path / "run", max_overhead=0.01)
    for step in range(300):
        clock.now += 0.1
        train(model, optimizer, 1, first=step)
    tracker.close()
    assert 2 <= len(tried) <= 30  # of 300 steps; within the 3 s that the early series may take
