"""The advice as text: for a terminal, and as a CSV file."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from inrank_monitor.advice.table import NO_ADVICE, savings

_WIDTH = 120
_RANKS = {
    "rank": "rank",
    "loss_rank": "loss",
    "energy_rank": "energy",
    "intrinsic_rank": "paper",
    "signal_rank": "signal",
    "null_rank": "null",
    "break_even_rank": "even",
}
_LEGEND = (
    "rank: enough for the last measured update, and from where; held: the share of ‖ΔW‖² that it holds; loss, energy, "
    "paper, signal: by each rule; null: the paper's rule on noise; even: factors save up to it; saved: parameters that "
    "need not be trained."
)


def advice_text(table: pd.DataFrame, width: int = 32) -> str:
    """The table for a terminal: a line a matrix, then the sum.

    Args:
        table: from `advise`.
        width: of the names.
    """
    from inrank_monitor.figures import short_names
    from inrank_monitor.report import printable

    labels = short_names([str(name) for name in table.index], width, "...")
    ranks = " ".join(f"{head:>6}" for head in _RANKS.values())
    head = f"{'matrix':<{width}} {'shape':>11} {'from':>6} {'held':>5} {ranks} {'saved':>12}  advice"
    lines = [head, "-" * len(head)]
    common = _common_reason(table)
    for name, row in zip(table.index, table.to_dict("records"), strict=True):
        shape = f"{row['rows']}×{row['cols']}"
        ranks = " ".join(f"{_cell(row[column]):>6}" for column in _RANKS)
        held = "-" if pd.isna(row["energy_share"]) else f"{100 * row['energy_share']:.0f} %"
        text = f"{printable(labels[str(name)]):<{width}} {shape:>11} {_cell(row['rank_from']):>6} {held:>5} {ranks}"
        lines.append(f"{text} {row['trainable_saved']:>12,}  {'-' if common else row['advice']}")
    sentences = [common or _sum(table), *_stale(table), _LEGEND]
    return "\n".join([*lines, "", *(line for text in sentences for line in textwrap.wrap(text, _WIDTH))]) + "\n"


def _common_reason(table: pd.DataFrame) -> str | None:
    """Why no matrix has advice, if it is the same for all."""
    found = table["advice"].unique()
    if len(found) != 1 or not found[0].startswith(NO_ADVICE):
        return None
    return f"No matrix gets advice: {found[0].removeprefix(NO_ADVICE)}"


def _sum(table: pd.DataFrame) -> str:
    total = savings(table)
    saved, watched = f"{total['trainable_saved']:,}", f"{total['parameters']:,}"
    state, gradient = _size(total["optimizer_bytes_saved"]), _size(total["gradient_bytes_saved"])
    return (
        f"Factors of these ranks (a LoRA, or W0 + U V) would leave {saved} of {watched} watched parameters untrained "
        f"({100 * total['share']:.1f} %), in {total['matrices']} matrices: {state} less state of Adam and {gradient} "
        "less gradient, in float32. W0 stays: the model is no smaller, and multiplies no less."
    )


def _stale(table: pd.DataFrame) -> list[str]:
    """A sentence where the loss was asked at another step than the newest spectrum."""
    used = table[(table["rank_from"] == "loss") & (table["loss_step"] != table["step"])]
    if used.empty:
        return []
    return [f"The ranks by loss are of step {used['loss_step'].iloc[0]}, the spectra of step {used['step'].iloc[0]}."]


def _size(count: float) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count:.0f} bytes"


def _cell(value: object) -> str:
    return "-" if pd.isna(value) else str(value)  # type: ignore[call-overload]


def advice_csv(table: pd.DataFrame) -> str:
    """The table as the text of a CSV file."""
    numbers = table.select_dtypes("float").columns
    return str(table.assign(**{name: np.round(table[name], 6) for name in numbers}).to_csv())
