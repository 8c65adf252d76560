"""Every matrix in one row: where its rank stands and goes, what the other rules say, and what is unusual about it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inrank_monitor.report.digest import matrix_table
from inrank_monitor.report.source import RunTables
from inrank_monitor.runs import FIRST_STEPS

SPARKS = 16
LEAST_PEERS = 4
_FAR = 4.0  # robust deviations from the peers
_FACTOR = 1.5  # and so many times their median, or the same part of it
_UNUSUAL = {
    "intrinsic_rank": "rank",
    "relative_norm": "‖ΔW‖/‖W0‖",
    "stable_rank": "stable rank",
    "signal_rank": "signal rank",
}
_BAD = ("not finite", "has not moved")
_ALARMS = ("norm_exploded", "rank_collapsed", "spike", "stopped_moving")


def overview_table(run: RunTables, places: pd.DataFrame) -> pd.DataFrame:
    """`matrix_table` with depth, kind, energy_rank, signal_share, trend, ranks over time and what is unusual.

    Args:
        run: its tables.
        places: depth and kind by matrix, as `depth_and_kind` has them.

    Returns:
        DataFrame by matrix, in model order: the columns of `matrix_table`, depth and kind (categories), energy_rank,
        signal_share, trend (ranks that a line through the later half of the steps rises by; NaN below four points),
        ranks (a list of at most 16 ranks, evenly over steps) and unusual (text, empty for most).
    """
    measured = run.measurements
    table = matrix_table(run).join(places)
    last = measured[np.isfinite(measured["stable_rank"].astype(float))].drop_duplicates("matrix", keep="last")
    last = last.set_index(last["matrix"].astype(str)).reindex(columns=["energy_rank", "signal_share"])
    table = table.join(last.astype("Float64").astype(float))
    steps, ranks = rank_grid(measured, table.index)
    table["trend"] = trends(steps, ranks)
    kept = np.unique(np.linspace(0, max(len(steps) - 1, 0), SPARKS).round().astype(int))[: len(steps)]
    table["ranks"] = [[float(rank) for rank in row if np.isfinite(rank)] for row in ranks[:, kept]]
    table["unusual"] = unusual(table, run.events)
    return table


def rank_grid(measured: pd.DataFrame, names: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and ranks matrix × step; NaN where there is none."""
    steps = np.unique(measured["step"].to_numpy(dtype=np.int64))
    grid = np.full((len(names), len(steps)), np.nan)
    at = names.get_indexer(pd.Index(measured["matrix"].astype(str)))
    grid[at, np.searchsorted(steps, measured["step"].to_numpy())] = (
        measured["intrinsic_rank"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    )
    return steps, grid


def trends(steps: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """By how many ranks a straight line through the later half of the steps rises there, for each matrix.

    Args:
        steps: (n,), ascending; the first ten are never counted.
        ranks: (matrices, n), NaN where there is none.

    Returns:
        (matrices,), NaN below four points.
    """
    later = (steps > FIRST_STEPS) & (steps >= steps.max(initial=0) / 2)
    found = np.full(len(ranks), np.nan)
    x, y = steps[later].astype(float), ranks[:, later]
    known = np.isfinite(y)
    count = known.sum(axis=1)
    told = count >= 4
    if not told.any():
        return found
    x, y, known, count = x[None, :] * np.ones_like(y[told]), y[told], known[told], count[told]
    dx = np.where(known, x - (np.where(known, x, 0).sum(axis=1) / count)[:, None], 0.0)
    dy = np.where(known, y - (np.where(known, y, 0).sum(axis=1) / count)[:, None], 0.0)
    found[told] = (dx * dy).sum(axis=1) / (dx**2).sum(axis=1) * (x.max() - x.min())
    return found


def unusual(table: pd.DataFrame, events: pd.DataFrame) -> list[str]:
    """Why a matrix stands out, in words; empty where it does not.

    A number stands out that is both far from those of its kind (of all matrices, where the kind has fewer than five):
    1.5 times their median or the same part of it, and four of their robust standard deviations. An update that is not
    finite or zero does, where most are not; and so does a matrix with an alarm.
    """
    said: list[list[str]] = [[] for _ in range(len(table))]
    bad = table["verdict"].isin(_BAD).to_numpy()
    if bad.mean() <= 0.5:
        for place in np.flatnonzero(bad).tolist():
            said[place].append(str(table["verdict"].iloc[place]))
    groups = pd.Series(np.arange(len(table))).groupby(table["kind"].astype(str).to_numpy()).groups.values()
    large = [np.asarray(each) for each in groups if len(each) > LEAST_PEERS]
    small = sorted(set(range(len(table))) - {int(place) for each in large for place in each})
    for column, words in _UNUSUAL.items():
        values = table[column].to_numpy(dtype=float)
        for places, peers, whose in [(each, each, "its kind") for each in large] + [
            (np.array(small, dtype=int), np.arange(len(table)), "all")
        ]:
            for place, factor in _far(values, places, peers):
                said[place].append(f"{words} {_times(factor)} the median of {whose}")
    alarms = events[events["kind"].isin(_ALARMS)]
    where = {str(name): place for place, name in enumerate(table.index)}
    for kind, rows in alarms.groupby("kind", sort=False):
        for name, step in rows.drop_duplicates("matrix", keep="last")[["matrix", "step"]].itertuples(index=False):
            if str(name) in where:
                said[where[str(name)]].append(f"{str(kind).replace('_', ' ')} at step {int(step)}")
    return ["; ".join(each) for each in said]


def standing_out(table: pd.DataFrame) -> list[str]:
    """The unusual matrices of an overview table, to be ringed on its map; none where more than a third of them are."""
    odd = [str(name) for name in table.index[table["unusual"] != ""]]
    return odd if len(odd) <= len(table) / 3 else []


def _far(values: np.ndarray, places: np.ndarray, peers: np.ndarray) -> list[tuple[int, float]]:
    """Which places hold what is far from the peers, and how many times their median it is."""
    logs = np.log(np.maximum(values, 0.5 if np.nanmax(values, initial=0) >= 2 else 1e-12))
    known = logs[peers][np.isfinite(logs[peers])]
    if len(known) <= LEAST_PEERS:
        return []
    middle = float(np.median(known))
    spread = max(1.4826 * float(np.median(abs(known - middle))), 0.05)
    away = logs[places] - middle
    far = np.isfinite(away) & (abs(away) > np.log(_FACTOR)) & (abs(away) > _FAR * spread)
    return [(int(place), float(np.exp(gone))) for place, gone in zip(places[far], away[far], strict=True)]


def _times(factor: float) -> str:
    return f"{factor:.2g} ×"
