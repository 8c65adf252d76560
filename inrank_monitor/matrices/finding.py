"""Which parameters are watched, as which matrices; what is skipped, and why."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from inrank_monitor.console import html_rows, never_raises, plain_where_needed
from inrank_monitor.matrices.adapted_models import foreign_parameters
from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.layout import Parts
from inrank_monitor.matrices.matrix import Matrix
from inrank_monitor.matrices.patterns import as_list
from inrank_monitor.matrices.skipping import reason_to_skip
from inrank_monitor.matrices.splitting import Splitting
from inrank_monitor.matrices.views import matrices_of, matrices_of_adapter
from inrank_monitor.matrices.weights import Weight, named_weights
from inrank_monitor.naming import matching, near_names, select_names


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
    parts: Mapping[str, Parts] | None = None,
    although_frozen: Container[str] = (),
    became_factors: Container[str] = (),
) -> tuple[list[Matrix], Coverage]:
    """The watched matrices of a model in its own order, and the coverage of all its parameters.

    Args:
        model: any module; wrappers are looked through.
        include: what is watched alone: names as coverage or a report prints them, or globs (`*` and `?`) over them; a
            weight's or a layer's name means all parts of it.
        exclude: what is not watched, in the same way.
        embeddings: watch embeddings too.
        split_parts: watch q, k, v, gate and up of fused projections, and recurrent gates as matrices of their own,
            where the model says certainly how they lie.
        parts: what it does not say: glob over the names of weights or layers -> names of equal parts, or names with
            their rows (`{"q": 64, "k": 16, "v": 16}`; rows of one head if every head has its own); None leaves whole.
        although_frozen: names of weights that are watched even if nothing trains them.
        became_factors: names of weights in whose place there are factors now, and that are watched as they were before.

    Raises:
        ValueError: a pattern matches nothing, parts do not fit, no matrix is left, or the model is in FSDP1.
    """
    model = unwrap(model)
    _refuse_flattened(model)
    splitting = Splitting(model, split_parts, parts)
    matrices: list[Matrix] = []
    rows: list[CoverageRow] = []
    seen: dict[int, str] = {}
    foreign = foreign_parameters(model)
    for weight in named_weights(model, became_factors):
        try:
            shape, unreadable = weight.shape(), None
        except Exception as error:  # one odd parameter must not keep the others from being watched
            shape, unreadable = tuple(weight.parameters[0].shape), f"it cannot be read: {type(error).__name__}: {error}"
        reason = foreign.get(id(weight.parameters[0]))
        reason = reason or reason_to_skip(weight, shape, seen, embeddings, weight.name in although_frozen)
        reason = reason or unreadable
        reason = reason or (weight.adapter.refusal() if weight.adapter else None)
        for parameter in weight.parameters:
            seen.setdefault(id(parameter), weight.name)
        found = [] if reason else _views(weight, shape, splitting)
        matrices += found
        note = reason or f"no 2-D view known for {type(weight.module).__name__}.{weight.attribute}"
        rows.append(CoverageRow(weight.name, shape, bool(found), note))
    splitting.check_used(rows)
    kept = _select(matrices, rows, as_list("include", include), as_list("exclude", exclude))
    coverage = _cover(rows, kept, splitting.notes)
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


def _views(weight: Weight, shape: tuple[int, ...], splitting: Splitting) -> list[Matrix]:
    layout = splitting.layout(weight, shape)
    if weight.adapter:
        return matrices_of_adapter(weight.name, weight.adapter, shape, layout)
    return matrices_of(weight.name, weight.module, weight.attribute, shape, layout)


def _select(
    matrices: list[Matrix], rows: list[CoverageRow], include: list[str] | None, exclude: list[str] | None
) -> list[Matrix]:
    names = [matrix.name for matrix in matrices]

    def meant(argument: str, patterns: list[str] | None) -> set[str]:
        found: set[str] = set()
        for pattern in patterns or []:
            try:
                these = select_names(pattern, names)
            except LookupError as error:
                raise ValueError(f"{argument} pattern {error}") from None
            if not these:
                raise ValueError(f"{argument} pattern {pattern!r} matches no matrix. {_hint(pattern, names, rows)}")
            found |= set(these)
        return found

    wanted, unwanted = meant("include", include), meant("exclude", exclude)
    return [matrix for matrix in matrices if (include is None or matrix.name in wanted) and matrix.name not in unwanted]


def _cover(rows: list[CoverageRow], kept: list[Matrix], notes: Mapping[str, str]) -> Coverage:
    """The rows with what is watched described, once the patterns have chosen; `notes`: why split or whole."""
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
            if why := notes.get(row.parameter):
                note += f" ({why})"
        elif row.watched:
            note = "left out by include/exclude"
        coverage.append(CoverageRow(row.parameter, row.shape, bool(found), note))
    return coverage


def _describe(matrix: Matrix) -> str:
    part = f"[{matrix.part}] " if matrix.part else ""
    return f"{part}{matrix.rows}×{matrix.cols}" + (" in factors" if matrix.in_factors else "")


def _hint(pattern: str, names: list[str], rows: list[CoverageRow]) -> str:
    left_out = [row for row in rows if not row.watched]
    if skipped := matching(pattern, [row.parameter for row in left_out]):
        row = next(row for row in left_out if row.parameter == skipped[0])
        return f"It matches only what is skipped: {row.parameter}: {row.note}."
    return f"Names look like {', '.join(near_names(pattern, names))}."
