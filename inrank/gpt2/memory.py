"""Peak memory of this process: of the device, or of the process itself where it trains on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: `torch.cuda.max_memory_allocated` on CUDA, else the largest resident set so far; 0 if unknown.

    Linux counts a process's `ru_maxrss` from what its parent held when it was started, so /proc is asked first.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
