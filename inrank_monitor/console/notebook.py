"""What objects show of themselves in a notebook: small tables, everything escaped, no script."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TypeVar

ROWS_AT_MOST = 20
_Self = TypeVar("_Self")


def html_rows(heads: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table of cells as text; rows after the first twenty are counted and left out.

    Args:
        heads: titles of the columns; the first column is text, aligned left.
        rows: one sequence of cells a row.
        caption: a line above.
    """
    kept = list(rows)
    left_out = len(kept) - ROWS_AT_MOST
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in kept[:ROWS_AT_MOST])
    if left_out > 0:
        body += f'<tr><td colspan="{len(heads)}" style="text-align:left">and {left_out} more</td></tr>'
    title = f'<caption style="text-align:left">{escape(caption)}</caption>' if caption else ""
    return f"<table>{title}<thead><tr>{_cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def _cells(tag: str, cells: Sequence[object]) -> str:
    sides = ["left"] + ["right"] * (len(cells) - 1)
    pairs = zip(sides, cells, strict=True)
    return "".join(f'<{tag} style="text-align:{side}">{escape(str(cell))}</{tag}>' for side, cell in pairs)


def never_raises(show: Callable[[_Self], str]) -> Callable[[_Self], str | None]:
    """A `_repr_html_` whose errors end nothing: the notebook then shows the plain repr."""

    @functools.wraps(show)
    def shown(self: _Self) -> str | None:
        try:
            return show(self)
        except Exception:  # whatever it is, a display must not stop a cell that has done its work
            return None

    return shown
