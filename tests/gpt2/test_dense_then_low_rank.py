"""`inrank train --method dense-then-low-rank`: one tiny training, and the same one interrupted and taken up."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import inrank
from inrank.gpt2.checkpoints import last_checkpoint
from inrank.gpt2.launch import start
from inrank.gpt2.options import TrainOptions
from inrank.gpt2.preparation import prepare
from inrank.gpt2.results import Result, compare
from inrank.gpt2.results_table import table_text
from inrank.gpt2.training_callbacks import ProgressLine
from inrank.gpt2.training_process import run_training
from inrank.layers.pretrained import read_weights
from inrank_monitor import open_run

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, MOMENT, NAME = 8, 3, "dense-then-low-rank"


def run(output: Path, text: Path, *, at: float = 3, **options: Any) -> Path:
    """The directory of one training, in this process."""
    recipe: dict[str, Any] = {
        "size": "1x16", "steps": STEPS, "context": 16, "batch_size": 2, "vocabulary": 300, "lr": 1e-2,
        "checkpoint_every": 2, "quiet": True, "device": "cpu", "factor_lr": 2.0,
    }  # fmt: skip
    chosen = TrainOptions(**recipe | options, method=(NAME,), factorize_at=at, text=(str(text),), output=str(output))
    directory = start(prepare(chosen)[0])
    run_training(directory, "cpu", quiet=True, every=1)
    return directory


def ended_with(directory: Path) -> dict[str, Tensor]:
    """Weights, and the optimizer's state."""
    checkpoint = last_checkpoint(directory / "checkpoints-factorized")
    assert checkpoint is not None
    content = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert [group["lr"] for group in content["param_groups"]] == [0.0] * 3  # a cosine ends there, of the factors too
    states = {f"{place}.{key}": each for place, state in content["state"].items() for key, each in state.items()}
    return states | read_weights(directory / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(topics["specialnames"][:12000], encoding="utf-8")
    return path


def test_dense_first_then_factors_and_to_the_bit_when_interrupted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", text)
    original = ProgressLine.on_step_end
    for step in (2, MOMENT, 5):  # before it, at it, after it

        def interrupt(self: ProgressLine, args: Any, state: Any, *rest: Any, at: int = step, **kwargs: Any) -> None:
            if state.global_step == at:
                raise KeyboardInterrupt
            original(self, args, state, *rest, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(ProgressLine, "on_step_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "cut", text, resume=(tmp_path / "cut").exists())
    torch.manual_seed(99)  # whatever the process did before must not matter
    cut = run(tmp_path / "cut", text, resume=True)
    one, other = ended_with(whole), ended_with(cut)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    result = Result.read(whole)
    assert result.factorization is not None
    assert result.factorization["step"] == MOMENT
    assert result.factorization == Result.read(cut).factorization
    assert sum(rank * (16 + 64) for rank in result.ranks.values()) <= 0.45 * 2 * 16 * 64
    assert f"\n{NAME} " in table_text(compare([result]))
    model = inrank.from_pretrained(whole / "model")
    assert {name: layer.rank for name, layer in inrank.layers.layers_of(model).items()} == result.ranks

    runs = [open_run(directory) for directory in (whole, cut)]
    for logged in runs:  # one run over the moment and every interruption, of ΔW = κ U V − W0
        assert logged.events[logged.events["kind"] == "factorized"]["step"].tolist() == [MOMENT]
        assert not logged.problems
    spectra = [logged.singular_values("transformer.h.0.mlp.c_fc.weight") for logged in runs]
    assert spectra[0].index.tolist() == list(range(1, STEPS + 1))
    np.testing.assert_array_equal(spectra[0].to_numpy(), spectra[1].to_numpy())


def test_share_or_step_says_when_and_is_kept_with_the_options(text: Path, tmp_path: Path) -> None:
    for at, moment in ((0.25, 2), (5, 5)):
        given = TrainOptions(
            size="1x16", steps=8, vocabulary=300, context=16, method=("baseline", NAME), factorize_at=at,
            text=(str(text),), output=str(tmp_path / str(at)), quiet=True, budget=0.3, allocation="uniform",
        )  # fmt: skip
        baseline, dense_first = prepare(given)
        assert dense_first.settings.phase_steps == moment
        assert not baseline.settings.two_phases
        start(dense_first)
        kept = json.loads((dense_first.directory / "options.json").read_text())
        assert (kept["factorize_at"], kept["budget"], kept["allocation"], kept["factor_lr"]) == (at, 0.3, "uniform", 1)
