"""Which parameters are watched, as which matrices; what is skipped, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from inrank_monitor.command_line import plain_where_needed
from inrank_monitor.matrices.adapted_models import foreign_parameters
from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.matrix import Matrix
from inrank_monitor.matrices.patterns import as_list, glob
from inrank_monitor.matrices.skipping import reason_to_skip
from inrank_monitor.matrices.views import matrices_of, matrices_of_adapter
from inrank_monitor.matrices.weights import Weight, named_weights
from inrank_monitor.notebook import html_rows, never_raises


@dataclass(frozen=True)
class CoverageRow:
    """One parameter: the matrices that it is watched as, or why it is not."""

    parameter: str
    shape: tuple[int, ...]
    watched: bool
    note: str


class Coverage(list[CoverageRow]):
    """Every parameter of the model and what becomes of it; prints as a table."""

    def __str__(self) -> str:
        width = min(max((len(row.parameter) for row in self), default=0), 60)
        lines = [f"{'parameter':<{width}}  {'shape':<16} watched as / skipped because"]
        for row in self:
            shape = "×".join(map(str, row.shape)) or "scalar"
            lines.append(f"{row.parameter:<{width}}  {shape:<16} {'' if row.watched else '– '}{row.note}")
        return plain_where_needed("\n".join(lines))

    @never_raises
    def _repr_html_(self) -> str:
        watched = sum(row.watched for row in self)
        shown = [(row.parameter, "×".join(map(str, row.shape)) or "scalar", row.note) for row in self if row.watched]
        skipped = [
            (row.parameter, "×".join(map(str, row.shape)) or "scalar", row.note) for row in self if not row.watched
        ]
        return html_rows(("watched", "shape", "as"), shown, f"{watched} of {len(self)} parameters are watched") + (
            html_rows(("skipped", "shape", "because"), skipped) if skipped else ""
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def find_matrices(
    model: nn.Module,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    embeddings: bool = False,
    split_parts: bool = True,
) -> tuple[list[Matrix], Coverage]:
    """The watched matrices of a model in its own order, and the coverage of all its parameters.

    Args:
        model: any module; wrappers are looked through.
        include: globs (`*` and `?`) over matrix names; only those that match are watched.
        exclude: globs over matrix names that are not watched.
        embeddings: watch embeddings too.
        split_parts: watch q, k, v and recurrent gates as matrices of their own.

    Raises:
        ValueError: a pattern matches nothing, no matrix is left, or the model is in FSDP1.
    """
    model = unwrap(model)
    _refuse_flattened(model)
    matrices: list[Matrix] = []
    rows: list[CoverageRow] = []
    seen: dict[int, str] = {}
    foreign = foreign_parameters(model)
    for weight in named_weights(model):
        try:
            shape, unreadable = weight.shape(), None
        except Exception as error:  # one odd parameter must not keep the others from being watched
            shape, unreadable = tuple(weight.parameters[0].shape), f"it cannot be read: {type(error).__name__}: {error}"
        reason = foreign.get(id(weight.parameters[0]))
        reason = reason or reason_to_skip(weight, shape, seen, embeddings) or unreadable
        reason = reason or (weight.adapter.refusal() if weight.adapter else None)
        for parameter in weight.parameters:
            seen.setdefault(id(parameter), weight.name)
        found = [] if reason else _views(weight, shape, split_parts)
        matrices += found
        note = reason or f"no 2-D view known for {type(weight.module).__name__}.{weight.attribute}"
        rows.append(CoverageRow(weight.name, shape, bool(found), note))
    kept = _select(matrices, rows, as_list("include", include), as_list("exclude", exclude))
    coverage = _cover(rows, kept)
    if not kept:
        reasons = "; ".join(f"{row.parameter}: {row.note}" for row in coverage[:5])
        raise ValueError(f"there is no matrix to watch in this model ({reasons or 'it has no parameters'})")
    return kept, coverage


def _refuse_flattened(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            where = f"its module {name}" if name else "it"
            raise ValueError(
                f"model cannot be watched: {where} is in FullyShardedDataParallel (FSDP1), which flattens parameters; "
                "torch.distributed.fsdp.fully_shard (FSDP2) keeps them"
            )


def _views(weight: Weight, shape: tuple[int, ...], split_parts: bool) -> list[Matrix]:
    if weight.adapter:
        return matrices_of_adapter(weight.name, weight.adapter, shape, split_parts)
    return matrices_of(weight.name, weight.module, weight.attribute, shape, split_parts)


def _select(
    matrices: list[Matrix], rows: list[CoverageRow], include: list[str] | None, exclude: list[str] | None
) -> list[Matrix]:
    names = [matrix.name for matrix in matrices]
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or []:
            if not any(glob(pattern).fullmatch(name) for name in names):
                raise ValueError(f"{argument} pattern {pattern!r} matches no matrix. {_hint(pattern, names, rows)}")
    wanted, unwanted = [glob(pattern) for pattern in include or ["*"]], [glob(pattern) for pattern in exclude or []]
    return [
        matrix
        for matrix in matrices
        if any(glob.fullmatch(matrix.name) for glob in wanted)
        and not any(glob.fullmatch(matrix.name) for glob in unwanted)
    ]


def _cover(rows: list[CoverageRow], kept: list[Matrix]) -> Coverage:
    """The rows with what is watched described, once the patterns have chosen."""
    of: dict[str, list[Matrix]] = {}
    for matrix in kept:
        of.setdefault(matrix.parameter, []).append(matrix)
    coverage = Coverage()
    for row in rows:
        found, note = of.get(row.parameter, []), row.note
        if found:
            note = ", ".join(_describe(matrix) for matrix in found[:4]) + (", …" if len(found) > 4 else "")
            if isinstance(found[0].module, Adapter):
                note += f" ({found[0].module.note()})"
        elif row.watched:
            note = "left out by include/exclude"
        coverage.append(CoverageRow(row.parameter, row.shape, bool(found), note))
    return coverage


def _describe(matrix: Matrix) -> str:
    part = f"[{matrix.part}] " if matrix.part else ""
    return f"{part}{matrix.rows}×{matrix.cols}" + (" in factors" if matrix.in_factors else "")


def _hint(pattern: str, names: list[str], rows: list[CoverageRow]) -> str:
    skipped = [row for row in rows if not row.watched and glob(pattern).fullmatch(row.parameter)]
    if skipped:
        return f"It matches only what is skipped: {skipped[0].parameter}: {skipped[0].note}."
    near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return f"Names look like {', '.join(near)}."
