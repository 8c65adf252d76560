"""The command line of `inrank-monitor scan`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inrank_monitor.console import add_output
from inrank_monitor.runs import is_locked

EXAMPLES = (
    "scan out --output runs/out                         # a Trainer's folder: its checkpoint-N, in order",
    "scan base out --output runs/out                    # W0 is another checkpoint, at step 0",
    "scan step_0.pt step_500.pt --output runs/x --key ema.model",
    "scan a.safetensors b.safetensors --output runs/x --steps 0 2000",
    "scan out --output runs/out --resume                # go on: it was killed, or there are new checkpoints",
    "scan out --dry-run                              # which checkpoints, at which steps; nothing is measured",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `scan` takes."""

    def option(flag: str, kind: Callable[[str], Any], metavar: str, text: str, **more: Any) -> None:
        parser.add_argument(flag, type=kind, metavar=metavar, help=text, **more)

    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="files and folders; the first one is W0. A folder of checkpoints stands for all of them",
    )
    add_output(parser, "DIR", "run directory to write", "--run", type=Path, dest="directory")
    parser.add_argument("--dry-run", action="store_true", help="say which checkpoints at which steps, and stop")
    option("--steps", int, "N", "step of each checkpoint (default: from the names)", nargs="+")
    option("--key", str, "KEY", "of the state dict in torch.save files, dotted (default: found)")
    option("--config", Path, "FILE", "config.json of the model, where it is not beside the first checkpoint")
    option("--include", str, "GLOB", "watch only matrices with such a name; may be repeated", action="append")
    option("--exclude", str, "GLOB", "watch no matrix with such a name; may be repeated", action="append")
    option(
        "--parts",
        parts_of,
        "GLOB=PARTS",
        "how a fused weight is split: '*.c_attn=q,k,v', or by rows '*.wqkv=q:64,k:16,v:16'; may be repeated",
        action="append",
    )
    option("--threshold", float, "ALPHA", "explained ratio that a rank must reach (default: 0.9)", default=0.9)
    option("--buffer-rank", int, "B", "b of eq. 7, for all matrices (default: what fits each, 4 to 100)")
    parser.add_argument("--definition", choices=("paper", "reference"), default="paper", help="of the explained ratio")
    option("--leading", int, "K", "only the K leading singular values, with a bound on their error")
    parser.add_argument("--embeddings", action="store_true", help="watch embeddings too")
    option("--workers", int, "N", "spectra at a time (default: one a core)")
    parser.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard event file")
    parser.add_argument("--resume", action="store_true", help="go on with the scan in --output")


def parts_of(text: str) -> tuple[str, Sequence[str] | Mapping[str, int] | None]:
    """`*.c_attn=q,k,v`, `*.wqkv=q:64,k:16,v:16` or, to leave it whole, `*.qkv=` as an entry of `parts=`."""
    pattern, equals, rest = text.rpartition("=")
    parts = [part.strip().partition(":") for part in rest.split(",")] if rest.strip() else []
    sized = [size for _, colon, size in parts if colon]
    if not (pattern and equals) or not all(size.isdecimal() for size in sized) or len(sized) not in (0, len(parts)):
        raise argparse.ArgumentTypeError(f"must be like '*.c_attn=q,k,v' or '*.wqkv=q:64,k:16,v:16', got {text!r}")
    if sized:
        return pattern, {name: int(size) for name, _, size in parts}
    return pattern, [name for name, _, _ in parts] or None


def run(options: argparse.Namespace) -> int:
    """Scan, saying what is read and how, and print the report."""
    from inrank_monitor.checkpoints.choosing import find_checkpoints
    from inrank_monitor.checkpoints.scanning import scan
    from inrank_monitor.report import report_table

    if options.dry_run:
        print(chosen := find_checkpoints(options.checkpoints, options.steps, options.key))
        print(chosen.note)
        return 0
    if options.directory is None:
        raise ValueError("--output DIR is missing: the run directory to write (--dry-run writes none)")
    if is_locked(options.directory):
        raise ValueError(f"another process is writing the run {options.directory}: choose another --output")
    say = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("inrank_monitor")
    level = logger.level
    logger.addHandler(say)
    logger.setLevel(logging.INFO)
    try:
        scanned = scan(
            options.checkpoints,
            options.directory,
            steps=options.steps,
            key=options.key,
            config=options.config,
            include=options.include,
            exclude=options.exclude,
            parts=dict(options.parts or []),
            threshold=options.threshold,
            buffer_rank=options.buffer_rank,
            definition=options.definition,
            leading=options.leading,
            embeddings=options.embeddings,
            tensorboard=not options.no_tensorboard,
            workers=options.workers,
            resume=options.resume,
            progress=True,
        )
    except (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError):
        raise
    except OSError as error:  # a full disk, say
        raise ValueError(f"the scan stopped: {error}; --resume goes on with what there is") from None
    finally:
        logger.removeHandler(say)
        logger.setLevel(level)
    print(report_table(scanned))
    return 0
