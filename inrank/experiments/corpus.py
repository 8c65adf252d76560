"""The texts of a request as tokens, made once for all of its language models."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inrank.gpt2.text import WIKITEXT, Corpus, Texts, make_corpus, read_texts
from inrank.reproduction.experiment import Request
from inrank_monitor.demo.text import VALIDATION_SHARE

_SOURCES = ("argparse", "ast", "datetime", "difflib", "inspect", "logging/__init__", "pathlib", "tarfile", "typing")


def text_settings(request: Request, vocabulary: int) -> dict[str, object]:
    """What of a training's settings decides its tokens; `shared_corpus` takes them as keywords."""
    text = request.text or ((WIKITEXT,) if request.scale == "paper" else ())
    return {"text": list(text), "test_text": request.test_text, "vocabulary": vocabulary}


def shared_corpus(runs: Path, text: Sequence[str], test_text: str | None, vocabulary: int) -> Corpus:
    """The tokens, below the directory of the runs; whoever comes first makes them.

    Raises:
        DemoError: a text cannot be read.
    """
    return make_corpus(runs, read_texts(tuple(text), test_text), vocabulary)


def fine_tuning_corpora(runs: Path, settings: Mapping[str, Any]) -> tuple[Corpus, Corpus]:
    """The text of a request, and sources of Python in its tokens: what a model is trained on first, and then."""
    first = shared_corpus(runs, settings["text"], settings["test_text"], settings["vocabulary"])
    folder = Path(sysconfig.get_path("stdlib"))
    sources = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in _SOURCES)
    cut = int(len(sources) * (1 - VALIDATION_SHARE))
    texts = Texts("sources of Python's standard library", sources[:cut], sources[cut:])
    return first, make_corpus(runs, texts, settings["vocabulary"], tokenizer=str(first.directory))
