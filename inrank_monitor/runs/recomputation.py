"""Ranks drawn anew from stored spectra, for another α, b or definition than the run was logged with.

What the tracker logs at a snapshot, it draws from that snapshot's spectra and the rank reached before; the same is done
here for all snapshots, and later for those that a live run has added since. Only the leading values that decide a
rank are looked at: an eq. 7 ratio at r needs r + b of them. What a cut spectrum ends before is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from inrank_monitor.ranks import RankRule, explained_ratio_curve, is_known_rank, null_rank

if TYPE_CHECKING:
    from inrank_monitor.runs.run import Run

_FIRST_REACH = 64  # a trained update's rank is mostly below this; the search goes on where it is not
_CHUNK_ROWS = 1024  # spectra at a time, so that the running sums stay in the processor's cache

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # matrix, step, offsets, values


def logged_rule(run: Run) -> RankRule:
    """The rule that a run was logged with."""
    return run.options.rule


def recompute(run: Run, rule: RankRule) -> pd.DataFrame:
    """`run.measurements` with intrinsic_rank, running_rank, explained_ratio, null_rank and its ratio by another rule.

    For the rule that the run was logged with, the logged table itself.
    """
    return Recomputation(run, rule).table()


class Recomputation:
    """The measurements of one run by one rule; `table` does the work for snapshots that it has not seen yet."""

    def __init__(self, run: Run, rule: RankRule) -> None:
        self.run, self.rule = run, rule
        self._forget()

    def _forget(self) -> None:
        self._seen: list[tuple[int, int]] = []
        self._parts: list[pd.DataFrame] = []
        self._running = np.zeros(len(self.run.matrices), dtype=np.int64)

    def table(self) -> pd.DataFrame:
        """One row a matrix and step, in the order of `run.measurements`."""
        logged = self.run.measurements
        if self.rule == logged_rule(self.run) or logged.empty:
            return logged
        batches = self.run.spectra()
        marks = [(int(steps[0]), len(steps)) for _, steps, _, _ in batches]
        if marks[: len(self._seen)] != self._seen:  # a resumed run took back some of its last steps
            self._forget()
        factored = factored_matrices(self.run)
        sizes, shorts, buffer_ranks = self._sizes(factored), self._short_sides(), self._buffer_ranks()
        for chunk in _chunks(batches[len(self._seen) :]):
            self._parts.append(self._known(self._ranks(chunk, sizes, buffer_ranks), shorts, buffer_ranks))
        self._seen = marks
        ranks = pd.concat(self._parts, ignore_index=True)
        ranks = ranks.sort_values(["step", "matrix"], kind="stable", ignore_index=True)
        nulls = null_ranks(self.run, self.rule, factored)
        null = nulls[ranks["matrix"].to_numpy()]
        return logged.assign(
            intrinsic_rank=ranks["intrinsic_rank"].astype("Int32"),
            running_rank=ranks["running_rank"].astype("Int32"),
            explained_ratio=ranks["explained_ratio"],
            null_rank=pd.array(null, dtype="Int32"),
            rank_over_null_rank=ranks["intrinsic_rank"] / np.maximum(null, 1),
        )

    def _sizes(self, factored: np.ndarray) -> np.ndarray:
        """Full length of each spectrum where zeros beyond what is stored belong to it, else 0."""
        return np.where(factored, self._short_sides(), 0)

    def _short_sides(self) -> np.ndarray:
        return np.asarray(self.run.matrices[["rows", "cols"]].min(axis=1).to_numpy(), dtype=np.int64)

    def _known(self, ranks: pd.DataFrame, shorts: np.ndarray, buffer_ranks: np.ndarray) -> pd.DataFrame:
        """NaN in place of what is not known, because the update is not finite or its spectrum is cut."""
        codes, count = ranks["matrix"].to_numpy(), ranks["count"].to_numpy()
        cut = np.asarray((count < shorts[codes]) & ranks["cut"].to_numpy())

        def known(column: str) -> np.ndarray:
            at = ranks[column].to_numpy()
            return np.asarray(~cut | is_known_rank(at, buffer_ranks[codes], count, self.rule.definition))

        finite = ranks["intrinsic_rank"] >= 0
        return ranks.assign(
            intrinsic_rank=ranks["intrinsic_rank"].astype(float).where(finite & known("intrinsic_rank")),
            running_rank=ranks["running_rank"].astype(float).where(finite & known("running_rank")),
            explained_ratio=ranks["explained_ratio"].where(known("ratio_at")),
        )

    def _buffer_ranks(self) -> np.ndarray:
        shapes = self.run.matrices[["rows", "cols"]].to_numpy(dtype=int).tolist()
        return np.array([self.rule.buffer_rank_of(rows, cols) for rows, cols in shapes])

    def _ranks(self, chunk: Sequence[Batch], sizes: np.ndarray, buffer_ranks: np.ndarray) -> pd.DataFrame:
        """Intrinsic rank (−1: not finite), running rank and explained ratio of the rows of some batches."""
        codes = np.concatenate([batch[0] for batch in chunk]).astype(np.int64)
        lengths = np.concatenate([np.diff(batch[2]) for batch in chunk])
        keep = (codes >= 0) & (codes < len(sizes))
        intrinsic = np.where(lengths > 0, 0, -1)
        curves: list[tuple[_Rows, np.ndarray]] = []
        known = np.where(keep, codes, 0)
        stored = self.run.leading
        ends = np.ones_like(lengths, dtype=bool) if stored is None else lengths < stored
        kinds = np.stack([lengths, np.maximum(np.where(ends, sizes[known], 0), lengths), buffer_ranks[known]], axis=1)
        for length, size, buffer_rank in np.unique(kinds[keep], axis=0).tolist():
            places = np.flatnonzero(keep & (kinds == (length, size, buffer_rank)).all(axis=1))
            alike = _Rows(chunk, places, length, size, replace(self.rule, buffer_rank=buffer_rank))
            if length:
                start = max(_FIRST_REACH, int(self._running[codes[alike.places]].max()))
                intrinsic[alike.places], curve = _search(alike, start)
                curves.append((alike, curve))
        before, running = self._grow(codes, intrinsic, keep)
        ratio, cut, ratio_at = np.full(len(codes), np.nan), np.zeros(len(codes), bool), np.zeros(len(codes), np.int64)
        for alike, curve in curves:
            at = np.clip(before[alike.places], 1, alike.size)
            if at.max() > curve.shape[1]:
                curve = _curve(alike, int(at.max()))
            ratio[alike.places], ratio_at[alike.places] = curve[np.arange(len(at)), at - 1], at
            cut[alike.places] = alike.is_cut()
        steps = np.concatenate([batch[1] for batch in chunk])
        columns = {"step": steps, "matrix": codes, "intrinsic_rank": intrinsic, "running_rank": running}
        beside = {"explained_ratio": ratio, "ratio_at": ratio_at, "count": lengths, "cut": cut}
        return pd.DataFrame({**columns, **beside})[keep]

    def _grow(self, codes: np.ndarray, intrinsic: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The running rank before and after each row; a non-finite row changes nothing."""
        before, after = np.zeros_like(intrinsic), np.zeros_like(intrinsic)
        order = np.argsort(codes, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
            rows = rows[keep[rows]]
            if len(rows):
                code = codes[rows[0]]
                after[rows] = np.maximum(np.maximum.accumulate(intrinsic[rows]), self._running[code])
                before[rows] = np.concatenate([self._running[code : code + 1], after[rows][:-1]])
                self._running[code] = after[rows[-1]]
        return before, after


def factored_matrices(run: Run) -> np.ndarray:
    """Which matrices, in model order, are layers held in factors: those whose layer rank was logged."""
    measured = run.measurements
    named = set(measured.loc[measured["layer_rank"].notna(), "matrix"].astype(str).unique())
    return np.array([name in named for name in run.matrices.index], dtype=bool)


def null_ranks(run: Run, rule: RankRule, factored: np.ndarray) -> np.ndarray:
    """The null rank of each matrix, in model order, by a rule."""
    if rule == logged_rule(run):
        return run.matrices["null_rank"].to_numpy()
    options = (rule.threshold, rule.buffer_rank, rule.definition)
    shapes = [(entry["rows"], entry["cols"], entry.get("adapter_rank")) for entry in run.info["matrices"]]
    return np.array(
        [
            null_rank(rows, cols, *options, "factors" if product else "gaussian", rank=rank)
            for (rows, cols, rank), product in zip(shapes, factored, strict=True)
        ],
        dtype=np.int64,
    )


def _chunks(batches: Sequence[Batch]) -> list[list[Batch]]:
    chunks: list[list[Batch]] = []
    rows = _CHUNK_ROWS
    for batch in batches:
        if rows >= _CHUNK_ROWS:
            chunks.append([])
            rows = 0
        chunks[-1].append(batch)
        rows += len(batch[0])
    return chunks


class _Rows(NamedTuple):
    """Spectra that can be searched at once.

    Attributes:
        chunk: the batches that hold them.
        places: of the rows in the chunk.
        length: how many values of each are stored.
        size: how many there are, with the zeros beyond.
        rule: with their b.
    """

    chunk: Sequence[Batch]
    places: np.ndarray
    length: int
    size: int
    rule: RankRule

    def is_cut(self) -> np.ndarray:
        """Which may have had more values above zero than are stored."""
        return np.asarray((self.length == self.size) & (self.leading(self.length)[:, -1] > 0))

    def leading(self, count: int) -> np.ndarray:
        """The first `count` values of each."""
        parts = []
        start = 0
        for codes, _, offsets, values in self.chunk:
            inside = self.places[(self.places >= start) & (self.places < start + len(codes))] - start
            if len(inside):
                parts.append(values[np.asarray(offsets)[inside][:, None] + np.arange(count)])
            start += len(codes)
        return np.concatenate(parts)


def _curve(rows: _Rows, reach: int) -> np.ndarray:
    """g(1..reach); all of it where all values are needed."""
    buffer_rank, definition = rows.rule.buffer_rank, rows.rule.definition
    assert buffer_rank is not None
    count = reach + buffer_rank
    if definition == "reference" or count > rows.length:
        return explained_ratio_curve(rows.leading(rows.length), buffer_rank, definition, rows.size)
    return explained_ratio_curve(rows.leading(count), buffer_rank)[:, :reach]


def _search(rows: _Rows, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsic ranks, and the ratio curves as far as they were needed."""
    nothing = ~(rows.leading(1)[:, 0] > 0)
    rule = rows.rule
    while True:
        curve = _curve(rows, reach)
        reached = curve >= rule.threshold if rule.definition == "paper" else curve > rule.threshold
        if curve.shape[1] == rows.size:
            reached[:, -1] = True
        if (reached.any(axis=1) | nothing).all():
            return np.where(nothing, 0, reached.argmax(axis=1) + 1), curve
        reach *= 4
