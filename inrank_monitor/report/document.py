"""One HTML page with its figures inside, and a file that is whole at any moment."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from inrank_monitor.files import replaced
from inrank_monitor.report.style import CSS, DRAW_SCRIPT


@dataclass
class FigureStore:
    """The figures of a page: a place for each in the text, all data together at its end."""

    figures: list[go.Figure] = field(default_factory=list)

    def place(self, figure: go.Figure, label: str) -> str:
        """Keep a figure and return the element that it will be drawn into."""
        self.figures.append(figure)
        height = int(figure.layout.height or 420)
        return (
            f'<div class="figure" data-figure="figure-{len(self.figures)}" role="img" '
            f'aria-label="{escape(label)}" style="height:{height}px"></div>'
        )

    def data(self) -> str:
        """The data blocks. `<` is written as an escape, so that no name can end one."""
        return "\n".join(
            f'<script type="application/json" id="figure-{i}">{_inert(figure)}</script>'
            for i, figure in enumerate(self.figures, start=1)
        )


def _inert(figure: go.Figure) -> str:
    return str(figure.to_json()).replace("<", "\\u003c")


def html_document(title: str, body: str, store: FigureStore) -> str:
    """A page that needs nothing else: no network, no other file; about 5 MB if it has figures.

    Args:
        title: plain text.
        body: HTML, escaped by the caller.
        store: the figures that the body has places for.
    """
    scripts = _scripts() if store.figures else []
    allowed = " ".join(map(_hash, scripts)) or "'none'"
    drawn = "\n".join(f"<script>{script}</script>" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · InRank Monitor</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
{"<noscript>The figures need JavaScript; the tables do not.</noscript>" if scripts else ""}
{store.data()}
{drawn}
</body>
</html>
"""


def _scripts() -> list[str]:
    plotly = "\n" + get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script") + "\n"
    return [plotly, DRAW_SCRIPT]


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: at any moment it is the whole old one or the whole new one.

    Raises:
        OSError: it cannot be written; an older one is left as it was.
    """
    with replaced(path, path.with_name(f".{path.name}.{os.getpid()}.tmp")) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
