"""run.json read back: either everything in it is as this version writes it, or it is refused with the place named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from inrank_monitor.runs.earlier import up_to_date
from inrank_monitor.runs.log import RUN_FILE, SCHEMA_VERSION
from inrank_monitor.runs.options import RunOptions

_NUMBER = (int, float)
_CONTENT: dict[str, Any] = {
    "id": str,
    "created": _NUMBER,
    "model": {"class": str, "parameters": int},
    "matrices": [
        {
            "name": str,
            "parameter": str,
            "part": (str, type(None)),
            "kind": str,
            "rows": int,
            "cols": int,
            "null_rank": int,
            "initial_norm": (*_NUMBER, type(None)),
        }
    ],
    "coverage": [{"parameter": str, "shape": [int], "watched": bool, "note": str}],
    "options": {"threshold": _NUMBER, "buffer_rank": (int, type(None)), "definition": str},
    "segments": [{"segment": int, "resume_step": (int, type(None))}],
}


def read_info(directory: Path) -> dict[str, Any]:
    """A run's run.json, checked.

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, or a newer version wrote it.
    """
    return parse(read_text(directory), directory / RUN_FILE)


def read_text(directory: Path) -> str:
    """The text of a run's run.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not text.
    """
    try:
        return (directory / RUN_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{directory} holds no run: there is no {RUN_FILE} in it") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{directory / RUN_FILE} is damaged: {error}") from None


def parse(text: str, path: Path) -> dict[str, Any]:
    """The content of a run.json as this version writes it; entries that it does not know are kept.

    Raises:
        ValueError: damaged, incomplete, or written by a newer version.
    """
    try:
        info = json.loads(text, parse_constant=lambda _: None)  # NaN, as earlier versions wrote it, is no number
        _check(info, {"schema_version": int}, "")
        if info["schema_version"] > SCHEMA_VERSION:
            version = info["schema_version"]
            raise ValueError(f"it was written by a newer version (schema {version}); update inrank-monitor")
        _check(info, _CONTENT, "")
        if "ended" not in info:
            raise ValueError("ended is missing")
        if info["ended"] is not None:
            _check(info["ended"], {"status": str}, "ended")
        _check(info.get("foreign_segments", []), [int], "foreign_segments")
        RunOptions.from_json(info["options"])
        names = [matrix["name"] for matrix in info["matrices"]]
        if not names or len(set(names)) != len(names):
            raise ValueError("matrices is empty" if not names else "matrices has a name twice")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return up_to_date(info)


def _check(value: Any, expected: Any, place: str) -> None:
    """Compare with a description: a dictionary's keys, a list's entries, or types."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{place or 'it'} should be an object")
        for key, inner in expected.items():
            name = f"{place}.{key}" if place else key
            if key not in value:
                raise ValueError(f"{name} is missing")
            _check(value[key], inner, name)
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise ValueError(f"{place} should be a list")
        for index, entry in enumerate(value):
            _check(entry, expected[0], f"{place}[{index}]")
    elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{place} is {value!r}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}")
