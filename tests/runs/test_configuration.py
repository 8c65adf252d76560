"""What runs were trained with, and which of them differ in their seed alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import make_run

from inrank_monitor.runs import Configuration, configuration_of, difference_table, group_runs, open_run
from inrank_monitor.runs.log import RUN_FILE, write_json


def groups_of(**values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Names of the runs of each group."""
    return [group.runs for group in group_runs({name: Configuration(one, True) for name, one in values.items()})]


def test_runs_that_differ_in_their_seed_are_a_group_and_the_difference_of_groups_is_told() -> None:
    grid = itertools.product((1e-3, 1e-2), (0, 1, 2))
    runs = {f"lr{lr}-{seed}": {"lr": lr, "seed": seed, "width": 64} for lr, seed in grid}
    groups = group_runs({name: Configuration(one, True) for name, one in runs.items()})
    assert [group.runs for group in groups] == [tuple(list(runs)[:3]), tuple(list(runs)[3:])]
    assert [group.values for group in groups] == [{"lr": 1e-3}, {"lr": 1e-2}]
    assert [group.label for group in groups] == ["lr 0.001", "lr 0.01"]
    table = difference_table(groups)
    assert table.to_dict() == {
        "lr 0.001": {"runs": "3", "lr": "0.001"},
        "lr 0.01": {"runs": "3", "lr": "0.01"},
    }


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("seed", 1, 2),
        ("data_seed", 1, 2),
        ("training.torchSeed", 1, 2),
        ("seed_everything", 1, 2),
        ("random_state", 1, 2),
        ("seeds", [1], [2]),
        ("run_name", "quiet-lake", "loud-hill"),
        ("wandb.name", "quiet-lake", "loud-hill"),
        ("output_dir", "out/a", "out/b"),
        ("logging_dir", "/logs/1", "/logs/2"),
        ("checkpoint_path", "/scratch/x", "/scratch/y"),
        ("started", "a", "b"),
        ("begun", "2026-11-29", "2026-11-30T01:02:03"),
        ("where_to_file", "runs/a/x.bin", "runs/b/x.bin"),
        ("warmup", None, None),
        ("pretrained", "base-seed-1", "base-seed-2"),
        ("rates_from", ["x-rate-0.1-seed-7"], ["x-rate-0.1-seed-8"]),
    ],
)
def test_seeds_names_places_and_dates_do_not_part_runs(name: str, one: Any, other: Any) -> None:
    assert groups_of(a={name: one, "lr": 1.0}, b={name: other, "lr": 1.0}) == [("a", "b")]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("optimizer_name", "adamw", "sgd"),
        ("model_name", "gpt2", "llama"),
        ("data_dir", "/data/a", "/data/b"),
        ("betas", [0.9, 0.99], [0.9, 0.95]),
        ("steps", 100, 200),
        ("seeding", "hash", "none"),
        ("nested.decay", 0.1, 0.0),
        ("fused", True, False),
        ("lr", 1e-3, None),
        ("pretrained", "base-1", "base-2"),
        ("rates_from", ["x-rate-0.1-seed-7"], ["x-rate-0.2-seed-7"]),
        ("valid", 1, True),
    ],
)
def test_all_else_parts_them(name: str, one: Any, other: Any) -> None:
    assert groups_of(one={name: one}, other={name: other}) == [("one",), ("other",)]


def test_runs_of_which_nothing_is_known_are_alone_but_for_the_seed_in_their_names() -> None:
    names = ("wide-seed-0", "wide-seed-1", "narrow-seed-0", "first", "second", "gpt2", "gpt3", "a_s0", "a_s1")
    bare = {name: Configuration({"model": "Net", "parameters": 9}, False) for name in names}
    found = [group.runs for group in group_runs(bare)]
    assert found == [names[:2], names[2:3], *((name,) for name in names[3:7]), names[7:]]


def test_labels_tell_groups_apart() -> None:
    long = {f"setting {place}": f"value {place}" for place in range(9)}
    for one, other in (({"lr": 1}, {"lr": 2}), (long, {})):
        runs = {f"x-{place}-{seed}": values for place, values in enumerate((one, other)) for seed in (0, 1)}
        labels = [group.label for group in group_runs({name: Configuration(v, True) for name, v in runs.items()})]
        assert len(set(labels)) == 2
        assert all(labels)
    assert labels == ["x-0-*", "x-1-*"]


def test_it_is_read_from_the_run_and_the_files_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    info = json.loads((run / RUN_FILE).read_text())
    assert not configuration_of(run, info).tells
    info["training"] = {
        "optimizers": [{"class": "AdamW", "values": {"lr": 0.1, "betas": [0.9, 0.99]}}],
        "config": {"data": {"path": "x"}, "seed": 3},
    }
    write_json(run / RUN_FILE, info)
    (run / "demo.json").write_text(json.dumps({"options": {"width": 8, "threshold": 0.5}, "tokenizer": "…"}))
    (run / "training.json").write_text(json.dumps({"settings": {"arm": "advised"}, "numbers": {"loss": 1.0}}))
    found = configuration_of(run, open_run(run).info)
    assert found.tells
    assert found.values == {
        "model": "Net",
        "parameters": 5 * 24 * 16,
        "optimizer": "AdamW",
        "optimizer.lr": 0.1,
        "optimizer.betas": [0.9, 0.99],
        "data.path": "x",
        "seed": 3,
        "width": 8,
        "arm": "advised",
    }


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"options": 1}', "\x00"])
def test_files_that_hold_no_configuration_are_passed_over(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run")
    outside = tmp_path / "secret.json"
    outside.write_text('{"password": 1}')
    (run / "config.json").symlink_to(outside)
    (run / "demo.json").write_text(text)
    info = open_run(run).info | {"training": text, "x": 1}
    assert not configuration_of(run, info).tells


def test_adapters_whose_ranks_another_run_chose_do_not_part_seeds_but_other_models_do(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.json").write_text('{"ranks": "advised"}')
    info = open_run(run).info

    def adapted(rank: int, more: int = 0) -> Configuration:
        matrices = [entry | {"adapter_rank": rank} for entry in info["matrices"]]
        parameters = info["model"]["parameters"] + more + rank * ((3 * 24 + 16) + 2 * (24 + 16))  # q, k, v are one
        return configuration_of(run, info | {"matrices": matrices, "model": info["model"] | {"parameters": parameters}})

    assert [group.runs for group in group_runs({"a": adapted(2), "b": adapted(3)})] == [("a", "b")]
    assert len(group_runs({"a": adapted(2), "b": adapted(2, more=7)})) == 2
    (run / "config.json").unlink()
    assert len(group_runs({"s-seed-0": adapted(2), "s-seed-1": adapted(3)})) == 2  # nothing else tells the rank
