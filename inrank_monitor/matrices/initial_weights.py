"""W0: the watched parameters as they were at attach; kept on disk, in memory or on their device; found again on resume.

On disk it is a safetensors file, written and read one parameter at a time, so that neither needs the model's size in
memory; its SHA-256 is kept in run.json. Half-precision weights stay as they are here and are widened where they are
subtracted: the difference is exact.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from inrank_monitor.files import replaced
from inrank_monitor.matrices.matrix import Matrix, local
from inrank_monitor.spectra import scratch_bytes

Keep = Literal["disk", "memory", "device"]
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_TYPES = {name: dtype for dtype, name in _DTYPES.items()}


class InitialWeights:
    """The initial value of each watched parameter, by its dotted name.

    Args:
        get: name -> the value at step 0.
        content_hash: of the file, or empty where it is not on disk.
        forget: drops what `get` keeps in memory for the next call.
    """

    def __init__(
        self, get: Callable[[str], Tensor], content_hash: str = "", forget: Callable[[], None] = lambda: None
    ) -> None:
        self._get = get
        self.content_hash = content_hash
        self.forget = forget

    def of(self, parameter: str, device: torch.device) -> Tensor:
        """W0 of one parameter on `device`."""
        return self._get(parameter).to(device)

    def kept(self, parameter: str) -> Tensor:
        """W0 of one parameter, where it is kept: on the host, or beside the weights."""
        return self._get(parameter)

    def and_later(self, names: Iterable[str], later: InitialWeights) -> InitialWeights:
        """These, and those of the named parameters, which were taken later."""
        of_later = frozenset(names)

        def forget() -> None:
            self.forget()
            later.forget()

        return InitialWeights(lambda name: (later if name in of_later else self)._get(name), self.content_hash, forget)


def no_weights() -> InitialWeights:
    """What a closed tracker holds."""
    empty: dict[str, Tensor] = {}
    return InitialWeights(empty.__getitem__)


def check_keep(keep: str) -> None:
    """Raise a ValueError unless `keep` is a place where W0 can be kept."""
    if keep not in ("disk", "memory", "device"):
        raise ValueError(f"initial_weights must be 'disk', 'memory' or 'device', got {keep!r}")


def take(matrices: Iterable[Matrix], keep: Keep, path: Path) -> InitialWeights:
    """Record W0 of every parameter that some matrix views; factors that are the update themselves need none.

    Of a parameter that lies in shards (DTensor) this process keeps the shard that it holds.

    Args:
        matrices: what is watched.
        keep: `"disk"` writes `path`; `"memory"` copies to the CPU, `"device"` beside the weights, and neither can be
            resumed in another process.
        path: the safetensors file.

    Raises:
        ValueError: unknown `keep`, or a dtype that the file format lacks.
        OSError: the file cannot be written.
    """
    check_keep(keep)
    owners = {matrix.parameter: matrix for matrix in matrices if matrix.has_start}
    if keep == "disk":
        content_hash = _write(owners, path)
        return _on_disk(path, content_hash)
    device = torch.device("cpu") if keep == "memory" else None
    copies = {name: local(owner.read()).to(device, copy=True) for name, owner in owners.items()}
    return InitialWeights(copies.__getitem__)


def load(path: Path, content_hash: str) -> InitialWeights:
    """W0 of a run that is taken up again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not what the run recorded.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: without W0 the run cannot be continued")
    if (found := _hash(path)) != content_hash:
        raise ValueError(f"{path} is damaged: its SHA-256 is {found[:12]}…, the run recorded {content_hash[:12]}…")
    return _on_disk(path, content_hash)


def load_later(directory: Path, info: Mapping[str, Any], initial: InitialWeights) -> InitialWeights:
    """W0 of a run, that of the matrices which joined it included.

    Args:
        directory: of the run.
        info: what its run.json holds.
        initial: W0 of those that it began with.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    for entry in info["initial_weights"].get("later", ()):
        names = {matrix["parameter"] for matrix in info["matrices"] if matrix.get("since") == entry["step"]}
        initial = initial.and_later(names, load(directory / entry["file"], entry["sha256"]))
    return initial


def joined(shares: Sequence[InitialWeights]) -> InitialWeights:
    """W0 of a run of several processes, each of which kept its share."""

    def get(name: str) -> Tensor:
        for share in shares[:-1]:
            with suppress(KeyError):
                return share._get(name)
        return shares[-1]._get(name)

    return InitialWeights(get)


def _on_disk(path: Path, content_hash: str) -> InitialWeights:
    file = _File(path)
    return InitialWeights(file.read, content_hash, file.forget)


class _File:
    """Reads tensors of a safetensors file one by one, into memory of their own.

    Not through a memory map: if the file is cut short or its disk goes away, that is an OSError here, and not a SIGBUS
    that ends the training.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self._last: tuple[str, Tensor] | None = None
        length = int.from_bytes(self._file.read(8), "little")
        self._start = 8 + length
        self._header = json.loads(self._file.read(length))

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; the last one is kept, since the parts of a parameter follow one another."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None
                self._last = (name, self._read(name))
            return self._last[1]

    def forget(self) -> None:
        """Keep nothing for the next call."""
        with self._lock:
            self._last = None

    def _read(self, name: str) -> Tensor:
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        if begin == end:  # a shard of which this process holds nothing
            return torch.empty(entry["shape"], dtype=_TYPES[entry["dtype"]], device="cpu")
        data = scratch_bytes(end - begin)
        self._file.seek(self._start + begin)
        view = memoryview(data)
        while view:
            got = self._file.readinto(view)
            if not got:
                raise OSError(errno.EIO, "W0 was cut short", str(self._file.name))
            view = view[got:]
        return torch.frombuffer(data, dtype=torch.uint8).view(_TYPES[entry["dtype"]]).reshape(entry["shape"])

    def __del__(self) -> None:
        self._file.close()


def _write(owners: dict[str, Matrix], path: Path) -> str:
    """Eight bytes of header length, a JSON header, the data in order: the safetensors format, written as a stream."""
    header: dict[str, object] = {}
    offset = 0
    for name, owner in owners.items():
        value = local(owner.read())
        if value.dtype not in _DTYPES:
            raise ValueError(f"{name} has dtype {value.dtype}, which initial_weights='disk' cannot store")
        end = offset + value.numel() * value.element_size()
        header[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with replaced(path) as temporary, temporary.open("wb") as file:
        file.write(start)
        for owner in owners.values():
            data = local(owner.read()).contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
