"""The demo's options, and the directory that keeps them for the day the run is resumed.

One dataclass holds the options; the command line is made from it. The directory's `demo.json` holds those
that must stay as they are for the whole of a run, with the tokenizer and a hash of the text.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from inrank_monitor.console import add_output
from inrank_monitor.demo.text import MIN_VOCABULARY, DemoError, Text
from inrank_monitor.runs import (
    LOCK_FILE,
    NOTES_FILE,
    RUN_FILE,
    SCHEMAS,
    TENSORBOARD_DIR,
    WEIGHTS_FILE,
    WRITER_FILE,
    is_locked,
    local_name,
    write_json,
)

OPTIONS_FILE, CHECKPOINT_FILE, REPORT_FILE = "demo.json", "checkpoint.pt", "report.html"
_OWN_FILES = (  # a directory that holds anything else is never deleted
    *(f"{name}*" for name in (RUN_FILE, WEIGHTS_FILE, OPTIONS_FILE, CHECKPOINT_FILE, REPORT_FILE)),  # and .tmp
    f"{NOTES_FILE}*",
    *(f"{table}-*.arrows" for table in SCHEMAS),
    LOCK_FILE,
    WRITER_FILE,
    TENSORBOARD_DIR,
)


def _option(default: Any, text: str, *, kept: bool = True, flag: str | None = None) -> Any:
    """A field of `DemoOptions`; a kept one is the same for the whole of a run."""
    return field(default=default, metadata={"help": text, "kept": kept, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the demo trains, where, and how it is watched; the help texts say what each is.

    Raises:
        DemoError: an option out of range, or two that contradict each other.
    """

    output: str = _option("runs/demo", "run directory to write", kept=False)
    text: str | None = _option(None, "UTF-8 text file to train on (default: Python's own help texts)")
    width: int = _option(256, "width of the model")
    layers: int = _option(4, "transformer blocks")
    heads: int | None = _option(None, "attention heads (default: one for every 64 of the width)")
    steps: int = _option(500, "optimizer steps")
    batch_size: int = _option(8, "sequences a step")
    context: int = _option(128, "tokens a sequence")
    learning_rate: float = _option(1e-3, "peak learning rate", flag="--lr")
    seed: int = _option(0, "of the weights, the dropout and the order of the data")
    vocabulary: int = _option(2048, f"tokens that the byte-level BPE may learn, at least {MIN_VOCABULARY}")
    every: int | None = _option(
        None, "measure every N steps (default: the tracker chooses; at most 1 %% of the time over ten minutes and more)"
    )
    threshold: float = _option(0.9, "explained ratio that a rank must reach")
    buffer_rank: int | None = _option(
        None,
        "singular values beyond the rank that the explained ratio looks at. With the paper's 100, made for "
        "768 rows and more, noise alone has a rank of about 160: more than half of what a matrix of 256 rows "
        "can have (default: what fits each matrix, width/8 below 768)",
    )
    device: str = _option("auto", "cpu, cuda, ... (default: cuda where there is one)", kept=False)
    checkpoint_every: int = _option(50, "steps between checkpoints", kept=False)
    resume: bool = _option(False, "go on from the last checkpoint in --output, with the options kept there", kept=False)
    overwrite: bool = _option(False, "delete the run that --output holds and start again", kept=False)
    tensorboard: bool = _option(True, "write no TensorBoard event file")
    quiet: bool = _option(False, "print nothing but errors", kept=False)
    report_steps: bool = _option(False, "print a line 'snapshot STEP' for every snapshot that is on disk", kept=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "output", local_name(self.output, "--output"))
        except ValueError as error:
            raise DemoError(str(error)) from None
        counts = ("width", "layers", "steps", "batch_size", "context", "checkpoint_every")
        lowest = dict.fromkeys(counts, 1) | {"seed": 0, "vocabulary": MIN_VOCABULARY}
        lowest |= {name: 1 for name in ("heads", "every", "buffer_rank") if getattr(self, name) is not None}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise DemoError(f"{flag_of(name)} must be at least {least}, got {getattr(self, name)}")
        if self.heads is not None and self.width % self.heads:
            raise DemoError(f"--width must be a multiple of --heads, got {self.width} and {self.heads}")
        if not 0 < self.learning_rate < float("inf"):
            raise DemoError(f"--lr must be above 0 and finite, got {self.learning_rate}")
        if not 0 < self.threshold <= 1:
            raise DemoError(f"--threshold must be above 0 and at most 1, got {self.threshold}")
        if self.resume and self.overwrite:
            raise DemoError("--resume goes on with a run and --overwrite deletes it; give one of them")

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.output)

    @property
    def head_count(self) -> int:
        """Heads as given, or the number nearest to width/64 from below that divides the width."""
        if self.heads is not None:
            return self.heads
        return next(heads for heads in range(max(1, self.width // 64), 0, -1) if self.width % heads == 0)

    def kept(self) -> dict[str, Any]:
        """The options that hold for the whole of a run, its text by absolute path."""
        kept = {option.name: getattr(self, option.name) for option in fields(self) if option.metadata["kept"]}
        return kept | {"text": str(Path(self.text).resolve()) if self.text else None}


def flag_of(name: str) -> str:
    """The command-line option of a field."""
    metadata = DemoOptions.__dataclass_fields__[name].metadata
    return str(metadata["flag"] or f"--{name.replace('_', '-')}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options; one that is not given stays absent, so that a resumed run keeps its own."""
    for option in fields(DemoOptions):
        flag, text = flag_of(option.name), option.metadata["help"]
        keywords: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS}
        kind = str(option.type).removesuffix(" | None")
        if kind == "bool":
            flag = flag.replace("--", "--no-") if option.default else flag
            keywords["action"] = "store_false" if option.default else "store_true"
        else:
            keywords["type"], metavar = {"int": (int, "N"), "float": (float, "X"), "str": (str, "NAME")}[kind]
            keywords["metavar"] = {"output": "DIR", "text": "FILE"}.get(option.name, metavar)
            text += "" if "(default" in text else f" (default: {option.default})"
        if flag == "--output":
            add_output(parser, keywords.pop("metavar"), text, "--out", **keywords)
        else:
            parser.add_argument(flag, help=text, **keywords)


@dataclass(frozen=True)
class Kept:
    """What a run's directory keeps for its resumption: `demo.json`."""

    options: dict[str, Any]
    text_sha256: str
    tokenizer: str

    @staticmethod
    def path(directory: Path) -> Path:
        """Of the file, in a run's directory."""
        return directory / OPTIONS_FILE

    @classmethod
    def read(cls, directory: Path) -> Kept | None:
        """What is kept in a directory, or None if there is neither that nor a run.

        Raises:
            DemoError: there is a run, but not one of the demo's; or the file is damaged.
        """
        try:
            content = json.loads(cls.path(directory).read_text(encoding="utf-8"))
            return cls(dict(content["options"]), content["text_sha256"], content["tokenizer"])
        except (FileNotFoundError, NotADirectoryError):
            if (directory / RUN_FILE).exists():
                raise DemoError(f"--resume needs a run of the demo, but the one in {directory} is another's") from None
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DemoError(
                f"{directory / OPTIONS_FILE} cannot be read ({error}); start again with --overwrite"
            ) from None

    def write(self, directory: Path) -> None:
        """Replace the file in one step."""
        write_json(self.path(directory), vars(self))

    def check(self, options: DemoOptions, text: Text) -> None:
        """Refuse to go on under other options, or with another text, than the run was started with.

        Raises:
            DemoError: something differs; every option that does is named.
        """
        now = options.kept()
        other = [
            f"{flag_of(name)} {self.options[name]} (now {now[name]})"
            for name in sorted(now.keys() & self.options.keys())
            if now[name] != self.options[name]
        ]
        if other:
            raise DemoError(
                f"the run in {options.output} was started with {', '.join(other)}; --resume keeps its options"
            )
        if text.sha256 != self.text_sha256:
            raise DemoError(f"the text {text.name} has changed since the run in {options.output} was started")


def check_directory(options: DemoOptions) -> None:
    """Refuse a directory that a new run would damage, or another process writes; nothing is changed.

    Raises:
        DemoError: what is the matter, and what to do.
    """
    directory = options.directory
    try:
        present = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    except OSError as error:
        raise DemoError(f"--output must be a directory, got {options.output!r}: {error.strerror}") from None
    if is_locked(directory):
        raise DemoError(f"another process is writing the run in {options.output}; stop it, or choose another --output")
    if options.resume:
        return
    if RUN_FILE in present and not options.overwrite:
        raise DemoError(
            f"{options.output} holds a run already: go on with it by --resume, delete it by --overwrite, "
            "or choose another directory by --output"
        )
    if present and not {RUN_FILE, OPTIONS_FILE} & set(present):
        raise DemoError(
            f"--output must be a run, or a new or empty directory; {options.output} holds {present[0]!r} and no run"
        )
    foreign = [name for name in present if not any(fnmatch(name, pattern) for pattern in _OWN_FILES)]
    if foreign:
        raise DemoError(
            f"{options.output} will not be deleted: it holds {foreign[0]!r}, which is no part of a run; "
            "move it away, or choose another directory by --output"
        )


def start_directory(options: DemoOptions, kept: Kept) -> None:
    """Make the directory of a new run; an old run in it, which `check_directory` has let pass, is deleted.

    Raises:
        DemoError: the directory cannot be written.
    """
    directory = options.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # run.json and demo.json go last: by them a deletion that was cut short is known for what it is
        for path in sorted(directory.iterdir(), key=lambda path: path.name in (RUN_FILE, OPTIONS_FILE)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        kept.write(directory)
    except OSError as error:
        raise DemoError(
            f"--output must be a directory that can be written, got {options.output!r}: {error.strerror}"
        ) from None
