"""Paths are resolved when they are given, and addresses are refused with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from helpers.training import mlp, start, train
from safetensors.torch import save_file

from inrank import cli as inrank_cli
from inrank_monitor import LightningCallback, TrackerCallback, attach, cli, list_runs, open_run, scan
from inrank_monitor.report import write_html
from inrank_monitor.runs import RunFolder, export_run, local_path

ADDRESSES = [
    "s3://bucket/run",
    "gs://bucket/run",
    "hf://spaces/x",
    "file:///tmp/run",
    "https://x.org/r",
    "dbfs:/runs/x",
]


def made_callback(path: Any) -> None:
    TrackerCallback(path)


def made_lightning_callback(path: Any) -> None:
    LightningCallback(path)


def attaches(path: Any) -> None:
    attach(mlp(6, 5), None, path, tensorboard=False).close("a test")


def scans(path: Any) -> None:
    save_file({"weight": torch.ones(4, 4)}, "step_0.safetensors")
    save_file({"weight": torch.eye(4)}, "step_1.safetensors")
    scan(["step_0.safetensors", "step_1.safetensors"], path, buffer_rank=2, tensorboard=False)


def scans_from(path: Any) -> None:
    scan([path, path], "run")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "use", [attaches, scans, scans_from, open_run, list_runs, RunFolder, made_callback, made_lightning_callback]
)
def test_an_address_is_refused_and_nothing_is_made(
    tmp_path: Path, address: str, use: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (address, Path(address)):  # pathlib leaves one slash of two
        with pytest.raises(ValueError, match=r"must be a local path, got the address .*: give (a|the) path"):
            use(given)
    assert not [name for name in os.listdir() if ":" in name]


@pytest.mark.parametrize("command", ["report", "advise", "export", "list", "dashboard"])
def test_a_command_says_so_in_a_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "s3://bucket/run"]) == 2
    assert "must be a local path" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["a:1/b", "x:y", "C:", "s3:bucket", "1.2:/x", "a b:/c"])
def test_a_name_with_a_colon_is_a_path(given: str) -> None:
    assert local_path(given) == Path.cwd() / given


@pytest.mark.parametrize("given", [r"C:\runs\x", "C:/runs/x", r"\\server\share\x"])
def test_a_path_of_windows_is_no_address(given: str) -> None:
    assert local_path(given).name


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ("", ValueError, "directory must be a path, got ''"),
        ("a\0b", ValueError, "directory must be a path"),
        (b"runs/x", TypeError, "directory must be a path"),
        (None, TypeError, "directory must be a path, got None"),
        (3, TypeError, "directory must be a path, got 3"),
        ("~nobody-of-that-name/x", ValueError, "~nobody-of-that-name/x"),
    ],
)
def test_what_is_no_path_is_named(given: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        attach(mlp(6, 5), None, given)


def test_any_kind_of_path_is_taken() -> None:
    assert local_path(PurePosixPath("/a/b")) == Path("/a/b")


@pytest.mark.parametrize("use", [attaches, scans])
def test_the_home_directory_is_meant_by_a_tilde(
    tmp_path: Path, use: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    use("~/runs/x")
    assert not Path("~").exists()
    assert open_run("~/runs/x").path == tmp_path / "home/runs/x"
    assert [run.path.name for run in list_runs("~/runs")] == ["x"]
    assert RunFolder("~/runs").names() == ["x"]
    list(export_run(open_run("~/runs/x"), Path("~/tables"), "csv"))
    write_html(open_run("~/runs/x"), "~/page.html")
    assert {"tables", "page.html"} <= {path.name for path in (tmp_path / "home").iterdir()}


def test_a_loop_may_change_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    model, optimizer, tracker = start(Path("runs/x"), tensorboard=True)
    run = open_run("runs/x")
    train(model, optimizer, 2)
    monkeypatch.chdir("elsewhere")
    train(model, optimizer, 3, first=2)
    tracker.log(loss=1.0)
    assert "0.weight" in tracker.summary()
    tracker.close()
    assert tracker.path == tmp_path / "runs/x"
    assert run.refresh()
    assert run.measurements["step"].max() == 5
    assert run.status == "finished"
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (cli, ["demo", "--out", "s3://bucket/x"]),
        (cli, ["plan", "gs://bucket/config.json"]),
        (cli, ["scan", "s3://bucket/a", "--run", "x"]),
        (inrank_cli, ["train", "--output", "s3://bucket/x"]),
        (inrank_cli, ["reproduce", "figure-3", "--out", "s3://bucket/x"]),
    ],
)
def test_what_a_command_is_to_write_is_no_address(
    program: Any, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(command) == 2
    assert "must be a local path" in capsys.readouterr().err


def test_a_callback_of_a_changed_working_directory_writes_where_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks = TrackerCallback("runs/x"), LightningCallback("runs/y")
    monkeypatch.chdir("/")
    assert [callback.directory for callback in callbacks] == [tmp_path / "runs/x", tmp_path / "runs/y"]
    assert callbacks[1].state_key == "LightningCallback{'directory': 'runs/y'}"
