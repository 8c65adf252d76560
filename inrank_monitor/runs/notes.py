"""Tags and notes of a run: what its reader says of it, in a small file beside the log and never in it."""

from __future__ import annotations

import json
import stat
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from inrank_monitor.files import replaced
from inrank_monitor.runs.log import storable

NOTES_FILE = "notes.json"
LONGEST_TAG = 60  # letters
_MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class RunNotes:
    """What somebody has said of a run.

    Attributes:
        tags: words to find it by, in the order given.
        text: anything.
        problem: why the file could not be read; None if it could, or there is none.
    """

    tags: tuple[str, ...] = ()
    text: str = ""
    problem: str | None = None


def read_notes(directory: Path) -> RunNotes:
    """The tags and notes of a run directory; a file that is torn or somebody else's is a problem and no error."""
    path = directory / NOTES_FILE
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would block, a link may lead anywhere
            return RunNotes(problem=f"{NOTES_FILE} is not a plain file")
        if state.st_size > _MOST_BYTES:
            return RunNotes(problem=f"{NOTES_FILE} has {state.st_size:,} bytes, which is too much for notes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return RunNotes()
    except (OSError, UnicodeDecodeError) as error:
        return RunNotes(problem=f"{NOTES_FILE} cannot be read: {getattr(error, 'strerror', None) or error}")
    return _parsed(text) if text.strip("\0 \n") else RunNotes()  # a crash of the machine leaves files empty


def _parsed(text: str) -> RunNotes:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return RunNotes(problem=f"{NOTES_FILE} cannot be read: {error}")
    tags, said = (content.get("tags"), content.get("notes")) if isinstance(content, dict) else (None, None)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags) or not isinstance(said, str):
        return RunNotes(problem=f"{NOTES_FILE} holds no tags and notes of a run")
    return RunNotes(tuple(tags), said)


def write_notes(directory: Path, tags: Iterable[str] = (), text: str = "") -> RunNotes:
    """Put tags and notes beside a run, finished or live, in the place of earlier ones; without any, take them away.

    Args:
        directory: of the run.
        tags: each of at most 60 letters, without commas and line breaks; what is there twice counts once.
        text: at most 100,000 letters.

    Returns:
        What is there now.

    Raises:
        ValueError: a tag cannot be one, the text is too long, or the file is not ours: it is left as it is.
        OSError: it cannot be written; the earlier one is left as it was.
    """
    cleaned = _cleaned(tags)
    text = storable(text.strip())
    if len(text) > _MOST_BYTES // 10:
        raise ValueError(f"notes must have at most {_MOST_BYTES // 10:,} letters, got {len(text):,}")
    if problem := read_notes(directory).problem:
        raise ValueError(f"{problem}: it is left as it is; move it out of {directory} first")
    path = directory / NOTES_FILE
    if not cleaned and not text:
        path.unlink(missing_ok=True)
        return RunNotes()
    # a name of its own: another reader may write at the same time
    with replaced(path, path.with_name(f"{NOTES_FILE}.{uuid.uuid4().hex}.tmp")) as temporary:
        content = json.dumps({"tags": cleaned, "notes": text}, indent=1, ensure_ascii=False)
        temporary.write_text(content, encoding="utf-8")
    return RunNotes(tuple(cleaned), text)


def _cleaned(tags: Iterable[str]) -> list[str]:
    """Tags without blanks around them, each once.

    Raises:
        ValueError: as `write_notes`.
    """
    found = list(dict.fromkeys(storable(tag).strip() for tag in tags))
    for tag in found:
        if "," in tag or not tag.isprintable() or len(tag) > LONGEST_TAG:
            raise ValueError(
                f"a tag must have at most {LONGEST_TAG} letters, without commas and line breaks, got {tag!r}"
            )
    if sum(map(len, found)) > _MOST_BYTES // 10:
        raise ValueError(f"tags must have at most {_MOST_BYTES // 10:,} letters together")
    return [tag for tag in found if tag]


def is_found(words: str, name: str, notes: RunNotes) -> bool:
    """Whether each of the words is part of a run's name, of a tag or of its notes, in any case; of no words: yes."""
    text = "\n".join((name, *notes.tags, notes.text)).casefold()
    return all(word in text for word in words.casefold().split())
