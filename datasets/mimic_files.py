"""MIMIC's published files: where they lie in a folder, and how the engine reads them out of core."""

from __future__ import annotations

import csv
import glob
import gzip
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import InputError
from .files import TABULAR, is_nearly
from .locations import walked
from .words import LONGEST_TEXT

if TYPE_CHECKING:
    import pandas as pd

MEMORY_LIMIT = "1500MB"
"""What the engine may hold; beyond it, it works on disk. The rows that are kept come on top."""


class Table(NamedTuple):
    """A published table: the module that it belongs to, and the columns that are used with their types."""

    module: str
    columns: Mapping[str, str]


_STAY = {"subject_id": "BIGINT", "hadm_id": "BIGINT"}
_RESULT = {"subject_id": "BIGINT", "itemid": "BIGINT", "charttime": "TIMESTAMP", "storetime": "TIMESTAMP"}
_RESULT |= {"valuenum": "DOUBLE", "valueuom": "VARCHAR"}
_NOTE = _STAY | {"charttime": "TIMESTAMP", "storetime": "TIMESTAMP", "text": "VARCHAR"}
_IMAGE = {"dicom_id": "VARCHAR", "subject_id": "BIGINT", "study_id": "BIGINT"}
DEMOGRAPHICS = ("insurance", "language", "marital_status", "race")

TABLES: dict[str, Table] = {
    "patients": Table(
        "MIMIC-IV hosp",
        {"subject_id": "BIGINT", "gender": "VARCHAR", "anchor_age": "INTEGER", "anchor_year": "INTEGER"},
    ),
    "admissions": Table(
        "MIMIC-IV hosp",
        _STAY
        | dict.fromkeys(("admittime", "dischtime", "deathtime"), "TIMESTAMP")
        | {"admission_type": "VARCHAR", "hospital_expire_flag": "INTEGER"}
        | dict.fromkeys(DEMOGRAPHICS, "VARCHAR"),
    ),
    "d_labitems": Table(
        "MIMIC-IV hosp", {"itemid": "BIGINT", "label": "VARCHAR", "fluid": "VARCHAR", "category": "VARCHAR"}
    ),
    "labevents": Table("MIMIC-IV hosp", _RESULT),
    "diagnoses_icd": Table("MIMIC-IV hosp", {"hadm_id": "BIGINT", "icd_code": "VARCHAR", "icd_version": "INTEGER"}),
    "icustays": Table(
        "MIMIC-IV icu",
        _STAY
        | {"stay_id": "BIGINT", "first_careunit": "VARCHAR", "last_careunit": "VARCHAR"}
        | dict.fromkeys(("intime", "outtime"), "TIMESTAMP"),
    ),
    "chartevents": Table("MIMIC-IV icu", _RESULT),
    "radiology": Table("MIMIC-IV-Note", _NOTE),
    "discharge": Table("MIMIC-IV-Note", _NOTE),
    "cxr-record-list": Table("MIMIC-CXR", _IMAGE | {"path": "VARCHAR"}),
    "mimic-cxr-2.0.0-metadata": Table(
        "MIMIC-CXR-JPG", _IMAGE | dict.fromkeys(("ViewPosition", "StudyDate", "StudyTime"), "VARCHAR")
    ),
    "mimic-cxr-2.0.0-split": Table("MIMIC-CXR-JPG", {"subject_id": "BIGINT", "split": "VARCHAR"}),
}

_BY_LETTERS = {re.sub("[^a-z]", "", table): table for table in TABLES}
# Of several copies in one folder, the one that is read fastest.
_ENDINGS = (".parquet", ".csv", ".csv.gz")
# Image folders (p10 to p19), with 65,000 folders inside, hold no table.
_IMAGES = re.compile(r"p\d\d")

# How DuckDB says what is wrong with a row; the rest of its text quotes the row, and is not passed on.
_LINE = re.compile(r"CSV Error on Line: (\d+)")
_COLUMN = re.compile(r'Error when converting column "([^"]+)"')
_TYPES = {"BIGINT": "a whole number", "INTEGER": "a whole number", "DOUBLE": "a number", "TIMESTAMP": "a time"}


