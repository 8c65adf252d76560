"""A run is taken up where its step counter says, whatever happened to the process; anything else is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import mlp, python, record, sgd, step_hooks, train
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from inrank_monitor import SpectrumTracker, attach, open_run
from inrank_monitor.runs.log import RUN_FILE, WEIGHTS_FILE

Checkpoint = tuple[dict[str, Any], dict[str, Any]]


def begin(
    directory: Path, kind: type[Optimizer] = AdamW, checkpoint: Checkpoint | None = None, **options: Any
) -> tuple[nn.Sequential, Optimizer, SpectrumTracker]:
    """Model, optimizer and tracker; from a checkpoint if there is one, as a new process would."""
    model = mlp(6, 8, 5)
    optimizer = AdamW(model.parameters(), lr=0.02) if kind is AdamW else sgd(model)
    if checkpoint:
        model.load_state_dict(checkpoint[0])
        optimizer.load_state_dict(checkpoint[1])
    return model, optimizer, attach(model, optimizer, directory, every=1, tensorboard=False, **options)


def save(model: nn.Module, optimizer: Optimizer) -> Checkpoint:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    buffer = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, optimizer.state_dict())
    return weights, buffer


def numbers(directory: Path) -> Any:
    """All that does not depend on when the run took place."""
    run = open_run(directory)
    frame = run.measurements.drop(columns="time")
    return frame, [run.singular_values(name) for name in run.matrices.index]


def assert_same(first: Path, second: Path) -> None:
    (frame, spectra), (other_frame, other_spectra) = numbers(first), numbers(second)
    assert frame.equals(other_frame)
    for one, other in zip(spectra, other_spectra, strict=True):
        assert one.equals(other)


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize("told", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kind: type[Optimizer], told: bool) -> None:
    model, optimizer, tracker = begin(tmp_path / "whole", kind)
    train(model, optimizer, 20)
    tracker.close()

    model, optimizer, tracker = begin(tmp_path / "parts", kind)
    train(model, optimizer, 8)
    checkpoint = save(model, optimizer)
    train(model, optimizer, 5, first=8)  # lost: these steps come after the checkpoint
    tracker.close()
    # Adam's own counter tells the step; SGD has none, so it must be told
    resume: bool | int = True if kind is AdamW and not told else 8
    model, optimizer, tracker = begin(tmp_path / "parts", kind, checkpoint, resume=resume)
    assert tracker.step_count == 8
    train(model, optimizer, 12, first=8)
    tracker.close()
    assert_same(tmp_path / "whole", tmp_path / "parts")
    events = open_run(tmp_path / "parts").events
    assert events[["step", "kind"]].to_numpy().tolist() == [[8, "resumed"]]


def test_without_a_counter_the_run_goes_on_after_the_last_step_logged(tmp_path: Path) -> None:
    model, optimizer, tracker = begin(tmp_path / "run", SGD)
    train(model, optimizer, 6)
    checkpoint = save(model, optimizer)
    tracker.close()
    model, optimizer, tracker = begin(tmp_path / "run", SGD, checkpoint, resume=True)
    assert tracker.step_count == 6
    train(model, optimizer, 3, first=6)
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == list(range(1, 10))


def test_a_scalar_past_the_last_snapshot_counts_as_logged(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    tracker = attach(model, sgd(model), tmp_path / "run", every=2, tensorboard=False)
    tracker.step_count = 7
    tracker.log(loss=1.0)
    tracker.close()
    model = mlp(6, 8, 5, seed=1)
    tracker = attach(model, sgd(model), tmp_path / "run", every=2, tensorboard=False, resume=True)
    assert tracker.step_count == 7
    tracker.close()


def test_a_training_that_begins_again_from_the_initial_weights_is_at_step_zero(tmp_path: Path) -> None:
    # killed before its first checkpoint, and started by the same command: resume=True is always given
    for kind in (AdamW, SGD):
        directory = tmp_path / kind.__name__
        model, optimizer, tracker = begin(directory, kind, resume=True)
        train(model, optimizer, 6)
        tracker.close()
        model, optimizer, tracker = begin(directory, kind, resume=True)
        assert tracker.step_count == 0, kind
        train(model, optimizer, 3)
        tracker.close()
        assert open_run(directory).measurements["step"].unique().tolist() == [1, 2, 3]


def test_steps_count_from_attach_also_where_the_optimizer_is_older(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    optimizer = AdamW(model.parameters())
    train(model, optimizer, 10)
    tracker = attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False)
    train(model, optimizer, 4, first=10)
    checkpoint = save(model, optimizer)
    train(model, optimizer, 2, first=14)
    tracker.close()
    assert open_run(tmp_path / "run").measurements["step"].max() == 6
    _, _, tracker = begin(tmp_path / "run", AdamW, checkpoint, resume=True)
    assert tracker.step_count == 4
    tracker.close()


@pytest.mark.parametrize("resume", [True, 5])
def test_resume_without_a_run_begins_a_new_one(tmp_path: Path, resume: bool | int) -> None:
    model, optimizer, tracker = begin(tmp_path / "run", resume=resume)
    assert tracker.step_count == 0
    train(model, optimizer, 2)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [1, 2]
    assert run.events.empty


def test_resume_at_zero_drops_everything(tmp_path: Path) -> None:
    record(tmp_path / "run", 5)
    model = mlp(6, 8, 5)
    tracker = attach(model, sgd(model), tmp_path / "run", every=1, tensorboard=False, resume=0)
    assert tracker.step_count == 0
    tracker.close()
    assert open_run(tmp_path / "run").measurements.empty


def test_the_running_rank_goes_on_from_the_resume_point(tmp_path: Path) -> None:
    def add(model: nn.Sequential, rank: int) -> None:
        with torch.no_grad():  # the first rank values equal, the others zero: an update of just this rank
            model[0].weight += torch.diag(torch.tensor([1.0] * rank + [0.0] * (9 - rank)))  # type: ignore[operator, arg-type]

    directory = tmp_path / "run"
    model = mlp(9, 9)
    options: dict[str, Any] = {"every": 1, "threshold": 1.0, "tensorboard": False}
    first = model[0].weight.detach().clone()  # type: ignore[operator]
    with attach(model, None, directory, **options) as tracker:
        for rank in (6, 2, 9):
            model[0].weight.data.copy_(first)  # type: ignore[operator, union-attr, arg-type]
            add(model, rank)
            tracker.step()
    before = open_run(directory).measurements
    model = mlp(9, 9)
    with attach(model, None, directory, resume=2, **options) as tracker:
        add(model, 1)
        tracker.step()
    rows = open_run(directory).measurements
    assert rows["step"].tolist() == [1, 2, 3]
    assert rows["running_rank"].iloc[1] == before["intrinsic_rank"].iloc[:2].max()
    assert rows["running_rank"].iloc[2] == rows["running_rank"].iloc[1]  # 9 came after the resume point


def test_a_run_can_be_taken_up_many_times(tmp_path: Path) -> None:
    model, optimizer, tracker = begin(tmp_path / "whole")
    train(model, optimizer, 20)
    tracker.close()
    checkpoint: Checkpoint | None = None
    for part in range(5):
        model, optimizer, tracker = begin(tmp_path / "parts", AdamW, checkpoint, resume=True)
        assert tracker.step_count == 4 * part
        train(model, optimizer, 4, first=4 * part)
        checkpoint = save(model, optimizer)
        train(model, optimizer, part)
        tracker.close()
    model, optimizer, tracker = begin(tmp_path / "parts", AdamW, checkpoint, resume=True)
    tracker.close()
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert [entry["segment"] for entry in open_run(tmp_path / "parts").info["segments"]] == list(range(6))


def test_a_resume_is_not_stopped_by_strange_files(tmp_path: Path) -> None:
    directory = record(tmp_path / "run", 3)
    shutil.copy(directory / "scalars-000.arrows", directory / "scalars-000 (copy).arrows")
    shutil.copy(directory / "scalars-000.arrows", directory / "scalars-7.arrows.bak")
    model = mlp(6, 8, 5, seed=1)
    attach(model, sgd(model), directory, every=1, tensorboard=False, resume=3).close()
    assert open_run(directory).status == "finished"


# --- what is refused, and how the directory is left


def refused(directory: Path, model: nn.Module, match: str, error: type[Exception] = ValueError, **options: Any) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    optimizer = sgd(model)
    with pytest.raises(error, match=match):
        attach(model, optimizer, directory, **{"resume": True, "every": 1, "tensorboard": False} | options)
    assert step_hooks(optimizer) == 0
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((6, 9, 5), r"another model.*'0\.weight', 8, 6.*'0\.weight', 9, 6.*another directory"),
        ((6, 8, 5, 4), r"another model.*2 matrices there, 3 here"),
        ((6, 8), r"another model.*2 matrices there, 1 here"),
    ],
)
def test_a_run_of_another_model_is_refused(tmp_path: Path, sizes: tuple[int, ...], match: str) -> None:
    refused(record(tmp_path / "run"), mlp(*sizes), match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 0.5}, "begun with threshold=0.9, got 0.5"),
        ({"buffer_rank": 7}, "begun with buffer_rank=None, got 7"),
        ({"definition": "reference"}, "begun with definition='paper', got 'reference'"),
        ({"leading": 4}, "begun with leading=None, got 4"),
        ({"include": "0.*"}, "2 matrices there, 1 here"),
    ],
)
def test_a_run_with_other_options_is_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    refused(record(tmp_path / "run"), mlp(6, 8, 5), match, **options)


@pytest.mark.parametrize("keep", ["memory", "device"])
def test_a_run_whose_w0_is_gone_is_refused(tmp_path: Path, keep: str) -> None:
    directory = record(tmp_path / "run", initial_weights=keep)
    refused(directory, mlp(6, 8, 5), "kept W0 in memory.*cannot be continued")


def test_a_damaged_w0_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    directory = record(tmp_path / "run")
    path = directory / WEIGHTS_FILE
    data = path.read_bytes()
    for offset in (0, 7, 9, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        refused(directory, mlp(6, 8, 5), f"{WEIGHTS_FILE}.*damaged")
    for size in (0, 5, 8, 30, len(data) - 1):
        path.write_bytes(data[:size])
        refused(directory, mlp(6, 8, 5), f"{WEIGHTS_FILE}.*damaged")
    path.unlink()
    refused(directory, mlp(6, 8, 5), f"{WEIGHTS_FILE} is missing", FileNotFoundError)


def test_a_damaged_run_json_is_refused(tmp_path: Path) -> None:
    directory = record(tmp_path / "run")
    content = (directory / RUN_FILE).read_text(encoding="utf-8")
    for text in ("", "{", content[:100], content.replace("segments", "segment_")):
        (directory / RUN_FILE).write_text(text, encoding="utf-8")
        refused(directory, mlp(6, 8, 5), RUN_FILE)
    newer = json.loads(content) | {"schema_version": 99}
    (directory / RUN_FILE).write_text(json.dumps(newer), encoding="utf-8")
    refused(directory, mlp(6, 8, 5), "newer version")


def test_a_run_that_a_live_process_writes_is_refused_until_it_dies(tmp_path: Path) -> None:
    script = """
