"""With `leading=` every number is that of the whole spectrum, or is missing; and the reason is said."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import oracles
from helpers.training import mlp
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.figures import explained_ratio_curve, spectrum_density
from inrank_monitor.figures.comparison import mean_over_matrices
from inrank_monitor.ranks import RankRule, null_rank
from inrank_monitor.report import missing_line, report_table
from inrank_monitor.report.page import render
from inrank_monitor.runs import FLOAT_METRICS, INTEGER_METRICS, Run, recompute, verdicts
from inrank_monitor.sinks.measurements import METRICS, Measurements

SIZES = (40, 48, 9)
LEADING, B = 10, 4
TOLERANCE = 1e-5  # block iteration beside the Gram matrix, at ten of forty values


def updates(step: int) -> list[torch.Tensor]:
    """Of the weights at a step: noise with so many directions that a rank is at first within ten values, then not."""
    generator = torch.Generator().manual_seed(step)
    changes = []
    for rows, cols in ((48, 40), (9, 48)):
        strong = 2 if step % 100 < 20 else 9
        left, right = (
            torch.linalg.qr(torch.randn(side, min(strong, rows), generator=generator))[0] for side in (rows, cols)
        )
        sizes = torch.linspace(100, 60, left.shape[1])
        changes.append((left * sizes) @ right.T + torch.randn(rows, cols, generator=generator))
    return changes


def recorded(directory: Path, steps: tuple[int, ...], resume: Any = False, **options: Any) -> Path:
    """A run whose weights are W0 and the update of each step."""
    model = mlp(*SIZES)
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    start = [weight.detach().clone() for weight in weights]
    with attach(
        model, None, directory, every=1, buffer_rank=B, resume=resume, tensorboard=False, strict=True, **options
    ) as tracker:
        for step in steps:
            tracker.step_count = step - 1
            with torch.no_grad():
                for weight, first, change in zip(weights, start, updates(step), strict=True):
                    weight.copy_(first + change)
            tracker.step()
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same training measured whole and by its leading values."""
    folder = tmp_path_factory.mktemp("runs")
    steps = (12, 14, 30, 32)
    return open_run(recorded(folder / "whole", steps)), open_run(recorded(folder / "cut", steps, leading=LEADING))


def pairs(runs: tuple[Run, Run]) -> list[tuple[str, int, pd.Series, pd.Series]]:
    whole, cut = (run.measurements.set_index(["matrix", "step"]) for run in runs)
    return [(name, step, whole.loc[(name, step)], cut.loc[(name, step)]) for name, step in cut.index]


def test_every_number_is_that_of_the_whole_spectrum_or_missing(runs: tuple[Run, Run]) -> None:
    for name, _, whole, cut in pairs(runs):
        for column in {*INTEGER_METRICS, *FLOAT_METRICS, "null_rank", "rank_over_null_rank"} - {"error_bound"}:
            missing = pd.isna(cut[column])
            assert missing or cut[column] == pytest.approx(whole[column], rel=TOLERANCE), (name, column)


def test_what_a_cut_spectrum_cannot_give_is_missing(runs: tuple[Run, Run]) -> None:
    for name, step, whole, cut in pairs(runs):
        is_cut = name == "0.weight"  # the other has nine values
        for column in ("effective_rank", "nuclear_norm", "signal_share"):
            assert pd.isna(cut[column]) == (is_cut or pd.isna(whole[column]))
        assert pd.isna(cut["signal_rank"]) == (is_cut or pd.isna(whole["signal_rank"]))
        assert pd.isna(cut["numerical_rank"]) == is_cut
        assert pd.isna(cut["energy_rank"]) == (is_cut and whole["energy_rank"] > LEADING)
        reached = whole["intrinsic_rank"] + B > LEADING
        assert pd.isna(cut["intrinsic_rank"]) == pd.isna(cut["rank_over_null_rank"]) == (is_cut and reached)
        assert step >= 30 or not (is_cut and reached)
    assert any(pd.isna(cut["intrinsic_rank"]) for *_, cut in pairs(runs))


