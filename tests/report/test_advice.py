from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.loss_ranks import write_loss_ranks
from helpers.made_runs import append_steps, make_run

from inrank_monitor import attach, open_run, scan
from inrank_monitor.advice import (
    advice_csv,
    advice_text,
    advise,
    advise_widths,
    lora_config,
    module_name,
    rank_pattern,
    savings,
    width_text,
)
from inrank_monitor.advice import table as table_module
from inrank_monitor.cli import main
from inrank_monitor.matrices.roles import block_of, matrix_groups, role_of, select_matrices
from inrank_monitor.ranks import RankRule
from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks.null_model import null_rank
from inrank_monitor.runs.log import RunLog
from inrank_monitor.runs.recomputation import Recomputation, recompute
from inrank_monitor.runs.run import Run

STEPS = range(0, 48, 4)  # enough for a curve, and more than the first ones


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(make_run(tmp_path / "run", matrices=10, steps=STEPS))


def _moved(directory: Path, updates: list[np.ndarray], losses: Iterable[float] = (), **options: Any) -> Run:
    """A run in which each matrix's update is one of these from the first step on."""
    rows, cols = updates[0].shape
    model = torch.nn.ModuleList([torch.nn.Linear(cols, rows, bias=False) for _ in updates])
    losses = list(losses) or [1.0] * 20
    with attach(model, None, directory, **{"every": 1, "tensorboard": False, **options}) as tracker:
        with torch.no_grad():
            for layer, update in zip(model, updates, strict=True):
                layer.weight += torch.from_numpy(update).float()
        for loss in losses:
            tracker.step()
            tracker.log(loss=loss)
    return open_run(directory)


def _planted(rank: int, rows: int = 48, cols: int = 64, strength: float = 40.0) -> np.ndarray:
    """Noise, and so many directions far above it."""
    generator = np.random.default_rng(rank)
    left, _ = np.linalg.qr(generator.standard_normal((rows, rank)))
    right, _ = np.linalg.qr(generator.standard_normal((cols, rank)))
    return np.asarray(0.01 * (generator.standard_normal((rows, cols)) + strength * left @ right.T))


def _noise(rows: int = 48, cols: int = 64) -> np.ndarray:
    return 0.01 * np.random.default_rng(0).standard_normal((rows, cols))


def _orthogonal(rows: int = 48, cols: int = 64) -> np.ndarray:
    return np.asarray(0.01 * np.linalg.qr(np.random.default_rng(0).standard_normal((cols, rows)))[0].T)


def _at(run: Run, rank: int, rows: int, cols: int) -> pd.DataFrame:
    """The advice, had the ranks and shapes been these."""
    table = advise(run).assign(rows=rows, cols=cols, rank=rank)
    table_module._add_savings(table)
    return table.assign(advice=[table_module._advice(rank, even) for even in table["break_even_rank"]])


def test_enough_is_what_holds_nine_tenths_of_the_energy_where_no_loss_was_asked(tmp_path: Path) -> None:
    run = _moved(tmp_path / "run", [_planted(rank, strength=30 + 10 * rank) for rank in (1, 3, 9, 20)])
    table = advise(run)
    for name in run.matrices.index:
        energy = run.singular_values(name).iloc[-1].to_numpy() ** 2
        share = np.cumsum(energy) / energy.sum()
        rank = int(np.argmax(share >= 0.9)) + 1
        row = table.loc[name]
        assert (row["energy_rank"], row["rank"], row["rank_from"]) == (rank, rank, "energy")
        assert row["energy_share"] == pytest.approx(share[rank - 1], rel=1e-5)
    assert table["rank"].nunique() == 4


def test_the_newest_ranks_by_loss_come_first(run: Run) -> None:
    first, second, *others = map(str, run.matrices.index)
    write_loss_ranks(run.path, {first: 9, second: 9}, 20, time=2e9)
    write_loss_ranks(run.path, {first: 2, second: 0}, 40, time=2.1e9)
    run.refresh()
    table = advise(run)
    assert table.loc[[first, second], "rank"].tolist() == [2, 0]
    assert table.loc[[first, second], "rank_from"].tolist() == ["loss", "loss"]
    assert table.loc[[first, second], "loss_step"].tolist() == [40, 40]
    energy = run.singular_values(first).iloc[-1].to_numpy() ** 2
    assert table.loc[first, "energy_share"] == pytest.approx(energy[:2].sum() / energy.sum(), rel=1e-5)
    assert table.loc[second, "advice"] == "not needed: the loss keeps without this update"
    assert set(table.loc[others, "rank_from"].dropna()) == {"energy"}
    assert second.removesuffix(".weight") not in rank_pattern(table)
    assert "The ranks by loss are of step 40, the spectra of step 44." in advice_text(table)
    only = advise(run, rank_from="loss")
    assert only.loc[others, "rank"].isna().all()
    assert set(only.loc[others, "advice"]) == {"no advice: not among the ranks by loss"}


