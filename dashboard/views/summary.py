"""The table of matrices at their last step, by the page's rule."""

from __future__ import annotations

import pandas as pd

from inrank_monitor.report import digest
from inrank_monitor.runs import RunState


def matrix_table(state: RunState) -> pd.DataFrame:
    """As the reports have it; the state offers the tables that they read."""
    return digest.matrix_table(state)  # type: ignore[arg-type]
