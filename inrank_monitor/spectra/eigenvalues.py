"""Eigenvalues of a symmetric matrix in the memory that it is in.

`torch.linalg.eigvalsh` copies its argument, into memory of the C library's allocator, which keeps a good part of it: a
hundred megabytes after a snapshot of GPT-2 small. So where torch's own library lets it be called, LAPACK's dsyevd works
in place, the routine that torch calls too; elsewhere torch's function is used.

References:
    Anderson et al. 1999, LAPACK Users' Guide, third edition: dsyevd.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]


def eigenvalues(lower: Tensor) -> Tensor:
    """Eigenvalues, ascending, of a symmetric (n, n) matrix, of which the lower triangle is read; it is overwritten.

    Raises:
        torch.linalg.LinAlgError: the iteration did not converge.
    """
    routine = _dsyevd()
    lower = lower.cpu()
    if routine is None or lower.dtype != torch.float64 or not lower.is_contiguous() or len(lower) == 0:
        values: Tensor = torch.linalg.eigvalsh(lower, UPLO="L")
        return values
    return _in_place(routine, lower)


def _in_place(routine: Callable[..., object], lower: Tensor) -> Tensor:
    size = len(lower)
    values = torch.empty(size, dtype=torch.float64, device="cpu")
    work = torch.empty(1, dtype=torch.float64, device="cpu")
    whole = torch.empty(1, dtype=torch.int64, device="cpu")
    info = _integer(0)
    for lengths in ((-1, -1), None):  # asked for the sizes of its workspaces first, then called
        if lengths is None:
            lengths = (int(work[0]), max(int(whole[0]) & 0xFFFFFFFF, 1))
            work, whole = work.new_empty(lengths[0]), whole.new_empty(lengths[1])
        routine(
            b"N",
            b"U",  # LAPACK goes by columns, to which the lower triangle of rows is the upper one
            ctypes.byref(_integer(size)),
            ctypes.c_void_p(lower.data_ptr()),
            ctypes.byref(_integer(size)),
            ctypes.c_void_p(values.data_ptr()),
            ctypes.c_void_p(work.data_ptr()),
            ctypes.byref(_integer(lengths[0])),
            ctypes.c_void_p(whole.data_ptr()),
            ctypes.byref(_integer(lengths[1])),
            ctypes.byref(info),
        )
    if failed := ctypes.c_int32(info.value).value:
        raise LinAlgError(f"dsyevd did not converge ({failed})")
    return values


def _integer(value: int) -> ctypes.c_int64:
    """As wide as the widest that LAPACK is built with; the low half is what the others read."""
    return ctypes.c_int64(value)


@cache
def _dsyevd() -> Callable[..., object] | None:
    """LAPACK's routine out of torch's library, if it is there and finds the eigenvalues of a small matrix."""
    if not sys.platform.startswith("linux") or sys.byteorder != "little":
        return None
    try:
        routine = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).dsyevd_
    except (OSError, AttributeError):
        return None
    known = torch.tensor([[2.0, 0, 0], [1, 2, 0], [1, 1, 2]], dtype=torch.float64, device="cpu")
    try:
        found = _in_place(routine, known)
    except LinAlgError:
        return None
    return routine if torch.allclose(found, found.new_tensor([1, 1, 4])) else None
