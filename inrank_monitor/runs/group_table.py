"""Groups of runs side by side: in what they differ, and what they came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from inrank_monitor.runs.comparability import common_matrices
from inrank_monitor.runs.configuration import RunGroup, difference_table
from inrank_monitor.runs.losses import LOSS_KINDS, last_value
from inrank_monitor.runs.shared_run import RunState

_ENDS = {"intrinsic_rank": "mean rank", "rank_over_null_rank": "mean rank over null rank"}


def comparison_table(groups: Sequence[RunGroup], runs: Mapping[str, RunState], scalar: str | None) -> pd.DataFrame:
    """As text, a row a name, a column a group: how many runs, the last values, mean ± spread, in what they differ.

    Args:
        groups: of the runs.
        runs: run name -> its state.
        scalar: a logged value that is shown too, beside the losses.
    """
    differing = difference_table(groups)
    table = differing.iloc[:1].copy()
    for wanted in dict.fromkeys((*LOSS_KINDS, *([scalar] if scalar else ()))):
        values = {name: last_value(run.scalars, wanted) for name, run in runs.items()}
        if np.isfinite(list(values.values())).any():
            table.loc[f"last {wanted}"] = _cells(groups, values)
    common = common_matrices(runs)
    for column, words in _ENDS.items():
        values = {name: _last_mean(run, column, common) for name, run in runs.items()}
        table.loc[f"last {words}"] = _cells(groups, values)
    return pd.concat([table, differing.iloc[1:]])


def _last_mean(run: RunState, column: str, matrices: Sequence[str]) -> float:
    """Over the matrices at the last snapshot; NaN where one of the finite ones is not known."""
    measured = run.measurements
    last = measured[measured["step"] == measured["step"].max()]
    last = last[last["matrix"].isin(list(matrices))] if matrices else last
    finite = last[np.isfinite(last["stable_rank"].to_numpy(dtype=float, na_value=np.nan))]
    values = finite[column].to_numpy(dtype=float, na_value=np.nan)
    return float(values.mean()) if len(values) else float(np.nan)


def _cells(groups: Sequence[RunGroup], values: Mapping[str, float]) -> list[str]:
    return [mean_text([values[name] for name in group.runs]) for group in groups]


def mean_text(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation of a group; how many are not known where some are not."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return "–"
    text = f"{np.mean(finite):.4g}"
    if len(finite) > 1:
        text += f" ± {np.std(finite, ddof=1):.2g}"
    return text if len(finite) == len(values) else f"{text} ({len(finite)} of {len(values)} runs)"