@pytest.mark.parametrize(
    ("source", "column"), [("energy", "energy_rank"), ("paper", "intrinsic_rank"), ("signal", "signal_rank")]
)
def test_another_source_can_be_asked_for_and_all_stand_beside_it(tmp_path: Path, source: Any, column: str) -> None:
    run = _moved(tmp_path / "run", [_planted(rank) for rank in (2, 4, 6)])
    table = advise(run, rank_from=source)
    assert table["rank"].tolist() == table[column].tolist()
    assert set(table["rank_from"]) == {source}
    assert table["signal_rank"].tolist() == [2, 4, 6]
    last = run.measurements.drop_duplicates("matrix", keep="last")
    assert table["intrinsic_rank"].tolist() == last["intrinsic_rank"].tolist()
    ratio = table["intrinsic_rank"].astype(float) / table["null_rank"].astype(float)
    assert table["rank_over_null_rank"].tolist() == ratio.tolist()
    assert set(table["verdict"]) == {"structured"}


def test_a_source_that_there_is_not_is_refused_with_what_to_do(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="rank_from must be one of loss, energy, paper, signal, got 'stable'"):
        advise(run, rank_from="stable")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no ranks by loss; inrank_monitor\.ranks_by_loss"):
        advise(run, rank_from="loss")
    assert main(["advise", str(run.path), "--rank-from", "loss"]) == 2
    assert "ranks_by_loss(model, run, loss) measures them" in capsys.readouterr().err


def test_another_rule_gives_the_papers_rank_and_null_rank_by_that_rule(run: Run) -> None:
    rule = RankRule(0.7, 4)
    table = advise(run, rule)
    name = run.matrices.index[3]
    last = run.singular_values(name).to_numpy()[-1]
    assert table.loc[name, "intrinsic_rank"] == rank_metrics.intrinsic_rank(last, 0.7, 4)
    assert table.loc[name, "null_rank"] == null_rank(24, 16, 0.7, 4)
    assert table["energy_rank"].tolist() == advise(run)["energy_rank"].tolist()


@pytest.mark.parametrize(
    ("update", "verdict"),
    [
        (_noise(), "like noise"),
        (_noise() * 1e4, "like noise"),
        (_orthogonal(), "flatter than noise"),
        (0 * _noise(), "has not moved"),
        (np.full((48, 64), np.nan), "not finite"),
        (np.where(_noise() > 0.03, np.inf, 0), "not finite"),
    ],
)
@pytest.mark.parametrize("source", [None, "energy", "paper", "signal"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_spectrum_that_says_nothing_gives_no_advice_by_any_rule(
    tmp_path: Path, update: np.ndarray, verdict: str, source: Any
) -> None:
    run = _moved(tmp_path / "run", [update])
    table = advise(run, rank_from=source)
    (row,) = table.to_dict("records")
    assert row["verdict"] == verdict
    assert row["advice"] == f"no advice: {verdict}"
    assert pd.isna(row["rank"])
    assert row["trainable_saved"] == row["optimizer_bytes_saved"] == 0
    assert rank_pattern(table) == {}
    assert verdict in advice_text(table)
    with pytest.raises(ValueError, match=verdict):
        lora_config(table)


@pytest.mark.parametrize(("rows", "cols", "rank"), [(8, 64, 1), (8, 64, 2), (12, 15, 3)])
def test_a_matrix_too_thin_to_tell_gets_the_rank_that_holds_its_energy(
    tmp_path: Path, rows: int, cols: int, rank: int
) -> None:
    table = advise(_moved(tmp_path / "run", [_planted(rank, rows, cols, strength=200.0)]))
    (row,) = table.to_dict("records")
    assert row["verdict"] == "too thin to tell"
    assert (row["rank"], row["rank_from"], row["advice"]) == (rank, "energy", "low rank saves")
    assert list(rank_pattern(table).values()) == [rank]


@pytest.mark.parametrize(
    ("source", "advice"), [("paper", "low rank saves"), ("signal", "no advice: the signal rank cannot be told")]
)
def test_a_matrix_too_thin_to_tell_has_the_papers_rank_and_no_signal_rank(
    tmp_path: Path, source: Any, advice: str
) -> None:
    (row,) = advise(_moved(tmp_path / "run", [_planted(2, 8, 64)]), rank_from=source).to_dict("records")
    assert row["verdict"] == "too thin to tell"
    assert row["advice"] == advice
    assert pd.isna(row["rank"]) if source == "signal" else row["rank"] == row["intrinsic_rank"]


@pytest.mark.parametrize(("update", "stands"), [(_noise(), True), (_planted(1, 4, 64), True), (0 * _noise(), False)])
def test_a_rank_by_loss_stands_where_the_spectrum_says_nothing(
    tmp_path: Path, update: np.ndarray, stands: bool
) -> None:
    run = _moved(tmp_path / "run", [update])
    write_loss_ranks(run.path, {"0.weight": 3}, 20)
    table = advise(open_run(run.path))
    assert table["rank"].notna().tolist() == [stands]
    assert rank_pattern(table) == ({"0": 3} if stands else {})


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([*np.linspace(3, 1, 30), *[np.nan] * 5], "diverged: loss is not finite since step 31"),
        ([3.0] * 20 + [np.inf], "diverged: loss is not finite since step 21"),
        ([np.nan] * 25, "diverged: loss is not finite since step 1"),
        ([*np.linspace(3, 1, 30), *np.linspace(5, 9, 15)], "diverged: loss ended at 7.714, above the 2.69 of its"),
        ([2.0] * 15 + [8.0] * 15, "diverged: loss ended at 8, above the 2 of its beginning"),
        ([3.0] * 19, "too short: 19 steps, where 20 are the least"),
        ([3.0], "too short: 1 steps"),
    ],
)
def test_a_run_that_diverged_or_is_too_short_gets_no_advice_not_even_by_loss(
    tmp_path: Path, losses: list[float], reason: str
) -> None:
    run = _moved(tmp_path / "run", [_planted(3)] * 2, losses)
    write_loss_ranks(run.path, {"0.weight": 3, "1.weight": 3}, len(losses))
    run.refresh()
    for source in (None, "loss", "energy", "paper", "signal"):
        table = advise(run, rank_from=source)  # type: ignore[arg-type]
        assert table["rank"].isna().all()
        assert all(text.startswith(f"no advice: {reason}") for text in table["advice"])
        assert savings(table)["trainable_saved"] == 0
    assert " ".join(advice_text(table).split()).count(reason) == 1


