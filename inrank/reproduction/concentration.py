"""How concentrated the update of every matrix is, beside noise: the paper's "low-rank bias" as numbers.

The share of singular values above a tenth of the strongest is what one sees in the paper's Figures 3 and 8 to 15: how
many lines rise visibly. Of a matrix without structure (independent Gaussian entries, same shape) most values do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float

from inrank.reproduction.experiment import Outcomes
from inrank.reproduction.verdicts import Sample
from inrank_monitor.matrices import glob
from inrank_monitor.ranks import null_singular_values
from inrank_monitor.runs import Run

FRACTION = 0.1  # of the strongest: what is below is a flat line in a figure
LOW_RANK = 0.5  # of noise's: an update is called low-rank here if its number is below half of noise's


def share_above(singular_values: Float[np.ndarray, " n"], fraction: float = FRACTION) -> float:
    """Share of the singular values that are above this fraction of the largest; 0 of a zero update."""
    values = np.asarray(singular_values, dtype=np.float64)
    if not len(values) or values.max() == 0:
        return 0.0
    return float((values > fraction * values.max()).mean())


def stable_rank(singular_values: Float[np.ndarray, " n"]) -> float:
    """‖A‖_F² / σ₁²; 0 of a zero update."""
    values = np.asarray(singular_values, dtype=np.float64)
    if not len(values) or values.max() == 0:
        return 0.0
    return float((values**2).sum() / values.max() ** 2)


@lru_cache(maxsize=64)  # asked again for every group of matrices
def concentration(run: Run) -> pd.DataFrame:
    """Every matrix at the last step of a finished run.

    Returns:
        Index: matrix. Columns: `share`, `stable_rank`, and the same over noise's: `share_over_null`,
        `stable_rank_over_null` (1: like noise; near 0: few directions carry everything).
        Cached: do not change it in place.
    """
    found = {}
    for name, shape in run.matrices[["rows", "cols"]].iterrows():
        spectra = run.singular_values(str(name))
        values = spectra.loc[spectra.index[-1]].to_numpy(dtype=np.float64)
        null = null_singular_values(int(shape["rows"]), int(shape["cols"]))
        share, stable = share_above(values), stable_rank(values)
        found[str(name)] = {
            "share": share,
            "stable_rank": stable,
            "share_over_null": share / share_above(null),
            "stable_rank_over_null": stable / stable_rank(null),
        }
    return pd.DataFrame.from_dict(found, orient="index")


def sample(
    name: str, outcomes: Outcomes, trainings: Sequence[str], number: str, matrices: str | Sequence[str] = "*"
) -> Sample:
    """A number of `concentration`, averaged over the matrices of each training: one value a seed.

    Args:
        name: for the sample.
        outcomes: of finished trainings.
        trainings: names, one a seed, in the order of the seeds.
        number: a column of `concentration`.
        matrices: globs over matrix names; brackets stand for themselves.

    Raises:
        ValueError: no matrix matches.
    """
    globs = [glob(pattern) for pattern in ([matrices] if isinstance(matrices, str) else matrices)]
    values = []
    for training in trainings:
        table = concentration(outcomes[training].tables)
        chosen = [any(one.fullmatch(str(matrix)) for one in globs) for matrix in table.index]
        if not any(chosen):
            raise ValueError(f"no matrix of {training} matches {matrices}: {list(table.index)}")
        values.append(float(table.loc[chosen, number].mean()))
    return Sample(name, values)


def by_group(
    outcomes: Outcomes, trainings: Sequence[str], groups: Mapping[str, str | Sequence[str]], number: str
) -> dict[str, Sample]:
    """`sample` for several groups of matrices, such as the gates of a GRU."""
    return {name: sample(name, outcomes, trainings, number, globs) for name, globs in groups.items()}