def test_a_rank_that_was_once_beyond_the_values_stays_unknown(runs: tuple[Run, Run], tmp_path: Path) -> None:
    running = runs[1].measurements.query("matrix == '0.weight'")["running_rank"]
    assert running.isna().tolist() == [False, False, True, True]
    path = recorded(tmp_path / "run", (12, 30), leading=LEADING)
    recorded(path, (112,), resume=30, leading=LEADING)  # an update of few directions again
    last = open_run(path).measurements.query("matrix == '0.weight'").iloc[-1]
    assert pd.notna(last["intrinsic_rank"])
    assert pd.isna(last["running_rank"])


def test_the_null_rank_is_of_the_whole_spectrum(runs: tuple[Run, Run]) -> None:
    for run in runs:
        assert run.matrices["null_rank"].tolist() == [null_rank(48, 40, 0.9, B), null_rank(9, 48, 0.9, B)]
    table = recompute(runs[1], RankRule(0.8, 3))
    assert set(table["null_rank"]) == {null_rank(48, 40, 0.8, 3), null_rank(9, 48, 0.8, 3)}


@pytest.mark.parametrize(
    "rule", [RankRule(0.5, 2), RankRule(0.95, 3), RankRule(0.9, 9), RankRule(0.9, 20), RankRule(0.8, 4, "reference")]
)
def test_another_rule_gives_the_rank_of_the_whole_spectrum_or_none(runs: tuple[Run, Run], rule: RankRule) -> None:
    whole, cut = (recompute(run, rule).set_index(["matrix", "step"]) for run in runs)
    known = 0
    for name, step in cut.index:
        rank = cut.loc[(name, step), "intrinsic_rank"]
        values = runs[0].singular_values(name).loc[step].dropna().to_numpy()
        full = oracles.intrinsic_rank(values, rule.threshold, rule.buffer_rank or 0, rule.definition)
        short = rule.definition == "paper" and full + (rule.buffer_rank or 0) <= LEADING
        assert (rank == full) if short or name != "0.weight" else pd.isna(rank)
        known += pd.notna(rank)
        for column in ("running_rank", "explained_ratio", "rank_over_null_rank"):
            value = cut.loc[(name, step), column]
            assert pd.isna(value) or value == pytest.approx(whole.loc[(name, step), column], rel=1e-4)
    assert known >= 4  # those of the small matrix


def test_a_zero_update_is_known_whole(tmp_path: Path) -> None:
    model = mlp(*SIZES)
    with attach(model, None, tmp_path / "run", every=1, leading=LEADING, tensorboard=False) as tracker:
        tracker.step()
    row = open_run(tmp_path / "run").measurements.iloc[0]
    assert (
        row[["intrinsic_rank", "energy_rank", "numerical_rank", "effective_rank", "nuclear_norm"]].tolist() == [0] * 5
    )


def test_verdicts_are_those_of_the_whole_spectrum(runs: tuple[Run, Run]) -> None:
    whole, cut = (verdicts(run.matrices, run.measurements).tolist() for run in runs)
    assert whole == cut == ["structured", "too thin to tell"]


def test_reports_say_why_numbers_are_missing(runs: tuple[Run, Run]) -> None:
    text, page = report_table(runs[1]), html.unescape(render(runs[1]))
    for said in (" ".join(text.split()), page):
        assert f"Of matrices with more than {LEADING} singular values the {LEADING} leading ones were taken" in said
    assert missing_line(runs[0]) is None
    assert missing_line(runs[1]) is not None
    row = next(line for line in text.splitlines() if line.startswith("0.weight"))
    assert row.split()[2] == "-"


def test_a_run_of_which_no_spectrum_is_cut_says_nothing(tmp_path: Path) -> None:
    assert missing_line(open_run(recorded(tmp_path / "run", (12,), leading=40))) is None


def test_figures_end_where_the_values_do(runs: tuple[Run, Run]) -> None:
    early = explained_ratio_curve(runs[1].singular_values("0.weight"), 12)
    late = explained_ratio_curve(runs[1].singular_values("0.weight"), 30)
    whole = explained_ratio_curve(runs[0].singular_values("0.weight"), 12)
    assert max(early.data[0].x) == LEADING - B
    np.testing.assert_allclose(early.data[0].y, whole.data[0].y[: LEADING - B], rtol=1e-4)
    assert early.data[0].name == whole.data[0].name
    assert late.data[0].name == "step 30: rank not known"
    assert len(late.data) == 1  # no ring
    density = spectrum_density(runs[1].singular_values("0.weight"), [12, 30])
    assert f"Of the {LEADING} leading values alone" in density.layout.xaxis.title.text
    labels = "".join(density.layout.yaxis.ticktext)
    assert "rank not known" in labels
    assert "holds" not in labels
    assert "leading values" not in str(spectrum_density(runs[1].singular_values("2.weight")).layout.xaxis.title.text)


