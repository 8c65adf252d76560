"""The command `inrank-monitor`. Bad input gives one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from inrank_monitor import __version__
from inrank_monitor.checkpoints import options as scan_options
from inrank_monitor.console import Parser, add_command, examples_text, typed, use_any_terminal
from inrank_monitor.demo import options as demo_options
from inrank_monitor.plan import options as plan_options
from inrank_monitor.runs import local_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    use_any_terminal()
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError, ValueError, KeyError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"inrank-monitor {options.command}: {text}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"inrank-monitor {options.command}: {error.name} is not installed: {_extra(error.name)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `inrank-monitor report RUN | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _extra(module: str | None) -> str:
    extras = {"streamlit": "dashboard", "transformers": "gpt2", "tokenizers": "gpt2", "lightning": "lightning"}
    extra = extras.get((module or "").split(".")[0])
    return typed("pip", "install", f"inrank-monitor[{extra}]" if extra else module)


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="inrank-monitor",
        description="How much of each weight matrix does my training really use?",
        epilog=examples_text(
            "inrank-monitor demo                          train a small GPT-2 with the tracker attached",
            "inrank-monitor scan out --run runs/out       the same from checkpoints that are on disk already",
            "inrank-monitor plan llama-7b --world-size 8  what watching a model will cost",
            "inrank-monitor report runs/demo              ranks against null ranks, in the terminal",
            "inrank-monitor report runs/demo --html r.html",
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
            "demo --text my.txt --width 384 --layers 6 --steps 2000 --out runs/mine",
            "demo --out runs/mine --resume",
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
    report = command("report", _report, "a run as a table, or as one HTML page", "report runs/demo --html report.html")
    report.add_argument("path", metavar="RUN", help="run directory")
    report.add_argument("--html", metavar="FILE", help="write a self-contained page that opens offline")
    report.add_argument("--all", action="store_true", help="every matrix, however many there are")
    advice = command(
        "advise",
        _advise,
        "which rank is enough for each matrix's update, and what training factors of that rank would save",
        "advise runs/demo",
        "advise runs/demo --lora lora.json   # for PEFT: LoraConfig(**json.load(open('lora.json')))",
    )
    advice.add_argument("path", metavar="RUN", help="run directory")
    advice.add_argument("--csv", metavar="FILE", help="write the table as CSV")
    advice.add_argument("--lora", metavar="FILE", help="write what PEFT's LoraConfig takes as JSON: a rank a layer")
    advice.add_argument(
        "--rank-from",
        choices=("loss", "energy", "paper", "signal"),
        help="what is enough (default: ranks by loss where the run has them, else 90 %% of the energy)",
    )
    advice.add_argument(
        "--threshold", type=float, metavar="ALPHA", help="explained ratio of the paper's rank (default: as logged)"
    )
    export = command("export", _export, "a run's tables as files", "export runs/demo --format parquet --out tables")
    export.add_argument("path", metavar="RUN", help="run directory")
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="default: csv")
    export.add_argument("--out", metavar="DIR", help="where to write (default: RUN/export)")
    listing = command("list", _list, "the runs in a directory, newest first", "list runs")
    listing.add_argument("path", metavar="DIR", nargs="?", default="runs", help="default: runs")
    dashboard = command("dashboard", _dashboard, "open a directory of runs in the browser", "dashboard runs")
    dashboard.add_argument("path", metavar="DIR", nargs="?", default="runs", help="directory of runs (default: runs)")
    dashboard.add_argument("--port", type=int, default=8501, help="on localhost (default: 8501)")
    dashboard.add_argument("--no-browser", action="store_true", help="do not open a browser window")


def _demo(options: argparse.Namespace) -> int:
    from inrank_monitor.demo import loop

    return loop.main(options)


def _report(options: argparse.Namespace) -> int:
    from inrank_monitor.report import report_table, write_html
    from inrank_monitor.runs import open_run

    run = open_run(options.path)
    if options.html:
        write_html(run, options.html)
        print(f"wrote {options.html}")
    else:
        print(report_table(run, limit=None) if options.all else report_table(run))
    return 0


def _advise(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from inrank_monitor.advice import advice_csv, advice_text, advise, lora_config, lora_json
    from inrank_monitor.runs import logged_rule, open_run

    run = open_run(options.path)
    rule = logged_rule(run)
    rule = rule if options.threshold is None else replace(rule, threshold=options.threshold)
    table = advise(run, rule, options.rank_from)
    print(advice_text(table), end="")
    if run.too_few_points:
        print(run.too_few_points)
    if options.csv:
        local_path(options.csv, "--csv").write_text(advice_csv(table), encoding="utf-8")
        print(f"wrote {options.csv}")
    if options.lora:
        local_path(options.lora, "--lora").write_text(lora_json(lora_config(table)), encoding="utf-8")
        print(f"wrote {options.lora}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from inrank_monitor.runs import export_run, open_run

    run = open_run(options.path)
    directory = local_path(options.out, "--out") if options.out else run.path / "export"
    for path in export_run(run, directory, options.format):
        print(f"wrote {path}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from inrank_monitor.report import runs_table
    from inrank_monitor.runs import list_runs

    if not local_path(options.path, "DIR").is_dir():
        raise NotADirectoryError(f"{options.path} is not a directory")
    runs = list_runs(options.path)
    print(runs_table(runs) if runs else f"no runs in {options.path}; `{typed('inrank-monitor', 'demo')}` makes one")
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from inrank_monitor.console import launch_dashboard

    return launch_dashboard(local_path(options.path, "DIR"), options.port, browser=not options.no_browser)


def _doctor(options: argparse.Namespace) -> int:
    from inrank_monitor.doctor import examine

    return examine()


if __name__ == "__main__":
    sys.exit(main())
