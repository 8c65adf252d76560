"""What both reports say about a run, as tables and plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from inrank_monitor.ranks import VERDICTS, buffer_rank_text, cut_text, too_large_text
from inrank_monitor.report.source import RunTables
from inrank_monitor.runs import DIVERGED, find_divergence, peaks, verdicts

_COLUMNS = (
    "step",
    "intrinsic_rank",
    "signal_rank",
    "stable_rank",
    "effective_rank",
    "relative_norm",
)
# A rank that grew is what a run is expected to do; everything else is worth a line.
_EXPECTED_EVENTS = ("rank_grown",)


def matrix_table(run: RunTables) -> pd.DataFrame:
    """Each matrix at its last finite measurement, in model order, all numbers float64.

    Returns:
        DataFrame indexed by matrix: rows, cols, buffer_rank, step, intrinsic_rank, null_rank, rank_over_null_rank,
        signal_rank, peak_rank, peak_step, stable_rank, effective_rank, relative_norm; verdict (text, on the newest
        measurement, finite or not; of a run that diverged, that it did). Where ranks by loss were taken also loss_rank,
        of the newest result. NaN for what is not known, and for a matrix that has no finite measurement.
    """
    table = run.matrices.reindex(columns=["rows", "cols", "buffer_rank", "null_rank"])
    measured = run.measurements
    finite = measured[np.isfinite(measured["stable_rank"].astype(float))]
    last = finite.drop_duplicates("matrix", keep="last")
    last = last.set_index(last["matrix"].astype(str)).reindex(columns=list(_COLUMNS))
    table = table.join(last.astype("Float64")).join(peaks(measured).astype("Float64")).astype(float)
    table["rank_over_null_rank"] = table["intrinsic_rank"] / table["null_rank"].clip(lower=1)
    order = ["rows", "cols", "buffer_rank", "step", "intrinsic_rank", "null_rank", "rank_over_null_rank"]
    order += ["signal_rank", "peak_rank", "peak_step"]
    by_loss = newest_loss_ranks(run.loss_ranks)
    if len(by_loss):
        table["loss_rank"] = by_loss["rank"].astype(float)
        order.append("loss_rank")
    table = table[[*order, "stable_rank", "effective_rank", "relative_norm"]]
    return table.assign(verdict=verdicts(run.matrices, measured, find_divergence(run.scalars, measured)))


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


def shown_columns(heads: Mapping[str, str], table: pd.DataFrame) -> dict[str, str]:
    """The columns of `matrix_table` to show, with their heads; b only where matrices differ in it."""
    left_out = {"buffer_rank"} if table["buffer_rank"].nunique() < 2 else set()
    return {column: head for column, head in heads.items() if column in table and column not in left_out}


def cells(table: pd.DataFrame, columns: Sequence[str]) -> list[list[str]]:
    """Rows of `matrix_table` as text: the shape, then these columns."""
    digits = {"rank_over_null_rank": 2, "stable_rank": 1, "effective_rank": 1, "relative_norm": 3}
    rows = []
    for row in table.to_dict("records"):
        texts = [f"{int(row['rows'])}×{int(row['cols'])}"]
        for column in columns:
            value = row[column]
            texts.append(_text(value) if column == "verdict" else number(float(value), digits.get(column, 0)))
        rows.append(texts)
    return rows


def _text(value: object) -> str:
    return value if isinstance(value, str) else "-"


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


def divergence_line(run: RunTables) -> str:
    """That the run diverged, and how it is known; empty if it did not."""
    found = find_divergence(run.scalars, run.measurements)
    return found.text if found else ""


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
    """One or two sentences: what the newest spectra say beside noise, and how the ranks stand beside those of noise.

    Args:
        table: of `matrix_table`.
    """
    counts = table["verdict"].value_counts()
    if counts.empty or table["step"].isna().all():
        return "No matrix has a finite measurement yet."
    found = ", ".join(f"{counts[each]} {each}" for each in (*VERDICTS, DIVERGED) if each in counts)
    said = f"Of {_count(len(table), 'matrix')}: {found}."
    ratio = table["rank_over_null_rank"].dropna()
    if len(ratio) == 0:
        return said
    if len(ratio) == 1:
        return f"{said} The rank is at {ratio.iloc[0]:.2f} of the null rank, that of noise of the same shape."
    return (
        f"{said} Half of the ranks are at most at {ratio.median():.2f} of their null rank (the rank of "
        f"noise of the same shape); the lowest is at {ratio.min():.2f}, the highest at {ratio.max():.2f}."
    )


def remarks(run: RunTables) -> list[str]:
    """Too few points for a curve, what a cut spectrum leaves open, problems of the log, a b that is too
    large, and events out of the ordinary, a line each, the latest message of each kind of event.
    """
    lines = [line for line in (run.too_few_points, missing_line(run)) if line]
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


def missing_line(run: RunTables) -> str | None:
    """Why numbers are missing, or are estimates, if the spectrum of a matrix was not taken whole."""
    known = run.leading or run.measured
    shorts = run.matrices[["rows", "cols"]].min(axis=1)
    return cut_text(run.leading, run.measured) if known is not None and (shorts > known).any() else None


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
