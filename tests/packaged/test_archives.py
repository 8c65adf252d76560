"""What `make dist` has built: nothing of the packages is missing, nothing else is in them."""

from __future__ import annotations

import os
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[2]
DIST = Path(os.environ.get("INRANK_DIST", "dist"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("INRANK_DIST" not in os.environ, reason="`make dist` builds what these look at"),
]


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


@pytest.fixture(scope="module")
def wheel() -> Iterator[zipfile.ZipFile]:
    (path,) = DIST.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def sdist() -> Iterator[tarfile.TarFile]:
    (path,) = DIST.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        yield archive


def files(folder: str) -> set[str]:
    """Every file of a folder of the checkout. Not git's list: what .gitignore swallows would be missing there, too."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_holds_the_packages_and_the_dashboard_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    shown = {name.replace("dashboard", "inrank_monitor/_dashboard", 1) for name in files("dashboard")}
    built = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert built == files("inrank_monitor") | files("inrank") | shown
    assert built >= {
        "inrank_monitor/py.typed",
        "inrank/py.typed",
        "inrank_monitor/_dashboard/streamlit_app.py",
        "inrank_monitor/_dashboard/.streamlit/config.toml",
        "inrank_monitor/_dashboard/views/start.py",
    }


def test_every_module_in_the_wheel_is_the_checkout_s(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        if ".dist-info/" not in name:
            source = ROOT / name.replace("inrank_monitor/_dashboard", "dashboard", 1)
            assert wheel.read(name) == source.read_bytes(), name


def test_the_metadata_is_valid_and_says_what_the_project_says(
    wheel: zipfile.ZipFile, project: dict[str, object]
) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    found = Metadata.from_email(wheel.read(name), validate=True)
    assert (found.name, str(found.version)) == (project["name"], project["version"])
    assert str(found.requires_python) == project["requires-python"]
    assert found.license_expression == project["license"]
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(found.provides_extra or ()) == set(project["optional-dependencies"])  # type: ignore[call-overload]
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_both_commands_come_with_the_wheel(wheel: zipfile.ZipFile, project: dict[str, object]) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    text = wheel.read(name).decode()
    for command, place in dict(project["scripts"]).items():  # type: ignore[call-overload]
        assert f"{command} = {place}" in text


def test_the_sdist_holds_what_builds_and_tests_the_project(sdist: tarfile.TarFile) -> None:
    names = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("inrank_monitor", "inrank", "dashboard", "tests", "benchmarks", "docs", ".ci")
    assert set().union(*map(files, folders)) <= names
    alone = ("pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE")
    assert {*alone, "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"} <= names
    assert not any(name.startswith((".venv", "runs", "dist", "shared")) for name in names)
