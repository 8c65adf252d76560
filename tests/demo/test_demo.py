from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import threading
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm import tqdm

from inrank_monitor import open_run
from inrank_monitor.demo import loop
from inrank_monitor.demo.options import DemoOptions, add_arguments, flag_of
from inrank_monitor.demo.text import MAX_TEXT_BYTES, DemoError, Text, read_text, tokenize

TINY = ["--width", "32", "--layers", "1", "--context", "32", "--batch-size", "2", "--vocabulary", "300"]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(topics["specialnames"][:12000], encoding="utf-8")
    return path


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def run(out: Path, text: Path, *more: object) -> int:
    return loop.main(parse("--output", out, "--text", text, *TINY, *more))


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt", weights_only=True)  # type: ignore[no-any-return]


def assert_same(left: Any, right: Any) -> None:
    """Equal to the bit, whatever is nested in what."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


def interrupt_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the demo computes the loss of a step."""
    original, calls = loop.cross_entropy, iter(range(1, 10**6))

    def cross_entropy(*args: Any, **keywords: Any) -> torch.Tensor:
        if next(calls) == step:
            raise KeyboardInterrupt
        return original(*args, **keywords)

    monkeypatch.setattr(loop, "cross_entropy", cross_entropy)


def test_demo_trains_logs_and_says_how_to_open_the_run(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "runs/a", text, "--steps", 8, "--every", 2, "--report-steps") == 0
    printed = capsys.readouterr()
    logged = open_run(tmp_path / "runs/a")
    assert logged.status == "finished"
    assert list(logged.measurements["step"].unique()) == [2, 4, 6, 8]
    assert set(logged.scalars["name"]) >= {
        "loss",
        "lr",
        "validation_loss",
        "tracker_seconds",
        "tracker_overhead",
    }
    assert logged.buffer_rank == 4
    assert [line for line in printed.out.splitlines() if line.startswith("snapshot")] == [
        f"snapshot {step}" for step in (2, 4, 6, 8)
    ]
    for expected in (
        "transformer.h.0.mlp.c_fc ",
        "by loss",
        "perplexity",
        f"inrank-monitor dashboard {tmp_path / 'runs'}",
        f"tensorboard --logdir {tmp_path / 'runs/a/tensorboard'}",
    ):
        assert expected in printed.out
    assert "step 8/8" in printed.err  # no terminal, so lines in place of a bar
    assert (tmp_path / "runs/a/report.html").stat().st_size > 1000


def test_demo_learns(tmp_path: Path, text: Path) -> None:
    result = loop.run_demo(
        DemoOptions(
            output=str(tmp_path / "run"), text=str(text), width=32, layers=1, context=32, vocabulary=300,
            steps=40, learning_rate=1e-2, every=20, quiet=True,
        )
    )  # fmt: skip
    assert result.perplexity < 150  # 300 tokens, guessed blindly, have 300