def test_sinks_get_what_is_known_of_a_matrix_whose_rank_is_not(runs: tuple[Run, Run]) -> None:
    table = runs[1].measurements.query("step == 30")
    columns = {name: [None if pd.isna(value) else value for value in table[name]] for name in INTEGER_METRICS}
    columns |= {name: table[name].to_numpy() for name in FLOAT_METRICS}
    columns |= {"matrix": [0, 1], "singular_values": [np.ones(3), np.ones(3)]}
    found = Measurements.of(30, 0.0, columns, list(runs[1].matrices.index), [11, 7])
    assert found.names == list(runs[1].matrices.index)
    values = found.by_matrix()
    assert "intrinsic_rank/0.weight" not in values
    assert values["stable_rank/0.weight"] == table["stable_rank"].iloc[0]


def test_estimates_stay_and_are_called_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(140, 150, bias=False))
    with attach(model, None, tmp_path / "run", every=1, leading=LEADING, density=True, tensorboard=False) as tracker:
        with torch.no_grad():
            model[0].weight += torch.randn(150, 140, generator=torch.Generator().manual_seed(1))
        tracker.step()
    run = open_run(tmp_path / "run")
    row = run.measurements.iloc[0]
    assert row["error_bound"] > 0
    assert np.isfinite(row["effective_rank"])
    assert pd.isna(row["signal_rank"])  # its scale would be an estimate
    assert "the others estimated" in (missing_line(run) or "")
    assert verdicts(run.matrices, run.measurements).tolist() == ["like noise"]


@pytest.mark.parametrize("options", [{"leading": 6}, {"leading": 12}, {"leading": 6, "density": True}])
def test_noise_whose_largest_value_is_only_bounded_is_not_called_flat(tmp_path: Path, options: dict[str, Any]) -> None:
    model = nn.Sequential(*(nn.Linear(150, 140 + place, bias=False) for place in range(8)))
    generator = torch.Generator().manual_seed(2)
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False, **options) as tracker:
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn(weight.shape, generator=generator)
        tracker.step()
    run = open_run(tmp_path / "run")
    assert set(verdicts(run.matrices, run.measurements)) == {"like noise"}


def test_the_log_of_a_cut_run_holds_nulls(runs: tuple[Run, Run]) -> None:
    info = json.loads((runs[1].path / "run.json").read_text())
    assert info["options"]["leading"] == LEADING
    assert info["schema_version"] == 2


def test_a_mean_over_matrices_is_missing_where_one_of_them_is_not_known(runs: tuple[Run, Run]) -> None:
    whole, cut = (mean_over_matrices(run.measurements, "intrinsic_rank").set_index("step") for run in runs)
    assert cut["intrinsic_rank"].isna().tolist() == [False, False, True, True]
    assert (cut["intrinsic_rank"] == whole["intrinsic_rank"])[:2].all()
    assert mean_over_matrices(runs[1].measurements, "stable_rank")["stable_rank"].notna().all()
    summary = runs[1].summary()
    assert (summary.mean_rank, summary.mean_rank_over_null_rank) == (None, None)
    assert runs[0].summary().mean_rank == whole["intrinsic_rank"].iloc[-1]
    table = runs[1].measurements.query("step == 30")
    columns = {name: table[name].astype("Float64").to_numpy(dtype=float, na_value=np.nan) for name in METRICS}
    found = Measurements(30, 0.0, list(table["matrix"]), columns, [np.ones(3)] * 2, watched=2).scalars()
    assert "mean/intrinsic_rank" not in found
    assert "mean/rank_over_null_rank" not in found
    assert found["mean/stable_rank"] == pytest.approx(table["stable_rank"].mean())
