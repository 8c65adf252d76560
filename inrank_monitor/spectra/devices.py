"""What is asked of an accelerator: to be waited for, whether it computes in float64, whether it records a graph.

Everything here is called by the loop's thread and concerns that thread's current stream: another thread has a stream of
its own, which knows nothing of what the loop has queued.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

_SIDE = 512


def is_accelerator(device: torch.device) -> bool:
    """Whether work is queued there, beside the host."""
    return device.type not in ("cpu", "meta")


def wait_for(devices: Iterable[torch.device]) -> None:
    """Wait until all that was queued so far on their current streams is done."""
    for device in {device for device in devices if is_accelerator(device)}:
        module: Any = torch.get_device_module(device)
        if hasattr(module, "current_stream"):
            module.current_stream(device).synchronize()
        else:  # Apple's have one stream
            module.synchronize()


def mark(device: torch.device) -> Any:
    """An event at the present end of the device's current stream; `synchronize` and `query` are its methods."""
    module: Any = torch.get_device_module(device)
    event = module.Event()
    if hasattr(module, "current_stream"):
        event.record(module.current_stream(device))
    else:
        event.record()
    return event


def is_capturing() -> bool:
    """Whether the current stream records a CUDA graph: what is queued now runs later, many times or never."""
    cuda: Any = torch.cuda
    return bool(cuda.is_initialized() and cuda.is_current_stream_capturing())


def pinned(size: int, device: torch.device) -> torch.Tensor:
    """So many bytes of the host that the device copies to and from by itself; ordinary ones where there are none."""
    if device.type in ("cuda", "xpu"):
        try:
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError:  # the system locks no more memory: copies are slower
            pass
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def sent(value: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The value on its way to the host, and the event after which it is there; None where it is there already."""
    if not is_accelerator(value.device):
        return None, value
    target = pinned(value.nbytes, value.device).view(value.dtype).view(value.shape)
    target.copy_(value, non_blocking=True)
    return mark(value.device), target


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64: some have none, though their kind may."""
    return device.type == "cpu" or _computes_in_float64(device.type, device.index)


@cache
def _computes_in_float64(kind: str, index: int | None) -> bool:
    if kind == "mps":
        return False
    try:
        one = torch.ones(1, dtype=torch.float64, device=torch.device(kind, index) if index is not None else kind)
        torch.mm(one[None], one[:, None])
    except (RuntimeError, TypeError):
        return False
    return True


def multiplies_in_float64(device: torch.device) -> bool:
    """Whether exact products are quicker there than on the host; measured once. Consumer cards and Apple's are slow."""
    return has_float64(device) and (device.type == "cpu" or _is_quicker(device.type, device.index))


@cache
def _is_quicker(kind: str, index: int | None) -> bool:
    device = torch.device(kind, index) if index is not None else torch.device(kind)
    return float64_rate(device) > float64_rate(torch.device("cpu"))


@torch.no_grad()
def float64_rate(device: torch.device) -> float:
    """Multiply-adds a second in float64, of the threads that the caller has."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=torch.float64, device=device)
    found = 0.0
    for _ in range(3):  # the first one loads libraries
        wait_for([device])
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        wait_for([device])
        found = max(found, _SIDE**3 / (time.perf_counter() - began))
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of the host or of a device: that costs one matrix and not the snapshot."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return type(error) is RuntimeError and ("allocate memory" in str(error) or "out of memory" in str(error).lower())
