"""W_t, directions and on_snapshot on several processes: as on one, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from helpers.distributed_beside_worker import BESIDE, STEPS
from helpers.distributed_start import kept, together
from helpers.training import record

from inrank_monitor import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
]


def test_replicas_measure_what_one_process_does_and_shards_are_refused(tmp_path: Path) -> None:
    directory = together("distributed_beside_worker.py", 2, tmp_path / "here")
    assert kept(directory, "replicated") == [list(range(1, STEPS + 1)), []]  # the main process alone is told
    found, alone = open_run(directory / "replicated"), open_run(record(tmp_path / "alone", STEPS, 12, 16, 10, **BESIDE))
    for table in ("weights", "directions"):
        here, there = getattr(found, table), getattr(alone, table)
        assert here["matrix"].tolist() == there["matrix"].tolist()
        columns = here.columns.drop(["step", "time", "matrix"])
        np.testing.assert_allclose(here[columns].astype(float), there[columns].astype(float), rtol=1e-4, atol=1e-3)
    for said in kept(directory, "refusals"):
        assert len(said) == len(BESIDE)
        for name, message in zip(BESIDE, said, strict=True):
            assert message.startswith(f"{name}=")
            assert "shards (DTensor)" in message
