"""Which of a model's tensors takes the truncated update of a matrix: its weight, a factor, or one in its place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from inrank_monitor.loss_ranks.instead import Instead
from inrank_monitor.loss_ranks.places import DensePlace, FactorPlace, Memory, Place, ReplacedPlace
from inrank_monitor.matrices import Adapter, InitialWeights, Matrix, hooked_weights, is_sharded, since_start

_HALF = (torch.bfloat16, torch.float16)


class Placing:
    """Finds the places of the matrices of one model.

    Args:
        initial: W0.
    """

    def __init__(self, initial: InitialWeights) -> None:
        self._initial = initial
        self._instead: dict[str, Instead] = {}

    def place(self, matrix: Matrix) -> Place:
        """Where the truncated update of this matrix is put.

        Raises:
            ValueError: it cannot be put anywhere; the message names the matrix and says why.
        """
        try:
            if isinstance(matrix.module, Adapter):
                return self._of_adapter(matrix, matrix.module)
            if matrix.in_factors:
                return FactorPlace(matrix, _own_left(matrix), *matrix.module.update_factors())  # type: ignore[operator]
            return self._dense(matrix)
        except ValueError as error:
            raise ValueError(f"{matrix.name} cannot be truncated: {error}") from error

    def _dense(self, matrix: Matrix) -> Place:
        whole = matrix.read()
        if is_sharded(whole):
            raise ValueError("it lies in shards on several processes (DTensor)")
        first = self._initial.of(matrix.parameter, whole.device)
        if first.shape != whole.shape:
            raise ValueError(f"it is {_sides(whole)} here, and W0 is {_sides(first)}")
        dtype = torch.float64 if torch.float64 in (whole.dtype, first.dtype) else torch.float32
        start = matrix.view(first)
        if _is_computed(matrix):  # from other parameters: the layer gets another value in its place
            if matrix.parameter not in self._instead:
                self._instead[matrix.parameter] = Instead(matrix, whole.clone())
            instead = self._instead[matrix.parameter]
            memory = Memory(instead.value, matrix.view)
            dense = DensePlace(matrix, memory, memory.before.to(dtype) - start.to(dtype), start.to(whole.dtype))
            return ReplacedPlace(dense, instead)
        memory = Memory(whole, matrix.view)
        return DensePlace(matrix, memory, memory.before.to(dtype) - start.to(dtype), start.to(whole.dtype))

    def _of_adapter(self, matrix: Matrix, adapter: Adapter) -> Place:
        """In its factors where it began at zero and is not merged; else the base weight takes what is left out."""
        if adapter.in_shards:
            raise ValueError("its adapter lies in shards on several processes (DTensor)")
        left, right = adapter.update_factors()
        packed = self._initial.of(matrix.parameter, left.device)
        if packed.shape[-2] != left.shape[-2] + right.shape[-1]:
            raise ValueError("it is held by an adapter, whose start no state dict of weights tells: give its run")
        left, right, moved = since_start(left, right, packed)
        merged = adapter.is_merged
        if not moved and not merged:
            return FactorPlace(matrix, adapter.own_left(), left, right)
        what = "is merged" if merged else "was not zero at the start"
        whole = adapter.base_weight()
        if whole is None:
            raise ValueError(f"its adapter {what}, and its base weight, which would take the rest, is quantised")
        if whole.dtype in _HALF and not merged:
            raise ValueError(f"its adapter {what}, and its base weight would round the rest to {whole.dtype}")
        if adapter.has_others:
            raise ValueError(f"its adapter {what}, and the layer has others")
        memory = Memory(whole, matrix.view)
        left, right = matrix.cut(left, right)
        return DensePlace(matrix, memory, (left @ right).to(whole.device))


def _is_computed(matrix: Matrix) -> bool:
    module, attribute = matrix.module, matrix.attribute
    assert not isinstance(module, Adapter)
    return parametrize.is_parametrized(module, attribute) or attribute in hooked_weights(module)


def _own_left(matrix: Matrix) -> Tensor:
    """The layer's own left factor, up to a scale: `used_factors` where it has that."""
    module = matrix.module
    shown = module.used_factors if hasattr(module, "used_factors") else module.update_factors
    left: Tensor = shown()[0]  # type: ignore[operator]
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    if left.untyped_storage().data_ptr() not in own:
        raise ValueError("its layer shows factors that are no part of its Parameters (used_factors() may give them)")
    return left


def _sides(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "one number"
