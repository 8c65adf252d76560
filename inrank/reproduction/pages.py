"""HTML pages from results: one an experiment, one that collects them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from inrank.reproduction.experiment import VERDICTS, Figure
from inrank_monitor.report import FigureStore, html_document, html_table

SOURCE = "Zhao, Zhang, Chen, Schäfer, Anandkumar 2023: InRank: Incremental Low-Rank Learning, arXiv:2306.11250"
HOW = (
    "± is the standard deviation over seeds. A difference counts where its 95 % interval over the seeds (Student's t, "
    "paired by seed) leaves zero out; else it is within noise. Noise: a matrix without structure, of the same shape."
)


def experiment_page(results: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """The page of one experiment, which opens offline.

    Args:
        results: as in results.json.
        figures: drawn from its runs.
    """
    store = FigureStore()
    parts = [
        f"<h1>{escape(results['title'])}</h1>",
        f'<p class="status">{escape(conditions(results))}</p>',
        f'<p class="verdict">{escape(results["reading"])}</p>',
        f'<p class="caption"><b>In the paper.</b> {escape(results["shown_in_paper"])}</p>',
        _statements(results["statements"]),
        *(_figure(one, store) for one in figures),
        *(_table(table) for table in results["tables"]),
        _runs(results["runs"], watched=results.get("watched", True)),
        _footer(),
    ]
    return html_document(f"{results['experiment']} reproduced", "\n".join(part for part in parts if part), store)


def collecting_page(every: Sequence[Mapping[str, Any]], first_figures: Mapping[str, Figure]) -> str:
    """The page of all experiments: what each says, its first figure, and a link to its page.

    Args:
        every: results.json of each.
        first_figures: by name of the experiment.
    """
    store = FigureStore()
    parts = [
        "<h1>InRank, reproduced</h1>",
        f'<p class="status">{escape(SOURCE)}</p>',
        f'<p class="verdict">{escape(verdict_counts(every))}</p>',
        _contents(every),
    ]
    for results in every:
        name = results["experiment"]
        parts += [
            f'<h2 id="experiment-{escape(name)}">{escape(name)}: {escape(results["title"])}</h2>',
            f'<p class="status">{escape(conditions(results))} · <a href="{escape(name)}/index.html">its page</a></p>',
            f'<p class="caption">{escape(results["reading"])}</p>',
            _statements(results["statements"]),
            _figure(first_figures[name], store, "h3") if name in first_figures else "",
        ]
    return html_document("InRank, reproduced", "\n".join([*filter(None, parts), _footer()]), store)


def _contents(every: Sequence[Mapping[str, Any]]) -> str:
    """One row an experiment, with how many of its statements came to which verdict."""
    heads = "".join(f"<th>{kind}</th>" for kind in VERDICTS)
    rows = []
    for results in every:
        verdicts = [statement["verdict"] for statement in results["statements"]]
        name, counts = escape(results["experiment"]), [verdicts.count(kind) or "" for kind in VERDICTS]
        cells = "".join(f"<td>{count}</td>" for count in counts)
        link = f'<a href="#experiment-{name}">{name}</a>'
        rows.append(f'<tr><td class="text">{link}</td><td class="text">{escape(results["title"])}</td>{cells}</tr>')
    head = f'<tr><th class="text">experiment</th><th class="text">what it is</th>{heads}</tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def conditions(results: Mapping[str, Any]) -> str:
    """Scale, seeds, machine: on what the numbers stand."""
    seeds, count = len(results["seeds"]), len(results["runs"])
    planned = results.get("planned", count)
    part = f"{count} of {planned} trainings, up to" if count < planned else f"{count} trainings,"
    trained = f"{part} {seeds} seed{'s' * (seeds > 1)}" if count else "computed"
    return f"scale {results['scale']} · {trained} · {results['seconds']:.0f} s of work · {results['machine']}"


def verdict_counts(every: Sequence[Mapping[str, Any]]) -> str:
    """How many of the paper's statements were found to hold."""
    verdicts = [statement["verdict"] for results in every for statement in results["statements"]]
    kinds = [f"{kind} {verdicts.count(kind)}" for kind in VERDICTS if kind in verdicts]
    return f"{len(verdicts)} statements: {', '.join(kinds)}." if verdicts else "No statement yet."


def _statements(statements: Sequence[Mapping[str, Any]]) -> str:
    rows = [[s["claim"], s["paper"], s["ours"], s["verdict"], s["why"]] for s in statements]
    heads = ["statement", "the paper", "ours", "verdict", "how it was decided"]
    table = html_table(heads, rows, text=(0, 1, 2, 3, 4), long=(0, 1, 2, 4)) if rows else ""
    for kind in VERDICTS:
        table = table.replace(f'<td class="text">{kind}</td>', f'<td class="text {kind.replace(" ", "-")}">{kind}</td>')
    return table


def _figure(one: Figure, store: FigureStore, head: str = "h2") -> str:
    captions = "".join(f'<p class="caption">{escape(line)}</p>' for line in (one.look, one.conclude) if line)
    return f"<{head}>{escape(one.title)}</{head}>{captions}{store.place(one.figure, one.title)}"


def _table(table: Mapping[str, Any]) -> str:
    note = f'<p class="caption">{escape(table["note"])}</p>' if table["note"] else ""
    columns = list(zip(*table["rows"], strict=True))
    words = [i for i, cells in enumerate(columns) if not all(_is_number(cell) for cell in cells)]
    return f"<h2>{escape(table['title'])}</h2>{html_table(table['heads'], table['rows'], text=words)}{note}"


def _is_number(cell: str) -> bool:
    """Whether a cell begins as a number does, or is empty."""
    return not cell or cell[0].isdigit() or cell[0] in "+-−–<"


def _runs(names: Sequence[str], *, watched: bool) -> str:
    if not names:
        return ""
    listed = ", ".join(map(escape, names))
    what = "<code>inrank-monitor dashboard runs</code> opens them" if watched else "each has its training's numbers"
    return (
        f"<h2>Runs</h2><details><summary>{len(names)} run directories</summary><p>{listed}</p></details>"
        f'<p class="caption">They lie in <code>runs</code> beside this page\'s folder: {what}.</p>'
    )


def _footer() -> str:
    return f"<footer><p>{escape(HOW)}</p><p>{escape(SOURCE)}. Written by inrank reproduce.</p></footer>"
