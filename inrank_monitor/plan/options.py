"""The command line of `inrank-monitor plan`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inrank_monitor.console import add_output

EXAMPLES = (
    "plan gpt2-xl                                  # one process, this machine's CPU",
    "plan llama-7b --world-size 8 --step-seconds 2 # DistributedDataParallel",
    "plan path/to/config.json --world-size 64 --sharded --device cuda --bandwidth 25",
    "plan --shapes 4096x11008:64,4096x4096:128 --leading 64 --output plan.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `plan` takes."""

    def option(flag: str, kind: Callable[[str], Any], metavar: str, text: str, **more: Any) -> None:
        parser.add_argument(flag, type=kind, metavar=metavar, help=text, **more)

    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL_CONFIG",
        help="config.json, a folder that holds one, or a name: gpt2[-medium|-large|-xl], llama-7b, -13b, -65b, -70b, "
        "llama-3-8b, -70b",
    )
    option("--shapes", str, "SHAPES", "instead of a config: ROWSxCOLS:COUNT,...")
    option("--world-size", int, "N", "processes that train together (default: 1)", default=1)
    parser.add_argument("--sharded", action="store_true", help="each holds a shard of every parameter (FSDP2)")
    option("--per-machine", int, "N", "processes that share a machine's memory (default: 8, or all if fewer)")
    option("--leading", int, "K", "numbers of leading values to plan for (default: 64 256)", nargs="+")
    share = "of wall time over ten minutes and more, as attach's max_overhead (default: 0.01)"
    option("--max-overhead", float, "SHARE", share, default=0.01, dest="budget")
    option("--budget", float, "SHARE", argparse.SUPPRESS, default=argparse.SUPPRESS)  # as it was called
    option("--step-seconds", float, "S", "how long a training step takes; several may be given", nargs="+", default=[])
    option("--dtype", str, "DTYPE", "of the weights in training (default: as the config says, else float32)")
    option("--device", str, "DEVICE", "where the weights are: cpu, cuda, ... (default: cpu)", default="cpu")
    option(
        "--threads", int, "N", "of PyTorch in each process (default: its own choice; 1 in several, as torchrun sets)"
    )
    option("--bandwidth", float, "GB/S", "that a process can send (default: sending is not counted)")
    option("--include", str, "GLOB", "watch only matrices with such a name; may be repeated", action="append")
    option("--exclude", str, "GLOB", "watch no matrix with such a name; may be repeated", action="append")
    parser.add_argument("--embeddings", action="store_true", help="watch embeddings too")
    option("--run", Path, "DIR", "run directory, whose disk is tried (default: runs/NAME)", dest="directory")
    add_output(parser, "FILE", "write everything that was found, as JSON", "--json")


def run(options: argparse.Namespace) -> int:
    """Find the matrices, measure the machine, do the sums, print."""
    import torch

    from inrank_monitor.plan.models import planned_model, planned_shapes
    from inrank_monitor.plan.planning import make_plan
    from inrank_monitor.plan.scenario import Scenario
    from inrank_monitor.plan.text import plan_text
    from inrank_monitor.report import write_text
    from inrank_monitor.runs import local_name, output_file

    _check(options)
    file = output_file(options.output) if options.output else None
    device = _device(options.device)
    threads = options.threads or (1 if options.world_size > 1 else torch.get_num_threads())
    selection = {"include": options.include, "exclude": options.exclude, "embeddings": options.embeddings}
    if options.shapes is None:
        model = planned_model(options.model, options.dtype, **selection)
    else:
        model = planned_shapes(options.shapes, options.dtype, **selection)
    scenario = Scenario(
        model,
        _layout(options, device.type != "cpu", threads),
        [] if options.sharded else sorted(set(options.leading or (64, 256))),
        device,
        Path(local_name(str(options.directory or Path("runs") / _name(options.model)), "--run")),
        options.budget,
    )
    plan = make_plan(scenario, progress=True)
    print(plan_text(plan, options.step_seconds), end="")
    if file:
        write_text(file, json.dumps(plan.as_json(), indent=1) + "\n")
        print(f"wrote {options.output}")
    return 0


def _name(model: str | None) -> str:
    """A run's, for a model: its own, or that of the folder with its config.json."""
    if model is None:
        return "mine"
    path = Path(model).resolve()
    return (path.parent if path.is_file() else path).name or "mine"


def _check(options: argparse.Namespace) -> None:
    """Raise a ValueError for the first option that is wrong."""
    from inrank_monitor.runs import check_leading

    if (options.model is None) == (options.shapes is None):
        raise ValueError(
            "give a MODEL_CONFIG or --shapes, and not both" if options.model else "give a MODEL_CONFIG or --shapes"
        )
    least: Mapping[str, int | None] = {
        "--world-size": options.world_size,
        "--per-machine": options.per_machine,
        "--threads": options.threads,
    }
    for flag, value in least.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if not 0 < options.budget <= 1:
        raise ValueError(f"--max-overhead must be in (0, 1], got {options.budget:g}")
    for flag, values in {"--step-seconds": options.step_seconds, "--bandwidth": [options.bandwidth]}.items():
        for seconds in values:
            if seconds is not None and not 0 < seconds < float("inf"):
                raise ValueError(f"{flag} must be above 0, got {seconds:g}")
    for leading in options.leading or ():
        check_leading(leading)


def _layout(options: argparse.Namespace, on_device: bool, threads: int) -> Any:
    from inrank_monitor.plan.quantities import Layout

    count = options.world_size
    return Layout(
        processes=count,
        sharded=options.sharded,
        threads=threads,
        per_machine=min(options.per_machine or 8, count),
        on_device=on_device,
        bandwidth=None if options.bandwidth is None else options.bandwidth * 1e9,
    )


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    if device.type == "meta":
        raise ValueError("--device meta computes nothing")
    return device
