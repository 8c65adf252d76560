"""Patterns over matrix names."""

from __future__ import annotations

import re
from collections.abc import Sequence


def glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` are wild; brackets are themselves, since they are part of names."""
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern))


def as_list(argument: str, patterns: str | Sequence[str] | None) -> list[str] | None:
    """One pattern or several, as a list.

    Raises:
        TypeError: it is neither.
    """
    if patterns is None or isinstance(patterns, str):
        return None if patterns is None else [patterns]
    if not isinstance(patterns, list | tuple | set) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"{argument} must be a pattern or a list of patterns, got {patterns!r}")
    return list(patterns)
