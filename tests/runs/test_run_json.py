"""run.json cut, changed or of another version: the run opens fully, or is refused at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import edit, info, write_run

from inrank_monitor import list_runs, open_run
from inrank_monitor.runs.log import RUN_FILE, SCHEMA_VERSION, write_json


def use(directory: Path) -> None:
    """Ask a run for everything it offers."""
    run = open_run(directory)
    for _ in range(2):
        _ = run.status, run.problems, run.name, run.threshold, run.buffer_rank, run.definition
        _ = run.matrices, run.coverage, run.measurements, run.scalars, run.events, run.summary()
        for name in run.matrices.index[:2]:
            run.singular_values(name)
        run.refresh()


@pytest.mark.parametrize("path", [".", "missing"])
def test_a_directory_without_a_run_is_said_to_hold_none(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run.*run\.json"):
        open_run(tmp_path / path)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        open_run(tmp_path / "file")


def test_run_json_cut_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    path = directory / RUN_FILE
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"run\.json"):
            open_run(directory)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null", b"3", b'"run"', b"{}", b"[" * 100_000])
def test_run_json_that_is_no_description_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    directory = write_run(tmp_path / "run")
    (directory / RUN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        open_run(directory)
    assert list_runs(tmp_path) == []


def changed() -> list[tuple[str, Any]]:
    """run.json with each entry removed or of another type, down to the entries of its lists."""
    whole = info((0, None), (1, 2))
    found: list[tuple[str, Any]] = []

    def visit(path: list[str | int], value: Any) -> None:
        for what, other in [("removed", "REMOVED"), *((repr(o), o) for o in (None, [], {}, "x", 3, 1e400, [[]]))]:
            content = copy.deepcopy(whole)
            place = content
            for key in path[:-1]:
                place = place[key]
            if what == "removed":
                del place[path[-1]]
            else:
                place[path[-1]] = other
            found.append((f"{'.'.join(map(str, path))} {what}", content))
        for key in value if isinstance(value, dict) else range(min(len(value), 1)) if isinstance(value, list) else ():
            visit([*path, key], value[key])

    for key in whole:
        visit([key], whole[key])
    return found


def test_run_json_with_any_entry_gone_or_of_another_type_opens_fully_or_is_refused_at_once(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", range(1, 3))
    wrong = []
    for what, content in changed():
        write_json(directory / RUN_FILE, content)
        try:
            open_run(directory)
        except ValueError as error:
            if RUN_FILE not in str(error):
                wrong.append(f"{what}: the error does not name the file: {error}")
            continue
        except Exception as error:
            wrong.append(f"{what}: open_run raised {error!r}")
            continue
        try:
            use(directory)
            list_runs(tmp_path)
        except Exception as error:
            wrong.append(f"{what}: opened, but then {error!r}")
    assert not wrong, f"{len(wrong)} changes:\n" + "\n".join(wrong)


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    edit(directory, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(ValueError, match=r"newer version.*update inrank-monitor"):
        open_run(directory)


def test_entries_that_this_version_does_not_know_are_ignored(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    edit(directory, later={"what": "ever"}, schema_version=SCHEMA_VERSION)
    use(directory)
