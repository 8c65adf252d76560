from __future__ import annotations

import json
import math
import os
import re
import select
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from training import mlp, record, sgd, start, train

from inrank_monitor import attach, open_run
from inrank_monitor.run_log import TENSORBOARD_DIR
from inrank_monitor.tensorboard import MAX_MATRICES, SCALARS, EventFile

EVERYTHING = {"scalars": 0, "histograms": 0, "tensors": 0}
START_SECONDS, LOAD_SECONDS = 90.0, 30.0


def read(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory), size_guidance=EVERYTHING)
    accumulator.Reload()
    return accumulator


def columns(spectra: list[Any], step: int = 1) -> dict[str, Any]:
    """Columns of a snapshot as the recorder hands them on; an empty spectrum is a non-finite update."""
    rows = len(spectra)
    numbers = {name: np.arange(rows) + 2.0 for name in SCALARS}
    ranks = [None if len(values) == 0 else row + 2 for row, values in enumerate(spectra)]
    return numbers | {
        "step": [step] * rows,
        "time": [1.0e9] * rows,
        "matrix": list(range(rows)),
        "intrinsic_rank": ranks,
        "running_rank": ranks,
        "singular_values": spectra,
    }


# --- the event file


def test_every_number_of_the_log_is_in_the_event_file(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 40, 50, 30, every=3, tensorboard=True)
    for step in range(10):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=step / 4, lr=0.5)
    tracker.close()
    run = open_run(tmp_path / "run")
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    names = ["0.weight", "2.weight"]
    own = {f"{tag}/{name}" for tag in (*SCALARS, "rank_over_null_rank") for name in names}
    assert set(found.Tags()["scalars"]) == own | {"loss", "lr", "tracker_seconds", "tracker_overhead"}
    for name in names:
        rows = run.measurements[run.measurements["matrix"] == name]
        for tag in SCALARS:
            events = found.Scalars(f"{tag}/{name}")
            assert [event.step for event in events] == rows["step"].tolist() == [3, 6, 9, 10]
            assert [event.value for event in events] == rows[tag].astype(float).astype(np.float32).tolist(), tag
        shares = (rows["intrinsic_rank"] / rows["null_rank"]).astype(float).astype(np.float32).tolist()
        assert [event.value for event in found.Scalars(f"rank_over_null_rank/{name}")] == shares
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [
        (step + 1, step / 4) for step in range(10)
    ]


def test_a_histogram_holds_log10_of_the_spectrum_in_at_most_64_bins(tmp_path: Path) -> None:
    record(tmp_path / "run", 4, 100, 120, 90, tensorboard=True)
    run = open_run(tmp_path / "run")
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    for name in ("0.weight", "2.weight"):
        histograms = found.Histograms(f"log10_singular_values/{name}")
        assert [event.step for event in histograms] == [1, 2, 3, 4]
        for event in histograms:
            values = run.singular_values(name).loc[event.step].to_numpy()
            logs = np.log10(values[values > 1e-8 * values[0]])
            histogram = event.histogram_value
            assert 1 <= len(histogram.bucket) == len(histogram.bucket_limit) <= 64
            assert sum(histogram.bucket) == histogram.num == len(logs)
            assert histogram.min == pytest.approx(logs.min(), abs=1e-6)
            assert histogram.max == pytest.approx(logs.max(), abs=1e-6)
            assert histogram.sum == pytest.approx(logs.sum(), rel=1e-6)
            assert histogram.bucket_limit == sorted(histogram.bucket_limit)
            assert histogram.bucket_limit[-1] == pytest.approx(logs.max(), abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [[0.0, 0.0], [3.0], [2.0, 2.0, 2.0], [1.0, 1e-30], [5.0, 0.0]],
    ids=["zero", "one", "equal", "tiny", "rank1"],
)
def test_degenerate_spectra_are_written(tmp_path: Path, values: list[float]) -> None:
    file = EventFile(tmp_path, ["a"], [1], None)
    file.add_measurements(columns([np.array(values, dtype=np.float32)]))
    file.close()
    found = read(tmp_path)
    assert found.Scalars("running_rank/a")[0].value == 2
    histograms = [] if max(values) == 0 else found.Histograms("log10_singular_values/a")
    assert sum(sum(event.histogram_value.bucket) for event in histograms) == sum(
        value > 1e-8 * max(values) for value in values
    )


