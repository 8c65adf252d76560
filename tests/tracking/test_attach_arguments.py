"""A wrong argument raises at once, names itself, and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import mlp, record, sgd
from torch import nn
from torch.optim import SGD

from inrank_monitor import attach, open_run

WRONG: list[tuple[dict[str, Any], type[Exception] | tuple[type[Exception], ...], str]] = [
    *(({"every": value}, ValueError, "every") for value in (0, -3, 1.5, True, "5")),
    ({"every": 5, "schedule": lambda step: True}, ValueError, "every or schedule"),
    ({"schedule": 5}, TypeError, "schedule"),
    *(
        ({"max_overhead": value}, (ValueError, TypeError), "max_overhead")
        for value in (0, -1, 1.5, math.nan, "x", None)
    ),
    ({"max_overhead": 7, "every": 5}, ValueError, "max_overhead"),
    ({"include": "transformer.*"}, ValueError, r"include pattern 'transformer\.\*' matches no matrix.*0\.weight"),
    ({"include": ["0.weight", "9.weight"]}, ValueError, r"include pattern '9\.weight'"),
    ({"include": "0.bias"}, ValueError, r"include.*0\.bias: a vector"),
    ({"exclude": "*attn*"}, ValueError, r"exclude pattern '\*attn\*' matches no matrix"),
    ({"include": "0.*", "exclude": "*.weight"}, ValueError, "no matrix to watch"),
    ({"include": 3}, TypeError, "include"),
    *(({"threshold": value}, (ValueError, TypeError), "threshold") for value in (0, -0.5, 1.1, math.nan, "x", None)),
    *(({"buffer_rank": value}, (ValueError, TypeError), "buffer_rank") for value in (0, -1, 2.5, "x")),
    ({"definition": "other"}, ValueError, "definition"),
    *(({"leading": value}, ValueError, "leading") for value in (0, 1, -4, 2.5, True, "all")),
    *(({"initial_weights": value}, (ValueError, TypeError), "initial_weights") for value in ("tape", None)),
    *(({"resume": value}, (ValueError, TypeError), "resume") for value in (-1, 2.5, "yes", None)),
]


def untouched(model: nn.Module, optimizer: Any) -> bool:
    hooks = [value for part in (*model.modules(), optimizer) for key, value in vars(part).items() if "hooks" in key]
    return not any(hooks)


@pytest.mark.parametrize(("options", "error", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_option_raises_names_itself_and_leaves_nothing(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    with pytest.raises(error, match=match):
        attach(model, optimizer, tmp_path / "run", **options)
    assert untouched(model, optimizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"resume": -1}, {"resume": "yes"}, {"initial_weights": "tape"}], ids=str)
def test_a_wrong_option_leaves_the_run_that_is_there_as_it_was(tmp_path: Path, options: dict[str, Any]) -> None:
    record(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        attach(model, optimizer, tmp_path / "run", **({"resume": True} | options))
    assert untouched(model, optimizer)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("model", [None, "gpt2", nn.Linear, [nn.Linear(2, 2)]], ids=str)
def test_a_model_that_is_no_module_is_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(TypeError, match="model must be"):
        attach(model, None, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["sgd", 3, SGD, {"a": 1}, [None], ["sgd"]], ids=str)
def test_an_optimizer_that_is_none_is_refused(tmp_path: Path, optimizer: Any) -> None:
    with pytest.raises(TypeError, match="optimizer must be"):
        attach(mlp(3, 3), optimizer, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_of_another_model_is_refused(tmp_path: Path, several: bool) -> None:
    other = sgd(mlp(3, 3))
    with pytest.raises(ValueError, match="optimizer holds no parameter of model"):
        attach(mlp(3, 3), [other, sgd(mlp(2, 2))] if several else other, tmp_path / "run")
    assert untouched(nn.Identity(), other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directory", [None, 3, b"run"], ids=str)
def test_a_directory_that_is_no_path_is_refused(tmp_path: Path, directory: Any) -> None:
    model = mlp(3, 3)
    optimizer = sgd(model)
    with pytest.raises(TypeError, match="directory"):
        attach(model, optimizer, directory)
    assert untouched(model, optimizer)


class NoParameters(nn.Module):
    pass


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NoParameters(), "it has no parameters"),
        (lambda: nn.LayerNorm(4), "weight: a vector"),
        (lambda: nn.Linear(4, 4).requires_grad_(False), "weight: frozen"),
        (lambda: nn.LazyLinear(4), "weight: lazy"),
        (lambda: nn.Linear(0, 4), "weight: it has no entries"),
        (lambda: nn.Embedding(4, 4), "embeddings=True"),
        (lambda: nn.Linear(4, 4, device="meta"), "meta device"),
    ],
    ids=["none", "norm", "frozen", "lazy", "zero-size", "embedding", "meta"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:Initializing zero-element:UserWarning")
def test_a_model_without_any_matrix_is_refused_with_the_reason(
    tmp_path: Path, make: Callable[[], nn.Module], match: str
) -> None:
    with pytest.raises(ValueError, match=f"no matrix to watch.*{match}"):
        attach(make(), None, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_a_dtype_that_cannot_be_stored_names_the_parameter(tmp_path: Path) -> None:
    model = nn.Linear(4, 4).to(torch.complex64)
    with pytest.raises(ValueError, match="weight"):
        attach(model, None, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_a_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    record(tmp_path / "run")
    before = open_run(tmp_path / "run").measurements
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    with pytest.raises(FileExistsError, match=r"holds a run already.*resume=True.*another directory"):
        attach(model, optimizer, tmp_path / "run")
    assert untouched(model, optimizer)
    assert open_run(tmp_path / "run").measurements.equals(before)


def test_options_are_kept_with_the_run(tmp_path: Path) -> None:
    record(tmp_path / "run", threshold=0.8, buffer_rank=3, definition="reference", leading=4)
    run = open_run(tmp_path / "run")
    assert (run.threshold, run.buffer_rank, run.definition) == (0.8, 3, "reference")
    assert {"every": 1, "leading": 4}.items() <= run.info["options"].items()
    assert run.info["model"] == {"class": "Sequential", "parameters": 6 * 8 + 8 + 8 * 5 + 5, "device": "cpu"}
    assert {"python", "torch", "numpy", "pyarrow"} <= set(run.info["segments"][0]["versions"])


def test_the_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    record(tmp_path / "a" / "b" / "c", steps=1)
    assert open_run(tmp_path / "a" / "b" / "c").status == "finished"
