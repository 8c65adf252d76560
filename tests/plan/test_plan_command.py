"""`inrank-monitor plan`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.active import gpt2
from helpers.training import run_script

from inrank_monitor.cli import main
from inrank_monitor.plan.models import planned_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_prints_a_plan_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    arguments = ["--shapes", "64x48:3,96x64", "--leading", "4", "--step-seconds", "0.5", "2", "--threads", "1"]
    assert main(["plan", *arguments, "--run", str(tmp_path / "runs" / "x"), "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "4 matrices" in text
    assert "leading=4" in text
    assert "Recommended: all singular values of all 4 matrices" in text
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["costs"].keys() == {"full", "4"}
    assert content["advice"]["fits"] is True
    assert content["costs"]["full"]["weights"] > 4 * (3 * 64 * 48 + 96 * 64)
    assert not (tmp_path / "runs").exists()


def test_the_run_is_named_after_the_folder_of_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my-model"
    gpt2(layers=2, architectures=["GPT2LMHeadModel"]).config.save_pretrained(folder)
    assert main(["plan", str(folder / "config.json"), "--leading", "2", "--include", "*.0.mlp.*"]) == 0
    text = capsys.readouterr().out
    assert "2 matrices" in text
    assert 'attach(model, optimizer, "runs/my-model")' in text


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "give a MODEL_CONFIG or --shapes"),
    "both": (["gpt2", "--shapes", "4x4"], "and not both"),
    "name": (["gpt5"], "gpt5 is no config.json"),
    "shapes": (["--shapes", "4096*11008"], "must be like 4096x11008:64"),
    "zero side": (["--shapes", "0x4"], "must be like"),
    "world size": (["gpt2", "--world-size", "0"], "--world-size must be at least 1"),
    "budget": (["gpt2", "--budget", "0"], r"--max-overhead must be in (0, 1]"),
    "budget is no number": (["gpt2", "--budget", "nan"], r"--max-overhead must be in (0, 1]"),
    "leading": (["gpt2", "--leading", "1"], "leading must be an integer of at least 2"),
    "dtype": (["--shapes", "4x4", "--dtype", "int8"], "dtype must be one of float32"),
    "device": (["--shapes", "4x4", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    "no device": (["--shapes", "4x4", "--device", "meta"], "computes nothing"),
    "bandwidth": (["--shapes", "4x4", "--bandwidth", "-1"], "--bandwidth must be above 0"),
    "pattern": (["--shapes", "4x4", "--include", "*mlp*"], "matches no matrix"),
    "json": (["--shapes", "4x4", "--json", "nowhere/plan.json"], "there is no directory nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[case]
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("inrank-monitor plan: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "config.json"), ('{"model_type": "nothing-like-it"}', "describes no model that can be planned for")],
)
def test_a_config_that_describes_no_model_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert main(["plan", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder that holds one"):
        planned_model(str(tmp_path))


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = capsys.readouterr().out
    assert "inrank-monitor plan llama-7b --world-size 8" in text


def test_asking_for_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom inrank_monitor.plan import options\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = run_script(code)
    assert done.returncode == 0, done.stderr
