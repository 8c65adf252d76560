"""The two-layer perceptron of Figures 3 and 15: its weights, its optimizers, its training.

The paper states data (Fashion-MNIST), initializations and optimizers. It states no width, batch, rate or length: what
we took stands in `SCALES` and `OPTIMIZERS`, usual values, the same for every training but for the optimizer's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.optim import Optimizer

from inrank.experiments.perceptron.images import Images, Source, read_images
from inrank.reproduction.concentration import share_above, stable_rank
from inrank.reproduction.experiment import ExperimentError, Training
from inrank.theory import zero_initialize_

HIDDEN, LAST = "fc1.weight", "fc2.weight"
_TEST_ROWS = 8192


@dataclass(frozen=True)
class Scale:
    """What a training is at one scale.

    Attributes:
        data: which images.
        width: hidden units.
        steps: of the optimizer.
        batch_size: images a step.
        snapshots: so many steps are measured, the early ones closer together.
        buffer_rank: b of the logged ranks; a hundred would exceed the small matrices.
        tensorboard: write event files too.
    """

    data: Source
    width: int
    steps: int
    batch_size: int
    snapshots: int
    buffer_rank: int
    tensorboard: bool = True


SCALES = {
    "smoke": Scale("digits", 32, 200, 64, 20, 8, tensorboard=False),
    "tiny": Scale("digits", 128, 2_000, 64, 80, 8),  # 90 epochs
    "small": Scale("fashion-mnist", 256, 9_380, 128, 100, 32),  # 20 epochs
    "paper": Scale("fashion-mnist", 512, 46_900, 128, 100, 64),  # 100 epochs
}


def _orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.orthogonal_(weight, generator=generator)


def _zero(weight: Tensor, generator: torch.Generator) -> None:
    zero_initialize_(weight)


def _kaiming(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


INITIALIZATIONS: dict[str, tuple[str, Callable[[Tensor, torch.Generator], None]]] = {
    "orthogonal": ("Orthogonal", _orthogonal),
    "zero": ("ZerO", _zero),
    "kaiming": ("Kaiming", _kaiming),
}


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer and its options; Muon takes matrices only, so biases get `Adam` with their own rate."""

    title: str
    name: str
    options: Mapping[str, float]
    biases: Mapping[str, float] | None = None


# Rates: such that all end at about SGD's training loss at tiny scale; nothing else was looked at.
OPTIMIZERS = {
    "sgd": OptimizerChoice("SGD", "SGD", {"lr": 0.1}),
    "adam": OptimizerChoice("Adam", "Adam", {"lr": 5e-4}),
    "adadelta": OptimizerChoice("Adadelta", "Adadelta", {"lr": 0.2}),
    "momentum": OptimizerChoice("SGD with momentum", "SGD", {"lr": 0.01, "momentum": 0.9}),
    "adamw": OptimizerChoice("AdamW", "AdamW", {"lr": 5e-4, "weight_decay": 0.01}),
    # Without weight decay, whose part of the update is a multiple of W0 and says nothing of what Muon does.
    "muon": OptimizerChoice("Muon", "Muon", {"lr": 7e-4, "weight_decay": 0.0}, biases={"lr": 1e-3}),
}


class Perceptron(nn.Module):
    """W² ReLU(W¹ x), with biases that start at zero."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, images × classes."""
        logits: Tensor = self.fc2(relu(self.fc1(images)))
        return logits

    @torch.no_grad()
    def initialize(self, initialization: str, seed: int) -> None:
        """Fill both weights by a name in `INITIALIZATIONS`."""
        generator = torch.Generator("cpu").manual_seed(seed)
        for layer in (self.fc1, self.fc2):
            INITIALIZATIONS[initialization][1](layer.weight, generator)
            layer.bias.zero_()


def training(scale: str, initialization: str, optimizer: str, seed: int) -> Training:
    """One training; Figures 3 and 15 share that of Kaiming and SGD."""
    settings = {
        **asdict(SCALES[scale]),
        "initialization": initialization,
        "optimizer": OPTIMIZERS[optimizer].name,
        "options": OPTIMIZERS[optimizer].options,
        "bias_options": OPTIMIZERS[optimizer].biases,
        "seed": seed,
    }
    name = f"perceptron-{initialization}-{optimizer}-seed-{seed}"
    return Training(name, train, settings, imports=("sklearn.datasets",))


