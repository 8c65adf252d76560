"""The table of all experiments as Markdown, made from their results.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inrank.reproduction.catalogue import OF_PAPER
from inrank.reproduction.experiment import VERDICTS
from inrank.reproduction.pages import HOW, SOURCE, conditions, verdict_counts


def document(every: Sequence[Mapping[str, Any]]) -> str:
    """`reproduction.md`: each statement, the paper's number, ours, whether they agree and why."""
    lines = [
        f"# {_title(every)}",
        "",
        f"{SOURCE}.",
        "",
        f"Written by `{_command(every)}` from the `results.json` of each experiment; nothing is typed in by hand.",
        f"{verdict_counts(every)} {HOW}",
        "",
    ]
    counts = [_counts(results) for results in every]
    lines += [*_table(["experiment", "what it is", *VERDICTS], counts), ""]
    for results in every:
        lines += _section(results)
    return "\n".join(lines).rstrip() + "\n"


def _title(every: Sequence[Mapping[str, Any]]) -> str:
    if _of_paper(every):
        return "The paper, reproduced"
    return str(every[0]["title"]) if len(every) == 1 else "Beyond the paper"


def _of_paper(every: Sequence[Mapping[str, Any]]) -> bool:
    return any(results["experiment"] in OF_PAPER for results in every)


def _command(every: Sequence[Mapping[str, Any]]) -> str:
    scales = " ".join(dict.fromkeys(results["scale"] for results in every))
    names = "--all" if _of_paper(every) else " ".join(results["experiment"] for results in every)
    return f"inrank reproduce {names} --scale {scales} --document FILE"


def _counts(results: Mapping[str, Any]) -> list[str]:
    verdicts = [statement["verdict"] for statement in results["statements"]]
    return [results["experiment"], results["title"], *(str(verdicts.count(kind) or "") for kind in VERDICTS)]


def _section(results: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## {results['experiment']}: {results['title']}",
        "",
        f"*{conditions(results)}*",
        "",
        f"**{_text(results['reading'])}**",
        "",
    ]
    statements = [[s["claim"], s["paper"], s["ours"], s["verdict"], s["why"]] for s in results["statements"]]
    if statements:
        lines += [*_table(["statement", "the paper", "ours", "verdict", "how it was decided"], statements), ""]
    for table in results["tables"]:
        lines += [f"{_text(table['title'])}:", "", *_table(table["heads"], table["rows"]), ""]
        if table["note"]:
            lines += [_text(table["note"]), ""]
    return lines


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(heads), _row(["---"] * len(heads)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(cell: str) -> str:
    """On one line, with no character that Markdown would take for its own."""
    plain = " ".join(cell.split())
    for character in "\\|*_<":
        plain = plain.replace(character, f"\\{character}")
    return plain
