from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import append_steps, make_run

from inrank_monitor import open_run
from inrank_monitor.advice import (
    advice_csv,
    advice_table,
    advice_text,
    advise,
    lora_config,
    module_name,
    rank_pattern,
    savings,
)
from inrank_monitor.cli import main
from inrank_monitor.matrices.roles import block_of, matrix_groups, role_of, select_matrices
from inrank_monitor.ranks import RankRule
from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.null_model import null_rank
from inrank_monitor.runs.log import RunLog
from inrank_monitor.runs.recomputation import Recomputation, recompute
from inrank_monitor.runs.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(make_run(tmp_path / "run", matrices=10))


def _by_rank(table: pd.DataFrame, rank: int, rows: int, cols: int) -> pd.DataFrame:
    matrices = table[["parameter", "part", "kind"]].assign(rows=rows, cols=cols, null_rank=50, initial_norm=1.0)
    measured = pd.DataFrame({"step": 1, "matrix": table.index, "intrinsic_rank": rank, "null_rank": 50})
    return advice_table(matrices, measured.astype({"intrinsic_rank": "Int32"}))


def test_rank_that_is_enough_is_the_present_one_and_the_highest_stands_beside_it(run: Run) -> None:
    table = advise(run)
    for name in run.matrices.index:
        spectra = run.singular_values(name).to_numpy()
        ranks = rank_metrics.intrinsic_rank(spectra, run.threshold, run.buffer_rank)
        assert table.loc[name, "rank"] == ranks[-1]
        assert table.loc[name, "peak_rank"] == ranks.max()
    assert (table["rank_over_null"] == table["rank"].astype(float) / table["null_rank"].astype(float)).all()
    assert (table["rank"] < table["peak_rank"]).any()


def test_another_rule_gives_ranks_and_null_ranks_by_that_rule(run: Run) -> None:
    rule = RankRule(0.7, 4)
    table = advise(run, rule)
    name = run.matrices.index[3]
    last = run.singular_values(name).to_numpy()[-1]
    assert table.loc[name, "rank"] == rank_metrics.intrinsic_rank(last, 0.7, 4)
    assert table.loc[name, "null_rank"] == null_rank(24, 16, 0.7, 4)


@pytest.mark.parametrize(("rows", "cols"), [(24, 16), (128, 128), (1, 7), (768, 3072)])
def test_break_even_rank_is_the_last_that_saves(run: Run, rows: int, cols: int) -> None:
    even = int(_by_rank(advise(run), 1, rows, cols)["break_even_rank"].iloc[0])
    assert even * (rows + cols) < rows * cols <= (even + 1) * (rows + cols)
    if even:
        assert (_by_rank(advise(run), even, rows, cols)["parameters_saved"] == rows * cols - even * (rows + cols)).all()
    assert (_by_rank(advise(run), even + 1, rows, cols)["parameters_saved"] == 0).all()


def test_savings_add_up(run: Run) -> None:
    table = _by_rank(advise(run), 2, 24, 16)
    saved = 24 * 16 - 2 * 40
    assert savings(table) == {
        "matrices": 10,
        "parameters": 10 * saved,
        "multiply_adds": 10 * saved,
        "share": saved / (24 * 16),
    }


def test_a_rank_like_that_of_noise_is_called_so(run: Run) -> None:
    assert set(_by_rank(advise(run), 48, 900, 900)["verdict"]) == {"like noise: the rank says nothing"}
    assert set(_by_rank(advise(run), 4, 900, 900)["verdict"]) == {"low rank saves"}
    assert set(_by_rank(advise(run), 40, 24, 24)["verdict"]) == {"low rank fits, but saves nothing"}


def test_a_matrix_without_a_finite_update_saves_nothing_and_gets_no_lora_rank(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", steps=[5, 10], not_finite=lambda step: [3]))
    row = advise(run).loc["h.0.attn.c_proj.weight"]
    assert row["rank"] is pd.NA
    assert row["parameters_saved"] == 0
    assert row["verdict"] == "no update measured"
    assert "h.0.attn.c_proj" not in rank_pattern(advise(run))


@pytest.mark.parametrize("steps", [[], [0]])
def test_a_run_without_an_update_gives_a_table_without_ranks(tmp_path: Path, steps: list[int]) -> None:
    table = advise(open_run(make_run(tmp_path / "run", steps=steps)))
    assert table["rank"].isna().all()
    assert savings(table)["parameters"] == 0
    assert rank_pattern(table) == {}
    assert "no update measured" in advice_text(table)


def test_rank_pattern_merges_parts_by_their_maximum_and_names_modules(run: Run) -> None:
    table = advise(run)
    pattern = rank_pattern(table)
    for block in (0, 1):
        parts = [table.loc[f"h.{block}.attn.c_attn.weight[{part}]", "rank"] for part in "qkv"]
        assert pattern[f"h.{block}.attn.c_attn"] == max(parts)
    assert not any("weight" in name or "[" in name for name in pattern)
    assert all(isinstance(rank, int) and rank >= 1 for rank in pattern.values())
    assert max(rank_pattern(table, max_rank=2).values()) <= 2


def test_rank_pattern_leaves_out_layers_that_lora_cannot_wrap(run: Run) -> None:
    table = advise(run)
    assert rank_pattern(table.assign(kind="LSTM")) == {}


def test_a_name_never_takes_the_rank_of_another(tmp_path: Path) -> None:
    """PEFT takes the first key that fits the end of a module's name."""
    names = ["0.weight", "block.0.weight", "a.b.weight"]
    pattern = rank_pattern(advise(open_run(make_run(tmp_path / "run", names=names))))

    def as_peft(module: str) -> list[int]:
        return [rank for key, rank in pattern.items() if re.match(rf"(.*\.)?({key})$", module)]

    assert [as_peft(name) for name in ("block.0", "0", "a.b")] == [[pattern[name]] for name in ("block.0", "0", "a.b")]
    assert as_peft("aXb") == as_peft("other.0") == as_peft("c.a.b") == []


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("h.0.mlp.c_fc.weight", "h.0.mlp.c_fc"),
        ("layers.1.self_attn.in_proj_weight", "layers.1.self_attn"),
        ("rnn.weight_ih_l0", "rnn"),
        ("head", "head"),
    ],
)
def test_module_name_is_the_owner_of_the_parameter(parameter: str, module: str) -> None:
    assert module_name(parameter) == module


