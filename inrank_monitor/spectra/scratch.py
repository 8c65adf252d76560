"""Large buffers that live for a moment, mapped from the system and given straight back to it.

Not from the C library's allocator: it keeps what is freed, in pieces, and changes how it serves the training's own
buffers afterwards. Beside a training that lives at the edge of its memory the one costs more than the spectra do, and
the other was seen to slow a training by five per cent.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

_MIN_BYTES = 1 << 18


def scratch_bytes(size: int) -> bytearray | mmap.mmap:
    """A writable buffer of this many zero bytes."""
    if size < _MIN_BYTES:
        return bytearray(size)
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def scratch(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor of zeros; its memory is the system's again when the tensor is gone."""
    device = torch.device(device)
    count = math.prod(shape)
    if device.type != "cpu" or count == 0:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return torch.frombuffer(scratch_bytes(count * dtype.itemsize), dtype=dtype).reshape(tuple(shape))
