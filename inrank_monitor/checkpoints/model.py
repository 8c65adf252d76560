"""A checkpoint's tensors as matrices: from the model that its config.json describes, or by their names and shapes.

Either way `find_matrices` decides, on a model whose parameters have shapes and no memory, so that a scan watches what
a tracker would have watched and names it alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inrank_monitor.checkpoints.files import Checkpoint, TensorInfo
from inrank_monitor.checkpoints.named_layers import is_embedding, layers_by_name, placeholder
from inrank_monitor.checkpoints.names import match_names, unwrapped
from inrank_monitor.checkpoints.opening import read_json
from inrank_monitor.matrices import Coverage, CoverageRow, Matrix, find_matrices, hooked_weights

CONFIG = "config.json"
_OUTER = ("module", "_forward_module")


class Slot(nn.Module):
    """Holds what one checkpoint says of one parameter, in the place of the module that owns it.

    Attributes:
        held: the parameter alone.
    """

    held: tuple[Tensor, ...] = ()

    @property
    def weight(self) -> Tensor:
        """The parameter."""
        return self.held[0]


@dataclass
class WatchedModel:
    """The matrices of a model that is there only as checkpoints.

    Attributes:
        kind: class name, or what stands for it.
        size: number of parameters.
        matrices: in the model's order; the module of each is a `Slot`, shared by the matrices of one parameter.
        coverage: of every tensor of the first checkpoint.
        note: where names and shapes come from, in a sentence.
        names: parameter -> the names that a checkpoint may hold it by.
    """

    kind: str
    size: int
    matrices: list[Matrix]
    coverage: Coverage
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

    def fill(self, matrix: Matrix, checkpoint: Checkpoint, place: Any) -> None:
        """Let a matrix, and all that are cut from the same parameter, read from this checkpoint."""
        matrix.module.held = (checkpoint.read(place),)  # type: ignore[union-attr]

    def start(self, matrix: Matrix) -> Tensor:
        """W0 of a matrix's parameter, which has been filled from the first checkpoint."""
        return matrix.read()


def watch_checkpoint(first: Checkpoint, model: nn.Module | None, config: Path | None, **selection: Any) -> WatchedModel:
    """What to watch, as the first checkpoint has it.

    Args:
        first: the checkpoint that is W0; a config.json beside it is used.
        model: the model itself, if somebody has it: only its names, kinds and shapes are looked at.
        config: another config.json.
        selection: `find_matrices`' arguments.

    Raises:
        ValueError: nothing is left to watch, a pattern matches nothing, or the model is another one.
    """
    if model is not None:
        return _watch(model, type(model).__name__, "matrices as in the model given", first, selection)
    path = config or first.path.parent / CONFIG
    if config is not None and not config.is_file():
        raise FileNotFoundError(f"there is no {config}")
    reason = "no config.json beside it"
    if path.is_file():
        described = model_of_config(path)
        if isinstance(described, nn.Module):
            kind = type(described).__name__
            shaped = with_shapes(described, first.tensors)
            missing = _missing(shaped, first)
            if not missing:
                return _watch(shaped, kind, f"matrices as {path} describes them ({kind})", first, selection)
            described = f"{kind} has {missing[0]}, which the checkpoint has not"
        reason = f"{path} is not used: {described}"
        if config is not None:
            raise ValueError(reason)
    _refuse_factors(first)
    root, others = layers_by_name(_clean(first, _tied(first)))
    return _watch(root, "state dict", f"matrices by names and shapes alone ({reason})", first, selection, others)


def model_of_config(path: Path) -> nn.Module | str:
    """The transformers model that a config.json describes, without memory for its weights; or why there is none.

    No code that comes with a checkpoint is run.

    Raises:
        ValueError: it is a model of `inrank` in factors, whose weights are not what it computes with.
    """
    try:
        entries = read_json(path)
    except ValueError as error:
        return str(error)
    if "inrank" in entries:
        raise ValueError(f"{path} is of a model converted by inrank: save it after inrank.merge to scan it")
    try:
        import transformers
    except ImportError:
        return "transformers is not installed"
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        name = (config.architectures or ["it names no architecture"])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            return f"{name} is no model of transformers {transformers.__version__}"
        with torch.device("meta"):
            model: nn.Module = kind(config)
    except Exception as error:  # whatever a config makes of it: the reason is said, and names and shapes are left
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return model


def unreadable(checkpoint: Checkpoint, name: str) -> str | None:
    """Why a tensor's numbers are not the weight's; None if they are."""
    info = checkpoint.tensors[name]
    if info.problem:
        return info.problem
    if info.dtype is not None and not info.dtype.is_floating_point:
        return f"dtype {str(info.dtype).removeprefix('torch.')}"
    scale = next((name + end for end in ("_scale_inv", "_scale") if name + end in checkpoint.tensors), None)
    return f"quantised: its numbers are to be multiplied by {scale}" if scale else None


