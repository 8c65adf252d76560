"""`inrank train --d-ff`: dense GPT-2s with narrower MLPs, from the options to the table."""

from __future__ import annotations

import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from helpers.dense import text_batches, trained_gpt2
from transformers import GPT2LMHeadModel

import inrank
from inrank import plan_widths
from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.launch import start
from inrank.gpt2.models import build, parameter_count, parse_size
from inrank.gpt2.option_checks import OptionError
from inrank.gpt2.options import TrainOptions
from inrank.gpt2.preparation import prepare
from inrank.gpt2.results import Result, compare
from inrank.gpt2.results_table import table_text
from inrank.gpt2.settings import Settings
from inrank.gpt2.text import open_corpus
from inrank.gpt2.training_callbacks import ProgressLine
from inrank.gpt2.training_process import run_training

TINY: dict[str, Any] = {
    "size": "2x16", "steps": 8, "context": 16, "batch_size": 2, "vocabulary": 300, "lr": 1e-2, "checkpoint_every": 3,
    "quiet": True, "device": "cpu", "method": ("baseline",),
}  # fmt: skip


def options(*given: str, **others: Any) -> TrainOptions:
    return TrainOptions(**TINY | {"d_ff": given} | others)


def test_one_width_is_that_of_every_block_and_a_list_one_each(tmp_path: Path) -> None:
    assert options("9").widths == [9, 9]
    assert options("70", "3").widths == [70, 3]
    assert TrainOptions(**TINY).widths is None
    plan = plan_widths(trained_gpt2(1)[0], text_batches(), 0.4)
    plan.save(tmp_path / "plan.json")
    chosen = options(str(tmp_path / "plan.json"))
    assert chosen.widths == list(plan.widths.values())
    (tmp_path / "plan.json").unlink()  # a resumption needs no file
    assert TrainOptions.of(chosen.kept()) == TrainOptions.of(chosen.kept() | {"d_ff": chosen.kept()["d_ff"]})
    assert TrainOptions.of(chosen.kept()).widths == chosen.widths


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("1", "2", "3"), "--d-ff must be one width for all blocks or one for each of the 2, got 3 widths"),
        (("0",), "--d-ff must be at least 1, in whole numbers, or the file of a plan, got 0"),
        (("5", "-3"), "--d-ff must be at least 1, .* got -3"),
        (("5", "4.5"), r"--d-ff must be at least 1, .* got 4\.5"),
        (("no-such-file",), "--d-ff must be numbers, or the file of a plan, got 'no-such-file', which is no file"),
        ((__file__,), "--d-ff .*test_d_ff.py holds no plan that WidthPlan.save wrote"),
    ],
)
def test_what_is_no_width_is_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(*given)


def test_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    plan_widths(trained_gpt2(1)[0], text_batches(), 0.4).save(tmp_path / "plan.json")
    with pytest.raises(OptionError, match=r"one for each of the 3, got 2 widths in .*plan\.json"):
        options(str(tmp_path / "plan.json"), size="3x16")


def test_methods_whose_size_comes_from_ranks_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--d-ff goes with --method baseline alone, not with inrank, fixed-rank"):
        options("9", method=("baseline", "inrank", "fixed-rank"))


@pytest.mark.parametrize("widths", [(9, 40), (7, 7), (64, 100)])
def test_a_narrow_model_has_the_weights_of_the_wide_one_elsewhere(widths: tuple[int, int]) -> None:
    size = parse_size("2x16")
    models = []
    for each in (None, widths):
        torch.manual_seed(0)
        models.append(build(size, 30, 8, widths=each))
    wide, narrow = (model.state_dict() for model in models)
    for name, value in narrow.items():
        if ".mlp." not in name and max(widths) <= 64:
            assert torch.equal(value, wide[name]), name
    assert [block.mlp.c_fc.weight.shape[1] for block in models[1].transformer.h] == list(widths)
    assert [block.mlp.c_proj.nx for block in models[1].transformer.h] == list(widths)
    dense, counted = (parameter_count("2x16", vocabulary=30, context=8, widths=each) for each in (None, widths))
    assert counted == sum(value.numel() for value in models[1].parameters())
    assert dense - counted == sum(64 - width for width in widths) * (2 * 16 + 1)  # two weights and a bias each


def train(output: Path, text: Path, *given: str, **others: Any) -> Result:
    planned = prepare(options(*given, text=(str(text),), output=str(output), **others))
    found = run_training(start(planned[0]), "cpu", quiet=True)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_trains_resumes_and_is_read_and_counted_as_narrow_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(topics["specialnames"][:12000], encoding="utf-8")
    uniform = train(tmp_path / "uniform", text, "9")
    whole = train(tmp_path / "whole", text, "30", "5")
    with monkeypatch.context() as patch:

        def interrupted(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

        patch.setattr(ProgressLine, "on_step_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "halves", text, "30", "5")
    with pytest.raises(OptionError, match=r"was started with --d-ff \[30, 5\] \(now \[30, 6\]\)"):
        train(tmp_path / "halves", text, "30", "6", resume=True)
    halves = train(tmp_path / "halves", text, "30", "5", resume=True)
    assert halves.perplexity == whole.perplexity
    assert whole.settings["d_ff"] == [30, 5]
    dense = parameter_count("2x16", vocabulary=whole.settings["vocabulary"], context=16)
    assert dense - whole.parameters == (64 - 30 + 64 - 5) * 33
    assert dense - uniform.parameters == 2 * (64 - 9) * 33
    assert whole.model_size == 4 * whole.parameters
    table = table_text(compare([uniform, whole])).splitlines()
    assert table[0].split()[-1] == "--d-ff"
    assert [line.endswith(widths) for line, widths in zip(table[1:], ("[9, 9]", "[30, 5]"), strict=False)] == [True] * 2
    corpus = open_corpus(tmp_path / "whole" / Settings.read(tmp_path / "whole/baseline-seed-0").corpus)
    kinds: tuple[Any, Any] = (inrank, GPT2LMHeadModel)  # of one width it is an ordinary model
    for kind, name, expected in zip(kinds, ("whole", "uniform"), (whole, uniform), strict=True):
        model = kind.from_pretrained(tmp_path / name / "baseline-seed-0/model").eval()
        loss = mean_loss(model, corpus.test_windows(16), 2)
        assert math.exp(loss) == pytest.approx(expected.perplexity, rel=1e-9)
