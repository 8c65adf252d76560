"""`inrank train` and `inrank compare`: all methods, their directories, interruptions and the table."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

import inrank
from inrank import cli
from inrank.gpt2 import training
from inrank.gpt2.checkpoints import MARK_FILE, last_checkpoint, read_progress
from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.launch import start
from inrank.gpt2.models import build, parse_size
from inrank.gpt2.option_checks import METHODS, OptionError
from inrank.gpt2.options import TrainOptions
from inrank.gpt2.preparation import prepare
from inrank.gpt2.results import Result, find_results
from inrank.gpt2.settings import Settings
from inrank.gpt2.text import open_corpus, read_texts
from inrank.gpt2.training_callbacks import ProgressLine
from inrank.gpt2.training_process import run_training
from inrank_monitor import list_runs, open_run
from inrank_monitor.demo.text import DemoError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # trainings, many of them

STEPS, PHASE = 12, 5
TINY: dict[str, Any] = {
    "size": "1x16", "steps": STEPS, "phase_steps": PHASE, "context": 16, "batch_size": 2, "vocabulary": 300,
    "every": 2, "lr": 1e-2, "checkpoint_every": 4, "quiet": True, "device": "cpu",
}  # fmt: skip
FLAGS = ["--size", "1x16", "--steps", "12", "--phase-steps", "5", "--context", "16", "--batch-size", "2",
         "--vocabulary", "300", "--every", "2", "--lr", "1e-2", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(topics["specialnames"][:12000], encoding="utf-8")
    return path


def run(output: Path, text: Path, method: str, **options: Any) -> Result:
    """One training, in this process."""
    chosen = TINY | {"text": (str(text),), "output": str(output), "method": (method,)} | options
    planned = prepare(TrainOptions(**chosen))
    result = run_training(start(planned[0]), "cpu", quiet=True)
    assert result is not None
    return result


def weights(directory: Path) -> dict[str, Tensor]:
    """What the training ended with, its optimizer's state included."""
    last = last_checkpoint(directory / "checkpoints-factorized") or last_checkpoint(directory / "checkpoints")
    assert last is not None
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    found = {f"{place}.{name}": value for place, entry in state.items() for name, value in entry.items()}
    return found | inrank.layers.pretrained.read_weights(directory / "model")


