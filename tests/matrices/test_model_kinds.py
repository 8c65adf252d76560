"""Odd ways to hold weights: each is measured right, against NumPy in float64, or skipped, and `coverage` says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracles import singular_values
from helpers.training import mlp, sgd, train
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inrank_monitor import attach, open_run
from inrank_monitor.matrices.finding import find_matrices

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
STEPS = 6


def array(value: Tensor) -> np.ndarray:
    return value.detach().to(torch.float64, copy=True).numpy()


def inputs(step: int, width: int = 6) -> Tensor:
    return torch.randn(16, width, generator=torch.Generator().manual_seed(step))


def notes(model: nn.Module) -> dict[str, str]:
    return {row.parameter: row.note for row in find_matrices(model)[1]}


def logged(directory: Path, name: str) -> np.ndarray:
    """Spectra of one matrix, a row a step; nothing may have gone wrong."""
    run = open_run(directory)
    assert run.events.empty, run.events["message"].iloc[0]
    return run.singular_values(name).to_numpy()


def assert_spectra(found: np.ndarray, updates: list[np.ndarray]) -> None:
    expected = np.array([singular_values(update) for update in updates])
    largest = expected[:, :1]
    assert (largest > 0).all()
    # weights are float32, so is the log: both round by half a unit in the last place
    np.testing.assert_allclose(found / largest, expected / largest, rtol=0, atol=2e-7)


def check_training(
    model: nn.Module,
    weights: dict[str, Callable[[], Tensor]],
    directory: Path,
    optimizer: Optimizer | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Train, and compare the spectra with those of W_t − W0, where `weights` says what each layer multiplies by."""
    optimizer = optimizer or sgd(model)
    first = {name: array(value()) for name, value in weights.items()}
    updates: dict[str, list[np.ndarray]] = {name: [] for name in weights}
    with attach(model, optimizer, directory, every=1, tensorboard=False) as tracker:
        for step in range(STEPS):
            optimizer.zero_grad()
            ((forward or model)(inputs(step)) - 1).square().mean().backward()
            optimizer.step()
            for name, value in weights.items():
                updates[name].append(array(value()) - first[name])
    assert {row.parameter for row in tracker.coverage if row.watched} == set(weights)
    for name, expected in updates.items():
        assert_spectra(logged(directory, name), expected)


# --- torch.compile


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, as it traces
@pytest.mark.parametrize("how", ["whole", "in place", "submodules in place", "one submodule wrapped"])
def test_a_compiled_model_is_measured_as_its_original(tmp_path: Path, how: str) -> None:
    model: Any = mlp(6, 8, 5)
    weights = {f"{place}.weight": (lambda place=place: model.get_submodule(str(place)).weight) for place in (0, 2)}
    watched: Any = model
    if how == "whole":
        watched = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "submodules in place":
        model[0].compile(backend="eager")
        model[2].compile(backend="eager")
    else:
        model[2] = torch.compile(model[2], backend="eager")
    check_training(watched, weights, tmp_path / "run")


# --- weights that are computed from others


PARAMETRIZED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "orthogonal, Cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
    "orthogonal, exponential": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="matrix_exp"),
    "orthogonal, Householder": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    "weight norm": parametrizations.weight_norm,
    "weight norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
}
HOOKED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": nn.utils.weight_norm,
    "weight norm of the inputs": lambda layer: nn.utils.weight_norm(layer, dim=1),
    "weight norm of the whole": lambda layer: nn.utils.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.ln_structured(
        prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.25, 2, 0
    ),
}
# torch calls its old weight_norm deprecated; models in use have it all the same
OLD_WEIGHT_NORM = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_a_parametrized_weight_is_measured_by_its_effective_value(tmp_path: Path, kind: str) -> None:
    layer = PARAMETRIZED[kind](nn.Linear(6, 4))
    check_training(layer, {"weight": lambda: layer.weight}, tmp_path / "run")


@OLD_WEIGHT_NORM
@pytest.mark.parametrize("kind", HOOKED)
def test_a_weight_that_a_hook_computes_is_measured_by_its_effective_value(tmp_path: Path, kind: str) -> None:
    layer = HOOKED[kind](nn.Linear(6, 4))

    def effective() -> Tensor:
        layer(inputs(0))  # only now is the attribute up to date
        return layer.weight  # type: ignore[return-value]

    check_training(layer, {"weight": effective}, tmp_path / "run")
    assert notes(layer) == {"weight": "4×6", "bias": "a vector"}


