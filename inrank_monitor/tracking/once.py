"""Which errors have been reported already: a diverged training must not fill the log with one a step."""

from __future__ import annotations


class Once:
    """Tells a new kind of error from one that has been reported."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def is_new(self, error: BaseException | str, context: str = "") -> bool:
        """Whether this is the first of its kind; from then on it is not.

        Args:
            error: or a word that stands for a kind of problem.
            context: what else makes two of them different.
        """
        mark = f"{context} {error if isinstance(error, str) else _signature(error)}"
        if mark in self._seen:
            return False
        self._seen.add(mark)
        return True


def _signature(error: BaseException) -> str:
    """Type and place, not the text, which may hold a step."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__} {error.errno if isinstance(error, OSError) else place}"
