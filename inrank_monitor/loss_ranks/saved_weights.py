"""W0 out of a file or a folder: a state dict as safetensors or torch.save wrote it, in one file or in several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_KEYS = ("state_dict", "model_state_dict", "model", "module")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def read_state(path: Path) -> Mapping[str, Any]:
    """The tensors by name; those of all parts, where a folder holds several.

    Raises:
        FileNotFoundError: there is nothing at this path.
        ValueError: what is there is no state dict.
    """
    if not path.exists():
        raise FileNotFoundError(f"run: there is neither a run nor a checkpoint at {path}")
    if path.is_file():
        return _read(path)
    files: list[Path] = []
    for ending in _ENDINGS:  # of one kind: many folders hold the same weights twice
        files = files or sorted(file for file in path.glob(f"*model*{ending}") if file.is_file())
    if not files:
        raise FileNotFoundError(f"run: {path} holds neither a run nor a file of weights (model{_ENDINGS[0]}, ...)")
    return {name: value for file in files for name, value in _read(file).items()}


def _read(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Mapping[str, Any] = load_file(path)
            return state
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a damaged file
        raise ValueError(f"run: {path} cannot be read as a state dict: {type(error).__name__}: {error}") from error
    for key in _KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]  # type: ignore[no-any-return]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"run: {path} holds no state dict of W0, but {type(content).__name__}")
    return content
