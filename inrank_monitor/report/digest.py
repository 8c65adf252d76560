"""What both reports say about a run, as tables and plain sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inrank_monitor.ranks import buffer_rank_text, too_large_text
from inrank_monitor.report.source import RunTables
from inrank_monitor.runs import peak_ranks

_COLUMNS = (
    "step",
    "intrinsic_rank",
    "stable_rank",
    "effective_rank",
    "relative_norm",
)
# A rank that grew is what a run is expected to do; everything else is worth a line.
_EXPECTED_EVENTS = ("rank_grown",)


def matrix_table(run: RunTables) -> pd.DataFrame:
    """Each matrix at its last finite measurement, in model order, all numbers float64.

    Returns:
        DataFrame indexed by matrix: rows, cols, buffer_rank, step, intrinsic_rank, null_rank, rank_over_null,
        peak_rank, stable_rank, effective_rank, relative_norm. NaN for a matrix that has no finite measurement. Where
        ranks by loss were taken also loss_rank, of the newest result.
    """
    table = run.matrices.reindex(columns=["rows", "cols", "buffer_rank", "null_rank"])
    measured = run.measurements
    finite = measured[measured["intrinsic_rank"].notna() & np.isfinite(measured["stable_rank"].astype(float))]
    last = finite.drop_duplicates("matrix", keep="last")
    last = last.set_index(last["matrix"].astype(str))[list(_COLUMNS)]
    table = table.join(last.astype("Float64")).join(peak_ranks(measured).rename("peak_rank").astype("Float64"))
    table = table.astype(float)
    table["rank_over_null"] = table["intrinsic_rank"] / table["null_rank"].where(table["null_rank"] > 0)
    order = ["rows", "cols", "buffer_rank", "step", "intrinsic_rank", "null_rank", "rank_over_null", "peak_rank"]
    by_loss = newest_loss_ranks(run.loss_ranks)
    if len(by_loss):
        table["loss_rank"] = by_loss["rank"].astype(float)
        order.append("loss_rank")
    return table[[*order, "stable_rank", "effective_rank", "relative_norm"]]


def newest_loss_ranks(loss_ranks: pd.DataFrame) -> pd.DataFrame:
    """Of `Run.loss_ranks` the newest result, by matrix; empty where there is none."""
    if loss_ranks.empty:
        return loss_ranks
    newest: pd.DataFrame = loss_ranks[loss_ranks["time"] == loss_ranks["time"].max()].set_index("matrix")
    return newest


def loss_line(run: RunTables) -> str:
    """What the newest ranks by loss came to, in a sentence; empty where none were taken."""
    found = newest_loss_ranks(run.loss_ranks)
    if found.empty:
        return ""
    first = found.iloc[0]
    uniform = (
        "" if pd.isna(first["uniform_rank"]) else f"; one rank for all would have to be {int(first['uniform_rank'])}"
    )
    return (
        f"by loss: at these ranks, on average {found['rank'].mean():.1f}, all together, the loss of step "
        f"{int(first['step'])} rises from {first['loss']:.4g} by {first['loss_at_ranks'] - first['loss']:.2g}, within "
        f"{first['tolerance']:g}{uniform}."
    )


def one_buffer_rank(table: pd.DataFrame) -> bool:
    """Whether all matrices have the same b, so that no column is needed for it."""
    return bool(table["buffer_rank"].nunique() < 2)


def cells(table: pd.DataFrame) -> list[list[str]]:
    """Rows of `matrix_table` as text: shape, b where it differs, rank, null rank, their ratio, peak, and the rest."""
    digits = {
        **({} if one_buffer_rank(table) else {"buffer_rank": 0}),
        "intrinsic_rank": 0,
        "null_rank": 0,
        "rank_over_null": 2,
        "peak_rank": 0,
        **({"loss_rank": 0} if "loss_rank" in table else {}),
        "stable_rank": 1,
        "effective_rank": 1,
        "relative_norm": 3,
    }
    return [
        [
            f"{int(row['rows'])}×{int(row['cols'])}",
            *(number(float(row[c]), places) for c, places in digits.items()),
        ]
        for row in table.to_dict("records")
    ]


def number(value: float, digits: int = 0) -> str:
    """So many digits after the point; `-` for NaN, and powers of ten for what would be all zeros."""
    if not np.isfinite(value):
        return "-"
    small = 0 < abs(value) < 10.0**-digits
    return f"{value:.0e}" if small and digits else f"{value:.{digits}f}"


def status_line(run: RunTables) -> str:
    """`finished at step 400 · 30 snapshots of 48 matrices · tracker 1.2 s, 0.81 % of the time`."""
    words = {"live": "live, at step", "finished": "finished at step", "interrupted": "interrupted at step"}
    steps = run.measurements["step"]
    known = [int(column.max()) for column in (steps, run.scalars["step"]) if len(column)]
    parts = [f"{words.get(run.status, run.status)} {max(known)}" if known else f"{run.status}, no step measured yet"]
    snapshots = int(steps.nunique())
    parts.append(f"{snapshots} snapshot{'' if snapshots == 1 else 's'} of {_count(len(run.matrices), 'matrix')}")
    if cost := tracker_cost(run):
        parts.append(f"tracker {cost}")
    return " · ".join(parts)


def tracker_cost(run: RunTables) -> str:
    """The tracker's own seconds and their share of wall time, as far as they were logged."""
    scalars = run.scalars
    seconds = scalars.loc[scalars["name"] == "tracker_seconds", "value"]
    overhead = scalars.loc[scalars["name"] == "tracker_overhead", "value"]
    parts = [f"{float(seconds.iloc[-1]):.3g} s"] if len(seconds) else []
    if len(overhead) and np.isfinite(overhead.iloc[-1]):
        parts.append(f"{100 * float(overhead.iloc[-1]):.2f} % of the time")
    return ", ".join(parts)


