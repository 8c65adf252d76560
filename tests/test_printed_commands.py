"""What help, demo and pages tell people to type works as it is printed."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest

import inrank.cli
import inrank_monitor.cli
from inrank_monitor.console import examples_text, typed

ROOT = Path(__file__).parents[1]
PROGRAMS = {"inrank-monitor": inrank_monitor.cli._build_parser, "inrank": inrank.cli._build_parser}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's programs, one only, in a checkout that is the working directory; nothing on the PATH."""
    folder = tmp_path / "a checkout/.venv/bin"
    folder.mkdir(parents=True)
    (folder / "inrank-monitor").write_text("#!/bin/sh\n")
    (folder / "inrank-monitor").chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path / "a checkout")
    return folder


def test_below_the_working_directory_a_program_has_its_relative_path(scripts: Path) -> None:
    assert typed("inrank-monitor", "dashboard", Path("my runs")) == ".venv/bin/inrank-monitor dashboard 'my runs'"
    assert "  .venv/bin/inrank-monitor demo   a text's words" in examples_text("inrank-monitor demo   a text's words")


def test_elsewhere_it_has_its_whole_path_quoted(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shlex.split(typed("inrank-monitor", "list")) == [str(scripts / "inrank-monitor"), "list"]


def test_on_the_path_its_name_is_enough(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(scripts))
    assert typed("inrank-monitor", "list") == "inrank-monitor list"


def test_another_environment_s_program_on_the_path_is_not_ours(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scripts, tmp_path / "theirs")
    monkeypatch.setenv("PATH", str(tmp_path / "theirs"))
    assert typed("inrank-monitor", "list") == ".venv/bin/inrank-monitor list"


def test_a_program_that_is_nowhere_keeps_its_name(scripts: Path) -> None:
    assert typed("tensorboard", "--logdir", "runs") == "tensorboard --logdir runs"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def bare(line: str) -> list[str]:
    """A printed command line as words, its program by name, without what is said behind it."""
    line = re.split(r"\s{2,}|\s#\s", line.strip())[0]
    program, *arguments = shlex.split(line)
    if Path(program).name == "torchrun":
        program, *arguments = arguments[arguments.index("-m") + 1 :]
    return [Path(program).name, *arguments]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_example_in_the_help_is_a_command(program: str) -> None:
    found = 0
    for parser in parsers(PROGRAMS[program]()):
        _, _, examples = (parser.epilog or "").partition("examples:\n")
        for line in examples.splitlines():
            name, *arguments = bare(line)
            assert name == program
            PROGRAMS[program]().parse_args(arguments)
            found += 1
    assert found >= 8


def console_lines() -> list[tuple[str, str]]:
    """Every command of ours in the pages, with its page."""
    blocks = [
        (page.relative_to(ROOT).as_posix(), block)
        for page in PAGES
        for block in re.findall(r"```(?:console|bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    lines = [(page, line.removeprefix("$ ")) for page, block in blocks for line in block.splitlines()]
    return [
        (page, line)
        for page, line in lines
        if re.match(r"(\.venv/bin/)?(inrank-monitor|inrank|make|torchrun .*-m inrank) ", line)
    ]


@pytest.mark.parametrize(("page", "line"), console_lines(), ids=lambda value: value)
def test_every_command_in_the_pages_is_one(page: str, line: str) -> None:
    program, *arguments = bare(line)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets)
    else:
        PROGRAMS[program]().parse_args([word for word in arguments if word not in ("--help", "--version")])


def test_make_help_lists_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"^  make ([a-z-]+) +\S", listed, re.MULTILINE)) == sorted(phony.split())


@pytest.mark.slow
def test_what_the_demo_says_at_its_end_works_in_a_shell_that_knows_nothing(tmp_path: Path) -> None:
    """A newcomer's shell: the environment's programs are not on its PATH."""
    (tmp_path / "text.txt").write_text(topics["specialnames"][:12000], encoding="utf-8")
    shell = {"cwd": tmp_path, "env": os.environ | {"PATH": os.defpath}, "text": True}
    options = "--width 32 --layers 1 --context 32 --batch-size 2 --vocabulary 300 --steps 4 --every 2"
    command = [SCRIPTS / "inrank-monitor", "demo", "--text", "text.txt", *options.split()]
    printed = subprocess.run(command, check=True, capture_output=True, **shell).stdout  # type: ignore[call-overload]
    said = dict(re.findall(r"^(Report|Dashboard|TensorBoard) +(\S.*)$", printed, re.MULTILINE))
    assert f"watch it live with: {said['Dashboard']}\n" in printed
    assert (tmp_path / said["Report"]).is_file()
    inspected = subprocess.run(f"{said['TensorBoard']} --inspect", shell=True, capture_output=True, **shell)  # type: ignore[call-overload]
    assert inspected.returncode == 0, inspected.stderr
    assert "loss" in inspected.stdout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = f"exec {said['Dashboard']} --no-browser --port {port}"
    server = subprocess.Popen(line, shell=True, stdout=subprocess.DEVNULL, **shell)  # type: ignore[call-overload]
    try:
        answered, end = False, time.monotonic() + 120
        while not answered and server.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            try:
                answered = urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).status == 200
            except OSError:
                continue
        assert answered
    finally:
        server.terminate()
        server.wait(20)
