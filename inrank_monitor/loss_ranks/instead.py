"""A value in the place of a weight that its layer computes from other parameters, for as long as it is needed.

Under `torch.nn.utils.parametrize` it is a last parametrization, which ignores what those before it have computed; under
the older hooks (weight_norm, spectral_norm, pruning) a last hook before the forward pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from inrank_monitor.matrices import Adapter, Matrix


class Instead:
    """The value of one weight, all its parts.

    Args:
        matrix: any of the weight's.
        value: in its place; changed in place by whoever truncates it.
    """

    def __init__(self, matrix: Matrix, value: Tensor) -> None:
        assert not isinstance(matrix.module, Adapter)
        self._module, self._attribute = matrix.module, matrix.attribute
        self.value = value
        self._handle: Any = None
        self._last: _Constant | None = None

    def put(self) -> None:
        """Let the layer have it, if it does not yet."""
        if self._handle is not None or self._last is not None:
            return
        if parametrize.is_parametrized(self._module, self._attribute):
            self._last = _Constant(self.value)
            self._list().append(self._last)
        else:
            self._handle = self._module.register_forward_pre_hook(self._set)

    def remove(self) -> None:
        """Let the layer compute its own again."""
        if self._last is not None:
            if self._list()[-1] is self._last:
                del self._list()[-1]
            self._last = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _list(self) -> nn.ModuleList:
        found: nn.ModuleList = self._module.parametrizations[self._attribute]  # type: ignore[index,assignment]
        return found

    def _set(self, module: nn.Module, *_: Any) -> None:
        setattr(module, self._attribute, self.value)


class _Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value
