"""What the user logs beside the spectra: read, named, and gathered until it is worth a batch."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, SupportsFloat

from torch import Tensor

from inrank_monitor.matrices import has_memory, is_sharded, local
from inrank_monitor.spectra import is_capturing
from inrank_monitor.tracking.arriving import Arriving
from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.once import Once
from inrank_monitor.tracking.recorder import Recorder, ScalarRow

Loggable = SupportsFloat | Tensor | Mapping[str, Any]
logger = logging.getLogger("inrank_monitor")
_FLUSH_SECONDS, _FLUSH_ROWS = 5.0, 2048


class Scalars:
    """Rows that wait for the recorder.

    Args:
        recorder: that writes them.
        reported: errors that have been.
        strict: raise what is wrong with a value, instead of recording it.
    """

    def __init__(self, recorder: Recorder | NoRecorder, reported: Once, strict: bool) -> None:
        self._recorder, self._reported, self._strict = recorder, reported, strict
        self._rows: list[ScalarRow] = []
        self._coming: deque[Arriving] = deque()
        self._flushed = time.perf_counter()

    def log(self, step: int, values: Any, more: Mapping[str, Any]) -> None:
        """Keep what `log` was given; a value that cannot be read costs itself alone.

        Raises:
            TypeError: `values` is no mapping.
            ValueError: `strict`, and one of them is not one real number.
        """
        for name, value in _named_values(values, more):
            try:
                self.add(step, name, value)
            except ValueError as error:
                if self._strict:
                    raise
                if self._reported.is_new("value", name):
                    logger.error("at step %d: %s; training goes on", step, error)
                    self._recorder.event(step, "error", None, str(error))
        if len(self._rows) >= _FLUSH_ROWS or time.perf_counter() - self._flushed > _FLUSH_SECONDS:
            self.flush()
        elif self._coming:
            self._hand_on()

    def add(self, step: int, name: str, value: Any) -> None:
        """Keep one value; a tensor's is fetched later.

        Raises:
            ValueError: it is not one real number, or has no name.
        """
        if not name:
            raise ValueError(f"log() wants a name for the value {value!r}, got an empty one")
        try:
            kept = _read(value)
        except Exception as error:  # whatever an object does that is asked for its number
            said = f": {error}" if isinstance(error, _NotOneNumberError) else f": {type(error).__name__}: {error}"
            raise ValueError(f"log({name}=...) takes one number, got {_described(value)}{said}") from error
        self._rows.append((step, time.time(), name, kept))

    def flush(self, wait: bool = False) -> None:
        """Hand on what waits; `wait` for what an accelerator has still to give, else that comes later."""
        if self._rows and not is_capturing():
            self._coming.append(Arriving(self._rows))
            self._rows = []
        self._hand_on(wait)
        self._flushed = time.perf_counter()

    def _hand_on(self, wait: bool = False) -> None:
        """In the loop's thread and in order."""
        while self._coming and (wait or (not is_capturing() and self._coming[0].is_there())):
            self._recorder.scalars(self._coming.popleft().rows())


def _named_values(values: Any, more: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of what `log` was given; a mapping in a mapping has its names behind a slash, `eval/loss`.

    Raises:
        TypeError: `values` is no mapping.
    """
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(f"log() takes a mapping of names to numbers, or keywords, got {type(values).__name__}")
    for mapping in (values or {}, more):
        yield from _flat(mapping, "")


def _flat(mapping: Mapping[Any, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        else:
            yield f"{before}{name}", value


class _NotOneNumberError(ValueError):
    pass


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {tuple(value.shape)} on {value.device}"
    return f"{value!r:.80}" if value is None or isinstance(value, str) else f"an object of {type(value).__name__}"


def _read(value: Any) -> float | Tensor:
    """A number, or a tensor of one that nobody has waited for."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        return _detached(value)
    if value is None or isinstance(value, str | bytes | bytearray):
        raise _NotOneNumberError("it is no number")
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):  # an array of NumPy and its kin
        value = value.item()
    return float(value)


def _detached(value: Tensor) -> Tensor:
    if value.numel() != 1 or value.is_complex():
        raise _NotOneNumberError("it is not one real number")
    if value.device.type == "meta" or not has_memory(value):
        raise _NotOneNumberError("it holds no number")
    if is_sharded(value):  # only where every process holds the number can this one alone say it
        if not all(placement.is_replicate() for placement in value.placements):  # type: ignore[attr-defined]
            raise _NotOneNumberError("each process holds a part: give value.full_tensor(), taken on every process")
        value = local(value)
    return value.detach().clone()
