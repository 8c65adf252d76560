"""Sinks: they get what the log has, and nothing that they do holds up or disturbs training or log."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import assert_same_weights, complaints, mlp, run_script, sgd, start, train, trained
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.sinks import MlflowSink, Sink, TrackioSink, WandbSink
from inrank_monitor.sinks.measurements import METRICS, MOST_CURVES, TAGS, Measurements

DOCS = Path(__file__).parents[2] / "docs" / "loggers.md"
pytestmark = pytest.mark.usefixtures("one_thread")


class Kept(Sink):
    """Keeps everything, and how it was called."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.found: list[Measurements] = []
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def connect(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.calls.append("connect")

    def write(self, measurements: Measurements) -> None:
        self.found.append(measurements)
        self.calls.append("write")
        self.threads.add(threading.current_thread().name)

    def close(self) -> None:
        self.calls.append("close")

    @property
    def steps(self) -> list[int]:
        return [measurements.step for measurements in self.found]


class Broken(Kept):
    """Fails at every snapshot from the second on."""

    def write(self, measurements: Measurements) -> None:
        super().write(measurements)
        if len(self.found) > 1:
            raise ConnectionError(f"no server at step {measurements.step}")


class Stuck(Kept):
    """Waits at the first snapshot until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, measurements: Measurements) -> None:
        assert self.free.wait(60)
        super().write(measurements)


def measurements(*names: str, watched: int | None = None, **metrics: Any) -> Measurements:
    """A snapshot of these matrices, every metric 0, 1, 2, ... unless given."""
    table = {metric: np.arange(len(names), dtype=float) for metric in METRICS}
    table |= {metric: np.array(values, dtype=float) for metric, values in metrics.items()}
    return Measurements(1, 1.0e9, names, table, [np.ones(1)] * len(names), watched or len(names))


# --- what they get


def test_a_sink_gets_what_the_log_has(tmp_path: Path) -> None:
    sink = Kept()
    model, optimizer, tracker = start(tmp_path / "run", every=2, sinks=[sink])
    train(model, optimizer, 5)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert sink.names == ["0.weight", "2.weight"]
    assert sink.steps == [2, 4, 5]
    assert sink.calls == ["connect", *["write"] * 3, "close"]
    for found in sink.found:
        rows = run.measurements[run.measurements["step"] == found.step].set_index("matrix")
        assert list(found.names) == list(rows.index)
        for metric in set(METRICS) - {"rank_over_null_rank"}:
            expected = rows[metric].to_numpy(dtype=float, na_value=np.nan)
            np.testing.assert_array_equal(found.metrics[metric], expected, err_msg=metric)
        shares = (rows["intrinsic_rank"] / rows["null_rank"]).to_numpy(dtype=float)
        np.testing.assert_array_equal(found.metrics["rank_over_null_rank"], shares)
        for name, values in zip(found.names, found.singular_values, strict=True):
            np.testing.assert_array_equal(values, run.singular_values(name).loc[found.step].dropna())


def test_a_sink_gets_a_snapshot_after_the_log_has_it(tmp_path: Path) -> None:
    class Reads(Kept):
        def write(self, measurements: Measurements) -> None:
            super().write(measurements)
            assert measurements.step in set(open_run(tmp_path / "run").measurements["step"])

    sink = Reads()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[sink], strict=True)
    train(model, optimizer, 3)
    tracker.close()
    assert sink.steps == [1, 2, 3]
    assert open_run(tmp_path / "run").events.empty


def test_a_matrix_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    sink = Kept()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[sink])
    train(model, optimizer, 1)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
    train(model, optimizer, 1, first=1)
    tracker.close()
    assert [list(found.names) for found in sink.found] == [["0.weight", "2.weight"]]  # the loss made both NaN


def test_a_resumed_run_hands_on_what_follows(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[first])
    train(model, optimizer, 4)
    tracker.close()
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    with attach(model, optimizer, tmp_path / "run", every=1, resume=2, sinks=[second], tensorboard=False):
        train(model, optimizer, 2, first=2)
    assert first.steps == [1, 2, 3, 4]
    assert second.steps == [3, 4]


def test_a_sink_can_be_used_again(tmp_path: Path) -> None:
    sink = Kept()
    for name in ("one", "two"):
        model, optimizer, tracker = start(tmp_path / name, sinks=[sink])
        train(model, optimizer, 1)
        tracker.close()
    assert sink.calls == ["connect", "write", "close"] * 2


# --- the numbers for charts


def test_means_are_over_all_finite_values() -> None:
    found = measurements(
        "a.weight", "b.weight", stable_rank=[1, 4], relative_norm=[np.inf, 3], explained_ratio=[np.nan] * 2
    )
    values = found.scalars(curves=())
    assert set(values) == {f"mean/{tag}" for tag in TAGS} - {"mean/explained_ratio"}
    assert values["mean/stable_rank"] == 2.5
    assert values["mean/relative_norm"] == 3


def test_few_matrices_have_curves_of_their_own() -> None:
    values = measurements("a.weight", "h.0.attn.weight[q]").scalars()
    own = {tag: value for tag, value in values.items() if not tag.startswith("mean/")}
    assert own == {
        "intrinsic_rank/a.weight": 0, "rank_over_null_rank/a.weight": 0,
        "intrinsic_rank/h.0.attn.weight[q]": 1, "rank_over_null_rank/h.0.attn.weight[q]": 1,
    }  # fmt: skip


def test_a_thousand_matrices_are_a_few_curves_and_each_is_a_mean() -> None:
    kinds = ("attn.c_attn.weight[q]", "mlp.c_fc.weight", "mlp.experts[7]", "conv2.weight")
    names = [f"h.{block}.{kind}" for block in range(250) for kind in kinds]
    values = measurements(*names).scalars()
    own = [tag for tag in values if tag.startswith("intrinsic_rank/")]
    assert own == [
        "intrinsic_rank/h.all.attn.c_attn.weight[q]", "intrinsic_rank/h.all.mlp.c_fc.weight",
        "intrinsic_rank/h.all.mlp.experts[all]", "intrinsic_rank/h.all.conv2.weight",
    ]  # fmt: skip
    assert [values[tag] for tag in own] == [np.mean(range(place, 1000, 4)) for place in range(4)]
    assert len(values) <= 20


def test_charts_do_not_change_with_the_matrices_that_could_be_measured() -> None:
    names = [f"h.{block}.weight" for block in range(MOST_CURVES + 1)]
    assert set(measurements(*names).scalars()) == set(measurements(*names[:3], watched=len(names)).scalars())


def test_named_matrices_have_curves_however_many_there_are() -> None:
    names = [f"h.{block}.weight" for block in range(100)]
    values = measurements(*names).scalars(curves=["spectral_norm"], matrices={"h.7.weight"})
    assert {tag: value for tag, value in values.items() if "mean" not in tag} == {"spectral_norm/h.7.weight": 7}


# --- what they may do


def test_training_with_a_sink_is_bit_identical(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", sinks=[Broken(), Kept()])
    train(model, optimizer, 6)
    tracker.close()
    assert_same_weights(model, trained(6))


def test_a_sink_that_raises_is_one_event_and_is_given_the_next_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, kept = Broken(), Kept()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[broken, kept])
    train(model, optimizer, 6)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert broken.steps == kept.steps == run.measurements["step"].unique().tolist() == [1, 2, 3, 4, 5, 6]
    (event,) = run.events.itertuples()
    assert (event.step, event.kind) == (2, "error")
    assert event.message.startswith("Broken.write failed")
    assert event.message.rstrip().endswith("ConnectionError: no server at step 2")
    assert len(complaints(caplog)) == 1
    assert run.status == "finished"
    assert broken.calls[-1] == "close"


def test_a_sink_that_fails_to_close_is_an_event(tmp_path: Path) -> None:
    class Unclosable(Kept):
        def close(self) -> None:
            raise OSError("no space left")

    model, optimizer, tracker = start(tmp_path / "run", sinks=[Unclosable()])
    train(model, optimizer, 2)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.events[["step", "kind"]].to_numpy().tolist() == [[2, "error"]]
    assert "Unclosable.close failed" in run.events["message"].iloc[0]
    assert run.status == "finished"


def test_a_sink_that_raises_ends_the_loop_in_strict_mode(tmp_path: Path) -> None:
    sink = Broken()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[sink], strict=True)
    with pytest.raises(ConnectionError, match="no server at step 2"):
        train(model, optimizer, 1000)
    tracker.close("failed")


def test_a_slow_sink_holds_up_neither_the_loop_nor_the_log_nor_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow, quick = Stuck(), Kept()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[slow, quick])
    train(model, optimizer, 40)
    tracker.flush()
    assert tracker.finished_steps == list(range(1, 41))
    assert slow.steps == []
    slow.free.set()
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == quick.steps == list(range(1, 41))
    assert 16 <= len(slow.steps) <= 18  # one in its hands, 16 that waited
    first, last = run.events.itertuples()
    assert first.kind == last.kind == "sink_behind"
    assert "Stuck is slower" in first.message
    assert f"{40 - len(slow.steps)} snapshots were left out" in last.message
    assert len(complaints(caplog)) == 2


def test_a_dead_sink_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inrank_monitor.sinks.threads.CLOSING_SECONDS", 0.2)
    dead, alive = Stuck(), Kept()
    model, optimizer, tracker = start(tmp_path / "run", sinks=[dead, alive])
    train(model, optimizer, 3)
    tracker.close()
    dead.free.set()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert alive.steps == [1, 2, 3]
    (event,) = run.events.itertuples()
    assert event.kind == "sink_behind"
    assert "with 3 still to take" in event.message


def test_each_sink_has_a_thread_which_ends_with_the_tracker(tmp_path: Path) -> None:
    sinks = [Kept(), Broken()]
    model, optimizer, tracker = start(tmp_path / "run", sinks=sinks)
    train(model, optimizer, 2)
    tracker.close()
    assert [sink.threads for sink in sinks] == [{"inrank-Kept"}, {"inrank-Broken"}]
    assert not [thread for thread in threading.enumerate() if thread.name in ("inrank-Kept", "inrank-Broken")]


def test_a_sinks_time_is_the_trackers_cost(tmp_path: Path) -> None:
    class Busy(Kept):
        def write(self, measurements: Measurements) -> None:
            super().write(measurements)
            while threading.current_thread().is_alive() and sum(range(10_000)) and not self.done():
                pass

        def done(self) -> bool:
            import time

            return time.thread_time() > 0.1 * len(self.found)

    model, optimizer, tracker = start(tmp_path / "run", sinks=[Busy()])
    train(model, optimizer, 3)
    tracker.close()
    assert tracker.seconds > 0.3


# --- what attach refuses


@pytest.mark.parametrize(
    ("sinks", "message"),
    [
        ("wandb", r"sinks must be a list of sinks.*got 'wandb'"),
        (Kept(), r"sinks must be a list of sinks"),
        ([WandbSink], r"got the class WandbSink: write WandbSink\(\)"),
        ([print], r"subclasses of inrank_monitor.sinks.Sink, got <built-in"),
        (None, r"sinks must be a list of sinks.*got None"),
    ],
)
def test_something_else_than_sinks_is_refused(tmp_path: Path, sinks: Any, message: str, unchecked: None) -> None:
    with pytest.raises(TypeError, match=message):
        start(tmp_path / "run", sinks=sinks)
    assert not (tmp_path / "run").exists()


def test_what_connect_raises_attach_raises_and_no_run_is_begun(tmp_path: Path) -> None:
    class Refusing(Kept):
        def connect(self, names: Sequence[str]) -> None:
            raise RuntimeError(f"I will not watch {names[0]}")

    with pytest.raises(RuntimeError, match=r"I will not watch 0\.weight"):
        start(tmp_path / "run", sinks=[Refusing()])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [WandbSink, MlflowSink, TrackioSink])
def test_a_logger_refuses_what_it_cannot_chart(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(ValueError, match=r"curves must be of .*; got 'loss'"):
        kind(curves=["loss"])
    with pytest.raises(
        ValueError, match=rf"'\*\.attn' of {kind.__name__} matches no .* look like 0\.weight, 2\.weight"
    ):
        start(tmp_path / "run", sinks=[kind(matrices=["0.*", "*.attn"])])


@pytest.mark.parametrize(("kind", "library"), [(WandbSink, "wandb"), (MlflowSink, "mlflow"), (TrackioSink, "trackio")])
def test_a_library_that_is_not_there_is_named_at_attach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=library):
        start(tmp_path / "run", sinks=[kind()])


# --- the page


def test_the_sink_of_ten_lines_on_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in found if "class JsonLines(Sink)" in block]
    assert len(code.split("class ")[1].split("tracker =")[0].strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    model = mlp(6, 8, 5)
    names: dict[str, Any] = {"attach": attach, "model": model, "optimizer": sgd(model)}
    exec(code, names)
    train(model, names["optimizer"], 3)
    names["tracker"].close()
    lines = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == open_run("runs/first").measurements["step"].unique().tolist()
    ranks = open_run("runs/first").measurements["intrinsic_rank"].tolist()
    assert [line[f"intrinsic_rank/{name}"] for line in lines for name in ("0.weight", "2.weight")] == ranks


def test_a_user_may_leave_out_all_but_write(tmp_path: Path) -> None:
    class Least(Sink):
        def write(self, measurements: Measurements) -> None:
            steps.append(measurements.step)

    steps: list[int] = []
    model: nn.Sequential
    model, optimizer, tracker = start(tmp_path / "run", sinks=[Least()])
    train(model, optimizer, 2)
    tracker.close()
    assert steps == [1, 2]


# --- several processes

PROCESS = """
import torch, torch.distributed as dist
from helpers.training import mlp, sgd, train
from inrank_monitor import attach
from inrank_monitor.sinks import Sink
torch.set_num_threads(1)
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

class Named(Sink):
    def connect(self, names):
        assert rank == 0
        if self is refusing:
            raise RuntimeError("no run is active")
    def write(self, measurements):
        with open(f"{folder}/steps-{rank}", "a") as file:
            file.write(f"{measurements.step} ")

model = mlp(6, 8, 5)
optimizer = sgd(model)
refusing, sink = Named(), Named()
try:
    attach(model, optimizer, f"{folder}/run", every=2, sinks=[refusing], tensorboard=False)
except RuntimeError as error:
    print("refused:", error)
with attach(model, optimizer, f"{folder}/run", every=2, sinks=[sink], tensorboard=False):
    train(model, optimizer, 4)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_main_process_alone_hands_on_and_an_error_there_is_raised_on_all(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda rank: run_script(PROCESS, tmp_path, rank), range(2)))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert ["refused: no run is active" in process.stdout for process in done] == [True, True]
    assert {path.name: path.read_text() for path in tmp_path.glob("steps-*")} == {"steps-0": "2 4 "}
