"""Trainings of the experiment `glrl`: Algorithm 1, and gradient descent measured against the points it went through.

A target of rank k has singular values k/k, …, 1/k (s_i = a i, as in the paper's Figure 2). It is completed from a share
of its entries, or regressed on Gaussian inputs, without noise. Gradient descent trains a network without a bottleneck
from Gaussian layers. Their scale, `start` ** (1/L) of the usual standard deviation 1/√fan-in, gives the product one
strength at every depth; `start` 1 is usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inrank.theory import Cost, DeepLinearNetwork, MatrixCompletion, MatrixRegression, curvature_bound, greedy_low_rank
from inrank_monitor import attach
from inrank_monitor.ranks import effective_rank
from inrank_monitor.tracking import SpectrumTracker

END = 1e-5  # of the cost of zero: gradient descent stops there
LEARNED = 1e-2  # of the cost of zero: by then most is learned
SAMPLES = 4  # for each input, so that the regression has one solution
SNAPSHOT_RATIO = 1.08  # between the steps of two snapshots: saddles are left ever more slowly
CHECK_EVERY = 10
SMOKE_SIZE = 10  # problems of this size are tests: no event files
CRITICAL_FILE = "critical_points.safetensors"


def greedy_name(problem: str, depth: int, seed: int) -> str:
    """Of the training by Algorithm 1."""
    return f"glrl-{problem}-depth-{depth}-seed-{seed}"


def descent_name(problem: str, depth: int, start: float, seed: int) -> str:
    """Of the training by gradient descent."""
    return f"gd-{problem}-depth-{depth}-start-{start:g}-seed-{seed}"


class Problem:
    """A target and a cost, by the seed.

    Attributes:
        target: of known rank.
        values: its singular values, those above 0.
        cost: C.
        zero: C(0).
    """

    def __init__(self, settings: Mapping[str, Any], device: str) -> None:
        size, rank = settings["size"], settings["rank"]
        generator = torch.Generator("cpu").manual_seed(1000 + settings["seed"])
        normal = partial(torch.randn, generator=generator, dtype=torch.float64)
        left, right = (torch.linalg.qr(normal(size, rank))[0] for _ in range(2))
        self.values = torch.arange(rank, 0, -1, dtype=torch.float64, device="cpu") / rank
        target = left * self.values @ right.mT
        hidden = torch.ones_like(target)
        self.cost: Cost
        if settings["problem"] == "completion":
            observed = (
                torch.rand(size, size, generator=generator, dtype=torch.float64, device="cpu") < settings["observed"]
            )
            self.cost = MatrixCompletion(target.to(device), observed.to(device))
            hidden = (~observed).to(torch.float64)
        else:
            inputs = normal(size, SAMPLES * size)
            self.cost = MatrixRegression(inputs.to(device), (target @ inputs).to(device))
        self.target, self._hidden = target.to(device), hidden.to(device)
        self.zero = float(self.cost.value(torch.zeros_like(self.target)))

    def error(self, product: Tensor) -> Tensor:
        """‖A − M‖_F / ‖M‖_F over the entries that were not observed (regression: over all)."""
        error: Tensor = ((product - self.target) * self._hidden).norm() / (self.target * self._hidden).norm()
        return error

    def log(self, tracker: SpectrumTracker, product: Tensor) -> None:
        """Cost over C(0), held-out error, effective rank, and the leading singular values of the product."""
        values = torch.linalg.svdvals(product).cpu()
        tracker.log(
            loss=self.cost.value(product) / self.zero,
            held_out_error=self.error(product),
            effective_rank=float(effective_rank(values.numpy())),
            **{f"sigma_{place + 1}": value for place, value in enumerate(values[: len(self.values) + 2])},
        )


class Snapshots:
    """Steps in a constant ratio, after the first ten or so."""

    def __init__(self, last: int) -> None:
        count = int(np.log(last) / np.log(SNAPSHOT_RATIO)) + 1
        self.steps = frozenset(np.unique(np.geomspace(1, last, count).astype(int)).tolist())

    def __call__(self, step: int) -> bool:
        """Whether to measure after this step."""
        return step in self.steps


def train_greedy(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Algorithm 1; leaves the critical points of each width, the last one among them, beside the run."""
    problem = Problem(settings, device)
    size, due = settings["size"], Snapshots(settings["max_steps"])
    network = DeepLinearNetwork(size, size, settings["depth"], device=device)
    tracker = attach(network, None, directory, schedule=due, resume=0, tensorboard=size > SMOKE_SIZE)
    width = 0

    def after_step() -> None:
        nonlocal width
        tracker.step()
        grown, width = network.width > width, network.width
        if grown:
            tracker.event("rank_grown", None, f"width {width}")
        if grown or due(tracker.step_count):
            problem.log(tracker, network.product())

    result = greedy_low_rank(network, problem.cost, max_steps=settings["max_steps"], after_step=after_step)
    problem.log(tracker, result.product)
    tracker.close()
    products = [growth.product for growth in result.growths[1:]] + [result.product]
    save_file({f"rank_{rank + 1}": product.cpu() for rank, product in enumerate(products)}, directory / CRITICAL_FILE)
    values = torch.linalg.svdvals(result.product).cpu()[: len(problem.values)]
    slopes = torch.linalg.svdvals(problem.cost.gradient(torch.zeros_like(result.product)))
    return {
        "width": result.width,
        "converged": result.reason == "converged",
        "steps": result.steps,
        "cost": result.cost / problem.zero,
        "error": float(problem.error(result.product)),
        "gradient_ratio": float(slopes[1] / slopes[0]),
        "value_error": float(((values - problem.values) / problem.values).abs().max()),
        **{f"effective_rank_{i + 1}": _effective_rank(p) for i, p in enumerate(products)},
        **{f"growth_{growth.width + 1}": growth.step for growth in result.growths},
    }


