"""Temporary folders: they go with who made them, and what a kill left goes with the next one."""

import gc
import os
import tempfile
import time
from pathlib import Path

import pytest
from chiasm.datasets import temporary
from chiasm.datasets.temporary import TemporaryFolder

from .workers import start


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_as_long_as_somebody_refers_to_it(place):
    folder = TemporaryFolder("chiasm-test-")
    (folder.path / "within").write_text("something")
    assert folder.path.parent == place
    del folder
    gc.collect()
    assert not list(place.iterdir())


def keep(place: Path) -> None:
    """Make a folder, and do not end."""
    tempfile.tempdir = str(place)
    folder = TemporaryFolder("chiasm-test-")
    (folder.path / "within").write_text("something")
    time.sleep(300)


def test_what_a_killed_process_left_goes_with_the_next_and_what_is_in_use_stays(place, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(temporary, "_FRESH", -1.0)
    (process,) = start(keep, place, said=tmp_path_factory.mktemp("said"))
    # It imports packages with temporary folders of their own.
    while not (kept := list(place.glob("chiasm-test-*/within"))):
        time.sleep(0.01)
    (left,) = (one.parent for one in kept)
    other = place / "of-something-else"
    other.mkdir()
    first = TemporaryFolder("chiasm-test-")
    assert left.exists()
    process.kill()
    process.join()
    second = TemporaryFolder("chiasm-test-")
    assert not left.exists()
    assert {first.path, second.path, other} <= set(place.iterdir())


def test_a_folder_that_was_just_made_stays_since_it_may_not_be_locked_yet(place):
    fresh, old = place / "chiasm-test-fresh", place / "chiasm-test-old"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (time.time() - 61, time.time() - 61))
    made = TemporaryFolder("chiasm-test-")
    assert {fresh, made.path} == set(place.iterdir())


def test_where_there_are_no_locks_a_folder_is_made_all_the_same(place, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(temporary.fcntl, "flock", refuse)
    folder = TemporaryFolder("chiasm-test-")
    assert folder.path.is_dir()
    del folder
    gc.collect()
    assert not list(place.iterdir())
