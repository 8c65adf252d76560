"""A run as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from inrank_monitor.report.digest import matrix_table, remarks, rule_line, status_line, verdict
from inrank_monitor.report.figure_sections import FigureStore, close_ups, overview
from inrank_monitor.report.source import RunTables
from inrank_monitor.report.style import CSS, DRAW_SCRIPT
from inrank_monitor.report.table_sections import events_section, matrices_section, skipped_section

_FOOTER = (
    "<p>ΔW = W − W0 is what training has changed of a weight matrix since the tracker was attached; its "
    "singular values σ are the strengths of the directions of that change. The rank is the least r whose "
    "explained ratio (Zhao et al. 2023, InRank, arXiv:2306.11250, eq. 7) reaches α. That rule gives a rank "
    "even to noise: the null rank, which each rank stands beside. Stable rank is ‖ΔW‖²/σ₁², effective rank "
    "exp(entropy of σ/Σσ).</p>"
)


def write_html(run: RunTables, path: str | Path) -> Path:
    """Write the report page; at any moment the file is the whole old page or the whole new one.

    What comes from the run (names, messages) is escaped, and the page's policy allows no script but its two.

    Args:
        run: an open run, finished or live.
        path: the file to write; its directory must exist.

    Returns:
        The path, about 5 MB: plotly.js is inside.

    Raises:
        OSError: the file cannot be written; an older one is left as it was.
    """
    target = Path(path)
    text = render(run)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
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
        f'<p class="verdict">{escape(verdict(table))}</p>',
        f'<ul class="notes">{notes}</ul>' if notes else "",
        overview(run, table, store),
        close_ups(run, table, store),
        matrices_section(table),
        skipped_section(run),
        events_section(run),
        f"<footer>{_FOOTER}<p>Written by inrank-monitor.</p></footer>",
    ]
    return _page(escape(run.name), "\n".join(part for part in body if part), store)


def _page(title: str, body: str, store: FigureStore) -> str:
    plotly = "\n" + get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script") + "\n"
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(DRAW_SCRIPT)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · InRank Monitor</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
<noscript>The figures need JavaScript; the tables do not.</noscript>
{store.data()}
<script>{plotly}</script>
<script>{DRAW_SCRIPT}</script>
</body>
</html>
"""


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
