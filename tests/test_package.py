from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import inrank_monitor

ROOT = Path(__file__).parent.parent
ALLOWED = {"torch", "numpy", "pyarrow", "safetensors", "jaxtyping"}
HEAVY = ("pandas", "plotly", "tensorboard", "tqdm", "streamlit", "transformers", "tokenizers", "accelerate", "scipy")


def test_import_takes_nothing_heavy_along() -> None:
    code = f"import sys, inrank_monitor; print([name for name in {HEAVY} if name in sys.modules])"
    # tqdm and its like may come with torch itself: what counts is what we add
    bare = "import sys, torch, pyarrow, safetensors, jaxtyping; " + code.replace("inrank_monitor", "os")
    found, without_us = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
        for text in (code, bare)
    )
    assert found == without_us


def test_reading_imports_no_torch() -> None:
    code = "import inrank_monitor.run_log, inrank_monitor.segment"
    files = [
        ROOT / "inrank_monitor" / f"{name}.py" for name in ("run_log", "segment", "run", "rank_metrics", "null_model")
    ]
    assert not [file for file in files if re.search(r"^(import|from) torch", file.read_text(), re.MULTILINE)], code


def test_public_names_exist() -> None:
    for name in inrank_monitor.__all__:
        assert getattr(inrank_monitor, name) is not None


def test_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert inrank_monitor.__version__ == project["version"]


def test_every_requirement_is_in_the_tested_set() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = set(re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    tested = {name.lower().replace("_", "-") for name in tested}
    wanted = project["dependencies"] + [entry for extra in project["optional-dependencies"].values() for entry in extra]
    names = {re.split(r"[\[>=<;]", entry)[0].strip().lower() for entry in wanted} - {"inrank-monitor"}
    assert names <= tested
