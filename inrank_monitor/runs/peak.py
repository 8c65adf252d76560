"""The highest rank of a run, without what the first steps say."""

from __future__ import annotations

import numpy as np
import pandas as pd

FIRST_STEPS = 10


def peak_ranks(measurements: pd.DataFrame) -> pd.Series:
    """Each matrix's highest intrinsic rank after step 10; see `peaks`.

    Returns:
        Ranks (Int64) by matrix name, of the matrices that have a finite measurement.
    """
    return peaks(measurements)["peak_rank"]


def peaks(measurements: pd.DataFrame) -> pd.DataFrame:
    """Each matrix's highest intrinsic rank after step 10, and the first step at which it was there.

    Under Adam the first update is a matrix of signs, whose rank says nothing of the training, and nor do the next few.
    Where nothing later was measured, there is no peak (NA); nor where a rank was beyond what its cut spectrum shows.

    Args:
        measurements: `run.measurements`, or recomputed.

    Returns:
        DataFrame by matrix name, of the matrices that have a finite measurement: peak_rank, peak_step (Int64).
    """
    finite = measurements["intrinsic_rank"].notna()
    if "stable_rank" in measurements:  # known of a cut spectrum too
        finite |= np.isfinite(measurements["stable_rank"].astype(float))
    rows = measurements.assign(matrix=measurements["matrix"].astype(str))[finite]
    late = rows[rows["step"] > FIRST_STEPS]
    unknown = late.loc[late["intrinsic_rank"].isna(), "matrix"]
    late = late[~late["matrix"].isin(set(unknown))]
    highest = late.sort_values("intrinsic_rank", ascending=False, kind="stable").drop_duplicates("matrix")
    table = highest.set_index("matrix")[["intrinsic_rank", "step"]].astype("Int64")
    table.columns = pd.Index(["peak_rank", "peak_step"])
    return table.reindex(pd.Index(rows["matrix"].unique(), name="matrix"))


def running_ranks(measurements: pd.DataFrame) -> np.ndarray:
    """The rank that each matrix, in model order, has reached: where a resumed run goes on.

    Where a rank was beyond what its cut spectrum shows, it stays so: the short side of any matrix is below the answer.

    Args:
        measurements: `run.measurements` up to that step.
    """
    finite = np.isfinite(measurements["spectral_norm"].astype(float))
    unknown = measurements["running_rank"].isna() & finite
    ranks = measurements["running_rank"].mask(unknown, np.iinfo(np.int32).max)
    reached = ranks.groupby(measurements["matrix"], observed=False).max()
    return reached.fillna(0).to_numpy(dtype=np.int64)