def test_a_non_finite_update_is_left_out(tmp_path: Path) -> None:
    file = EventFile(tmp_path, ["a", "b"], [1, 1], None)
    file.add_measurements(columns([[], np.ones(3, dtype=np.float32)]))
    file.add_measurements(columns([[], []], step=2))
    file.add_scalars([(2, 1.0e9, "loss", math.nan)])
    file.close()
    found = read(tmp_path)
    assert all(tag.endswith("/b") or tag == "loss" for tag in found.Tags()["scalars"])
    assert math.isnan(found.Scalars("loss")[0].value)


def test_thousands_of_matrices_do_not_become_thousands_of_charts(tmp_path: Path) -> None:
    count = MAX_MATRICES + 44
    file = EventFile(tmp_path, [f"m{place}" for place in range(count)], [1] * count, None)
    file.add_measurements(columns([np.ones(2, dtype=np.float32)] * count))
    file.close()
    tags = read(tmp_path).Tags()["scalars"]
    assert sum(tag.startswith("running_rank/") for tag in tags) == MAX_MATRICES


def test_the_layout_has_one_chart_for_every_rank_and_one_for_every_explained_ratio(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    EventFile(tmp_path, ["a"], [1], None).close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    patterns = [chart.multiline.tag[0] for chart in category.chart]
    assert len(patterns) == len({chart.title for chart in category.chart}) == 3
    for tag in ("running_rank", "explained_ratio", "rank_over_null_rank"):
        assert [bool(re.match(pattern, f"{tag}/h.0.attn.c_attn.weight[q]")) for pattern in patterns].count(True) == 1


def resumed_run(directory: Path) -> None:
    model, optimizer, tracker = start(directory, 40, 50, 30, tensorboard=True)
    for step in range(8):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=1.0)
    tracker.close()
    model = mlp(40, 50, 30)
    optimizer = sgd(model)
    tracker = attach(model, optimizer, directory, every=1, resume=5)
    for step in range(5, 7):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=2.0)
    tracker.close()


def test_steps_after_the_resume_point_are_purged(tmp_path: Path) -> None:
    resumed_run(tmp_path / "run")
    assert len(list((tmp_path / "run" / TENSORBOARD_DIR).iterdir())) == 2
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0), (7, 2.0)]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == expected
    for tag in ("running_rank/0.weight", "stable_rank/2.weight"):
        assert [event.step for event in found.Scalars(tag)] == [1, 2, 3, 4, 5, 6, 7]
    steps = [event.step for event in found.Histograms("log10_singular_values/0.weight")]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


# --- a real server


