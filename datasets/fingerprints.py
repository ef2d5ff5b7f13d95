"""What tells one content from another: hashes of files, of text and of tables."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from .locations import files_in, is_folder, is_url, opened
from .refusals import naming, refusing
from .windows import EVENTS

if TYPE_CHECKING:
    from .cohort import Cohort

_PIECE = 2**20


def file_stamp(path: str) -> str:
    """A short text that changes whenever a file was written to, without reading it; blank if there is none.

    It is made of path, size and times, of which the change time cannot be set back.
    """
    try:
        if is_url(path):
            from fsspec.core import url_to_fs

            system, inside = url_to_fs(path)
            told = system.ukey(inside)
        else:
            found = os.stat(path)
            told = (os.path.abspath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if stat.S_ISDIR(found.st_mode):
                told = (told, *map(file_stamp, files_in(path)))
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def file_content(path: str, limit_bytes: int) -> str:
    """SHA-256 of a file's bytes, or of those of all files that stand in a folder, by their names.

    Raises:
        UnreadableImageError: there is no such file, it is empty, larger than the limit, or cannot be read.
    """
    if is_folder(path):
        contents = [(os.path.basename(file), file_content(file, limit_bytes)) for file in files_in(path)]
        return hashlib.sha256(repr(contents).encode()).hexdigest()
    digest = hashlib.sha256()
    with naming(path), opened(path, limit_bytes) as file, refusing("it cannot be read. Check the disk."):
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def content(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def cohort_content(cohort: Cohort) -> str:
    """SHA-256 of what may be read of a cohort: its samples, events and facts, and the stamps of its files."""
    digest = hashlib.sha256(repr(cohort.history).encode())
    samples = cohort.outcomes[["subject_id", "prediction_time"]]
    for name, table in {"outcomes": samples, **{name: getattr(cohort, name) for name in (*EVENTS, "static")}}.items():
        digest.update(name.encode())
        if table is not None:
            # One chunk a column, and none of pandas' remarks: the same values are the same bytes.
            whole = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None).combine_chunks()
            with pa.PythonFile(_Hashed(digest), "w") as sink, pa.ipc.new_stream(sink, whole.schema) as stream:
                stream.write_table(whole)
    if cohort.images is not None:
        digest.update("".join(map(file_stamp, cohort.images["path"])).encode())
    return digest.hexdigest()


def hash_tables(digest: hashlib._Hash, cohort: Cohort) -> None:
    """Add to a hash all that is known of the patients, outcomes too; but not where the images lie."""
    for name in ("outcomes", *cohort.modalities):
        table = getattr(cohort, name).drop(columns="path", errors="ignore")
        digest.update(repr([name, *table.columns]).encode())
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())


class _Hashed(io.RawIOBase):
    """A file that only hashes what is written to it."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)
