"""The numeric tests in several arithmetics: `make test-kernels`, or `python tests/kernels.py tests/test_spectrum.py`.

Another processor rounds differently: its vector units and its number of threads decide in which order the terms of a
product are added, and whether with fused multiply-adds. A test that holds by luck on one machine fails on the next.
What others compute can be had on this one: `MKL_CBWR` chooses MKL's kernels (products and decompositions),
`ATEN_CPU_CAPABILITY` torch's own (sums, exponentials, optimizers), `OPENBLAS_CORETYPE` NumPy's, which serves the
oracles. Each pair, with one thread or with two, is a configuration, which runs all tests that are marked `numeric` in
one process. Every test has to pass; one that is skipped has to be skipped in all.

Four configurations hold every choice of two beside each other; `--all` runs the eight that there are.

Where nothing can be chosen, as on ARM, one thread and two remain; that is said, and is no failure.

To see the first configuration alone:
    MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default TEST_THREADS=1 python -m pytest -m "numeric and not slow"
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "pytest", "-m", "numeric and not slow", "-p", "no:cacheprovider"]
OPENBLAS = {"COMPATIBLE": "Nehalem", "AVX2": "Haswell"}
Outcomes = dict[str, str]


def choices() -> list[dict[str, str]]:
    """Environments that choose kernels, as far as this processor and this torch have a choice."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        print("this processor has no AVX2, so that no kernels can be chosen: only one thread and two differ")
        return [{}]
    if not torch.backends.mkl.is_available():
        print("this torch has no MKL: MKL_CBWR changes nothing but NumPy's kernels")
    return [
        {"MKL_CBWR": mkl, "ATEN_CPU_CAPABILITY": aten, "OPENBLAS_CORETYPE": OPENBLAS[mkl]}
        for mkl, aten in product(OPENBLAS, ("default", "avx2"))
    ]


def configurations(every: bool) -> list[dict[str, str]]:
    """Each choice of kernels with one thread and with two, or with the one of them that makes all pairs of choices."""
    found = choices()
    pairs = product(found, "12") if every or len(found) == 1 else zip(found, "1221", strict=True)
    return [kind | {"TEST_THREADS": threads} for kind, threads in pairs]


def outcomes(report: Path) -> Outcomes:
    """Of every test: passed, failed, error or skipped."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = kinds[0].replace("failure", "failed") if kinds else "passed"
    return found


def run(name: str, environment: dict[str, str], arguments: list[str]) -> Outcomes:
    """All numeric tests; one line of what came of them, and the end of pytest's own words where that is bad."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [*COMMAND, f"--junitxml={report}", f"--basetemp={directory}/tests", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
        found = outcomes(report) if report.exists() else {}
    counts = ", ".join(
        f"{list(found.values()).count(kind)} {kind}" for kind in ("passed", "skipped", "failed", "error")
    )
    inside = re.search(r"^arithmetic: (.*)$", done.stdout, re.MULTILINE)  # as tests/conftest.py found it
    where = inside[1] if inside else "did not start"
    print(f"{name}: {counts} in {time.monotonic() - began:.0f} s ({where})", flush=True)
    if done.returncode:
        print((done.stdout + done.stderr)[-6000:], flush=True)
        if not {"failed", "error"} & set(found.values()):  # it broke off, or found nothing to run
            found["pytest"] = f"exit status {done.returncode}"
    return found


def main() -> int:
    """0 if every test passed, or was skipped in every configuration alike."""
    usage = "kernels.py [-h] [--all] [what pytest is given: files, -k, -x]"
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, formatter_class=form)
    parser.add_argument("--all", action="store_true", help="each choice of kernels with one thread and with two")
    options, arguments = parser.parse_known_args()
    if not any(Path(argument.split("::")[0]).exists() for argument in arguments):
        # The marked files alone: to import the others, each time anew, would cost as much as the tests.
        files = sorted(ROOT.glob("tests/**/test_*.py"))
        arguments += [str(path) for path in files if "mark.numeric" in path.read_text()]
    # Threads that wait go to sleep, which changes no sum; spinning they would take the processors from each other.
    shared = {"OMP_WAIT_POLICY": "PASSIVE"}
    environments = [kind | shared for kind in configurations(options.all)]
    names = [" ".join(f"{key}={value}" for key, value in one.items() if key not in shared) for one in environments]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(run, names, environments, [arguments] * len(names))
        results = dict(zip(names, found, strict=True))
    different = bad = 0
    for test in sorted(set().union(*results.values())):
        each = {name: found.get(test, "not run") for name, found in results.items()}
        bad += not {"passed", "skipped"} >= set(each.values())
        if len(set(each.values())) > 1:
            different += 1
            print(test, *(f"    {name}: {outcome}" for name, outcome in each.items()), sep="\n")
    print(f"{len(results)} configurations; {bad} tests failed in one or more; {different} ended differently in some")
    return 1 if bad or different else 0


if __name__ == "__main__":
    sys.exit(main())
