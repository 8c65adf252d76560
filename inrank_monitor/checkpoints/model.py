"""A checkpoint's tensors as matrices, through a model whose parameters have shapes and no memory.

`find_matrices` decides on it, so that a scan watches what a tracker would have watched and names it alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from inrank_monitor.checkpoints.described import names_of
from inrank_monitor.checkpoints.files import Checkpoint
from inrank_monitor.checkpoints.names import match_names, unwrapped
from inrank_monitor.checkpoints.state_dict import unreadable
from inrank_monitor.matrices import Coverage, CoverageRow, Matrix, find_matrices, hooked_weights, layer_of
from inrank_monitor.tracking import Watched


class Slot(nn.Module):
    """Holds what one checkpoint says of one parameter, in the place of the module that owns it.

    Attributes:
        held: the parameter alone.
        layer_described: what the owner is; see `layer_of`.
    """

    held: tuple[Tensor, ...] = ()
    layer_described: dict[str, Any] | None = None

    @property
    def weight(self) -> Tensor:
        """The parameter."""
        return self.held[0]


@dataclass
class WatchedModel(Watched):
    """The matrices of a model that is there only as checkpoints.

    Attributes:
        matrices: the module of each is a `Slot`, shared by the matrices of one parameter.
        coverage: of every tensor of the first checkpoint.
        note: where names and shapes come from, in a sentence.
        names: parameter -> the names that a checkpoint may hold it by.
    """

    note: str
    names: dict[str, list[str]]

    begins_at_first = True  # the first checkpoint is W0

    def places(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Parameter -> where it is in a checkpoint, for those that are there and can be read as numbers."""
        found = match_names([name for names in self.names.values() for name in names], checkpoint.tensors)
        places = {}
        for parameter, names in self.names.items():
            held = [found[name] for name in names if name in found and not unreadable(checkpoint, found[name])]
            if held:
                places[parameter] = held[0]
        return places

    def differing(self, first: Checkpoint, other: Checkpoint) -> list[str]:
        """Names of the matrices that another checkpoint does not hold, or holds in another shape than the first."""
        at_first, here = self.places(first), self.places(other)

        def shape(checkpoint: Checkpoint, place: Any) -> Any:
            return checkpoint.tensors[place].shape if isinstance(place, str) else None

        return [
            matrix.name
            for matrix in self.matrices
            if matrix.parameter not in here
            or shape(first, at_first[matrix.parameter]) != shape(other, here[matrix.parameter])
        ]

    def fill(self, matrix: Matrix, checkpoint: Checkpoint, place: Any) -> None:
        """Let a matrix, and all that are cut from the same parameter, read from this checkpoint."""
        matrix.module.held = (checkpoint.read(place),)  # type: ignore[union-attr]

    def start(self, matrix: Matrix) -> Tensor:
        """W0 of a matrix's parameter, which has been filled from the first checkpoint."""
        return matrix.read()


class Described(NamedTuple):
    """A model that stands for a checkpoint's, and where it comes from.

    Attributes:
        model: with the checkpoint's shapes, or the true one.
        kind: its class name, or what stands for it.
        note: where names and shapes come from, in a sentence.
        others: the checkpoint's tensors that are none of its parameters, where they are known already.
    """

    model: nn.Module
    kind: str
    note: str
    others: list[CoverageRow] | None = None


def watched_model(described: Described, first: Checkpoint, selection: dict[str, Any]) -> WatchedModel:
    """The model's matrices with slots in place of its modules; `others` are the tensors that are none of its own."""
    model = described.model
    matrices, coverage = find_matrices(model, **selection)
    names = {unwrapped(name): [unwrapped(each) for each in aliases] for name, aliases in names_of(model).items()}
    size = sum(parameter.numel() for parameter in model.parameters())
    kept: list[Matrix] = []
    watched = WatchedModel(described.kind, size, "cpu", kept, coverage, described.note, names)
    places = watched.places(first)
    reasons: dict[str, str] = {}
    slots: dict[str, Slot] = {}
    for matrix in matrices:
        reason = _reason_to_leave_out(matrix, places, first)
        if reason:
            reasons[matrix.parameter] = reason
            continue
        slot = slots.setdefault(matrix.parameter, Slot())
        slot.layer_described = layer_of(matrix)
        kept.append(replace(matrix, module=slot, attribute="weight"))
    watched.names = {name: aliases for name, aliases in names.items() if name in slots}
    others = described.others
    if others is None:
        meant = set(match_names([alias for aliases in names.values() for alias in aliases], first.tensors).values())
        others = [
            CoverageRow(name, info.shape, False, "no parameter of the model")
            for name, info in first.tensors.items()
            if name not in meant
        ]
    watched.coverage = Coverage([*_with_reasons(coverage, reasons), *others])
    if not watched.matrices:
        raise ValueError(f"there is nothing to measure in {first.path}: {'; '.join(list(reasons.values())[:3])}")
    return watched


def _reason_to_leave_out(matrix: Matrix, places: Mapping[str, str], first: Checkpoint) -> str | None:
    module, attribute = matrix.module, matrix.attribute
    if matrix.in_factors or not isinstance(module, nn.Module):
        return "held in factors: not measured from checkpoints"
    if parametrize.is_parametrized(module, attribute) or attribute in hooked_weights(module):
        return "computed from other parameters: not measured from checkpoints"
    place = places.get(matrix.parameter)
    if place is None:
        return f"not in {first.path.name}"
    shape = tuple(module._parameters[attribute].shape)  # type: ignore[union-attr]
    if first.tensors[place].shape != shape:
        raise ValueError(f"{first.path} holds {place} as {first.tensors[place].shape}, the model has it as {shape}")
    return None


def _with_reasons(coverage: Coverage, reasons: Mapping[str, str]) -> Iterator[CoverageRow]:
    for row in coverage:
        reason = reasons.get(row.parameter)
        yield replace(row, watched=False, note=reason) if reason else row
