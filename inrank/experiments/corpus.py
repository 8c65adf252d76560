"""The text of a request as tokens, made once for all of its language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inrank.gpt2.text import WIKITEXT, Corpus, make_corpus, read_texts
from inrank.reproduction.experiment import Request


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
