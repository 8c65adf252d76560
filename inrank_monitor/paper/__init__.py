"""The paper's figures over anybody's runs: which panels there are, and the command that writes them.

Drawing needs pandas and Plotly: it is imported when it is asked for, and the command line begins without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrank_monitor.paper.panels import PaperOptions, paper_panels
    from inrank_monitor.paper.writing import paper_figure

__all__ = ["PaperOptions", "paper_figure", "paper_panels"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'writing' if name == 'paper_figure' else 'panels'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
