"""The step or the epoch in a checkpoint's name, and an order of names in which epoch 2 comes before epoch 10."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".th")
_FILES_NAMED_ALIKE = ("model", "pytorch_model", "adapter_model", "weights", "checkpoint", "ckpt", "state", "state_dict")
_STEP, _EPOCH = r"(?:global_?)?steps?", r"epochs?|eps?"
_ITERATION, _CHECKPOINT = r"it(?:e?rs?|erations?)?|updates?", r"checkpoint|ckpt"
_UNITS = {"": 1, "k": 1000, "m": 1_000_000}


def _before(words: str) -> re.Pattern[str]:
    """A number after one of these words: `step_1000`. A k or an M after it is a thousand or a million."""
    return re.compile(rf"(?:^|[^a-z])(?:{words})[-_=. ]?(\d+)(k|m)?(?![a-z0-9]|\.\d)", re.IGNORECASE)


def _after(words: str) -> re.Pattern[str]:
    """A number before one of these words: `1000_steps`."""
    return re.compile(rf"(?:^|[^a-z0-9.])(\d+)(k|m)?[-_ ]?(?:{words})(?![a-z0-9])", re.IGNORECASE)


# Asked in this order: `step-1000-checkpoint-3` is step 1000.
_STEPS = (_before(_STEP), _before(_ITERATION), _after(_STEP), _after(r"iter(?:ation)?s?|updates?"))
_EPOCHS = (_before(_EPOCH), _after(r"epochs?"), re.compile(r"(?:^|[-_. ])e=?(\d+)()(?![a-z0-9])", re.IGNORECASE))
_EPOCH_AND_STEP = re.compile(r"checkpoint_(\d+)_(\d+)")  # fairseq's
_NUMBER = re.compile(r"(.*?)(\d+)([^\d]*)", re.DOTALL)
_PIECES = re.compile(r"rank|shard|part|consolidated|fold|seed|stage|expert|worker", re.IGNORECASE)


class Mark(NamedTuple):
    """What a name says of when its checkpoint was saved.

    Attributes:
        step: an optimizer step (an iteration, a checkpoint's number).
        epoch: an epoch.
    """

    step: int | None = None
    epoch: int | None = None


def mark_in(path: Path) -> Mark:
    """The step and the epoch in a checkpoint's name, or in its folder's where the file is named as in every folder.

    >>> [tuple(mark_in(Path(name))) for name in ("out/checkpoint-500", "epoch=1-step=200.ckpt", "model_epoch_10.pt")]
    [(500, None), (200, 1), (None, 10)]
    >>> [tuple(mark_in(Path(name))) for name in ("step_10k.pt", "epoch_3/model.safetensors", "last.ckpt")]
    [(10000, None), (None, 3), (None, None)]
    """
    name = stem(path)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    if found := _EPOCH_AND_STEP.fullmatch(words):
        return Mark(int(found[2]), int(found[1]))
    step, epoch = _first(_STEPS, words), _first(_EPOCHS, words)
    if step is None and epoch is None:
        step = _first((_before(_CHECKPOINT),), words)
    if step is None and epoch is None and name.isdecimal():
        step = int(name)
    if step is None and epoch is None and name in _FILES_NAMED_ALIKE and path.parent.name:
        return mark_in(path.parent)
    return Mark(step, epoch)


def numbers_in_names(paths: Iterable[Path]) -> list[int] | None:
    """The one number by which names differ, where they are the same but for it: `net_1.pt`, `net_2.pt`, `net_10.pt`.

    None for other names, and for those of one checkpoint's pieces (`rank_0.pt`, `consolidated.01.pth`).
    """
    found = [_NUMBER.fullmatch(stem(path)) for path in paths]
    if len(found) < 2 or not all(found):
        return None
    alike = {(match[1], match[3]) for match in found if match}
    if len(alike) > 1 or any(map(_PIECES.search, next(iter(alike)))):
        return None
    return [int(match[2]) for match in found if match]


def stem(path: Path) -> str:
    """The name without what says that it is a file of weights: `a` of `a.pth.tar` and `a.safetensors.index.json`."""
    name = path.name.split(".safetensors")[0]
    while (suffix := Path(name).suffix) in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by, in which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _first(patterns: Iterable[re.Pattern[str]], words: str) -> int | None:
    for pattern in patterns:
        if found := pattern.findall(words):
            number, unit = found[-1]
            return int(number) * _UNITS[unit.lower()]
    return None
