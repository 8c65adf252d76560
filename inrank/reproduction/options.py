"""The options of `inrank reproduce`, and what they ask for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from inrank.reproduction.experiment import SCALES, SEEDS, ExperimentError, Request
from inrank_monitor.console import add_output
from inrank_monitor.runs import local_name

_SCALE_HELP = (
    "tiny (default): two cores, offline; small: an afternoon on a GPU; paper: the paper's own; smoke: seconds, to see "
    "that everything runs"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="figure-3, table-1, ...; --list shows all")
    parser.add_argument(
        "--all", action="store_true", help="every experiment of the paper; trainings that several need are done once"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and do nothing")
    parser.add_argument("--scale", choices=SCALES, default="tiny", help=_SCALE_HELP)
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default: 3; 1 for smoke and paper)")
    what = "results; what is there already is not done again (default: runs/reproduce-SCALE)"
    add_output(parser, "DIR", what, "--out")
    parser.add_argument(
        "--text",
        metavar="FILE",
        nargs="+",
        default=[],
        help="for language models (default: Python's own help texts; for paper: wikitext-103, by the datasets library)",
    )
    parser.add_argument("--test-text", metavar="FILE", help="to test them on (default: the last tenth of the text)")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: one a core; 1 on CUDA)")
    parser.add_argument(
        "--document",
        metavar="FILE",
        help="write the table of all results there too, as Markdown (as docs/reproduction.md)",
    )
    parser.add_argument(
        "--finished",
        action="store_true",
        help="train nothing: write the pages of what is trained so far, of experiments that take hours (worth-it)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(options: argparse.Namespace) -> int:
    """Do what the options say; the exit code."""
    from inrank.reproduction.catalogue import NAMES, OF_PAPER, experiments

    if options.list:
        width = max(map(len, NAMES)) + 2
        for one in experiments(NAMES):
            print(f"{one.name:{width}}{one.title}")
        return 0
    if options.all == bool(options.names):
        raise ExperimentError("give the NAME of an experiment, several of them, or --all; --list shows what there is")
    from inrank.reproduction.reproduce import reproduce, write_finished

    request = _request(options)
    names = OF_PAPER if options.all else options.names
    jobs = options.jobs or (1 if request.device != "cpu" else os.cpu_count() or 1)
    document_file = Path(options.document) if options.document else None
    if document_file is not None and not document_file.parent.is_dir():
        raise ExperimentError(f"--document must be a file in a directory that exists, got {options.document}")
    if options.finished:
        return write_finished(request, names, quiet=options.quiet, document_file=document_file)
    return reproduce(request, names, jobs=jobs, quiet=options.quiet, document_file=document_file)


def _request(options: argparse.Namespace) -> Request:
    from inrank.gpt2.preparation import has_cuda
    from inrank.gpt2.text import WIKITEXT, read_texts

    seeds = SEEDS[options.scale] if options.seeds is None else options.seeds
    for flag, value in (("--seeds", seeds), ("--jobs", options.jobs)):
        if value is not None and value < 1:
            raise ExperimentError(f"{flag} must be at least 1, got {value}")
    if options.test_text and not options.text:
        raise ExperimentError("--test-text goes with --text")
    text = tuple(name if name == WIKITEXT else str(Path(name).resolve()) for name in options.text)
    test_text = str(Path(options.test_text).resolve()) if options.test_text else None
    if text and WIKITEXT not in text:
        read_texts(text, test_text)  # an unreadable file is said now, not by the first training
    try:
        out = Path(local_name(options.output or f"runs/reproduce-{options.scale}", "--output"))
    except ValueError as error:
        raise ExperimentError(str(error)) from None
    return Request(
        out=out,
        scale=options.scale,
        seeds=tuple(range(seeds)),
        device=("cuda" if options.device == "auto" else options.device) if has_cuda(options.device) else "cpu",
        text=text,
        test_text=test_text,
    )
