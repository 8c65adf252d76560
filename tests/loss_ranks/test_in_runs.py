"""Ranks by loss in a run: written whole or not at all, beside whatever else is written there, and read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_files import info, loss_curve, loss_ranks, write_run
from torch import nn

from inrank_monitor import SpectrumTracker, attach, loss_at_ranks, open_run, ranks_by_loss
from inrank_monitor.loss_ranks.saving import saved_in
from inrank_monitor.report import matrix_table, report_table
from inrank_monitor.runs import write_json

KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[2])
from helpers.run_files import loss_ranks
from inrank_monitor import ranks_by_loss
torch.manual_seed(1)
model = torch.nn.Linear(8, 6)
calls = 0
def loss():
    global calls
    calls += 1
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return (model.weight - 1).square().sum()
ranks_by_loss(model, sys.argv[1], loss, 1e-3)
"""


def training(
    directory: Path, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Any], SpectrumTracker]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    inputs, targets = torch.randn(64, 12), torch.randn(64, 4)
    tracker = attach(model, optimizer, directory, every=5, tensorboard=False, **options)
    return model, optimizer, lambda: (model(inputs) - targets).square().mean(), tracker


def steps(optimizer: torch.optim.Optimizer, loss: Callable[[], Any], count: int, then: Callable[[], Any]) -> list[Any]:
    told = []
    for _ in range(count):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        told.append(then())
    return told


def test_every_takes_it_at_multiples_alone_and_once_each(tmp_path: Path) -> None:
    _, optimizer, loss, tracker = training(tmp_path / "run", strict=True)
    assert tracker.ranks_by_loss(loss, every=4) is None
    told = steps(optimizer, loss, 9, lambda: [tracker.ranks_by_loss(loss, 0.05, 30, every=4) for _ in range(2)])
    tracker.close()
    taken = [pair[0] for pair in told if pair[0] is not None]
    assert [found.step for found in taken] == [4, 8]
    assert all(pair[1] is None for pair in told)
    table = open_run(tmp_path / "run").loss_ranks
    assert list(table["step"]) == [4, 4, 8, 8]
    for found, (_, rows) in zip(taken, table.groupby("step"), strict=True):
        assert dict(zip(rows["matrix"], rows["rank"], strict=True)) == dict(found.ranks)
        assert set(rows["loss_at_ranks"]) == {found.loss_at_ranks}
        assert set(rows["evaluations"]) == {found.evaluations}
        assert set(rows["uniform_rank"]) == {found.uniform_rank}


def test_training_is_the_same_to_the_bit_with_ranks_by_loss_at_each_step(tmp_path: Path) -> None:
    def ended(directory: Path, taken: bool) -> tuple[Any, ...]:
        model, optimizer, loss, tracker = training(directory, strict=True)
        steps(optimizer, loss, 8, lambda: tracker.ranks_by_loss(loss, 0.02, 20) if taken else None)
        tracker.close()
        run = open_run(directory)
        return model.state_dict(), run.measurements.drop(columns="time"), list(run.events["kind"])

    ends = [ended(tmp_path / str(taken), taken) for taken in (False, True)]
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert ends[0][1].equals(ends[1][1])
    assert ends[0][2] == ends[1][2] == []


def test_an_error_in_the_loss_is_recorded_once_and_training_goes_on(tmp_path: Path) -> None:
    _, optimizer, loss, tracker = training(tmp_path / "run")
    told = steps(optimizer, loss, 4, lambda: tracker.ranks_by_loss(lambda: 1 / 0))
    tracker.close()
    events = open_run(tmp_path / "run").events
    assert told == [None] * 4
    assert list(events["kind"]) == ["error"]
    assert "ZeroDivisionError" in events["message"].iloc[0]
    assert tracker.ranks_by_loss(loss) is None


def test_a_finished_run_gets_results_of_its_own_streams_and_can_be_taken_up(tmp_path: Path) -> None:
    model, optimizer, loss, tracker = training(tmp_path / "run")
    steps(optimizer, loss, 10, lambda: None)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.loss_ranks.empty
    assert "by loss" not in report_table(run)
    first, second = (ranks_by_loss(model, given, loss, 0.05, 30) for given in (tmp_path / "run", run))
    assert first.ranks == second.ranks
    assert first.step == 10
    assert run.refresh()
    assert list(run.loss_ranks["step"]) == [10] * 4
    assert list(matrix_table(run)["loss_rank"]) == list(second.ranks.values())
    assert "by loss" in report_table(run)
    assert ranks_by_loss(model, run, loss, 0.05, 30, save=False).ranks == first.ranks
    assert ranks_by_loss(model, tracker, loss, 0.05, 30).ranks == first.ranks
    again = attach(model, optimizer, tmp_path / "run", every=5, tensorboard=False, resume=7)
    steps(optimizer, loss, 2, lambda: again.ranks_by_loss(loss, 0.05, 30))
    again.close()
    run.refresh()
    assert list(run.loss_ranks["step"]) == [8, 8, 9, 9]  # what was past the seventh step counts no more
    assert run.problems == []