from helpers.training import start, train
model, optimizer, tracker = start(sys.argv[1])
train(model, optimizer, 4)
tracker.flush()
print("ready", flush=True)
sys.stdin.read()
"""
    directory = tmp_path / "run"
    with subprocess.Popen(
        python(script, directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            for options in ({}, {"resume": 2}):
                refused(directory, mlp(6, 8, 5), "another process is writing", RuntimeError, **options)
        finally:
            process.kill()
    model = mlp(6, 8, 5, seed=1)
    tracker = attach(model, sgd(model), directory, every=1, tensorboard=False, resume=True)
    assert tracker.step_count == 4
    tracker.close()
    run = open_run(directory)
    assert run.status == "finished"
    assert run.problems == []
    assert np.isfinite(run.singular_values("0.weight").to_numpy()).all()


def test_a_run_that_logged_nothing_does_not_go_on_at_a_guessed_step(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    optimizer = sgd(model)  # which counts no steps
    attach(model, optimizer, tmp_path / "run", every=100, tensorboard=False)._close("killed")
    train(model, optimizer, 8)
    with pytest.raises(ValueError, match=r"logged nothing yet .* resume=N"):
        attach(model, optimizer, tmp_path / "run", every=100, resume=True, tensorboard=False)
    with attach(model, optimizer, tmp_path / "run", every=100, resume=8, tensorboard=False):
        train(model, optimizer, 2, first=8)
    assert open_run(tmp_path / "run").measurements["step"].max() == 10
