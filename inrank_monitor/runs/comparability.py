"""What stands in the way of comparing runs, in sentences: other rules, other steps, cut spectra, lacking matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from inrank_monitor.naming import without_weight
from inrank_monitor.ranks import RankRule
from inrank_monitor.runs.shared_run import RunState

_MOST_NAMES = 4
Kind = TypeVar("Kind")


class Caveat(NamedTuple):
    """What to mind when runs are compared.

    Attributes:
        title: in a few words.
        text: in a sentence, with the names of the runs.
    """

    title: str
    text: str


def caveats(runs: Mapping[str, RunState]) -> list[Caveat]:
    """All that makes ranks of these runs less comparable than they look; none for fewer than two.

    Args:
        runs: run name -> its state, all by one rule.
    """
    if len(runs) < 2:
        return []
    found = [rule_caveat(runs), cut_caveat(runs), unknown_ranks(runs), schedule_caveat(runs), shape_caveat(runs)]
    return [caveat for caveat in found if caveat]


def rule_caveat(runs: Mapping[str, RunState]) -> Caveat | None:
    """That α, b or the definition differ between the logs, and by which rule all are shown."""
    kinds = _by_kind({name: _rule_text(run.logged_rule) for name, run in runs.items()})
    if len(kinds) < 2:
        return None
    shown = {_rule_text(run.rule) for run in runs.values()}
    now = f"all are recomputed alike, by {shown.pop()}" if len(shown) == 1 else "each is shown by its own"
    return Caveat("other rules", f"The ranks were logged by other rules ({_listed_kinds(kinds)}): {now}.")


def _rule_text(rule: RankRule) -> str:
    b = "b that fits each matrix" if rule.buffer_rank is None else f"b = {rule.buffer_rank}"
    return f"α = {rule.threshold:g}, {b}" + (", published code" if rule.definition == "reference" else "")


def cut_caveat(runs: Mapping[str, RunState]) -> Caveat | None:
    """That not all runs kept the same number of singular values."""
    kinds = _by_kind({name: _cut_kind(run) for name, run in runs.items()})
    if len(kinds) < 2:
        return None
    text = (
        f"The spectra end at other places ({_listed_kinds(kinds)}): what sums over all values is known of whole ones."
    )
    return Caveat("other cuts of the spectrum", text)


def _cut_kind(run: RunState) -> str:
    if run.measured is not None:
        return f"{run.measured} leading values measured, the others estimated"
    return "whole" if run.leading is None else f"{run.leading} leading values"


def unknown_ranks(runs: Mapping[str, RunState]) -> Caveat | None:
    """Of which runs the rule cannot tell some ranks, since their spectra are cut too early for it."""
    found = {}
    for name, run in runs.items():
        measured = run.measurements
        if run.leading is None or measured.empty:
            continue
        finite = np.isfinite(measured["stable_rank"].to_numpy(dtype=float, na_value=np.nan))
        unknown = int((measured["intrinsic_rank"].isna().to_numpy() & finite).sum())
        if unknown:
            found[name] = f"{unknown} of {int(finite.sum())} ranks of {name}"
    if not found:
        return None
    text = f"The rule cannot tell {listed(list(found.values()))}: the cut spectrum ends before the values it looks at."
    return Caveat("ranks that a cut spectrum does not tell", text)


def schedule_caveat(runs: Mapping[str, RunState]) -> Caveat | None:
    """That runs were measured at other steps, as far as both have come."""
    steps = {name: np.unique(run.measurements["step"].to_numpy()) for name, run in runs.items()}
    steps = {name: each for name, each in steps.items() if len(each)}
    common = min((each[-1] for each in steps.values()), default=0)
    kinds = _by_kind({name: tuple(each[each <= common].tolist()) for name, each in steps.items()})
    if len(kinds) < 2:
        return None
    texts: dict[str, list[str]] = {}
    for names in kinds.values():
        each = steps[names[0]]
        texts.setdefault(f"{len(each)} snapshots from step {each[0]} to {each[-1]}", []).extend(names)
    text = f"The runs were measured at other steps ({_listed_kinds(texts)}): peaks and ranks so far depend on it."
    return Caveat("other steps measured", text)


def shape_caveat(runs: Mapping[str, RunState]) -> Caveat | None:
    """That matrices of one name have other shapes."""
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for name, run in runs.items():
        sides = run.matrices[["rows", "cols"]].itertuples()
        for matrix, rows, cols in sides:
            shapes.setdefault(str(matrix), {})[name] = (int(rows), int(cols))
    other = {matrix: found for matrix, found in shapes.items() if len(set(found.values())) > 1}
    if not other:
        return None
    matrix, found = next(iter(other.items()))
    kinds = _by_kind({name: f"{rows}×{cols}" for name, (rows, cols) in found.items()})
    many = f"{len(other)} matrices have" if len(other) > 1 else "A matrix has"
    example = f"{without_weight(matrix)} for one ({_listed_kinds(kinds)})"
    return Caveat("other shapes", f"{many} other shapes, {example}: look at rank over null rank.")


def common_matrices(runs: Mapping[str, RunState]) -> list[str]:
    """The matrices that all of the runs have, in the order of the first."""
    names = [dict.fromkeys(str(name) for name in run.matrices.index) for run in runs.values()]
    return [name for name in names[0] if all(name in others for others in names[1:])] if names else []


def lacking(runs: Mapping[str, RunState], matrix: str | None) -> list[Caveat]:
    """Which runs lack the matrix, or, for a mean over matrices, which matrices each lacks.

    Args:
        runs: run name -> its state.
        matrix: full name; None: a mean over those that all have.
    """
    if matrix is not None:
        without = [name for name, run in runs.items() if matrix not in run.matrices.index]
        if not without:
            return []
        return [Caveat("a matrix that a run lacks", f"{without_weight(matrix)} is not in {listed(without)}.")]
    everything = list(dict.fromkeys(str(name) for run in runs.values() for name in run.matrices.index))
    absent: dict[str, str] = {}
    for name, run in runs.items():
        here = set(run.matrices.index)
        names = [without_weight(other) for other in everything if other not in here]
        if names:
            absent[name] = f"{name} lacks {listed(names)}"
    if not absent:
        return []
    common = len(common_matrices(runs))
    mean = f"is over the {common} matrices that all of the runs have" if common else "of each run is over its own"
    return [Caveat("matrices that a run lacks", f"{'; '.join(absent.values())}. The mean {mean}.")]


def _by_kind(kind_of: Mapping[str, Kind]) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {}
    for name, kind in kind_of.items():
        kinds.setdefault(kind, []).append(name)
    return kinds


def _listed_kinds(kinds: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{listed(names)}: {kind}" for kind, names in kinds.items())


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more."""
    if len(names) <= _MOST_NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"
