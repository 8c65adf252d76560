"""The highest rank of a run, without what the first steps say."""

from __future__ import annotations

import pandas as pd

FIRST_STEPS = 10
_SHARE = 50  # and at most one step in so many, so that a short run keeps its own


def peak_ranks(measurements: pd.DataFrame) -> pd.Series:
    """Each matrix's highest intrinsic rank, the first steps left out: at most 10, and at most 2 % of the run.

    Under Adam the first update is a matrix of signs, whose rank says nothing of the training. Where nothing else was
    measured, all steps count.

    Args:
        measurements: `run.measurements`, or recomputed.

    Returns:
        Ranks (Int64) by matrix name, of the matrices that have a finite measurement.
    """
    finite = measurements[measurements["intrinsic_rank"].notna()]
    first = min(FIRST_STEPS, int(finite["step"].max()) // _SHARE) if len(finite) else 0
    late = finite[finite["step"] > first]
    names = [rows["matrix"].astype(str) for rows in (late, finite)]
    peaks, whole = (
        rows.groupby(each)["intrinsic_rank"].max().astype("Int64")
        for rows, each in zip((late, finite), names, strict=True)
    )
    return peaks.reindex(whole.index).fillna(whole)
