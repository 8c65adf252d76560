"""What trainings ended with, averaged over seeds and printed as the paper's Table 1."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from inrank import cli
from inrank.gpt2.results import Result, compare
from inrank.gpt2.results_table import duration, size, table_csv, table_text, thousands


def made(method: str, seed: int, perplexity: float, **settings: Any) -> Result:
    common = {"steps": 10, "lr": 1e-3, "threshold": 0.9, "checkpoint_every": seed}
    return Result(
        method=method, seed=seed, perplexity=perplexity, rank=10.5, null_rank=None if method == "baseline" else 32.0,
        runtime=125.0, peak_memory=2_500_000_000, model_size=182_450_688, parameters=91_225_344, ranks={},
        device="cpu", settings=common | settings | {"method": method, "seed": seed}, factorization=None,
        finished=100.0 + seed,
    )  # fmt: skip


def test_seeds_are_averaged_and_their_spread_shown() -> None:
    results = [made("inrank-efficient", seed, ppl) for seed, ppl in enumerate((20.0, 21.0, 25.0))]
    comparison = compare([*results, *(made("baseline", seed, 19.0 + seed) for seed in range(3))])
    assert [row.first.method for row in comparison.rows] == ["baseline", "inrank-efficient"]
    row = comparison.rows[1]
    assert row.mean("perplexity") == pytest.approx(22.0)
    assert row.spread == pytest.approx(math.sqrt(7.0))
    lines = table_text(comparison).splitlines()
    assert " ".join(lines[0].split()) == "method PPL rank null rank runtime memory model size params seeds"
    assert " ".join(lines[2].split()) == "inrank-efficient 22.0 ± 2.6 10.5 32 2.1 min 2.5 GB 182 MB 91.2M 3"
    assert lines[1].split()[5] == "–"
    assert "differences below the spread over seeds are noise" in lines[-1]
    csv = table_csv(comparison).splitlines()
    assert csv[0].startswith(
        "method,perplexity,perplexity_std,rank,null_rank,runtime,peak_memory,model_size,parameters"
    )
    assert csv[2] == f"inrank-efficient,22.0,{math.sqrt(7.0)!r},10.5,32.0,125.0,2500000000.0,182450688.0,91225344.0,3"


def test_unlike_trainings_are_not_averaged_and_their_differences_are_named() -> None:
    alike = [made("baseline", 0, 19.0), made("baseline", 1, 20.0, threshold=0.8)]  # which a dense model has no use for
    comparison = compare([*alike, made("inrank", 0, 30.0), made("inrank", 1, 20.0, threshold=0.8, lr=2e-3)])
    assert [len(row.results) for row in comparison.rows] == [2, 1, 1]
    assert comparison.differing == ("lr", "threshold")
    text = table_text(comparison)
    assert "Not alike in lr, threshold: compare rows that are equal there." in text
    assert [line.split()[-2:] for line in text.splitlines()[1:4]] == [
        ["0.001", "–"],
        ["0.001", "0.9"],
        ["0.002", "0.8"],
    ]
    assert "Rows have different numbers of seeds." in text


def test_same_seed_twice_is_no_spread() -> None:
    comparison = compare([made("inrank", 0, 30.0), replace(made("inrank", 0, 40.0), finished=900.0)])
    assert comparison.rows[0].spread is None
    assert comparison.rows[0].mean("perplexity") == 40.0
    assert "inrank, seed 0 is there more than once: the latest counts." in comparison.notes


def test_numbers_read_as_in_the_paper() -> None:
    assert [duration(seconds) for seconds in (3.21, 42.4, 125, 68760)] == ["3.2 s", "42 s", "2.1 min", "19.1 h"]
    assert [size(count) for count in (0, 999, 4_100_000, 248_879_616, 895_135_744, 3_096_120_320)] == [
        "0.0 B", "999 B", "4.1 MB", "249 MB", "895 MB", "3.1 GB",
    ]  # fmt: skip
    assert [thousands(count) for count in (23_392, 999_999, 1_070_000, 91_225_344, 445_940_480)] == [
        "23.4k", "1.00M", "1.07M", "91.2M", "446M",
    ]  # fmt: skip


def test_params_prints_table_1s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "--size", "small", "--rank", "254"]) == 0
    printed = capsys.readouterr().out
    assert "91,225,344 parameters (73.3% of the dense 124,439,808)" in printed
    assert "182 MB in 16 bits" in printed
    assert cli.main(["params", "--size", "small", "--rank", "769"]) == 2
    assert "--rank must be in 1..768 for size small, got 769" in capsys.readouterr().err
