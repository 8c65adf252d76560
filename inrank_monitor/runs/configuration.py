"""What a run was trained with, as far as its directory tells, and which runs differ in nothing but the seed."""

from __future__ import annotations

import itertools
import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from inrank_monitor.runs.options import RunOptions

# file beside the log -> which of its entries hold the configuration; None: all of it
_FILES: tuple[tuple[str, str | None], ...] = (
    ("config.json", None),
    ("options.json", None),
    ("training.json", "settings"),
    ("demo.json", "options"),
)
_MOST_BYTES = 4_000_000
_MEASURING = frozenset(RunOptions.__dataclass_fields__)  # how it was watched, which does not change how it was trained
_SEED = re.compile(r"(^|[._/-])(seeds?|seed_everything|random_state)$|[a-z]Seed$")
_SEED_IN_NAME = re.compile(r"(?<![a-z])(seed|s)[-_=]?\d+(?![a-z\d])", re.IGNORECASE)
_PLACES = r"(out|output|log|logging|save|checkpoint|ckpt|run|cache|work|tensorboard)_?(dir|directory|path|folder|file)"
_NAME = re.compile(
    r"(^|[./])((run|experiment|exp|display)_?(name|id)|name|id|uuid|date|time|timestamp|started|created(_at)?|"
    rf"host(name)?|user|notes?|tags?|project|entity|directory|output|{_PLACES})$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"dir|path|folder|output|file", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$")
_LABEL = 44  # letters of a group's label made of its values


@dataclass(frozen=True)
class Configuration:
    """What a run was trained with.

    Attributes:
        values: dotted name -> value as JSON has it; seeds, names, paths and dates are among them.
        tells: whether it says anything beyond the model.
    """

    values: Mapping[str, Any]
    tells: bool


def configuration_of(directory: Path, info: Mapping[str, Any]) -> Configuration:
    """From run.json, which has the optimizer and what `attach(config=)` was given, and from the files beside it.

    Those are what `inrank train`, the demo and the experiments write, and a config.json of the user's.

    Args:
        directory: of the run.
        info: its run.json.
    """
    values: dict[str, Any] = {"model": info["model"]["class"], "parameters": info["model"]["parameters"]}
    model = len(values)
    training = _mapping(info.get("training"))
    values |= dict(_flat(_mapping(training.get("config"))))
    optimizers = training.get("optimizers")
    for place, optimizer in enumerate(map(_mapping, optimizers if isinstance(optimizers, list) else [])):
        name = "optimizer" if place == 0 else f"optimizer {place + 1}"
        values |= {name: optimizer.get("class"), **dict(_flat(_mapping(optimizer.get("values")), f"{name}."))}
    for file, part in _FILES:
        values |= dict(_flat(_read(directory / file, part)))
    told = [name for name in values if not name.startswith("optimizer")]
    if len(told) > model:  # it tells an adapter's rank too, which may have been chosen by a run of the same seed
        values["parameters"] = _without_adapters(info)
    return Configuration(values, len(values) > model)


