"""ZerO initialization: weights without randomness, a partial identity or a corner of a Hadamard matrix.

References:
    Zhao, Schäfer, Anandkumar 2021, ZerO Initialization: Initializing Residual Networks with only Zeros and Ones,
    arXiv:2110.12661, Algorithm 1.
    Sylvester 1867, Thoughts on inverse orthogonal matrices.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def hadamard(order: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n n"]:
    """H_m of size n = 2^m by Sylvester's doubling: entries ±1, H Hᵀ = n I.

    Args:
        order: m.
        dtype: of the entries, all of which it holds exactly.

    Raises:
        ValueError: a negative order.

    Example:
        >>> hadamard(1)
        tensor([[ 1.,  1.],
                [ 1., -1.]])
    """
    if order < 0:
        raise ValueError(f"order must be at least 0, got {order}")
    block = torch.tensor([[1, 1], [1, -1]], dtype=dtype, device="cpu")
    matrix = torch.ones(1, 1, dtype=dtype, device="cpu")
    for _ in range(order):
        matrix = torch.kron(block, matrix)
    return matrix


def zero_matrix(rows: int, cols: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows cols"]:
    """ZerO weights of a layer from `cols` inputs to `rows` outputs.

    rows ≤ cols: ones on the diagonal, so that the first `rows` inputs pass through and the others wait for training.
    rows > cols: c I* H_m I*, the corner of the Hadamard matrix of size 2^m, m = ⌈log₂ rows⌉, times c = 2^(−(m−1)/2). An
    identity there would leave the outputs beyond `cols` at zero and the network short of rank. Where `rows` is a power
    of two the columns are orthogonal of norm √2, which is Kaiming's gain for ReLU.

    The matrix is the same each time: two trainings differ by the order of their data alone. Where 2^(m−1) ≥ cols, rows
    i and i + 2^(m−1) are equal.

    Raises:
        ValueError: a side below 1.

    Example:
        >>> zero_matrix(2, 3)
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
        >>> zero_matrix(4, 1).flatten()
        tensor([0.7071, 0.7071, 0.7071, 0.7071])
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"rows and cols must be at least 1, got {rows}×{cols}")
    if rows <= cols:
        return torch.eye(rows, cols, dtype=dtype, device="cpu")
    order = (rows - 1).bit_length()  # ⌈log₂ rows⌉ without rounding
    corner = hadamard(order, dtype)[:rows, :cols]
    scaled: Tensor = corner * 2.0 ** (-(order - 1) / 2)
    return scaled


@torch.no_grad()
def zero_initialize_(weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """Fill a weight (outputs × inputs, as `nn.Linear` keeps it) with `zero_matrix`, and return it.

    Raises:
        ValueError: not a matrix.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix, got shape {tuple(weight.shape)}")
    return weight.copy_(zero_matrix(*weight.shape, dtype=weight.dtype))
