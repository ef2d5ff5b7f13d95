"""Files of the PhysioNet Challenge 2012, as published or as Parquet: what the lines say, before what they mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_float_dtype, is_integer_dtype
from pyarrow import csv

from .errors import InputError
from .files import read_table
from .tables import LARGEST_LAB_VALUE

SETS = ("a", "b", "c")

HEADER = "Time,Parameter,Value"
_TIME = re.compile(r"(\d{2,4}):([0-5]\d)", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z0-9]*", re.ASCII)
_VALUE = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_WORDS = pa.dictionary(pa.int32(), pa.string())


class Events(NamedTuple):
    """Rows of records, in file order."""

    record: np.ndarray
    """int64 `[row]`."""
    minutes: np.ndarray
    """int32 or int64 `[row]`, since admission."""
    parameter: np.ndarray
    """`[row]`: a position in `names`, in as few bytes as will do."""
    value: np.ndarray
    """float32 `[row]`."""
    names: list[str]
    records: np.ndarray
    """int64: the records that have a row."""

    def named(self, *names: str) -> np.ndarray:
        """bool `[row]`: which rows have one of these parameters."""
        found = np.zeros(len(self.record), bool)
        for name in names:
            if name in self.names:
                found |= self.parameter == self.names.index(name)
        return found

    @classmethod
    def joined(cls, parts: Sequence[Events]) -> Events:
        """The rows of several sets, one below the other."""
        names = list(dict.fromkeys(name for part in parts for name in part.names))
        place = [np.array([names.index(name) for name in part.names], np.min_scalar_type(len(names))) for part in parts]
        return cls(
            *(np.concatenate([part[k] for part in parts]) for k in (0, 1)),
            np.concatenate([own[part.parameter] for own, part in zip(place, parts, strict=True)]),
            np.concatenate([part.value for part in parts]),
            names,
            np.concatenate([part.records for part in parts]),
        )


def read_set(folder: Path, letter: str) -> tuple[Events, pd.Series]:
    """Events and outcomes (0 or 1, by record) of one set.

    Raises:
        InputError: the set or its outcomes are not there, or a line or row is malformed.
    """
    home = folder / f"set-{letter}"
    if not home.is_dir():
        have = ", ".join(f"set-{other}" for other in SETS if (folder / f"set-{other}").is_dir()) or "none of the sets"
        raise InputError(f"There is no folder {home}; {folder} holds {have}. Check the path, or ask for another set.")
    parquet, texts = home / "events.parquet", _records_in(home)
    if parquet.is_file() and texts:
        raise InputError(f"{home} has both events.parquet and text files. Remove one of them.")
    if parquet.is_file():
        events = _parquet_events(parquet)
    elif texts:
        events = _text_events(home, texts)
    else:
        raise InputError(f"{home} has neither events.parquet nor record files such as 132539.txt. Put them there.")
    outcomes = read_outcomes(folder, letter)
    unknown = int((~np.isin(events.records, outcomes.index)).sum())
    if unknown:
        raise InputError(
            f"{unknown} of {len(events.records)} records of {home} have no row in the outcomes. "
            "Take both from one release, or move those records elsewhere."
        )
    return events, outcomes


def _records_in(home: Path) -> list[str]:
    """The names of the record files, in order."""
    return sorted(name for name in os.listdir(home) if name[0].isdigit() and name.endswith(".txt"))


def read_outcomes(folder: Path, letter: str) -> pd.Series:
    home, name = folder / f"set-{letter}", f"Outcomes-{letter}.txt"
    if (home / "events.parquet").is_file():
        return _outcomes([home / "outcomes.parquet"], "record_id", "in_hospital_death")
    return _outcomes([folder / name, home / name], "RecordID", "In-hospital_death")


def _parquet_events(path: Path) -> Events:
    table = read_table(path)
    _require_columns(table, path, ("record_id", "minutes", "parameter", "value"))
    for column in ("record_id", "minutes"):
        if not is_integer_dtype(table[column].dtype) or table[column].isna().any() or (table[column] < 0).any():
            raise InputError(f"{path}: {column} must be whole numbers from 0, without blanks. Correct the column.")
    numeric = is_float_dtype(table["value"].dtype) or is_integer_dtype(table["value"].dtype)
    finite = (
        np.isfinite(table["value"].to_numpy(np.float64, na_value=np.nan)) if numeric else np.zeros(len(table), bool)
    )
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0]) + 1
        raise InputError(f"{path}, data row {row}: value is not a finite number. Correct or remove the row.")
    coded = table["parameter"].astype("category")
    names = [str(name) for name in coded.cat.categories]
    parameter = coded.cat.codes.to_numpy().astype(np.int32)
    if (parameter < 0).any():
        names = names if "" in names else [*names, ""]
        parameter[parameter < 0] = names.index("")
    record, minutes = (table[column].to_numpy(np.int64) for column in ("record_id", "minutes"))
    return Events(record, minutes, parameter, table["value"].to_numpy(np.float32), names, pd.unique(record))


def _text_events(home: Path, names: Sequence[str]) -> Events:
    """Events of many record files, in file order, parsed as one text.

    No work is left for each file but reading it. Only when the whole is not as expected are the files gone
    through line by line, to name the line.
    """
    texts = [_text(home, name) for name in names]
    lines = _parse_together(texts)
    if lines is None:
        raise next(_malformed_lines(home, names, texts))
    minutes, parameter, value, words = lines
    # The first line of each file states its record.
    first = np.flatnonzero(parameter == words.index("RecordID")) if "RecordID" in words else np.zeros(0, np.int64)
    stated = value[first].astype(np.int64)
    if [f"{record}.txt" for record in stated.tolist()] != list(names) or not _opened_by(texts):
        raise _misnamed(home, names, texts)
    counts = np.diff(first, append=len(value))
    return Events(np.repeat(stated, counts), minutes, parameter, value.astype(np.float32), words, stated[counts > 1])


def _text(home: Path, name: str) -> bytes:
    path = f"{home}/{name}"
    try:
        # A tenth of all time would go into `Path.read_bytes`.
        with open(path, "rb", 0) as file:
            return file.read().rstrip()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from error


def _opened_by(texts: Sequence[bytes]) -> bool:
    """Whether the record stands in the first line below the header of each file."""
    return all(text.split(b"\n", 2)[1].split(b",")[1] == b"RecordID" for text in texts)


def _misnamed(home: Path, names: Sequence[str], texts: Sequence[bytes]) -> InputError:
    """The first file that does not state its own name first, once."""
    for name, text in zip(names, texts, strict=True):
        lines = [line.split(b",") for line in text.splitlines()[1:]]
        stated = [cells[2].strip() for cells in lines if cells[1] == b"RecordID"]
        if len(stated) != 1 or lines[0][1] != b"RecordID" or f"{int(float(stated[0]))}.txt" != name:
            break
    return InputError(
        f"{home / name} does not state its own name as RecordID, in its first line alone. Restore the published file."
    )


def _parse_together(texts: Sequence[bytes]) -> tuple | None:
    """Minutes, numbers and names of parameters, and values of all lines; None if any line is malformed."""
    # In CSV, lines end in LF or in CR and LF.
    heads = {len(HEADER) + len(end): f"{HEADER}{end}".encode() for end in ("\n", "\r\n")}
    below = [next((size for size, head in heads.items() if text.startswith(head)), 0) for text in texts]
    if not all(below):
        return None
    lines = b"\n".join([memoryview(text)[start:] for text, start in zip(texts, below, strict=True)])
    columns = {"time": _WORDS, "parameter": _WORDS, "value": pa.float64()}
    try:
        table = csv.read_csv(
            pa.py_buffer(lines),
            read_options=csv.ReadOptions(column_names=list(columns)),
            parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(column_types=columns, null_values=[]),
        )
    except pa.ArrowInvalid:
        return None
    table = table.unify_dictionaries()
    time, parameter, value = (table[column].combine_chunks() for column in columns)
    clocks = [_TIME.fullmatch(clock) for clock in time.dictionary.to_pylist()]
    names, value = parameter.dictionary.to_pylist(), value.to_numpy()
    named = all(_PARAMETER.fullmatch(name) for name in names)
    # NaN is not in the range either.
    possible = value.min(initial=0) >= -LARGEST_LAB_VALUE and value.max(initial=0) <= LARGEST_LAB_VALUE
    # A lone CR ends a line for the parser alone. To look for one is quick, to count lines is not.
    cut = b"\r" in lines and len(value) != lines.count(b"\n") + 1
    if not all(clocks) or not named or not possible or cut:
        return None
    minutes = np.array([60 * int(clock[1]) + int(clock[2]) for clock in clocks], np.int32)
    return (
        minutes[time.indices.to_numpy()],
        parameter.indices.to_numpy().astype(np.min_scalar_type(len(names))),
        value,
        names,
    )


def _malformed_lines(home: Path, names: Sequence[str], texts: Sequence[bytes]) -> Iterator[InputError]:
    for path, text in ((home / name, text) for name, text in zip(names, texts, strict=True)):
        header, *lines = text.decode(errors="replace").replace("\r\n", "\n").split("\n")
        if header != HEADER or not lines:
            yield InputError(f"{path}, line 1: expected the header {HEADER} and lines below it. Restore the file.")
        for number, line in enumerate(lines, 2):
            problem = _problem(line)
            if problem:
                yield InputError(f"{path}, line {number}: {problem}. Correct the line or restore the file.")


def _problem(line: str) -> str | None:
    """What is wrong with one line; its content stays out of the message."""
    cells = line.split(",")
    if len(cells) != 3:
        return f"expected time, parameter and value, found {len(cells)} cells"
    if not _TIME.fullmatch(cells[0]):
        return "the time is not hours and minutes since admission (HH:MM)"
    if not _PARAMETER.fullmatch(cells[1]):
        return "the parameter is not a plain name of letters and digits"
    if not _VALUE.fullmatch(cells[2]) or not abs(float(cells[2])) <= LARGEST_LAB_VALUE:
        return f"the value is not a finite number up to {LARGEST_LAB_VALUE:.0e}"
    return None


def _outcomes(paths: Sequence[Path], record: str, death: str) -> pd.Series:
    """In-hospital death, int8 by record number, from the first of `paths` that is there."""
    found = [path for path in paths if path.is_file()]
    if not found:
        raise InputError(f"The outcomes are missing: there is no file {paths[0]}. Put it there.")
    path = found[0]
    table = read_table(path)
    _require_columns(table, path, (record, death))
    records, died = (pd.to_numeric(table[column], errors="coerce") for column in (record, death))
    wrong = (records.isna() | (records % 1 != 0) | ~died.isin([0, 1])).to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0]) + 1
        raise InputError(
            f"{path}, data row {row}: expected a record number and 0 or 1 in {death}. Restore the published file."
        )
    outcomes = pd.Series(died.to_numpy("int8"), index=pd.Index(records.astype("int64"), name="record"))
    if outcomes.index.has_duplicates:
        row = int(np.flatnonzero(outcomes.index.duplicated())[0]) + 1
        raise InputError(f"{path}, data row {row}: the record stands there twice. Keep one row a record.")
    return outcomes


def _require_columns(table: pd.DataFrame, path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}; it needs {', '.join(columns)}.")
