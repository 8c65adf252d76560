"""What the leading values alone can say of a matrix's ranks: a number that needs the others is not known."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from inrank_monitor.ranks.metrics import Definition

# Missing where a matrix is of another kind or too small, and not since something is unknown: a mean leaves those out.
OF_SOME_MATRICES = ("layer_rank", "capacity", "signal_rank", "signal_share", "relative_norm")
_BY_RULE = ("intrinsic_rank", "running_rank")
_OF_ALL = ("effective_rank", "nuclear_norm")  # sums over all values; ‖ΔW‖, and so the stable rank, is measured apart


def is_cut(singular_values: Float[np.ndarray, "*batch k"], size: int) -> Bool[np.ndarray, "*batch"]:
    """Which rows leave values out that are not zero: fewer than `size`, and the last is above zero.

    Args:
        singular_values: descending.
        size: min(rows, cols), or as many as can be other than zero.
    """
    values = np.asarray(singular_values)
    if values.shape[-1] >= size or values.shape[-1] == 0:
        return np.zeros(values.shape[:-1], dtype=bool)
    return np.asarray(values[..., -1] > 0)


def is_known_rank(
    rank: np.ndarray, buffer_rank: np.ndarray | int, count: np.ndarray | int, definition: Definition
) -> Bool[np.ndarray, "*batch"]:
    """Whether the rule at this rank looks at no more than the `count` leading values.

    Eq. 7 at r looks at r + b of them, the published code's rule at all.
    """
    return np.asarray((np.asarray(rank) + buffer_rank <= count) & (definition == "paper"))


def blank_cut(
    columns: dict[str, np.ndarray],
    cut: np.ndarray,
    count: np.ndarray | int,
    buffer_rank: np.ndarray | int,
    definition: Definition,
    ratio_at: np.ndarray,
) -> None:
    """Put NaN in place of what the leading values alone cannot say; signal rank and share have it already.

    Args:
        columns: metric -> (rows,) floats, whole numbers too; changed in place.
        cut: (rows,), see `is_cut`.
        count: how many leading values there are.
        buffer_rank: b.
        definition: of the explained ratio.
        ratio_at: (rows,) at which rank `explained_ratio` was taken.
    """
    with np.errstate(invalid="ignore"):
        known = {name: is_known_rank(columns[name], buffer_rank, count, definition) for name in _BY_RULE}
        known["explained_ratio"] = is_known_rank(ratio_at, buffer_rank, count, definition)
        known["energy_rank"] = columns["energy_rank"] <= count
        known["numerical_rank"] = columns["numerical_rank"] < count
    known |= dict.fromkeys(_OF_ALL, np.zeros_like(cut))
    for name, told in known.items():
        columns[name] = np.where(cut & ~told, np.nan, columns[name])


def cut_text(leading: int | None, measured: int | None) -> str | None:
    """Why numbers are missing, or are estimates, where not all singular values were taken; None where all were.

    Args:
        leading: how many singular values were kept.
        measured: how many were measured, where the others are estimates.
    """
    if measured is not None:
        return (
            f"Of matrices with more than {measured} singular values the {measured} leading ones were measured and the "
            "others estimated: effective rank, nuclear norm and numerical rank are estimates, the signal rank is not "
            "told."
        )
    if leading is None:
        return None
    return (
        f"Of matrices with more than {leading} singular values the {leading} leading ones were taken: effective rank, "
        "signal rank and nuclear norm are not known, nor is a rank whose r + b values, or whose share of ‖ΔW‖², lie "
        "beyond them."
    )
