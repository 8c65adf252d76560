"""What a sink is, and what `attach` does with the sinks that it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from inrank_monitor.sinks.measurements import Measurements


class Sink(ABC):
    """Something that gets the measurements of every snapshot. A subclass needs `write` alone."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: what is connected to a logger is not connected twice by a callback that is copied."""
        return self

    def connect(self, names: Sequence[str]) -> None:  # noqa: B027 (may be left out)
        """Called by `attach`, in its thread and before anything is written: find the logger, or raise.

        Args:
            names: of the watched matrices.
        """

    @abstractmethod
    def write(self, measurements: Measurements) -> None:
        """Take one snapshot, in the sink's own thread; what it raises is recorded, and training goes on."""

    def close(self) -> None:  # noqa: B027 (may be left out)
        """Called in the sink's own thread after the last snapshot."""


def check_sinks(sinks: Sequence[Sink]) -> list[Sink]:
    """The sinks as a list.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(sinks, list | tuple):
        raise TypeError(f"sinks must be a list of sinks (inrank_monitor.sinks), got {sinks!r}")
    for sink in sinks:
        if isinstance(sink, type):
            raise TypeError(f"sinks must hold sinks, got the class {sink.__name__}: write {sink.__name__}()")
        if not isinstance(sink, Sink):
            raise TypeError(f"sinks must hold subclasses of inrank_monitor.sinks.Sink, got {sink!r}")
    return list(sinks)


def connect_sinks(sinks: Sequence[Sink], names: Sequence[str]) -> None:
    """Connect each; what one raises goes through."""
    for sink in sinks:
        sink.connect(names)
