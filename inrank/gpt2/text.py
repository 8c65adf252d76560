"""Text to token blocks: files, WikiText-103 or Python's own help texts, through a byte-level BPE, kept on disk once.

What is tokenized goes into `OUTPUT/tokens-HASH/`, named after its content, so that every method and every seed of a
comparison reads the same tokens from the same memory-mapped file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from inrank_monitor.console import typed
from inrank_monitor.demo.text import VALIDATION_SHARE, DemoError, read_text, train_tokenizer
from inrank_monitor.files import named_after
from inrank_monitor.runs import write_json

WIKITEXT = "wikitext-103"
TOKENIZER_FILE = "tokenizer.json"
_PIECE = 1 << 16  # characters that are tokenized at once: an encoding takes a hundred times its tokens' room
_ABOUT_FILE = "corpus.json"


@dataclass(frozen=True)
class Texts:
    """What to train on and what to test on, with a name for the terminal."""

    name: str
    train: str
    test: str


@dataclass(frozen=True)
class Corpus:
    """Tokenized texts on disk.

    Attributes:
        directory: that holds them.
        name: of the text.
        vocabulary: how many different tokens there can be.
        train: (tokens,), memory-mapped.
        test: (tokens,), memory-mapped.
    """

    directory: Path
    name: str
    vocabulary: int
    train: np.ndarray
    test: np.ndarray

    def test_windows(self, context: int, count: int | None = None) -> Tensor:
        """The test text cut into windows that share one token, (windows, context + 1): each token is predicted once.

        Args:
            context: tokens that the model sees at once.
            count: windows at most.
        """
        windows = (len(self.test) - 1) // context if count is None else min(count, (len(self.test) - 1) // context)
        places = np.arange(windows)[:, None] * context + np.arange(context + 1)
        return torch.from_numpy(self.test[places].astype(np.int64))


class Blocks(Dataset[dict[str, Tensor]]):
    """A text as blocks of `context` tokens that do not overlap, as the Trainer wants them."""

    def __init__(self, tokens: np.ndarray, context: int) -> None:
        self._tokens, self._context = tokens, context

    def __len__(self) -> int:
        return len(self._tokens) // self._context

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = index * self._context
        block = torch.from_numpy(self._tokens[first : first + self._context].astype(np.int64))
        return {"input_ids": block, "labels": block}


def read_texts(text: Sequence[str], test_text: str | None) -> Texts:
    """The training text and the test text; without a test text the last tenth is held out.

    Args:
        text: files (.parquet with a column `text`, else UTF-8 text), or `("wikitext-103",)`, which has a test text of
            its own; empty for Python's own help texts.
        test_text: a file.

    Raises:
        DemoError: a text cannot be read or has nothing in it, or `datasets` is missing or cannot reach the data.
    """
    if WIKITEXT in text:
        if len(text) > 1:
            raise DemoError(f"--text takes files or {WIKITEXT}, got both: {' '.join(text)}")
        train, test = _wikitext()
        return Texts(WIKITEXT, train, test if test_text is None else _read_file(test_text, "--test-text"))
    name = ", ".join(Path(path).name for path in text)
    if text:
        train = "\n".join(_read_file(path, "--text") for path in text)
    else:
        default = read_text(None)
        train, name = default.content, default.name
    if test_text is not None:
        return Texts(name, train, _read_file(test_text, "--test-text"))
    cut = int(len(train) * (1 - VALIDATION_SHARE))
    return Texts(name, train[:cut], train[cut:])


def _read_file(path: str, option: str) -> str:
    if Path(path).suffix == ".parquet":
        return _read_parquet(path, option)
    try:
        return read_text(path, limit=None).content
    except DemoError as error:
        raise DemoError(str(error).replace("--text", option, 1)) from None


def _read_parquet(path: str, option: str) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["text"]).column("text").to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:  # also a table that has no such column
        line = str(error).splitlines()[0]
        raise DemoError(f"{option} must be a parquet file with a column 'text', got {path!r}: {line}") from None
    return _join(rows, f"{option} {path!r}")


def _join(rows: Sequence[Any], what: str) -> str:
    """One text from rows, of which WikiText's end with their own newline."""
    if not all(row is None or isinstance(row, str) for row in rows):
        raise DemoError(f"{what}: the column 'text' must hold text")
    content = "".join(row if row.endswith("\n") else f"{row}\n" for row in rows if row)
    if not content.strip():
        raise DemoError(f"{what}: there is no text in it")
    return content


