"""Opens a checkpoint, whatever it is on disk: a file, several with an index, or a folder that holds one of these.

What cannot be read is refused with the way out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from inrank_monitor.checkpoints.contents import numbers_in, same_bits
from inrank_monitor.checkpoints.files import Checkpoint, SafetensorsFile, TorchFile
from inrank_monitor.checkpoints.steps import SUFFIXES

ADAPTER_CONFIG = "adapter_config.json"
TRAINER_STATE = "trainer_state.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_NO_WEIGHTS = re.compile(
    r"(^|[-_.])(optimi[sz]er|optim|opt|(lr_)?scheduler|sched|scaler|sampler|training_args|rng_state|random_states)s?"
    r"(?![a-z])",
    re.IGNORECASE,
)
DCP_COMMAND = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"


class Shards:
    """Several files and an index that says which tensor is in which; see `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        places = read_json(path).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{path} is no index of a sharded checkpoint: it has no weight_map")
        files = {file: _open_file(path.parent / file, None) for file in sorted(set(places.values()))}
        self._places = {name: files[file] for name, file in places.items()}
        for name, file in self._places.items():
            if name not in file.tensors:
                raise ValueError(f"{path} says that {name} is in {file.path.name}, but it is not")
        self.tensors = {name: file.tensors[name] for name, file in self._places.items()}
        self.numbers: dict[str, int] = {}

    def read(self, name: str) -> Tensor:
        """See `Checkpoint`."""
        return self._places[name].read(name)


def open_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """A checkpoint: a safetensors or `torch.save` file, a sharded one's index, or a folder that holds one of these.

    Args:
        path: of the file or folder.
        key: of the state dict in a `torch.save` file; see `TorchFile`.

    Raises:
        FileNotFoundError: there is nothing, or nothing that is a checkpoint.
        ValueError: it is damaged, or of a kind that must be converted first.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.is_file():
        return _open_file(path, key)
    file = weights_file(path)
    if file is None:
        raise _refusal(path)
    return _open_file(file, key)


def numbers_of(path: Path, key: str | None = None) -> dict[str, int]:
    """What a checkpoint says itself of where the training was: `step` and `epoch`, as far as it does.

    Raises:
        ValueError: it cannot be read; see `open_checkpoint`.
    """
    state = path / TRAINER_STATE
    if state.is_file():
        return numbers_in(read_json(state))
    return dict(open_checkpoint(path, key).numbers)


def same_weights(path: Path, other: Path, key: str | None = None) -> bool:
    """Whether two checkpoints hold the same tensors, bit by bit; read up to the first that differs."""
    one, two = open_checkpoint(path, key), open_checkpoint(other, key)
    if {name: (info.shape, info.dtype) for name, info in one.tensors.items()} != {
        name: (info.shape, info.dtype) for name, info in two.tensors.items()
    }:
        return False
    readable = [name for name, info in one.tensors.items() if not (info.problem or two.tensors[name].problem)]
    return bool(readable) and all(same_bits(one.read(name), two.read(name)) for name in readable)


def weights_file(folder: Path) -> Path | None:
    """The file in a folder that holds its weights (the index, of several); None if there is none, or no telling."""
    names = (*_WEIGHTS, *_ADAPTER_WEIGHTS) if (folder / ADAPTER_CONFIG).exists() else _WEIGHTS
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.is_file() and not _NO_WEIGHTS.search(path.name))
    indexes = [path for path in found if path.name.endswith(".index.json")]
    for files in (indexes, [path for path in found if is_weights_name(path)]):
        if len(files) == 1:
            return files[0]
    return None


def is_weights_name(path: Path) -> bool:
    """Whether a file is named like one that holds weights."""
    return path.suffix in SUFFIXES and not _NO_WEIGHTS.search(path.name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object")
    return content


def _open_file(path: Path, key: str | None) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.name.endswith(".index.json"):
        return Shards(path)
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"version https://"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: fetch it by `git lfs pull`")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        if key is not None:
            raise ValueError(f"key={key!r} was given, but {path} is a safetensors file, which holds tensors only")
        opened: Checkpoint = SafetensorsFile(path)
    else:
        opened = TorchFile(path, key)
    flat = next((name for name in opened.tensors if "flat_param" in name), None)
    if flat:
        raise ValueError(
            f"{path} holds FSDP's flat parameters ({flat}), which have lost the matrices' shapes: save a full state "
            f"dict, or a sharded one, which `{DCP_COMMAND} FOLDER FILE` converts"
        )
    return opened


def _refusal(folder: Path) -> Exception:
    """Why a folder without one file of weights cannot be read."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (place / ".metadata").exists():
            return ValueError(
                f"{place} is a torch.distributed.checkpoint folder, whose tensors lie in pieces: convert it by "
                f"`{DCP_COMMAND} {place} {place}.pt` and give the file"
            )
    if (folder / "zero_to_fp32.py").exists():
        return ValueError(f"{folder} is DeepSpeed's: convert it by `python {folder}/zero_to_fp32.py {folder} OUT`")
    names = [path.name for path in sorted(folder.iterdir()) if is_weights_name(path)]
    if names:
        return ValueError(
            f"{folder} holds several weight files and no index ({', '.join(names[:4])}): give one of them"
        )
    return FileNotFoundError(f"{folder} holds no checkpoint: no {', '.join(_WEIGHTS)}")