def rule_line(run: RunTables) -> str:
    """Which rule the ranks come from."""
    whose = "the paper's rule, eq. 7" if run.definition == "paper" else "the published code's rule"
    used = run.matrices["buffer_rank"] if run.buffer_rank is None else [run.buffer_rank]
    return f"ranks by {whose}, with α = {run.threshold:g} and {buffer_rank_text(used)}"


def verdict(table: pd.DataFrame) -> str:
    """One or two sentences: how the ranks stand beside the ranks of noise."""
    ratio = table["rank_over_null"].dropna()
    if ratio.empty:
        return "No matrix has a finite measurement yet."
    near = int((ratio >= 0.9).sum())
    if len(ratio) == 1:
        return f"The one measured matrix is at {ratio.iloc[0]:.2f} of its null rank, the rank of noise."
    text = (
        f"Half of the matrices are at most at {ratio.median():.2f} of their null rank (the rank of "
        f"noise of the same shape); the lowest is at {ratio.min():.2f}, the highest at {ratio.max():.2f}."
    )
    return text + (f" {near} of {len(ratio)} cannot be told from noise by rank." if near else "")


def remarks(run: RunTables) -> list[str]:
    """Too few points for a curve, problems of the log, a b that is too large, and events out of the ordinary, a line
    each, the latest message of each kind of event.
    """
    lines = [run.too_few_points] if run.too_few_points else []
    lines += [str(problem) for problem in run.problems]
    if (asked := run.info.get("options", {}).get("buffer_rank")) is not None:
        shapes = run.matrices[["rows", "cols"]].itertuples()
        hint = too_large_text(asked, [(str(name), int(rows), int(cols)) for name, rows, cols in shapes])
        lines += [hint] if hint else []
    events = run.events
    for kind, rows in events.groupby("kind", sort=False):
        if kind in _EXPECTED_EVENTS:
            continue
        last = rows.iloc[-1]
        where = f", {last['matrix']}" if isinstance(last["matrix"], str) and last["matrix"] else ""
        # The last line of a traceback is the one that says what went wrong.
        message = str(last["message"]).strip().splitlines()[-1:] or [""]
        times = f" ({len(rows)} times)" if len(rows) > 1 else ""
        lines.append(f"{kind}{times}: step {int(last['step'])}{where}: {message[0]}")
    return lines


def skipped(run: RunTables) -> pd.DataFrame:
    """Parameters that are not watched, grouped by the reason: index note, columns count and parameters (a
    list).
    """
    rows = run.coverage[~run.coverage["watched"].astype(bool)]
    groups = rows.groupby("note", sort=False)["parameter"]
    return pd.DataFrame({"count": groups.size(), "parameters": groups.agg(list)})


def _count(many: int, what: str) -> str:
    plural = {"matrix": "matrices"}.get(what, what + "s")
    return f"{many} {what if many == 1 else plural}"
