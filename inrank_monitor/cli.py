"""The command `inrank-monitor`. Bad input gives one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from inrank_monitor import __version__
from inrank_monitor.checkpoints import options as scan_options
from inrank_monitor.console import Parser, add_command, add_output, error_text, examples_text, typed, use_any_terminal
from inrank_monitor.demo import options as demo_options
from inrank_monitor.paper import options as figure_options
from inrank_monitor.plan import options as plan_options
from inrank_monitor.runs import local_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    use_any_terminal()
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # `inrank-monitor report RUN | head`
        sys.stderr.close()
        return 0
    except (OSError, ValueError, KeyError) as error:
        print(f"inrank-monitor {options.command}: {error_text(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"inrank-monitor {options.command}: {error.name} is not installed: {_extra(error.name)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _extra(module: str | None) -> str:
    extras = {"streamlit": "dashboard", "transformers": "gpt2", "tokenizers": "gpt2", "lightning": "lightning"}
    extras |= {"matplotlib": "figures"}
    extra = extras.get((module or "").split(".")[0])
    return typed("pip", "install", f"inrank-monitor[{extra}]" if extra else module)


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="inrank-monitor",
        description="How much of each weight matrix does my training really use?",
        epilog=examples_text(
            "inrank-monitor demo                          train a small GPT-2 with the tracker attached",
            "inrank-monitor scan out --output runs/out    the same from checkpoints that are on disk already",
            "inrank-monitor plan llama-7b --world-size 8  what watching a model will cost",
            "inrank-monitor report runs/demo              ranks against null ranks, in the terminal",
            "inrank-monitor report runs/demo --output r.html",
            "inrank-monitor dashboard runs                the same, live, in the browser",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inrank-monitor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str) -> Parser:
        return add_command(commands, name, run, text, *(f"inrank-monitor {example}" for example in examples))

    demo_options.add_arguments(
        command(
            "demo",
            _demo,
            "train a small GPT-2 from scratch on real text, with the tracker attached",
            "demo",
            "demo --text my.txt --width 384 --layers 6 --steps 2000 --output runs/mine",
            "demo --output runs/mine --resume",
        )
    )
    scan_options.add_arguments(
        command(
            "scan",
            scan_options.run,
            "measure checkpoints that are on disk already, as the tracker would have done",
            *scan_options.EXAMPLES,
        )
    )
    plan_options.add_arguments(
        command(
            "plan",
            plan_options.run,
            "what watching a model will cost, before the run: seconds, memory, disk; this machine is measured first",
            *plan_options.EXAMPLES,
        )
    )
    _add_readers(command)
    command("doctor", _doctor, "what is installed, which device, and a self-check of the spectra", "doctor")
    return parser


def _add_readers(command: Callable[..., Parser]) -> None:
    """The commands that are given a run, or a directory of runs."""
    report = command(
        "report", _report, "a run as a table, or as one HTML page", "report runs/demo --output report.html"
    )
    report.add_argument("path", metavar="RUN", help="run directory")
    add_output(report, "FILE", "write it: FILE.html is a self-contained page that opens offline, FILE.txt the table")
    report.add_argument("--html", metavar="FILE", help=argparse.SUPPRESS)
    report.add_argument("--all", action="store_true", help="every matrix, however many there are")
    figure_options.add_arguments(
        command(
            "figure",
            figure_options.run,
            "a figure as a paper prints it, of one run or several: PDF, SVG or PNG at column width, its data as CSV",
            *figure_options.EXAMPLES,
        )
    )
    advice = command(
        "advise",
        _advise,
        "which rank is enough for each matrix's update, and what training factors of that rank would save",
        "advise runs/demo",
        "advise runs/demo --output lora.json   # for PEFT: LoraConfig(**json.load(open('lora.json')))",
    )
    advice.add_argument("path", metavar="RUN", help="run directory")
    add_output(
        advice,
        "FILE",
        "write it: FILE.csv is the table, FILE.json what PEFT's LoraConfig takes, a rank a layer; may be repeated",
        action="append",
        default=[],
    )
    for old in ("--csv", "--lora"):
        advice.add_argument(old, metavar="FILE", help=argparse.SUPPRESS)
    advice.add_argument(
        "--rank-from",
        choices=("loss", "energy", "paper", "signal"),
        help="what is enough (default: ranks by loss where the run has them, else 90 %% of the energy)",
    )
    advice.add_argument(
        "--threshold", type=float, metavar="ALPHA", help="explained ratio of the paper's rank (default: as logged)"
    )
    export = command("export", _export, "a run's tables as files", "export runs/demo --format parquet --output tables")
    export.add_argument("path", metavar="RUN", help="run directory")
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="default: csv")
    add_output(export, "DIR", "where to write (default: RUN/export)", "--out")
    listing = command(
        "list",
        _list,
        "the runs in a directory and in folders of it, newest first",
        "list runs",
        "list runs --tag baseline --search warm-up",
    )
    listing.add_argument("path", metavar="DIR", nargs="?", default="runs", help="default: runs")
    listing.add_argument("--tag", metavar="TAG", action="append", default=[], help="with this tag; may be repeated")
    listing.add_argument("--search", metavar="WORDS", default="", help="with these words in name, tags or notes")
    dashboard = command("dashboard", _dashboard, "open a directory of runs in the browser", "dashboard runs")
    dashboard.add_argument("path", metavar="DIR", nargs="?", default="runs", help="directory of runs (default: runs)")
    dashboard.add_argument("--port", type=int, default=8501, help="on localhost (default: 8501)")
    dashboard.add_argument("--no-browser", action="store_true", help="do not open a browser window")


def _demo(options: argparse.Namespace) -> int:
    from inrank_monitor.demo import loop

    return loop.main(options)


def _report(options: argparse.Namespace) -> int:
    from inrank_monitor.report import report_table, write_html, write_text
    from inrank_monitor.runs import open_run, output_file

    given = options.output or options.html
    file = output_file(given) if given else None
    page = bool(options.html) or _suffix(given, ".html", ".txt") == ".html"
    run = open_run(options.path)
    if file and page:
        write_html(run, file)
    else:
        rows: dict[str, Any] = {"limit": None} if options.all else {}
        text = report_table(run, width=200 if file else None, **rows)  # no terminal cuts the names in a file
        if file:
            write_text(file, text)
        else:
            print(text)
    if file:
        print(f"wrote {given}")
    return 0


def _suffix(given: str | None, *known: str) -> str | None:
    """Which of the known endings a file name has, that say what is to be written.

    Raises:
        ValueError: none of them.
    """
    if given is None:
        return None
    found = next((suffix for suffix in known if given.lower().endswith(suffix)), None)
    if found is None:
        raise ValueError(f"--output must end in {' or '.join(known)}, got {given}")
    return found


def _advise(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from inrank_monitor.advice import (
        advice_csv,
        advice_text,
        advise,
        advise_widths,
        lora_config,
        lora_json,
        width_text,
    )
    from inrank_monitor.report import write_text
    from inrank_monitor.runs import logged_rule, open_run, output_file

    wanted = [(given, _suffix(given, ".csv", ".json")) for given in options.output]
    wanted += [(given, kind) for given, kind in ((options.csv, ".csv"), (options.lora, ".json")) if given]
    files = [(given, kind, output_file(given)) for given, kind in wanted]
    run = open_run(options.path)
    rule = logged_rule(run)
    rule = rule if options.threshold is None else replace(rule, threshold=options.threshold)
    table = advise(run, rule, options.rank_from)
    print(advice_text(table), end="")
    print(f"\n{width_text(advise_widths(run))}", end="")
    if run.too_few_points:
        print(run.too_few_points)
    for given, kind, file in files:
        write_text(file, advice_csv(table) if kind == ".csv" else lora_json(lora_config(table)))
        print(f"wrote {given}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from inrank_monitor.runs import export_run, open_run

    run = open_run(options.path)
    directory = local_path(options.output, "--output") if options.output else run.path / "export"
    for path in export_run(run, directory, options.format):
        print(f"wrote {path}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from inrank_monitor.report import printable, runs_table
    from inrank_monitor.runs import is_found, is_run, open_run, read_runs

    if not local_path(options.path, "DIR").is_dir():
        raise NotADirectoryError(f"{options.path} is not a directory")
    if is_run(local_path(options.path)):
        print(f"{options.path} is a run itself; `{typed('inrank-monitor', 'report', options.path)}` shows it:\n")
        print(runs_table([open_run(options.path).summary()]))
        return 0
    runs, problems = read_runs(options.path)
    shown = [run for run in runs if set(options.tag) <= set(run.notes.tags)]
    shown = [run for run in shown if is_found(options.search, run.name, run.notes)]
    if shown:
        print(runs_table(shown))
    elif runs:
        print(f"none of the {len(runs)} runs in {options.path} fits")
    else:
        print(f"no runs in {options.path}; `{typed('inrank-monitor', 'demo')}` makes one")
    problems |= {run.name: run.notes.problem for run in shown if run.notes.problem}
    for name, problem in problems.items():
        print(printable(f"{name}: {problem}"), file=sys.stderr)
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from inrank_monitor.console import launch_dashboard

    return launch_dashboard(local_path(options.path, "DIR"), options.port, browser=not options.no_browser)


def _doctor(options: argparse.Namespace) -> int:
    from inrank_monitor.doctor import examine

    return examine()


if __name__ == "__main__":
    sys.exit(main())
