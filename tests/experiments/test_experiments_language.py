"""The language models of Figures 8 to 14: bodies, reading of the text, trainings that figures share, statements."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from inrank.experiments.language import figures_8_11, figures_12_14
from inrank.experiments.language.findings import (
    BODY,
    SHARE,
    Model,
    comparison,
    layer_globs,
    lifts_all,
    loss_and_share,
    sentence,
    with_caveat,
)
from inrank.experiments.language.models import ARCHITECTURES, LanguageConfig, LanguageModel, gates, positions
from inrank.experiments.language.training import (
    LARGER_BATCH,
    SMALLER_RATE,
    Pieces,
    frequency_loss,
    held_out_loss,
    language_training,
)
from inrank.reproduction.experiment import Outcome, Request
from inrank.reproduction.pool import unique
from inrank.reproduction.verdicts import Sample, is_below
from inrank_monitor.matrices.finding import find_matrices
from inrank_monitor.matrices.patterns import glob

pytestmark = pytest.mark.numeric

WIDTH, VOCABULARY = 8, 11
EVERY = figures_8_11.EXPERIMENTS | figures_12_14.EXPERIMENTS


def _model(architecture: str, layers: int = 2) -> LanguageModel:
    config = LanguageConfig(architecture=architecture, vocabulary=VOCABULARY, width=WIDTH, layers=layers, dropout=0.0)
    return LanguageModel(config).double().eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_place_sees_what_comes_after_it(architecture: str) -> None:
    model = _model(architecture)
    tokens = torch.randint(VOCABULARY, (6, 3))
    other = tokens.clone()
    other[4:] = (other[4:] + 1) % VOCABULARY
    before, after = model(tokens)[0], model(other)[0]
    torch.testing.assert_close(before[:4], after[:4])
    assert not torch.allclose(before[4:], after[4:])


@pytest.mark.parametrize("architecture", ["rnn", "gru", "lstm"])
def test_reading_in_pieces_gives_what_reading_at_once_gives(architecture: str) -> None:
    model = _model(architecture)
    tokens = torch.randint(VOCABULARY, (6, 3))
    first, state = model(tokens[:2])
    second, _ = model(tokens[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), model(tokens)[0])


@pytest.mark.parametrize("architecture", ["rnn", "gru", "lstm"])
def test_no_gradient_reaches_back_into_the_piece_before(architecture: str) -> None:
    model = _model(architecture)
    _, state = model(torch.randint(VOCABULARY, (2, 3)))
    parts = state if isinstance(state, tuple) else (state,)
    assert not any(part.requires_grad for part in parts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gates_are_all_matrices_of_a_body_each_once_and_all_square(architecture: str) -> None:
    matrices, _ = find_matrices(_model(architecture))
    body = [matrix for matrix in matrices if glob(BODY).fullmatch(matrix.name)]
    for matrix in body:
        assert [bool(glob(one).fullmatch(matrix.name)) for one in gates(architecture).values()].count(True) == 1
        assert (matrix.rows, matrix.cols) == (WIDTH, WIDTH)
    assert len(body) == 2 * len(gates(architecture))


def test_layers_are_counted_from_one() -> None:
    names = [matrix.name for matrix in find_matrices(_model("gru", 3))[0]]
    (pattern,) = layer_globs([3])
    found = [name for name in names if glob(pattern).fullmatch(name)]
    assert found == [name for name in names if "_l2" in name]
    assert len(found) == 6


def test_positions_are_sines_and_cosines() -> None:
    found = positions(5, 4)
    expected = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in range(5)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture must be one of rnn, gru, lstm, transformer, got 'mlp'"):
        LanguageConfig(architecture="mlp", vocabulary=VOCABULARY, width=WIDTH, layers=2)


def test_pieces_read_each_column_to_its_end_and_then_begin_anew() -> None:
    tokens = np.arange(23, dtype=np.uint16)
    pieces = Pieces(tokens, 2, 3, "cpu")  # columns 0..10 and 11..21
    assert pieces.count == 3
    inputs, targets, anew = pieces.piece(1)
    assert inputs.tolist() == [[3, 14], [4, 15], [5, 16]]
    assert targets.tolist() == [[4, 15], [5, 16], [6, 17]]
    assert not anew
    again, _, anew = pieces.piece(3)
    assert again[0].tolist() == [0, 11]
    assert anew


def test_a_text_too_short_for_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 6 tokens, got 6"):
        Pieces(np.zeros(6, dtype=np.uint16), 2, 3, "cpu")


def test_a_model_of_equal_logits_loses_the_logarithm_of_the_vocabulary() -> None:
    model = _model("gru")
    torch.nn.init.zeros_(model.decoder.weight)
    torch.nn.init.zeros_(model.decoder.bias)
    pieces = Pieces(np.arange(60) % VOCABULARY, 3, 4, "cpu")
    assert held_out_loss(model, pieces) == pytest.approx(math.log(VOCABULARY))
    assert model.training


def test_the_loss_of_frequencies_is_the_cross_entropy_of_the_counts() -> None:
    train, test = np.array([0, 0, 0, 1], dtype=np.uint16), np.array([0, 1], dtype=np.uint16)
    assert frequency_loss(train, test) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert math.isfinite(frequency_loss(train, np.array([2], dtype=np.uint16)))


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small", "paper"])
def test_figures_share_their_trainings(scale: str, tmp_path: Path) -> None:
    request = Request(tmp_path, scale, (0, 1, 2))
    asked = [training for one in EVERY.values() for training in one.trainings(request)]
    alone = unique(asked)  # raises where two that differ have one name
    assert len(alone) == 8 * 3
    for training in alone:
        assert json.loads(json.dumps(training.settings)) == training.settings


def test_the_variants_of_figure_14_differ_in_one_thing_only(tmp_path: Path) -> None:
    request = Request(tmp_path, "tiny")
    plain = language_training(request, "gru", 4, 0).settings
    lower = language_training(request, "gru", 4, 0, "lower rate").settings
    larger = language_training(request, "gru", 4, 0, "larger batch").settings
    assert lower == {**plain, "learning_rate": plain["learning_rate"] / SMALLER_RATE}
    assert larger == {**plain, "batch": plain["batch"] * LARGER_BATCH}


def test_lifting_all_needs_more_than_half_of_the_noise() -> None:
    assert lifts_all("", Sample("", [0.8, 0.81, 0.79])).verdict == "agrees"
    assert lifts_all("", Sample("", [0.2, 0.21, 0.19])).verdict == "disagrees"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, dict[str, Outcome]]:
    out = tmp_path_factory.mktemp("out")
    text = out / "sums.txt"
    text.write_text("".join(f"{number} and {number + 1} are {2 * number + 1}\n" for number in range(2000)))
    request = Request(out, "smoke", (0,), text=(str(text),))
    request.runs.mkdir()
    outcomes = {}
    for training in EVERY["figure-11"].trainings(request):
        directory = request.runs / training.name
        numbers = training.run(directory, training.settings, "cpu")
        outcomes[training.name] = Outcome(training, directory, numbers, 1.0)
    return request, outcomes


def test_a_training_leaves_a_run_with_losses(trained: tuple[Request, dict[str, Outcome]]) -> None:
    for outcome in trained[1].values():
        run = outcome.tables
        steps, snapshots = outcome.training.settings["steps"], outcome.training.settings["snapshots"]
        assert run.status == "finished"
        assert len(run.singular_values(str(run.matrices.index[0]))) == snapshots
        assert (run.scalars["name"] == "loss").sum() == steps
        assert outcome.numbers["held_out_after"] < outcome.numbers["held_out_before"]


def test_the_same_training_gives_the_same_numbers(trained: tuple[Request, dict[str, Outcome]]) -> None:
    request, outcomes = trained
    outcome = next(iter(outcomes.values()))
    training = outcome.training
    assert training.run(request.runs / "again", training.settings, "cpu") == outcome.numbers


def test_a_figure_has_statements_tables_and_captions(trained: tuple[Request, dict[str, Outcome]]) -> None:
    request, outcomes = trained
    findings = EVERY["figure-11"].analyse(request, outcomes)
    assert len(findings.statements) == 6
    assert {statement.verdict for statement in findings.statements} == {"not tested"}  # one seed
    assert 1 < len(findings.figures) <= 6
    assert all(figure.look and figure.conclude for figure in findings.figures)
    json.dumps(findings.as_json())


def test_the_comparison_shows_what_was_measured(trained: tuple[Request, dict[str, Outcome]]) -> None:
    request, outcomes = trained
    model = Model(request, "lstm")
    figure = comparison(outcomes, {"LSTM": (model, {"all": BODY})}).figure
    assert list(figure.data[0].y) == list(model.measured(outcomes, SHARE).values)


def _with_loss(outcomes: dict[str, Outcome], loss: float) -> dict[str, Outcome]:
    numbers = {"held_out_after": loss, "frequencies": 6.0}
    return {name: Outcome(one.training, one.directory, numbers, 1.0) for name, one in outcomes.items()}


def test_ranks_of_a_model_that_has_learned_nothing_are_judged_with_a_caveat(
    trained: tuple[Request, dict[str, Outcome]],
) -> None:
    request, outcomes = trained
    model = Model(request, "lstm")
    claim = is_below("low-rank", Sample("share", [0.2, 0.21, 0.19]), 0.5, "half of noise's")
    assert with_caveat(_with_loss(outcomes, 5.0), [model], [claim]) == [claim]
    (doubted,) = with_caveat(_with_loss(outcomes, 5.95), [model], [claim])
    assert (doubted.verdict, doubted.ours) == (claim.verdict, claim.ours)
    assert doubted.why.startswith(claim.why)
    assert "but LSTM, 2 layers learned no more than how often each token comes" in doubted.why
    assert "learned no more" not in sentence(_with_loss(outcomes, 5.0), model)
    assert "learned no more" in sentence(_with_loss(outcomes, 5.95), model)


def test_loss_and_share_are_drawn_a_point_a_run(trained: tuple[Request, dict[str, Outcome]]) -> None:
    request, outcomes = trained
    models = [Model(request, "lstm"), Model(request, "transformer")]
    figure, together = loss_and_share(outcomes, models)
    points = [(trace.x[0], trace.y[0]) for trace in figure.figure.data]
    assert points == [(m.loss(outcomes).values[0], m.measured(outcomes, SHARE).values[0]) for m in models]
    sign = np.sign((points[0][0] - points[1][0]) * (points[0][1] - points[1][1]))
    assert f"{sign:+.2f}" in together
