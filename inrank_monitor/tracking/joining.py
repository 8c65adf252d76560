"""Layers that are unfrozen after attach join the run: until then they stood still, so W0 is what they are then.

They are looked for as a step begins, before it changes them, among what was skipped as frozen; the optimizer that steps
must hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from inrank_monitor.distributed import Share, squared_norms
from inrank_monitor.matrices import (
    FROZEN,
    LowRankUpdate,
    Matrix,
    find_matrices,
    initial_weights,
    named_weights,
)
from inrank_monitor.runs import RUN_FILE, RunOptions, read_info
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.started_run import StartedRun, describe_matrix
from inrank_monitor.tracking.watched import Watched


class Joining:
    """The frozen weights of one run.

    Args:
        started: the run; its process trains alone.
        measuring: of this process.
    """

    def __init__(self, started: StartedRun, measuring: Measuring) -> None:
        self._started, self._measuring = started, measuring
        self._frozen: dict[str, list[Tensor]] = {}
        names = {row.parameter for row in started.watched.coverage if row.note == FROZEN}
        if names and started.watched.model is not None:
            self._frozen = {
                weight.name: list(weight.parameters)
                for weight in named_weights(started.watched.model)
                # W0 beside its own update's factors stays: a growth rule asks for its gradient now and then
                if weight.name in names and not isinstance(weight.module, LowRankUpdate)
            }
        self._parameters = [parameter for parameters in self._frozen.values() for parameter in parameters]

    def unfrozen(self, optimizer: Optimizer) -> list[Matrix]:
        """Matrices that the optimizer is about to train for the first time; they are looked for no more."""
        model = self._started.watched.model
        if model is None or not any(parameter.requires_grad for parameter in self._parameters):
            return []
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        names = {
            name
            for name, parameters in self._frozen.items()
            if any(parameter.requires_grad and id(parameter) in held for parameter in parameters)
        }
        if not names:
            return []
        self._frozen = {name: parameters for name, parameters in self._frozen.items() if name not in names}
        self._parameters = [parameter for parameters in self._frozen.values() for parameter in parameters]
        found, coverage = find_matrices(model, **self._started.options.selection)
        here = {row.parameter: row for row in coverage}
        rows = self._started.watched.coverage
        rows[:] = [here.get(row.parameter, row) if row.parameter in names else row for row in rows]
        return [matrix for matrix in found if matrix.parameter in names]

    def release(self) -> None:
        """Let go of the model."""
        self._frozen, self._parameters = {}, []

    def join(self, matrices: Sequence[Matrix], step: int) -> None:
        """Watch these too, from now on.

        Raises:
            OSError: their W0 cannot be written.
        """
        started, measuring = self._started, self._measuring
        watched, info = started.watched, started.info
        first = len(watched.matrices)
        file = started.directory / f"initial_weights-step-{step:08d}.safetensors"
        taken = initial_weights.take(matrices, started.options.initial_weights, file)  # type: ignore[arg-type] # no scan
        own = Share(list(range(len(matrices))), {})
        norms = [square**0.5 for square in squared_norms(matrices, taken, own).values()]
        entries = [describe_matrix(*pair, started.options) for pair in zip(matrices, norms, strict=True)]
        info["matrices"] += [entry | {"since": step} for entry in entries]
        info["coverage"] = [asdict(row) for row in watched.coverage]
        later = {"file": file.name, "sha256": taken.content_hash, "step": step}
        info["initial_weights"].setdefault("later", []).append(later)
        started.watched = replace(watched, matrices=[*watched.matrices, *matrices])
        places = range(first, first + len(matrices))
        measuring.initial = measuring.initial.and_later({matrix.parameter for matrix in matrices}, taken)
        measuring.matrices = started.watched.matrices
        measuring.share = replace(measuring.share, whole=[*measuring.share.whole, *places])
        started.save()


def parameters_of_run(directory: Path) -> set[str]:
    """Names of the weights that the run in a directory watches, whatever their layers have become; none without one."""
    if not (directory / RUN_FILE).is_file():
        return set()
    return {entry["parameter"] for entry in read_info(directory)["matrices"]}


def as_in_run(directory: Path, watched: Watched, options: RunOptions) -> tuple[Watched, list[Matrix]]:
    """The matrices of a run that is taken up, in its order, and apart those of layers that have been unfrozen since.

    A layer that had joined the run is watched although it is frozen again, as where the script unfreezes it later.
    """
    if watched.model is None or not (directory / RUN_FILE).is_file():
        return watched, []
    info = read_info(directory)
    joined = {entry["parameter"] for entry in info["matrices"] if "since" in entry}
    before = parameters_of_run(directory)
    matrices, coverage = find_matrices(
        watched.model, **options.selection, although_frozen=joined, became_factors=before
    )
    known = {entry["name"]: place for place, entry in enumerate(info["matrices"])}
    frozen = {row["parameter"] for row in info["coverage"] if row["note"] == FROZEN}
    late = [matrix for matrix in matrices if matrix.name not in known and matrix.parameter in frozen]
    there = [matrix for matrix in matrices if not any(matrix is one for one in late)]
    there.sort(key=lambda matrix: known.get(matrix.name, len(known)))
    return replace(watched, matrices=there, coverage=coverage), late
