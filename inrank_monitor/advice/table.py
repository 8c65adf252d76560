"""The rank that is enough for each matrix's update, and what training factors of that rank would save.

W0 stays, under a LoRA as in W = W0 + U V: a model is not smaller for it, and multiplies no less. What is saved is in
training. Of a p × q matrix p·q numbers are trained, of factors of rank r only r·(p + q), and so much less gradient,
optimizer state and update there is. The factors save below the break-even rank p·q / (p + q).

References:
    Zhao et al. 2023, arXiv:2306.11250; Hu et al. 2021, arXiv:2106.09685: LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inrank_monitor.advice.reasons import matrix_reason, run_reason, spectrum_reason
from inrank_monitor.advice.sources import (
    COLUMN_OF,
    RankSource,
    check_source,
    energies,
    ranks_by_source,
    share_held,
)
from inrank_monitor.ranks import RankRule
from inrank_monitor.runs import logged_rule, recompute

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

NUMBER_BYTES = 4  # float32, in which states and gradients mostly are
ADAM_NUMBERS = 2  # of optimizer state a trainable parameter
NO_ADVICE = "no advice: "
SAVES, SAVES_NOTHING = "low rank saves", "low rank fits, but saves nothing"
NOT_NEEDED = "not needed: the loss keeps without this update"
_CANNOT_TELL: dict[RankSource, str] = {
    "loss": "not among the ranks by loss",
    "energy": "the spectrum is cut before 90 % of its energy",
    "paper": "the spectrum is cut before its rank",
    "signal": "the signal rank cannot be told",
}


def advise(run: Run, rule: RankRule | None = None, rank_from: RankSource | None = None) -> pd.DataFrame:
    """The rank that would be enough for each matrix, and what training factors of that rank would save.

    Args:
        run: an open run.
        rule: α, b and definition of the paper's rank; default: as logged. Others are drawn from the stored spectra.
        rank_from: what "enough" is: `"loss"`, the newest ranks by loss; `"energy"`, 90 % of ‖ΔW‖²; `"paper"`, the
            explained ratio; `"signal"`, the directions above noise. Default: the loss's rank where there is one, else
            the energy rank.

    Returns:
        As `advice_table`.

    Raises:
        ValueError: there is no such source, or the run has no ranks by loss.
    """
    return advice_table(run, recompute(run, rule or logged_rule(run)), rank_from)


def advice_table(run: Run, measurements: pd.DataFrame, rank_from: RankSource | None = None) -> pd.DataFrame:
    """Ranks worth using, in model order.

    Args:
        run: an open run.
        measurements: `run.measurements`, or recomputed.
        rank_from: as for `advise`.

    Returns:
        DataFrame indexed by matrix: parameter, part, kind, layer and groups (NA: not logged), rows, cols; step (of the
        newest spectrum); rank (that is enough; NA: no advice), rank_from, energy_share (what the rank holds of ‖ΔW‖²);
        loss_rank and loss_step, energy_rank, intrinsic_rank (the paper's), signal_rank, all NA where they are not
        known, peak_rank, null_rank, rank_over_null_rank; verdict (on the spectrum); break_even_rank (the largest rank
        that saves anything), parameters (of the matrix), trainable_parameters (of two factors of the rank),
        trainable_saved, share_saved (of the matrix's parameters), optimizer_bytes_saved (Adam's two numbers a
        parameter) and gradient_bytes_saved, both in float32; advice: a sentence, or why there is none.

    Raises:
        ValueError: as `advise`.
    """
    check_source(rank_from, run)
    table = run.matrices.reindex(columns=["parameter", "part", "kind", "layer", "groups", "rows", "cols"])
    sources = ranks_by_source(run, measurements)
    shares = energies(run, measurements)
    held = [share_held(shares.get(str(name)), rank) for name, rank in sources["energy_rank"].items()]
    sources["energy_rank"] = sources["energy_rank"].mask(np.isnan(held) & (sources["energy_rank"] > 0).fillna(False))
    reasons = _choose(table, sources, run, rank_from)
    table["energy_share"] = [share_held(shares.get(str(name)), rank) for name, rank in table["rank"].items()]
    table = table.join(sources.drop(columns="step"))
    _add_savings(table)
    table["advice"] = [
        f"{NO_ADVICE}{reason}" if reason else _advice(rank, even)
        for reason, rank, even in zip(reasons, table["rank"], table["break_even_rank"], strict=True)
    ]
    return table


def _choose(table: pd.DataFrame, sources: pd.DataFrame, run: Run, rank_from: RankSource | None) -> list[str | None]:
    """Give the table step, rank and rank_from; why each matrix has no rank, or None."""
    whole = run_reason(run)
    ranks, origins, reasons = [], [], []
    for row in sources.to_dict("records"):
        origin: RankSource = rank_from or ("energy" if pd.isna(row["loss_rank"]) else "loss")
        rank, verdict = row[COLUMN_OF[origin]], row["verdict"]
        reason = whole or matrix_reason(row["step"], verdict)
        if reason is None and origin != "loss":
            reason = spectrum_reason(verdict)
        if reason is None and (pd.isna(rank) or (rank == 0 and origin != "loss")):
            reason = _CANNOT_TELL[origin] if pd.isna(rank) else "no direction stands above noise"
        ranks.append(pd.NA if reason else rank)
        origins.append(None if reason else origin)
        reasons.append(reason)
    table["step"] = sources["step"].array
    table["rank"] = pd.array(ranks, dtype="Int64")
    table["rank_from"] = pd.array(origins, dtype=object)
    return reasons


def _add_savings(table: pd.DataFrame) -> None:
    rows, cols = table["rows"].astype("int64"), table["cols"].astype("int64")
    table["break_even_rank"] = (rows * cols - 1) // (rows + cols)
    table["parameters"] = rows * cols
    table["trainable_parameters"] = table["rank"] * (rows + cols)
    saved = (table["parameters"] - table["trainable_parameters"]).clip(lower=0).fillna(0).astype("int64")
    table["trainable_saved"] = saved
    table["share_saved"] = saved / table["parameters"].clip(lower=1)
    table["optimizer_bytes_saved"] = ADAM_NUMBERS * NUMBER_BYTES * saved
    table["gradient_bytes_saved"] = NUMBER_BYTES * saved


def _advice(rank: int, break_even: int) -> str:
    if rank == 0:
        return NOT_NEEDED
    return SAVES if rank <= break_even else SAVES_NOTHING


def savings(table: pd.DataFrame) -> dict[str, int | float]:
    """What all factors together would save in training, and of what.

    Returns:
        matrices (in which something is saved), parameters (that are watched), trainable_saved, optimizer_bytes_saved,
        gradient_bytes_saved, share (of the watched parameters that would not be trained).
    """
    total = int(table["parameters"].sum())
    found: dict[str, int | float] = {"matrices": int((table["trainable_saved"] > 0).sum()), "parameters": total}
    for name in ("trainable_saved", "optimizer_bytes_saved", "gradient_bytes_saved"):
        found[name] = int(table[name].sum())
    return found | {"share": found["trainable_saved"] / total if total else 0.0}
