"""What the commands `inrank-monitor` and `inrank` share: a parser of few words, subcommands, commands to type next."""

from __future__ import annotations

import argparse
import codecs
import os
import shlex
import shutil
import sys
import sysconfig
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PLAIN = {
    "σ": "s",
    "ΔW": "dW",
    "Δ": "d",
    "α": "alpha",
    "β": "beta",
    "ε": "eps",
    "κ": "kappa",
    "‖": "|",
    "·": "-",
    "×": "x",
}
_PLAIN |= {
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "≈": "~",
    "’": "'",
    "ᵀ": "^T",
    "⁄": "/",
}
_PLAIN |= dict.fromkeys("“”„«»", '"') | dict.fromkeys("‘‚", "'")
_HANDLER = "inrank_plain"


def use_any_terminal() -> None:
    """Let what is printed from here on reach a terminal of any encoding: what it cannot show becomes plain letters."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a notebook or a test has put there takes any text
            stream.reconfigure(errors=_HANDLER)


def plain_where_needed(text: str) -> str:
    """The text as standard output can show it, for whoever prints it: the same, wherever it can show all of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, _HANDLER).decode(encoding)
    except LookupError:  # a stream of somebody's own, with an encoding of its own
        return text
    return text


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: letters of ASCII for those that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain_letter, error.object[error.start : error.end])), error.end


def _plain_letter(letter: str) -> str:
    if letter in _PLAIN:
        return _PLAIN[letter]
    parts = unicodedata.normalize("NFKD", letter)
    return "".join(_PLAIN.get(part, part) for part in parts).encode("ascii", "ignore").decode() or "?"


codecs.register_error(_HANDLER, _plain)


class Parser(argparse.ArgumentParser):
    """One clear line for a wrong command line, in place of the whole usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str
) -> Parser:
    """Add a subcommand, whose examples are whole command lines; the parsed options have its function as `run`."""
    added: Parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=examples_text(*examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added


def add_output(parser: argparse.ArgumentParser, metavar: str, text: str, *old: str, **more: Any) -> None:
    """Add `--output`, the word of every command for what it writes; `old` spellings of it work and stand in no help."""
    parser.add_argument("--output", metavar=metavar, help=text, **more)
    for flag in old:
        hidden = more | {"dest": more.get("dest", "output"), "default": argparse.SUPPRESS}
        parser.add_argument(flag, metavar=metavar, help=argparse.SUPPRESS, **hidden)


def error_text(error: Exception) -> str:
    """What went wrong in one line, for who typed the command: of the system's errors the path, then the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def typed(program: str, *arguments: object) -> str:
    """A command line that works as it is printed: `program` by its path where this environment is not on the PATH.

    After `make demo` the programs lie in `.venv/bin`, and a shell knows nothing of that; a path below the working
    directory is given relative to it. A program that is nowhere is left as it is.
    """
    return shlex.join([_program(program), *map(str, arguments)])


def examples_text(*examples: str) -> str:
    """The end of a help text: lines that begin with a program, which is given as it can be typed here."""
    split = (example.partition(" ") for example in examples)
    return "examples:\n" + "\n".join(f"  {typed(program)}{space}{rest}" for program, space, rest in split)


def _program(name: str) -> str:
    found, ours = shutil.which(name), shutil.which(name, path=sysconfig.get_path("scripts"))
    if ours is None or (found is not None and os.path.samefile(found, ours)):
        return name
    path = Path(os.path.abspath(ours))  # links stay: resolved, the environment's Python would be another's
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
