"""The demo's text: read, split, and turned into tokens by a byte-level BPE trained on it.

The default text is the standard library's `pydoc_data.topics`, the chapters that Python's `help()` shows:
English prose and code, at hand without a network. Whole paragraphs repeat in it; each is kept once, since a
held-out paragraph that was also trained on would flatter the validation loss.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MAX_TEXT_BYTES = 4 << 20  # more than twice what the default run looks at, and tokenized in seconds
VALIDATION_SHARE = 0.1
MIN_VOCABULARY = 256  # one token a byte


class DemoError(ValueError):
    """Something the user can mend: one line that says what was required and what was got."""


@dataclass(frozen=True)
class Text:
    """A named text.

    Attributes:
        name: what to call it on the terminal.
        content: the characters.
        shortened: whether the file goes on after `MAX_TEXT_BYTES`.
    """

    name: str
    content: str
    shortened: bool = False

    @property
    def sha256(self) -> str:
        """Hash by which a resumed run knows its text again."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def split(self) -> tuple[str, str]:
        """The part to train on and the held-out last tenth."""
        cut = int(len(self.content) * (1 - VALIDATION_SHARE))
        return self.content[:cut], self.content[cut:]


@dataclass(frozen=True)
class Tokens:
    """A text as token numbers, 1-D int64 tensors on the CPU.

    Attributes:
        train: of the part to train on.
        validation: of the held-out part.
        vocabulary: how many different tokens there can be.
        tokenizer: the tokenizer as JSON, to be given back to `tokenize`.
    """

    train: Tensor
    validation: Tensor
    vocabulary: int
    tokenizer: str

    def batch(self, size: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`size` windows at random places, and the same windows one token on (what a model is to predict)."""
        import torch  # here, so that the command's options need none

        starts = torch.randint(len(self.train) - context, (size, 1), generator=generator, device="cpu")
        windows = self.train[starts + torch.arange(context + 1, device="cpu")]
        return windows[:, :-1], windows[:, 1:]

    def validation_windows(self, context: int) -> tuple[Tensor, Tensor]:
        """The held-out part cut into windows that do not overlap, and the same one token on."""
        end = (len(self.validation) - 1) // context * context
        return self.validation[:end].view(-1, context), self.validation[1 : end + 1].view(-1, context)


def read_text(path: str | None, limit: int | None = MAX_TEXT_BYTES) -> Text:
    """The text of a UTF-8 file, or the default text.

    Args:
        path: of the file; None for the default text.
        limit: bytes of the file that are read at most; None for all.

    Raises:
        DemoError: it cannot be read, or is not text, or has nothing in it.
    """
    if path is None:
        return Text("pydoc_data.topics (Python's own help texts)", _standard_library_text())
    try:
        with Path(path).open("rb") as file:
            raw = file.read(-1 if limit is None else limit + 1)
    except OSError as error:
        raise DemoError(f"--text must name a readable file, got {path!r}: {error.strerror}") from None
    shortened = limit is not None and len(raw) > limit
    try:
        # A decoder that is told of more to come does not stumble over a character cut in two.
        content = codecs.getincrementaldecoder("utf-8-sig")().decode(raw[:limit], final=not shortened)
    except UnicodeDecodeError as error:
        raise DemoError(
            f"--text must be a UTF-8 text file, got {path!r}: {error.reason} at byte {error.start}"
        ) from None
    if "\0" in content:
        raise DemoError(f"--text must be a UTF-8 text file, got {path!r}, which holds zero bytes")
    if not content.strip():
        raise DemoError(f"--text must be a text to train on, got {path!r}, which is empty")
    return Text(path, content.replace("\r\n", "\n"), shortened)


def _standard_library_text() -> str:
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def tokenize(text: Text, vocabulary: int, context: int, saved: str | None = None) -> Tokens:
    """Byte-level BPE tokens of a text, from a tokenizer trained on its training part.

    Args:
        text: what to split and tokenize.
        vocabulary: tokens at most; a short text yields fewer.
        context: tokens that the model sees at once; each part must be longer.
        saved: a tokenizer trained earlier, to be used as it is.

    Raises:
        DemoError: a part is not longer than `context`.
    """
    from tokenizers import Tokenizer

    parts = text.split()
    tokenizer = Tokenizer.from_str(saved) if saved else train_tokenizer([parts[0]], vocabulary)
    import torch

    train, validation = (torch.tensor(tokenizer.encode(part).ids, dtype=torch.int64, device="cpu") for part in parts)
    if min(len(train), len(validation)) <= context:
        raise DemoError(
            f"the text must give more than --context {context} tokens to train on and as many to hold out, "
            f"got {len(train)} and {len(validation)} from {text.name}; take a longer text or less context"
        )
    return Tokens(train, validation, tokenizer.get_vocab_size(), tokenizer.to_str())


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE of at most `vocabulary` tokens, trained on the texts: a `tokenizers.Tokenizer`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # BPE takes quadratic time in the length of a word, and a text without spaces is one word.
    pieces = pre_tokenizers.Split(Regex(r"\S{64}"), "isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
