"""The two texts of a model that is fine-tuned: help texts, then sources of Python, in the tokens of the first."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrank.experiments.corpus import shared_corpus
from inrank.gpt2.text import Corpus, Texts, make_corpus
from inrank_monitor.demo.text import VALIDATION_SHARE

_SOURCES = ("argparse", "ast", "datetime", "difflib", "inspect", "logging/__init__", "pathlib", "tarfile", "typing")


def fine_tuning_corpora(runs: Path, settings: Mapping[str, Any]) -> tuple[Corpus, Corpus]:
    """What the model is trained on first, and then."""
    first = shared_corpus(runs, settings["text"], settings["test_text"], settings["vocabulary"])
    folder = Path(sysconfig.get_path("stdlib"))
    sources = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in _SOURCES)
    cut = int(len(sources) * (1 - VALIDATION_SHARE))
    texts = Texts("sources of Python's standard library", sources[:cut], sources[cut:])
    return first, make_corpus(runs, texts, settings["vocabulary"], tokenizer=str(first.directory))
