"""b, the buffer rank of eq. 7: what fits a matrix, where none is given."""

from __future__ import annotations

from collections.abc import Iterable

LARGEST, LEAST = 100, 4
_WIDE, _SHARE = 768, 8  # the paper's b = 100 was made for matrices of 768 rows and more


def default_buffer_rank(rows: int, cols: int) -> int:
    """100 where the short side is at least 768, else an eighth of it, at least 4.

    >>> default_buffer_rank(768, 3072), default_buffer_rank(1024, 256), default_buffer_rank(10, 64)
    (100, 32, 4)
    """
    short = min(rows, cols)
    return LARGEST if short >= _WIDE else max(short // _SHARE, LEAST)


def buffer_rank_text(buffer_ranks: Iterable[int]) -> str:
    """`b = 32`, or `b = 4 to 100, which fits each matrix` where matrices have different ones."""
    found = sorted({int(b) for b in buffer_ranks})
    if len(found) == 1:
        return f"b = {found[0]}"
    return f"b = {found[0]} to {found[-1]}, which fits each matrix" if found else "b that fits each matrix"


def too_large_text(buffer_rank: int, shapes: Iterable[tuple[str, int, int]]) -> str | None:
    """What to say where a given b is not below the short side of a matrix; None where it is below all.

    Args:
        buffer_rank: b.
        shapes: (name, rows, cols) of the matrices.
    """
    matrices = list(shapes)
    short = [
        (min(rows, cols), name, f"{rows}×{cols}") for name, rows, cols in matrices if buffer_rank >= min(rows, cols)
    ]
    if not short:
        return None
    _, name, shape = min(short, key=lambda each: each[0])  # the first in model order of the smallest
    return (
        f"buffer_rank={buffer_rank} is not below the short side of {len(short)} of {len(matrices)} matrices "
        f"({name} is {shape}): every window of eq. 7 reaches the end of their spectra, and ranks say little; "
        "without buffer_rank each matrix gets what fits it"
    )
