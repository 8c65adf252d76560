"""One HTML page with its figures inside, and a file that is whole at any moment."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from inrank_monitor.files import replaced
from inrank_monitor.report.scripts import DRAW_SCRIPT, TABLE_SCRIPT
from inrank_monitor.report.style import CSS


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
        """All figures, packed: an object of JSON with a figure by its place."""
        pairs = (f'"figure-{i}":{figure.to_json()}' for i, figure in enumerate(self.figures, start=1))
        return packed("figures", "{" + ",".join(pairs) + "}")


def packed(name: str, text: str) -> str:
    """A block that runs nothing and holds a text, compressed, for `unpacked(name)` in the page's script.

    Base 85, four bytes in five letters, none of which could end the block: what would be `<` is a comma.
    """
    content = zlib.compress(text.encode(), 9)
    letters = base64.b85encode(content, pad=True).decode().replace("<", ",")
    return f'<script type="text/plain" id="packed-{name}" data-bytes="{len(content)}">{letters}</script>'


def unpack(letters: str, size: int) -> str:
    """What `packed` was given, from the block's letters and its `data-bytes`."""
    return zlib.decompress(base64.b85decode(letters.replace(",", "<"))[:size]).decode()


def html_document(title: str, body: str, store: FigureStore) -> str:
    """A page that needs nothing else: no network, no other file; about 2 MB if it has figures.

    Plotly is in it compressed. The policy names each script that may run by its hash, Plotly by that of what is
    unpacked.

    Args:
        title: plain text.
        body: HTML, escaped by the caller.
        store: the figures that the body has places for.
    """
    scripts = [TABLE_SCRIPT] if "<table" in body else []
    library = plotly_script() if store.figures else ""
    scripts += [DRAW_SCRIPT] if library else []
    allowed = " ".join(map(_hash, [*scripts, library] if library else scripts)) or "'none'"
    drawn = "\n".join(f"<script>{script}</script>" for script in scripts)
    blocks = f"{packed('plotly', library)}\n{store.data()}" if library else ""
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
{"<noscript>The figures need JavaScript; the tables do not.</noscript>" if library else ""}
{blocks}
{drawn}
</body>
</html>
"""


def plotly_script() -> str:
    """Plotly as the page runs it."""
    return str(get_plotlyjs()).replace("\r\n", "\n")


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: at any moment it is the whole old one or the whole new one.

    Raises:
        OSError: it cannot be written; an older one is left as it was.
    """
    with replaced(path, path.with_name(f".{path.name}.{os.getpid()}.tmp")) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
