"""An accelerator that is not there: tensors that say `cuda:N`, compute on the CPU, and are as strict as CUDA is.

Devices do not mix. What the host reads, what is copied either way, and the bytes that live on the device are recorded.
A copy that is not waited for is only done when an event or a stream after it is: until then its target holds what it
held, and its source may not change. Streams are not modelled beyond that, and there is no autograd. Products of float32
are as coarse as the loop's TF32 makes them. On request the devices have no float64.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from inrank_monitor.matrices import skipping
from inrank_monitor.spectra import devices

aten = torch.ops.aten
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.is_nonzero.default}
_FACTORIES = ("empty", "zeros", "ones", "full", "rand", "arange", "eye", "scalar_tensor", "tril_indices")
_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
_SOLVERS = ("linalg_eigh", "linalg_svd", "linalg_qr", "linalg_cholesky", "linalg_solve")


@dataclass
class Record:
    """What happened on the pretended devices while it was kept.

    Attributes:
        reads: times that the host waited for a number or a blocking copy.
        waits: for events and streams.
        copies: number of copies by direction, `to device` and `to host`.
        bytes: of them.
        solves: decompositions that ran on the device, by name.
        kernels: operations on the device, by name.
        peak: bytes at most alive on all devices, beyond what was there at the start.
        threads: names of the threads that used a device.
    """

    reads: int = 0
    waits: int = 0
    copies: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    solves: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    threads: set[str] = field(default_factory=set)


class _Machine:
    """The state of the pretended devices."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.records: list[Record] = []
        self.alive: dict[int, list[int]] = {}  # address -> [tensors that use it, bytes]
        self.bytes, self.bases = 0, dict[int, int]()
        self.limit: int | None = None
        self.float64 = True
        self.pending: list[Callable[[], None]] = []

    def hold(self, inner: Tensor) -> int:
        storage = inner.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        with self.lock:
            if address in self.alive:
                self.alive[address][0] += 1
                return address
            self.alive[address] = [1, size]
            self.bytes += size
            for record in self.records:
                record.peak = max(record.peak, self.bytes - self.bases[id(record)])
        return address

    def let_go(self, address: int) -> None:
        with self.lock:
            entry = self.alive[address]
            entry[0] -= 1
            if not entry[0]:
                self.bytes -= entry[1]
                del self.alive[address]

    def make_room(self, size: int) -> None:
        if self.limit is not None and self.bytes + size > self.limit:
            raise torch.OutOfMemoryError(f"pretended: {size} bytes do not fit")

    def check_float64(self) -> None:
        if not self.float64:
            raise TypeError("pretended: this device does not support float64")

    def note(self, kind: str, name: str, size: int = 0) -> None:
        with self.lock:
            for record in self.records:
                if kind == "read":
                    record.reads += 1
                elif kind == "wait":
                    record.waits += 1
                elif kind == "solve":
                    record.solves[name] += 1
                elif kind == "kernel":
                    record.kernels[name] += 1
                    record.threads.add(threading.current_thread().name)
                else:
                    record.copies[kind] += 1
                    record.bytes[kind] += size

    def finish(self) -> None:
        with self.lock:
            pending, self.pending = self.pending, []
        for action in pending:
            action()


machine = _Machine()


class Pretended(Tensor):
    """A tensor on a pretended device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device
        )
        made.inner = inner
        weakref.finalize(made, machine.let_go, machine.hold(inner))
        return made

    def untyped_storage(self) -> Any:
        """Of the tensor inside."""
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        """Of the tensor inside."""
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        """A read of the host."""
        machine.note("read", "tolist")
        return self.inner.tolist()

    def __repr__(self, **options: Any) -> str:
        return f"Pretended({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors with `device="cuda"`; in the slot of fake tensors, so that torch does not look for CUDA first."""

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _inner(value: Tensor) -> Tensor:
    return value.inner if isinstance(value, Pretended) else value


def _coarse(value: Tensor) -> Tensor:
    """Rounded to the ten bits of TF32."""
    if value.dtype != torch.float32:
        return value
    bits = _inner(value).contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _device(given: Any) -> torch.device | None:
    if given is None:
        return None
    device = torch.device(given)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    name = func.name().removeprefix("aten::")
    target = _device(kwargs.get("device"))
    if func is aten._to_copy.default:
        return _to(args[0], target or args[0].device, kwargs)
    if func is aten.copy_.default:
        return _copy(args[0], args[1], bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
    devices = {value.device for value in tensors if isinstance(value, Pretended)}
    _check_devices(name, devices, tensors, target)
    where = target if target is not None else next(iter(devices), None)
    on_device = where is not None and where.type == "cuda"
    if devices:
        machine.note("kernel", name)
    if devices and func in _READS:
        machine.note("read", name)
    if devices and any(solver in name for solver in _SOLVERS):
        machine.note("solve", name)
    if on_device and torch.float64 in (kwargs.get("dtype"), *(value.dtype for value in tensors if value.ndim)):
        machine.check_float64()
    if devices and name in _PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32":
        args = tree_map_only(Tensor, _coarse, args)
    plain = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "driver")}
    if on_device and "device" in plain:
        plain["device"] = torch.device("cpu")
    found = func(*tree_map_only(Tensor, _inner, args), **tree_map_only(Tensor, _inner, plain))
    if not on_device or func in _READS:
        return found
    outer = {id(_inner(value)): value for value in tensors}
    return tree_map_only(
        Tensor, lambda value: outer.get(id(value)) if id(value) in outer else _new(value, where), found
    )


def _new(inner: Tensor, device: Any) -> Tensor:
    if inner.untyped_storage().data_ptr() not in machine.alive:
        machine.make_room(inner.untyped_storage().nbytes())
    return Pretended(inner, device)