def test_quiet_prints_nothing(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", text, "--steps", 2, "--quiet", "--no-tensorboard") == 0
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run/tensorboard").exists()


@pytest.mark.parametrize("stopped_before", [3, 8], ids=["before the first checkpoint", "after it"])
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(
    stopped_before: int,
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--steps", 12, "--every", 2, "--checkpoint-every", 5, "--quiet")
    assert run(tmp_path / "whole", text, *options) == 0
    with monkeypatch.context() as patch:
        interrupt_before(stopped_before, patch)
        assert run(tmp_path / "cut", text, *options) == 130
    assert f"--output {tmp_path / 'cut'} --resume" in capsys.readouterr().err
    assert open_run(tmp_path / "cut").status == "interrupted"
    torch.manual_seed(99)  # whatever the process did before must not matter
    assert loop.main(parse("--output", tmp_path / "cut", "--resume", "--quiet", "--checkpoint-every", 5)) == 0
    assert_same(checkpoint(tmp_path / "cut"), checkpoint(tmp_path / "whole"))
    assert_same_log(tmp_path / "cut", tmp_path / "whole")


def test_resuming_a_finished_run_trains_no_further(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", text, "--steps", 4) == 0
    first = capsys.readouterr().out.splitlines()
    before = (tmp_path / "run/run.json").read_bytes()
    assert loop.main(parse("--output", tmp_path / "run", "--resume")) == 0
    again = capsys.readouterr().out
    assert "Nothing is left to train" in again
    assert next(line for line in first if "perplexity" in line) in again
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_resuming_with_other_options_or_another_text_is_refused(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.txt"
    own.write_text(text.read_text())
    assert run(tmp_path / "run", own, "--steps", 2, "--quiet") == 0
    assert loop.main(parse("--output", tmp_path / "run", "--resume", "--lr", 0.5, "--width", 64)) == 2
    error = capsys.readouterr().err
    assert "--lr 0.001 (now 0.5)" in error
    assert "--width 32 (now 64)" in error
    own.write_text(text.read_text() + "more")
    assert loop.main(parse("--output", tmp_path / "run", "--resume")) == 2
    assert "has changed since" in capsys.readouterr().err


def test_a_directory_that_holds_a_run_is_refused_unless_overwritten(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(out, text, "--steps", 4, "--every", 2, "--quiet") == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(out, text, "--steps", 4) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in (str(out), "--resume", "--overwrite", "--output"))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert run(out, text, "--steps", 2, "--every", 1, "--quiet", "--overwrite") == 0
    assert list(open_run(out).measurements["step"].unique()) == [1, 2]


def test_overwrite_deletes_nothing_but_a_run(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    assert run(tmp_path / "home", text, "--overwrite") == 2
    assert "'thesis.txt' and no run" in capsys.readouterr().err
    assert run(tmp_path / "run", text, "--steps", 2, "--quiet") == 0
    (tmp_path / "run/thesis.txt").write_text("years of work")
    assert run(tmp_path / "run", text, "--overwrite") == 2
    assert "'thesis.txt', which is no part of a run" in capsys.readouterr().err
    assert open_run(tmp_path / "run").status == "finished"
    assert (tmp_path / "run/thesis.txt").exists()


def test_an_old_run_survives_bad_input_given_with_overwrite(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", text, "--steps", 2, "--quiet") == 0
    assert run(tmp_path / "run", tmp_path / "missing.txt", "--overwrite") == 2
    assert run(tmp_path / "run", text, "--overwrite", "--context", 5000) == 2
    assert run(tmp_path / "run", text, "--overwrite", "--device", "nonsense") == 2
    assert capsys.readouterr().err.count("inrank-monitor demo: ") == 3
    assert open_run(tmp_path / "run").status == "finished"


def test_a_run_that_another_process_writes_is_left_alone(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from inrank_monitor.runs.lock import Lock

    assert run(tmp_path / "run", text, "--steps", 2, "--quiet") == 0
    lock = Lock(tmp_path / "run")
    for how in ("--overwrite", "--resume"):
        assert run(tmp_path / "run", text, "--steps", 2, how) == 2
        assert "another process" in capsys.readouterr().err
    lock.release()
    assert open_run(tmp_path / "run").status == "finished"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b" \n\n ", "empty"),
        (b"too short", "got 2 and 1"),
        (b"\x89PNG\r\n\x1a\n" * 99, "UTF-8"),
        (b"text\0" * 999, "zero bytes"),
    ],
    ids=["missing", "empty", "blank", "short", "binary", "zero bytes"],
)
def test_a_text_that_will_not_do_gets_one_clear_line(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert run(tmp_path / "run", path) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("inrank-monitor demo: ")
    assert said in printed.err
    assert str(path) in printed.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", 0),
        ("--heads", 3),
        ("--vocabulary", 255),
        ("--lr", "nan"),
        ("--threshold", 1.5),
        ("--buffer-rank", 0),
        ("--every", -1),
        ("--seed", -1),
        ("--device", "nonsense"),
        ("--resume", "--overwrite"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_an_option_out_of_range_is_named(
    arguments: tuple[object, ...], tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", text, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(arguments[0]) in error
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_names_the_command_that_installs_it(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    assert run(tmp_path / "run", text) == 2
    assert "pip install 'inrank-monitor[gpt2]'" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_said_and_not_guessed_at(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", text, "--steps", 2, "--quiet") == 0
    path = tmp_path / "run/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert loop.main(parse("--output", tmp_path / "run", "--resume", "--quiet")) == 2
    assert "checkpoint.pt cannot be read" in capsys.readouterr().err


def test_every_option_has_a_flag_and_a_help_text() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args([])) == {}
    assert parser.format_help().count("(default: ") >= 14
    assert flag_of("learning_rate") == "--lr"


def test_default_heads_divide_the_width() -> None:
    for width in (1, 32, 64, 100, 200, 256, 768):
        assert width % DemoOptions(width=width).head_count == 0
    assert DemoOptions(width=256).head_count == 4


def test_default_text_holds_no_paragraph_twice() -> None:
    paragraphs = read_text(None).content.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))
    assert len(read_text(None).content) > 300_000


def test_a_long_text_is_read_as_far_as_it_is_needed_and_never_through_a_character(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"x" + "é".encode() * (MAX_TEXT_BYTES // 2 + 5))
    text = read_text(str(path))
    assert text.shortened
    assert len(text.content) == MAX_TEXT_BYTES // 2
    assert set(text.content[1:]) == {"é"}


def test_targets_are_the_inputs_one_token_on_and_the_order_is_the_seed_s() -> None:
    tokens = tokenize(Text("counting", " ".join(map(str, range(3000)))), 300, 16)
    inputs, targets = tokens.batch(4, 16, torch.Generator().manual_seed(1))
    again, _ = tokens.batch(4, 16, torch.Generator().manual_seed(1))
    assert torch.equal(inputs, again)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    inputs, targets = tokens.validation_windows(16)
    assert torch.equal(inputs.flatten(), tokens.validation[: inputs.numel()])
    assert torch.equal(targets.flatten(), tokens.validation[1 : inputs.numel() + 1])


def test_a_saved_tokenizer_gives_the_same_tokens() -> None:
    text = Text("counting", " ".join(map(str, range(3000))))
    tokens = tokenize(text, 300, 16)
    again = tokenize(text, 999, 16, tokens.tokenizer)
    assert torch.equal(tokens.train, again.train)
    assert again.vocabulary == tokens.vocabulary <= 300
    with pytest.raises(DemoError, match="more than --context 99999"):
        tokenize(text, 300, 99999)


# A killed run and its resumption see the same weights to the bit, and the log keeps its singular values in
# float32; 1e-5 leaves room for a BLAS that orders its sums differently from one call to the next.
RELATIVE = 1e-5


def assert_same_log(one: Path, other: Path) -> None:
    left, right = open_run(one), open_run(other)
    assert left.problems == right.problems == []
    assert left.status == right.status == "finished"
    pd.testing.assert_frame_equal(
        left.measurements.drop(columns="time"), right.measurements.drop(columns="time"), rtol=RELATIVE
    )
    for name in right.matrices.index:
        found, expected = left.singular_values(name), right.singular_values(name)
        assert list(found.index) == list(expected.index)
        largest = expected.to_numpy()[:, :1]
        assert np.all(np.abs(found.to_numpy() - expected.to_numpy()) <= RELATIVE * largest)
    logged = [
        run.scalars[~run.scalars["name"].str.startswith("tracker_")].drop(columns="time").reset_index(drop=True)
        for run in (left, right)
    ]
    pd.testing.assert_frame_equal(*logged, rtol=RELATIVE)


def _demo_process(arguments: list[str], printed: Path) -> None:
    """What a killed process runs: the demo up to the end of its training."""
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, which a killed process leaves behind
    torch.set_num_threads(1)  # threads of the process that this one was forked from do not exist here
    loop._ending = lambda *_: ""  # no report: the moments to hit are those of the training
    with printed.open("a", encoding="utf-8") as sys.stdout:
        sys.exit(loop.main(parse(*arguments)))


@pytest.mark.slow
@pytest.mark.usefixtures("own_forkserver")
def test_kill_at_random_moments(tmp_path: Path, text: Path) -> None:
    """Each run opens, keeps every snapshot reported, resumes, and ends with an uninterrupted run's log."""
    context = multiprocessing.get_context("forkserver")  # imports once, forks in milliseconds
    ours = ["inrank_monitor.demo.loop", "inrank_monitor.runs.run", "inrank_monitor.sinks.tensorboard"]
    theirs = ["pytest", "torch.utils.tensorboard", "tokenizers", "transformers.models.gpt2.modeling_gpt2"]
    context.set_forkserver_preload([*ours, *theirs])
    options = [*TINY, "--text", str(text), "--steps", "30", "--every", "2", "--checkpoint-every", "6"]

    def live(out: Path, seconds: float | None, *more: str, times: list[Any] | None = None) -> tuple[bool, int]:
        """Let the demo run for so long or to its end: was it killed, and how many snapshots did it report?

        `times` takes the seconds to the first report and to the end.
        """
        arguments = ["--output", str(out), *options, *more, "--report-steps", "--quiet"]
        printed = out.with_suffix(".txt")
        printed.write_text("")
        process = context.Process(target=_demo_process, args=(arguments, printed))
        began = time.perf_counter()
        process.start()
        while times is not None and process.is_alive() and not printed.stat().st_size:
            process.join(0.005)
        first = time.perf_counter() - began
        process.join(seconds)
        if times is not None:
            times.append((first, time.perf_counter() - began))
        process.kill()
        process.join()
        assert process.exitcode == 0 or (seconds is not None and process.exitcode == -9)
        reported = {int(line.removeprefix("snapshot ")) for line in printed.read_text().splitlines()}
        if reported or (out / "run.json").exists():
            assert reported <= set(open_run(out).measurements["step"])
        return process.exitcode == -9, len(reported)

    live(tmp_path / "warm-up", None)
    times: list[tuple[float, float]] = []
    live(tmp_path / "whole", None, times=times)
    first, life = times[0]
    randomness = random.Random(0)
    kills = [0, 0]  # before the first snapshot was reported, and after
    for number in range(150):
        out = tmp_path / f"run-{number}"
        resume: tuple[str, ...] = ()
        for _ in range(1 + number % 2):  # every other run is killed again while it takes up what was left
            span = (0, first) if kills[0] < kills[1] else (first, life)  # a busy machine would not meet one of the two
            killed, reported = live(out, randomness.uniform(*span), *resume)
            kills[reported > 0] += killed
            resume = ("--resume",)
        live(out, None, "--resume")
        assert_same_log(out, tmp_path / "whole")
        if sum(kills) >= 50 and min(kills) >= 10:
            break
    assert sum(kills) >= 50
    assert min(kills) >= 10
