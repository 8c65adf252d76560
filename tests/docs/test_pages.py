"""Every code block of README.md and docs/ that claims to run is run, or its commands are parsed by our own parsers.

What cannot run here says so in a comment above the block, which a reader of the page does not see:
`<!-- not run: the reason -->`. The marks are counted here, so that a new one is a decision.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.doc_pages import PAGES, QUIET, ROOT, STAND_INS, Block, blocks, check_command, commands

import inrank
import inrank_monitor
from inrank_monitor import SpectrumTracker

MARKS = {"docs/loggers.md": 2, "docs/trainers/distributed.md": 2, "docs/trainers/transformers.md": 1}


def is_run(block: Block) -> bool:
    return block.language == "python" and block.reason is None


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> list[SpectrumTracker]:
    """Every tracker that is made, also those that a block does not keep."""
    made: list[SpectrumTracker] = []
    begin = SpectrumTracker.__init__

    def begin_and_note(self: SpectrumTracker, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(SpectrumTracker, "__init__", begin_and_note)
    return made


def make_room(code: str) -> None:
    """A block that begins a run finds its directory empty, as its reader does, whatever the blocks before it did."""
    if re.search(r"attach\(|Callback\(|scan\(", code) and "resume" not in code:
        for name in re.findall(r'"(runs/[\w-]+)"', code):
            shutil.rmtree(name, ignore_errors=True)


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page)))])
def test_the_python_of_a_page_runs(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
    trackers: list[SpectrumTracker],
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' remarks on stand-ins this small
        names = STAND_INS.get(page, dict)()
        for block in filter(is_run, blocks(page)):
            make_room(block.code)
            source = "\n" * block.line + block.code  # so that a traceback names the page's line
            try:
                exec(compile(source, str(ROOT / page), "exec"), names)
            except Exception as error:
                pytest.fail(f"{block.where}: {type(error).__name__}: {error}")
            for tracker in trackers:
                tracker.close()  # the next block may begin where this one did
    if page == "docs/growing-rank.md":
        assert "of ‖W‖² kept" in capsys.readouterr().out
        assert not any(isinstance(module, inrank.LowRankLinear) for module in names["model"].modules())
        kinds = set(inrank_monitor.open_run("runs/grown").events["kind"])
        assert "rank_grown" in kinds, "no rank grew, so the example shows nothing"


CONSOLE = [block for page in PAGES for block in blocks(page) if block.language == "console"]


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block.where)
def test_the_commands_of_a_block_are_ours_or_there(block: Block) -> None:
    assert commands(block), f"{block.where}: no line begins with `$ `"
    for words in commands(block):
        try:
            check_command(words)
        except (AssertionError, SystemExit) as error:
            pytest.fail(f"{block.where}: {' '.join(words)}: {error}")


def test_every_block_is_run_or_says_why_not() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    unknown = [block.where for block in every if block.language not in ("python", "console", *QUIET)]
    assert not unknown, "a block needs a language: python, console or text"
    assert Counter(block.page for block in every if block.reason) == MARKS


def test_a_mark_counts_for_the_block_below_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.doc_pages.ROOT", tmp_path)
    text = "<!-- not run: it is wrong -->\n\n```python\n1 / 0\n```\n\nwords\n\n  ```console\n  $ make test\n  ```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    wrong, right = blocks("page.md")
    assert (wrong.reason, wrong.code, wrong.line) == ("it is wrong", "1 / 0", 3)
    assert (right.reason, right.language, commands(right)) == (None, "console", [["make", "test"]])


@pytest.mark.parametrize(
    "words", [["make", "coffee"], ["inrank", "brew"], ["inrank-monitor", "list", "--loud"], ["pip", "install", ".[x]"]]
)
def test_a_wrong_command_is_noticed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check_command(words)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / link).exists(), link


def test_the_reference_holds_every_public_name() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    for package in (inrank_monitor, inrank):
        for name in package.__all__:
            assert re.search(rf"\b{name}\b", pages), f"{package.__name__}.{name} is missing in docs/api"
