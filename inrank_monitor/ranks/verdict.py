"""What a spectrum says beside noise of the same shape, in one of six words. The limits are fixed, nothing is chosen.

    not finite          a weight holds NaN or infinity
    has not moved       the update is zero
    too thin to tell    the short side is below 16: noise of such a shape may look like anything
    structured          a singular value stands above the edge of noise's bulk (`signal_rank` ≥ 1), or at least half of
                        the directions hold nothing; where not all values are known, σ₁² is a larger share of ‖ΔW‖²
                        than in 99 % of noise
    flatter than noise  σ₁² is a smaller share of ‖ΔW‖² than in 99 % of noise: the strong directions are more alike
                        than chance makes them, as orthogonalised updates are
    like noise          none of these

Share and edge are those of Gaussian matrices by the law of Tracy and Widom. They need neither α nor b, and σ₁ and ‖ΔW‖
are measured for cut spectra too, so a verdict hardly depends on how a run was measured. Of noise, at most 1 % is
called structured and at most 1 % flatter, at every shape of 16 rows and more (`benchmarks/noise_verdicts.py` prints
the rates). A product of factors (an adapter's, a low-rank layer's) is judged by the share of σ₁² as well, beside that
of products of random factors, which are drawn; of fewer than four columns nothing is told.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np

from inrank_monitor.ranks.cut import is_cut
from inrank_monitor.ranks.metrics import frobenius_norm, numerical_rank
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
_LEAST_COLUMNS = 4  # of factors in whose product there is something to tell
_DEVIATIONS = 3.0  # of ln(stable rank), beside random factors


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
    numerical_rank: float = math.nan,
    error_bound: float = 0.0,
) -> Verdict:
    """The verdict on a dense update, from its metrics.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        spectral_norm: σ₁; NaN where the update is not finite.
        stable_rank: ‖ΔW‖_F² / σ₁².
        signal_rank: NaN where it is not known.
        numerical_rank: NaN where it is not known.
        error_bound: by how much σ₁ may be too small, as leading values are.
    """
    if not (math.isfinite(spectral_norm) and math.isfinite(stable_rank)):
        return "not finite"
    if spectral_norm == 0:
        return "has not moved"
    if min(rows, cols) < LEAST_SIDE:
        return "too thin to tell"
    least, most = noise_stable_ranks(rows, cols)
    if signal_rank >= 1 or numerical_rank <= min(rows, cols) / 2:
        return "structured"
    if math.isnan(signal_rank) and stable_rank < least:
        return "structured"
    surely = stable_rank * (spectral_norm / (spectral_norm + error_bound)) ** 2
    return "flatter than noise" if surely > most else "like noise"


@lru_cache(maxsize=1024)
def factor_stable_ranks(rows: int, cols: int, columns: int) -> tuple[float, float]:
    """Between which stable ranks about 99 % of the products of random rows × r and r × cols factors lie.

    Three standard deviations of its logarithm about the mean, from draws of the r × r triangular factors of both. Cost:
    some milliseconds for r = 8, half a second for 256; cached.

    Args:
        rows: of the product.
        cols: of the product.
        columns: r.
    """
    columns = min(columns, rows, cols)
    generator = np.random.default_rng(0)
    logs = []
    for _ in range(min(max(20_000 // columns, 12), 200)):
        left, right = (_triangle(side, columns, generator) for side in (rows, cols))
        product = left @ right.T
        squares = np.linalg.eigvalsh(product @ product.T)
        logs.append(math.log(squares.sum() / squares[-1]))
    middle, spread = np.mean(logs), _DEVIATIONS * np.std(logs, ddof=1)
    return float(np.exp(middle - spread)), float(np.exp(middle + spread))


def _triangle(side: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """The triangular factor of a side × columns Gaussian matrix: chi on the diagonal, normal above (Bartlett)."""
    factor = np.triu(generator.standard_normal((columns, columns)), 1)
    np.fill_diagonal(factor, np.sqrt(generator.chisquare(side - np.arange(columns))))
    return factor


def factors_verdict(rows: int, cols: int, columns: int, *, spectral_norm: float, stable_rank: float) -> Verdict:
    """The verdict on a product of factors, whose noise is a product of random ones.

    Args:
        rows: of the product.
        cols: of the product.
        columns: how many the factors have.
        spectral_norm: σ₁; NaN where the update is not finite.
        stable_rank: ‖ΔW‖_F² / σ₁².
    """
    if not (math.isfinite(spectral_norm) and math.isfinite(stable_rank)):
        return "not finite"
    if spectral_norm == 0:
        return "has not moved"
    if min(rows, cols, columns) < _LEAST_COLUMNS:
        return "too thin to tell"
    least, most = factor_stable_ranks(rows, cols, columns)
    if stable_rank < least:
        return "structured"
    return "flatter than noise" if stable_rank > most else "like noise"


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
    whole = not is_cut(values, min(rows, cols))
    return dense_verdict(
        rows,
        cols,
        spectral_norm=float(values[0]),
        stable_rank=float(stable_rank_of(values, norm)),
        signal_rank=float(signal_rank(values, rows, cols)),
        numerical_rank=float(numerical_rank(values, rows, cols)) if whole else math.nan,
    )
