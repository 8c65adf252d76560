"""Logged values that lie on an accelerator: one copy a batch, queued by the loop's thread and not waited for.

Another thread would read them on a stream of its own, before the loop's has written them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inrank_monitor.spectra import has_float64, is_accelerator, sent

if TYPE_CHECKING:
    from inrank_monitor.tracking.recorder import ScalarRow


class Arriving:
    """Rows whose values are on their way to the host.

    Args:
        rows: (step, unix seconds, name, value); values that are there already stay what they are.
    """

    def __init__(self, rows: Sequence[ScalarRow]) -> None:
        self._rows = list(rows)
        self._copies: list[tuple[Any, list[int], Tensor]] = []  # event, places among the rows, what they will be
        places: dict[torch.device, list[int]] = {}
        for place, (_, _, _, value) in enumerate(self._rows):
            if isinstance(value, Tensor) and is_accelerator(value.device):
                places.setdefault(value.device, []).append(place)
        for device, there in places.items():
            self._copies.append(self._begin(device, there))

    def _begin(self, device: torch.device, places: list[int]) -> tuple[Any, list[int], Tensor]:
        dtype = torch.float64 if has_float64(device) else torch.float32
        values = [value.reshape(1) for place in places if isinstance(value := self._rows[place][3], Tensor)]
        joined = torch.cat([value.to(dtype) for value in values])
        event, target = sent(joined)
        return event, places, target

    def is_there(self) -> bool:
        """Whether `rows` would not wait."""
        return all(event.query() for event, _, _ in self._copies)

    def rows(self) -> list[ScalarRow]:
        """All of them, as numbers."""
        for event, places, target in self._copies:
            event.synchronize()
            for place, value in zip(places, target.tolist(), strict=True):
                step, when, name, _ = self._rows[place]
                self._rows[place] = (step, when, name, value)
        self._copies = []
        return self._rows