class Server:
    """A TensorBoard on this machine, asked over HTTP."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process, self._address = process, address

    def get(self, route: str, **query: str) -> Any:
        """The JSON answer to one request."""
        assert self._process.poll() is None, "the TensorBoard server died"
        address = f"{self._address}data/{route}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.loads(answer.read())

    def wait_for(self, route: str, ready: Any, **query: str) -> Any:
        """The answer once it is `ready`: the server loads its runs in the background."""
        deadline = time.monotonic() + LOAD_SECONDS
        while True:
            answer = self.get(route, **query)
            if ready(answer):
                return answer
            assert time.monotonic() < deadline, f"{route} after {LOAD_SECONDS} s: {answer}"
            time.sleep(0.2)


def address_of(process: subprocess.Popen[str]) -> str:
    """What the server prints once it listens."""
    assert process.stderr is not None
    said = ""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        readable, _, _ = select.select([process.stderr], [], [], 1.0)
        line = os.read(process.stderr.fileno(), 65536).decode() if readable else ""
        said += line
        if found := re.search(r"at (http://127\.0\.0\.1:\d+/)", said):
            return found.group(1)
        assert process.poll() is None, f"TensorBoard ended: {said}"
    raise AssertionError(f"TensorBoard did not start within {START_SECONDS} s: {said}")


class TwoKinds(nn.Module):
    """Names with brackets and dots, as they are in real models."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.ModuleList([nn.Linear(16, 24), nn.Linear(24, 16)])

    def forward(self, inputs: Any) -> Any:
        mixed, _ = self.attn(inputs, inputs, inputs)
        return self.mlp[1](self.mlp[0](mixed).relu())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    root = tmp_path_factory.mktemp("runs")
    resumed_run(root / "resumed")
    torch.manual_seed(0)
    model = TwoKinds()
    optimizer = torch.optim.AdamW(model.parameters())
    with attach(model, optimizer, root / "first", every=2) as tracker:
        for _ in range(12):
            loss = (model(torch.randn(4, 6, 16)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.log(loss=loss)
    return root


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    options = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", "0", "--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", *options, "--reload_interval", "1"]
    # The test's own environment has no say in how the server reaches it.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Server(process, address_of(process))
        finally:
            process.kill()


FIRST, RESUMED = f"first/{TENSORBOARD_DIR}", f"resumed/{TENSORBOARD_DIR}"


def matrices(runs: Path) -> list[str]:
    return list(open_run(runs / "first").matrices.index)


def test_the_server_lists_runs_scalars_and_histograms(server: Server, runs: Path) -> None:
    server.wait_for("runs", lambda answer: {FIRST, RESUMED} <= set(answer))
    names = matrices(runs)
    assert {"attn.in_proj_weight[q]", "attn.out_proj.weight", "mlp.0.weight"} <= set(names)
    expected = {f"{tag}/{name}" for tag in (*SCALARS, "rank_over_null_rank") for name in names} | {"loss"}
    server.wait_for("plugin/scalars/tags", lambda answer: expected <= set(answer.get(FIRST, ())))
    histograms = {f"log10_singular_values/{name}" for name in names}
    server.wait_for("plugin/histograms/tags", lambda answer: histograms == set(answer.get(FIRST, ())))


def test_the_server_gives_the_numbers_of_the_log(server: Server, runs: Path) -> None:
    name = "attn.in_proj_weight[q]"
    server.wait_for("plugin/scalars/tags", lambda answer: f"running_rank/{name}" in answer.get(FIRST, ()))
    rows = open_run(runs / "first").measurements
    rows = rows[rows["matrix"] == name]
    points = server.get("plugin/scalars/scalars", run=FIRST, tag=f"stable_rank/{name}")
    assert [step for _, step, _ in points] == rows["step"].tolist() == [2, 4, 6, 8, 10, 12]
    assert [value for _, _, value in points] == pytest.approx(rows["stable_rank"].tolist(), rel=1e-6)
    histograms = server.get("plugin/histograms/histograms", run=FIRST, tag=f"log10_singular_values/{name}")
    assert [step for _, step, _ in histograms] == [2, 4, 6, 8, 10, 12]
    for _, _, buckets in histograms:
        assert len(buckets) <= 64
        assert sum(count for _, _, count in buckets) <= 16


def test_one_chart_of_the_layout_delivers_every_matrix(server: Server, runs: Path) -> None:
    layout = server.wait_for("plugin/custom_scalars/layout", lambda answer: answer.get("category"))
    names = matrices(runs)
    server.wait_for("plugin/scalars/tags", lambda answer: f"running_rank/{names[-1]}" in answer.get(FIRST, ()))
    charts = {chart["title"]: chart["multiline"]["tag"] for part in layout["category"] for chart in part["chart"]}
    assert len(charts) == 3
    delivered = {}
    for title, (pattern,) in charts.items():
        answer = server.get("plugin/custom_scalars/scalars", run=FIRST, tag=pattern)
        assert answer["regex_valid"] is True
        delivered[title] = answer["tag_to_events"]
    ranks = delivered["Rank of every matrix"]
    assert set(ranks) == {f"running_rank/{name}" for name in names}
    assert set(delivered["Explained ratio of every matrix"]) == {f"explained_ratio/{name}" for name in names}
    rows = open_run(runs / "first").measurements
    for name in names:
        expected = rows.loc[rows["matrix"] == name, ["step", "running_rank"]].to_numpy(dtype=float).tolist()
        assert [[step, value] for _, step, value in ranks[f"running_rank/{name}"]] == expected


def test_the_server_shows_a_resumed_run_without_its_lost_steps(server: Server) -> None:
    server.wait_for("plugin/scalars/tags", lambda answer: "loss" in answer.get(RESUMED, ()))
    steps = server.wait_for("plugin/scalars/scalars", lambda answer: answer[-1][2] == 2.0, run=RESUMED, tag="loss")
    assert [(step, value) for _, step, value in steps] == [(step, 1.0) for step in range(1, 6)] + [(6, 2.0), (7, 2.0)]