@pytest.mark.parametrize(
    "losses",
    [
        np.linspace(3, 1, 40),
        np.where(np.arange(40) == 35, 50.0, 2.0),  # a spike that it came back from
        np.where(np.arange(40) == 20, np.nan, 2.0),  # a skipped step
        2 + np.random.default_rng(0).uniform(-0.5, 0.5, 200),  # no progress, and no divergence
        np.linspace(0, 0.3, 40),  # of a policy: it begins at zero
        np.linspace(-3, 1, 40),
    ],
)
def test_an_ordinary_loss_is_no_divergence(tmp_path: Path, losses: np.ndarray) -> None:
    table = advise(_moved(tmp_path / "run", [_planted(3)], losses))
    assert table["advice"].tolist() == ["low rank saves"]


def test_too_few_snapshots_for_a_curve_are_enough_for_advice(tmp_path: Path) -> None:
    run = _moved(tmp_path / "run", [_planted(3)], [1.0] * 100, every=50)
    assert run.too_few_points
    assert advise(run)["advice"].tolist() == ["low rank saves"]


def test_checkpoints_are_neither_too_few_nor_too_short(tmp_path: Path) -> None:
    layer = torch.nn.Linear(64, 48, bias=False)
    for step in range(3):
        torch.save(layer.state_dict(), tmp_path / f"step_{step}.pt")
        with torch.no_grad():
            layer.weight += torch.from_numpy(_planted(2)).float()
    run = scan([tmp_path / f"step_{step}.pt" for step in range(3)], tmp_path / "run", tensorboard=False)
    assert advise(run)["advice"].tolist() == ["low rank saves"]


