"""What is asked of an accelerator: to be waited for, whether it computes in float64, whether it records a graph.

Everything here is called by the loop's thread and concerns that thread's current stream: another thread has a stream of
its own, which knows nothing of what the loop has queued.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of the host or of a device: that costs one matrix and not the snapshot."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return type(error) is RuntimeError and ("allocate memory" in str(error) or "out of memory" in str(error).lower())
