"""From where updates are counted: W0 and the matrices of a run on disk, of a live tracker, or a state dict of W0."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from inrank_monitor.loss_ranks.saved_weights import read_state
from inrank_monitor.loss_ranks.saving import saved_in, step_of
from inrank_monitor.matrices import InitialWeights, Matrix, find_matrices, initial_weights, load_later
from inrank_monitor.runs import RUN_FILE, WEIGHTS_FILE, RunOptions, local_path, read_info

Columns = Mapping[str, Sequence[Any]]
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Start:
    """Where a training began.

    Attributes:
        of: what it is, for messages: a path, say.
        initial: W0.
        matrices: what run.json says of each; None: those that are found in the model.
        selection: `find_matrices`' keywords.
        step: at which the training stands; None where nothing says it.
        save: writes the columns of a result, and of its curve, into the run; None: there is no run.
    """

    of: str
    initial: InitialWeights
    matrices: Sequence[Mapping[str, Any]] | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    save: Callable[[Columns, Columns], None] | None = None

    def matrices_of(self, model: nn.Module) -> list[Matrix]:
        """The matrices of a model whose W0 this is, frozen or not.

        Raises:
            ValueError: some are missing, or have other shapes.
        """
        frozen = {entry["parameter"] for entry in self.matrices} if self.matrices is not None else _all_names(model)
        found, _ = find_matrices(model, **self.selection, although_frozen=frozen)
        if self.matrices is None:
            return found
        here = {matrix.name: matrix for matrix in found}
        wrong = [text for entry in self.matrices if (text := _misfit(entry, here.get(entry["name"])))]
        if wrong:
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise ValueError(f"run: {self.of} is not of this model: {'; '.join(wrong[:_SHOWN])}{more}")
        return [here[entry["name"]] for entry in self.matrices]


@runtime_checkable
class KnowsStart(Protocol):
    """What a live tracker offers."""

    def start_of_updates(self) -> Start | Path:
        """Where its updates are counted from; the run's directory once it is closed."""
        ...


def find_start(run: Any) -> Start:
    """What `run` stands for.

    Args:
        run: a run's directory, a `Run`, a tracker, or W0: a state dict, or the path of a checkpoint that holds one.

    Raises:
        TypeError: it is none of these.
        ValueError, FileNotFoundError: it keeps no W0, or a damaged one; the message says what to give.
    """
    if isinstance(run, KnowsStart):
        run = run.start_of_updates()
    if isinstance(run, Start):
        return run
    from inrank_monitor.runs import Run  # pandas, which a loop does not need

    if isinstance(run, Run):
        return _of_run(run.path)
    if isinstance(run, Mapping):
        return _of_state("the state dict", run)
    if not isinstance(run, str | os.PathLike):
        raise TypeError(
            f"run must be a run, its directory, a tracker, or W0 (a state dict or the path of one), "
            f"got {type(run).__name__}"
        )
    path = local_path(run, "run")
    if path.is_dir() and (path / RUN_FILE).exists():
        return _of_run(path)
    return _of_state(str(path), read_state(path))


def _of_run(path: Path) -> Start:
    info = read_info(path)
    options = RunOptions.from_json(info["options"])
    initial = _kept_in(path, info)
    step = step_of(path)
    return Start(str(path), initial, info["matrices"], options.selection, step, partial(saved_in, path))


def _kept_in(path: Path, info: Mapping[str, Any]) -> InitialWeights:
    where = info.get("initial_weights", {})
    if where.get("keep") == "checkpoint":
        raise ValueError(f"run: {path} was scanned from checkpoints, and its W0 is one of them: give {where['path']!r}")
    if where.get("keep") != "disk":
        raise ValueError(
            f"run: {path} has no W0 on disk (initial_weights={where.get('keep')!r}): give the live tracker, or W0 as "
            "a state dict or the path of a checkpoint"
        )
    hashes = where["sha256"]
    if not isinstance(hashes, list):
        return load_later(path, info, initial_weights.load(path / WEIGHTS_FILE, hashes))
    files = [path / WEIGHTS_FILE] + [  # each process kept its share
        (path / WEIGHTS_FILE).with_stem(f"{Path(WEIGHTS_FILE).stem}-{number:03d}") for number in range(1, len(hashes))
    ]
    shares = [initial_weights.load(file, content) for file, content in zip(files, hashes, strict=True)]
    return load_later(path, info, initial_weights.joined(shares))


def _of_state(of: str, state: Mapping[str, Any]) -> Start:
    """W0 of whatever the state dict has by the names of the model's parameters."""
    names = {_plain(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not names:
        raise ValueError(f"run: {of} holds no tensors: it must be a state dict of W0")

    def get(name: str) -> Tensor:
        if name not in names:
            raise ValueError(f"run: {of} has no W0 of {name}; it has {', '.join(list(names)[:_SHOWN])}, ...")
        return names[name].detach()

    return Start(of, InitialWeights(get))


def _plain(name: str) -> str:
    """Without what DistributedDataParallel and torch.compile put into names."""
    return ".".join(part for part in name.removeprefix("module.").split(".") if part != "_orig_mod")


def _all_names(model: nn.Module) -> frozenset[str]:
    return frozenset(_plain(name) for name, _ in model.named_parameters(remove_duplicate=False))


def _misfit(entry: Mapping[str, Any], here: Matrix | None) -> str:
    """What is wrong with a matrix of the run in this model; empty if nothing is."""
    if here is None:
        return f"the model has no matrix {entry['name']} ({entry['rows']}×{entry['cols']})"
    if (here.rows, here.cols) != (entry["rows"], entry["cols"]):
        return f"{entry['name']} is {here.rows}×{here.cols} in the model, {entry['rows']}×{entry['cols']} in the run"
    return ""
