"""Why a training has ended that did not say so: an exception, or the code with which the script exits.

What is said to `sys.exit` counts only if the main module really ended by an exception, which its frame shows: a code
that somebody caught has ended nothing.
"""

from __future__ import annotations

import dis
import sys
import threading
from types import FrameType
from typing import Any

from inrank_monitor.tracking.exit_codes import exit_codes

_SYS = vars(sys)  # asked at every step: an attribute that a module lacks takes microseconds


class Exits:
    """What is known of exceptions and exits since a run began."""

    def __init__(self) -> None:
        exit_codes.open()
        self._main = _main_module_frame()
        self._handled = id(sys.exc_info()[1])
        self._shown = 0
        self.goes_on()

    def goes_on(self) -> None:
        """The training goes on: the last exception that was shown to somebody has not ended it."""
        self._shown = id(_last_shown())
        exit_codes.forget()

    def close(self) -> None:
        """Listen no more."""
        self._main = None
        exit_codes.close()

    def reason(self, dropped: bool = False) -> str | None:
        """The name of what has ended the training, or None where nothing says that it failed.

        Args:
            dropped: the tracker goes with its last reference, and this is called right there.
        """
        shown, handled = _last_shown(), sys.exc_info()[1]
        if shown is not None and id(shown) != self._shown:
            return _named(shown)
        if handled is not None and id(handled) != self._handled:
            return _named(handled)
        frame = self._main
        if frame is not None and not _is_running(frame):
            return None if _operation(frame) == "RETURN" else _reason_of_exit(frame)
        return _reason_of_caught() if dropped and _leaves_an_except_clause() else None


def _named(error: BaseException) -> str | None:
    if isinstance(error, SystemExit):
        return _reason_of_code(error.code)
    return type(error).__name__


def _reason_of_code(code: Any) -> str | None:
    """As Python turns the argument of `sys.exit` into a status: None and 0 are success, a text is status 1."""
    return None if code is None or code == 0 else f"SystemExit: {code}"


def _reason_of_exit(frame: FrameType) -> str | None:
    """The main module ended by a SystemExit: whatever else ends it is shown."""
    if said := exit_codes.of(threading.main_thread().ident):
        return _reason_of_code(said[0])
    # `raise SystemExit(...)` tells nobody: its code is known where it is written down. `raise SystemExit(main())` is
    # how scripts end, whatever main() returned; raised further inside it has broken something off.
    if _operation(frame) != "RAISE":
        return "SystemExit"
    before = [found for found in dis.get_instructions(frame.f_code) if found.offset < frame.f_lasti][-3:]
    constant = next((found.argval for found in before if found.opname.startswith("LOAD_CONST")), None)
    return _reason_of_code(constant)


def _reason_of_caught() -> str | None:
    said = exit_codes.of(threading.get_ident())
    return _reason_of_code(said[0]) if said else "an exception that was caught"


def _last_shown() -> BaseException | None:
    """What an interpreter or a notebook has shown last: a script has ended with it."""
    return _SYS.get("last_exc") or _SYS.get("last_value")


def _main_module_frame() -> FrameType | None:
    """The outermost frame of the script, which lives as long as the process; its locals are the module's globals."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    outermost = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            outermost = frame
        frame = frame.f_back
    return outermost


def _is_running(frame: FrameType) -> bool:
    current = sys._current_frames().get(threading.main_thread().ident or 0)
    while current is not None and current is not frame:
        current = current.f_back
    return current is frame


def _operation(frame: FrameType) -> str:
    """What a frame was at last doing: RETURN, RAISE, CALL, ..."""
    found = [one.opname for one in dis.get_instructions(frame.f_code) if one.offset <= frame.f_lasti]
    return found[-1].partition("_")[0] if found else ""


def _leaves_an_except_clause() -> bool:
    """Whether the frame that lets go of the tracker is just forgetting an exception, and with it the frames of it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "weakref", f"{__package__}.ending"):
        frame = frame.f_back
    if frame is None:
        return False
    before = [found for found in dis.get_instructions(frame.f_code) if found.offset <= frame.f_lasti]
    if before and before[-1].opname == "POP_EXCEPT":
        return True
    # `except ... as error` ends by error = None
    names = [found.opname for found in before[-3:]]
    return names[:2] == ["POP_EXCEPT", "LOAD_CONST"] and names[-1].startswith("STORE")
