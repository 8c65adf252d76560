"""A singular value decomposition that ends well on any device.

CUDA's quick drivers are slow or fail where a matrix has not full rank, as gradients and new factors have not.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (rows, k), descending values (k,), Vᵀ (k, cols) on the matrix's device, k = min(rows, cols).

    On CUDA by QR iteration (`gesvd`); where that does not converge or finds no memory, and on devices of other kinds,
    by the CPU.

    Raises:
        torch.linalg.LinAlgError: the CPU's iteration did not converge either, as with NaN.
    """
    device = matrix.device
    if device.type == "cuda":
        try:
            left, values, right = torch.linalg.svd(
                matrix, full_matrices=False, driver="gesvd" if torch.version.hip is None else None
            )
            return left, values, right
        except RuntimeError:  # answered by the CPU, which raises if it fails too
            pass
    left, values, right = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    return left.to(device), values.to(device), right.to(device)
