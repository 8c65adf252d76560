"""What a run watches: the matrices of one model, and what became of each of its parameters."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn
from torch.nn.parameter import UninitializedParameter

from inrank_monitor.matrices import Coverage, Matrix, find_matrices, unwrap


@dataclass
class Watched:
    """The matrices, and what run.json says of their model.

    Attributes:
        kind: the model's class name, or what stands for it.
        size: its number of parameters.
        device: of its first parameter.
        matrices: in the model's order.
        coverage: of all parameters.
        model: itself, unwrapped; None where there is none, and once the run has ended.
    """

    kind: str
    size: int
    device: str
    matrices: Sequence[Matrix]
    coverage: Coverage
    model: nn.Module | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, model: nn.Module, selection: dict[str, Any], became_factors: Container[str] = ()) -> Self:
        """The matrices of a model that is there.

        Args:
            model: any module; wrappers are looked through.
            selection: `find_matrices`' keywords.
            became_factors: as for `find_matrices`.

        Raises:
            ValueError, TypeError: as `find_matrices`.
        """
        matrices, coverage = find_matrices(model, **selection, became_factors=became_factors)
        inner = unwrap(model)
        sized = [parameter for parameter in inner.parameters() if not isinstance(parameter, UninitializedParameter)]
        size = sum(parameter.numel() for parameter in sized)
        return cls(type(inner).__name__, size, str(next(inner.parameters()).device), matrices, coverage, model=inner)
