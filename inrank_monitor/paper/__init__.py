"""The paper's figures over anybody's runs: which panels there are, and the command that writes them.

Drawing needs pandas and Plotly: it is imported when it is asked for, and the command line begins without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrank_monitor.paper.panels import PaperOptions, paper_panels

__all__ = ["PaperOptions", "paper_panels"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from inrank_monitor.paper import panels

        return getattr(panels, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
