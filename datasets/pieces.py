"""CSV and Parquet files, piece by piece: of any size, in bounded memory, and checked on the way."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from .errors import InputError
from .locations import unchanged
from .quotation import Quotation
from .refusals import MALFORMED
from .words import LONGEST_TEXT

PIECE_ROWS = 1 << 20
"""Rows of a piece of a Parquet file, at most."""
PIECE_BYTES = 64 << 20
"""And bytes, about: rows differ in length, and of a row group only the mean of them is known."""
_BLOCK_BYTES = 64 << 20
"""Of a piece of a CSV file. A row must lie in one."""
_DECODED_BYTES = _FIRST_LINE = 1 << 20
# Rows of patients and times take a byte or more each. A file in which ten have one, or text that shrinks to a
# thousandth, says the same again and again, and would fill the memory.
_MOST_ROWS_A_BYTE, _MOST_INFLATION = 10, 1000
_HARMLESS_ROWS, _HARMLESS_BYTES = 1_000_000, 64 << 20
# Of a line in which nothing stands.
_NOTHING = ' ,"\t\r\n'
_OTHER_SEPARATORS = (";", "\t", "|")


def pieces(path: Path, columns: Sequence[str] | None = None, words: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The rows of a table, some at a time; at least one piece, which may have no rows.

    Of CSV, cells come as text, blank ones as missing. A CSV file is UTF-8, separated by commas, with one number of
    cells in every row: a row that is cut short would otherwise read as one in which something is unknown.

    Args:
        path: of a CSV or a Parquet file.
        columns: those that are wanted of those that there are; None for all. A column that stands there twice comes
            twice.
        words: columns of which few different cells are expected; they come as dictionaries.

    Raises:
        InputError: the file is missing, empty, not UTF-8, or not a table; a cell is too long; or the file changes.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}. Check the path.")
    kind, first = path.suffix[1:] or "table", 1
    with _naming(path, f"cannot be read as a {kind} file"), unchanged(path):
        for piece in (_parquet_pieces if kind == "parquet" else _csv_pieces)(path, columns, words):
            _require_short_cells(piece, path, first)
            yield piece
            first += len(piece)


def _is_wanted(name: str, columns: Sequence[str] | None) -> bool:
    """Whether a column is asked for, or is but for case, which whoever asks for it can then say."""
    return columns is None or name.strip().lower() in columns


def as_frame(piece: pa.Table, path: Path) -> pd.DataFrame:
    """A piece of an event table for pandas, days as times.

    Raises:
        InputError: a column stands there twice, or pandas has nothing for it.
    """
    doubled = [name for name in piece.column_names if piece.column_names.count(name) > 1]
    if doubled:
        raise InputError(f"{path} has the column {doubled[0]} twice. Rename or drop one of them.")
    with _naming(path, "has a column that is neither text, numbers nor times"):
        return piece.replace_schema_metadata(None).to_pandas(date_as_object=False)


def _require_short_cells(piece: pa.Table, path: Path, first: int) -> None:
    """Raise `InputError` where a text is longer than `LONGEST_TEXT`, before more copies are made of it.

    Args:
        piece: of a table.
        path: of its file.
        first: the data row in which it begins.
    """
    for name, column in zip(piece.column_names, piece.columns, strict=True):
        row = first
        for cells in column.chunks if column.nbytes > LONGEST_TEXT else ():
            lengths = _lengths(cells)
            longest = pc.max(lengths)
            if (longest.as_py() or 0) > LONGEST_TEXT:
                row += pc.index(lengths, longest).as_py()
                raise _too_long(f"{path}, data row {row}", name, longest.as_py())
            row += len(cells)


def _lengths(cells: pa.Array) -> pa.Array:
    """Bytes of each cell; missing where that is neither text nor bytes."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        return _lengths(cells.dictionary).take(cells.indices)
    if kind in (pa.string_view(), pa.binary_view()):
        cells = cells.cast(pa.large_binary())
    elif kind not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        return pa.nulls(len(cells), pa.int64())
    return pc.binary_length(cells)


