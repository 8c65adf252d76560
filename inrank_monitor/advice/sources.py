"""What the rank of a matrix can come from: the loss, or its newest spectrum by one of three rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from inrank_monitor.runs import peak_ranks, verdicts

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

RankSource = Literal["loss", "energy", "paper", "signal"]
RANK_SOURCES: tuple[RankSource, ...] = get_args(RankSource)
COLUMN_OF: dict[RankSource, str] = {
    "loss": "loss_rank",
    "energy": "energy_rank",
    "paper": "intrinsic_rank",
    "signal": "signal_rank",
}
_WHOLE = 1e-6  # of ‖ΔW‖²: what the rounding of stored values may lack of it


def check_source(rank_from: str | None, run: Run) -> None:
    """Refuse a source that there is not, or that this run does not have.

    Raises:
        ValueError: naming the argument, and what to do.
    """
    if rank_from is not None and rank_from not in RANK_SOURCES:
        raise ValueError(f"rank_from must be one of {', '.join(RANK_SOURCES)}, got {rank_from!r}")
    if rank_from == "loss" and run.loss_ranks.empty:
        raise ValueError(
            f"rank_from='loss': {run.path} holds no ranks by loss; inrank_monitor.ranks_by_loss(model, run, loss) "
            "measures them"
        )


def ranks_by_source(run: Run, measurements: pd.DataFrame) -> pd.DataFrame:
    """By matrix, of its newest measurement: step, verdict, the rank of each source, peak and null rank.

    Args:
        run: whose.
        measurements: `run.measurements`, or recomputed.
    """
    newest = measurements.drop_duplicates("matrix", keep="last")
    newest = newest.set_index(newest["matrix"].astype(str))
    loss = newest_loss_ranks(run)
    whole = {
        "loss_rank": loss["rank"],
        "loss_step": loss["step"],
        **{column: newest[column] for column in ("energy_rank", "intrinsic_rank", "signal_rank", "null_rank", "step")},
        "peak_rank": peak_ranks(measurements),
    }
    names = [str(name) for name in run.matrices.index]
    table = pd.DataFrame({name: values.astype("Int64").reindex(names) for name, values in whole.items()})
    table["rank_over_null_rank"] = newest["rank_over_null_rank"].reindex(names)
    table["verdict"] = verdicts(run.matrices, measurements, run.diverged)
    return table


def newest_loss_ranks(run: Run) -> pd.DataFrame:
    """Of the newest result of `ranks_by_loss`, by matrix: rank and step. Empty where there is none."""
    table = run.loss_ranks
    newest = table[table["time"] == table["time"].max()]
    found: pd.DataFrame = newest.set_index(newest["matrix"].astype(str))[["rank", "step"]].astype("Int64")
    return found


def energies(run: Run, measurements: pd.DataFrame) -> dict[str, np.ndarray]:
    """By matrix, the share of ‖ΔW‖² that its 0, 1, 2, … leading directions hold, of the newest spectrum.

    One that is cut ends where its values end, below 1. Matrices without a finite update are left out.

    Args:
        run: whose.
        measurements: `run.measurements`.
    """
    newest = measurements.drop_duplicates("matrix", keep="last")
    norms = dict(zip(newest["matrix"].astype(str), newest["frobenius_norm"].astype(float), strict=True))
    names = [str(name) for name in run.matrices.index]
    found: dict[str, np.ndarray] = {}
    for codes, _, offsets, values in reversed(run.spectra()):
        for place, code in enumerate(codes.tolist()):
            if not 0 <= code < len(names) or names[code] in found:
                continue
            spectrum = np.asarray(values[offsets[place] : offsets[place + 1]], dtype=np.float64)
            found[names[code]] = _shares(spectrum, norms[names[code]])
        if len(found) == len(names):
            break
    return {name: shares for name, shares in found.items() if len(shares)}


def _shares(spectrum: np.ndarray, norm: float) -> np.ndarray:
    if not (np.isfinite(norm) and norm > 0):
        return np.zeros(0)
    shares = np.concatenate([[0.0], np.cumsum((spectrum / norm) ** 2)])
    return np.asarray(shares if shares[-1] < 1 - _WHOLE else shares / shares[-1])


def share_held(shares: np.ndarray | None, rank: object) -> float:
    """What a rank holds; NaN where the spectrum ends before it and is not whole, or nothing is known."""
    if shares is None or pd.isna(rank):  # type: ignore[call-overload]
        return float("nan")
    place = int(rank)  # type: ignore[call-overload]
    if place < len(shares):
        return float(shares[place])
    return 1.0 if shares[-1] >= 1 - _WHOLE else float("nan")
