"""A state dict's names and numbers, cleared of wrappers and ties, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

from inrank_monitor.checkpoints.contents import same_bits
from inrank_monitor.checkpoints.files import Checkpoint, TensorInfo
from inrank_monitor.checkpoints.named_layers import is_embedding
from inrank_monitor.checkpoints.names import unwrapped

_OUTER = ("module", "_forward_module")


def unreadable(checkpoint: Checkpoint, name: str) -> str | None:
    """Why a tensor's numbers are not the weight's; None if they are."""
    info = checkpoint.tensors[name]
    if info.problem:
        return info.problem
    if info.dtype is not None and not info.dtype.is_floating_point:
        return f"dtype {str(info.dtype).removeprefix('torch.')}"
    scale = next((name + end for end in ("_scale_inv", "_scale") if name + end in checkpoint.tensors), None)
    return f"quantised: its numbers are to be multiplied by {scale}" if scale else None


def refuse_factors(first: Checkpoint) -> None:
    """A state dict in which a weight's update is in two factors: neither of them is a matrix of the model."""
    for name in first.tensors:
        if ".lora_A." in name:
            raise ValueError(
                f"{first.path} holds PEFT's factors among other weights ({name}): save the adapter alone, by "
                "save_pretrained, or the merged model"
            )
        if name.endswith(".U") and f"{name[:-1]}V" in first.tensors:
            raise ValueError(f"{first.path} holds a model converted by inrank ({name}): save it after inrank.merge")


def clean(first: Checkpoint) -> dict[str, TensorInfo]:
    """Tensors by the names that they have in the model inside its wrappers, with what makes them unreadable.

    Of tied ones the embedding comes first, so that the tie is to it.
    """
    tied = _tied(first)
    outer = ""
    while prefix := next((each for each in _OUTER if all(n.startswith(f"{outer}{each}.") for n in first.tensors)), ""):
        outer += f"{prefix}."

    def own(name: str) -> str:
        return unwrapped(name.removeprefix(outer))

    ordered = sorted(first.tensors, key=lambda name: name in tied)
    return {
        own(name): replace(
            first.tensors[name],
            problem=unreadable(first, name),
            shared_with=own(tied[name]) if name in tied else None,
        )
        for name in ordered
    }


def _tied(first: Checkpoint) -> dict[str, str]:
    """Name -> that of the same weight that stands for it: an embedding, where there is one, else the first.

    Tied are names of one memory, and any that repeat an embedding's values (the output layer's).
    """
    groups: dict[str, list[str]] = {}
    for name, info in first.tensors.items():
        groups.setdefault(info.shared_with or name, []).append(name)
    for embedding in [name for name in groups if is_embedding(name) and len(first.tensors[name].shape) == 2]:
        for other in [name for name in groups if not is_embedding(name)]:
            info, own = first.tensors[other], first.tensors[embedding]
            alike = (info.shape, info.dtype, info.problem) == (own.shape, own.dtype, None)
            if alike and same_bits(first.read(other), first.read(embedding)):
                groups[embedding] += groups.pop(other)
    tied: dict[str, str] = {}
    for names in groups.values():
        stands = next((name for name in names if is_embedding(name)), names[0])
        tied |= {name: stands for name in names if name != stands}
    return tied