class MimicFolder:
    """The tables of a folder, and an engine that filters and joins them without loading them.

    To be used in a `with` block, at whose end the engine and its scratch files are gone.

    Args:
        folder: holds MIMIC's modules, in folders of any name and depth.

    Raises:
        InputError: no such folder, or a table stands there under a name or in a form that is not read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}. Check the path.")
        self.folder = folder
        self.read: Callable[[int], None] = lambda _: None
        """Is told how many more bytes of the tables have been read."""
        self._paths = _tables_in(folder)

    def __enter__(self) -> MimicFolder:
        import duckdb

        self._scratch = tempfile.TemporaryDirectory(prefix="chiasm-mimic-")
        threads = min(8, os.cpu_count() or 1)
        config = {"memory_limit": MEMORY_LIMIT, "temp_directory": self._scratch.name, "threads": threads}
        self.engine = duckdb.connect(config=config)
        # A name in a query is a table of ours, and never a variable of Python.
        self.engine.execute("SET python_enable_replacements = false; SET TimeZone = 'UTC'")
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self._scratch.cleanup()

    def __contains__(self, table: str) -> bool:
        return table in self._paths

    def path(self, table: str) -> Path:
        """Where a table lies.

        Raises:
            InputError: it is not there, or there in two versions.
        """
        found = self._paths.get(table, [])
        if not found:
            raise InputError(
                f"There is no {table}.csv.gz (nor .csv, .parquet) in {self.folder} or the folders in it. "
                f"It belongs to {TABLES[table].module}: bring it, with the name under which it is published."
            )
        if len({path.parent for path in found}) > 1:
            places = ", ".join(str(path.parent) for path in found[:2])
            raise InputError(f"{table} is there more than once, in {places}. Give a folder with one version of it.")
        return min(found, key=lambda path: _ENDINGS.index(_ending(path.name)))

    def bytes(self, *tables: str) -> int:
        """The size of some tables' files."""
        return sum(self.path(table).stat().st_size for table in tables)

    def frame(self, query: str, *tables: str) -> pd.DataFrame:
        """A query's rows; see `batches`."""
        batches = [*self.batches(query, *tables)]
        return pa.Table.from_batches(batches[1:], batches[0].schema).to_pandas()

    def require_once(self, table: str, key: str) -> None:
        """Raise `InputError` where two rows of a table have one key: a join would take both, or either."""
        again = int(
            self.frame(f'SELECT count({key}) - count(DISTINCT {key}) AS again FROM "{table}"', table)["again"][0]
        )
        if again:
            raise InputError(
                f"{self.path(table)}: the {key} of a row stands there again ({again} such rows). "
                "Restore the published table."
            )

    def batches(self, query: str, *tables: str) -> Iterator[pa.RecordBatch]:
        """A query's rows in pieces; the first has no rows, and tells the columns.

        Args:
            query: SQL over `tables`, by their names.
            tables: those of MIMIC that it reads.

        Raises:
            InputError: a table is not there, lacks a column, or has a row that cannot be read.
        """
        sources = {table: self._source(table) for table in tables}
        with self._naming_row(tables):
            for table, source in sources.items():
                self.engine.execute(f'CREATE OR REPLACE VIEW "{table}" AS FROM {source}')
            reader = pa.RecordBatchReader.from_stream(self.engine.sql(query))
            yield pa.RecordBatch.from_pylist([], reader.schema)
            size, told = self.bytes(*tables), 0
            for batch in reader:
                yield batch
                done = int(size * _share(batch))
                self.read(max(done - told, 0))
                told = max(done, told)
        self.read(size - told)

    def _source(self, table: str) -> str:
        """SQL that stands for a file with its columns in their types."""
        path, types = self.path(table), TABLES[table].columns
        names = _columns_of(path)
        missing = [name for name in types if name not in names]
        if missing:
            raise InputError(
                f"{path} lacks the column {missing[0]}; it has {', '.join(names) or 'none'}. "
                "Restore the published table."
            )
        # The engine takes some characters of a path as patterns.
        file = _quoted(glob.escape(str(path)))
        if path.suffix == ".parquet":
            cast = ", ".join(f'{_cell(name, kind)} AS "{name}"' for name, kind in types.items())
            return f"(SELECT {cast} FROM read_parquet({file}))"
        listed = ", ".join(f"{_quoted(name)}: '{types.get(name, 'VARCHAR')}'" for name in names)
        # Nothing is guessed: the columns in their order, their types, and how cells are set apart.
        dialect = "auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"'"
        return f"read_csv({file}, columns = {{{listed}}}, {dialect})"

    @contextmanager
    def _naming_row(self, tables: tuple[str, ...]) -> Iterator[None]:
        """Turn the engine's failures into one line that names file, row and column, and quotes nothing."""
        import duckdb

        try:
            yield
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            # What fails after the first rows comes through Arrow, in Arrow's types, with the engine's text.
            if "Out of Memory" in str(error) or "No space left" in str(error):
                raise InputError(
                    f"The engine needs more than {MEMORY_LIMIT} of memory and the disk at {tempfile.gettempdir()}. "
                    "Free disk space there, or set TMPDIR to a larger disk."
                ) from None
            paths = [self.path(table) for table in tables]
            raise InputError(_what_is_wrong(str(error), paths, tables)) from None