def _without_adapters(info: Mapping[str, Any]) -> int:
    """Parameters of the model, those of its adapters left out: the parts of a fused weight share one side's factor."""
    parameters = info["model"]["parameters"]
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for entry in info["matrices"]:
        parts.setdefault(entry["parameter"], []).append(entry)
    for entries in parts.values():
        rows, cols = ([entry[side] for entry in entries] for side in ("rows", "cols"))
        sides = sum(rows) + cols[0] if len(set(cols)) == 1 else rows[0] + sum(cols)
        parameters -= (entries[0].get("adapter_rank") or 0) * sides
    return int(parameters)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(file: Path, part: str | None) -> Mapping[str, Any]:
    """The object in a JSON file, or in one of its entries; nothing where there is none, or what is there is no file."""
    try:
        state = file.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_BYTES:
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = _mapping(content if part is None else _mapping(content).get(part))
    return {name: value for name, value in found.items() if part != "options" or name not in _MEASURING}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: told from the other groups' by it.
        runs: names, in the given order.
        values: in what the groups differ; a name that a run does not have is None.
    """

    label: str
    runs: tuple[str, ...]
    values: Mapping[str, Any]


def group_runs(configurations: Mapping[str, Configuration]) -> list[RunGroup]:
    """Sort runs into groups that differ in nothing but seeds, names, paths and dates, in the order of their first run.

    A run of whose training nothing is known is alone, unless another one differs from it in the number of the seed in
    its name alone.

    Args:
        configurations: run name -> its own.
    """
    told = {name: _telling(name, one) for name, one in configurations.items()}
    members: dict[str, list[str]] = {}
    for name, values in told.items():
        known = {key: value for key, value in values.items() if value is not None}
        unknown = None if configurations[name].tells else _SEED_IN_NAME.sub("", name)
        members.setdefault(json.dumps([known, unknown], sort_keys=True, default=str), []).append(name)
    groups = list(members.values())
    first = [told[runs[0]] for runs in groups]
    names = dict.fromkeys(key for one in first for key in one)
    differing = [key for key in names if len({json.dumps(one.get(key), default=str) for one in first}) > 1]
    values_of = [{key: one.get(key) for key in differing} for one in first]
    labels = _labels(groups, values_of)
    return [RunGroup(label, tuple(runs), one) for label, runs, one in zip(labels, groups, values_of, strict=True)]


def _telling(run: str, given: Configuration) -> dict[str, Any]:
    """Without seeds, names, paths and dates."""
    return {
        name: _seedless(value)
        for name, value in given.values.items()
        if not (_SEED.search(name) or _NAME.search(name) or _is_own(name, value, run))
    }


def _seedless(value: Any) -> Any:
    """Names of other runs, of which a training begins or takes its settings, without the number of their seed."""
    if isinstance(value, list):
        return [_seedless(one) for one in value]
    return _SEED_IN_NAME.sub("seed", value) if isinstance(value, str) and "seed" in value.lower() else value


def _is_own(name: str, value: Any, run: str) -> bool:
    """Whether a value is a date, or a place that is named after the run."""
    if not isinstance(value, str):
        return False
    return bool(_DATE.match(value) or (_PLACE.search(name) and run in re.split(r"[/\\]", value)))


def _labels(groups: Sequence[Sequence[str]], values: Sequence[Mapping[str, Any]]) -> list[str]:
    """By their values where those are short, else by what the names of their runs share, else by a letter."""
    by_name = [runs[0] if len(runs) == 1 else _shared(runs) for runs in groups]
    by_value = [", ".join(f"{key} {value_text(value)}" for key, value in one.items()) for one in values]
    if all(len(runs) == 1 for runs in groups):
        return by_name
    for labels in (by_value, by_name):
        if len(set(labels)) == len(groups) and all(0 < len(label) <= _LABEL and label != "*" for label in labels):
            return labels
    return [f"group {chr(65 + place % 26)}{place // 26 or ''}" for place in range(len(groups))]


def _shared(names: Sequence[str]) -> str:
    """What names begin and end with, a star between."""
    start = _common_start(names)
    return f"{start}*{_common_start([name[len(start) :][::-1] for name in names])[::-1]}"


def _common_start(names: Sequence[str]) -> str:
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return "".join(column[0] for column in letters)


def value_text(value: Any) -> str:
    """A value of a configuration in few letters."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def difference_table(groups: Sequence[RunGroup]) -> pd.DataFrame:
    """In what groups differ, as text: a row a name, a column a group; the first row says how many runs each has."""
    rows = {"runs": {group.label: str(len(group.runs)) for group in groups}}
    for key in dict.fromkeys(key for group in groups for key in group.values):
        rows[key] = {group.label: value_text(group.values.get(key)) for group in groups}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[group.label for group in groups])
