"""Figures as a paper prints them: vectors at column width, near-black text, panels on shared axes; their data as CSV.

A Plotly figure goes in, as the page and the report show it, and Matplotlib draws it: it needs no browser, embeds its
letters in the PDF and leaves text as text in the SVG.
"""

from __future__ import annotations

from inrank_monitor.figures.paper.data import figure_csv, figure_table
from inrank_monitor.figures.paper.sheet import (
    FORMATS,
    WIDTHS,
    check_matplotlib,
    inches_of,
    natural_width,
    paper_figure_bytes,
    save_figure,
)

__all__ = [
    "FORMATS",
    "WIDTHS",
    "check_matplotlib",
    "figure_csv",
    "figure_table",
    "inches_of",
    "natural_width",
    "paper_figure_bytes",
    "save_figure",
]
