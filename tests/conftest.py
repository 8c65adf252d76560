"""What every test stands on: shapes checked at each call, a fixed seed, no network."""

from __future__ import annotations

import os

# NumPy, which serves the oracles, gets one thread: its BLAS and torch's would each wait on all cores, ten times slower.
# It reads this as it is imported, so pytest runs with `-p no:jaxtyping`: that plugin would import NumPy before us.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes: one thread each, also in what they start
    os.environ["OMP_NUM_THREADS"] = "1"
if "TEST_THREADS" in os.environ:  # of tests/kernels.py, which runs the numeric tests with one thread and with two
    os.environ["OMP_NUM_THREADS"] = os.environ["TEST_THREADS"]

# What the tests start in processes of their own imports the same helpers.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.path.dirname(__file__), os.environ.get("PYTHONPATH"))))

import socket
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import pytest
from jaxtyping import config, install_import_hook

# Before anything imports the package: each call in the numeric files has its shapes and types checked from here on.
# By beartype, since jaxtyping's hook cannot instrument functions with typeguard 3 or later; the numeric files only,
# since the others hold no shapes, and some of their annotations (plain Protocols) cannot be checked at run time.
NUMERIC = ("ranks.metrics", "ranks.null_model", "spectra.spectrum", "spectra.leading")
ACTIVE = ("growth.rule", "growth.dense_gradient", *(f"theory.{name}" for name in ("linear_networks", "gradient_flow")))
ACTIVE += ("theory.zero_initialization",)
install_import_hook(
    [f"inrank_monitor.{name}" for name in NUMERIC] + [f"inrank.{name}" for name in ACTIVE], "beartype.beartype"
)

import torch  # noqa: E402


def pytest_report_header() -> str:
    """Whose arithmetic this is: another processor's rounds differently."""
    library = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    return f"arithmetic: {torch.backends.cpu.get_cpu_capability()}, {library}, threads: {torch.get_num_threads()}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as where there is no terminal, whatever a library that a test imported has set."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _own_main() -> Iterator[None]:
    """Streamlit's AppTest leaves the app as `__main__`, which processes started later would run first."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0]) if isinstance(address, tuple) else str(address)
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise AssertionError(f"a test reached for {host}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small operations: on a busy machine, threads that wait for each other make them ten times slower.

    tests/kernels.py asks for two all the same.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shape checks, as users run it: for the errors that our own checks of arguments raise."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def own_forkserver() -> Iterator[None]:
    """A process has one fork server, with what the first test that wanted one had it import: start anew."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; a test that wants it is skipped where one of the two is missing."""
    from helpers.chromium import chromium

    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    opened = chromium()
    try:
        yielded = opened.__enter__()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    yield yielded
    opened.__exit__(None, None, None)
