"""float32 means float32 in our own products, whatever the training loop has chosen for its own."""

from __future__ import annotations

import threading
from typing import Any

import torch


class FullPrecision:
    """While products of ours run, in any thread, float32 means float32; then the loop's own setting is put back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[tuple[Any, str]] = []
        self._earlier = "highest"

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                owners: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
                owners = [owner for owner in owners if hasattr(owner, "fp32_precision")]  # torch 2.9 or later
                self._before = [(owner, owner.fp32_precision) for owner in owners]
                for owner in owners:
                    owner.fp32_precision = "ieee"
                if not owners:
                    self._earlier = torch.get_float32_matmul_precision()
                    torch.set_float32_matmul_precision("highest")
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for owner, precision in self._before:
                    owner.fp32_precision = precision
                if not self._before:
                    torch.set_float32_matmul_precision(self._earlier)


FULL_PRECISION = FullPrecision()
