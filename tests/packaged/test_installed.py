"""The built wheel in an environment that holds it and the extra `dashboard`, and that cannot see the checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inrank_monitor import __version__

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # packages are downloaded
    pytest.mark.skipif("INRANK_DIST" not in os.environ, reason="`make dist` builds what these look at"),
]
RUN = """
import sys, torch
from inrank_monitor import attach
model = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.Linear(32, 16))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with attach(model, optimizer, sys.argv[1], every=2, buffer_rank=4, tensorboard=False) as tracker:
    for _ in range(8):
        loss = model(torch.randn(4, 24)).square().mean()
        loss.backward()
        optimizer.step()
        tracker.log(loss=loss)
"""
IMPORT_ALL = """
import importlib, json, pkgutil
import inrank, inrank_monitor
ours, missing = ("inrank", "inrank_monitor"), {}
for package in (inrank, inrank_monitor):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "__main__" in module.name or "._dashboard" in module.name:
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name
print(json.dumps([inrank_monitor.__file__, missing]))
"""


class Installed:
    """The environment, and a directory to run its programs in."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.home = folder / "environment/bin", folder / "elsewhere"
        venv.create(folder / "environment", with_pip=False)
        self.home.mkdir()
        (wheel,) = Path(os.environ["INRANK_DIST"]).resolve().glob("*.whl")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        wanted = ["--no-compile", "-c", str(ROOT / "constraints.txt"), f"{wheel}[dashboard]"]
        subprocess.run([*pip, "install", "--quiet", *wanted], cwd=self.home, env=self.environment, check=True)

    @property
    def environment(self) -> dict[str, str]:
        """This process's, without what would lead back to the checkout."""
        ours = ("PYTHONPATH", "VIRTUAL_ENV", "INRANK_RUNS")
        return {name: value for name, value in os.environ.items() if name not in ours}

    def command(self, program: str, *arguments: object) -> list[str]:
        return [str(self.bin / program), *map(str, arguments)]

    def run(self, program: str, *arguments: object) -> str:
        """What a program that must succeed prints."""
        done = subprocess.run(
            self.command(program, *arguments), cwd=self.home, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def dashboard(self, runs: Path) -> Iterator[str]:
        """`inrank-monitor dashboard` on a folder; its address, once it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        printed = self.home / "dashboard.txt"
        with printed.open("w") as output:
            command = self.command("inrank-monitor", "dashboard", runs, "--no-browser", "--port", port)
            server = subprocess.Popen(
                command, cwd=self.home, env=self.environment, start_new_session=True, stdout=output, stderr=output
            )
        try:
            end, address = time.monotonic() + 120, f"http://127.0.0.1:{port}"
            while fetch(f"{address}/_stcore/health")[0] != 200:
                assert server.poll() is None, printed.read_text()
                assert time.monotonic() < end, printed.read_text()
                time.sleep(0.2)
            yield address
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


def fetch(address: str) -> tuple[int, str]:
    """Status and text of a page; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except OSError:
        return 0, ""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def run(installed: Installed) -> Path:
    installed.run("python", "-c", RUN, installed.home / "runs/first")
    return installed.home / "runs/first"


def test_doctor_finds_all_well(installed: Installed) -> None:
    printed = installed.run("inrank-monitor", "doctor")
    assert "all is well" in printed
    assert "not installed (extra: gpt2)" in printed, "the environment holds more than the wheel asks for"


def test_every_module_is_there(installed: Installed) -> None:
    place, missing = json.loads(installed.run("python", "-c", IMPORT_ALL))
    assert Path(place).is_relative_to(installed.bin.parent)
    lost = {module: name for module, name in missing.items() if name.split(".")[0] in ("inrank", "inrank_monitor")}
    assert lost == {}


def test_both_commands_answer(installed: Installed, run: Path) -> None:
    assert "0.weight" in installed.run("inrank-monitor", "report", run)
    assert __version__ in installed.run("inrank", "--version")
    assert str(installed.bin / "inrank-monitor") in installed.run("inrank-monitor", "--help"), "it is not on the PATH"


def test_a_missing_extra_is_named(installed: Installed) -> None:
    command = installed.command("inrank-monitor", "demo")
    done = subprocess.run(command, cwd=installed.home, env=installed.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'inrank-monitor[gpt2]'" in done.stderr


def test_the_dashboard_is_served(installed: Installed, run: Path) -> None:
    with installed.dashboard(run.parent) as address:
        status, page = fetch(address)
        assert status == 200
        assert "<title>" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize(("folder", "title"), [("runs", "Overview"), ("none", "InRank Monitor")])
def test_the_dashboard_draws_its_page(installed: Installed, run: Path, folder: str, title: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with installed.dashboard(installed.home / folder) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("heading", name=title, exact=True).first.wait_for(timeout=60_000)
        page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')", timeout=60_000)
        assert page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count() == 0
        assert "Traceback" not in page.inner_text("body")
        if folder == "runs":
            page.wait_for_selector(".js-plotly-plot", timeout=60_000)
        browser.close()
