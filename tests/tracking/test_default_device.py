"""torch.set_default_device and set_default_dtype change nothing: what they would make differently names both itself."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.training import mlp
from safetensors.torch import save_file
from torch import Tensor, nn

import inrank
import inrank_monitor
from inrank_monitor import attach, open_run, scan
from inrank_monitor.spectra import leading, spectrum

pytestmark = pytest.mark.numeric
_MAKERS = {
    *("tensor", "as_tensor", "asarray", "scalar_tensor", "zeros", "ones", "empty", "full", "eye", "empty_strided"),
    *("rand", "randn", "randint", "randperm", "arange", "range", "linspace", "logspace", "tril_indices"),
    "triu_indices",
    *("hann_window", "hamming_window", "bartlett_window", "blackman_window", "kaiser_window", "sparse_coo_tensor"),
}


@contextmanager
def set_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device("cpu")


@contextmanager
def set_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


Defaults = Callable[[], AbstractContextManager[object]]
OTHERS = pytest.mark.parametrize(
    "defaults",
    [lambda: set_device("meta"), lambda: torch.device("meta"), lambda: set_dtype(torch.float64)],
    ids=["set_default_device", "with torch.device", "set_default_dtype"],
)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def batch(number: int = 0) -> Tensor:
    return torch.randn(16, 40, generator=torch.Generator("cpu").manual_seed(number))


def logged(directory: Path) -> tuple[pd.DataFrame, list[np.ndarray]]:
    run = open_run(directory)
    assert not run.problems
    assert set(run.events["kind"]) <= {"scan", "rank_grown"}, run.events["message"].tolist()
    spectra = [run.singular_values(name).to_numpy() for name in run.matrices.index]
    return run.measurements.drop(columns="time"), spectra


def assert_equal_runs(one: Path, other: Path) -> None:
    (table, spectra), (other_table, other_spectra) = logged(one), logged(other)
    assert len(table)
    pd.testing.assert_frame_equal(table, other_table)
    for here, there in zip(spectra, other_spectra, strict=True):
        np.testing.assert_array_equal(here, there)


def watched(directory: Path, defaults: Defaults, **options: object) -> Path:
    model = mlp(40, 48, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = [batch(number) for number in range(3)]
    with defaults():
        tracker = attach(model, optimizer, directory, every=1, **options)  # type: ignore[arg-type]
        for inputs in batches:
            step(model, optimizer, inputs)
            tracker.log(loss=1.0)
        tracker.close()
        assert "0.weight" in tracker.summary()
    return directory


@OTHERS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"leading": 4},
        {"leading": 4, "density": True, "tensorboard": False},
        {"initial_weights": "memory", "tensorboard": False},
    ],
    ids=["all values", "leading", "density", "memory"],
)
def test_a_tracked_training_logs_the_same(tmp_path: Path, defaults: Defaults, options: dict[str, object]) -> None:
    plain = watched(tmp_path / "plain", nullcontext, **options)
    assert_equal_runs(plain, watched(tmp_path / "other", defaults, **options))


@OTHERS
def test_a_scan_logs_the_same(tmp_path: Path, defaults: Defaults) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"step_{number}.safetensors")
        save_file({"a.weight": torch.randn(30, 20), "b.weight": torch.randn(20, 20)}, files[-1])
    plain = scan(files, tmp_path / "plain", buffer_rank=4)
    with defaults():
        other = scan(files, tmp_path / "other", buffer_rank=4)
    assert_equal_runs(plain.path, other.path)


def grown(defaults: Defaults, directory: Path) -> dict[str, Tensor]:
    """A model that is converted, started from its gradient, grown, watched and factorized."""
    model, batches = mlp(40, 48, 24), [batch(number) for number in range(4)]
    with defaults():
        inrank.convert(model, targets=["*"], buffer_rank=4)
        inrank.initialize_from_gradient(model, lambda: model(batches[0]).square().mean().backward())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        tracker = attach(model, optimizer, directory, every=1, tensorboard=False)
        controller = inrank.RankController(
            model, optimizer, every=1, rule=lambda seen: seen.rank + 1, tracker=tracker
        ).attach()
        for inputs in batches:
            step(model, optimizer, inputs)
        controller.detach()
        tracker.close()
        state = model.state_dict()
        inrank.factorize(model)
        inrank.merge(model)
    return state | {f"merged {name}": value for name, value in model.state_dict().items()}


@OTHERS
def test_ranks_grow_the_same(tmp_path: Path, defaults: Defaults) -> None:
    plain, other = grown(nullcontext, tmp_path / "plain"), grown(defaults, tmp_path / "other")
    assert list(plain) == list(other)
    for name, value in plain.items():
        assert other[name].device.type == "cpu", name
        assert other[name].dtype == value.dtype, name
        assert torch.equal(other[name], value), name
    assert_equal_runs(tmp_path / "plain", tmp_path / "other")


@OTHERS
def test_spectra_are_the_same(defaults: Defaults) -> None:
    matrix = torch.randn(60, 90)
    plain = spectrum.singular_values(matrix), leading.leading_singular_values(matrix, 10).values
    with defaults():
        other = spectrum.singular_values(matrix), leading.leading_singular_values(matrix, 10).values
    for here, there in zip(plain, other, strict=True):
        assert torch.equal(here, there)


def test_no_tensor_is_made_without_a_device() -> None:
    without = []
    for package in (inrank, inrank_monitor):
        for file in sorted(Path(package.__file__ or "").parent.rglob("*.py")):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match call:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if name in _MAKERS:
                        if "device" not in {keyword.arg for keyword in call.keywords}:
                            without.append(f"{file}:{call.lineno}: {ast.unparse(call)}")
    assert not without, "\n".join(without)
