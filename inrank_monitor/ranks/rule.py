"""How a rank is drawn from a spectrum: α, b and the definition of the explained ratio, as one thing."""

from __future__ import annotations

from dataclasses import dataclass

from inrank_monitor.ranks.buffer_rank import default_buffer_rank
from inrank_monitor.ranks.metrics import Definition, check_options


@dataclass(frozen=True)
class RankRule:
    """The least r whose explained ratio reaches α (eq. 7).

    Attributes:
        threshold: α, in (0, 1].
        buffer_rank: b, at least 1; None: what fits each matrix, see `default_buffer_rank`.
        definition: of the explained ratio, `"paper"` or `"reference"`.

    Raises:
        ValueError: one of them is out of range.
    """

    threshold: float = 0.9
    buffer_rank: int | None = None
    definition: Definition = "paper"

    def __post_init__(self) -> None:
        check_options(self.threshold, self.buffer_rank, self.definition)

    def buffer_rank_of(self, rows: int, cols: int) -> int:
        """B of a matrix of this shape."""
        return default_buffer_rank(rows, cols) if self.buffer_rank is None else self.buffer_rank
