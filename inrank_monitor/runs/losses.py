"""Which of the logged values is the loss: people name it as they like, and log it on several texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from inrank_monitor.runs.comparability import Caveat, listed

LossKind = Literal["validation loss", "training loss"]
LOSS_KINDS: tuple[LossKind, ...] = ("validation loss", "training loss")
# The earlier, the more it is meant by "the validation loss": a test set is looked at last.
_VALIDATION = ("validation", "valid", "val", "eval", "evaluation", "dev", "held", "heldout", "holdout", "test")
_TRAINING = ("loss", "train", "training", "batch", "step", "epoch", "avg", "mean", "total")
_CURVE = 2  # points that make a curve
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def loss_kind(name: str) -> LossKind | None:
    """What kind of loss a logged value is by its name; None: none, or a part of one.

    >>> [loss_kind(name) for name in ("loss", "eval/loss", "valLoss", "train_loss_step", "aux_loss", "lr")]
    ['training loss', 'validation loss', 'validation loss', 'training loss', None, None]
    """
    words = _words(name)
    if "loss" not in words:
        return None
    if set(words) & set(_VALIDATION):
        return "validation loss"
    return "training loss" if set(words) <= set(_TRAINING) else None


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def loss_name(scalars: pd.DataFrame, kind: LossKind) -> str | None:
    """The name under which a run logged its loss of a kind; None: it has none.

    Of several the one with a curve, then the one on the validation set, then the plainest name, then the first.
    """
    points = points_of(scalars)
    names = [name for name in points if loss_kind(name) == kind]
    return min(names, key=lambda name: (points[name] < _CURVE, _place(name), len(_words(name))), default=None)


def _place(name: str) -> int:
    return min((_VALIDATION.index(word) for word in _words(name) if word in _VALIDATION), default=0)


def points_of(scalars: pd.DataFrame) -> dict[str, int]:
    """At how many steps each value was logged, in the order of the first time."""
    counts = scalars.groupby("name", sort=False, observed=True)["step"].nunique()
    return {str(name): int(count) for name, count in counts.items()}


def first_choice(runs: Mapping[str, pd.DataFrame]) -> LossKind | None:
    """The loss to compare runs by: of validation where all have a curve of it, else of training; None: no loss at all.

    Args:
        runs: run name -> its scalars.
    """
    curves = {kind: sum(_has(scalars, kind, _CURVE) for scalars in runs.values()) for kind in LOSS_KINDS}
    if runs and curves["validation loss"] == len(runs):
        return "validation loss"
    if curves["training loss"]:
        return "training loss"
    return next((kind for kind in LOSS_KINDS if any(_has(scalars, kind, 1) for scalars in runs.values())), None)


def _has(scalars: pd.DataFrame, kind: LossKind, points: int) -> bool:
    name = loss_name(scalars, kind)
    return name is not None and points_of(scalars)[name] >= points


def named_scalar(scalars: pd.DataFrame, wanted: str) -> tuple[str | None, pd.DataFrame]:
    """The name and the rows (step, value) of a value, or of the loss of a kind, in a run; sorted by step.

    Of a step that is there twice the later row counts. No name, and no rows: the run has not logged it.
    """
    name = loss_name(scalars, wanted) if wanted in LOSS_KINDS else wanted
    rows = scalars[scalars["name"] == name].sort_values("step", kind="stable").drop_duplicates("step", keep="last")
    return (name if len(rows) else None), rows


def scalar_choices(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """What can be compared: the kinds of loss, then every value by its own name, unless a kind of loss says the same.

    Args:
        runs: run name -> its scalars.
    """
    kinds: list[str] = [kind for kind in LOSS_KINDS if any(loss_name(scalars, kind) for scalars in runs.values())]
    names = dict.fromkeys(name for scalars in runs.values() for name in points_of(scalars))
    meant = {loss_name(scalars, kind) for scalars in runs.values() for kind in LOSS_KINDS}
    others = [name for name in names if name not in meant and name not in kinds]
    first = first_choice(runs)
    return sorted(kinds, key=lambda kind: kind != first) + others


def last_value(scalars: pd.DataFrame, wanted: str) -> float:
    """The last one logged of a value, or of the loss of a kind; NaN: none was."""
    _, rows = named_scalar(scalars, wanted)
    return float(rows["value"].iloc[-1]) if len(rows) else float(np.nan)


def scalar_rows(scalars: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """The rows alone; see `named_scalar`."""
    return named_scalar(scalars, wanted)[1]


def lacking_scalar(runs: Mapping[str, pd.DataFrame], wanted: str) -> list[Caveat]:
    """Which runs have not logged a value, or a loss of a kind, and which did so under other names.

    Args:
        runs: run name -> its scalars.
        wanted: the name of a value, or a kind of loss.
    """
    names = {run: named_scalar(scalars, wanted)[0] for run, scalars in runs.items()}
    found = []
    if without := [run for run, name in names.items() if name is None]:
        found.append(Caveat("a value that a run has not logged", f"No {wanted} was logged by {listed(without)}."))
    kinds = dict.fromkeys(name for name in names.values() if name is not None)
    if len(kinds) > 1:
        each = "; ".join(f"{listed([run for run in names if names[run] == name])}: {name}" for name in kinds)
        text = f"The {wanted} has other names ({each}): it may be of other data."
        found.append(Caveat("other names of the loss", text))
    return found
