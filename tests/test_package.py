from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import inrank_monitor

ROOT = Path(__file__).parents[1]
HEAVY = (
    "pandas",
    "plotly",
    "tensorboard",
    "tqdm",
    "streamlit",
    "transformers",
    "tokenizers",
    "accelerate",
    "scipy",
    "lightning",
    "peft",
    "wandb",
)


def loaded(statement: str, names: tuple[str, ...]) -> str:
    """Which of these modules a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print([name for name in {names} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_takes_nothing_heavy_along() -> None:
    # tqdm and its like may come with torch itself: what counts is what we add
    without_us = loaded("import torch, pyarrow, safetensors, jaxtyping", HEAVY)
    assert loaded("import inrank_monitor; inrank_monitor.attach", HEAVY) == without_us


def test_acting_needs_no_transformers_until_a_trainer_is_asked_for() -> None:
    without_us = loaded("import torch, pyarrow, safetensors, jaxtyping", HEAVY)
    assert loaded("import inrank; inrank.RankController", HEAVY) == without_us


def test_reading_imports_no_torch() -> None:
    assert loaded("import inrank_monitor.runs.run, inrank_monitor.report, inrank_monitor.cli", ("torch",)) == "[]\n"


def test_public_names_exist() -> None:
    for name in inrank_monitor.__all__:
        assert getattr(inrank_monitor, name) is not None


def test_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert inrank_monitor.__version__ == project["version"]


def test_citation_and_changelog_name_this_version() -> None:
    cited = dict(
        re.findall(r'^(version|date-released): "?([^"\n]+)"?$', (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    )
    released = re.findall(r"^## \[(\d[^]]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (inrank_monitor.__version__, cited["date-released"]) == released[0]
    assert cited["version"] == inrank_monitor.__version__


def test_every_requirement_is_in_the_tested_set() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = set(re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    tested = {name.lower().replace("_", "-") for name in tested}
    wanted = project["dependencies"] + [entry for extra in project["optional-dependencies"].values() for entry in extra]
    names = {re.split(r"[\[>=<;]", entry)[0].strip().lower() for entry in wanted} - {"inrank-monitor"}
    assert names <= tested