def assert_same(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    same = ("ranks", "perplexity", "parameters", "factorization", "settings")
    assert [getattr(Result.read(one), n) for n in same] == [getattr(Result.read(other), n) for n in same]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the end of a step, before its checkpoint."""
    original = ProgressLine.on_step_end

    def on_step_end(self: ProgressLine, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLine, "on_step_end", on_step_end)


def interrupt_in(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in place of a function."""

    def interrupt(*args: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupt)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """All methods, uninterrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("trainings") / "whole"
    for method in METHODS:
        run(output, text, method)
    torch.set_num_threads(threads)
    return output


def result(output: Path, method: str) -> Result:
    return Result.read(output / f"{method}-seed-0")


def test_every_method_leaves_a_run_a_model_and_results(whole: Path) -> None:
    runs = {summary.path.name: summary for summary in list_runs(whole)}
    assert set(runs) == {f"{method}-seed-0" for method in METHODS}
    for name, summary in runs.items():
        assert summary.status == "finished"
        assert summary.step == STEPS
        assert summary.loss is not None
        for entry in ("options.json", "results.json", "model/config.json", "model/tokenizer.json"):
            assert (whole / name / entry).is_file()


def test_saved_model_is_the_one_that_was_measured(whole: Path) -> None:
    for method in METHODS:
        directory = whole / f"{method}-seed-0"
        kind: Any = GPT2LMHeadModel if method == "baseline" else inrank
        model = kind.from_pretrained(directory / "model").eval()
        corpus = open_corpus(whole / Settings.read(directory).corpus)
        loss = mean_loss(model, corpus.test_windows(16), 2)
        assert math.exp(loss) == pytest.approx(result(whole, method).perplexity, rel=1e-9)


def test_perplexity_is_that_of_each_token_predicted_once() -> None:
    torch.manual_seed(0)
    model = build(parse_size("1x16"), 300, 8).double()
    tokens = torch.randint(300, (33,))
    windows = torch.stack([tokens[first : first + 9] for first in (0, 8, 16, 24)])
    model.eval()
    with torch.no_grad():
        losses = [
            float(cross_entropy(model(input_ids=tokens[None, first : place + 1]).logits[0, -1], tokens[place + 1]))
            for first in (0, 8, 16, 24)
            for place in range(first, first + 8)
        ]
    assert len(losses) == 32
    model.train()
    assert mean_loss(model, windows, 3) == pytest.approx(np.mean(losses), rel=1e-6)  # logits are taken in float32
    assert model.training


def test_methods_are_what_they_are_called(whole: Path) -> None:
    results = {method: result(whole, method) for method in METHODS}
    assert results["baseline"].rank == 16
    assert results["baseline"].null_rank is None
    layers = {"transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"}
    for found in results.values():
        assert set(found.ranks) == layers
    for method in ("inrank-efficient", "reference"):
        report = results[method].factorization
        assert report is not None
        assert report["step"] == PHASE
        assert {layer["name"]: layer["rank"] for layer in report["layers"]} == results[method].ranks
        assert results[method].parameters < results["baseline"].parameters
    dense_first = results["dense-then-low-rank"]
    assert dense_first.factorization is not None
    assert dense_first.factorization["step"] == STEPS // 4
    assert dense_first.null_rank is None
    saved = results["baseline"].parameters - dense_first.parameters
    dense = 2 * 16 * 64
    assert 0.55 * dense <= saved < 0.55 * dense + 80  # a rank costs 80 parameters
    assert results["fixed-rank"].ranks == results["inrank-efficient"].ranks
    assert results["fixed-rank"].parameters == results["inrank-efficient"].parameters
    assert results["inrank"].parameters > results["baseline"].parameters  # W0 and U V
    for found in results.values():
        assert found.model_size == 4 * found.parameters
        assert found.runtime > 0
        assert found.peak_memory > 1e8
    # the same data in the same order, from the same weights: the first losses differ by little
    first = [float(open_run(whole / f"{m}-seed-0").scalars.query("name == 'loss'")["value"].iloc[0]) for m in METHODS]
    assert max(first) - min(first) < 0.2


def test_factorization_is_an_event_of_the_run(whole: Path) -> None:
    events = open_run(whole / "inrank-efficient-seed-0").events
    found = events[events["kind"] == "factorized"]
    assert found["step"].tolist() == [PHASE]
    assert "2 layers to plain U V of rank" in found["message"].iloc[0]
    assert open_run(whole / "baseline-seed-0").events.query("kind == 'factorized'").empty


def test_reference_checks_by_calls_of_forward() -> None:
    settings = Settings(**dict.fromkeys(Settings.__dataclass_fields__))  # type: ignore[arg-type]
    for every, accumulate, steps in ((25, 1, 25), (25, 4, 6), (25, 64, 1), (100, 8, 12)):
        chosen = replace(settings, method="reference", every=every, accumulate=accumulate)
        assert chosen.steps_between_checks == steps
        assert replace(chosen, method="inrank").steps_between_checks == every


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("baseline", 7),
        ("dense-then-low-rank", 2),
        ("dense-then-low-rank", 3),
        ("dense-then-low-rank", 10),
        ("inrank", 11),
        ("inrank-efficient", 3),
        ("inrank-efficient", PHASE),
        ("inrank-efficient", 6),
        ("inrank-efficient", 10),
        ("reference", 9),
        ("reference", 5),
        ("fixed-rank", 7),
    ],
)
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(
    method: str, step: int, whole: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {"rank": "3"} if method == "fixed-rank" else {}
    if ranks:
        run(tmp_path / "whole", text, method, **ranks)
        whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, text, method, **ranks)
    directory = tmp_path / f"{method}-seed-0"
    assert open_run(directory).status == "interrupted"
    torch.manual_seed(99)  # whatever the process did before must not matter
    run(tmp_path, text, method, resume=True, **ranks)
    assert_same(directory, whole / f"{method}-seed-0")
    logged = open_run(directory)
    assert logged.status == "finished"
    assert not logged.problems


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (training, "_factorize_checkpoint"),
        (training, "factorize"),
        (training, "write_factorized"),
        (os, "rename"),
    ],
    ids=["before it", "in it", "before it is written", "before it is moved in"],
)
def test_interrupted_at_t_and_resumed_is_bit_identical_to_uninterrupted(
    place: Any, name: str, whole: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(TrainOptions(**TINY, text=(str(text),), output=str(tmp_path), method=("inrank-efficient",)))
    with monkeypatch.context() as patch:
        interrupt_in(place, name, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, text, "inrank-efficient")
    assert last_checkpoint(tmp_path / "inrank-efficient-seed-0/checkpoints-factorized") is None
    run(tmp_path, text, "inrank-efficient", resume=True)
    assert_same(tmp_path / "inrank-efficient-seed-0", whole / "inrank-efficient-seed-0")


def test_checkpoint_that_was_cut_short_is_not_taken_up(
    whole: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(11, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, text, "inrank")
    folder = tmp_path / "inrank-seed-0/checkpoints"
    (folder / "checkpoint-8" / MARK_FILE).unlink()
    (folder / "checkpoint-8/optimizer.pt").write_bytes(b"half of it")
    found = last_checkpoint(folder)
    assert found is not None
    assert found.name == "checkpoint-4"
    run(tmp_path, text, "inrank", resume=True)
    assert_same(tmp_path / "inrank-seed-0", whole / "inrank-seed-0")


def test_runtime_adds_up_over_interruptions(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(10, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, text, "baseline")
    directory = tmp_path / "baseline-seed-0"
    checkpoint = last_checkpoint(directory / "checkpoints")
    assert checkpoint is not None
    content = json.loads((checkpoint / MARK_FILE).read_text())
    assert 0 < content["seconds"] < 60
    (checkpoint / MARK_FILE).write_text(json.dumps({"seconds": 1000.0, "peak_memory": 10**15}))
    found = run(tmp_path, text, "baseline", resume=True)
    assert 1000 < found.runtime < 1060
    assert found.peak_memory == 10**15
    assert read_progress(last_checkpoint(directory / "checkpoints")).seconds == found.runtime


def test_resumption_keeps_its_options_and_says_what_differs(whole: Path, text: Path, tmp_path: Path) -> None:
    output = shutil.copytree(whole, tmp_path / "copy")
    given = TINY | {"text": (str(text),), "output": str(output), "resume": True}
    with pytest.raises(OptionError, match=r"was started with --batch-size 2 \(now 4\), --lr 0\.01 \(now 0\.5\)"):
        prepare(TrainOptions(**given | {"lr": 0.5, "batch_size": 4}))
    text.with_name("other.txt").write_text(topics["assignment"][:9000])
    with pytest.raises(OptionError, match="was started with the text tokens-"):
        prepare(TrainOptions(**given | {"text": (str(text.with_name("other.txt")),)}))
    assert len(list(output.glob("tokens-*"))) == 1


def test_directory_that_holds_a_training_is_refused(whole: Path, text: Path, tmp_path: Path) -> None:
    output = shutil.copytree(whole, tmp_path / "copy")
    given = TINY | {"text": (str(text),), "output": str(output)}
    with pytest.raises(OptionError, match="holds a training already: go on with it by --resume"):
        prepare(TrainOptions(**given))
    (output / "inrank-seed-0/thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"will not be deleted: it holds 'thesis\.txt'"):
        prepare(TrainOptions(**given, overwrite=True))
    assert (output / "baseline-seed-0/results.json").exists()
    (output / "inrank-seed-0/thesis.txt").unlink()
    prepare(TrainOptions(**given, overwrite=True, method=("baseline",)))
    assert not list((output / "baseline-seed-0").iterdir())
    assert (output / "inrank-seed-0/results.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="--output must be a directory"):
        prepare(TrainOptions(**given | {"output": str(tmp_path / "file")}))
    (tmp_path / "mine/baseline-seed-0").mkdir(parents=True)
    (tmp_path / "mine/baseline-seed-0/notes").write_text("mine")
    with pytest.raises(OptionError, match="holds 'notes' and no training of ours"):
        prepare(TrainOptions(**given | {"output": str(tmp_path / "mine")}, overwrite=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "4y3"], r"--size must be small, medium, large or LAYERSxWIDTH"),
        (["--method", "dense"], r"invalid choice: 'dense'"),
        (["--method", "inrank", "inrank"], r"--method must name each of its values once"),
        (["--seed", "-1"], r"--seed must be at least 0, got -1"),
        (["--steps", "0"], r"--steps must be at least 1, got 0"),
        (["--steps", "5", "--epochs", "1"], r"give --steps or --epochs"),
        (["--epochs", "nan"], r"--epochs must be above 0 and finite"),
        (["--lr", "inf"], r"--lr must be above 0 and finite"),
        (["--threshold", "1.5"], r"--threshold must be above 0 and at most 1"),
        (["--warmup", "1"], r"--warmup must be at least 0 and below 1"),
        (["--rank", "17", "--size", "1x16"], r"--rank must be null or in 1\.\.16"),
        (["--initial-rank", "14", "--size", "1x16"], r"--initial-rank must be in 1\.\.12"),
        (["--buffer-rank", "17", "--size", "1x16"], r"--buffer-rank must be in 1\.\.16"),
        (["--resume", "--overwrite"], r"give one of them"),
        (["--vocabulary", "400", "--tokenizer", "x"], r"--tokenizer brings its own vocabulary"),
        (["--text", "no-such-file"], r"--text must name a readable file"),
        (["--test-text", "no-such-file"], r"--test-text must name a readable file"),
        (["--text", "wikitext-103", "no-such-file"], r"--text takes files or wikitext-103"),
        (["--tokenizer", "no-such-file"], r"--tokenizer must be a tokenizer\.json"),
        (["--device", "abacus"], r"--device must be auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], r"--device must be a device of this machine"),
        (["--device", "cpu", "--precision", "fp16"], r"fp16 needs a CUDA device"),
        (["--phase-steps", "400"], r"--phase-steps must be below the 400 steps"),
        (["--factorize-at", "0"], r"--factorize-at must be a share in \(0, 1\) or a step, got 0"),
        (["--factorize-at", "2.5"], r"--factorize-at must be a share in \(0, 1\) or a step, got 2\.5"),
        (["--factorize-at", "400"], r"--factorize-at must be below the 400 steps"),
        (["--budget", "1.5"], r"--budget must be a share in \(0, 1\]"),
        (["--budget", "0.001"], r"--budget 0\.001 is too small"),
        (["--factor-lr", "-1"], r"--factor-lr must be above 0"),
        (["--allocation", "fair"], r"invalid choice: 'fair'"),
        (["--batch-size", "999999"], r"at least 999999 blocks of --context 128 tokens"),
        (["--context", "99999999"], r"blocks of --context 99999999 tokens"),
    ],
)
def test_bad_input_gives_one_line_and_touches_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    try:
        code: Any = cli.main(["train", "--output", str(output), *arguments])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    assert re.search(message, printed.err), printed.err
    assert printed.out == ""
    assert not output.exists()


def test_text_comes_from_files_of_either_kind_and_a_tenth_is_held_out(text: Path, tmp_path: Path) -> None:
    content = text.read_text()
    texts = read_texts([str(text)], None)
    assert texts.train + texts.test == content
    assert len(texts.test) == pytest.approx(len(content) / 10, abs=1)
    pq.write_table(pa.table({"text": ["one\n", "", "two", None, "three\n"]}), tmp_path / "rows.parquet")
    texts = read_texts([str(text), str(tmp_path / "rows.parquet")], str(tmp_path / "rows.parquet"))
    assert texts.train == content + "\none\ntwo\nthree\n"
    assert texts.test == "one\ntwo\nthree\n"
    assert read_texts([], str(text)).test == content
    big = tmp_path / "big.txt"
    big.write_text("word " * 1_000_000)  # beyond what the demo reads
    assert len(read_texts([str(big)], str(text)).train) == 5_000_000


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"content": ["a"]}, "with a column 'text'"),
        ({"text": [1, 2]}, "the column 'text' must hold text"),
        ({"text": ["", None]}, "there is no text in it"),
    ],
)
def test_parquet_without_text_is_refused(table: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    with pytest.raises(DemoError, match=message):
        read_texts([str(tmp_path / "rows.parquet")], None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DemoError, match="must be a parquet file"):
        read_texts([str(tmp_path / "rows.parquet")], None)


def test_wikitext_comes_through_datasets_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        error: Exception | None = None

        @classmethod
        def load_dataset(cls, path: str, name: str) -> dict[str, dict[str, list[str]]]:
            if cls.error:
                raise cls.error
            assert (path, name) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
            return {"train": {"text": ["", " = Title = \n", " words \n"]}, "test": {"text": [" test \n"]}}

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    texts = read_texts(["wikitext-103"], None)
    assert (texts.train, texts.test) == (" = Title = \n words \n", " test \n")
    Datasets.error = ConnectionError("no way there\nlong story")
    with pytest.raises(DemoError, match=r"could not be loaded \(no way there\); give the text as files"):
        read_texts(["wikitext-103"], None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DemoError, match="pip install datasets"):
        read_texts(["wikitext-103"], None)


def test_tokens_are_the_text_and_are_made_once(text: Path, tmp_path: Path) -> None:
    given = TINY | {"text": (str(text),), "output": str(tmp_path)}
    planned = prepare(TrainOptions(**given))
    corpus = open_corpus(tmp_path / planned[0].settings.corpus)
    tokenizer = Tokenizer.from_file(str(corpus.directory / "tokenizer.json"))
    assert tokenizer.decode(corpus.train.tolist()) + tokenizer.decode(corpus.test.tolist()) == text.read_text()
    assert corpus.vocabulary == planned[0].settings.vocabulary <= 300
    before = (corpus.directory / "train.npy").stat().st_mtime_ns
    prepare(TrainOptions(**given | {"method": ("inrank",), "seed": (4,)}))
    assert (corpus.directory / "train.npy").stat().st_mtime_ns == before
    again = prepare(TrainOptions(**given | {"tokenizer": str(corpus.directory), "vocabulary": None}))
    assert np.array_equal(open_corpus(tmp_path / again[0].settings.corpus).train, corpus.train)


def test_defaults_of_the_papers_sizes_are_the_papers(text: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(text.read_text() * 40)
    for name, lr, batch, accumulate in (("small", 6e-4, 8, 64), ("medium", 1.5e-4, 4, 128), ("large", 1.5e-4, 2, 256)):
        options = TrainOptions(
            size=name, text=(str(long),), output=str(tmp_path / name), quiet=True, method=("baseline",), device="cpu"
        )
        found = prepare(options)[0].settings
        assert (found.lr, found.batch_size, found.accumulate) == (lr, batch, accumulate)
        assert (found.vocabulary, found.context, found.buffer_rank, found.effective_batch) == (50257, 1024, 100, 512)
        assert (found.weight_decay, found.warmup, found.threshold, found.initial_rank) == (0.1, 0.01, 0.9, 2)
        assert (found.steps, found.phase_steps, found.precision) == (100, 1, "fp32")  # one step an epoch: a short text


def test_compare_prints_the_table_of_what_lies_below(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(whole.parent), str(whole), "--csv", str(tmp_path / "table.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)
    assert lines[1 + len(METHODS)] == ""
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert [float(row.split(",")[1]) for row in rows[1:]] == [result(whole, method).perplexity for method in METHODS]
    assert cli.main(["compare", str(tmp_path)]) == 2
    assert "no finished training in" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "is not a directory" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(OptionError, match="cannot be read"):
        find_results([tmp_path])


def command(*arguments: object, torchrun: int = 0) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)] if torchrun else []
    return [sys.executable, *launcher, "-m", "inrank", *map(str, arguments)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_all_methods_end_with_the_table(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = subprocess.run(
        command("train", *FLAGS, "--text", text, "--output", output),
        capture_output=True, text=True, env=ENVIRONMENT, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("method ") :].splitlines()
    assert [line.split()[0] for line in table[1 : 1 + len(METHODS)]] == list(METHODS)
    assert f"inrank-monitor dashboard {output}" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert {summary.path.name for summary in list_runs(output)} == {f"{method}-seed-0" for method in METHODS}
    again = subprocess.run(
        command("train", "--output", output, "--resume", "--quiet"),
        capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (
        again.stdout.splitlines()[: 1 + len(METHODS)] == table[: 1 + len(METHODS)]
    )  # nothing was trained a second time


@pytest.mark.parametrize("whom", ["the launcher", "its whole group, as a terminal does"])
def test_interrupt_ends_the_training_and_says_how_to_go_on(whom: str, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    long = [*FLAGS, "--checkpoint-every", "20"]
    long[long.index("--steps") + 1] = "100000"
    process = subprocess.Popen(
        command("train", *long, "--text", text, "--output", output, "--method", "inrank"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
        # under a shell's background job SIGINT is ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while last_checkpoint(output / "inrank-seed-0/checkpoints") is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)  # another process's progress: there is nothing else to wait for
    if whom == "the launcher":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(rf"Go on with: \S*inrank train --output {re.escape(str(output))} --resume$", errors, re.MULTILINE)
    assert "Traceback" not in errors
    assert open_run(output / "inrank-seed-0").status == "interrupted"  # the lock is free: nobody trains any more


def test_two_processes_train_together_and_come_to_the_same_each_time(text: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "whole", tmp_path / "cut"]
    for output in outputs:
        done = subprocess.run(
            command("train", *FLAGS, "--text", text, "--output", output, "--method", "inrank-efficient", torchrun=2),
            capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = [Result.read(output / "inrank-efficient-seed-0") for output in outputs]
    assert found[0].settings["processes"] == 2
    assert max(found[0].ranks.values()) > 2
    assert_same(*(output / "inrank-efficient-seed-0" for output in outputs))
    last = last_checkpoint(outputs[0] / "inrank-efficient-seed-0/checkpoints-factorized")
    assert last is not None
    assert sorted(path.name for path in last.glob("rng_state*")) == ["rng_state_0.pth", "rng_state_1.pth"]
    refused = subprocess.run(
        command("train", *FLAGS, "--text", text, "--output", outputs[0], torchrun=2),
        capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert refused.stderr.count("inrank train: under torchrun give one --method and one --seed at a time") == 1
