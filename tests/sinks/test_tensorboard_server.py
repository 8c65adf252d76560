"""A real TensorBoard on this machine, asked over HTTP for what a run has written."""

from __future__ import annotations

import json
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

import pytest
from helpers.training import record_resumed
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.runs.log import TENSORBOARD_DIR
from inrank_monitor.sinks.measurements import TAGS

EVERYTHING = {"scalars": 0, "histograms": 0, "tensors": 0}
START_SECONDS, LOAD_SECONDS = 90.0, 30.0


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
    record_resumed(root / "resumed")
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
    expected = {f"{tag}/{name}" for tag in (*TAGS, "rank_over_null_rank") for name in names} | {"loss"}
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
