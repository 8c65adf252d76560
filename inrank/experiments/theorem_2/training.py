"""The linear network of Theorem 2 in real gradient descent, watched by the tracker, against the closed form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrank.experiments.theorem_2.order import crossing_times, generator_of, normal, order
from inrank.reproduction.experiment import Outcome
from inrank.theory import TargetModes, mode_strength, orthogonal_start, random_orthogonal, random_target
from inrank_monitor import attach


def start_of(settings: Mapping[str, Any]) -> tuple[TargetModes, Tensor, tuple[Tensor, Tensor], Tensor]:
    """A training's target, u0, (W¹_0, W²_0) and inputs (in, in): whitened, the rows are samples."""
    generator = generator_of(settings["seed"])
    s = settings["slope"] * torch.arange(1, settings["modes"] + 1, dtype=torch.float64, device="cpu")
    target = random_target(s, settings["outputs"], settings["inputs"], generator)
    u0 = (settings["spread"] * normal(generator, settings["modes"])).abs()
    inputs = random_orthogonal(settings["inputs"], generator)
    return target, u0, orthogonal_start(target, u0.sqrt(), u0.sqrt(), generator), inputs


def train(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Gradient descent on ½ Σ ‖y − W² W¹ x‖², float64; the product's modes are logged, it is no weight itself."""
    target, _, weights, inputs = start_of(settings)
    model = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.float64) for w in weights))
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
    model.to(device)
    x, y = inputs.to(device), (inputs @ target.correlation.mT).to(device)
    left, right = target.left.to(device), target.right.to(device)

    def modes() -> Tensor:
        first, second = (parameter.detach() for parameter in model.parameters())
        return (left.mT @ second @ first @ right.mT).diag()

    initial = modes()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["rate"])
    # Early modes take a hundredth of the time of the late ones, so the snapshots are dense at first
    measured = set(np.geomspace(10, settings["steps"], settings["snapshots"]).round().astype(int).tolist())
    first = loss = torch.zeros((), dtype=torch.float32, device="cpu")
    with attach(
        model, optimizer, directory, schedule=measured.__contains__, resume=0, tensorboard=settings["tensorboard"]
    ) as tracker:
        for step in range(1, settings["steps"] + 1):
            loss = (y - model(x)).square().sum() / 2
            first = loss.detach() if step == 1 else first
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in measured:
                tracker.log(loss=loss, **{f"mode_{i + 1}": mode for i, mode in enumerate(modes() - initial)})
        unseen = normal(generator_of(settings["seed"] + 1_000_000), 256, settings["inputs"]).to(device)
        missed = (unseen @ target.correlation.mT.to(device) - model(unseen)).square().sum(-1).mean() / 2
        tracker.log(test_loss=missed)
    return {"first_loss": float(first), "loss": float(loss.detach()), "test_loss": float(missed.detach())}


def trained_errors(outcome: Outcome) -> Mapping[str, float]:
    """How far a run is from Theorem 2.

    Returns:
        `modes`: largest |mode − eq. 4| / s. `layers`: largest difference of a layer's tracked singular values from
        √u − √u0, over the largest √s. `order`: see `theorem_2_order`. `allowed`: 2 η s_max, one step's share.
    """
    settings = outcome.training.settings
    target, u0, _, _ = start_of(settings)
    s, tau = target.strengths, 1 / settings["rate"]
    steps, modes = logged_modes(outcome)
    error = (modes - mode_strength(s, u0, steps[:, None], tau)).abs() / s
    layers = 0.0
    for name in outcome.tables.matrices.index:
        spectra = outcome.tables.singular_values(str(name))
        at = torch.tensor(spectra.index.to_numpy(), dtype=torch.float64, device="cpu")[:, None]
        layer = ((mode_strength(s, u0, at, tau) + u0).sqrt() - u0.sqrt()).abs().sort(-1, descending=True).values
        layers = max(
            layers,
            float((torch.tensor(spectra.to_numpy(dtype=float), device="cpu") - layer).abs().max() / s.max().sqrt()),
        )
    found = order(s, crossing_times(modes / modes[-1], steps))
    return {"modes": float(error.max()), "layers": layers, "order": found, "allowed": float(2 * s.max() / tau)}


def logged_modes(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Steps (snapshots,) and the product's modes (snapshots, modes) of a run."""
    scalars = outcome.tables.scalars
    table = scalars[scalars["name"].str.startswith("mode_")].pivot(index="step", columns="name", values="value")
    names = [f"mode_{i + 1}" for i in range(table.shape[1])]
    return torch.tensor(table.index.to_numpy(), dtype=torch.float64, device="cpu"), torch.tensor(
        table[names].to_numpy(dtype=float), device="cpu"
    )