def test_a_matrix_that_turned_into_nan_gets_no_advice_by_an_older_spectrum(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", steps=STEPS, not_finite=lambda step: [3] if step > 30 else []))
    row = advise(run).loc["h.0.attn.c_proj.weight"]
    assert row["rank"] is pd.NA
    assert row["trainable_saved"] == 0
    assert row["advice"] == "no advice: not finite"
    assert "h.0.attn.c_proj" not in rank_pattern(advise(run))


def test_of_a_cut_spectrum_a_rank_beyond_it_is_empty(tmp_path: Path) -> None:
    run = _moved(tmp_path / "run", [_planted(3, strength=200), _planted(1, strength=25)], leading=4)
    wide, flat = advise(run).to_dict("records")
    assert wide["energy_rank"] == wide["rank"] == 3
    assert pd.isna(flat["energy_rank"])
    assert flat["advice"] == "no advice: the spectrum is cut before 90 % of its energy"


@pytest.mark.parametrize(("rows", "cols"), [(24, 16), (128, 128), (1, 7), (768, 3072)])
def test_break_even_rank_is_the_last_that_saves(run: Run, rows: int, cols: int) -> None:
    even = int(_at(run, 1, rows, cols)["break_even_rank"].iloc[0])
    assert even * (rows + cols) < rows * cols <= (even + 1) * (rows + cols)
    if even:
        table = _at(run, even, rows, cols)
        assert (table["trainable_saved"] == rows * cols - even * (rows + cols)).all()
        assert set(table["advice"]) == {"low rank saves"}
    table = _at(run, even + 1, rows, cols)
    assert (table["trainable_saved"] == 0).all()
    assert set(table["advice"]) == {"low rank fits, but saves nothing"}


def test_what_is_saved_is_training_and_adds_up(run: Run) -> None:
    table = _at(run, 2, 24, 16)
    saved = 24 * 16 - 2 * 40
    assert (table["trainable_parameters"] == 2 * 40).all()
    assert savings(table) == {
        "matrices": 10,
        "parameters": 10 * 24 * 16,
        "trainable_saved": 10 * saved,
        "optimizer_bytes_saved": 10 * saved * 8,  # Adam: two numbers a parameter
        "gradient_bytes_saved": 10 * saved * 4,
        "share": saved / (24 * 16),
    }
    text = " ".join(advice_text(table).split())
    assert f"leave {10 * saved:,} of 3,840 watched parameters untrained" in text
    assert "W0 stays: the model is no smaller" in text
    assert not any("multiply" in column for column in table.columns)


@pytest.mark.parametrize(("steps", "reason"), [([], "too short: 0 steps"), ([0], "too short: 0 steps")])
def test_a_run_without_an_update_gives_a_table_without_ranks(tmp_path: Path, steps: list[int], reason: str) -> None:
    table = advise(open_run(make_run(tmp_path / "run", steps=steps)))
    assert table["rank"].isna().all()
    assert savings(table)["trainable_saved"] == 0
    assert rank_pattern(table) == {}
    assert reason in advice_text(table)


def test_the_present_rank_is_taken_and_the_peak_stands_beside_it(run: Run) -> None:
    table = advise(run)
    for name in run.matrices.index:
        ranks = rank_metrics.intrinsic_rank(run.singular_values(name).to_numpy(), run.threshold, run.buffer_rank)
        assert table.loc[name, "intrinsic_rank"] == ranks[-1]
        assert table.loc[name, "peak_rank"] == ranks.max()


def test_rank_pattern_merges_parts_by_their_maximum_and_names_modules(run: Run) -> None:
    table = advise(run)
    table["rank"] = pd.array(range(1, 11), dtype="Int64")
    pattern = rank_pattern(table)
    for block in (0, 1):
        parts = [table.loc[f"h.{block}.attn.c_attn.weight[{part}]", "rank"] for part in "qkv"]
        assert pattern[f"h.{block}.attn.c_attn"] == max(parts)
    assert not any("weight" in name or "[" in name for name in pattern)
    assert all(isinstance(rank, int) and rank >= 1 for rank in pattern.values())
    assert max(rank_pattern(table, max_rank=2).values()) <= 2


def test_rank_pattern_leaves_out_layers_that_lora_cannot_wrap(run: Run) -> None:
    table = advise(run)
    assert rank_pattern(table.assign(kind="LSTM", rank=3)) == {}
    assert rank_pattern(table.assign(rank=3))


def test_a_name_never_takes_the_rank_of_another(tmp_path: Path) -> None:
    """PEFT takes the first key that fits the end of a module's name."""
    names = ["0.weight", "block.0.weight", "a.b.weight"]
    pattern = rank_pattern(advise(open_run(make_run(tmp_path / "run", names=names))).assign(rank=[1, 2, 3]))

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
    assert read["rank"].astype("Int64").tolist() == table["rank"].tolist()
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
    widths = f"\n{width_text(advise_widths(run))}"
    assert capsys.readouterr().out == advice_text(advise(run, RankRule(0.5, run.buffer_rank))) + widths
    assert main(["advise", str(run.path), "--rank-from", "paper"]) == 0
    assert capsys.readouterr().out == advice_text(advise(run, rank_from="paper")) + widths


@pytest.mark.parametrize("arguments", [["nowhere"], ["{run}", "--threshold", "7"], ["{run}", "--csv", "{run}/no/file"]])
def test_the_command_answers_bad_input_in_one_line(
    run: Run, arguments: list[str], capsys: pytest.CaptureFixture[str], unchecked: None
) -> None:
    assert main(["advise", *(text.format(run=run.path) for text in arguments)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