@pytest.mark.parametrize("normed", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_is_measured_as_the_layer_would_compute_in_eval_mode(
    tmp_path: Path, normed: Callable[[nn.Module], nn.Module]
) -> None:
    layer: Any = normed(nn.Linear(6, 4))

    def effective() -> Tensor:
        if normed is nn.utils.spectral_norm:  # W / (uᵀ W v), by hand, since a module that it changed cannot be copied
            return layer.weight_orig / (layer.weight_u @ layer.weight_orig @ layer.weight_v)  # type: ignore[no-any-return]
        return copy.deepcopy(layer).eval().weight  # type: ignore[no-any-return]

    check_training(layer, {"weight": effective}, tmp_path / "run")


@OLD_WEIGHT_NORM
def test_reading_a_hooked_weight_changes_nothing(tmp_path: Path) -> None:
    def made() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(5, 4)), nn.Dropout(0.3)
        )

    watched, plain = made(), made()
    ends = []
    for model in (watched, plain):
        torch.manual_seed(4)
        optimizer = AdamW(model.parameters(), lr=0.01)
        tracker = attach(model, optimizer, tmp_path / "run", every=1) if model is watched else None
        train(model, optimizer, STEPS)
        if tracker:
            tracker.close()
            assert tracker.finished_steps == list(range(1, STEPS + 1))
        ends.append({**model.state_dict(), "random state": torch.get_rng_state()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_hook_taken_away_leaves_a_weight_that_is_measured_on(tmp_path: Path) -> None:
    layer: Any = prune.random_unstructured(nn.Linear(6, 4), "weight", 0.5)
    first = array(layer.weight)
    with attach(layer, None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        prune.remove(layer, "weight")
        layer.weight.data[0, 0] += 3.0
        tracker.step()
    assert_spectra(logged(tmp_path / "run", "weight"), [array(layer.weight) - first])


class Unready(nn.Module):
    """A parametrization that waits for something."""

    def forward(self, value: Tensor) -> Tensor:
        raise RuntimeError("calibrate first")


def test_a_weight_that_cannot_be_read_is_skipped_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Unready(), unsafe=True)
    assert notes(model)["0.weight"] == "it cannot be read: RuntimeError: calibrate first"
    assert notes(model)["1.weight"] == "4×5"


# --- averaged copies


def test_an_averaged_copy_beside_the_model_is_not_measured(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = sgd(model)

    def forward(batch: Tensor) -> Tensor:
        average.update_parameters(model)
        return model(batch)  # type: ignore[no-any-return]

    weights = {f"{place}.weight": (lambda place=place: model[place].weight) for place in (0, 2)}
    check_training(model, weights, tmp_path / "run", optimizer, forward)
    assert not torch.equal(average.module[0].weight, model[0].weight)
    with pytest.raises(ValueError, match="optimizer holds no parameter of model: was it made for another one"):
        attach(average, optimizer, tmp_path / "average")


def test_an_averaged_copy_inside_the_model_is_frozen(tmp_path: Path) -> None:
    class Student(nn.Module):
        """Trains against a slow copy of itself, as self-supervised models do."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 5)
            self.teacher = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.5)).requires_grad_(False)

        def forward(self, batch: Tensor) -> Tensor:
            self.teacher.update_parameters(self.net)
            return self.net(batch) - self.teacher(batch) + 2  # type: ignore[no-any-return]

    model = Student()
    check_training(model, {"net.weight": lambda: model.net.weight}, tmp_path / "run")
    assert notes(model)["teacher.module.weight"] == "frozen (requires_grad=False)"


# --- models on several devices, and weights that are elsewhere


class TestOffloaded:
    """Accelerate takes weights off the device between passes, to memory or to disk."""

    pytestmark = pytest.mark.slow

    @pytest.mark.parametrize("everything", [True, False])
    def test_an_offloaded_weight_is_skipped_with_its_reason(self, tmp_path: Path, everything: bool) -> None:
        from accelerate import cpu_offload, disk_offload

        model = mlp(6, 8, 5)
        part: Any = model if everything else model[2]
        if everything:
            cpu_offload(part, execution_device=torch.device("cpu"))
            with pytest.raises(ValueError, match=r"no matrix to watch in this model \(0\.weight: offloaded"):
                attach(model, None, tmp_path / "run")
            return
        disk_offload(part, str(tmp_path / "weights"), execution_device=torch.device("cpu"))
        weights = {"0.weight": lambda: model[0].weight}
        check_training(model, weights, tmp_path / "run", SGD(model[0].parameters(), lr=0.1))  # type: ignore[arg-type]
        assert notes(model)["2.weight"].startswith("offloaded (accelerate): it has no values between two passes")

    def test_a_dispatched_model_is_measured_where_its_weights_are(self, tmp_path: Path) -> None:
        from accelerate import dispatch_model

        model = dispatch_model(
            mlp(6, 8, 5),
            {"0": "cpu", "1": "cpu", "2": "disk"},
            main_device="cpu",
            offload_dir=str(tmp_path / "weights"),
            force_hooks=True,
        )
        weights = {"0.weight": lambda: model[0].weight}
        check_training(model, weights, tmp_path / "run", SGD(model[0].parameters(), lr=0.1))  # type: ignore[arg-type]
        assert notes(model)["2.weight"].startswith("offloaded (accelerate)")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_model_on_two_devices_is_measured(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    model[2].cuda()
    weights = {f"{place}.weight": (lambda place=place: model[place].weight.cpu()) for place in (0, 2)}
    check_training(model, weights, tmp_path / "run", forward=lambda batch: model[2](model[1](model[0](batch)).cuda()))


# --- storage


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("keep", ["disk", "memory"])
def test_an_update_of_few_bits_has_its_right_rank(tmp_path: Path, dtype: torch.dtype, keep: Any) -> None:
    """W_t and W0 are numbers that the dtype holds, their difference of rank 4 is not one."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (24, 4), generator=generator) * 2.0 - 1
    picks = torch.nn.functional.one_hot(torch.arange(20) % 4, 4).T.float()
    update = signs @ picks * torch.tensor([1.0, 1.25, 1.5, 1.75])[torch.arange(20) % 4]
    model = nn.Linear(20, 24, bias=False)
    model.weight = nn.Parameter((update / 64).to(dtype))  # exact: four significant bits or fewer, signs and zeros
    if dtype == torch.float8_e5m2:
        update = signs @ picks
        model.weight = nn.Parameter((update / 64).to(dtype))
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False, initial_weights=keep) as tracker:
        model.weight.data = update.to(dtype)
        tracker.step()
    assert open_run(tmp_path / "run").measurements["numerical_rank"].tolist() == [4]
    assert_spectra(logged(tmp_path / "run", "weight"), [array(update) * 63 / 64])


def test_a_run_of_eight_bit_weights_can_be_taken_up(tmp_path: Path) -> None:
    for steps in ([1], [2]):
        torch.manual_seed(0)
        model = nn.Linear(8, 8, bias=False)
        model.weight = nn.Parameter(torch.randn(8, 8).to(torch.float8_e4m3fn))
        with attach(model, None, tmp_path / "run", every=1, tensorboard=False, resume=True) as tracker:
            assert tracker.step_count == 0  # the weights are W0
            for _ in steps:
                model.weight.data = (model.weight.float() + 1).to(torch.float8_e4m3fn)
                tracker.step()
    assert (open_run(tmp_path / "run").measurements["spectral_norm"] > 1).all()


class EightBit(Tensor):
    """Weights as integers and a scale, used as if they were floats: what quantisation libraries make of a Parameter."""

    @staticmethod
    def __new__(cls, integers: Tensor, scale: float) -> EightBit:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[no-any-return,attr-defined]
            cls, integers.shape, dtype=torch.float32, device=integers.device, requires_grad=False
        )

    def __init__(self, integers: Tensor, scale: float) -> None:
        self.integers, self.scale = integers, scale

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return "EightBit"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].integers, args[0].scale)
        plain = [arg.integers * arg.scale if isinstance(arg, cls) else arg for arg in args]
        return func(*plain, **(kwargs or {}))


