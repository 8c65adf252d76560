"""The command `inrank`. Bad input gives one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from inrank.gpt2 import options as train_options
from inrank.gpt2.option_checks import OptionError
from inrank.reproduction import options as reproduce_options
from inrank.reproduction.experiment import ExperimentError
from inrank_monitor import __version__
from inrank_monitor.console import Parser, add_command, add_output, error_text, examples_text, typed, use_any_terminal
from inrank_monitor.demo.text import DemoError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a training failed, 2 bad input, 130 interrupted."""
    use_any_terminal()
    options = _build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # `inrank compare runs | head`
        sys.stderr.close()
        return 0
    except (OptionError, DemoError, ExperimentError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun once is enough
            print(f"inrank {options.command}: {error_text(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        known = {"transformers": "gpt2", "tokenizers": "gpt2", "accelerate": "gpt2"}
        known |= {"sklearn": "experiments", "threadpoolctl": "experiments"}
        install = typed("pip", "install", f"inrank-monitor[{known[name]}]" if name in known else name)
        print(f"inrank {options.command}: {name} is not installed: {install}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="inrank",
        description="Train GPT-2 with a rank that grows when the spectrum of its update asks for it, compare, and "
        "reproduce the paper.",
        epilog=examples_text(
            "inrank train                       all six methods on a small GPT-2, some minutes on two cores",
            "inrank compare runs/gpt2           the table again",
            "inrank params --size small --rank 254",
            "inrank reproduce figure-3          a figure of the paper, beside what the paper says of it",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inrank {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    command = partial(add_command, commands)
    train_options.add_arguments(
        command(
            "train",
            _train,
            "train GPT-2 by one method or several, each in a process of its own, and compare them",
            "inrank train",
            "inrank train --size 4x256 --text train.txt --test-text test.txt --seed 0 1 2 --output runs/mine",
            "inrank train --method dense-then-low-rank --factorize-at 0.25 --budget 0.45 --output runs/factors",
            "inrank train --output runs/mine --resume",
            "torchrun --nproc-per-node 8 -m inrank train --size small --method inrank-efficient --text wikitext-103",
        )
    )
    compare = command(
        "compare",
        _compare,
        "a table of finished trainings, with the spread over seeds",
        "inrank compare runs/gpt2",
        "inrank compare runs/first runs/second --output table.csv",
    )
    compare.add_argument("directories", metavar="DIR", nargs="+", help="with trainings in it or below it")
    add_output(compare, "FILE", "write the table as CSV: exact numbers, seconds, bytes", "--csv")
    params = command(
        "params",
        _params,
        "how many parameters a GPT-2 has at a rank; nothing is allocated",
        "inrank params --size small --rank 254",
    )
    params.add_argument("--size", default="small", help="small, medium, large or LAYERSxWIDTH (default: small)")
    params.add_argument("--rank", type=int, metavar="N", help="of every MLP matrix (default: dense)")
    params.add_argument("--vocabulary", type=int, default=50257, metavar="N", help="default: 50257")
    params.add_argument("--context", type=int, default=1024, metavar="N", help="default: 1024")
    reproduce_options.add_arguments(
        command(
            "reproduce",
            _reproduce,
            "reproduce figures and tables of the paper: trainings, pages with figures, and a verdict on each statement",
            "inrank reproduce --list",
            "inrank reproduce figure-3                            tiny scale, three seeds, minutes",
            "inrank reproduce --all --scale tiny                  the paper's, under an hour on two cores, offline",
            "inrank reproduce table-1 --scale paper               exact parameters; training where there is a GPU",
            "inrank reproduce figure-9 --text train.txt --test-text test.txt --seeds 5 --output runs/mine",
        )
    )
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    return reproduce_options.run(options)


def _train(options: argparse.Namespace) -> int:
    from inrank.gpt2.launch import launch

    return launch(vars(options))


def _compare(options: argparse.Namespace) -> int:
    from inrank.gpt2.results import compare, find_results
    from inrank.gpt2.results_table import table_csv, table_text
    from inrank_monitor.report import write_text
    from inrank_monitor.runs import output_file

    file = output_file(options.output) if options.output else None
    comparison = compare(find_results(options.directories))
    print(table_text(comparison))
    if file:
        write_text(file, table_csv(comparison))
        print(f"wrote {options.output}")
    return 0


def _params(options: argparse.Namespace) -> int:
    from inrank.gpt2.models import parameter_count
    from inrank.gpt2.results_table import size

    try:
        sizes = {"vocabulary": options.vocabulary, "context": options.context}
        count, full = (parameter_count(options.size, rank, **sizes) for rank in (options.rank, None))
    except ValueError as error:
        raise OptionError(f"--{error}") from None
    what = "dense" if options.rank is None else f"with every MLP matrix at rank {options.rank}"
    share = "" if options.rank is None else f" ({count / full:.1%} of the dense {full:,})"
    print(f"GPT-2 {options.size}, {what}: {count:,} parameters{share}")
    print(f"model size: {size(2 * count)} in 16 bits, {size(4 * count)} in 32 bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
