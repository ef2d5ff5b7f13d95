"""A folder of five tables, as CSV or Parquet, or a MEDS dataset: which it is, and how it is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from .errors import InputError
from .tables import REQUIRED

if TYPE_CHECKING:
    from .cohort import Cohort

# Arrow reads a file in blocks, and a row must lie in one; the largest block that it takes is 2 GB.
_LARGEST_BLOCK = 1 << 30


def read_table(path: Path) -> pd.DataFrame:
    """One CSV or Parquet table. CSV cells come as text, blank ones as missing; types are told later.

    A CSV file is UTF-8, separated by commas, with one number of cells in every row: a row that is
    cut short would otherwise read as one in which something is unknown.

    Raises:
        InputError: the file is missing, empty, not UTF-8, or not a table.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}. Check the path.")
    try:
        if path.suffix == ".parquet":
            return pq.ParquetFile(path).read().to_pandas()
        return _read_csv(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        # Arrow's text may quote cell content, so it is not passed on.
        raise InputError(f"{path} cannot be read as a {path.suffix[1:] or 'table'} file. Write it anew.") from error


def _read_csv(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    # The whole is checked beforehand, so that the error names the byte.
    data.decode("utf-8")
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    names = next((row for row in csv.reader(text) if row), [])
    if not names:
        raise InputError(f"{path} is empty. It needs a first line of column names.")
    ragged: list[pa_csv.InvalidRow] = []
    read = pa_csv.ReadOptions(
        use_threads=False, autogenerate_column_names=True, block_size=min(len(data) + 1, _LARGEST_BLOCK)
    )
    parse = pa_csv.ParseOptions(
        newlines_in_values=True, invalid_row_handler=lambda row: (ragged.append(row), "error")[1]
    )
    cells = pa_csv.ConvertOptions(
        column_types={f"f{k}": pa.large_string() for k in range(len(names))},
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        table = pa_csv.read_csv(pa.BufferReader(data), read, parse, cells)
    except pa.ArrowInvalid as error:
        if not ragged:
            _require_closed_quotes(path, data)
            raise
        raise InputError(
            f"{path}, data row {ragged[0].number - 1}: {ragged[0].actual_columns} cells, but the first line names "
            f"{ragged[0].expected_columns} columns. Correct the row, and put text that has commas in quotation marks."
        ) from error
    _require_closed_quotes(path, data)
    table = table.slice(1).rename_columns([name.strip() or f"Unnamed: {k}" for k, name in enumerate(names)])
    return table.to_pandas()


def _require_closed_quotes(path: Path, data: bytes) -> None:
    """Raise `InputError` where a quotation mark is never closed: it swallows all rows that follow."""
    if data.count(b'"') % 2 == 0:
        return
    try:
        pd.read_csv(io.BytesIO(data), dtype="str", usecols=[0], encoding_errors="replace")
    except pd.errors.ParserError as error:
        raise InputError(f"{path} has a quotation mark that is never closed. Close it, or double it.") from error


def find_table(folder: Path, name: str) -> Path | None:
    """`name.parquet` or `name.csv` in the folder.

    Raises:
        InputError: both stand there.
    """
    found = [path for path in (folder / f"{name}.parquet", folder / f"{name}.csv") if path.is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {found[0].name} and {found[1].name}. Remove one of them.")
    return found[0] if found else None


def read_cohort(kind: type[Cohort], folder: Path, settings: Mapping[str, object]) -> Cohort:
    """Read a cohort from a folder of tables or from a MEDS dataset; see `Cohort.read`."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")
    if (folder / "data").is_dir() and (folder / "metadata").is_dir():
        from .meds import read_meds

        return read_meds(kind, folder, settings)
    paths = {name: find_table(folder, name) for name in REQUIRED}
    if paths["outcomes"] is None:
        raise InputError(
            f"{folder} has neither outcomes.csv, outcomes.parquet nor MEDS's data/ and metadata/. "
            "Put the five tables there (any but outcomes may be missing)."
        )
    tables = {name: read_table(path) for name, path in paths.items() if path is not None}
    if "images" in tables and "path" in tables["images"].columns:
        tables["images"] = tables["images"].assign(path=resolve_paths(tables["images"]["path"], folder))
    return kind(**tables, **settings)


def resolve_paths(paths: pd.Series, folder: Path) -> pd.Series:
    """Image paths as absolute ones; relative ones are taken from the folder of the table."""
    home = folder.resolve()
    return paths.map(lambda path: path if pd.isna(path) or "://" in str(path) else str(home / str(path)))
