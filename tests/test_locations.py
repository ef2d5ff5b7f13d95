"""Files of this machine and of stores are opened alike, bounded, and shown without secrets."""

import io
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from chiasm.datasets import locations
from chiasm.datasets.errors import InputError, UnreadableImageError
from chiasm.datasets.locations import MeteredFile, files_in, is_folder
from chiasm.datasets.pixels import read_image, unreadable
from chiasm.datasets.refusals import shown
from PIL import Image

PICTURE = np.arange(48, dtype="u1").reshape(6, 8)


@pytest.fixture
def store(tmp_path: Path):
    """A store in memory, of two pictures in a folder."""
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    memory = fsspec.filesystem("memory")
    for name in ("a.png", "b.png", ".hidden"):
        memory.pipe(f"/scans/{name}", (tmp_path / "a.png").read_bytes())
    memory.pipe("/scans/empty.png", b"")
    yield memory
    memory.rm("/scans", recursive=True)


@pytest.mark.usefixtures("store")
def test_an_image_is_read_by_its_url(tmp_path: Path):
    expected = read_image(tmp_path / "a.png").pixels
    for url in ("memory://scans/a.png", (tmp_path / "a.png").as_uri(), f"local://{tmp_path}/a.png"):
        assert np.array_equal(read_image(url).pixels, expected)
        assert unreadable(url) is None


@pytest.mark.usefixtures("store")
def test_folders_and_their_files_are_told_in_a_store_too(tmp_path: Path):
    assert is_folder("memory://scans")
    assert not is_folder("memory://scans/a.png")
    assert is_folder(tmp_path)
    assert files_in("memory://scans") == [f"memory:///scans/{name}" for name in ("a.png", "b.png", "empty.png")]
    (tmp_path / ".hidden").touch()
    assert files_in(tmp_path) == [str(tmp_path / "a.png")]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://scans/absent.png", "there is no such file"),
        ("memory://scans/empty.png", "it is empty"),
    ],
)
def test_what_a_store_lacks_is_refused_by_its_url(url: str, reason: str):
    with pytest.raises(UnreadableImageError, match=f"{url}: {reason}"):
        read_image(url)


@pytest.mark.usefixtures("store")
def test_a_large_file_of_a_store_is_refused_before_it_is_read():
    with pytest.raises(UnreadableImageError, match="bytes, more than the limit of 20"):
        read_image("memory://scans/a.png", limit_bytes=20)


def test_a_store_that_cannot_be_had_is_no_unreadable_image(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"film://drawer: film:// is no protocol that fsspec knows") as caught:
        read_image("film://drawer")
    assert not isinstance(caught.value, UnreadableImageError)

    def absent(_: str) -> None:
        raise ImportError("Install s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(InputError, match=r"s3:// needs a package of its own: pip install fsspec.s3.") as caught:
        read_image("s3://bucket/scan.dcm")
    assert not isinstance(caught.value, UnreadableImageError)


def test_a_folder_that_cannot_be_listed_or_has_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(3):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(locations, "MOST_FILES", 2)
    with pytest.raises(UnreadableImageError, match="the folder holds 3 files, more than 2"):
        read_image(tmp_path)

    def forbid(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(UnreadableImageError, match="the folder cannot be listed"):
        read_image(tmp_path)


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"])
def test_paths_that_no_file_can_have_are_refused(path: str):
    assert unreadable(path).startswith(path)


def test_a_file_that_is_read_too_often_or_too_much_is_refused():
    often = MeteredFile(io.BytesIO(bytes(100_000)), 100_000, limit_bytes=10)
    for _ in range(10_000):
        often.read(1)
    with pytest.raises(UnreadableImageError, match="its header has more parts than any true one"):
        often.read(1)
    much = MeteredFile(io.BytesIO(bytes(2**20)), 2**20, limit_bytes=2**30)
    for _ in range(5):
        much.seek(0)
        much.read()
    much.seek(0)
    with pytest.raises(UnreadableImageError, match="its header has more parts than any true one"):
        much.read()


def test_secrets_in_an_address_are_not_shown():
    assert shown("ftp://anna:secret@host/a/b@c.dcm") == "ftp://host/a/b@c.dcm"
    assert shown("https://host/a.dcm?X-Signature=secret") == "https://host/a.dcm"
    assert shown("/home/a?b@c.dcm") == "/home/a?b@c.dcm"
    with pytest.raises(InputError, match=r"film://host/a\.dcm: film:// is no protocol"):
        read_image("film://anna:secret@host/a.dcm?token=secret")
