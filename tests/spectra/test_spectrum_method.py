"""A run's way to spectra, through attach: leading values, and an estimate of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.figures import spectrum_density

ROWS, COLS, LEADING = 220, 320, 12
pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


def watched(directory: Path, steps: int = 4, **options: object) -> list[np.ndarray]:
    """A layer whose update keeps its directions and grows; its exact spectra, one a snapshot."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(COLS, ROWS, bias=False)
    first = layer.weight.detach().clone()
    left, right = torch.randn(ROWS, 20, generator=generator), torch.randn(20, COLS, generator=generator)
    strengths = 0.8 ** torch.arange(20)
    exact = []
    with attach(layer, None, directory, every=1, leading=LEADING, buffer_rank=4, **options) as tracker:  # type: ignore[arg-type]
        for _ in range(steps):
            with torch.no_grad():
                layer.weight += 1e-2 * (left * strengths) @ right
                layer.weight += 1e-3 * torch.randn(ROWS, COLS, generator=generator)
            tracker.step()
            exact.append(np.linalg.svd((layer.weight.detach() - first).double().numpy(), compute_uv=False))
    return exact


def test_leading_values_of_a_run_are_within_their_bound(tmp_path: Path) -> None:
    exact = watched(tmp_path / "run")
    run = open_run(tmp_path / "run")
    for (_, found), (_, row), true in zip(
        run.singular_values("weight").iterrows(), run.measurements.iterrows(), exact, strict=True
    ):
        wrong = true[:LEADING] - found.to_numpy()
        assert (wrong >= -1e-6 * true[0]).all()
        assert (wrong <= row["error_bound"] + 1e-6 * true[0]).all()


def test_density_logs_every_value_and_the_run_says_how_many_were_measured(tmp_path: Path) -> None:
    exact = watched(tmp_path / "run", density=True)
    run = open_run(tmp_path / "run")
    values = run.singular_values("weight")
    assert (run.leading, run.measured) == (None, LEADING)
    assert values.shape == (len(exact), min(ROWS, COLS))
    for found, true in zip(values.to_numpy(), exact, strict=True):
        assert np.abs(found - true).mean() < 0.02 * true[0]
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(true), rel=1e-5)
        assert found[:LEADING] == pytest.approx(true[:LEADING], rel=0.02)
    assert "estimated" in spectrum_density(values, measured=run.measured).layout.xaxis.title.text


def test_a_density_run_has_the_null_rank_of_whole_spectra(tmp_path: Path) -> None:
    watched(tmp_path / "clipped")
    watched(tmp_path / "density", density=True)
    clipped, whole = (open_run(tmp_path / name).matrices["null_rank"].item() for name in ("clipped", "density"))
    attach(nn.Linear(COLS, ROWS, bias=False), None, tmp_path / "full", every=1, buffer_rank=4).close()
    assert whole == open_run(tmp_path / "full").matrices["null_rank"].item()
    assert clipped <= whole


def test_density_needs_to_know_how_many_values_are_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give leading"):
        attach(nn.Linear(COLS, ROWS), None, tmp_path / "run", density=True)
    assert not (tmp_path / "run").exists()
