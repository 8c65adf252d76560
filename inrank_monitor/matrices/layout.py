"""How several projections lie in one weight: named sizes of rows, one after another, and that once or once a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inrank_monitor.matrices.patterns import glob

Parts = Sequence[str] | Sequence[tuple[str, int]] | Mapping[str, int] | None


@dataclass(frozen=True)
class Layout:
    """The parts of a fused weight.

    Attributes:
        parts: (name, rows) of each, in the order in which they lie.
        runs: how often they follow one another: 1 where each is in one piece, the number of heads where every head has
            its own q, k and v side by side.
        why: how that is known, for the coverage; empty for what torch's own layers define.
    """

    parts: tuple[tuple[str, int], ...]
    runs: int = 1
    why: str = ""

    @classmethod
    def equal(cls, names: Sequence[str], rows: int, runs: int = 1, why: str = "") -> Layout:
        """Parts of one size each."""
        return cls(tuple((name, rows // len(names) // runs) for name in names), runs, why)

    @property
    def period(self) -> int:
        """Rows of all parts together, in one run."""
        return sum(size for _, size in self.parts)

    def blocks(self) -> Iterator[tuple[str, int, int]]:
        """(name, first row, rows) of each part, in the first run."""
        start = 0
        for name, size in self.parts:
            yield name, start, size
            start += size


def given_layout(argument: Mapping[str, Parts], names: Sequence[str], rows: int) -> tuple[str, Layout | None] | None:
    """What `parts=` says of a weight: the pattern that matches it, and the layout (None: it stays whole).

    Args:
        argument: glob -> names, or names with sizes.
        names: what the weight may be called: its own name, its layer's.
        rows: of the weight.

    Returns:
        None if no pattern matches.

    Raises:
        ValueError: the parts do not fit the weight.
        TypeError: they are no parts.
    """
    for pattern, parts in argument.items():
        if any(glob(pattern).fullmatch(name) for name in names):
            return pattern, _layout(pattern, parts, names[0], rows)
    return None


def _layout(pattern: str, parts: Parts, name: str, rows: int) -> Layout | None:
    if parts is None:
        return None
    sizes = _sizes(pattern, parts)
    why = f"parts={{{pattern!r}: …}}"
    total = sum(size for _, size in sizes)
    if all(size == 0 for _, size in sizes):
        if rows % len(sizes):
            raise ValueError(f"parts: {name} has {rows} rows, which are not {len(sizes)} equal parts: give their sizes")
        return Layout.equal([part for part, _ in sizes], rows, why=why)
    if rows % total:
        raise ValueError(f"parts: {name} has {rows} rows, and the parts of {pattern!r} have {total} together")
    runs = rows // total
    return Layout(sizes, runs, why if runs == 1 else f"{why}, {runs} times one after another")


def _sizes(pattern: str, parts: Parts) -> tuple[tuple[str, int], ...]:
    """(name, size) of each part; all sizes are 0 where only names are given."""
    wrong = f"parts[{pattern!r}] must be names of parts, or (name, rows) pairs, got {parts!r}"
    if isinstance(parts, str) or not isinstance(parts, Mapping | Sequence):
        raise TypeError(wrong)
    items: list[Any] = list(parts.items()) if isinstance(parts, Mapping) else list(parts)
    if all(isinstance(item, str) for item in items):
        items = [(item, 0) for item in items]
    elif not all(isinstance(item, tuple | list) and [type(each) for each in item] == [str, int] for item in items):
        raise TypeError(wrong)
    elif any(size < 1 for _, size in items):
        raise ValueError(f"parts[{pattern!r}]: each part must have at least 1 row, got {parts!r}")
    names = [str(part) for part, _ in items]
    if not names or len(set(names)) < len(names) or any(not part or set(part) & set("[]") for part in names):
        raise ValueError(f"parts[{pattern!r}] must have distinct names without brackets, got {parts!r}")
    return tuple((str(part), int(size)) for part, size in items)
