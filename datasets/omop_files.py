"""OMOP tables in a folder: Parquet or CSV, one file or many a table, in upper or lower case."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .errors import InputError
from .files import TABULAR, is_nearly
from .locations import walked
from .omop_tables import LAYOUTS, Part, Table, literal, of_parts

if TYPE_CHECKING:
    import duckdb
    from fsspec import AbstractFileSystem

FORMATS = (".parquet", ".csv", ".csv.gz")

LONGEST_LINE = 32 << 20
"""Bytes; the longest notes have some megabytes."""

_DELIMITERS = ",\t"
_OTHER_SEPARATORS = {";": "semicolons", "|": "vertical bars"}

# What ATHENA hands out has tabs between the cells, and quotation marks that are part of them (CONCEPT.csv).
_OF_VOCABULARY = ("concept",)


class Folder:
    """The tables of a folder, read where they are.

    Args:
        source: a path, or an URL that fsspec knows.

    Raises:
        InputError: there is no such folder, or a table stands there twice, or under a name or in a form that is not
            read.
    """

    def __init__(self, source: str) -> None:
        from fsspec.core import url_to_fs

        self.where = source
        self.files: AbstractFileSystem
        self.files, root = url_to_fs(source)
        if not self.files.isdir(root):
            raise InputError(f"There is no folder {source}. Check the path.")
        self.local = "file" in self.files.protocol
        self._prefix = "" if self.local else f"{_protocol(self.files)}://"
        self._found: dict[str, list[str]] = {}
        self._tables: dict[str, Table] = {}
        for entry in sorted(self.files.ls(root, detail=True), key=lambda entry: entry["name"]):
            name = entry["name"].rstrip("/").rsplit("/", 1)[-1].lower()
            ending, is_folder = _ending(name), entry["type"] == "directory"
            # Spark writes a folder measurement.parquet.
            table = name.removesuffix(ending or "")
            if table in LAYOUTS and (is_folder or ending):
                self._add(table, entry["name"], is_folder)
            elif meant := _meant(name, is_folder):
                self._refuse_passed_over(meant, entry["name"], is_folder)

    def _add(self, table: str, path: str, is_folder: bool) -> None:
        if table in self._found:
            raise InputError(f"{self.where} has the table {table} more than once, also as {path}. Remove one of them.")
        inside = [one for one in self._below(path) if _ending(one)] if is_folder else [path]
        passed_over = [one for one in self._tabular(path) if not _ending(one)] if is_folder else []
        if inside and passed_over:
            raise InputError(
                f"{passed_over[0]} stands among the files of the table {table} and is not read. Write it as CSV or "
                "Parquet, as the others, or move it to another folder."
            )
        if not inside:
            raise InputError(f"{path} has no Parquet or CSV file. Put the parts of the table {table} there.")
        if len({_ending(one) == ".parquet" for one in inside}) > 1:
            raise InputError(f"{path} has both Parquet and CSV files. Remove one of them.")
        self._found[table] = inside

    def _tabular(self, path: str) -> list[str]:
        """The files below a folder that may be tables."""
        return [one for one in self._below(path) if one.lower().endswith(TABULAR)]

    def _below(self, path: str) -> list[str]:
        """The files below a folder; of this machine, none is passed over because its folder cannot be listed."""
        if not self.local:
            return sorted(self.files.find(path))
        return sorted(f"{place}/{name}" for place, _, names in walked(path) for name in names)

    def _refuse_passed_over(self, table: str, path: str, is_folder: bool) -> None:
        if is_folder and not self._tabular(path):
            return
        raise InputError(
            f"{path} is not read: the table {table} is {table}.csv, {table}.csv.gz or {table}.parquet, or a folder "
            f"{table} of such files. If it is that table, write it so; if not, move it to another folder."
        )

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let the engine read from this folder."""
        if not self.local:
            connection.register_filesystem(self.files)

    def people(self, kinds: Sequence[int]) -> np.ndarray:  # noqa: ARG002
        """Nobody in particular: the engine selects."""
        return np.zeros(0, np.int64)

    def table(self, name: str, keys: np.ndarray, until: np.ndarray | None = None) -> Table | None:  # noqa: ARG002
        """A table, or None where there is none. What to read of it is left to the engine; see `omop.Source`.

        Raises:
            InputError: a file cannot be read, or is not laid out as the table should be.
        """
        if name in self._found and name not in self._tables:
            self._tables[name] = self._described(name, self._found[name])
        return self._tables.get(name)

    def _described(self, name: str, paths: Sequence[str]) -> Table:
        if _ending(paths[0]) == ".parquet":
            schemas = [self._parquet_schema(path) for path in paths]
            parts = [Part(path, f"read_parquet({literal(self._prefix + path)})") for path in paths]
            every = ", ".join(literal(self._prefix + path) for path in paths)
            return of_parts(
                name, parts, f"read_parquet([{every}], union_by_name = true, hive_partitioning = false)", schemas
            )
        heads = [self._head(path) for path in paths]
        alike = defaultdict(list)
        for path, head in zip(paths, heads, strict=True):
            alike[head].append(self._prefix + path)
        parts = [
            Part(path, _csv(name, [self._prefix + path], *head), separator=head[1])
            for path, head in zip(paths, heads, strict=True)
        ]
        every = [_csv(name, some, *head) for head, some in alike.items()]
        rows = every[0]
        if len(every) > 1:
            rows = f"({' UNION ALL BY NAME '.join(f'SELECT * FROM {some}' for some in every)})"
        schemas = [pa.schema([(column, pa.string()) for column in names]) for names, _ in heads]
        return of_parts(name, parts, rows, schemas)

    def _parquet_schema(self, path: str) -> pa.Schema:
        import pyarrow.parquet as pq

        try:
            with self.files.open(path, "rb") as file:
                return pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read as a Parquet file. Write it anew.") from error

    def _head(self, path: str) -> tuple[tuple[str, ...], str]:
        """The names of the columns, and what stands between the cells."""
        try:
            with self.files.open(path, "rb", compression="infer") as file:
                first = file.readline(1 << 20).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
        except (OSError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({type(error).__name__}). Write it anew.") from error
        first = first.rstrip("\r\n").split("\r")[0]
        if not first.strip():
            raise InputError(f"{path} is empty. It needs a first line of column names.")
        delimiter = max(_DELIMITERS, key=first.count)
        other = max(_OTHER_SEPARATORS, key=first.count)
        if other in first and delimiter not in first:
            raise InputError(
                f"{path} is separated by {_OTHER_SEPARATORS[other]}. Save it with commas or tabs between its columns."
            )
        names = next(csv.reader(io.StringIO(first), delimiter=delimiter))
        return tuple(name.strip() or f"column {k}" for k, name in enumerate(names, 1)), delimiter


def _csv(table: str, paths: Sequence[str], names: Sequence[str], delimiter: str) -> str:
    """CSV files of one layout as SQL; every cell is text, and a row that is cut short or too long an error."""
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    every = ", ".join(literal(path) for path in paths)
    quote = "''" if delimiter == "\t" and table in _OF_VOCABULARY else "'\"'"
    return (
        f"read_csv([{every}], header = true, auto_detect = false, columns = {{{columns}}}, "
        f"delim = {literal(delimiter)}, quote = {quote}, escape = {quote}, strict_mode = true, "
        f"max_line_size = {LONGEST_LINE})"
    )


def _meant(name: str, is_folder: bool) -> str | None:
    """The table that a file or folder seems to hold, although its name is not quite that, or its form not one read."""
    stem = name.partition(".")[0]
    if name.startswith((".", "~$")) or not (is_folder or name.endswith(TABULAR)):
        return None
    return next((table for table in LAYOUTS if is_nearly(stem, table.replace("_", ""))), None)


def _ending(name: str) -> str | None:
    return next((ending for ending in FORMATS if name.lower().endswith(ending)), None)


def _protocol(files: AbstractFileSystem) -> str:
    return files.protocol if isinstance(files.protocol, str) else files.protocol[0]
