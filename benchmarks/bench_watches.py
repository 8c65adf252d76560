"""How often the built-in alarms err: events in ordinary runs, and how soon they come where the thing really happens.

    python benchmarks/bench_watches.py [--steps 400] [--seeds 3] [--only mlp] [--keep DIRECTORY]

Ordinary: an MLP, an LSTM, a convolutional net and a small GPT-2, each with SGD with momentum at a constant rate, SGD
with a cosine decay to 0, Adam at a constant rate, and AdamW with warm-up and a cosine decay to 0. Every alarm there is
a false one.
Planted: from the middle of the run one of the things happens to one matrix, or to the learning rate.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from inrank_monitor import attach, open_run
from inrank_monitor.ranks import WATCHES

Loss = Callable[[], Tensor]
_VOCABULARY = 64


class Training(NamedTuple):
    """A model, its loss on a fresh batch, and the learning rates that suit it under SGD and under Adam."""

    model: nn.Module
    loss: Loss
    sgd: float
    adam: float


def mlp() -> Training:
    """Three layers that imitate a random teacher."""
    teacher = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))

    def loss() -> Tensor:
        inputs = torch.randn(64, 64)
        return nn.functional.cross_entropy(model(inputs), teacher(inputs).argmax(dim=1))

    return Training(model, loss, 0.1, 1e-3)


def _text() -> Tensor:
    """English prose and code of the standard library as numbers below 64."""
    from pydoc_data import topics

    prose = " ".join(str(text) for text in topics.topics.values())
    return torch.tensor([ord(letter) % _VOCABULARY for letter in prose[:200_000]])


def _batch(text: Tensor, rows: int, length: int) -> Tensor:
    starts = torch.randint(0, len(text) - length, (rows,))
    return torch.stack([text[start : start + length] for start in starts])


class Lstm(nn.Module):
    """Letters in, letters out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, _VOCABULARY)

    def forward(self, letters: Tensor) -> Tensor:
        """Scores of the next letter."""
        scores: Tensor = self.head(self.lstm(self.embed(letters))[0])
        return scores


def lstm() -> Training:
    """Predicts the next letter."""
    model, text = Lstm(), _text()

    def loss() -> Tensor:
        letters = _batch(text, 16, 33)
        return nn.functional.cross_entropy(model(letters[:, :-1]).flatten(0, 1), letters[:, 1:].flatten())

    return Training(model, loss, 0.5, 3e-3)


def convolution() -> Training:
    """Tells handwritten digits apart."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    model = nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )

    def loss() -> Tensor:
        some = torch.randint(0, len(images), (32,))
        return nn.functional.cross_entropy(model(images[some]), labels[some])

    return Training(model, loss, 0.05, 1e-3)


def gpt2() -> Training:
    """GPT-2 of transformers, 2 layers of 64, letters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": _VOCABULARY, "n_positions": 48, "n_embd": 64, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    text = _text()

    def loss() -> Tensor:
        letters = _batch(text, 8, 48)
        found: Tensor = model(input_ids=letters, labels=letters).loss
        return found

    return Training(model, loss, 0.1, 1e-3)


MODELS = {"mlp": mlp, "lstm": lstm, "convolution": convolution, "gpt2": gpt2}


def constant(step: int, steps: int) -> float:
    """The same rate throughout."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """To exactly 0 at the last step."""
    return 0.5 * (1 + math.cos(math.pi * min(step / (steps - 1), 1)))


def warmed_cosine(step: int, steps: int) -> float:
    """Linearly up in a tenth of the steps, then to 0."""
    return min((step + 1) / (0.1 * steps), 1.0) * cosine(step, steps)


OPTIMIZERS: dict[str, tuple[Callable[[Training], Optimizer], Callable[[int, int], float]]] = {
    "SGD": (lambda it: SGD(it.model.parameters(), it.sgd, momentum=0.9), constant),
    "SGD, cosine": (lambda it: SGD(it.model.parameters(), it.sgd, momentum=0.9), cosine),
    "Adam": (lambda it: Adam(it.model.parameters(), it.adam), constant),
    "AdamW, warm-up, cosine": (lambda it: AdamW(it.model.parameters(), 3 * it.adam, weight_decay=0.1), warmed_cosine),
}
Plant = Callable[["Run"], None]


class Run:
    """One training, with what is planted in it from its middle on.

    Args:
        make: the model.
        optimizer: a name of `OPTIMIZERS`.
        seed: of everything.
        steps: how many.
    """

    def __init__(self, make: Callable[[], Training], optimizer: str, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.training, self.steps, self.step = make(), steps, 0
        make_optimizer, rate = OPTIMIZERS[optimizer]
        self.optimizer = make_optimizer(self.training)
        self.scheduler = LambdaLR(self.optimizer, lambda step: rate(step, steps))
        matrices = [p for p in self.training.model.parameters() if p.ndim >= 2 and min(p.shape[:2]) >= 24]
        self.weight, self.start = matrices[-1], matrices[-1].detach().clone()

    def train(self, directory: Path, plant: Plant | None = None) -> None:
        """Train it, measuring the first 20 steps and every tenth."""
        options = {"schedule": lambda step: step <= 20 or step % 10 == 0, "tensorboard": False}
        with attach(self.training.model, self.optimizer, directory, **options):
            while self.step < self.steps:
                self.optimizer.zero_grad()
                self.training.loss().backward()
                if plant is not None and self.step >= self.steps // 2:
                    with torch.no_grad():
                        plant(self)
                self.optimizer.step()
                self.scheduler.step()
                self.step += 1

    @property
    def late(self) -> int:
        """Steps since it began to happen."""
        return self.step - self.steps // 2


def freeze(run: Run) -> None:
    """One matrix gets no gradient any more."""
    run.weight.requires_grad_(False)
    run.weight.grad = None


def blow_up(run: Run) -> None:
    """The learning rate is a hundred times what it was."""
    if run.late == 0:
        run.scheduler.base_lrs = [100 * rate for rate in run.scheduler.base_lrs]
        for group in run.optimizer.param_groups:
            group["lr"] *= 100


def one_direction(run: Run) -> None:
    """One direction of a matrix grows at each step, by a fiftieth of ‖W0‖ or of √min(rows, cols)."""
    flat = run.weight.flatten(1)
    left = torch.cos(torch.arange(flat.shape[0], dtype=torch.float32))
    right = torch.sin(torch.arange(flat.shape[1], dtype=torch.float32))
    direction = torch.outer(left / left.norm(), right / right.norm()).view_as(run.weight)
    run.weight += 0.02 * max(float(run.start.norm()), min(flat.shape) ** 0.5) * direction


def collapse(run: Run) -> None:
    """A matrix's update loses a tenth of all its directions but two at each step."""
    update = (run.weight - run.start).flatten(1)
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    values[2:] *= 0.9
    run.weight.copy_(run.start + (left * values @ right).view_as(run.weight))


