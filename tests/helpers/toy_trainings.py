"""Trainings of no substance, for tests of what runs trainings: each leaves a trace in a file beside its directory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrank.reproduction.experiment import ExperimentError


def log_of(runs: Path) -> list[str]:
    """What was begun and ended, in order."""
    file = runs / "log.txt"
    return file.read_text().splitlines() if file.exists() else []


def train(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    _say(directory, "begin")
    if settings.get("fail"):
        raise ValueError("the loss is not a number")
    if settings.get("refuse"):
        raise ExperimentError("there is no data")
    if settings.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 120
    while settings.get("hang") and time.monotonic() < deadline:
        signal.pause() if hasattr(signal, "pause") else time.sleep(1)
    _say(directory, "end")
    return {"value": float(settings.get("value", 0.0))}


def _say(directory: Path, what: str) -> None:
    with (directory.parent / "log.txt").open("a") as file:
        file.write(f"{what} {directory.name} {os.getpid()}\n")