def _too_long(where: str, name: str, length: int) -> InputError:
    return InputError(
        f"{where}: {name} has a text of {length} bytes, and the most for one cell is {LONGEST_TEXT}. Divide it into "
        "several rows, or remove the row."
    )


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """Turn a reader's failures into one line that names the file. What Arrow says is dropped: it may quote cells."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except InputError:
        raise
    except (*MALFORMED, csv.Error, pa.ArrowException):
        raise InputError(f"{path} {what}. Write it anew.") from None


# Parquet


def _parquet_pieces(path: Path, columns: Sequence[str] | None, words: Sequence[str]) -> Iterator[pa.Table]:
    with _parquet(path, words) as file:
        names = file.schema_arrow.names
        wanted = [name for name in names if _is_wanted(name, columns)]
        yield file.schema_arrow.empty_table().select([k for k, name in enumerate(names) if name in wanted])
        for batch in file.iter_batches(_rows_of_a_piece(path, file, wanted, words), columns=wanted):
            # Indices of dictionaries, ends of texts and UTF-8 are not checked otherwise, and would end the process.
            batch.validate(full=True)
            yield pa.Table.from_batches([batch])


@contextmanager
def _parquet(path: Path, words: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """A Parquet file, once it is known that it does not inflate beyond reason."""
    about = pq.read_metadata(path)
    coded = [name for name in about.schema.to_arrow_schema().names if name in words]
    # Through a buffer, and not all at once, so that not even a row group need be in memory as a whole.
    with pq.ParquetFile(path, metadata=about, read_dictionary=coded, buffer_size=1 << 20, pre_buffer=False) as file:
        size = path.stat().st_size
        inflated = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
        if about.num_rows > max(_HARMLESS_ROWS, _MOST_ROWS_A_BYTE * size) or about.num_rows < 0:
            raise InputError(f"{path} says that it has {about.num_rows} rows, in {size} bytes. Write it anew.")
        if inflated > max(_HARMLESS_BYTES, _MOST_INFLATION * size):
            raise InputError(f"{path} says that its {size} bytes become {inflated}. Write it anew.")
        yield file


def _rows_of_a_piece(path: Path, file: pq.ParquetFile, wanted: Sequence[str], words: Sequence[str]) -> int:
    """How many rows have the bytes of a piece, in the row group of the longest rows."""
    about, schema = file.metadata, file.schema_arrow
    texts = [name for name in wanted if name not in words and _is_text(schema.field(name).type)]
    width = sum(_width(schema.field(name).type) for name in wanted)
    repeated, most = _repeated_bytes(path, about, texts), 1.0
    for k, more in enumerate(repeated):
        group = about.row_group(k)
        columns = map(group.column, range(group.num_columns))
        written = sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] in wanted)
        most = max(most, width + written / max(group.num_rows, 1) + more)
    return int(min(PIECE_ROWS, max(1, PIECE_BYTES // most)))


def _repeated_bytes(path: Path, about: pq.FileMetaData, texts: Sequence[str]) -> list[float]:
    """Of each row group how many bytes a row may take beside its share of the file.

    A text that a column says again and again stands once in the file, in a dictionary, and in memory in every row.
    """
    coded: list[list[str]] = []
    for group in map(about.row_group, range(about.num_row_groups)):
        columns = [column for column in map(group.column, range(group.num_columns)) if column.has_dictionary_page]
        coded.append([column.path_in_schema for column in columns if column.path_in_schema in texts])
    repeated = [0.0] * len(coded)
    if not any(coded):
        return repeated
    every = sorted(set().union(*coded))
    with pq.ParquetFile(path, metadata=about, read_dictionary=every, buffer_size=1 << 20, pre_buffer=False) as file:
        for k, names in enumerate(coded):
            # With the first row comes the whole dictionary.
            for batch in file.iter_batches(1, row_groups=[k], columns=names) if names else ():
                batch.validate(full=True)
                for known in (column.dictionary for column in batch.columns if pa.types.is_dictionary(column.type)):
                    longest = pc.max(_lengths(known)).as_py() or 0
                    repeated[k] += longest - known.nbytes / about.row_group(k).num_rows
                break
    return repeated


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _width(kind: pa.DataType) -> int:
    """Bytes of a cell beside its text: a number, or where the text ends."""
    try:
        return max(kind.bit_width // 8, 1)
    except ValueError:
        return 8


def read_parquet(path: Path) -> pd.DataFrame:
    """A whole Parquet file, with the index and the types that pandas noted in it.

    Raises:
        InputError: it is no Parquet file.
    """
    with _naming(path, "cannot be read as a parquet file"), unchanged(path), _parquet(path) as file:
        table = file.read()
        table.validate(full=True)
        _require_short_cells(table, path, 1)
        return table.to_pandas()


# CSV


def _csv_pieces(path: Path, columns: Sequence[str] | None, words: Sequence[str]) -> Iterator[pa.Table]:
    names = _first_line(path)
    if not names:
        raise InputError(f"{path} is empty. It needs a first line of column names.")
    if len(names) == 1 and any(mark in names[0] for mark in _OTHER_SEPARATORS):
        raise InputError(f"{path} is not separated by commas. Save it with commas between its columns.")
    wanted = [k for k, name in enumerate(names) if _is_wanted(name, columns)]
    if not wanted:
        raise InputError(
            f"The first line of {path} names none of the columns {', '.join(columns)}. Begin with a line of these "
            "names."
        )
    ragged: list[pa_csv.InvalidRow] = []
    blank: list[int] = []

    def refuse(row: pa_csv.InvalidRow) -> str:
        if row.text.strip(_NOTHING):
            ragged.append(row)
            return "error"
        blank.append(row.number)
        return "skip"

    read = pa_csv.ReadOptions(use_threads=False, autogenerate_column_names=True, block_size=_block_bytes(path))
    parse = pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
    few, text = pa.dictionary(pa.int32(), pa.string()), pa.large_string()
    cells = pa_csv.ConvertOptions(
        column_types={f"f{k}": few if name in words else text for k, name in enumerate(names)},
        include_columns=[f"f{k}" for k in wanted],
        null_values=[""],
        strings_can_be_null=True,
    )
    with path.open("rb") as file:
        watched = _Watched(file)
        if _has_one_line(path):
            # Arrow sees no line in one without an end.
            yield pa.table([pa.array([], kind) for kind in cells.column_types.values()], names).select(wanted)
            return
        try:
            first = 1
            for batch in pa_csv.open_csv(pa.PythonFile(watched, "r"), read, parse, cells):
                piece = pa.Table.from_batches([batch]).slice(first)
                yield piece.rename_columns([names[k] for k in wanted])
                first = 0
            if blank:
                # Lines that spreadsheets leave below a table are blank rows, to be counted and not passed over.
                nothing = [pa.nulls(len(blank), field.type) for field in piece.schema]
                yield pa.table(nothing, names=[names[k] for k in wanted])
        except pa.ArrowInvalid as error:
            if not ragged:
                watched.require_closed_quotes()
                raise
            raise InputError(
                f"{path}, data row {ragged[0].number - 1}: {ragged[0].actual_columns} cells, but the first line names "
                f"{ragged[0].expected_columns} columns. Correct the row, and put text that has commas in quotation "
                "marks."
            ) from error
        watched.require_closed_quotes()


def _first_line(path: Path) -> list[str]:
    """The names of the columns; one without a name gets the one that pandas would give it."""
    with path.open("rb") as file:
        text = io.TextIOWrapper(_Watched(file), encoding="utf-8-sig", newline="")
        names = next((row for row in csv.reader(text) if row), [])
    return [name.strip() or f"Unnamed: {k}" for k, name in enumerate(names)]


def _has_one_line(path: Path) -> bool:
    """Whether a file ends before its first line does."""
    with path.open("rb") as file:
        start = file.read(_FIRST_LINE)
    return len(start) < _FIRST_LINE and not any(end in start for end in b"\r\n")


def _block_bytes(path: Path) -> int:
    return min(path.stat().st_size + 1, _BLOCK_BYTES)


class _Watched(io.RawIOBase):
    """A file that is UTF-8, byte by byte, and whose quotation marks stand where those of CSV do."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at, self._quotes = file, 0, Quotation(file.name)
        self._decode: Callable = codecs.getincrementaldecoder("utf-8")().decode

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        size = self._file.readinto(buffer)
        # Some at a time: one character beyond Latin makes two or four bytes of each in a str.
        for start in range(0, max(size, 1), _DECODED_BYTES):
            data = bytes(buffer[start : min(start + _DECODED_BYTES, size)])
            try:
                self._decode(data, final=size < len(buffer) and start + len(data) == size)
            except UnicodeDecodeError as error:
                # The decoder may have kept the first bytes of a character that the last read cut off.
                at = self._at + len(data) - len(error.object) + error.start
                raise UnicodeDecodeError("utf-8", error.object, at, at + 1, error.reason) from None
            self._quotes.take(data if self._at else data.removeprefix(codecs.BOM_UTF8))
            self._at += len(data)
        return size

    def require_closed_quotes(self) -> None:
        """Raise `InputError` where a quotation mark is never closed, or closes a text that goes on."""
        while rest := self._file.read(_DECODED_BYTES):
            self._quotes.take(rest)
        self._quotes.end()