def _refuse_factors(first: Checkpoint) -> None:
    """A state dict in which a weight's update is in two factors: neither of them is a matrix of the model."""
    for name in first.tensors:
        if ".lora_A." in name:
            raise ValueError(
                f"{first.path} holds PEFT's factors among other weights ({name}): save the adapter alone, by "
                "save_pretrained, or the merged model"
            )
        if name.endswith(".U") and f"{name[:-1]}V" in first.tensors:
            raise ValueError(f"{first.path} holds a model converted by inrank ({name}): save it after inrank.merge")


def _tied(first: Checkpoint) -> dict[str, str]:
    """Name -> the name before it of the same weight: known, or an embedding's values once more (the output layer's)."""
    tied = {name: info.shared_with for name, info in first.tensors.items() if info.shared_with}
    embeddings = [name for name, info in first.tensors.items() if is_embedding(name) and len(info.shape) == 2]
    for embedding in embeddings:
        for name, info in first.tensors.items():
            other = first.tensors[embedding]
            alike = (info.shape, info.dtype, info.problem) == (other.shape, other.dtype, None)
            if alike and name not in tied and not is_embedding(name) and _same_bits(first, name, embedding):
                tied[name] = embedding
    return tied


def _same_bits(first: Checkpoint, name: str, other: str) -> bool:
    one, two = (first.read(each).contiguous().view(torch.uint8) for each in (name, other))
    return torch.equal(one, two)


def _clean(first: Checkpoint, tied: Mapping[str, str]) -> dict[str, TensorInfo]:
    """Tensors by the names that they have in the model inside its wrappers, with what makes them unreadable.

    Of tied ones the embedding comes first, so that the tie is to it.
    """
    outer = ""
    while prefix := next((each for each in _OUTER if all(n.startswith(f"{outer}{each}.") for n in first.tensors)), ""):
        outer += f"{prefix}."

    def clean(name: str) -> str:
        return unwrapped(name.removeprefix(outer))

    ordered = sorted(first.tensors, key=lambda name: name in tied)
    return {
        clean(name): replace(
            first.tensors[name],
            problem=unreadable(first, name),
            shared_with=clean(tied[name]) if name in tied else None,
        )
        for name in ordered
    }


def with_shapes(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> nn.Module:
    """The model with these shapes and dtypes in place of parameters; ties stay ties."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found = match_names(names, tensors)
    infos = {
        id(parameter): tensors[found[name]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in found
    }
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # both, so that no identity is used again
    for module in model.modules():
        for attribute, old in module._parameters.items():
            if old is not None:
                info = infos.get(id(old), TensorInfo(tuple(old.shape), old.dtype))
                _, new = made.setdefault(id(old), (old, placeholder(info, old.requires_grad)))
                module._parameters[attribute] = new
    return model


def _missing(model: nn.Module, first: Checkpoint) -> list[str]:
    """Parameters of two dimensions or more that the checkpoint does not have by any of their names."""
    names = _names_of(model)
    found = match_names([name for aliases in names.values() for name in aliases], first.tensors)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    return [
        name
        for name, aliases in names.items()
        if shapes.get(name, 0) >= 2 and not any(alias in found for alias in aliases)
    ]


def _names_of(model: nn.Module) -> dict[str, list[str]]:
    """First name of each parameter -> all its names."""
    by_id: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in by_id.values()}


def _watch(
    model: nn.Module,
    kind: str,
    note: str,
    first: Checkpoint,
    selection: dict[str, Any],
    others: list[CoverageRow] | None = None,
) -> WatchedModel:
    """The model's matrices with slots in place of its modules; `others` are the tensors that are none of its own."""
    matrices, coverage = find_matrices(model, **selection)
    names = {unwrapped(name): [unwrapped(each) for each in aliases] for name, aliases in _names_of(model).items()}
    size = sum(parameter.numel() for parameter in model.parameters())
    watched = WatchedModel(kind, size, [], coverage, note, names)
    places = watched.places(first)
    reasons: dict[str, str] = {}
    slots: dict[str, Slot] = {}
    for matrix in matrices:
        reason = _reason_to_leave_out(matrix, places, first)
        if reason:
            reasons[matrix.parameter] = reason
            continue
        slot = slots.setdefault(matrix.parameter, Slot())
        watched.matrices.append(replace(matrix, module=slot, attribute="weight"))
    watched.names = {name: aliases for name, aliases in names.items() if name in slots}
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
