"""The built-in alarms as functions of a history: what rings, what does not, and what cannot matter."""

from __future__ import annotations

import numpy as np
import pytest

from inrank_monitor.ranks import WATCHES, History
from inrank_monitor.ranks import metrics as rank_metrics

STEPS = np.arange(10, 210, 10)
SIDE = 32


def history(spectra: np.ndarray, steps: np.ndarray = STEPS, norm: float = 10.0, side: int = SIDE) -> History:
    """Of spectra (snapshots, matrices, values)."""
    return History(
        steps[: len(spectra)],
        np.sqrt((spectra**2).sum(axis=2)),
        spectra[:, :, 0],
        spectra.sum(axis=2),
        rank_metrics.effective_rank(spectra),
        size=np.full(spectra.shape[1], norm),
        short_side=np.full(spectra.shape[1], float(side)),
    )


def ordinary(matrices: int = 3, steps: np.ndarray = STEPS) -> np.ndarray:
    """Spectra that grow with the root of the steps."""
    values = np.geomspace(1, 0.05, SIDE)
    return np.sqrt(steps / steps[-1])[:, None, None] * values * np.arange(1, matrices + 1)[None, :, None]


def rings(found: History) -> dict[str, list[bool]]:
    return {kind: watch(found).tolist() for kind, watch in WATCHES.items() if watch(found).any()}


def test_ordinary_growth_rings_nothing() -> None:
    spectra = ordinary()
    for last in range(1, len(STEPS) + 1):
        assert rings(history(spectra[:last])) == {}


def test_a_matrix_that_stands_still_rings_after_fifty_steps_and_it_alone() -> None:
    spectra = ordinary()
    spectra[10:, 1] = spectra[10, 1]  # from step 110 on
    assert rings(history(spectra[:15])) == {}  # step 150: 40 steps
    assert rings(history(spectra[:16])) == {"stopped_moving": [False, True, False]}


def test_where_all_stand_still_nothing_rings() -> None:
    spectra = ordinary()
    spectra[10:] = spectra[10]
    assert rings(history(spectra)) == {}


def test_a_rate_that_decays_to_zero_rings_nothing() -> None:
    progress = np.cumsum(0.5 * (1 + np.cos(np.pi * STEPS / STEPS[-1])))
    spectra = np.sqrt(progress / progress[-1])[:, None, None] * ordinary()[-1][None]
    for last in range(1, len(STEPS) + 1):
        assert rings(history(spectra[:last])) == {}


def test_a_matrix_that_has_not_moved_yet_has_not_stopped() -> None:
    spectra = ordinary()
    spectra[:, 0] = 0.0
    assert rings(history(spectra)) == {}


def test_wide_gaps_between_snapshots_need_three_of_them() -> None:
    steps = np.array([10, 500, 1000, 1500, 2000])
    spectra = ordinary(steps=steps)
    spectra[2:, 0] = spectra[2, 0]
    assert rings(history(spectra[:4], steps)) == {}
    assert rings(history(spectra, steps)) == {"stopped_moving": [True, False, False]}


def test_a_norm_that_grows_a_thousandfold_has_exploded_and_a_warm_up_has_not() -> None:
    spectra = ordinary()
    spectra[-1, 2] *= 300
    assert rings(history(spectra)) == {"norm_exploded": [False, False, True]}
    warm = (STEPS[:, None, None] / STEPS[-1]) ** 2 * 1000 * ordinary()[-1][None]
    assert not WATCHES["norm_exploded"](history(warm)).any()


def test_fast_growth_of_a_small_matrix_is_no_explosion() -> None:
    spectra = np.exp(STEPS / 10.0)[:, None, None] * np.ones((1, 2, SIDE))
    spectra *= 1.0 / spectra.max()  # a plateau is left exponentially, from tiny weights to usual ones
    assert not WATCHES["norm_exploded"](history(spectra)).any()


def test_one_direction_that_outgrows_all_others_is_a_spike() -> None:
    spectra = ordinary()
    spectra[-1, 0, 0] *= 5
    assert rings(history(spectra)) == {"spike": [True, False, False]}


def test_a_rank_of_one_from_the_start_is_no_spike() -> None:
    spectra = ordinary()
    spectra[:, :, 1:] = 0
    assert rings(history(spectra)) == {}


def test_lost_directions_are_a_collapse_and_a_spike_is_none() -> None:
    spectra = ordinary()
    spectra[-1, 1, 3:] *= 0.01
    assert rings(history(spectra)) == {"rank_collapsed": [False, True, False]}


@pytest.mark.parametrize("kind", ["spike", "rank_collapsed"])
def test_a_thin_matrix_is_never_judged_by_its_directions(kind: str) -> None:
    spectra = ordinary()
    spectra[-1, 0, 0] *= 5
    spectra[-1, 1, 3:] *= 0.01
    assert WATCHES[kind](history(spectra)).any()
    assert not WATCHES[kind](history(spectra, side=7)).any()


def happenings() -> dict[str, np.ndarray]:
    stopped, exploded, spiked, collapsed = (ordinary() for _ in range(4))
    stopped[10:, 0] = stopped[10, 0]
    exploded[-1, 0] *= 300
    spiked[-1, 0, 0] *= 5
    collapsed[-1, 0, 3:] *= 0.01
    return {"stopped_moving": stopped, "norm_exploded": exploded, "spike": spiked, "rank_collapsed": collapsed}


@pytest.mark.parametrize("kind", WATCHES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_units_do_not_matter(kind: str, scale: float) -> None:
    assert WATCHES[kind](history(scale * happenings()[kind], norm=scale * 10)).tolist() == [True, False, False]


@pytest.mark.parametrize("kind", WATCHES)
def test_what_was_not_measured_rings_nothing(kind: str) -> None:
    spectra = happenings()[kind]
    spectra[-1, 0] = np.nan
    assert not WATCHES[kind](history(spectra)).any()
    for watch in WATCHES.values():
        assert not watch(history(np.full_like(spectra, np.nan))).any()


@pytest.mark.parametrize("kind", WATCHES)
def test_one_snapshot_says_nothing(kind: str) -> None:
    assert not WATCHES[kind](history(happenings()[kind][-1:], STEPS[-1:])).any()


def test_the_first_ten_steps_are_left_out() -> None:
    steps = np.arange(1, 21)
    spectra = np.ones((20, 1, SIDE)) * 0.01  # Adam's first steps: a flat matrix of signs
    spectra[9:] = 0.001
    spectra[9:, :, 0] = 5.0
    assert rings(history(spectra, steps)) == {}
