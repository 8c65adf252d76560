"""What each matrix's rank would save, as a table.

A p × q weight costs p·q parameters and, times a vector, as many multiply-adds; as a product of a p × r and an r × q
factor it costs r·(p + q) of each. The factors pay below the break-even rank p·q / (p + q).

References:
    Zhao et al. 2023, arXiv:2306.11250; Hu et al. 2021, arXiv:2106.09685: LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inrank_monitor.ranks import RankRule
from inrank_monitor.runs import logged_rule, peak_ranks, recompute

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

NEAR_NOISE = 0.9


def advise(run: Run, rule: RankRule | None = None) -> pd.DataFrame:
    """The rank that would be enough for each matrix, and what a low-rank layer of that rank would save.

    Args:
        run: an open run.
        rule: α, b and definition; default: as logged. Other ranks are drawn from the stored spectra.
    """
    return advice_table(run.matrices, recompute(run, rule or logged_rule(run)))


def advice_table(matrices: pd.DataFrame, measurements: pd.DataFrame) -> pd.DataFrame:
    """Ranks worth using, in model order.

    Args:
        matrices: `run.matrices`.
        measurements: `run.measurements`, or recomputed.

    Returns:
        DataFrame indexed by matrix: parameter, part, kind, layer and groups (NA: not logged), rows, cols; step (of the
        last finite spectrum), rank (the present one, by that spectrum: it is enough for the whole update), peak_rank
        (see `peak_ranks`), null_rank, rank_over_null, break_even_rank (the largest rank that saves anything),
        parameters (of the matrix), low_rank_parameters, parameters_saved, multiply_adds_saved (a token or an output
        position; 0 for an embedding, which multiplies nothing), share_saved, verdict. Where there is no finite
        measurement, or no update, the rank is NA and nothing is saved.
    """
    table = matrices.reindex(columns=["parameter", "part", "kind", "layer", "groups", "rows", "cols"])
    table = table.join(_ranks(measurements))
    table["null_rank"] = table["null_rank"].fillna(matrices["null_rank"].astype("Int64"))
    table["rank"] = table["rank"].mask((table["rank"] < 1).fillna(False).astype(bool))
    table["rank_over_null"] = _float(table["rank"]) / table["null_rank"].astype(float).clip(lower=1)
    rows, cols = table["rows"].astype("int64"), table["cols"].astype("int64")
    table["break_even_rank"] = (rows * cols - 1) // (rows + cols)
    table["parameters"] = rows * cols
    table["low_rank_parameters"] = table["rank"] * (rows + cols)
    saved = (table["parameters"] - table["low_rank_parameters"]).clip(lower=0).fillna(0).astype("int64")
    table["parameters_saved"] = saved
    table["multiply_adds_saved"] = saved.where(~table["kind"].str.startswith("Embedding"), 0)
    table["share_saved"] = saved / table["parameters"].clip(lower=1)
    table["verdict"] = [_verdict(row) for row in table[["rank", "rank_over_null", "break_even_rank"]].itertuples()]
    return table


def _ranks(measurements: pd.DataFrame) -> pd.DataFrame:
    """Step, present, peak and null rank of each matrix's last finite spectrum."""
    finite = measurements[measurements["intrinsic_rank"].notna()].drop_duplicates("matrix", keep="last")
    last = finite.set_index(finite["matrix"].astype(str)).rename(columns={"intrinsic_rank": "rank"})
    last = last.assign(peak_rank=peak_ranks(measurements))
    return last[["step", "rank", "peak_rank", "null_rank"]].astype("Int64")


def _float(values: pd.Series) -> pd.Series:
    return values.astype("Float64").astype(float)


def _verdict(row: tuple[object, ...]) -> str:
    _, rank, over_null, break_even = row
    if pd.isna(rank):  # type: ignore[call-overload]
        return "no update measured"
    if over_null >= NEAR_NOISE:  # type: ignore[operator]
        return "like noise: the rank says nothing"
    return "low rank saves" if rank <= break_even else "low rank fits, but saves nothing"  # type: ignore[operator]


def savings(table: pd.DataFrame) -> dict[str, int | float]:
    """What all low-rank layers together would save: matrices, parameters, multiply_adds, and share of parameters."""
    total = int(table["parameters"].sum())
    saved = int(table["parameters_saved"].sum())
    return {
        "matrices": int((table["parameters_saved"] > 0).sum()),
        "parameters": saved,
        "multiply_adds": int(table["multiply_adds_saved"].sum()),
        "share": saved / total if total else 0.0,
    }


def advice_text(table: pd.DataFrame, width: int = 44) -> str:
    """The table for a terminal: a line a matrix, then the sum."""
    from inrank_monitor.figures import short_names
    from inrank_monitor.report import printable

    labels = short_names([str(name) for name in table.index], width, "...")
    head = f"{'matrix':<{width}} {'shape':>11} {'rank':>5} {'peak':>5} {'null':>5} {'even':>5} {'saved':>12}  verdict"
    lines = [head, "-" * len(head)]
    for name, row in zip(table.index, table.to_dict("records"), strict=True):
        shape = f"{row['rows']}×{row['cols']}"
        ranks = " ".join(f"{_rank_text(row[column]):>5}" for column in ("rank", "peak_rank", "null_rank"))
        text = f"{printable(labels[str(name)]):<{width}} {shape:>11} {ranks} {row['break_even_rank']:>5}"
        lines.append(f"{text} {row['parameters_saved']:>12,}  {row['verdict']}")
    total = savings(table)
    lines += [
        "",
        f"Low-rank layers of these ranks would save {total['parameters']:,} parameters ({100 * total['share']:.1f} % "
        f"of what is watched) and {total['multiply_adds']:,} multiply-adds a token, in {total['matrices']} matrices.",
        "rank: enough for the last measured update; peak: the highest so far; null: of noise; even: saves up to it.",
    ]
    return "\n".join(lines) + "\n"


def _rank_text(rank: object) -> str:
    return "-" if rank is pd.NA or rank is None else str(rank)


def advice_csv(table: pd.DataFrame) -> str:
    """The table as the text of a CSV file."""
    numbers = table.select_dtypes("float").columns
    return str(table.assign(**{name: np.round(table[name], 6) for name in numbers}).to_csv())