def _wikitext() -> tuple[str, str]:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ModuleNotFoundError:
        raise DemoError(
            f"--text {WIKITEXT} needs the datasets library ({typed('pip', 'install', 'datasets')}); "
            "or give the text as files"
        ) from None
    try:
        splits = load_dataset("Salesforce/wikitext", "wikitext-103-raw-v1")
        return _join(splits["train"]["text"], WIKITEXT), _join(splits["test"]["text"], WIKITEXT)
    except Exception as error:  # whatever the library and the network below it raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DemoError(f"--text {WIKITEXT} could not be loaded ({line}); give the text as files instead") from None


def make_corpus(output: Path, texts: Texts, vocabulary: int, tokenizer: str | None = None) -> Corpus:
    """Tokenize into `output/tokens-HASH`, or take what is there already.

    Args:
        output: directory; made if need be.
        texts: to tokenize.
        vocabulary: tokens at most of the BPE that is trained on the training text.
        tokenizer: a `tokenizer.json`, or a directory with one, in place of that.

    Raises:
        DemoError: there is no such tokenizer.
    """
    ready = _read_tokenizer(tokenizer) if tokenizer else None
    made = f"{vocabulary}" if ready is None else ready.to_str()
    digest = hashlib.sha256("\0".join((texts.train, texts.test, made)).encode()).hexdigest()[:12]
    directory = output / f"tokens-{digest}"
    if not directory.is_dir():
        _write(directory, texts, ready or train_tokenizer(_pieces(texts.train), vocabulary))
    return open_corpus(directory)


def open_corpus(directory: Path) -> Corpus:
    """What `make_corpus` wrote.

    Raises:
        DemoError: it is not there or damaged.
    """
    try:
        about = json.loads((directory / _ABOUT_FILE).read_text(encoding="utf-8"))
        train, test = (np.load(directory / f"{part}.npy", mmap_mode="r") for part in ("train", "test"))
        return Corpus(directory, about["name"], about["vocabulary"], train, test)
    except (OSError, ValueError, KeyError) as error:
        raise DemoError(f"{directory} does not hold the tokens any more ({error}): delete it and start again") from None


def _read_tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    file = Path(path) / TOKENIZER_FILE if Path(path).is_dir() else Path(path)
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exceptions
        raise DemoError(
            f"--tokenizer must be a {TOKENIZER_FILE} or a directory with one, got {path!r}: {error}"
        ) from None


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at ends of lines."""
    first = 0
    while first < len(text):
        last = text.find("\n", first + _PIECE) + 1 or len(text)
        yield text[first:last]
        first = last


def _write(directory: Path, texts: Texts, tokenizer: Any) -> None:
    temporary = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    with named_after(directory, temporary):
        try:
            _write_beside(temporary, directory, texts, tokenizer)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_beside(temporary: Path, directory: Path, texts: Texts, tokenizer: Any) -> None:
    temporary.mkdir(parents=True)
    vocabulary = tokenizer.get_vocab_size()
    kind = np.uint16 if vocabulary <= 1 << 16 else np.int32
    for part, text in (("train", texts.train), ("test", texts.test)):
        encoded = [np.array(tokenizer.encode(piece).ids, dtype=kind) for piece in _pieces(text)]
        np.save(temporary / f"{part}.npy", np.concatenate(encoded))
    tokenizer.save(str(temporary / TOKENIZER_FILE))
    write_json(temporary / _ABOUT_FILE, {"name": texts.name, "vocabulary": vocabulary})
    try:
        temporary.rename(directory)
    except OSError:
        if not directory.is_dir():  # else another process was first, with the same tokens
            raise
