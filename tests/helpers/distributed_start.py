"""Starts the processes of a distributed training and brings back what each of them kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def start(worker: str, count: int, directory: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """`count` processes of the script `worker` beside this file, their output in files of the directory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    path = str(Path(__file__).with_name(worker))
    processes = []
    for number in range(count):
        with (directory / f"output-{number}").open("w") as output:
            command = [sys.executable, path, str(number), str(count), str(directory), *map(str, arguments)]
            processes.append(
                subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment)
            )
    return processes


def finish(processes: Sequence[subprocess.Popen[str]], directory: Path, codes: Sequence[int], timeout: float) -> None:
    """Wait for them; they must end with these codes and in this time, in seconds."""
    try:
        ended = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    outputs = [(directory / f"output-{number}").read_text() for number in range(len(processes))]
    assert ended == list(codes), "\n".join(output[-3000:] for output in outputs)


def together(worker: str, count: int, directory: Path, *arguments: object, timeout: float = 240) -> Path:
    """Start them in a directory that is made for them, and wait until all have ended well."""
    directory.mkdir(parents=True)
    finish(start(worker, count, directory, *arguments), directory, [0] * count, timeout)
    return directory


def kept(directory: Path, name: str) -> list[Any]:
    """What each process kept of a scenario, by number."""
    files = sorted(directory.glob(f"{name}-[0-9].pt"))
    return [torch.load(file, weights_only=False) for file in files]
