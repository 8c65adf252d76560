"""The tutorial: a script in percent format that is executed when the pages are built, with live Plotly figures.

jupytext splits the script into cells. Each code cell runs here, one after the other in one namespace, and below it
stands what a notebook would show: what it printed, and its last value. A figure becomes inert JSON that the page's
script draws; plotly.js is a file of the site, written out of the Python package. A cell that raises ends the build.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
import warnings
from html import escape
from pathlib import Path
from typing import Any

import jupytext
import plotly.graph_objects as go
from mkdocs.structure.files import File
from plotly.offline import get_plotlyjs

SCRIPT, PAGE, PLOTLY = "tutorial/low_rank.py", "tutorial.md", "assets/plotly.js"
DRAW = """
for (const place of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  if (figure.data.some((trace) => trace.type === "heatmap")) place.style.minWidth = "560px"; // its labels need that
  const draw = () => Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displaylogo: false});
  new IntersectionObserver((seen, observer) => {
    if (seen.some((entry) => entry.isIntersecting)) { observer.disconnect(); draw(); }
  }, {rootMargin: "600px"}).observe(place);
}
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the page and plotly.js to the site."""
    source = Path(config["docs_dir"], SCRIPT)
    files.append(File.generated(config, PAGE, content=executed(source)))
    files.append(File.generated(config, PLOTLY, content=get_plotlyjs()))
    return files


def executed(source: Path) -> str:
    """The script as Markdown, with what its cells gave."""
    notebook = jupytext.read(source, fmt="py:percent")
    names: dict[str, Any] = {"__name__": "__main__"}
    parts: list[str] = []
    figures: list[go.Figure] = []
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' remarks are no part of the page
        os.chdir(folder)
        try:
            for number, cell in enumerate(notebook.cells, start=1):
                if cell.cell_type == "markdown":
                    parts.append(cell.source)
                elif cell.cell_type == "code":
                    output = _run(cell.source, names, f"{source.name}, cell {number}", figures)
                    parts += [f"```python\n{cell.source}\n```", output]
        finally:
            os.chdir(here)
    data = "\n".join(
        f'<script type="application/json" id="figure-{i}">{_inert(figure)}</script>'
        for i, figure in enumerate(figures, start=1)
    )
    script = f'<script src="{PLOTLY}"></script>\n<script>{DRAW}</script>'
    return "\n\n".join(filter(None, [*parts, data, script])) + "\n"


def _run(code: str, names: dict[str, Any], where: str, figures: list[go.Figure]) -> str:
    """Run a cell; its output as HTML."""
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    shown = [f'<pre class="printed">{escape(text)}</pre>'] if (text := printed.getvalue().rstrip()) else []
    if value is not None and not code.rstrip().endswith(";"):
        shown.append(_shown(value, figures))
    # one line, since Markdown ends an HTML block at an empty one
    inner = "".join(shown).replace("\n", "&#10;")
    return f'<div class="output">{inner}</div>' if shown else ""


def _shown(value: Any, figures: list[go.Figure]) -> str:
    if isinstance(value, go.Figure):
        figures.append(value)
        height = int(value.layout.height or 420)
        title = escape(str(value.layout.title.text or "figure"))
        return (
            f'<div class="figure" data-figure="figure-{len(figures)}" role="img" aria-label="{title}" '
            f'style="height:{height}px"></div>'
        )
    html = getattr(value, "_repr_html_", lambda: None)()
    return str(html) if html else f'<pre class="printed">{escape(repr(value))}</pre>'


def _inert(figure: go.Figure) -> str:
    """JSON on one line in which no text can end the block."""
    return json.dumps(json.loads(figure.to_json())).replace("<", "\\u003c")