def train_descent(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Plain gradient descent at a constant rate, until the cost is `END` of its value at zero."""
    problem = Problem(settings, device)
    size, depth, due = settings["size"], settings["depth"], Snapshots(settings["max_steps"])
    network = DeepLinearNetwork(size, size, depth, device=device)
    network.randomize(settings["start"] ** (1 / depth), torch.Generator("cpu").manual_seed(settings["seed"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=_rate(network, problem))
    near = Nearest(load_file(directory.parent / settings["greedy"] / CRITICAL_FILE), settings["rank"], device)
    learned, first = settings["max_steps"], network.product().detach()
    with attach(network, optimizer, directory, schedule=due, resume=0, tensorboard=size > SMOKE_SIZE) as tracker:
        for step in range(settings["max_steps"] + 1):
            with torch.no_grad():
                product = network.product()
                gradient = problem.cost.gradient(product)
            if step % CHECK_EVERY == 0:
                near.look(product, step)
                share = float(problem.cost.value(product)) / problem.zero
                if share <= LEARNED:
                    learned = min(learned, step)
                if share <= END or step == settings["max_steps"]:
                    break
            if step == 0 or due(step):
                problem.log(tracker, product)
                tracker.log(**near.distances(product))
            for weight, slope in zip(network.weights, network.gradients(gradient), strict=True):
                weight.grad = slope
            optimizer.step()
        problem.log(tracker, product)
        tracker.log(**near.distances(product))
    return {
        "steps": step,
        "steps_learned": learned,
        "rate": float(optimizer.param_groups[0]["lr"]),
        "cost": share,
        "error": float(problem.error(product)),
        "effective_rank": _effective_rank(product),
        "update_effective_rank": _effective_rank(product - first),
        **{f"end_{name}": float(value) for name, value in near.distances(product).items()},
        **near.numbers(),
    }


class Nearest:
    """How near a path comes to the critical points that greedy learning went through, and what it looks like there.

    Args:
        points: of `train_greedy`.
        rank: how many are compared: those up to the target's rank.
        device: of the path.
    """

    def __init__(self, points: Mapping[str, Tensor], rank: int, device: str) -> None:
        last = points[f"rank_{len(points)}"]
        names = [f"rank_{place + 1}" for place in range(rank)]
        self._points = torch.stack([points.get(name, last) for name in names]).to(device)
        self._norms = self._points.norm(dim=(1, 2))
        self._distance = torch.full_like(self._norms, torch.inf)
        self._product, self._step = torch.zeros_like(self._points), torch.zeros_like(self._norms)

    def look(self, product: Tensor, step: int) -> None:
        """Take a point of the path into account."""
        distance = (product - self._points).norm(dim=(1, 2)) / self._norms
        nearer = distance < self._distance
        self._distance = torch.where(nearer, distance, self._distance)
        self._product = torch.where(nearer[:, None, None], product, self._product)
        self._step = torch.where(nearer, float(step), self._step)

    def distances(self, product: Tensor) -> dict[str, Tensor]:
        """‖A − A_r‖_F / ‖A_r‖_F of one product, by r."""
        found = (product - self._points).norm(dim=(1, 2)) / self._norms
        return {f"distance_{place + 1}": value for place, value in enumerate(found)}

    def numbers(self) -> dict[str, float]:
        """Of the nearest points: distance, step, effective rank, by r."""
        found: dict[str, float] = {}
        for place, product in enumerate(self._product):
            found[f"nearest_{place + 1}"] = float(self._distance[place])
            found[f"nearest_step_{place + 1}"] = float(self._step[place])
            found[f"nearest_effective_rank_{place + 1}"] = _effective_rank(product)
        return found


def _rate(network: DeepLinearNetwork, problem: Problem) -> float:
    """One over the bound on the curvature, at the start or at the solution, where that is larger."""
    cost, product = problem.cost, network.product().detach()
    start = curvature_bound(network.norms(), cost.curvature, cost.gradient(product).norm())
    end = torch.full(
        (network.depth,), float(problem.values[0]) ** (1 / network.depth), dtype=torch.float64, device="cpu"
    )
    return 1 / max(
        float(start), float(curvature_bound(end, cost.curvature, torch.zeros((), dtype=torch.float64, device="cpu")))
    )


def _effective_rank(matrix: Tensor) -> float:
    return float(effective_rank(torch.linalg.svdvals(matrix).cpu().numpy()))
