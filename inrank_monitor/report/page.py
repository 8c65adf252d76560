"""A run as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from html import escape
from pathlib import Path

from inrank_monitor.report.digest import (
    divergence_line,
    loss_line,
    matrix_table,
    remarks,
    rule_line,
    status_line,
    verdict,
)
from inrank_monitor.report.document import FigureStore, html_document, write_text
from inrank_monitor.report.figure_sections import close_ups, overview
from inrank_monitor.report.source import RunTables
from inrank_monitor.report.table_sections import events_section, matrices_section, skipped_section
from inrank_monitor.report.widths import widths_section
from inrank_monitor.runs import local_path

_FOOTER = (
    "<p>ΔW = W − W0 is what training has changed of a weight matrix since the tracker was attached; its "
    "singular values σ are the strengths of the directions of that change. The rank is the least r whose "
    "explained ratio (Zhao et al. 2023, InRank, arXiv:2306.11250, eq. 7) reaches α. That rule gives a rank "
    "even to noise: the null rank, which each rank stands beside. Stable rank is ‖ΔW‖²/σ₁², effective rank "
    "exp(entropy of σ/Σσ).</p>"
)


def write_html(run: RunTables, path: str | Path) -> Path:
    """Write the report page; at any moment the file is the whole old page or the whole new one.

    What comes from the run (names, messages) is escaped, and the page's policy allows no script but its own three.

    Args:
        run: an open run, finished or live.
        path: the file to write; its directory must exist.

    Returns:
        The path, about 2 MB: plotly.js is inside, compressed.

    Raises:
        OSError: the file cannot be written; an older one is left as it was.
    """
    target = local_path(path, "path")
    write_text(target, render(run))
    return target


def render(run: RunTables) -> str:
    """The page as text."""
    table = matrix_table(run)
    store = FigureStore()
    notes = "".join(f"<li>{escape(note)}</li>" for note in remarks(run))
    body = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="status">{escape(status_line(run))}</p>',
        f'<p class="status">{escape(rule_line(run))}</p>',
        f'<p class="status"><strong>⚠ {escape(diverged)}</strong></p>' if (diverged := divergence_line(run)) else "",
        f'<p class="verdict">{escape(verdict(table))}</p>',
        f'<p class="status">{escape(said)}</p>' if (said := loss_line(run)) else "",
        f'<ul class="notes">{notes}</ul>' if notes else "",
        overview(run, table, store),
        close_ups(run, table, store),
        matrices_section(table),
        widths_section(run),
        skipped_section(run),
        events_section(run),
        f"<footer>{_FOOTER}<p>Written by inrank-monitor.</p></footer>",
    ]
    return html_document(run.name, "\n".join(part for part in body if part), store)
