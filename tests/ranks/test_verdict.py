"""The six verdicts: their rates on noise, on planted directions and on flat spectra; of cut spectra and factors."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from inrank_monitor.ranks import (
    VERDICTS,
    dense_verdict,
    factors_verdict,
    signal_rank,
    spectrum_verdict,
)
from inrank_monitor.ranks.verdict import noise_stable_ranks

pytestmark = pytest.mark.numeric
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "noise_verdicts.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that prints the tables of the docs."""
    spec = importlib.util.spec_from_file_location("noise_verdicts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rates_are_those_that_the_docs_promise(script: ModuleType) -> None:
    found = script.confusion(280, seed=7)
    rates = {
        kind: {verdict: count / sum(counts.values()) for verdict, count in counts.items()}
        for kind, counts in found.items()
    }
    for kind in script.NOISE:
        assert set(rates[kind]) <= {"structured", "like noise", "flatter than noise"}
        assert rates[kind].get("structured", 0) <= 0.01
        assert rates[kind].get("flatter than noise", 0) <= 0.01
    for kind in ("1 direction, θ = 3", "2 directions, θ = 3", "4 directions, θ = 3"):
        assert rates[kind].get("structured", 0) >= 0.99
    assert rates["1 direction, θ = 2"]["structured"] >= 0.85
    assert rates["orthogonal"] == {"flatter than noise": 1}
    assert rates["Gaussian, short side below 16"] == {"too thin to tell": 1}


@pytest.mark.parametrize(("rows", "cols"), [(1, 48), (48, 1), (10, 96), (2, 2000), (15, 15), (9, 4096)])
def test_a_thin_matrix_is_not_judged_even_if_it_is_of_rank_one(rows: int, cols: int) -> None:
    values = np.r_[5.0, np.zeros(min(rows, cols) - 1)]
    assert spectrum_verdict(values, rows, cols) == "too thin to tell"


def test_what_has_no_spectrum_is_not_compared() -> None:
    assert spectrum_verdict(np.zeros(32), 32, 40) == "has not moved"
    assert spectrum_verdict(np.zeros(4), 4, 40) == "has not moved"
    assert spectrum_verdict(np.full(32, np.nan), 32, 40) == "not finite"
    assert spectrum_verdict(np.r_[np.inf, np.ones(3)], 4, 40) == "not finite"
    assert spectrum_verdict(np.zeros(0), 4, 40) == "not finite"


def test_low_rank_without_any_noise_is_structured() -> None:
    for count in (1, 3, 20):
        assert spectrum_verdict(np.r_[np.linspace(5, 4, count), np.zeros(64 - count)], 64, 80) == "structured"


@pytest.mark.parametrize("shape", [(32, 32), (64, 300), (128, 100)], ids=str)
def test_a_cut_spectrum_gets_the_verdict_of_the_whole(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng([3, *shape])
    noise = generator.standard_normal((100, *shape))
    direction = (
        np.linalg.qr(generator.standard_normal((shape[0], 1)))[0]
        @ np.linalg.qr(generator.standard_normal((shape[1], 1)))[0].T
    )
    same = []
    for matrix in (*noise, *(noise + 4 * np.prod(shape) ** 0.25 * direction)):
        values = np.linalg.svd(matrix, compute_uv=False)
        same.append(
            spectrum_verdict(values[:8], *shape, float(np.linalg.norm(values))) == spectrum_verdict(values, *shape)
        )
    assert np.mean(same) >= 0.98


@pytest.mark.parametrize("shape", [(16, 16), (20, 400), (96, 64)], ids=str)
def test_the_stable_ranks_of_noise_are_within_their_limits(shape: tuple[int, int]) -> None:
    values = np.linalg.svd(np.random.default_rng(1).standard_normal((1000, *shape)), compute_uv=False)
    stable = (values**2).sum(axis=1) / values[:, 0] ** 2
    least, most = noise_stable_ranks(*shape)
    assert (stable < least).mean() <= 0.01
    assert (stable > most).mean() <= 0.01
    assert least < np.median(stable) < most


def test_signal_decides_before_the_stable_rank() -> None:
    values = np.r_[np.ones(40), np.full(60, 0.05)]  # flat, and far above the others
    assert signal_rank(values, 100, 100) == 40
    assert spectrum_verdict(values, 100, 100) == "structured"


@pytest.mark.parametrize(
    ("rows", "cols", "columns"), [(32, 32, 8), (48, 200, 16), (64, 80, 4), (64, 80, 32), (20, 90, 20), (128, 128, 64)]
)
def test_products_of_random_factors_are_like_noise(rows: int, cols: int, columns: int) -> None:
    generator = np.random.default_rng([rows, cols, columns])
    left, right = generator.standard_normal((300, rows, columns)), generator.standard_normal((300, columns, cols))
    values = np.linalg.svd(left @ right, compute_uv=False)[:, :columns]
    stable = (values**2).sum(axis=1) / values[:, 0] ** 2
    found = [factors_verdict(rows, cols, columns, spectral_norm=1.0, stable_rank=each) for each in stable]
    assert found.count("like noise") >= 0.98 * len(found)
    assert factors_verdict(rows, cols, columns, spectral_norm=1.0, stable_rank=1.05) == "structured"
    assert factors_verdict(rows, cols, columns, spectral_norm=1.0, stable_rank=columns) == "flatter than noise"


def test_factors_without_an_update_or_with_few_columns_are_not_judged() -> None:
    assert factors_verdict(64, 64, 8, spectral_norm=0.0, stable_rank=0.0) == "has not moved"
    assert factors_verdict(64, 64, 8, spectral_norm=math.nan, stable_rank=math.nan) == "not finite"
    assert factors_verdict(64, 64, 2, spectral_norm=1.0, stable_rank=1.0) == "too thin to tell"
    assert factors_verdict(3, 64, 8, spectral_norm=1.0, stable_rank=1.0) == "too thin to tell"


def test_every_answer_is_one_of_the_six() -> None:
    found = {
        dense_verdict(rows, 40, spectral_norm=norm, stable_rank=stable, signal_rank=signal)
        for rows in (4, 32)
        for norm in (math.nan, math.inf, 0.0, 1.0)
        for stable in (math.nan, 1.0, 10.0, 32.0)
        for signal in (math.nan, 0.0, 2.0)
    }
    assert found == set(VERDICTS)
