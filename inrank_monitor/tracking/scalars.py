"""What the user logs beside the spectra, gathered until it is worth a batch."""

from __future__ import annotations

import time

from torch import Tensor

from inrank_monitor.tracking.recorder import NoRecorder, Recorder, ScalarRow

_FLUSH_SECONDS, _FLUSH_ROWS = 5.0, 2048


class Scalars:
    """Rows that wait for the recorder."""

    def __init__(self, recorder: Recorder | NoRecorder) -> None:
        self._recorder = recorder
        self._rows: list[ScalarRow] = []
        self._flushed = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether so much waits, or for so long, that it should be handed on."""
        return len(self._rows) >= _FLUSH_ROWS or time.perf_counter() - self._flushed > _FLUSH_SECONDS

    def add(self, step: int, name: str, value: float | Tensor) -> None:
        """Keep one value; a tensor's is fetched later, in the recorder's thread.

        Raises:
            ValueError: it is not one real number.
        """
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise ValueError(f"log({name}=...) takes one number, got {value.dtype} {tuple(value.shape)}")
            kept: float | Tensor = value.detach().clone()
        else:
            kept = float(value)
        self._rows.append((step, time.time(), name, kept))

    def flush(self) -> None:
        """Hand on what waits."""
        if self._rows:
            self._recorder.scalars(self._rows)
            self._rows = []
        self._flushed = time.perf_counter()
