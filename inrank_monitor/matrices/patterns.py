"""Patterns over matrix names, one or several."""

from __future__ import annotations

from collections.abc import Sequence

from inrank_monitor.naming import glob

__all__ = ["as_list", "glob"]


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