PLANTS: dict[str, tuple[str, Plant, tuple[str, ...]]] = {
    "stopped_moving": ("a matrix is frozen", freeze, ("SGD", "Adam")),
    "norm_exploded": ("learning rate × 100", blow_up, ("SGD", "Adam")),
    "spike": ("one direction grows", one_direction, ("SGD", "Adam")),
    "rank_collapsed": ("directions are lost", collapse, ("SGD", "Adam")),
}


def alarms(directory: Path) -> dict[str, list[int]]:
    """The steps at which each kind was logged."""
    events = open_run(directory).events
    kinds = (*WATCHES, "non_finite")
    return {kind: events.loc[events["kind"] == kind, "step"].astype(int).tolist() for kind in kinds}


def ordinary(models: dict[str, Callable[[], Training]], seeds: int, steps: int, folder: Path) -> None:
    """Print the false alarms."""
    total: Counter[str] = Counter()
    runs = rows = 0
    print(f"{'ordinary run':<38} {'runs':>4} {'rows':>6}  " + "  ".join(f"{kind:>14}" for kind in WATCHES))
    for name, make in models.items():
        for optimizer in OPTIMIZERS:
            found: Counter[str] = Counter()
            measured = 0
            for seed in range(seeds):
                directory = folder / f"{name} {optimizer} {seed}"
                Run(make, optimizer, seed, steps).train(directory)
                found += Counter({kind: len(at) for kind, at in alarms(directory).items()})
                measured += len(open_run(directory).measurements)
            counts = "  ".join(f"{found[kind]:>14}" for kind in WATCHES)
            print(f"{name + ', ' + optimizer:<38} {seeds:>4} {measured:>6}  {counts}", flush=True)
            total, runs, rows = total + found, runs + seeds, rows + measured
    print(f"{'all':<38} {runs:>4} {rows:>6}  " + "  ".join(f"{total[kind]:>14}" for kind in WATCHES))


def delays(models: dict[str, Callable[[], Training]], seeds: int, steps: int, folder: Path) -> Iterator[str]:
    """A line a kind of happening: in how many runs the alarm came, how late, and which others did.

    Where the norm explodes until it is not finite, the event that says so counts as the alarm.
    """
    for kind, (words, plant, optimizers) in PLANTS.items():
        late: list[tuple[int, int]] = []
        others: Counter[str] = Counter()
        runs = 0
        for name, make in models.items():
            for optimizer in optimizers:
                for seed in range(seeds):
                    directory = folder / f"{kind} {name} {optimizer} {seed}"
                    Run(make, optimizer, seed, steps).train(directory, plant)
                    found, runs = alarms(directory), runs + 1
                    began = steps // 2
                    told = found[kind] + (found.pop("non_finite") if kind == "norm_exploded" else [])
                    others += Counter({other: len(at) for other, at in found.items() if other != kind})
                    if after := sorted(step for step in told if step > began):
                        measured = open_run(directory).measurements["step"].unique()
                        between = int(((measured > began) & (measured <= after[0])).sum())
                        late.append((between, after[0] - began))
        snapshots, behind = (sorted(values) for values in zip(*late, strict=True)) if late else ([0], [0])
        yield (
            f"{kind:<15} {words:<22} {len(late):>3} of {runs:<3} after {snapshots[len(late) // 2]} snapshots (at most "
            f"{snapshots[-1]}), {behind[len(late) // 2]} steps (at most {behind[-1]}); "
            f"other alarms: {dict(others) or 'none'}"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument("--keep", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    models = {name: make for name, make in MODELS.items() if arguments.only in (None, name)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        ordinary(models, arguments.seeds, arguments.steps, folder)
        for line in delays(models, arguments.seeds, arguments.steps, folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
