"""The Trainer's checkpoints: which one is whole, and how the one at T becomes that of the factorized model.

The Trainer writes a checkpoint file by file. `training.json` goes in last, so a directory without it is one whose
writing was cut short, and is not taken up. The two phases have folders of their own: the second phase's first
checkpoint is made beside them and moved in by one rename, so that a resumption finds either the one or the other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from inrank_monitor.files import named_after
from inrank_monitor.runs import write_json

MARK_FILE = "training.json"
_OF_OTHER_SHAPE = (
    "model*",
    "*.safetensors",
    "config.json",
    "optimizer.pt",
    "scheduler.pt",
    "inrank_controller*",
    MARK_FILE,
)


@dataclass(frozen=True)
class Progress:
    """What a training has taken so far: seconds of training, and its peak memory in bytes."""

    seconds: float = 0.0
    peak_memory: int = 0


def checkpoint_at(folder: Path, step: int) -> Path:
    """Where the Trainer puts the checkpoint of a step."""
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    whole = [path for path in found if (path / MARK_FILE).is_file()]
    return max(whole, key=step_of, default=None)


def drop_torn(folder: Path) -> None:
    """Delete the checkpoints in a folder whose writing was cut short."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARK_FILE).is_file():
            shutil.rmtree(path)


def write_progress(checkpoint: Path, progress: Progress) -> None:
    """Mark a checkpoint as whole."""
    write_json(checkpoint / MARK_FILE, asdict(progress))


def read_progress(checkpoint: Path | None) -> Progress:
    """What the training had taken at a checkpoint."""
    if checkpoint is None:
        return Progress()
    return Progress(**json.loads((checkpoint / MARK_FILE).read_text(encoding="utf-8")))


def write_factorized(
    source: Path, folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, progress: Progress
) -> None:
    """Write the checkpoint `source` into another folder, with another model and its optimizer, in one step.

    Scaler, random states and the Trainer's own state are taken over, so that training goes on.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with named_after(folder, temporary):
        shutil.copytree(source, temporary / source.name, ignore=shutil.ignore_patterns(*_OF_OTHER_SHAPE))
        checkpoint = temporary / source.name
        model.save_pretrained(checkpoint)  # type: ignore[operator]
        torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
        torch.save(scheduler.state_dict(), checkpoint / "scheduler.pt")
        write_progress(checkpoint, progress)
        shutil.rmtree(folder, ignore_errors=True)  # it holds no whole checkpoint
        os.rename(temporary, folder)