def test_every_evaluation_is_kept_with_the_result_and_is_the_loss_at_these_ranks(tmp_path: Path) -> None:
    model, optimizer, loss, tracker = training(tmp_path / "run")
    steps(optimizer, loss, 10, lambda: None)
    live = tracker.ranks_by_loss(loss, 1e-4, 30)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert list(run.loss_curve["loss"]) == [point.loss for point in live.curve]
    found = ranks_by_loss(model, run, loss, 1e-4, 30)
    run.refresh()
    curve = run.loss_curve[run.loss_curve["time"] == found.time]
    assert len(curve) == found.evaluations - 1  # the model as it is was evaluated twice
    assert set(curve["step"]) == {10}
    assert curve["loss"].iloc[0] == found.loss
    assert found.loss_at_ranks in set(curve["loss"])
    alike = curve[curve["uniform_rank"].notna()]
    assert len(alike) >= 3
    for rank, value in zip(alike["uniform_rank"], alike["loss"], strict=True):
        assert loss_at_ranks(model, run, loss, int(rank)) == pytest.approx(value)
    assert run.loss_curve.columns.tolist() == ["step", "time", "mean_rank", "uniform_rank", "loss"]


def test_results_of_versions_that_kept_no_evaluations_are_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    for file in (tmp_path / "run").glob("loss_curve-*"):
        file.unlink()
    run = open_run(tmp_path / "run")
    assert run.loss_curve.empty
    assert len(run.loss_ranks) == 6
    assert run.problems == []


def test_results_and_a_live_run_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    model, optimizer, loss, tracker = training(tmp_path / "run", strict=True)
    steps(optimizer, loss, 5, lambda: None)
    tracker.flush()
    saved = [ranks_by_loss(model, tmp_path / "run", loss, 0.05, 30), tracker.ranks_by_loss(loss, 0.05, 30)]
    steps(optimizer, loss, 5, lambda: None)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert [row["time"] for row in run.loss_ranks.to_dict("records")][::2] == [found.time for found in saved]
    assert run.status == "finished"
    assert run.info.get("foreign_segments", []) == []
    assert list(run.measurements["step"].unique()) == [5, 10]


def test_a_number_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(1, 3))
    write_json(tmp_path / "run" / "run.json", info((0, None), (4, 1)))  # as of one that has written nothing yet
    (tmp_path / "run" / "loss_ranks-005.arrows").write_bytes(b"")
    saved_in(tmp_path / "run", loss_ranks(9), loss_curve(9))
    assert sorted(file.name for file in (tmp_path / "run").glob("loss_ranks-*")) == [
        "loss_ranks-000.arrows",
        "loss_ranks-005.arrows",
        "loss_ranks-006.arrows",
    ]
    assert list(open_run(tmp_path / "run").loss_ranks["step"]) == [1, 1, 9, 9]


def test_a_process_killed_in_the_midst_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    model = nn.Linear(8, 6)
    attach(model, None, tmp_path / "run", tensorboard=False).close()
    files = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    here = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run"), here], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()} == files
    assert open_run(tmp_path / "run").loss_ranks.empty


def test_a_torn_result_is_left_out_and_said(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(1, 2))
    saved_in(tmp_path / "run", loss_ranks(7), loss_curve(7))
    path = tmp_path / "run" / "loss_ranks-001.arrows"
    path.write_bytes(path.read_bytes()[:-9])
    run = open_run(tmp_path / "run")
    assert list(run.loss_ranks["step"]) == [1, 1]
    assert "loss_ranks-001.arrows" in run.problems[0]


def test_w0_of_several_processes_is_found_in_their_files(tmp_path: Path) -> None:
    model, optimizer, loss, tracker = training(tmp_path / "run")
    steps(optimizer, loss, 3, lambda: None)
    tracker.close()
    expected = ranks_by_loss(model, tmp_path / "run", loss, 0.05, 30, save=False)
    _split_weights(tmp_path / "run")
    assert ranks_by_loss(model, tmp_path / "run", loss, 0.05, 30, save=False).ranks == expected.ranks


def _split_weights(directory: Path) -> None:
    """As two processes would have left it, each with one of the two weights."""
    from hashlib import sha256

    from safetensors.torch import load_file, save_file

    whole = load_file(directory / "initial_weights.safetensors")
    hashes = []
    for number, (name, value) in enumerate(whole.items()):
        file = directory / f"initial_weights{f'-{number:03d}' if number else ''}.safetensors"
        save_file({name: value}, file)
        hashes.append(sha256(file.read_bytes()).hexdigest())
    content = json.loads((directory / "run.json").read_text())
    content["initial_weights"]["sha256"], content["processes"] = hashes, 2
    write_json(directory / "run.json", content)


@pytest.mark.parametrize("keep", ["memory", "device"])
def test_a_live_tracker_has_its_w0_wherever_it_is_kept(keep: Any, tmp_path: Path) -> None:
    model, optimizer, loss, tracker = training(tmp_path / "run", initial_weights=keep, strict=True)
    steps(optimizer, loss, 3, lambda: None)
    assert ranks_by_loss(model, tracker, loss, 0.05, 30).step == 3
    tracker.close()
    assert len(open_run(tmp_path / "run").loss_ranks) == 2
    with pytest.raises(ValueError, match=f"no W0 on disk .*{keep}.*live tracker"):
        ranks_by_loss(model, tmp_path / "run", loss)
