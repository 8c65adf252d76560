"""What the reports need of a run: its tables, from wherever they come."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd


class RunTables(Protocol):
    """The part of `inrank_monitor.runs.run.Run` that the reports read."""

    @property
    def name(self) -> str:
        """The run's name."""

    @property
    def status(self) -> str:
        """`live`, `finished` or `interrupted`."""

    @property
    def info(self) -> dict[str, Any]:
        """What run.json holds."""

    @property
    def problems(self) -> list[str]:
        """What could not be read."""

    @property
    def threshold(self) -> float:
        """α of the logged ranks."""

    @property
    def buffer_rank(self) -> int | None:
        """B of the logged ranks; None where it differs from matrix to matrix."""

    @property
    def leading(self) -> int | None:
        """How many singular values are logged of each spectrum; None: all."""

    @property
    def measured(self) -> int | None:
        """How many were measured, where the others are estimates; None: all."""

    @property
    def definition(self) -> Any:
        """Which explained ratio the logged ranks come from."""

    @property
    def too_few_points(self) -> str | None:
        """A sentence or two if it is too sparsely measured for a curve."""

    @property
    def matrices(self) -> pd.DataFrame:
        """The watched matrices."""

    @property
    def coverage(self) -> pd.DataFrame:
        """Every parameter, watched or not."""

    @property
    def measurements(self) -> pd.DataFrame:
        """One row a matrix and step."""

    @property
    def scalars(self) -> pd.DataFrame:
        """What was logged beside."""

    @property
    def events(self) -> pd.DataFrame:
        """What happened."""

    @property
    def loss_ranks(self) -> pd.DataFrame:
        """Ranks by loss, the newest result last."""

    @property
    def width_plans(self) -> pd.DataFrame:
        """Plans of feed-forward blocks' widths, the newest last."""

    def singular_values(self, name: str) -> pd.DataFrame:
        """Spectra of one matrix, a row a step."""
