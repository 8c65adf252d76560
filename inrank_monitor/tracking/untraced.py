"""What torch.compile must not look into: a tracker that is called inside a compiled optimizer step or training step.

Dynamo would trace the hook, the snapshot and the writing of it, and compile them anew whenever the step's number had
changed. It steps over what is marked here, which costs one graph break.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def untraced_hook(hook: Callable[_P, _T]) -> Callable[_P, _T]:
    """A hook of an optimizer, which has imported Dynamo already when it was made."""
    marked: Callable[_P, _T] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return marked


def untraced(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """A method that a loop calls by itself; Dynamo is not imported for it, as that takes a second."""

    @functools.wraps(method)
    def called(*args: _P.args, **options: _P.kwargs) -> _T:
        # the mark alone would have the method stepped over, but what it calls compiled frame by frame
        run = _marked(method) if "torch._dynamo" in sys.modules else method
        return run(*args, **options)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called


@functools.cache
def _marked(method: Callable[_P, _T]) -> Callable[_P, _T]:
    return untraced_hook(method)