def train(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Train one perceptron, watched.

    Returns:
        `train_loss`, `test_loss` (nats an image), `start_loss`, `train_accuracy`, `test_accuracy`; and what the hidden
        layer's numbers would be had its errors no structure (`errors_without_structure`): `images_share`,
        `images_stable_rank`, and with the mean image left out `centred_share`, `centred_stable_rank`.
    """
    from inrank_monitor import attach

    images, seed = read_images(settings["data"]).to(device), settings["seed"]
    model = Perceptron(images.inputs.shape[1], settings["width"], images.classes)
    model.initialize(settings["initialization"], seed)
    model.to(device)
    optimizers = make_optimizers(model, settings)
    measured = snapshot_steps(settings["steps"], settings["snapshots"])
    tracker = attach(
        model,
        optimizers,
        directory,
        schedule=measured.__contains__,
        buffer_rank=settings["buffer_rank"],
        tensorboard=settings["tensorboard"],
        resume=0,
    )
    with tracker:
        start_loss = evaluate(model, images.inputs, images.labels)[0]
        batches = _batches(len(images.labels), settings["batch_size"], seed, device)
        for _, chosen in zip(range(settings["steps"]), batches, strict=False):
            loss = cross_entropy(model(images.inputs[chosen]), images.labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            tracker.log(loss=loss)
        train_loss, train_accuracy = evaluate(model, images.inputs, images.labels)
        test_loss, test_accuracy = evaluate(model, images.test_inputs, images.test_labels)
        tracker.log(validation_loss=test_loss, validation_accuracy=test_accuracy)
    whole, centred = (errors_without_structure(images, settings["width"], seed, centred=c) for c in (False, True))
    return {
        "start_loss": start_loss,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
        "images_share": share_above(whole),
        "images_stable_rank": stable_rank(whole),
        "centred_share": share_above(centred),
        "centred_stable_rank": stable_rank(centred),
    }


def snapshot_steps(steps: int, snapshots: int) -> frozenset[int]:
    """Which steps are measured: (k/snapshots)² of the way, so that what is learned first is seen to come first."""
    return frozenset(max(1, round(steps * (k / snapshots) ** 2)) for k in range(1, snapshots + 1))


def make_optimizers(model: Perceptron, settings: Mapping[str, Any]) -> list[Optimizer]:
    """The optimizer of a training; where it takes matrices only, Adam for the biases before it.

    Raises:
        ExperimentError: this torch has no such optimizer.
    """
    kind = getattr(torch.optim, settings["optimizer"], None)
    if kind is None:
        raise ExperimentError(f"torch.optim.{settings['optimizer']} needs a newer torch than {torch.__version__}")
    if settings["bias_options"] is None:
        return [kind(model.parameters(), **settings["options"])]
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    return [torch.optim.Adam(vectors, **settings["bias_options"]), kind(matrices, **settings["options"])]


def _batches(images: int, batch_size: int, seed: int, device: str) -> Iterator[Tensor]:
    """Epoch after epoch in a new order; what does not fill a batch waits for a later epoch."""
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        order = torch.randperm(images, generator=generator, device="cpu").to(device)
        for first in range(0, images - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats an image, and the share of images whose largest logit is the right one."""
    loss, right = 0.0, 0
    for rows, expected in zip(torch.split(inputs, _TEST_ROWS), torch.split(labels, _TEST_ROWS), strict=True):
        logits = model(rows)
        loss += float(cross_entropy(logits, expected, reduction="sum"))
        right += int((logits.argmax(dim=1) == expected).sum())
    return loss / len(labels), right / len(labels)


def errors_without_structure(images: Images, width: int, seed: int, *, centred: bool = False) -> np.ndarray:
    """Singular values of E X: an update of the hidden layer from independent Gaussian errors E on the real images X.

    A gradient of that layer is errors times images. So this is what the images' own spectrum gives, whatever is
    learned: the second thing, after a matrix without structure, that a low rank must be told from. E X has the
    distribution of G S Vᵀ, X = U S Vᵀ, so one matrix G of width × pixels does.

    Args:
        images: those trained on.
        width: hidden units.
        seed: of the errors.
        centred: leave the mean image out, as errors do that sum to zero over the images; the trained bias drives them
            there. It is the strongest direction of most images, so the two can differ much, and neither is the one
            right answer: real errors lie between.

    Returns:
        min(width, pixels) values, descending.
    """
    inputs = images.inputs.to("cpu", torch.float64)
    inputs = inputs - inputs.mean(dim=0) if centred else inputs
    scales = torch.linalg.eigvalsh(inputs.T @ inputs).clamp(min=0).sqrt()
    noise = torch.randn(
        width, len(scales), dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
    )
    values: np.ndarray = torch.linalg.svdvals(noise * scales).numpy()
    return values
