"""The edge of noise that is drawn has exactly the signal rank's values above it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from inrank_monitor.figures import (
    mark_noise_in_density,
    mark_noise_over_steps,
    spectrum_density,
    spectrum_evolution,
)
from inrank_monitor.ranks import noise_edge, signal_rank


def spectrum(strong: int, rows: int = 60, cols: int = 90, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((rows, cols))
    for place in range(strong):
        noise[place, place] += 60 + 10 * place
    return np.linalg.svd(noise, compute_uv=False)


@pytest.mark.parametrize("strong", [0, 1, 4, 12])
def test_as_many_values_as_the_signal_rank_lie_above_the_edge(strong: int) -> None:
    values = np.stack([spectrum(strong, seed=seed) for seed in range(5)] + [np.arange(60, 0, -1.0)])
    edges, ranks = noise_edge(values, 60, 90), signal_rank(values, 60, 90)
    assert ranks[:5].tolist() == [strong] * 5
    assert np.isfinite(edges).all()
    for row, edge, rank in zip(values, edges, ranks, strict=True):
        assert rank == 0 or row[int(rank) - 1] >= edge
        assert row[int(rank)] <= edge
    np.testing.assert_allclose(noise_edge(1e-3 * values, 60, 90), 1e-3 * edges)


def test_where_signal_cannot_be_told_there_is_no_edge() -> None:
    assert np.isnan(noise_edge(np.ones(8), 8, 90))
    assert np.isnan(noise_edge(np.zeros(60), 60, 90))
    assert np.isnan(noise_edge(np.ones(20), 60, 90))


def test_both_figures_draw_the_edge_and_say_what_is_above() -> None:
    table = pd.DataFrame([spectrum(2), spectrum(4)], pd.Index([10, 20], name="step"), range(1, 61))
    edges = noise_edge(table.to_numpy(), 60, 90)
    density = mark_noise_in_density(spectrum_density(table), table, (60, 90))
    drawn = [trace for trace in density.data if trace.name == "edge of noise"]
    np.testing.assert_allclose([trace.x[0] for trace in drawn], edges / table.sum(axis=1))
    assert [note.text.split(",")[0] for note in density.layout.annotations] == [
        "2 directions above noise",
        "4 directions above noise",
    ]
    lines = mark_noise_over_steps(spectrum_evolution(table), table, (60, 90))
    np.testing.assert_allclose(lines.data[-1].y, edges)
    assert lines.layout.annotations[0].text.startswith("4 directions above noise,<br>")
