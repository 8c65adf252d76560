"""Tables on their way into a figure: filtered, checked, thinned. Nothing here changes its input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from inrank_monitor.naming import select_names, unknown
from inrank_monitor.ranks import RankRule, default_buffer_rank, is_cut, is_known_rank

RANK_COLUMNS = ("intrinsic_rank", "running_rank", "layer_rank")
COLUMN_TITLES = {
    "intrinsic_rank": "intrinsic rank",
    "running_rank": "rank so far",
    "layer_rank": "rank of the low-rank layer",
    "capacity": "capacity of the low-rank layer",
    "explained_ratio": "explained ratio",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "energy_rank": "rank that holds 90 % of ‖ΔW‖²",
    "numerical_rank": "numerical rank",
    "spectral_norm": "spectral norm ‖ΔW‖₂",
    "frobenius_norm": "Frobenius norm ‖ΔW‖",
    "nuclear_norm": "nuclear norm Σσ",
    "relative_norm": "‖ΔW‖ / ‖W0‖",
    "error_bound": "bound on the error of each σ",
    "condition": "condition number σ₁ / σ_q",
    "tail_exponent": "exponent α of the tail of σ²",
    "weight_spectral_norm": "spectral norm ‖W‖₂",
    "weight_frobenius_norm": "Frobenius norm ‖W‖",
    "weight_stable_rank": "stable rank of W",
    "weight_condition": "condition number of W",
    "weight_tail_exponent": "exponent α of W's tail of σ²",
    "left_overlap": "overlap with the snapshot before, outputs",
    "right_overlap": "overlap with the snapshot before, inputs",
    "left_angle": "largest angle turned, outputs (degrees)",
    "right_angle": "largest angle turned, inputs (degrees)",
    "left_initial_overlap": "overlap with W0's leading directions, outputs",
    "right_initial_overlap": "overlap with W0's leading directions, inputs",
    "intruder_dimensions": "intruder dimensions of W",
    "signal_rank": "signal rank",
    "signal_share": "share of ‖ΔW‖² above noise",
    "rank_over_null_rank": "rank over null rank",
}


def is_held(column: str) -> bool:
    """Whether a value holds until the next measurement, as a rank does: its line is a staircase."""
    return column in (*RANK_COLUMNS, "capacity", "signal_rank", "intruder_dimensions")


def column_title(column: str) -> str:
    """The column in words, for an axis."""
    return COLUMN_TITLES.get(column, column.replace("_", " "))


def numbers(values: pd.Series) -> np.ndarray:
    """A float64 copy of a column, nullable or not; what is missing or infinite becomes NaN."""
    result = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    result[~np.isfinite(result)] = np.nan
    return np.asarray(result)


def check_column(measurements: pd.DataFrame, column: str) -> None:
    """Raise a ValueError that lists the columns if `column` is not one of them."""
    if column not in measurements.columns:
        known = [c for c in measurements.columns if c not in ("step", "time", "matrix")]
        raise ValueError(f"column must be one of {known}, got {column!r}")


def matrix_names(measurements: pd.DataFrame, matrices: Iterable[str] | None = None) -> list[str]:
    """The matrices to draw, in model order.

    Raises:
        ValueError: a name in `matrices` means nothing that was measured, or could mean several; near ones are given.
    """
    column = measurements["matrix"]
    present = [str(name) for name in column.unique()]
    if isinstance(column.dtype, pd.CategoricalDtype):
        here = set(present)
        present = [str(name) for name in column.cat.categories if str(name) in here]
    if matrices is None:
        return present
    wanted: set[str] = set()
    for name in [matrices] if isinstance(matrices, str) else matrices:
        found = names_meant(str(name), present)
        if not found:
            raise ValueError(f"nothing of this was measured: {unknown(str(name), present)}")
        wanted.update(found)
    return [name for name in present if name in wanted]


def names_meant(text: str, present: Sequence[str]) -> list[str]:
    """Which of these matrices a text means; see `naming.select_names`.

    Raises:
        ValueError: it could be several.
    """
    try:
        return select_names(text, present)
    except LookupError as error:
        raise ValueError(str(error)) from None


def by_matrix(measurements: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Each matrix's rows, sorted by step."""
    rows = measurements[measurements["matrix"].isin(names)]
    if not rows["step"].is_monotonic_increasing:
        rows = rows.sort_values("step", kind="stable")
    groups = {str(name): group for name, group in rows.groupby("matrix", observed=True, sort=False)}
    return {name: groups[name] for name in names}


