"""`loss_at_ranks` and `ranks_by_loss`."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from inrank_monitor.loss_ranks.evaluation import Evaluation, Loss
from inrank_monitor.loss_ranks.places import Place
from inrank_monitor.loss_ranks.problem import Problem
from inrank_monitor.loss_ranks.result import CurvePoint, LossRanks
from inrank_monitor.loss_ranks.search import search
from inrank_monitor.loss_ranks.start import Start, find_start
from inrank_monitor.matrices import unwrap

logger = logging.getLogger("inrank_monitor")
_LEAST_EVALUATIONS = 10
_REPEATABLE = 0.05  # of the tolerance: two evaluations of the same may differ by so much


def loss_at_ranks(model: nn.Module, run: Any, loss: Loss, ranks: int | Mapping[str, int]) -> float:
    """The loss with W0 + (leading `ranks` directions of ΔW) in the place of each weight: one evaluation.

    The model comes back to the bit, whatever happens: weights, buffers, modes, gradients, random generators.

    Args:
        model: the live model.
        run: from where updates are counted: a run (`Run`, or its directory), a live tracker, or W0 as a state dict or
            the path of one.
        loss: of no argument, returns one number; evaluated without gradients.
        ranks: one for all matrices, or by name; a matrix that is not named keeps its weight. A rank above the full one
            is the full one.

    Raises:
        ValueError: `run` has no W0 of this model, a rank is negative or of no matrix, or the loss is not finite.
        TypeError: an argument, or what the loss returns, is of a wrong type.
    """
    _check_loss(loss)
    with _evaluation(model, find_start(run), loss) as evaluation:
        value = evaluation.at(_as_array(ranks, evaluation.places))
    if not math.isfinite(value):
        raise ValueError("loss() is not finite at these ranks")
    return value


def ranks_by_loss(
    model: nn.Module,
    run: Any,
    loss: Loss,
    tolerance: float = 0.01,
    max_evaluations: int = 200,
    progress: bool | None = None,
    save: bool = True,
) -> LossRanks:
    """The fewest directions of each update, in parameters all together, that keep the loss within a tolerance.

    The loss is evaluated at most `max_evaluations` times, at the end with all matrices at the ranks that are returned.
    The model comes back to the bit, whatever happens: weights, buffers, modes, gradients, random generators.

    Args:
        model: the live model, best in `eval()` mode.
        run: from where updates are counted: a run (`Run`, or its directory), a live tracker, or W0 as a state dict or
            the path of one.
        loss: of no argument, returns one number, the same at every call: of a fixed batch or held-out text. Evaluated
            without gradients.
        tolerance: how far the loss may rise, above 0.
        max_evaluations: at least 10.
        progress: show a bar. None: where standard error is a terminal.
        save: add the result to the run, if `run` is one.

    Raises:
        ValueError: `run` has no W0 of this model, an argument is out of range, or the loss is not finite or not the
            same twice.
        TypeError: an argument, or what the loss returns, is of a wrong type.
    """
    _check_loss(loss)
    if not tolerance > 0 or not math.isfinite(tolerance):
        raise ValueError(f"tolerance must be above 0 and finite, got {tolerance!r}")
    if isinstance(max_evaluations, bool) or not isinstance(max_evaluations, int):
        raise TypeError(f"max_evaluations must be an integer, got {max_evaluations!r}")
    if max_evaluations < _LEAST_EVALUATIONS:
        raise ValueError(f"max_evaluations must be at least {_LEAST_EVALUATIONS}, got {max_evaluations}")
    start = find_start(run)
    logger.info("ranks by loss: the loss is evaluated at most %d times", max_evaluations)
    with _bar(max_evaluations, progress) as bar, _evaluation(model, start, loss) as evaluation:
        evaluation.told = bar.update
        found = _searched(evaluation, tolerance, max_evaluations)
    found = replace(found, step=start.step)
    if save and start.save is not None:
        start.save(found.columns(), found.curve_columns())
    return found


def _searched(evaluation: Evaluation, tolerance: float, limit: int) -> LossRanks:
    places, full = evaluation.places, evaluation.full
    before = _repeatable(evaluation, full, tolerance)
    moving = [index for index, place in enumerate(places) if float(place.singular_values.sum()) > 0]

    def ranks_of(some: np.ndarray) -> np.ndarray:
        ranks = np.zeros_like(full)  # an update that is zero has rank 0
        ranks[moving] = some
        return ranks

    values = [places[index].singular_values.numpy()[: full[index]] for index in moving]
    costs = [places[index].size.parameters for index in moving]
    curve = [CurvePoint(float(full.mean()), int(full.max(initial=0)), before)]
    lengths = np.array([len(each) for each in values], dtype=np.int64)

    def rise(some: np.ndarray) -> float:
        loss, highest = evaluation.at(ranks_of(some)), int(some.max(initial=0))
        if math.isfinite(loss):
            alike = np.array_equal(some, np.minimum(lengths, highest))
            curve.append(CurvePoint(float(ranks_of(some).mean()), highest if alike else None, loss))
        return loss - before

    problem = Problem(values, costs, rise, tolerance, limit - evaluation.count)
    found = search(problem, [_kind(places[index]) for index in moving])
    return LossRanks(
        ranks={place.name: int(rank) for place, rank in zip(places, ranks_of(found.ranks), strict=True)},
        sizes={place.name: place.size for place in places},
        loss=before,
        loss_at_ranks=before + found.rise,
        tolerance=tolerance,
        uniform_rank=found.uniform,
        evaluations=evaluation.count,
        curve=tuple(curve),
    )


def _repeatable(evaluation: Evaluation, full: np.ndarray, tolerance: float) -> float:
    """The loss of the model as it is, evaluated twice."""
    first, second = evaluation.at(full), evaluation.at(full)
    if not math.isfinite(first) or not math.isfinite(second):
        raise ValueError("loss() is not finite of the model as it is: there is nothing that ranks could keep")
    if abs(first - second) > _REPEATABLE * tolerance:
        raise ValueError(
            f"loss() is not repeatable: {first:.8g}, then {second:.8g} of the same weights, a difference of "
            f"{abs(first - second):.2g} where the tolerance is {tolerance:g}. Call model.eval() before, and evaluate "
            "the same batch, or the same text, at every call"
        )
    return first


def _kind(place: Place) -> tuple[str, int, int]:
    """What matrices have in common that may be grouped: their name without numbers, and their shape."""
    return re.sub(r"\d+", "", place.name), place.size.rows, place.size.cols


def _evaluation(model: nn.Module, start: Start, loss: Loss) -> Evaluation:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    return Evaluation(model, start.matrices_of(model), start.initial, loss)


def _as_array(ranks: int | Mapping[str, int], places: Sequence[Place]) -> np.ndarray:
    names = [place.name for place in places]
    if isinstance(ranks, Mapping):
        if unknown := [name for name in ranks if name not in names]:
            raise ValueError(f"ranks: there is no matrix {unknown[0]!r}; names look like {', '.join(names[:3])}")
        wanted = dict(ranks)
    else:
        wanted = dict.fromkeys(names, ranks)
    for name, rank in wanted.items():
        if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 0:
            raise ValueError(f"ranks must be integers of at least 0, got {rank!r} for {name}")
    return np.array([min(wanted.get(p.name, p.size.full_rank), p.size.full_rank) for p in places], dtype=np.int64)


def _check_loss(loss: Any) -> None:
    if not callable(loss):
        raise TypeError(f"loss must be a function of no argument that returns a number, got {type(loss).__name__}")


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(
        total=total, desc="ranks by loss", unit="evaluation", dynamic_ncols=True, disable=not shown, leave=False
    )
