"""The files that tensors are saved in, one class a format: which tensors one holds, and one tensor at a time.

Files are mapped into memory, so that what is not asked for is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inrank_monitor.checkpoints.contents import numbers_in
from inrank_monitor.checkpoints.pickled import LeftOut, parameters_of, read_pickled, refusal
from inrank_monitor.checkpoints.steps import natural

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes:
        shape: its sides.
        dtype: None if torch has none for it.
        shared_with: name of the first tensor of the same memory, or of the one that was kept, for tied weights.
        problem: why it cannot be read as a plain tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    shared_with: str | None = None
    problem: str | None = None


class Checkpoint(Protocol):
    """A set of named tensors on disk.

    Attributes:
        path: of the file (of the index, where there are several).
    """

    path: Path

    @property
    def numbers(self) -> Mapping[str, int]:
        """What it says itself of where the training was: `step`, `epoch`."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All of them, in the model's order where the format keeps it."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it is stored."""
        ...


class SafetensorsFile:
    """A safetensors file; see `Checkpoint`. The format keeps no order: names are sorted, numbers in them as numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            opened: Any = safe_open(path, framework="pt")
            self._file = opened
            self.tensors = {name: self._info(name) for name in sorted(opened.keys(), key=natural)}
            metadata: dict[str, str] = opened.metadata() or {}
        except (SafetensorError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
        self.numbers = numbers_in(metadata)
        # safetensors' save_model keeps one of tied weights, and says by which names it had the others
        self._kept = {
            name: kept for name, kept in metadata.items() if kept in self.tensors and name not in self.tensors
        }
        for name, kept in self._kept.items():
            self.tensors[name] = replace(self.tensors[kept], shared_with=kept)

    def _info(self, name: str) -> TensorInfo:
        part = self._file.get_slice(name)
        dtype = _DTYPES.get(part.get_dtype())
        return TensorInfo(tuple(part.get_shape()), dtype, None, None if dtype else f"dtype {part.get_dtype()}")

    def read(self, name: str) -> Tensor:
        """See `Checkpoint`."""
        tensor: Tensor = self._file.get_tensor(self._kept.get(name, name))
        return tensor


class TorchFile:
    """A `torch.save` file that is a state dict or holds one; see `Checkpoint`.

    Args:
        path: of the file. One in the format of before torch 1.6 cannot be mapped and is read whole.
        key: under which the state dict is, dotted for one inside another; found by itself where that is clear.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path = path
        content = read_pickled(path)
        self.numbers = numbers_in(content if isinstance(content, Mapping) else {})
        state = find_state(content, key, path)
        self._state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self.tensors: dict[str, TensorInfo] = {}
        first: dict[Any, str] = {}
        for name, value in self._state.items():
            problem = _problem(value)
            place = (value.data_ptr(), value.shape, value.stride()) if not problem and value.numel() else name
            shared = first.setdefault(place, name)
            self.tensors[name] = TensorInfo(
                tuple(value.shape), value.dtype, None if shared == name else shared, problem
            )

    def read(self, name: str) -> Tensor:
        """See `Checkpoint`."""
        return self._state[name].detach()


def find_state(content: Any, key: str | None, path: Path) -> Mapping[str, Any]:
    """The state dict in what a `torch.save` file holds.

    Args:
        content: of the file.
        key: where it is; `"ema.model"` is `content["ema"]["model"]`. None: one of the usual places, else the content
            itself, else the only state dict that there is one level down.
        path: for messages.

    Raises:
        ValueError: there is none there, or several are possible.
    """
    if key is not None:
        return _at_key(content, key, path)
    content = _opened(content)
    top: Mapping[str, Any] = content if _is_named(content) else {}
    opened = {name: _opened(value) for name, value in top.items()}
    within: dict[str, Mapping[str, Any]] = {name: value for name, value in opened.items() if _is_state(value)}
    usual = [name for name in _STATE_KEYS if name in within]
    if usual:
        return within[usual[0]]
    if _is_state(top) or (top and all(isinstance(value, Tensor) for value in top.values())):  # a shard of vectors
        return top
    if len(within) == 1:
        return next(iter(within.values()))
    whole = next((one for one in (content, *map(opened.get, _STATE_KEYS)) if isinstance(one, LeftOut)), None)
    if whole is not None and not within:
        raise refusal(path, whole.name)
    kind = f"keys {', '.join(map(repr, list(content)[:8]))}" if isinstance(content, Mapping) else type(content).__name__
    which = f"several state dicts ({', '.join(map(repr, within))})" if within else f"no state dict at its top ({kind})"
    raise ValueError(f"{path} holds {which}: say where the weights are by key= (--key)")


def _at_key(content: Any, key: str, path: Path) -> Mapping[str, Any]:
    found, rest = content, key
    while rest:
        options = [name for name in found if rest == name or rest.startswith(f"{name}.")] if _is_named(found) else []
        if not options:
            there = ", ".join(map(repr, list(found)[:8])) if isinstance(found, Mapping) else "no keys"
            raise ValueError(f"{path} holds nothing under key {key!r}; there are {there}")
        found, rest = _opened(found[options[0]]), rest[len(options[0]) + 1 :]
    if not _is_state(found):
        raise ValueError(f"{path}: what is under key {key!r} is no state dict: it holds no matrix")
    return found  # type: ignore[no-any-return]


def _opened(value: Any) -> Any:
    """A whole module as its state dict; anything else as it is."""
    return (dict(parameters_of(value)) or value) if isinstance(value, LeftOut) else value


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_state(value: Any) -> bool:
    """Whether this is names to tensors, at least one of them a matrix."""
    return _is_named(value) and any(isinstance(entry, Tensor) and entry.ndim >= 2 for entry in value.values())


def _problem(value: Tensor) -> str | None:
    if hasattr(value, "placements"):
        return "a piece of a distributed tensor"
    if value.layout != torch.strided:
        return f"layout {value.layout}"
    return "quantised" if value.is_quantized else None
