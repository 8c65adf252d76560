"""The Makefile's set-up: what it installs for whom, how it mends what was interrupted, what it says when it cannot.

Nothing is installed here: the environment's Python is a stub that notes what it was asked for.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
NOTES = "notes.txt"


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def environment(checkout: Path) -> Path:
    """A `.venv` whose Python writes down what pip is asked to install; its packages' folder."""
    program(checkout / ".venv/bin/python", f'case "$*" in *install*) echo "$*" >> {NOTES};; esac')
    program(checkout / ".venv/bin/inrank-monitor", f'echo "ran $*" >> {NOTES}')
    packages = checkout / ".venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    return packages


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    return subprocess.run(["make", *arguments], cwd=checkout, env=variables, capture_output=True, text=True)


def notes(checkout: Path) -> list[str]:
    """What was noted since this was last asked, each installation by what it installs."""
    file = checkout / NOTES
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line if line.startswith("ran ") else line.split()[-1] for line in lines]


def test_the_demo_needs_the_light_set_up_and_the_tests_add_the_rest(checkout: Path, environment: Path) -> None:
    assert make(checkout, "demo").returncode == 0
    assert notes(checkout) == [".[dashboard,gpt2]", "ran demo --overwrite"]
    assert make(checkout, "dashboard").returncode == 0
    assert notes(checkout) == ["ran dashboard runs"]
    assert make(checkout, "install").returncode == 0
    assert notes(checkout) == [".[dev]"]
    for target in ("install", "demo", "dashboard"):
        assert make(checkout, target).returncode == 0
    assert notes(checkout) == ["ran demo --overwrite", "ran dashboard runs"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_taken_up(checkout: Path, environment: Path, name: str) -> None:
    assert make(checkout, "install").returncode == 0
    for old in ("pyproject.toml", "constraints.txt", ".venv/.light", ".venv/.installed"):
        os.utime(checkout / old, (1000, 1000))
    os.utime(checkout / name, (2000, 2000))
    notes(checkout)
    assert make(checkout, "demo").returncode == 0
    assert notes(checkout) == [".[dashboard,gpt2]", "ran demo --overwrite"]
    assert make(checkout, "install").returncode == 0
    assert make(checkout, "install").returncode == 0
    assert notes(checkout) == [".[dev]"]


def test_packages_that_were_left_half_installed_are_taken_away(checkout: Path, environment: Path) -> None:
    (environment / "whole-1.0.dist-info").mkdir()
    (environment / "whole-1.0.dist-info/INSTALLER").write_text("pip\n")
    (environment / "half-1.0.dist-info").mkdir()
    (environment / "half-1.0.dist-info/METADATA").write_text("")
    (environment / "~orch").mkdir()
    assert make(checkout, "demo").returncode == 0
    assert [path.name for path in environment.iterdir()] == ["whole-1.0.dist-info"]


def test_an_installation_that_fails_is_tried_again(checkout: Path, environment: Path) -> None:
    python = checkout / ".venv/bin/python"
    good = python.read_text()
    program(python, 'case "$*" in *install*) exit 1;; esac')
    assert make(checkout, "demo").returncode != 0
    assert notes(checkout) == []
    python.write_text(good)
    assert make(checkout, "demo").returncode == 0
    assert notes(checkout) == [".[dashboard,gpt2]", "ran demo --overwrite"]


def test_an_environment_without_pip_is_made_anew(checkout: Path, environment: Path) -> None:
    program(checkout / ".venv/bin/python", "exit 1")  # as after Ctrl-C in the middle of `python -m venv`
    program(checkout / "python", f'case "$*" in *--clear*) echo "made $4" >> {NOTES};; esac')
    make(checkout, "demo", "PYTHON=./python")
    assert notes(checkout) == [".venv"]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.version_info = (3, 9, 2, 'final', 0)", "Python 3.11 or newer is needed, and ./python is 3.9"),
        ("sys.modules['ensurepip'] = None", "./python has no module venv: install it"),
    ],
    ids=["too old", "without venv"],
)
def test_a_python_that_will_not_do_is_named(checkout: Path, before: str, said: str) -> None:
    code = f"import sys; {before}; exec(sys.argv[1])"
    program(checkout / "python", f'exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$2"')
    done = make(checkout, "demo", "PYTHON=./python")
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout / ".venv").exists()
