"""Spectra to ranks worth using: what each would save, and a `rank_pattern` for LoRA.

A p × q weight costs p·q parameters and, times a vector, as many multiply-adds; as a product of a p × r and an r × q
factor it costs r·(p + q) of each. The factors pay below the break-even rank p·q / (p + q).

Example:
    >>> from inrank_monitor import open_run
    >>> from inrank_monitor.advice import advise, rank_pattern
    >>> table = advise(open_run("runs/first"))                                     # doctest: +SKIP
    >>> LoraConfig(target_modules=list(p := rank_pattern(table)), rank_pattern=p)  # doctest: +SKIP

References:
    Zhao et al. 2023, arXiv:2306.11250: Algorithm 2, whose ranks never shrink; Hu et al. 2021, arXiv:2106.09685: LoRA.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from inrank_monitor.ranks import RankRule
from inrank_monitor.runs import local_path, logged_rule, recompute

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

Basis = Literal["running", "last"]
NEAR_NOISE = 0.9
# Modules that PEFT's LoRA can wrap; recurrent layers and bare parameters it cannot.
LORA_KINDS = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "Embedding", "MultiheadAttention")


def advise(run: Run, rule: RankRule | None = None, basis: Basis = "running") -> pd.DataFrame:
    """The rank that would be enough for each matrix, and what a low-rank layer of that rank would save.

    Args:
        run: an open run.
        rule: α, b and definition; default: as logged. Other ranks are drawn from the stored spectra.
        basis: see `advice_table`.
    """
    return advice_table(run.matrices, recompute(run, rule or logged_rule(run)), basis)


def advice_table(matrices: pd.DataFrame, measurements: pd.DataFrame, basis: Basis = "running") -> pd.DataFrame:
    """Ranks worth using, in model order.

    Args:
        matrices: `run.matrices`.
        measurements: `run.measurements`, or recomputed.
        basis: which rank counts as enough: `"running"`, the running maximum, which served at every step so far (what
            Algorithm 2 would have grown to); `"last"`, that of the last finite spectrum.

    Returns:
        DataFrame indexed by matrix: parameter, part, kind, rows, cols; step (of the last finite spectrum), last_rank,
        running_rank, null_rank; rank (the one that is enough), rank_over_null, break_even_rank (the largest rank that
        saves anything), parameters (of the matrix), low_rank_parameters, parameters_saved, multiply_adds_saved (a
        token or an output position; 0 for an embedding, which multiplies nothing), share_saved, verdict. Where there is
        no finite measurement, or no update, ranks are NA and nothing is saved.
    """
    if basis not in ("running", "last"):
        raise ValueError(f"basis must be 'running' or 'last', got {basis!r}")
    table = matrices[["parameter", "part", "kind", "rows", "cols"]].copy()
    table = table.join(_ranks(measurements))
    table["null_rank"] = table["null_rank"].fillna(matrices["null_rank"].astype("Int64"))
    table["rank"] = table["running_rank" if basis == "running" else "last_rank"]
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
    """Step, last, running and null rank of each matrix's last finite spectrum."""
    columns = {"step": "step", "intrinsic_rank": "last_rank", "running_rank": "running_rank", "null_rank": "null_rank"}
    finite = measurements[measurements["intrinsic_rank"].notna()].drop_duplicates("matrix", keep="last")
    return finite.set_index(finite["matrix"].astype(str))[list(columns)].rename(columns=columns).astype("Int64")


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


def rank_pattern(table: pd.DataFrame, max_rank: int | None = None) -> dict[str, int]:
    """Module name -> rank, as PEFT's `LoraConfig(rank_pattern=...)` takes it.

    Parts of one weight (q, k, v) are one module and get the largest of their ranks (their sum would fit them in every
    case, the largest does where they share directions); matrices without a measured update
    and layers that LoRA cannot wrap are left out. PEFT reads keys as regular expressions on the end of a name and takes
    the first that fits, so names of more components come first.

    Args:
        table: from `advise`.
        max_rank: no rank above this.
    """
    ranks: dict[str, int] = {}
    usable = table[table["kind"].isin(LORA_KINDS) & table["rank"].notna()]
    for parameter, rank in zip(usable["parameter"], usable["rank"], strict=True):
        module = module_name(str(parameter))
        if module:
            ranks[module] = max(ranks.get(module, 1), int(rank))
    order = sorted(ranks, key=lambda name: -name.count("."))
    return {name: min(ranks[name], max_rank or ranks[name]) for name in order}


def module_name(parameter: str) -> str:
    """The module that owns a parameter; parts and the parametrization's own path are left out.

    >>> module_name("h.0.attn.c_attn.weight"), module_name("layers.0.self_attn.in_proj_weight")
    ('h.0.attn.c_attn', 'layers.0.self_attn')
    """
    return re.sub(r"(^|\.)(in_proj_weight|weight(_\w+)?|original\d*)$", "", re.sub(r"\[[^\]]*\]$", "", parameter))


def write_rank_pattern(pattern: Mapping[str, int], path: str | Path) -> None:
    """Write a rank pattern as JSON."""
    local_path(path, "path").write_text(pattern_json(pattern), encoding="utf-8")


def pattern_json(pattern: Mapping[str, int]) -> str:
    """A rank pattern as the text of a JSON file."""
    return json.dumps(dict(pattern), indent=2, ensure_ascii=False) + "\n"


def advice_text(table: pd.DataFrame, width: int = 44) -> str:
    """The table for a terminal: a line a matrix, then the sum."""
    from inrank_monitor.figures import short_names
    from inrank_monitor.report import printable

    labels = short_names([str(name) for name in table.index], width, "...")
    head = f"{'matrix':<{width}} {'shape':>11} {'rank':>5} {'last':>5} {'null':>5} {'even':>5} {'saved':>12}  verdict"
    lines = [head, "-" * len(head)]
    for name, row in zip(table.index, table.to_dict("records"), strict=True):
        shape = f"{row['rows']}×{row['cols']}"
        ranks = " ".join(f"{_rank_text(row[column]):>5}" for column in ("rank", "last_rank", "null_rank"))
        text = f"{printable(labels[str(name)]):<{width}} {shape:>11} {ranks} {row['break_even_rank']:>5}"
        lines.append(f"{text} {row['parameters_saved']:>12,}  {row['verdict']}")
    total = savings(table)
    lines += [
        "",
        f"Low-rank layers of these ranks would save {total['parameters']:,} parameters ({100 * total['share']:.1f} % "
        f"of what is watched) and {total['multiply_adds']:,} multiply-adds a token, in {total['matrices']} matrices.",
        "rank: enough at every step so far; last: by the last spectrum; null: of noise; even: saves at most up to it.",
    ]
    return "\n".join(lines) + "\n"


def _rank_text(rank: object) -> str:
    return "-" if rank is pd.NA or rank is None else str(rank)


def advice_csv(table: pd.DataFrame) -> str:
    """The table as the text of a CSV file."""
    numbers = table.select_dtypes("float").columns
    return str(table.assign(**{name: np.round(table[name], 6) for name in numbers}).to_csv())
