"""What stands in the way of a comparison is said, and nothing is where nothing stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_runs import make_run, names_of

from inrank_monitor.ranks import RankRule
from inrank_monitor.runs import (
    Caveat,
    RunState,
    SharedRun,
    caveats,
    common_matrices,
    comparison_table,
    group_runs,
    lacking,
)
from inrank_monitor.runs.group_table import mean_text
from inrank_monitor.runs.log import RUN_FILE, write_json


def state(
    directory: Path, rule: RankRule | None = None, options: dict[str, Any] | None = None, **made: Any
) -> RunState:
    """A made run, its options changed."""
    run = make_run(directory, **made)
    info = json.loads((run / RUN_FILE).read_text())
    info["options"] |= options or {}
    write_json(run / RUN_FILE, info)
    return SharedRun(run).tables(rule)


def titles(found: list[Caveat]) -> list[str]:
    return [caveat.title for caveat in found]


def test_runs_alike_need_no_caveat_and_one_run_none_either(tmp_path: Path) -> None:
    runs = {name: state(tmp_path / name, seed=place) for place, name in enumerate("ab")}
    assert caveats(runs) == []
    assert caveats({"c": state(tmp_path / "c", options={"threshold": 0.5})}) == []


@pytest.mark.parametrize(
    "options", [{"threshold": 0.8}, {"buffer_rank": 4}, {"buffer_rank": None}, {"definition": "reference"}]
)
def test_other_rules_are_said_and_the_ranks_are_by_one(tmp_path: Path, options: dict[str, Any]) -> None:
    rule = RankRule(0.9, 8)
    runs = {"a": state(tmp_path / "a", rule), "b": state(tmp_path / "b", rule, options, seed=0)}
    (found,) = caveats(runs)
    assert found.title == "other rules"
    assert "recomputed alike, by α = 0.9, b = 8" in found.text
    assert "a: α = 0.9, b = 8; b: " in found.text
    for column in ("intrinsic_rank", "running_rank", "null_rank"):  # the same spectra
        np.testing.assert_array_equal(*(runs[name].measurements[column].to_numpy(dtype=float) for name in "ab"))


def test_other_steps_are_said_as_far_as_both_have_come(tmp_path: Path) -> None:
    whole = state(tmp_path / "a", steps=range(0, 60, 10))
    assert caveats({"a": whole, "b": state(tmp_path / "b", steps=range(0, 30, 10))}) == []
    (found,) = caveats({"a": whole, "b": state(tmp_path / "c", steps=range(0, 60, 5))})
    assert found.title == "other steps measured"
    assert "a: 6 snapshots from step 0 to 50; b: 12 snapshots from step 0 to 55" in found.text


def test_other_cuts_are_said_and_what_the_rule_cannot_tell_of_them(tmp_path: Path) -> None:
    rule = RankRule(0.9, 8)
    whole, cut = state(tmp_path / "a", rule), state(tmp_path / "b", rule, {"leading": 8})
    assert titles(caveats({"a": whole, "b": cut})) == ["other cuts of the spectrum"]
    # the spectra are those of whole matrices of 16: let the log say that they are the leading ones of 24
    info = json.loads((tmp_path / "b" / RUN_FILE).read_text())
    for matrix in info["matrices"]:
        matrix["cols"] = 24
    info["options"]["leading"] = 16
    write_json(tmp_path / "b" / RUN_FILE, info)
    other = SharedRun(tmp_path / "b").tables(RankRule(0.99, 15))
    found = {caveat.title: caveat.text for caveat in caveats({"a": whole, "b": other})}
    unknown = other.measurements["intrinsic_rank"].isna()
    assert 0 < unknown.sum() < len(unknown)
    text = found["ranks that a cut spectrum does not tell"]
    assert f"{int(unknown.sum())} of {len(unknown)} ranks of b" in text
    assert "other shapes" in found


def test_estimated_spectra_are_not_whole_ones(tmp_path: Path) -> None:
    runs = {"a": state(tmp_path / "a"), "b": state(tmp_path / "b", options={"leading": 8, "density": True})}
    (found,) = caveats(runs)
    assert "b: 8 leading values measured, the others estimated" in found.text


def test_other_shapes_are_said(tmp_path: Path) -> None:
    runs = {"a": state(tmp_path / "a"), "b": state(tmp_path / "b", shape=(24, 20))}
    (found,) = caveats(runs)
    assert found.title == "other shapes"
    assert "5 matrices" in found.text
    assert "a: 24×16; b: 24×20" in found.text


def test_a_matrix_that_a_run_lacks_is_said_by_name_and_the_mean_is_over_what_all_have(tmp_path: Path) -> None:
    runs = {"a": state(tmp_path / "a", matrices=10), "b": state(tmp_path / "b", matrices=3)}
    assert common_matrices(runs) == names_of(3)
    (mean,) = lacking(runs, None)
    assert "b lacks h.0.attn.c_proj, h.0.mlp.c_fc, h.1.attn.c_attn[q], h.1.attn.c_attn[k] and 3 more." in mean.text
    assert "over the 3 matrices" in mean.text
    (one,) = lacking(runs, "h.1.mlp.c_fc.weight")
    assert one.text == "h.1.mlp.c_fc is not in b."
    assert lacking(runs, names_of(1)[0]) == []
    runs["c"] = state(tmp_path / "c", names=["other.weight"])
    assert "of each run is over its own" in lacking(runs, None)[0].text
    assert common_matrices(runs) == []


def test_the_table_of_groups_ends_with_mean_and_spread_of_the_last_values(tmp_path: Path) -> None:
    runs = {f"x-seed-{seed}": state(tmp_path / str(seed), seed=seed) for seed in range(3)}
    runs["alone"] = state(tmp_path / "alone", matrices=3)
    groups = group_runs({name: run.configuration for name, run in runs.items()})
    table = comparison_table(groups, runs, "tracker_overhead")
    assert list(table.columns) == [group.label for group in groups] == ["parameters 1920", "parameters 1152"]
    last = [
        run.measurements.query("step == 40 and matrix in @names")["intrinsic_rank"].mean()
        for names in [names_of(3)]
        for run in list(runs.values())[:3]
    ]
    assert table.loc["last mean rank", "parameters 1920"] == f"{np.mean(last):.4g} ± {np.std(last, ddof=1):.2g}"
    assert table.loc["last tracker_overhead", "parameters 1152"] == "0.01"
    assert table.loc["runs"].tolist() == ["3", "1"]
    assert mean_text([1.0, 3.0, np.nan]) == "2 ± 1.4 (2 of 3 runs)"
    assert mean_text([np.nan]) == "–"
