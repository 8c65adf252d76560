"""The caller's function that gets each snapshot's table, in the loop's thread: `attach(on_snapshot=)`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inrank_monitor.tracking.started_run import StartedRun

if TYPE_CHECKING:
    import pandas as pd

    from inrank_monitor.tracking.recorder import Drawn

OnSnapshot = Callable[["pd.DataFrame"], Any]
_PATIENCE_SECONDS = 30.0


def check_on_snapshot(function: OnSnapshot | None) -> None:
    """Raise a TypeError unless it is a function of one table, or None."""
    if function is None:
        return
    wanted = "on_snapshot must be a function of one argument, the snapshot's table"
    if not callable(function):
        raise TypeError(f"{wanted}, got {type(function).__name__}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{wanted}, got a coroutine or generator, which a call would not run")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C's, which does not say
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(f"{wanted}, got one that takes {signature}: {error}") from None


class SnapshotCalls:
    """Draws each snapshot's table while the loop waits, and hands it over once the step has been dealt with.

    Args:
        function: gets the table; None: nothing waits and nothing is called.
        started: the run.
    """

    def __init__(self, function: OnSnapshot | None, started: StartedRun) -> None:
        self._function, self._started = function, started
        self._process = os.getpid()
        self._table: pd.DataFrame | None = None
        if function is not None:
            from inrank_monitor.runs import snapshot_table  # pandas now, and not inside a step

            self._make = snapshot_table

    @property
    def waits(self) -> bool:
        """Whether the loop waits for each snapshot."""
        return self._function is not None

    def draw(self, drawn: Drawn | None) -> None:
        """Wait until the recorder's thread has drawn the metrics; None where this process records nothing.

        Raises:
            TimeoutError: it is too far behind.
        """
        if self._function is None or drawn is None or os.getpid() != self._process:
            return
        try:
            failure = drawn.exception(_PATIENCE_SECONDS)
        except TimeoutError:
            waited = f"its metrics were not drawn within {_PATIENCE_SECONDS:.0f} s, as the disk is behind"
            raise TimeoutError(f"on_snapshot goes without a snapshot: {waited}") from None
        columns = None if failure else drawn.result()  # the recorder reports its own failures
        if columns is not None and len(columns["step"]):
            self._table = self._make(columns, self._started.info["matrices"])

    def hand_over(self) -> None:
        """Call the function, if there is a table that it has not had; whatever it raises is raised."""
        table, self._table = self._table, None
        if table is not None and self._function is not None:
            self._function(table)

    def release(self) -> None:
        """Let go of the function, and of all that it holds."""
        self._function = self._table = None