def _check_devices(name: str, devices: set[Any], tensors: list[Tensor], target: torch.device | None) -> None:
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {sorted(map(str, devices))} in {name}")
    takes_both = name.startswith("index") or not devices  # indices may be on the CPU, and single numbers
    if not takes_both and any(not isinstance(value, Pretended) and value.ndim > 0 for value in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, found cpu and {devices} in {name}")


def _to(source: Tensor, device: torch.device, options: dict[str, Any]) -> Tensor:
    kept = {key: value for key, value in options.items() if key not in ("device", "non_blocking", "pin_memory")}
    if (options.get("dtype") or source.dtype) == torch.float64 and not (source.device.type == device.type == "cpu"):
        machine.check_float64()  # a device that has none does not convert to it on the way either
    found: Tensor = aten._to_copy.default(_inner(source), **kept)
    later = bool(options.get("non_blocking"))
    if device.type != "cuda":
        if isinstance(source, Pretended):
            _transfer(found, source.inner, found, "to host", later)
        return found
    made = _new(found, device)
    if not isinstance(source, Pretended):
        _transfer(found, source, found, "to device", later)
    return made


def _copy(target: Tensor, source: Tensor, later: bool) -> Tensor:
    if target.dtype == torch.float64 and not target.device.type == source.device.type == "cpu":
        machine.check_float64()
    if target.device == source.device:
        if isinstance(target, Pretended):
            machine.note("kernel", "copy_")
        _inner(target).copy_(_inner(source))
    elif isinstance(target, Pretended) and isinstance(source, Pretended):
        machine.note("between devices", "copy_", source.nbytes)
        _inner(target).copy_(_inner(source))
    else:
        way = "to device" if isinstance(target, Pretended) else "to host"
        _transfer(_inner(target), _inner(source), None, way, later)
    return target


def _transfer(target: Tensor, source: Tensor, found: Tensor | None, way: str, later: bool) -> None:
    """Copy now, or when somebody waits: to the host nothing arrives before, to the device nothing may change before."""
    machine.note(way, "copy", source.nbytes)
    if found is None and (way == "to device" or not later):
        target.copy_(source)
    if not later:
        if way == "to host":
            machine.note("read", "copy")
        return
    sent = source.clone()
    if way == "to host":
        if target.is_floating_point():
            target.fill_(torch.nan)

        def arrive() -> None:
            target.copy_(sent)

        machine.pending.append(arrive)
        return

    def unchanged() -> None:
        same = torch.equal(sent.contiguous().view(torch.uint8), source.contiguous().view(torch.uint8))
        assert same, "the source of a copy to the device was changed while it was on its way"

    machine.pending.append(unchanged)


class _Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, **options: Any) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        """Everything before it is what `synchronize` waits for."""
        self.recorded = True

    def synchronize(self) -> None:
        """Wait."""
        machine.note("wait", "event")
        machine.finish()

    def query(self) -> bool:
        """Whether it has come: always, and then the copies have too."""
        machine.finish()
        return True


class _Stream:
    """Stands for a stream of `torch.cuda`."""

    capturing: ClassVar[bool] = False

    def synchronize(self) -> None:
        """Wait."""
        machine.note("wait", "stream")
        machine.finish()


@contextmanager
def pretending(limit: int | None = None, float64: bool = True, slow: bool = False) -> Iterator[_Machine]:
    """Devices `cuda:0`, `cuda:1`, ... until it ends.

    Args:
        limit: bytes that all of them hold together; None: no limit.
        float64: whether they compute in it.
        slow: whether that is slower than on the host.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("the registry of torch's device guards is found by its name on Linux")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[1]
    if before:
        pytest.skip("this build of torch has CUDA itself")
    guards[1] = guards[0]  # the CPU's, which does nothing
    machine.limit, machine.float64 = limit, float64
    devices._computes_in_float64.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        own_way = skipping._stores_in_its_own_way
        patch.setattr(
            skipping, "_stores_in_its_own_way", lambda value: not isinstance(value, Pretended) and own_way(value)
        )
        patch.setattr(devices, "_is_quicker", lambda kind, index: not slow)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: _Stream())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: _Stream.capturing)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: _Stream().synchronize())
        try:
            with _Factories():
                yield machine
        finally:
            machine.finish()
            machine.limit, machine.float64 = None, True
            devices._computes_in_float64.cache_clear()
            guards[1] = before


@contextmanager
def recording() -> Iterator[Record]:
    """What happens on the devices meanwhile."""
    record = Record()
    with machine.lock:
        machine.bases[id(record)] = machine.bytes
        machine.records.append(record)
    try:
        yield record
    finally:
        with machine.lock:
            machine.records.remove(record)
            del machine.bases[id(record)]


def on_device(value: Tensor, device: str = "cuda:0") -> Tensor:
    """The tensor on a pretended device."""
    return Pretended(value.detach().clone(), torch.device(device))


def move(model: nn.Module, device: str | Callable[[str], str] = "cuda:0") -> nn.Module:
    """Put every parameter and buffer on a pretended device, shared ones once.

    Args:
        model: changed in place.
        device: of all, or of the module of a name.
    """
    moved: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        place = device(name) if callable(device) else device
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(on_device(parameter, place), parameter.requires_grad)
                module._parameters[key] = moved[id(parameter)]
        for key, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[key] = on_device(buffer, place)
    return model


def set_gradients(model: nn.Module) -> None:
    """Random ones, as a backward pass leaves them."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, device="cpu").to(parameter.dtype)
            parameter.grad = Pretended(noise, parameter.device)
