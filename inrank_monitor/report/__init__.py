"""A run as one self-contained HTML page, and as a table for the terminal.

    report_table   text, aligned, 80 to 200 columns wide, as the terminal is
    runs_table     many runs, a line each
    write_html     a page that opens offline, with every figure, light and dark
    matrix_table   the rows of both: each matrix at its last finite measurement

Example:
    >>> from inrank_monitor import open_run
    >>> from inrank_monitor.report import report_table, write_html
    >>> run = open_run("runs/first")               # doctest: +SKIP
    >>> print(report_table(run))                   # doctest: +SKIP
    >>> write_html(run, "first.html")              # doctest: +SKIP
"""

from __future__ import annotations

from inrank_monitor.report.digest import matrix_table, missing_line, verdict
from inrank_monitor.report.document import FigureStore, html_document, write_text
from inrank_monitor.report.figure_sections import early_middle_late, telling_matrices
from inrank_monitor.report.overview import overview_table, standing_out
from inrank_monitor.report.page import write_html
from inrank_monitor.report.runs import runs_table
from inrank_monitor.report.table_sections import html_table
from inrank_monitor.report.terminal import printable, report_table
from inrank_monitor.report.widths import width_table, widths_line

__all__ = [
    "FigureStore",
    "early_middle_late",
    "html_document",
    "html_table",
    "matrix_table",
    "missing_line",
    "overview_table",
    "printable",
    "report_table",
    "runs_table",
    "standing_out",
    "telling_matrices",
    "verdict",
    "width_table",
    "widths_line",
    "write_html",
    "write_text",
]
