"""Tags and notes beside a run: kept whole, never in its log, and no file of somebody else's is lost or believed."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from helpers.run_files import info, measurement, scalar, write_run

from inrank_monitor import open_run
from inrank_monitor.runs import (
    LOCK_FILE,
    NOTES_FILE,
    RUN_FILE,
    Lock,
    RunLog,
    RunNotes,
    SharedRun,
    is_found,
    read_notes,
    write_json,
    write_notes,
)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_notes_come_back_and_the_log_is_as_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = files(run)
    written = write_notes(run, [" AdamW ", "größer", "AdamW", ""], "two\nlines 🙂 ")
    assert written == read_notes(run) == RunNotes(("AdamW", "größer"), "two\nlines 🙂")
    assert {name: content for name, content in files(run).items() if name != NOTES_FILE} == before
    summary = open_run(run).summary()
    assert summary.notes == written
    assert open_run(run).problems == []
    assert write_notes(run) == RunNotes()
    assert files(run) == before


def test_a_run_that_is_being_written_can_be_annotated(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    write_json(directory / RUN_FILE, info(ended=None))
    lock, log = Lock(directory), RunLog(directory, 0)
    log.append("measurements", measurement(1))
    reader = SharedRun(directory)
    write_notes(directory, ["live"], "so far so good")
    log.append("measurements", measurement(2))
    log.append("scalars", scalar(2))
    assert reader.update(max_age=0)
    state = reader.tables()
    assert (state.status, state.steps, state.problems) == ("live", [1, 2], [])
    assert reader.summary().notes.tags == ("live",)
    log.close()
    lock.release()


def test_notes_do_not_make_a_silent_run_live(tmp_path: Path) -> None:
    """Without locks a run is live while its files are young."""
    run = write_run(tmp_path / "run", ended=None)
    assert not (run / LOCK_FILE).exists()
    for file in run.iterdir():
        os.utime(file, (1e9, 1e9))
    write_notes(run, ["late"])
    assert open_run(run).status == "interrupted"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"tags": ["a"', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "holds no tags"),
        (b"null", "holds no tags"),
        (b'{"cells": [], "nbformat": 4}', "holds no tags"),
        (b'{"tags": "a", "notes": ""}', "holds no tags"),
        (b'{"tags": [1], "notes": ""}', "holds no tags"),
        (b'{"tags": [], "notes": null}', "holds no tags"),
        (b" " * 1_000_001, "too much"),
    ],
)
def test_a_file_that_is_torn_or_foreign_is_said_and_left(tmp_path: Path, content: bytes, said: str) -> None:
    run = write_run(tmp_path / "run")
    (run / NOTES_FILE).write_bytes(content)
    notes = open_run(run).summary().notes
    assert (notes.tags, notes.text) == ((), "")
    assert said in str(notes.problem)
    with pytest.raises(ValueError, match="left as it is"):
        write_notes(run, ["mine"])
    assert (run / NOTES_FILE).read_bytes() == content


def test_what_is_no_plain_file_is_neither_opened_nor_followed(tmp_path: Path) -> None:
    run, outside = write_run(tmp_path / "run"), tmp_path / "outside.json"
    outside.write_text('{"tags": ["theirs"], "notes": ""}')
    makers = (os.mkfifo, os.mkdir, lambda path: os.symlink(outside, path))
    for make, remove in zip(makers, (os.unlink, os.rmdir, os.unlink), strict=True):
        make(run / NOTES_FILE)
        assert "not a plain file" in str(read_notes(run).problem)
        with pytest.raises(ValueError, match="not a plain file"):
            write_notes(run, ["mine"])
        remove(run / NOTES_FILE)
    assert json.loads(outside.read_text())["tags"] == ["theirs"]


@pytest.mark.parametrize("content", [b"", b"\0" * 64])
def test_a_file_that_a_crash_has_emptied_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NOTES_FILE).write_bytes(content)
    assert read_notes(tmp_path) == RunNotes()
    assert write_notes(tmp_path, ["again"]).tags == ("again",)


@pytest.mark.parametrize("tag", ["a,b", "a\nb", "a\tb", "\x1b[31m", "x" * 61])
def test_what_can_be_no_tag_is_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ValueError, match="a tag must have"):
        write_notes(tmp_path, [tag])
    assert not list(tmp_path.iterdir())


def test_the_longest_notes_can_be_read_back_and_longer_ones_are_refused(tmp_path: Path) -> None:
    for letter in ("🙂", '"', "\x01"):
        assert write_notes(tmp_path, [], f"x{letter * 99_998}x") == read_notes(tmp_path)
    with pytest.raises(ValueError, match="at most 100,000 letters, got 100,001"):
        write_notes(tmp_path, [], "x" * 100_001)


def test_a_disk_that_takes_no_more_leaves_the_earlier_notes(tmp_path: Path) -> None:
    write_notes(tmp_path, ["earlier"])
    before, limits = files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_notes(tmp_path, [], "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(tmp_path) == before


def test_many_may_write_at_once_and_a_reader_sees_whole_notes(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for _ in range(30):
            write_notes(tmp_path, [name], name * 1000)

    write("a")
    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        notes = read_notes(tmp_path)
        assert notes.problem is None
        assert notes.text == notes.tags[0] * 1000
    assert [path.name for path in tmp_path.iterdir()] == [NOTES_FILE]


def test_all_words_must_be_somewhere_in_name_tags_or_notes() -> None:
    notes = RunNotes(("AdamW", "warm-up"), "Straße\nsecond line")
    for words in ("", "  ", "adamw", "UP line seed", "STRASSE"):
        assert is_found(words, "sweep/seed-0", notes)
    for words in ("sgd", "adamw sgd", "seed-1"):
        assert not is_found(words, "sweep/seed-0", notes)
