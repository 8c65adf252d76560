"""Whether what is watched is still in the model: modules are replaced, converted, put under adapters.

Looked at where a snapshot is taken. A walk over the modules tells whether anything has changed at all; only then are
the watched ones looked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from inrank_monitor.matrices import Adapter, Matrix, unwrap

_AGAIN = "; attach anew, to another directory, to watch what is there now"


class Structure:
    """The modules of a model, as they were when last looked at.

    Args:
        model: that is watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._paths = {id(module): path for path, module in self._model.named_modules()}
        self._adapted = _adapted(self._model)
        self._seen = self._ids()
        self._gone: dict[str, str] = {}

    def gone(self, matrices: Sequence[Matrix]) -> dict[str, str]:
        """Why a matrix can no longer be measured, by the names of those that cannot."""
        ids = self._ids()
        if ids != self._seen:
            self._seen = ids
            adapted = _adapted(self._model) - self._adapted
            there = set(ids)
            self._gone = {
                matrix.name: reason
                for matrix in matrices
                if (reason := self._reason(matrix, there, adapted)) is not None
            }
        return self._gone

    def _ids(self) -> list[int]:
        return [id(module) for module in self._model.modules()]

    def _reason(self, matrix: Matrix, there: set[int], adapted: set[int]) -> str | None:
        """Why it is gone; None if it is there."""
        if isinstance(matrix.module, Adapter) and id(matrix.module.layer) not in there:
            base = id(matrix.module.base)
            if base in there and base not in _adapted(self._model):
                return None  # merged and taken off: what it had learnt is in the base weight, and is the update
        module = matrix.module.layer if isinstance(matrix.module, Adapter) else matrix.module
        path = self._paths.get(id(module), "")
        if id(module) not in there:
            now = _at(self._model, path)
            what = f"a new {type(now).__name__} stands in its place" if now is not None else "its module was removed"
            return f"{matrix.name} is no longer in the model: {what}{_AGAIN}"
        if id(module) in adapted:
            return f"{matrix.name} has been put under an adapter, which is trained in its place{_AGAIN}"
        return None


def _adapted(model: nn.Module) -> set[int]:
    """The layers, by id, that lie under an adapter of PEFT."""
    bases = [module._modules.get("base_layer") for module in model.modules()]
    return {id(inner) for base in bases if base is not None for inner in base.modules()}


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
