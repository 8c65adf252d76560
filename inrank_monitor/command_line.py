"""What the commands `inrank-monitor` and `inrank` share: a parser of few words, and subcommands with examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


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
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added