_TOO_LONG = "a text is too long: "


def _cell(name: str, kind: str) -> str:
    """SQL of a Parquet file's cell in its type; the engine ends at a text that is too long, before it is copied out."""
    cell = f'CAST("{name}" AS {kind})'
    if kind != "VARCHAR":
        return cell
    return f"CASE WHEN strlen({cell}) > {LONGEST_TEXT} THEN error({_quoted(_TOO_LONG + name)}) ELSE {cell} END"


def _share(batch: pa.RecordBatch) -> float:
    """How far a table is read, about: it is published by patient, whose numbers go from 10 to 20 million."""
    if "subject_id" not in batch.schema.names or not batch.num_rows:
        return 0.0
    return min(max((batch["subject_id"][-1].as_py() or 0) / 1e7 - 1, 0.0), 1.0)


def _what_is_wrong(told: str, paths: list[Path], tables: tuple[str, ...]) -> str:
    """An engine's error text as a message of ours."""
    named = [path for path in paths if str(path) in told or glob.escape(str(path)) in told] or paths
    where = " or ".join(map(str, named))
    _, too_long, rest = told.partition(_TOO_LONG)
    if too_long:
        column = re.match(r"\w+", rest)[0]
        return f"{where}: {column} has a text of more than {LONGEST_TEXT >> 20} MiB. Restore the published table."
    line, column = _LINE.search(told), _COLUMN.search(told)
    if line is None:
        return f"{where} cannot be read: it is damaged or cut short. Compare it with SHA256SUMS.txt and bring it anew."
    if column is not None:
        types = next((TABLES[table].columns for table in tables if column[1] in TABLES[table].columns), {})
        return (
            f"{where}, line {line[1]}: {column[1]} is not {_TYPES.get(types.get(column[1]), 'what it should be')}. "
            "Restore the published table."
        )
    return (
        f"{where}, line {line[1]}: the row is not as the first line says (cells, quotation marks, or UTF-8). "
        "Restore the published table."
    )


def _tables_in(folder: Path) -> dict[str, list[Path]]:
    """The files of every known table in a folder and the folders in it.

    Raises:
        InputError: a file seems to hold such a table, and would be passed over for its name or form; or a folder cannot
            be listed.
    """
    found: dict[str, list[Path]] = {}
    nearly: list[tuple[Path, str]] = []
    # Large modules are often linked.
    for place, folders, files in walked(folder):
        folders[:] = sorted(name for name in folders if not _IMAGES.fullmatch(name))
        for name in sorted(files):
            ending = _ending(name)
            if ending and name.removesuffix(ending) in TABLES:
                found.setdefault(name.removesuffix(ending), []).append(Path(place, name))
            elif meant := _meant(name):
                nearly.append((Path(place, name), meant))
    for path, meant in nearly:
        homes = {one.parent for one in found.get(meant, ())}
        # Where the table lies elsewhere, it is another database's, such as PATIENTS.csv.gz of MIMIC-III.
        if not homes or path.parent in homes:
            raise InputError(
                f"{path} is not read: the table {meant} is {meant}.csv.gz, {meant}.csv or {meant}.parquet, in one "
                "file. If it is that table, write it so; if not, move it elsewhere."
            )
    return found


def _meant(name: str) -> str | None:
    """The table that a file seems to hold, although its name is not quite that, or its form not one read."""
    low = name.lower()
    ending = max((ending for ending in TABULAR if low.endswith(ending)), key=len, default="")
    stem = low.removesuffix(ending)
    # Of waveforms, named by numbers, there are a million.
    if name.startswith((".", "~$")) or not ending or not re.search("[a-z]", stem):
        return None
    return next((table for letters, table in _BY_LETTERS.items() if is_nearly(stem, letters)), None)


def _ending(name: str) -> str:
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def _columns_of(path: Path) -> list[str]:
    """The names in a table's first line, or in its Parquet schema."""
    try:
        if path.suffix == ".parquet":
            return pq.ParquetFile(path).schema_arrow.names
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            names = next(csv.reader(lines), [])
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}. Bring it anew.") from None
    if len(names) == 1 and ";" in names[0]:
        raise InputError(f"{path} is separated by semicolons, not by commas. Restore the published table.")
    return names


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