def test_files_hold_what_the_table_says(run: Run, tmp_path: Path) -> None:
    table = advise(run)
    (tmp_path / "advice.csv").write_text(advice_csv(table))
    read = pd.read_csv(tmp_path / "advice.csv", index_col="matrix")
    assert (read["rank"] == table["rank"].astype(int)).all()
    assert list(read.columns) == list(table.columns)


def test_recomputing_with_the_logged_rule_gives_the_logged_ranks(tmp_path: Path) -> None:
    run = open_run(
        make_run(tmp_path / "run", steps=range(0, 400, 10), not_finite=lambda step: [1] if step == 30 else [])
    )
    logged = run.measurements
    recomputed = Recomputation(run, RankRule(0.9, 8))
    recomputed.rule = RankRule(0.9 - 1e-15, 8)  # not the logged rule, but the same ranks
    table = recomputed.table()
    for column in ("step", "matrix", "intrinsic_rank", "running_rank", "null_rank"):
        pd.testing.assert_series_equal(table[column], logged[column])
    pd.testing.assert_series_equal(table["explained_ratio"], logged["explained_ratio"])


@pytest.mark.parametrize(
    "rule", [RankRule(0.5, 1), RankRule(0.95, 3), RankRule(0.99, 500), RankRule(0.8, 8, "reference")]
)
@pytest.mark.parametrize("shape", [(24, 16), (300, 200)])
def test_recomputed_ranks_are_those_of_whole_spectra(tmp_path: Path, rule: RankRule, shape: tuple[int, int]) -> None:
    run = open_run(make_run(tmp_path / "run", matrices=3, steps=range(0, 40, 5), shape=shape))
    table = recompute(run, rule)
    for name in run.matrices.index:
        mine = table[table["matrix"] == name]
        spectra = run.singular_values(name).to_numpy()
        ranks = rank_metrics.intrinsic_rank(spectra, rule.threshold, rule.buffer_rank, rule.definition)
        np.testing.assert_array_equal(mine["intrinsic_rank"].astype(int), ranks)
        np.testing.assert_array_equal(mine["running_rank"].astype(int), np.maximum.accumulate(ranks))
        before = np.maximum(np.concatenate([[0], np.maximum.accumulate(ranks)[:-1]]), 1)
        ratio = rank_metrics.explained_ratio(spectra, before, rule.buffer_rank, rule.definition)
        np.testing.assert_allclose(mine["explained_ratio"], ratio, atol=1e-12)


def test_recomputation_takes_up_new_snapshots_only_and_agrees_with_a_fresh_one(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", steps=[], ended=None)
    run, log, rule = open_run(path), RunLog(path, 0), RankRule(0.6, 4)
    growing = Recomputation(run, rule)
    for _ in append_steps(log, 5, range(0, 60, 10), (24, 16)):
        run.refresh()
        pd.testing.assert_frame_equal(growing.table(), recompute(open_run(path), rule))
    log.close()


def test_block_and_role_are_told_from_names(run: Run) -> None:
    assert [role_of(name) for name in ("model.layers.3.mlp.down_proj.weight", "h.0.attn.c_proj.weight")] == [
        "MLP out",
        "attention output",
    ]
    assert block_of("model.layers.12.self_attn.o_proj.weight") == "block 12"
    groups = matrix_groups(run.matrices)
    assert list(groups["role"][:5]) == ["q", "k", "v", "attention output", "MLP in"]
    assert select_matrices(groups, ["block 1"], ["q", "MLP in"]) == ["h.1.attn.c_attn.weight[q]", "h.1.mlp.c_fc.weight"]
    assert select_matrices(groups) == list(run.matrices.index)


@pytest.mark.parametrize("rule", [{"threshold": 0.0}, {"buffer_rank": 0}, {"definition": "other"}])
def test_a_rule_out_of_range_is_refused(rule: dict[str, object], unchecked: None) -> None:
    with pytest.raises(ValueError, match=next(iter(rule))):
        RankRule(**rule)  # type: ignore[arg-type]


def test_the_command_prints_the_table_and_writes_both_files(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, lora = tmp_path / "advice.csv", tmp_path / "lora.json"
    assert main(["advise", str(run.path), "--csv", str(csv), "--lora", str(lora)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in run.matrices.index)
    assert csv.read_text() == advice_csv(advise(run))
    assert json.loads(lora.read_text()) == lora_config(advise(run))
    assert main(["advise", str(run.path), "--threshold", "0.5"]) == 0
    expected = advice_text(advise(run, RankRule(0.5, run.buffer_rank)))
    assert capsys.readouterr().out == f"{expected}{run.too_few_points}\n"


@pytest.mark.parametrize("arguments", [["nowhere"], ["{run}", "--threshold", "7"], ["{run}", "--csv", "{run}/no/file"]])
def test_the_command_answers_bad_input_in_one_line(
    run: Run, arguments: list[str], capsys: pytest.CaptureFixture[str], unchecked: None
) -> None:
    assert main(["advise", *(text.format(run=run.path) for text in arguments)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
