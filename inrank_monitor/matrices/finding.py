"""Which parameters are watched, as which matrices; what is skipped, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor, nn

from inrank_monitor.matrices.adapted_models import adapters_of, added_by_peft, foreign_parameters, plain_path
from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.matrix import LowRankUpdate, Matrix, read_parameter
from inrank_monitor.matrices.patterns import as_list, glob
from inrank_monitor.matrices.reparametrized import hooked_weights
from inrank_monitor.matrices.skipping import reason_to_skip
from inrank_monitor.matrices.views import matrices_of, matrices_of_adapter
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
        return "\n".join(lines)

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
    for name, owner, attribute, parameters in _named_weights(model):
        adapter, module = (owner, owner.base) if isinstance(owner, Adapter) else (None, owner)
        lazy = isinstance(parameters[0], nn.parameter.UninitializedParameter) if parameters else False
        try:
            shape, unreadable = () if lazy else _effective_shape(owner, attribute, parameters), None
        except Exception as error:  # one odd parameter must not keep the others from being watched
            shape, unreadable = tuple(parameters[0].shape), f"it cannot be read: {type(error).__name__}: {error}"
        reason = foreign.get(id(parameters[0]))
        reason = reason or reason_to_skip(module, attribute, shape, parameters, seen, embeddings) or unreadable
        reason = reason or (adapter.refusal() if adapter else None)
        for parameter in parameters:
            seen.setdefault(id(parameter), name)
        if reason:
            found = []
        elif adapter:
            found = matrices_of_adapter(name, adapter, shape, split_parts)
        else:
            found = matrices_of(name, module, attribute, shape, split_parts)
        matrices += found
        note = reason or f"no 2-D view known for {type(module).__name__}.{attribute}"
        rows.append(CoverageRow(name, shape, bool(found), note))
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


def _named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module | Adapter, str, list[Tensor]]]:
    """(name, owner, attribute, parameters behind it); factors have attribute ""."""
    added = added_by_peft(model)
    of_adapters: set[int] = set()
    for prefix, module in model.named_modules():
        clean = plain_path(prefix, added)
        if ".parametrizations" in f".{clean}" or hasattr(module, "_orig_mod"):
            continue
        dot = f"{clean}." if clean else ""
        for name, adapter in adapters_of(clean, module):
            of_adapters |= {id(parameter) for parameter in adapter.parameters()}
            yield name, adapter, "", adapter.parameters()
        factors = list(module.update_factors()) if isinstance(module, LowRankUpdate) else []
        if factors:
            yield clean or type(module).__name__, module, "", factors
        for attribute, parametrization in (getattr(module, "parametrizations", None) or {}).items():
            if parameters := list(parametrization.parameters()):
                yield f"{dot}{attribute}", module, attribute, parameters
        hooked = hooked_weights(module)
        for attribute, weight in hooked.items():
            yield f"{dot}{attribute}", module, attribute, [getattr(module, source) for source in weight.sources]
        sources = {source for weight in hooked.values() for source in weight.sources}
        shown = module.used_factors() if factors and hasattr(module, "used_factors") else factors  # the Parameters
        own = {factor.untyped_storage().data_ptr() for factor in shown}  # a factor may be a part of its parameter
        for attribute, parameter in module.named_parameters(recurse=False):
            if attribute in sources or id(parameter) in of_adapters:
                continue
            if not factors or parameter.untyped_storage().data_ptr() not in own:
                yield f"{dot}{attribute}", module, attribute, [parameter]


def _effective_shape(owner: nn.Module | Adapter, attribute: str, parameters: list[Tensor]) -> tuple[int, ...]:
    if isinstance(owner, Adapter):
        return owner.shape
    if attribute == "":
        left, right = owner.update_factors()  # type: ignore[operator]
        return (left.shape[0], right.shape[1])
    if not any(parameter.requires_grad for parameter in parameters):  # a quantised base, say: it is not read
        return tuple(parameters[0].shape)
    return tuple(read_parameter(owner, attribute).shape)


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
