"""The folder of runs that a test's page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from inrank_monitor.console import RUNS_VARIABLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"
