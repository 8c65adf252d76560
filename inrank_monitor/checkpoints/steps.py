"""Which checkpoints a scan reads, and at which optimizer step each was saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from inrank_monitor.checkpoints.opening import is_weights_name, weights_file
from inrank_monitor.runs import local_path

# Asked in this order: `step-1000-checkpoint-3` is step 1000. A k or an M after the number is a thousand or a million.
_STEP_NAMES = [
    re.compile(rf"(?:^|[^a-z])(?:{word})[-_=]?(\d+)(k|m)?(?![a-z0-9])", re.IGNORECASE)
    for word in ("(?:global_?)?steps?", "iter(?:ation)?s?", "checkpoint|ckpt")
]
_TRAINER_FOLDER = re.compile(r"checkpoint-\d+")
_FILES_NAMED_ALIKE = ("model", "pytorch_model", "adapter_model", "weights")


@dataclass(frozen=True)
class Saved:
    """A checkpoint and its step."""

    path: Path
    step: int


def find_checkpoints(paths: Sequence[str | Path], steps: Sequence[int] | None = None) -> tuple[list[Saved], str]:
    """Checkpoints in the order of their steps, and a sentence on where the steps come from.

    Args:
        paths: files and folders. A folder of checkpoints (a Trainer's output) stands for all of them. The first one is
            W0; if it alone has no step in its name it is at step 0.
        steps: one for each checkpoint, increasing; default: the numbers in the names, or 0, 1, 2, ... where no name has
            one.

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: the steps are not known, not increasing, or not as many as the checkpoints.
    """
    found = [path for given in paths for path in _expand(local_path(given, "checkpoints"))]
    if steps is not None:
        return _with_steps(found, list(steps)), "steps as given"
    named = [step_in(path) for path in found]
    if all(step is None for step in named):
        note = "no step in the checkpoints' names: they are numbered 0, 1, 2, … (steps= or --steps tells the real ones)"
        return [Saved(path, place) for place, path in enumerate(found)], note
    note = "steps from the checkpoints' names"
    if named[0] is None and None not in named[1:]:
        named[0], note = 0, f"steps from the checkpoints' names; {found[0].name}, which has none, is step 0"
    for path, step in zip(found, named, strict=True):
        if step is None:
            raise ValueError(
                f"the step of {path} is not in its name, as it is in others': give all by steps= (--steps)"
            )
    saved = sorted((Saved(path, step or 0) for path, step in zip(found, named, strict=True)), key=lambda one: one.step)
    for one, other in pairwise(saved):
        if one.step == other.step:
            raise ValueError(f"{one.path} and {other.path} are both at step {one.step}: leave one out, or give steps=")
    return saved, note


def step_in(path: Path) -> int | None:
    """The optimizer step in a checkpoint's name, or in its folder's where the file is named as in every folder.

    >>> [step_in(Path(name)) for name in ("out/checkpoint-500", "epoch=1-step=200.ckpt", "step_10k.pt", "last.ckpt")]
    [500, 200, 10000, None]
    """
    name = path.name.split(".safetensors")[0]
    stem = name if path.suffix not in (".pt", ".pth", ".bin", ".ckpt") else path.stem
    for pattern in _STEP_NAMES:
        if found := pattern.findall(stem):
            number, unit = found[-1]
            return int(number) * {"": 1, "k": 1000, "m": 1_000_000}[unit.lower()]
    if stem.isdecimal():
        return int(stem)
    return step_in(path.parent) if stem in _FILES_NAMED_ALIKE and path.parent.name else None


def _expand(path: Path) -> list[Path]:
    """A folder of checkpoints as these, anything else as it is."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_dir():
        return [path]
    inside = sorted(path.iterdir())
    folders = [each for each in inside if each.is_dir() and _TRAINER_FOLDER.fullmatch(each.name)]
    if not folders and weights_file(path) is None and not (path / "zero_to_fp32.py").exists():
        folders = [each for each in inside if step_in(each) is not None and (each.is_dir() or is_weights_name(each))]
    return sorted(folders, key=lambda each: step_in(each) or 0) or [path]


def _with_steps(paths: list[Path], steps: list[int]) -> list[Saved]:
    if len(steps) != len(paths):
        raise ValueError(f"steps must be one for each checkpoint: {len(steps)} given, {len(paths)} checkpoints")
    for before, step in zip([-1, *steps], steps, strict=False):
        if isinstance(step, bool) or not isinstance(step, int) or step <= before:
            raise ValueError(f"steps must be increasing integers of at least 0, got {step!r} after {before}")
    return [Saved(path, step) for path, step in zip(paths, steps, strict=True)]
