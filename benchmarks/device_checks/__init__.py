"""What a GPU alone can settle: each check says what it may take, what it found, and whether that passes.

`benchmarks/bench_cuda.py` runs them and writes a table; `make test-cuda` runs them as tests.
"""

from __future__ import annotations

from device_checks import costs, exact, low_rank
from device_checks.common import Check, Found, Setting

CHECKS: tuple[Check, ...] = (*exact.CHECKS, *costs.CHECKS, *low_rank.CHECKS)

__all__ = ["CHECKS", "Check", "Found", "Setting"]
