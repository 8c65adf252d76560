"""The truncation of a matrix under which the loss, and not ‖W‖, changes least.

With C and G of a layer (see `calibration`), ½ tr(Dᵀ G D C) = ½ ‖G^½ D C^½‖² is least, over all W + D of rank r, where
W + D = G^-½ [G^½ W C^½]_r C^-½. In the place of the symmetric roots stand Cholesky factors, G = L Lᵀ and C = M Mᵀ:
Lᵀ W M differs from G^½ W C^½ by rotations, so its singular values and the truncated matrix are the same, at a fraction
of the cost. Both covariances are damped: 1 % of their mean eigenvalue is added to every eigenvalue, so that what the
few batches did not show costs something too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import cholesky, solve_triangular

from inrank.demand.calibration import Covariances

DAMPING = 0.01


@dataclass(frozen=True)
class Decomposed:
    """W = left · diag(values) · right, of which the leading part is to be kept.

    Attributes:
        values: (n,) descending.
        left: (rows, n).
        right: (n, cols).
        scale: `values` times this are the singular values of G^½ W C^½, comparable between layers.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    scale: float = 1.0

    @property
    def demands(self) -> Tensor:
        """Singular values of G^½ W C^½."""
        return self.values * self.scale

    def truncated(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The SVD of the leading part: (rows, rank), (rank,) descending, (rank, cols)."""
        root = self.values[:rank].sqrt()
        left_basis, left = torch.linalg.qr(self.left[:, :rank] * root)
        right_basis, right = torch.linalg.qr((root[:, None] * self.right[:rank]).mT)
        inner_left, values, inner_right = torch.linalg.svd(left @ right.mT)
        return left_basis @ inner_left, values, inner_right @ right_basis.mT


def exact(weight: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    weight = weight.detach()
    return weight.double() if weight.device.type in ("cpu", "cuda") else weight.cpu().double()


def plain(weight: Tensor) -> Decomposed:
    """The ordinary SVD; weight in float64."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return Decomposed(values, left, right)


def weighted(weight: Tensor, covariances: Covariances) -> Decomposed:
    """The SVD of G^½ W C^½, both damped, with the metric taken off its vectors; weight in float64."""
    out_root, out_scale = _root(covariances.outputs.to(weight))
    in_root, in_scale = _root(covariances.inputs.to(weight))
    left, values, right = torch.linalg.svd(out_root.mT @ weight @ in_root, full_matrices=False)
    left = solve_triangular(out_root.mT, left, upper=True)
    right = solve_triangular(in_root, right, upper=False, left=False)
    return Decomposed(values, left, right, (out_scale * in_scale) ** 0.5)


def _root(covariance: Tensor) -> tuple[Tensor, float]:
    """L with L Lᵀ = covariance / scale + DAMPING, and the scale, the mean eigenvalue; one without a covariance."""
    scale = float(covariance.diagonal().mean())
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return (cholesky(covariance / scale + DAMPING * eye), scale) if scale > 0 else (eye, 0.0)
