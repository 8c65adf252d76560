"""What a `torch.save` file holds: tensors and plain values; every other object is left out, and none is made.

torch's own restricted unpickler reads (`weights_only`). Numbers and arrays of NumPy are allowed by its list; for each
other class that a file names a stand-in of that name is put on the list, which takes what comes and does nothing with
it: argparse's and OmegaConf's settings, paths, dates, a whole module's class. Nothing that a file names is imported or
called; one that asks for a function is refused, as a file of weights has no use for it.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Allowed = tuple[Callable[..., Any], str]
_HARMLESS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (list, dict, tuple, set, frozenset, int, float, str, bool, bytes, complex, object, slice, range)
} | {"Ellipsis": Ellipsis}
_HARMLESS_ROOTS = ("numpy", "torch", "functools", "collections", "datetime", "typing", "copyreg")
_REFUSED = re.compile(r"GLOBAL (\S+)")
_FILLED = re.compile(r"Can only (append|extend|SETITEM).*<class 'left_out\.([^']+)'>", re.DOTALL)
_UNREADABLE = re.compile(r"(Can only|Only persistent_load|``torch)[^\n]*")
_MOST_RETRIES = 500  # one a class that is left out


class LeftOut:
    """Stands for an object that is no tensor.

    Attributes:
        state: what the file says of its attributes.
    """

    name = ""
    state: Any = None

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take any arguments."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Take any arguments."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_pickled(path: Path) -> Any:
    """What a `torch.save` file holds, `LeftOut` in place of all that is neither a tensor nor plain.

    Tensors are mapped into memory; a file in the format of before torch 1.6 cannot be, and is read whole.

    Raises:
        ValueError: it is damaged, or asks for functions.
    """
    stand_ins: dict[str, Allowed] = {}
    for _ in range(_MOST_RETRIES):
        try:
            return _load(path, [*_numpy_globals(), *stand_ins.values()])
        except pickle.UnpicklingError as error:
            allowed = _stand_in(str(error), stand_ins, path)
            stand_ins[allowed[1]] = allowed
    raise ValueError(f"{path} holds Python objects besides tensors, of more than {_MOST_RETRIES} classes")


def parameters_of(module: LeftOut, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a whole module that was saved in place of its state dict; nothing if it is none."""
    state = module.state if isinstance(module.state, Mapping) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, LeftOut):
            yield from parameters_of(child, f"{prefix}{name}.")


def refusal(path: Path, name: str) -> ValueError:
    """Why a file's object is no use, and what to save."""
    return ValueError(
        f"{path} holds Python objects besides tensors ({name}), which are not loaded since they can run "
        "code: save the state dict alone, by torch.save(model.state_dict(), FILE)"
    )


def _load(path: Path, allowed: list[Allowed]) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    known = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([one for one in allowed if one not in known]):
        try:
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, **options)  # the format of before torch 1.6
        except (pickle.UnpicklingError, OSError):
            raise
        except Exception as error:  # a damaged pickle raises anything at all
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} is damaged or no torch.save file: {reason}") from None


def _numpy_globals() -> list[Allowed]:
    """What NumPy's scalars and arrays are made by; older files know it by an older path."""
    made: list[Allowed] = [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    made += [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds]
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    for core in ("numpy._core", "numpy.core"):
        made += [(reconstruct, f"{core}.multiarray._reconstruct"), (scalar, f"{core}.multiarray.scalar")]
    return made


def _stand_in(error: str, before: Mapping[str, Allowed], path: Path) -> Allowed:
    """What has to be allowed so that the error does not come again.

    Raises:
        ValueError: nothing helps: a function, or no pickle at all.
    """
    if filled := _FILLED.search(error):
        container = OrderedDict if filled[1] == "SETITEM" else list
        return _empty(filled[2], container), filled[2]
    found = _REFUSED.search(error)
    if found is None and (reason := _UNREADABLE.search(error)):
        raise refusal(path, reason[0]) from None
    if found is None:
        raise ValueError(f"{path} is damaged or no torch.save file") from None
    name = found[1]
    if name in _HARMLESS:  # torch leaves "builtins." out of its messages
        return _HARMLESS[name], f"builtins.{name}"
    last = name.rpartition(".")[2].lstrip("_")
    is_class = "." in name and last[:1].isupper()
    blocked = "is blocked" in error or name in before
    if blocked or not (is_class or name.partition(".")[0] in _HARMLESS_ROOTS):
        raise refusal(path, name) from None
    return type(LeftOut)(name, (LeftOut,), {"__module__": "left_out", "__qualname__": name, "name": name}), name


def _empty(name: str, container: type) -> type:
    """A stand-in for a class that is filled like a dictionary or a list: it makes one of these."""
    return type(name, (LeftOut,), {"__new__": lambda _cls, *_args, **_more: container()})