class Labelled(Tensor):
    """A subclass that stores what any tensor stores, but whose conversions and differences are not what they seem."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found * 2 if func in (Tensor.to, Tensor.double, Tensor.float, Tensor.sub, Tensor.__sub__) else found


class Mixed(nn.Module):
    """One ordinary layer among odd parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.eight = nn.Parameter(EightBit(torch.ones(4, 4, dtype=torch.int8), 0.5))
        self.quantised = nn.Parameter(
            torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8), requires_grad=False
        )
        self.complex = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
        self.sparse = nn.Parameter(torch.eye(4).to_sparse())
        self.rows = nn.Parameter(torch.eye(4).to_sparse_csr())
        self.meta = nn.Parameter(torch.ones(4, 4, device="meta"))
        self.lazy = nn.LazyLinear(3)

    def forward(self, batch: Tensor) -> Tensor:
        return self.linear(batch)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:.*quantize_per_tensor.*")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_odd_parameters_are_skipped_with_a_reason_and_the_rest_is_measured(tmp_path: Path) -> None:
    model = Mixed()
    check_training(
        model, {"linear.weight": lambda: model.linear.weight}, tmp_path / "run", SGD(model.linear.parameters(), lr=0.1)
    )
    reasons = notes(model)
    expected = {
        "eight": "a EightBit, which stores its values in its own way",
        "quantised": "frozen (requires_grad=False)",
        "complex": "dtype complex64",
        "sparse": "layout torch.sparse_coo",
        "rows": "layout torch.sparse_csr",
        "meta": "on the meta device: it has no values",
        "lazy.weight": "lazy: run one forward pass before attaching",
    }
    assert {name: reasons[name] for name in expected} == expected


def test_a_subclass_that_stores_plain_values_is_measured_by_them(tmp_path: Path) -> None:
    model = nn.Linear(4, 4, bias=False)
    model.weight = nn.Parameter(torch.eye(4).as_subclass(Labelled))
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            model.weight.diagonal().add_(torch.tensor([4.0, 3.0, 2.0, 1.0]))
        tracker.step()
    assert_spectra(logged(tmp_path / "run", "weight"), [np.diag([4.0, 3.0, 2.0, 1.0])])


def test_a_lazy_layer_is_watched_once_it_has_its_shape(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(5))
    assert set(notes(mlp(6, 5)).values()) == {"5×6", "a vector"}
    with pytest.raises(ValueError, match=r"0\.weight: lazy: run one forward pass before attaching"):
        find_matrices(model)
    model(inputs(0))
    weights = {f"{place}.weight": (lambda place=place: model[place].weight) for place in (0, 2)}
    check_training(model, weights, tmp_path / "run")
