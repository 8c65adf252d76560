"""How the ranks of a GPT-2's MLP matrices grew in a run, and how the same rule grows factors that nobody trains.

All is read from the run's snapshots. `trainings` takes one after each check of the ranks (at the paper's sizes the
tracker chooses, so that a growth is seen at the first snapshot after it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from statistics import fmean

import numpy as np
import pandas as pd

from inrank.gpt2.models import TARGETS
from inrank.gpt2.settings import Settings
from inrank.layers import break_even_rank
from inrank.reproduction.experiment import Outcome
from inrank_monitor.ranks import RankRule, explained_ratio, untrained_growth
from inrank_monitor.runs import Run

DRAWS = 5  # of untrained factors, as for a null rank


@dataclass(frozen=True)
class Growth:
    """One rank that grew.

    Attributes:
        matrix: which.
        step: of the snapshot that shows it.
        old_rank: before.
        new_rank: after.
        limit: the largest rank that this check may grow to: old_rank + b, or the layer's largest.
        explained_ratio: g(U V, new_rank, b), eq. 7.
        held: share of Σσ that the first new_rank singular values hold: the solid area of Figure 1.
    """

    matrix: str
    step: int
    old_rank: int
    new_rank: int
    limit: int
    explained_ratio: float
    held: float

    def falls_short(self, threshold: float) -> bool:
        """Whether g is below α although one check could have added more."""
        return self.explained_ratio < threshold and self.new_rank < self.limit


@dataclass(frozen=True)
class Grown:
    """A training whose ranks grew.

    Attributes:
        run: its run.
        settings: that it ran with.
        ranks: of the MLP layers: index step, from 0 (the initial rank) over all snapshots; a column a matrix.
        untrained: the same for factors that nobody trains, the median of the draws: index number of checks so far,
            until all came to rest.
        growths: every growth that the snapshots show, matrix by matrix.
    """

    run: Run
    settings: Settings
    ranks: pd.DataFrame
    untrained: pd.DataFrame
    growths: tuple[Growth, ...]

    def explained(self, matrix: str, rank: int, values: np.ndarray) -> tuple[float, float]:
        """As `explained`, for a spectrum of this matrix's shape."""
        return explained(values, rank, self.settings, min(shape_of(self.run, matrix)))

    def spectrum(self, matrix: str, step: int) -> np.ndarray:
        """Singular values of U V at a snapshot, descending."""
        return spectrum_at(self.run.singular_values(matrix), step)


def read_grown(outcome: Outcome) -> Grown:
    """From the snapshots of a finished training."""
    run, settings = outcome.tables, Settings.read(outcome.directory)
    ranks = _ranks_by_step(run, settings.initial_rank)
    return Grown(run, settings, ranks, _untrained_by_check(run, settings), tuple(_growths(run, settings, ranks)))


def shape_of(run: Run, matrix: str) -> tuple[int, int]:
    """Rows and cols."""
    row = run.matrices.loc[matrix].to_dict()
    return int(row["rows"]), int(row["cols"])


def spectrum_at(spectra: pd.DataFrame, step: int) -> np.ndarray:
    """Row of `run.singular_values`, as far as there are values."""
    row = spectra.to_numpy(dtype=np.float64)[list(spectra.index).index(step)]
    return np.asarray(row[np.isfinite(row)])


def mlp_matrices(run: Run) -> list[str]:
    """Names of the matrices that InRank is applied to (section 6), in model order."""
    return [str(name) for name in run.matrices.index if fnmatch(str(name), TARGETS)]


def _ranks_by_step(run: Run, initial_rank: int) -> pd.DataFrame:
    names = mlp_matrices(run)
    table = run.measurements[run.measurements["matrix"].isin(names)]
    ranks = table.assign(matrix=table["matrix"].astype(str)).pivot(index="step", columns="matrix", values="layer_rank")
    ranks.loc[0] = initial_rank
    return ranks.sort_index()[names].astype(int)


def _growths(run: Run, settings: Settings, ranks: pd.DataFrame) -> Iterator[Growth]:
    for name in mlp_matrices(run):
        spectra = run.singular_values(name)
        rows, cols = shape_of(run, name)
        column = ranks[name].tolist()
        for step, old, new in zip(ranks.index[1:], column[:-1], column[1:], strict=True):
            if new > old:
                ratio, held = explained(spectrum_at(spectra, step), new, settings, min(rows, cols))
                limit = min(old + settings.buffer_rank, break_even_rank(rows, cols))
                yield Growth(name, int(step), old, new, limit, ratio, held)


def explained(values: np.ndarray, rank: int, settings: Settings, size: int) -> tuple[float, float]:
    """G at a rank by the training's own rule, and the share of Σσ that this rank holds.

    Args:
        values: singular values, descending.
        rank: at most `size`.
        settings: of the training.
        size: min(rows, cols).
    """
    ratio = explained_ratio(values, rank, settings.buffer_rank, settings.rule_definition, size)
    return float(ratio), float(values[:rank].sum() / values.sum())


def growth_done(ranks: Sequence[int], share: float) -> int | None:
    """The first place at which this share of the growth from first to last is done; None if nothing grew.

    >>> growth_done([2, 9, 9, 11], 0.75)
    1
    """
    first, last = ranks[0], ranks[-1]
    if last <= first:
        return None
    return next(place for place, rank in enumerate(ranks) if rank - first >= share * (last - first))


def step_when_done(ranks: pd.DataFrame, share: float) -> float | None:
    """Step at which this share of a layer's growth is done, mean over the layers that grew; None if none did."""
    places = [growth_done(ranks[name].tolist(), share) for name in ranks.columns]
    steps = [float(ranks.index[place]) for place in places if place is not None]
    return fmean(steps) if steps else None


def done_by_step(ranks: pd.DataFrame) -> pd.Series:
    """Share of the layers' growth, taken together, that is done at each step; NaN if nothing grew."""
    total = ranks.sum(axis=1).astype(float)
    grown = total.iloc[-1] - total.iloc[0]
    return (total - total.iloc[0]) / (grown if grown > 0 else np.nan)


def _untrained_by_check(run: Run, settings: Settings) -> pd.DataFrame:
    rule, initial_rank = settings.rank_rule, settings.initial_rank
    paths = {name: untrained_paths(*shape_of(run, name), rule, initial_rank) for name in mlp_matrices(run)}
    length = max(len(path) for drawn in paths.values() for path in drawn)
    table = {name: np.median([_lengthened(path, length) for path in drawn], axis=0) for name, drawn in paths.items()}
    return pd.DataFrame(table, index=pd.RangeIndex(length, name="check")).astype(int)


@lru_cache(maxsize=256)
def untrained_paths(rows: int, cols: int, rule: RankRule, initial_rank: int) -> tuple[tuple[int, ...], ...]:
    """Ranks at the checks of each of the draws that a null rank is the median of; cached."""
    drawn = (untrained_draw(rows, cols, rule, initial_rank, seed) for seed in range(DRAWS))
    return tuple(tuple(rank for rank, _ in checks) for checks in drawn)


def untrained_draw(rows: int, cols: int, rule: RankRule, initial_rank: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """One of the draws: `untrained_growth` by a rule."""
    return untrained_growth(
        rows, cols, rule.threshold, rule.buffer_rank_of(rows, cols), rule.definition, initial_rank, seed
    )


def _lengthened(path: Sequence[int], length: int) -> list[int]:
    """A path that stays where it came to rest."""
    return [*path, *[path[-1]] * (length - len(path))]