def thin(values: np.ndarray, limit: int, *, by_ratio: bool = False) -> np.ndarray:
    """Positions of at most about `limit` points that keep the first, the last and every extreme of the curve.

    The curve is cut into equal stretches, and each keeps its lowest and its highest point, and one NaN if it
    has any, so that a gap stays a gap.

    Args:
        values: (n,), NaN allowed.
        limit: points to keep, at least 8; the answer is never longer than that.
        by_ratio: stretches grow with their place, as they look equal on a logarithmic axis.
    """
    count = len(values)
    if count <= max(limit, 8):
        return np.arange(count)
    gaps = np.isnan(values)
    stretches = (max(limit, 8) - 2) // (3 if gaps.any() else 2)
    edges = (np.geomspace if by_ratio else np.linspace)(1, count - 1, stretches + 1).astype(int)
    low, high = np.where(gaps, np.inf, values), np.where(gaps, -np.inf, values)
    kept = {0, count - 1}
    for start, end in pairwise(edges):
        if end > start:
            kept.update((start + int(low[start:end].argmin()), start + int(high[start:end].argmax())))
            if gaps[start:end].any():
                kept.add(start + int(gaps[start:end].argmax()))
    return np.array(sorted(kept))


def spread(count: int, limit: int) -> np.ndarray:
    """At most `limit` positions of 0..count−1, evenly spaced, the first and the last always among them."""
    if count <= limit:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, max(limit, 2)).round().astype(int))


def geometric(count: int, limit: int) -> np.ndarray:
    """At most `limit` positions of 0..count−1: dense at the start, ever sparser, first and last kept."""
    if count <= limit:
        return np.arange(count)
    best = spread(count, limit)
    for size in range(limit, 8 * limit):
        # Rounding merges the first positions, so more are asked for than are wanted.
        candidate = np.unique(np.geomspace(1, count, size).round().astype(int)) - 1
        if len(candidate) > limit:
            break
        best = candidate
    return best


def spectra(singular_values: pd.DataFrame) -> dict[int, np.ndarray | None]:
    """Step -> its values, descending; None where the update was not finite.

    NaN at the end of a row is no value at all (another step had more of them); a row that begins with NaN is
    a non-finite update. Of a step that is there twice the later row counts.
    """
    found: dict[int, np.ndarray | None] = {}
    for step, row in zip(singular_values.index, singular_values.to_numpy(dtype=np.float64), strict=True):
        values = row[np.isfinite(row)]
        found[int(step)] = values if len(row) and np.isfinite(row[0]) else None
    return found


def buffer_rank_of(singular_values: pd.DataFrame, size: int | None = None) -> int:
    """B of a table of spectra: what `run.singular_values` has noted beside it, else what fits the short side."""
    short = size or singular_values.shape[1]
    return int(singular_values.attrs.get("buffer_rank", default_buffer_rank(short, short)))


def known_ranks(singular_values: pd.DataFrame, values: np.ndarray, rule: RankRule) -> int | None:
    """Up to which rank the rule can be applied to the values of a step, of a cut spectrum; None: it is whole.

    Args:
        singular_values: the table that the values are of, which knows whether spectra were cut.
        values: of the step, descending.
        rule: with the matrix's b.
    """
    leading = singular_values.attrs.get("leading")
    if leading is None or not is_cut(values, leading + 1):
        return None
    ranks = np.arange(1, len(values) + 1)
    return int(is_known_rank(ranks, rule.buffer_rank_of(0, 0), len(values), rule.definition).sum())


def select_steps(measured: Iterable[int], steps: int | Iterable[int] | None, default: Sequence[int]) -> list[int]:
    """The steps to draw, ascending.

    Raises:
        ValueError: a step that was not measured; the message gives the nearest ones.
    """
    if steps is None:
        return sorted(set(default))
    wanted = [int(steps)] if isinstance(steps, int | np.integer) else [int(step) for step in steps]
    known = list(measured)
    for step in wanted:
        if step not in known:
            near = sorted(sorted(known, key=lambda other: abs(other - step))[:2])
            raise ValueError(f"steps must be measured steps, got {step}; the nearest are {near}")
    return sorted(set(wanted))
