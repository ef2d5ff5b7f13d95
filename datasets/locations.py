"""Where files lie: paths of this machine, and URLs that fsspec opens, such as s3:// and memory://."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .errors import InputError, UnreadableImageError
from .refusals import refusing

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Location = str | PathLike[str]
# A reader's objects are made from what it reads: one for every read, of less than a kilobyte each (an empty
# item of a DICOM sequence, the largest, takes 660 bytes), so that these fill the memory limit at most once.
_BYTES_A_READ = 1024
# Pillow and pydicom read a file up to three times: to tell it, to check it, to decode it.
_TIMES_READ = 4
_LEAST_READS, _LEAST_BYTES = 10_000, 2**20
# A CT series has up to some thousand slices; far more files are a whole archive.
MOST_FILES = 20_000
_OF_SYSTEMS = re.compile(r"lost\+found|System Volume Information|\$RECYCLE\.BIN|\.Trash(es|-\d+)?|\.Spotlight-V100")
"""Folders that systems keep on each disk."""


class MeteredFile:
    """A file that refuses to be read without end.

    A few bytes can send a parser through a file for hours, or make it keep a copy of the whole for every
    entry of a table; each of these shows in how often and how much it reads.

    Args:
        stream: seekable, positioned at its start.
        size: of the whole in bytes.
        limit_bytes: the memory that may be filled with what is read.
    """

    def __init__(self, stream: BinaryIO, size: int, limit_bytes: int) -> None:
        self._stream = stream
        self._most_reads = max(limit_bytes // _BYTES_A_READ, _LEAST_READS)
        self._most_bytes = _TIMES_READ * size + _LEAST_BYTES
        self._reads = self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._reads += 1
        self.bytes_read += len(data)
        if self._reads > self._most_reads or self.bytes_read > self._most_bytes:
            raise UnreadableImageError("its header has more parts than any true one. Leave the file out.")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> MeteredFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_url(path: Location) -> bool:
    return isinstance(path, str) and "://" in path


def is_folder(path: Location) -> bool:
    """Whether the path names a folder of this machine or of a store.

    Raises:
        UnreadableImageError: it cannot be reached.
        InputError: fsspec does not know the protocol, or lacks a package for it.
    """
    with refusing("it cannot be opened. Check the path and the permissions."):
        if not is_url(path):
            return Path(path).is_dir()
        store, inside = _store(path)
        return store.isdir(inside)


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Raise `InputError` where a file changes while it is read: an export that goes on gives a part of the rows."""
    before = path.stat()
    yield
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path} changed while it was read. Wait until it is written, and read it again.")


def _refuse_unlisted(error: OSError) -> None:
    """Raise `InputError` for a folder that cannot be listed, which `os.walk` else takes for an empty one.

    One that a system keeps on each disk holds no data, and may be listed by nobody but it.
    """
    if _OF_SYSTEMS.fullmatch(os.path.basename(error.filename)):
        return
    raise InputError(f"{error.filename} cannot be listed ({type(error).__name__}). Check its permissions.") from None


def walked(folder: Location) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, also through links, and each folder once, however many links lead to it.

    Raises:
        InputError: a folder cannot be listed.
    """
    seen: set[str] = set()
    for place, inner, names in os.walk(folder, onerror=_refuse_unlisted, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        yield place, inner, names


def files_in(folder: Location) -> list[str]:
    """The files that stand directly in a folder, by name; hidden ones are passed over.

    Raises:
        UnreadableImageError: it cannot be listed, or holds more than MOST_FILES files.
    """
    with refusing("the folder cannot be listed. Check the permissions."):
        if is_url(folder):
            store, inside = _store(folder)
            listed = [row["name"] for row in store.ls(inside, detail=True) if row["type"] == "file"]
            found = [store.unstrip_protocol(name) for name in listed]
        else:
            with os.scandir(folder) as entries:
                found = [entry.path for entry in entries if entry.is_file()]
    found = sorted(path for path in found if not path.rsplit("/", 1)[-1].startswith("."))
    if len(found) > MOST_FILES:
        raise UnreadableImageError(
            f"the folder holds {len(found)} files, more than {MOST_FILES}. Give the folder of one series."
        )
    return found


def opened(path: Location, limit_bytes: int) -> MeteredFile:
    """A file for reading, after its size has been checked.

    Raises:
        UnreadableImageError: there is no such file, it is empty, larger than the limit, or cannot be opened.
    """
    if is_folder(path):
        raise UnreadableImageError("this is a folder. Give the path of one image file.")
    with refusing("it cannot be opened. Check the path and the permissions."):
        if is_url(path):
            store, inside = _store(path)
            present, size = store.isfile(inside), 0
            size = store.size(inside) if present else 0
        else:
            present = Path(path).is_file()
            size = Path(path).stat().st_size if present else 0
        if not present:
            raise UnreadableImageError("there is no such file. Check the path.")
        if not size:
            raise UnreadableImageError("it is empty. Copy or export it again.")
        if size > limit_bytes:
            raise UnreadableImageError(
                f"it has {size} bytes, more than the limit of {limit_bytes}. If it is a true image, raise limit_bytes."
            )
        return MeteredFile(store.open(inside, "rb") if is_url(path) else Path(path).open("rb"), size, limit_bytes)


def _store(url: str) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs

    kind = url.split("://", 1)[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        # Not the file's fault, so not an unreadable image, which a cohort may leave out and go on.
        raise InputError(f"{kind}:// needs a package of its own: pip install fsspec[{kind}].") from error
    except ValueError:
        raise InputError(f"{kind}:// is no protocol that fsspec knows. Check the address.") from None
