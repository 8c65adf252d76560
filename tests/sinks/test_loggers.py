"""The loggers' sinks against the real libraries, offline, read back from what those wrote."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import assert_same_weights, mlp, start, train, trained
from torch import nn
from torch.optim import SGD

from inrank_monitor import attach, open_run
from inrank_monitor.sinks import MlflowSink, TrackioSink, WandbSink
from inrank_monitor.sinks.measurements import METRICS, TAGS

SCRIPT = Path(__file__).parents[2] / "docs" / "trainers" / "scripts" / "loggers.py"
NAMES = ("0.weight", "2.weight")
CHARTS = {f"{tag}/{name}" for tag in ("intrinsic_rank", "rank_over_null_rank") for name in NAMES}
CHARTS |= {f"mean/{tag}" for tag in TAGS if tag != "signal_rank"}  # too thin to tell
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # the libraries' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(wandb|mlflow|trackio|google).*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:(wandb|mlflow|trackio).*"),
]


def expected(directory: Path, name: str = "0.weight", metric: str = "intrinsic_rank") -> list[tuple[int, float]]:
    """(step, value) as the run directory has them."""
    rows = open_run(directory).measurements
    rows = rows[rows["matrix"] == name]
    return list(zip(rows["step"].tolist(), rows[metric].astype(float).tolist(), strict=True))


class Attention(nn.Module):
    """A name with brackets: the parts of `in_proj_weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.attention(inputs, inputs, inputs)[0]  # type: ignore[no-any-return]


# --- W&B


def records(folder: Path) -> Iterator[Any]:
    """Records of the offline run under a folder: LevelDB's log format, of protocol buffers."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service has the end of the file still
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of the run, by key."""
    rows = [record.history for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [{_key(item): json.loads(item.value_json) for item in row.item} for row in rows]


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def series(rows: list[dict[str, Any]], key: str, over: str) -> list[tuple[Any, Any]]:
    return [(row.get(over), row[key]) for row in rows if key in row]


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes the one run under tmp_path."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")

    def begin(**options: Any) -> Any:
        settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, silent=True)
        return wandb.init(project="test", dir=tmp_path, settings=settings, **options)

    yield begin
    wandb.teardown()


def log_every_step(run: Any, step: int) -> None:
    run.log({"loss": step})


def log_optimizer_steps(run: Any, step: int) -> None:
    run.log({"loss": step}, step=step)
    run.log({"accuracy": step}, step=step)  # later in the same row


def log_seldom(run: Any, step: int) -> None:
    if step % 10 == 0:
        run.log({"loss": step}, step=step)


def log_often(run: Any, step: int) -> None:
    for _ in range(3):
        run.log({"loss": step})


def log_nothing(run: Any, step: int) -> None:
    pass


@pytest.mark.parametrize("log", [log_every_step, log_optimizer_steps, log_seldom, log_often, log_nothing])
def test_wandb_has_every_snapshot_and_every_row_of_the_loop(
    tmp_path: Path, wandb_run: Callable[..., Any], log: Callable[[Any, int], None]
) -> None:
    run = wandb_run()
    model, optimizer, tracker = start(tmp_path / "run", every=4, sinks=[WandbSink()])
    for step in range(1, 41):
        train(model, optimizer, 1, first=step - 1)
        log(run, step)
    tracker.close()
    run.finish()
    rows = history(tmp_path)
    own = {key for row in rows for key in row if key.startswith("inrank/")}
    assert own == {f"inrank/{chart}" for chart in CHARTS} | {"inrank/step"}
    assert series(rows, "inrank/intrinsic_rank/0.weight", "inrank/step") == expected(tmp_path / "run")
    if log is log_optimizer_steps:
        assert series(rows, "loss", "_step") == series(rows, "accuracy", "_step") == [(n, n) for n in range(1, 41)]
    if log is log_seldom:
        assert series(rows, "loss", "_step") == [(n, n) for n in (10, 20, 30, 40)]
    if log in (log_every_step, log_often):
        times = 1 if log is log_every_step else 3
        assert [row["loss"] for row in rows if "loss" in row] == [n for n in range(1, 41) for _ in range(times)]
    assert open_run(tmp_path / "run").events.empty


def test_wandb_takes_no_row_from_a_loop_that_is_slower_than_the_logger(
    tmp_path: Path, wandb_run: Callable[..., Any]
) -> None:
    class Told(WandbSink):
        def write(self, measurements: Any) -> None:
            super().write(measurements)
            written.release()

    written = threading.Semaphore(0)
    run = wandb_run()
    model, optimizer, tracker = start(tmp_path / "run", every=2, sinks=[Told()])
    for step in range(1, 11):
        train(model, optimizer, 1, first=step - 1)
        run.log({"loss": step}, step=step)
        if step % 2 == 0:
            assert written.acquire(timeout=30)
    tracker.close()
    run.log({"accuracy": 1}, step=10)  # a last evaluation
    run.finish()
    rows = history(tmp_path)
    assert [row["_step"] for row in rows] == list(range(1, 11))
    assert series(rows, "inrank/step", "_step") == [(n, n) for n in range(2, 11, 2)]
    assert series(rows, "accuracy", "_step") == [(10, 1)]


def test_wandb_rows_that_count_epochs_are_all_kept_if_the_sink_takes_no_rows(
    tmp_path: Path, wandb_run: Callable[..., Any]
) -> None:
    run = wandb_run()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[WandbSink(own_rows=False)])
    for epoch in range(4):
        train(model, optimizer, 10, first=10 * epoch)
        run.log({"loss": epoch}, step=epoch)
    tracker.close()
    run.finish()
    rows = history(tmp_path)
    assert series(rows, "loss", "_step") == [(epoch, epoch) for epoch in range(4)]
    assert len(rows) == 4
    found = series(rows, "inrank/intrinsic_rank/0.weight", "inrank/step")
    assert found[-1] == expected(tmp_path / "run")[-1]
    assert set(found) <= set(expected(tmp_path / "run"))


def test_wandb_draws_every_chart_over_our_step_whatever_pattern_the_loop_defined(
    tmp_path: Path, wandb_run: Callable[..., Any]
) -> None:
    run = wandb_run()
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)  # as transformers' Trainer does
    model, optimizer, tracker = start(tmp_path / "run", sinks=[WandbSink(run)])
    train(model, optimizer, 2)
    tracker.close()
    run.finish()
    defined = {record.metric.name: record.metric.step_metric for record in records(tmp_path) if record.metric.name}
    assert {name: axis for name, axis in defined.items() if "/" in name and not name.endswith("step")} == {
        f"inrank/{chart}": "inrank/step" for chart in CHARTS
    }


def test_wandb_without_a_run_is_refused_and_a_finished_run_is_an_event(
    tmp_path: Path, wandb_run: Callable[..., Any]
) -> None:
    with pytest.raises(RuntimeError, match=r"no run: call wandb\.init\(\) before attach"):
        start(tmp_path / "run", sinks=[WandbSink()])
    run = wandb_run()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[WandbSink()])
    train(model, optimizer, 2)
    run.finish()
    train(model, optimizer, 2, first=2)
    tracker.close()
    found = open_run(tmp_path / "run")
    assert found.measurements["step"].unique().tolist() == [1, 2, 3, 4]
    assert set(found.events["kind"]) == {"error"}
    assert found.events["message"].str.contains("is finished").all()
    assert_same_weights(model, trained(4))


@pytest.mark.parametrize("writer", [False, True])
def test_wandb_syncs_our_event_file_if_tensorboards_own_writer_shows_it_the_folder(
    tmp_path: Path, wandb_run: Callable[..., Any], writer: bool
) -> None:
    from torch.utils import tensorboard

    run = wandb_run(sync_tensorboard=True)
    if writer:
        tensorboard.writer.SummaryWriter(str(tmp_path / "run" / "tensorboard")).close()
    model, optimizer, tracker = start(tmp_path / "run", 20, 20, 5, tensorboard=True)
    for step in range(4):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=step)
    tracker.close()
    run.finish()
    rows = history(tmp_path)
    found = series(rows, "intrinsic_rank/0.weight", "global_step")
    assert found == (expected(tmp_path / "run") if writer else [])
    assert len(series(rows, "loss", "global_step")) == (4 if writer else 0)
    assert any(key.startswith("log10_singular_values/0.weight") for row in rows for key in row) == writer


def test_the_trainers_own_wandb_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb
    from helpers.active import gpt2
    from helpers.trainers import trainer

    from inrank_monitor import TrackerCallback

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    callback = TrackerCallback(tmp_path / "run", every=3, sinks=[WandbSink(matrices=["*.c_fc.*"])])
    trainer(gpt2(), tmp_path / "out", callback, report_to="wandb", save_strategy="no").train()
    wandb.finish()
    rows = history(tmp_path)
    (chart, *_) = sorted(key for row in rows for key in row if key.startswith("inrank/intrinsic_rank/"))
    name = chart.removeprefix("inrank/intrinsic_rank/")
    assert series(rows, chart, "inrank/step") == expected(tmp_path / "run", name)
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [2, 4, 6, 8, 10, 12]


# --- MLflow


@pytest.fixture
def mlflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, with a store of files: its own default needs a database driver."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # the library sets it
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    mlflow.set_experiment("test")
    yield mlflow
    mlflow.end_run()
    mlflow.set_tracking_uri(before)


def metric_history(mlflow: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient().get_metric_history(run_id, key)]


def test_mlflow_has_every_snapshot_also_after_its_run_has_ended(tmp_path: Path, mlflow_runs: Any) -> None:
    with mlflow_runs.start_run() as run:
        model, optimizer, tracker = start(tmp_path / "run", every=2, sinks=[MlflowSink()])
        train(model, optimizer, 5)
    tracker.close()
    run_id = run.info.run_id
    found = mlflow_runs.get_run(run_id).data.metrics
    assert set(found) == {f"inrank/{chart}" for chart in CHARTS}
    for name in NAMES:
        assert metric_history(mlflow_runs, run_id, f"inrank/intrinsic_rank/{name}") == expected(tmp_path / "run", name)
    assert [step for step, _ in metric_history(mlflow_runs, run_id, "inrank/mean/stable_rank")] == [2, 4, 5]
    assert open_run(tmp_path / "run").events.empty


def test_mlflow_takes_names_with_brackets_in_a_run_that_is_named(tmp_path: Path, mlflow_runs: Any) -> None:
    run_id = mlflow_runs.MlflowClient().create_run("0").info.run_id
    model = Attention()
    optimizer = SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, sinks=[MlflowSink(run_id)]):
        model(torch.randn(3, 2, 4)).square().sum().backward()
        optimizer.step()
    key = "inrank/intrinsic_rank/attention.in_proj_weight.q"
    assert metric_history(mlflow_runs, run_id, key) == expected(tmp_path / "run", "attention.in_proj_weight[q]")
    assert mlflow_runs.active_run() is None


def test_mlflow_gets_more_metrics_than_one_request_takes(tmp_path: Path, mlflow_runs: Any) -> None:
    with mlflow_runs.start_run() as run:
        sink = MlflowSink(curves=METRICS, matrices=["*"])
        model, optimizer, tracker = start(tmp_path / "run", *[2] * 85, sinks=[sink])
        train(model, optimizer, 1)
        tracker.close()
    found = mlflow_runs.get_run(run.info.run_id).data.metrics
    finite = sum(key.startswith("inrank/spectral_norm/") for key in found)
    assert finite == 84
    assert len(found) > 1000
    assert open_run(tmp_path / "run").events.empty


def test_mlflow_keeps_both_values_of_a_step_that_is_trained_again(tmp_path: Path, mlflow_runs: Any) -> None:
    with mlflow_runs.start_run() as run:
        for resume in (False, 2):
            model, optimizer, tracker = start(tmp_path / "run", resume=resume, sinks=[MlflowSink()])
            train(model, optimizer, 3 if resume is False else 2, first=int(resume))
            tracker.close()
    steps = [step for step, _ in metric_history(mlflow_runs, run.info.run_id, "inrank/intrinsic_rank/0.weight")]
    assert sorted(steps) == [1, 2, 3, 3, 4]
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [1, 2, 3, 4]


def test_mlflow_without_a_run_is_refused(tmp_path: Path, mlflow_runs: Any) -> None:
    with pytest.raises(RuntimeError, match=r"no run: call mlflow\.start_run\(\) before attach"):
        start(tmp_path / "run", sinks=[MlflowSink()])
    with pytest.raises(mlflow_runs.MlflowException, match="0123abcd"):
        start(tmp_path / "run", sinks=[MlflowSink("0123abcd")])
    assert not (tmp_path / "run").exists()


# --- trackio


def needs_trackio() -> Any:
    return pytest.importorskip("trackio", minversion="0.43", reason="an old trackio has no steps")


@pytest.fixture
def trackio_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, with its database in tmp_path."""
    trackio = needs_trackio()
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    (tmp_path / "trackio").mkdir()
    yield trackio
    trackio.context_vars.current_run.set(None)


def begin_trackio(trackio: Any) -> Any:
    return trackio.init(project="test", name="one", auto_log_cpu=False, auto_log_gpu=False, embed=False)


def trackio_rows(key: str) -> list[tuple[int, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    return [(row["step"], row[key]) for row in SQLiteStorage.get_logs("test", "one") if key in row]


def test_trackio_has_every_snapshot_at_its_step(tmp_path: Path, trackio_runs: Any) -> None:
    run = begin_trackio(trackio_runs)
    model, optimizer, tracker = start(tmp_path / "run", every=4, sinks=[TrackioSink()])
    for step in range(1, 11):
        train(model, optimizer, 1, first=step - 1)
        run.log({"loss": step}, step=step)
    tracker.close()
    trackio_runs.finish()
    for name in NAMES:
        assert trackio_rows(f"inrank/intrinsic_rank/{name}") == expected(tmp_path / "run", name)
    assert sorted(trackio_rows("loss")) == [(step, step) for step in range(1, 11)]
    assert open_run(tmp_path / "run").events.empty


def test_trackio_has_the_last_snapshot_of_a_tracker_that_is_closed_after_the_run(
    tmp_path: Path, trackio_runs: Any
) -> None:
    run = begin_trackio(trackio_runs)
    model, optimizer, tracker = start(tmp_path / "run", sinks=[TrackioSink(run)])
    train(model, optimizer, 1)
    trackio_runs.finish()  # as transformers' Trainer does
    train(model, optimizer, 1, first=1)
    tracker.close()
    assert trackio_rows("inrank/intrinsic_rank/0.weight") == expected(tmp_path / "run")


def test_trackio_without_a_run_is_refused(tmp_path: Path, trackio_runs: Any) -> None:
    with pytest.raises(RuntimeError, match=r"no run: call trackio\.init\(\) before attach"):
        start(tmp_path / "run", sinks=[TrackioSink()])


# --- the page's script


@pytest.mark.parametrize("to", ["own", "wandb", "mlflow", "trackio"])
def test_the_script_runs_offline(tmp_path: Path, to: str) -> None:
    if to == "trackio":
        needs_trackio()
    env = os.environ | {
        "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), "--to", to, str(tmp_path / to)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "4.weight" in done.stdout
    steps = list(range(5, 65, 5))
    assert open_run(tmp_path / to / "run").measurements["step"].unique().tolist() == steps
    assert open_run(tmp_path / to / "run").events.empty
    if to == "own":
        lines = (tmp_path / to / "ranks.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps
    if to == "wandb":
        rows = history(tmp_path / to)
        assert [row["inrank/step"] for row in rows if "inrank/mean/stable_rank" in row] == steps
        assert [step for step, _ in series(rows, "loss", "_step")] == list(range(1, 61))
    if to == "mlflow":
        (file,) = (tmp_path / "store").glob("*/*/metrics/inrank/mean/stable_rank")
        assert [int(line.split()[2]) for line in file.read_text(encoding="utf-8").splitlines()] == steps


def test_the_models_do_not_change(tmp_path: Path, mlflow_runs: Any, wandb_run: Callable[..., Any]) -> None:
    wandb_run()
    with mlflow_runs.start_run():
        model, optimizer, tracker = start(tmp_path / "run", sinks=[WandbSink(), MlflowSink()])
        before = torch.get_rng_state()
        train(model, optimizer, 6)
        tracker.close()
        assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(model, trained(6))
    assert isinstance(mlp(2, 2), nn.Sequential)
