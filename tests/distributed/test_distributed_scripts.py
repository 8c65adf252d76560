"""The scripts of docs/trainers/distributed.md under torchrun, as its reader starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from inrank_monitor import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
]
SCRIPTS = Path(__file__).parents[2] / "docs/trainers/scripts"


def torchrun(script: str, directory: Path) -> str:
    """What two processes print."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPTS / script), str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("script", "matrix"), [("ddp.py", "2.weight"), ("fsdp2.py", "1.down.weight")])
def test_the_script_runs_and_goes_on_when_run_again(tmp_path: Path, script: str, matrix: str) -> None:
    for steps in (60, 120):
        assert torchrun(script, tmp_path).count(matrix) == 1  # printed by one of the two
        run = open_run(tmp_path)
        assert run.status == "finished"
        assert run.info["processes"] == 2
        assert run.measurements["step"].unique().tolist() == list(range(10, steps + 1, 10))
        assert run.measurements["numerical_rank"].notna().all()
        losses = run.scalars[run.scalars["name"] == "loss"]
        assert losses["step"].tolist() == list(range(1, steps + 1))
    assert losses["value"].iloc[-10:].mean() < 0.5 * losses["value"].iloc[:10].mean()
    assert run.events["kind"].tolist() == ["resumed"]
