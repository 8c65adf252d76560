"""Which checkpoints a scan reads, and at which step each was saved: decided, and told, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from inrank_monitor.checkpoints.opening import TRAINER_STATE, is_weights_name, numbers_of, same_weights, weights_file
from inrank_monitor.checkpoints.steps import mark_in, natural, numbers_in_names
from inrank_monitor.runs import local_path

_FINAL = "the final model"
_WAY_OUT = "give the files in order, and all their steps by steps= (--steps)"


@dataclass(frozen=True)
class Saved:
    """A checkpoint and its step.

    Attributes:
        path: file or folder.
        step: where it stands on the run's axis.
        origin: what says so.
        listed: found in a folder that was given, not given itself.
    """

    path: Path
    step: int
    origin: str = ""
    listed: bool = False


@dataclass
class Chosen:
    """What is read, and what is not.

    Attributes:
        saved: in the order of their steps; the first is W0.
        skipped: path and why it is left out.
        note: a sentence on where the steps come from.
    """

    saved: list[Saved] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    note: str = ""

    def __str__(self) -> str:
        """A line a checkpoint: path, step, what says so; then those that are left out, and why."""
        rows = [
            (str(one.path), str(one.step), one.origin + (", W0" if place == 0 else ""))
            for place, one in enumerate(self.saved)
        ]
        rows += [(str(path), "-", f"left out: {reason}") for path, reason in self.skipped]
        widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
        return "\n".join(f"{path:<{widths[0]}}  {step:>{widths[1]}}  {origin}" for path, step, origin in rows)


def find_checkpoints(paths: Sequence[str | Path], steps: Sequence[int] | None = None, key: str | None = None) -> Chosen:
    """Checkpoints in the order of their steps, those that are left out, and where the steps come from.

    Args:
        paths: files and folders. A folder of checkpoints (a Trainer's output) stands for all of them. The first one is
            W0; if it alone has no step in its name it is at step 0.
        steps: one for each checkpoint, increasing; default: the numbers in the names (epochs, where these are what the
            names tell), else what the checkpoints say themselves, else 0, 1, 2, ...
        key: of the state dict in `torch.save` files.

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: the steps are not known, not increasing, or not as many as the checkpoints; or two checkpoints with
            different weights are at the same one.
    """
    found = [one for given in paths for one in _expand(local_path(given, "checkpoints"), key)]
    if steps is not None:
        without = [one for one in found if one.origin != _FINAL]
        given = [one.path for one in (without if len(steps) == len(without) else found)]
        return Chosen(_with_steps(given, list(steps)), note="steps as given")
    chosen = _numbered(found, key) or _by_names(found, key)
    chosen.saved.sort(key=lambda one: one.step)
    _leave_out_copies(chosen, key)
    return chosen


def _expand(path: Path, key: str | None) -> list[Saved]:
    """A folder of checkpoints as these, anything else as it is; no steps yet."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_dir():
        return [Saved(path, -1)]
    inside = sorted(path.iterdir(), key=lambda each: natural(each.name))
    trainers = [each for each in inside if each.is_dir() and each.name.startswith("checkpoint-") and _told(each)]
    final = weights_file(path)
    if trainers:
        saved = [Saved(each, -1, listed=True) for each in trainers]
        return [*saved, Saved(path, -1, _FINAL, listed=True)] if final else saved
    if final is not None or (path / "zero_to_fp32.py").exists():
        alone = final is not None and _told(final) and not _told(path)
        return [Saved(final if alone and final else path, -1)]
    folders = [each for each in inside if each.is_dir() and (_told(each) or weights_file(each) is not None)]
    files = [each for each in inside if each.is_file() and is_weights_name(each)]
    several = [each for each in inside if each in folders or each in files]
    by_names = any(map(_told, several)) or numbers_in_names(several)
    if several and (by_names or all(_numbers(each, key) for each in several)):
        return [Saved(each, -1, listed=True) for each in several]
    return [Saved(path, -1)]


def _told(path: Path) -> bool:
    return any(number is not None for number in mark_in(path))


def _numbered(found: Sequence[Saved], key: str | None) -> Chosen | None:
    """Where no name has a word for its number: by the one number that differs, or one after another."""
    if any(_told(one.path) for one in found):
        return None
    first = 0
    numbers = numbers_in_names([one.path for one in found])
    if numbers is None and found and not found[0].listed:
        first, numbers = 1, numbers_in_names([one.path for one in found[1:]])
    if numbers is not None:
        saved = [replace(one, step=0, origin="the first one given") for one in found[:first]]
        saved += [
            replace(one, step=number, origin="the number in its name")
            for one, number in zip(found[first:], numbers, strict=True)
        ]
        return Chosen(saved, note="steps are the numbers in the checkpoints' names, whatever they count")
    if any(one.listed for one in found):
        return None
    return _in_order(found, key)


def _in_order(found: Sequence[Saved], key: str | None) -> Chosen:
    """As given: at the steps that the checkpoints themselves tell, if these increase, else at 0, 1, 2, ..."""
    inside = [_numbers(one.path, key) for one in found]
    for unit in ("step", "epoch"):
        told = [numbers[unit] for numbers in inside if unit in numbers]
        if len(told) == len(found) and all(one < other for one, other in pairwise(told)):
            saved = [
                replace(one, step=step, origin=f"{unit} in its contents") for one, step in zip(found, told, strict=True)
            ]
            return Chosen(saved, note=f"steps are the {unit}s that the checkpoints' contents tell")
    note = "no step in the checkpoints' names: they are numbered 0, 1, 2, … (steps= or --steps tells the real ones)"
    return Chosen([replace(one, step=place, origin="its place") for place, one in enumerate(found)], note=note)


def _by_names(found: Sequence[Saved], key: str | None) -> Chosen:
    """By the numbers in the names; what its name does not tell, a checkpoint's contents may."""
    marks = [mark_in(one.path) for one in found]
    unit = (
        "epoch" if all(mark.step is None for mark in marks) and any(mark != (None, None) for mark in marks) else "step"
    )
    names = any(mark != (None, None) for mark in marks)
    if not names and not all("step" in _numbers(one.path, key) for one in found):
        unit = "epoch"
    where = "names" if names else "contents"
    chosen = Chosen(note=f"{'steps are the epochs' if unit == 'epoch' else 'steps'} from the checkpoints' {where}")
    unclear = []
    for place, (one, mark) in enumerate(zip(found, marks, strict=True)):
        if (number := getattr(mark, unit)) is not None:
            chosen.saved.append(replace(one, step=number, origin=f"{unit} in its name"))
        elif place == 0 and not one.listed and mark.epoch is None:
            chosen.saved.append(replace(one, step=0, origin="the first one given"))
            chosen.note += f"; {one.path.name}, which has none, is step 0"
        else:
            unclear.append((one, mark.epoch))
    for one, epoch in unclear:
        _by_contents(one, epoch, unit, chosen, key)
    return chosen


def _by_contents(one: Saved, epoch: int | None, unit: str, chosen: Chosen, key: str | None) -> None:
    """Take up a checkpoint whose name does not tell what the others' do, or leave it out.

    Raises:
        ValueError: it was given itself and tells no step, or is numbered by epochs among others numbered by steps.
    """
    number = _like_the_names(_numbers(one.path, key).get(unit), unit, chosen, key)
    twin = _twin(one, chosen.saved, key) if one.listed else None
    if twin is not None:  # before its number: a best model that was put back is not of the last step
        chosen.skipped.append((one.path, f"it holds the weights of {twin.path.name}"))
    elif number is not None:
        origin = TRAINER_STATE if (one.path / TRAINER_STATE).is_file() else f"{unit} in its contents"
        chosen.saved.append(replace(one, step=number, origin=origin))
    elif epoch is not None:
        raise ValueError(
            f"{one.path} is numbered by epochs and others by steps, which are two axes: leave the ones or the others "
            f"out, or {_WAY_OUT}"
        )
    elif one.listed:
        chosen.skipped.append((one.path, f"no {unit} in its name nor in it: to have it in, {_WAY_OUT}"))
    else:
        raise ValueError(f"the {unit} of {one.path} is not in its name, as it is in others', nor in it: {_WAY_OUT}")


def _like_the_names(number: int | None, unit: str, chosen: Chosen, key: str | None) -> int | None:
    """A number from a checkpoint's contents, counted as the names do: epoch_10.pt may hold `epoch: 9`."""
    if number is None:
        return None
    for other in chosen.saved:
        if "name" in other.origin and (inside := _numbers(other.path, key).get(unit)) is not None:
            return max(number + other.step - inside, 0) if abs(other.step - inside) == 1 else number
    return number


def _numbers(path: Path, key: str | None) -> dict[str, int]:
    """What a checkpoint tells of itself; one that cannot be read is refused where it is opened to be measured."""
    try:
        return numbers_of(path, key)
    except (ValueError, FileNotFoundError):
        return {}


def _twin(one: Saved, others: Sequence[Saved], key: str | None) -> Saved | None:
    """The last of the others that holds the same weights."""
    try:
        return next((other for other in reversed(others) if same_weights(one.path, other.path, key)), None)
    except (ValueError, FileNotFoundError):  # as above
        return None


def _leave_out_copies(chosen: Chosen, key: str | None) -> None:
    """Of checkpoints at the same step keep one.

    Raises:
        ValueError: their weights differ, and both say by their names that they are of that step.
    """
    kept: list[Saved] = []
    for one in sorted(chosen.saved, key=lambda each: (each.step, "name" not in each.origin)):
        other = kept[-1] if kept and kept[-1].step == one.step else None
        if other is None:
            kept.append(one)
        elif _twin(one, [other], key):
            chosen.skipped.append((one.path, f"it holds the weights of {other.path.name}"))
        elif one.listed and "name" not in one.origin:
            chosen.skipped.append((one.path, f"it is of step {one.step}, as {other.path.name} is"))
        else:
            raise ValueError(f"{one.path} and {other.path} are both at step {one.step}: leave one out, or give steps=")
    chosen.saved = kept


def _with_steps(paths: list[Path], steps: list[int]) -> list[Saved]:
    if len(steps) != len(paths):
        names = ", ".join(path.name for path in paths[:12]) + (", …" if len(paths) > 12 else "")
        raise ValueError(
            f"steps must be one for each checkpoint: {len(steps)} given, {len(paths)} checkpoints ({names})"
        )
    for before, step in zip([-1, *steps], steps, strict=False):
        if isinstance(step, bool) or not isinstance(step, int) or step <= before:
            raise ValueError(f"steps must be increasing integers of at least 0, got {step!r} after {before}")
    return [Saved(path, step, "given") for path, step in zip(paths, steps, strict=True)]
