"""A layer that holds its update in factors, W = W0 + U V, known by a Protocol alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inrank_monitor import LowRankUpdate, attach, open_run

pytestmark = pytest.mark.numeric


class Growing(nn.Module):
    """Factors with room for `capacity` columns, `rank` of them in use; unused ones are zero."""

    def __init__(self, rows: int = 12, cols: int = 10, rank: int = 2, capacity: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, cols), requires_grad=False)
        self.left = nn.Parameter(torch.zeros(rows, capacity))
        self.right = nn.Parameter(torch.randn(capacity, cols))
        self.rank = rank

    def update_factors(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right

    def grow(self, rank: int, capacity: int) -> None:
        rows, cols = self.weight.shape
        left, right = torch.zeros(rows, capacity), torch.randn(capacity, cols)
        left[:, : self.left.shape[1]], right[: self.right.shape[0]] = self.left.detach(), self.right.detach()
        self.left, self.right, self.rank = nn.Parameter(left), nn.Parameter(right), rank

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ (self.weight + self.left @ self.right).T


class Preallocated(Growing):
    """Shows the part of its factors that is in use, so that what it returns are no Parameters."""

    def update_factors(self) -> tuple[Tensor, Tensor]:
        return self.left[:, : self.rank + 1], self.right[: self.rank + 1]


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(10, 10)
        self.low = layer

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.low(self.dense(inputs))
        return out


def move(layer: Growing, columns: int) -> np.ndarray:
    """Give the first columns of U values; the singular values of U V, by NumPy in float64."""
    with torch.no_grad():
        layer.left[:, :columns] = torch.randn(layer.left.shape[0], columns)
    product = layer.left.detach().double().numpy() @ layer.right.detach().double().numpy()
    return np.linalg.svd(product, compute_uv=False)


def test_the_stub_meets_the_protocol() -> None:
    assert isinstance(Growing(), LowRankUpdate)
    assert not isinstance(nn.Linear(2, 2), LowRankUpdate)


@pytest.mark.parametrize("kind", [Growing, Preallocated])
def test_factors_are_measured_and_rank_and_capacity_logged_as_they_grow(tmp_path: Path, kind: type[Growing]) -> None:
    layer = kind(capacity=3)
    model = Net(layer)
    expected = []
    with attach(model, None, tmp_path / "run", every=1, buffer_rank=2, tensorboard=False) as tracker:
        expected.append(move(layer, 2))
        tracker.step()
        layer.grow(rank=5, capacity=6)
        expected.append(move(layer, 5))
        tracker.step()
        layer.grow(rank=9, capacity=10)
        expected.append(move(layer, 9))
        tracker.step()
        assert len(tracker.finished_steps) <= 3
    run = open_run(tmp_path / "run")
    assert run.events.empty
    assert list(run.matrices.index) == ["dense.weight", "low"]
    assert run.matrices.loc["low", ["rows", "cols"]].tolist() == [12, 10]
    rows = run.measurements[run.measurements["matrix"] == "low"]
    assert rows["layer_rank"].tolist() == [2, 5, 9]
    assert rows["capacity"].tolist() == [3, 6, 10]
    assert rows["numerical_rank"].tolist() == [2, 5, 9]
    spectra = run.singular_values("low")
    for step, values in enumerate(expected, 1):
        found = spectra.loc[step].dropna().to_numpy()
        # by the Gram matrices: errors up to 1e-8 ‖U‖‖V‖ where values vanish
        np.testing.assert_allclose(found, values[: len(found)], atol=2e-6 * values[0])
        assert (values[len(found) :] < 1e-9).all()
    np.testing.assert_allclose(rows["frobenius_norm"], [np.linalg.norm(values) for values in expected], rtol=1e-6)
    dense = run.measurements[run.measurements["matrix"] == "dense.weight"]
    assert dense["layer_rank"].isna().all()
    assert dense["capacity"].isna().all()


@pytest.mark.parametrize("kind", [Growing, Preallocated])
def test_each_parameter_of_a_layer_in_factors_is_covered_once(tmp_path: Path, kind: type[Growing]) -> None:
    with attach(Net(kind()), None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        rows = {row.parameter: row for row in tracker.coverage}
    assert [name for name, row in rows.items() if row.watched] == ["dense.weight", "low"]
    assert "in factors" in rows["low"].note
    assert rows["low.weight"].note.startswith("frozen")


def test_the_explained_ratio_counts_the_zeros_beyond_the_factors(tmp_path: Path) -> None:
    # one value: alone its variance is 0 and g would be 1; among min(rows, cols) = 10 values it is not flat
    layer = Growing(rank=1, capacity=1)
    with attach(Net(layer), None, tmp_path / "run", every=1, buffer_rank=3, tensorboard=False) as tracker:
        move(layer, 1)
        tracker.step()
    run = open_run(tmp_path / "run")
    row = run.measurements.set_index("matrix").loc["low"]
    assert row["intrinsic_rank"] == 1
    assert row["effective_rank"] == pytest.approx(1)


def test_a_layer_without_any_column_has_a_zero_update(tmp_path: Path) -> None:
    layer = Growing(rank=0, capacity=0)
    with attach(Net(layer), None, tmp_path / "run", every=1, buffer_rank=2, tensorboard=False) as tracker:
        tracker.step()
        layer.grow(rank=2, capacity=4)
        move(layer, 2)
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.events.empty, run.events["message"].iloc[0]
    rows = run.measurements[run.measurements["matrix"] == "low"]
    assert rows["intrinsic_rank"].tolist()[0] == 0
    assert rows["spectral_norm"].tolist()[0] == 0.0
    assert rows["layer_rank"].tolist() == [0, 2]
    assert rows["capacity"].tolist() == [0, 4]


def test_a_resumed_layer_goes_on_with_its_larger_capacity(tmp_path: Path) -> None:
    layer = Growing()
    with attach(Net(layer), None, tmp_path / "run", every=1, buffer_rank=2, tensorboard=False) as tracker:
        move(layer, 2)
        tracker.step()
    wider = Growing(rank=6, capacity=8)
    with attach(Net(wider), None, tmp_path / "run", every=1, buffer_rank=2, tensorboard=False, resume=1) as tracker:
        move(wider, 6)
        tracker.step()
    rows = open_run(tmp_path / "run").measurements
    assert rows.loc[rows["matrix"] == "low", "capacity"].tolist() == [3, 8]


def test_nan_in_a_factor_is_a_non_finite_update(tmp_path: Path) -> None:
    layer = Growing()
    with attach(Net(layer), None, tmp_path / "run", every=1, buffer_rank=2, tensorboard=False) as tracker:
        move(layer, 2)
        with torch.no_grad():
            layer.right[0, 0] = float("nan")
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.events[["kind", "matrix"]].to_numpy().tolist() == [["non_finite", "low"]]
    row = run.measurements.set_index("matrix").loc["low"]
    assert row["layer_rank"] == 2
    assert run.singular_values("low").isna().all(axis=None)
