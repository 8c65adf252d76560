"""What a spectrum says beside noise of the same shape, in one of six words. The limits are fixed, nothing is chosen.

    not finite          a weight holds NaN or infinity
    has not moved       the update is zero
    too thin to tell    the short side is below 16: noise of such a shape may look like anything
    structured          a singular value stands above the edge of noise's bulk (`signal_rank` ≥ 1); where not all values
                        are known, σ₁² is a larger share of ‖ΔW‖² than in 99 % of noise
    flatter than noise  σ₁² is a smaller share of ‖ΔW‖² than in 99 % of noise: the strong directions are more alike
                        than chance makes them, as orthogonalised updates are
    like noise          none of these

Share and edge are those of Gaussian matrices by the law of Tracy and Widom. They need neither α nor b, and σ₁ and ‖ΔW‖
are measured for cut spectra too, so a verdict hardly depends on how a run was measured. Of noise, at most 1 % is
called structured and at most 1 % flatter, at every shape of 16 rows and more (`benchmarks/noise_verdicts.py` prints
the rates). A product of factors (an adapter's, a low-rank layer's) has another noise: there the rank over the null rank
decides, structured up to 0.6, flatter than noise from 1.6 on; of fewer than four columns nothing is told.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np

from inrank_monitor.ranks.metrics import frobenius_norm
from inrank_monitor.ranks.metrics import stable_rank as stable_rank_of
from inrank_monitor.ranks.signal import LEAST_SIDE, largest_square, signal_rank

Verdict = Literal["structured", "like noise", "flatter than noise", "too thin to tell", "has not moved", "not finite"]
VERDICTS: tuple[Verdict, ...] = (
    "structured",
    "like noise",
    "flatter than noise",
    "too thin to tell",
    "has not moved",
    "not finite",
)
_LEAST_QUANTILE, _MOST_QUANTILE = -4.15, 3.2724  # of Tracy and Widom's law for real matrices: 0.005 and 0.999
_LEAST_COLUMNS = 4  # of factors in whose rank there is something to tell
_FACTORS_STRUCTURED, _FACTORS_FLATTER = 0.6, 1.6


@lru_cache(maxsize=1024)
def noise_stable_ranks(rows: int, cols: int) -> tuple[float, float]:
    """Between which stable ranks more than 99 % of the Gaussian matrices of a shape lie."""
    short, long = np.asarray(min(rows, cols)), np.asarray(max(rows, cols))
    least, most = (float(rows * cols / largest_square(short, long, q)) for q in (_MOST_QUANTILE, _LEAST_QUANTILE))
    return least, most


def dense_verdict(
    rows: int,
    cols: int,
    *,
    spectral_norm: float,
    stable_rank: float,
    signal_rank: float = math.nan,
) -> Verdict:
    """The verdict on a dense update, from its metrics.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        spectral_norm: σ₁; NaN where the update is not finite.
        stable_rank: ‖ΔW‖_F² / σ₁².
        signal_rank: NaN where it is not known.
    """
    if not (math.isfinite(spectral_norm) and math.isfinite(stable_rank)):
        return "not finite"
    if spectral_norm == 0:
        return "has not moved"
    if min(rows, cols) < LEAST_SIDE:
        return "too thin to tell"
    least, most = noise_stable_ranks(rows, cols)
    if signal_rank >= 1 or (math.isnan(signal_rank) and stable_rank < least):
        return "structured"
    return "flatter than noise" if stable_rank > most else "like noise"


def factors_verdict(columns: int, *, spectral_norm: float, rank_over_null_rank: float) -> Verdict:
    """The verdict on a product of factors, whose noise is a product of random ones.

    Args:
        columns: how many the factors have, or may have; at most min(rows, cols) count.
        spectral_norm: σ₁; NaN where the update is not finite.
        rank_over_null_rank: of the same rule.
    """
    if not math.isfinite(spectral_norm):
        return "not finite"
    if spectral_norm == 0:
        return "has not moved"
    if columns < _LEAST_COLUMNS or math.isnan(rank_over_null_rank):
        return "too thin to tell"
    if rank_over_null_rank <= _FACTORS_STRUCTURED:
        return "structured"
    return "flatter than noise" if rank_over_null_rank >= _FACTORS_FLATTER else "like noise"


def spectrum_verdict(singular_values: np.ndarray, rows: int, cols: int, frobenius: float | None = None) -> Verdict:
    """The verdict on a dense update, from its singular values.

    Args:
        singular_values: descending; (q,).
        rows: of the matrix.
        cols: of the matrix.
        frobenius: ‖ΔW‖_F where only the leading values are given. Default: from the values.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    norm = frobenius_norm(values) if frobenius is None else np.asarray(frobenius)
    if not np.isfinite(values).all() or not len(values):
        return "not finite"
    return dense_verdict(
        rows,
        cols,
        spectral_norm=float(values[0]),
        stable_rank=float(stable_rank_of(values, norm)),
        signal_rank=float(signal_rank(values, rows, cols)),
    )
