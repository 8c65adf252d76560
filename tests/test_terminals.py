"""Terminals of any encoding: nothing that is printed ends a command, and what cannot be shown becomes plain letters."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.training import record, start, train
from safetensors.torch import save_file

import inrank
import inrank_monitor
from inrank import cli as inrank_cli
from inrank_monitor import cli
from inrank_monitor.console import plain_where_needed, use_any_terminal

ENCODINGS = pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "utf-8"])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.BytesIO]:
    def make(encoding: str) -> io.BytesIO:
        shown = io.BytesIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(shown, encoding=encoding, write_through=True))
        return shown

    return make


def named(directory: Path) -> Path:
    """A run with a name, matrices and scalars that no small encoding has."""
    model = torch.nn.Sequential()
    model.add_module("schicht_é", torch.nn.Linear(60, 50))
    model.add_module("層", torch.nn.Linear(50, 50))
    tracker = inrank_monitor.attach(model, None, directory, every=10, tensorboard=False)
    for _ in range(20):  # the least that gets advice
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1  # one direction
        tracker.step()
    tracker.log({"損失": 1.0})
    tracker.event("mine", None, "σ₁ ≥ 1 → −1 · “ok” … 🙂")
    tracker.close()
    return directory


@ENCODINGS
def test_every_command_speaks_to_any_terminal(
    tmp_path: Path, encoding: str, terminal: Callable[[str], io.BytesIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(named(tmp_path / "läufe" / "ёж"))
    for number in range(2):
        save_file({"層.weight": torch.randn(8, 8)}, tmp_path / f"step_{number}.safetensors")
    shown = terminal(encoding)
    commands = [
        *(["report", run], ["report", run, "--all"], ["report", run, "--html", "é.html"]),
        *(["advise", run, "--csv", "損.csv", "--lora", "p.json"], ["list", "läufe"], ["export", run]),
        *(["scan", ".", "--run", "läufe/scan", "--buffer-rank", "2"], ["doctor"], ["report", "nichts-é層"]),
        ["plan", "--shapes", "40x50*2"],
    ]
    codes = [cli.main(command) for command in commands]
    assert codes == [0] * 8 + [2, codes[-1]]
    assert codes[-1] in (0, 2)
    assert inrank_cli.main(["params"]) == 0
    assert inrank_cli.main(["reproduce", "--list"]) == 0
    assert inrank_cli.main(["compare", "é層"]) == 2
    text = shown.getvalue().decode(encoding)
    assert "schicht_" in text
    if encoding == "ascii":
        assert "change W - W0" in text
        assert "50x60" in text


@ENCODINGS
@pytest.mark.parametrize("program", [cli, inrank_cli], ids=["inrank-monitor", "inrank"])
def test_help_reaches_any_terminal(encoding: str, program: object, terminal: Callable[[str], io.BytesIO]) -> None:
    for command in ([], ["scan"], ["plan"], ["demo"], ["train"], ["reproduce"]):
        shown = terminal(encoding)
        with pytest.raises(SystemExit):
            program.main([*command, "--help"])  # type: ignore[attr-defined]
        assert shown.getvalue().decode(encoding)


@ENCODINGS
def test_a_script_may_print_the_summary(tmp_path: Path, encoding: str, terminal: Callable[[str], io.BytesIO]) -> None:
    model, optimizer, tracker = start(tmp_path / "läufe")
    train(model, optimizer, 2)
    shown = terminal(encoding)
    print(tracker.summary())
    print(tracker.coverage)
    tracker.close()
    print(tracker.summary())
    text = shown.getvalue().decode(encoding)
    assert "0.weight" in text
    assert ("8×6" if encoding in ("utf-8", "latin-1", "cp1252") else "8x6") in text


def test_where_everything_can_be_shown_nothing_is_changed(terminal: Callable[[str], io.BytesIO]) -> None:
    terminal("utf-8")
    assert plain_where_needed("σ₁ ≥ 層 🙂") == "σ₁ ≥ 層 🙂"
    terminal("ascii")
    assert plain_where_needed("σ₁ ≥ é 層 🙂 ‖ΔW‖ ½ “x”") == 's1 >= e ? ? |dW| 1/2 "x"'


def test_a_stream_of_somebodys_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(io.StringIO):
        encoding = "of my own"  # type: ignore[assignment]

    monkeypatch.setattr(sys, "stdout", Own())
    use_any_terminal()
    assert plain_where_needed("σ") == "σ"
    monkeypatch.setattr(sys, "stdout", None)  # pythonw
    use_any_terminal()
    assert plain_where_needed("σ") == "σ"


def test_what_is_logged_is_ascii() -> None:
    """A logging handler on such a terminal would print a traceback in place of the message."""
    others = []
    for package in (inrank, inrank_monitor):
        for file in sorted(Path(package.__file__ or "").parent.rglob("*.py")):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match call:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))) if not ast.unparse(call).isascii():
                        others.append(f"{file}:{call.lineno}")
    assert not others


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_process_with_such_a_terminal_ends_well(tmp_path: Path, encoding: str) -> None:
    record(tmp_path / "run", 2)
    for program, *command in (("inrank_monitor.cli", "report", str(tmp_path / "run")), ("inrank", "params")):
        done = subprocess.run(
            [sys.executable, "-m", program, *command],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            check=False,
        )
        assert done.returncode == 0, done.stderr
