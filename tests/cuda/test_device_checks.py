"""What only a GPU settles, as tests (`make test-cuda`), and a rehearsal on the CPU of all that needs none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_checks import CHECKS, Check, Setting

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_cuda.py"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_a_gpu_does_what_is_promised(check: Check) -> None:
    found = check.run(Setting(torch.device("cuda")))
    assert found.passes, f"{found.limit}: {found.numbers}"


def test_all_checks_fit_into_eight_minutes_and_each_says_what_it_does() -> None:
    assert sum(check.seconds for check in CHECKS) <= 8 * 60
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.run.__doc__ for check in CHECKS)


@pytest.mark.slow
def test_the_rehearsal_on_the_cpu_runs_every_check_that_needs_no_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--table", str(tmp_path / "a" / "gpu.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "a" / "gpu.json").read_text())
    assert {name: row["outcome"] for name, row in rows.items()} == {
        check.name: "needs a GPU" if check.needs_cuda else "passes" for check in CHECKS
    }
    text = (tmp_path / "a" / "gpu.md").read_text()
    assert text.startswith("On the CPU (a rehearsal), torch ")
    assert text.count("\n|") == len(CHECKS) + 2


def test_a_check_that_raises_fails_alone_and_one_that_would_end_too_late_is_left_out() -> None:
    import bench_cuda
    from device_checks import Found

    def broken(setting: Setting) -> Found:
        raise RuntimeError("no")

    setting = Setting(torch.device("cpu"), tiny=True)
    assert bench_cuda.outcome(Check(broken, 10), setting, 20)[0] == "FAILS"
    assert "no" in bench_cuda.outcome(Check(broken, 10), setting, 20)[1].numbers["raised"]
    assert bench_cuda.outcome(Check(broken, 10), setting, 5)[0] == "left out"
    assert bench_cuda.outcome(Check(broken, 10, needs_cuda=True), setting, 5)[0] == "needs a GPU"
