"""Starts the Streamlit app on a directory of runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

RUNS_VARIABLE = "INRANK_RUNS"


def app_directory() -> Path:
    """Where the app is: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: in neither place.
    """
    here = Path(__file__).resolve().parents[1]
    for directory in (here / "_dashboard", here.parent / "dashboard"):
        if (directory / "streamlit_app.py").is_file():
            return directory
    raise FileNotFoundError("the dashboard is not part of this installation")


def launch_dashboard(runs: Path, port: int, *, browser: bool = True) -> int:
    """Run `streamlit run` on the app until it is stopped; its exit code.

    Raises:
        NotADirectoryError: `runs` is a file.
        ModuleNotFoundError: Streamlit is not installed.
    """
    if runs.exists() and not runs.is_dir():
        raise NotADirectoryError(f"{runs} is not a directory")
    if importlib.util.find_spec("streamlit") is None:
        raise ModuleNotFoundError("streamlit", name="streamlit")
    directory = app_directory()
    command = [sys.executable, "-m", "streamlit", "run", str(directory / "streamlit_app.py")]
    options = [f"--server.port={port}", "--server.address=127.0.0.1", "--browser.gatherUsageStats=false"]
    if not browser:
        options.append("--server.headless=true")
    environment = os.environ | {RUNS_VARIABLE: str(runs.resolve())}
    if os.name == "posix":  # becomes the server, so that a signal meets it and not a parent of it
        sys.stdout.flush()
        os.execve(sys.executable, [*command, *options], environment)
    try:
        return subprocess.run([*command, *options], env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0
