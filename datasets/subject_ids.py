"""Patient ids: one type in all tables, so that the same patient is the same value everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from .checks import NO_PATIENT, TableCheck
from .errors import InputError
from .words import as_words

# Every number of this many digits fits int64.
_DIGITS = 18
_NUMBER = re.compile(r"\+?0*(\d+)(?:\.0*)?", re.ASCII)


def subject_names(values: pd.Series, check: TableCheck) -> pd.Series:
    """Patient ids as trimmed text; whether they are numbers is decided over all tables.

    Args:
        values: integers, text, or the floats that pandas makes of integers beside a blank.
        check: collects rows without an id.

    Raises:
        InputError: floats that are no whole numbers, or too large to be exact.
    """
    if pd.api.types.is_float_dtype(values.dtype):
        numbers = values.dropna().to_numpy()
        # The whole numbers that a float has without gaps.
        exact = 2.0 ** (np.finfo(numbers.dtype).nmant + 1)
        if not np.all((np.abs(numbers) < exact) & (numbers == np.trunc(numbers))):
            raise InputError(
                f"{check.table}.subject_id holds floats that are fractions or too large to be exact, so patients could "
                'be mistaken for each other. Read the column as text: read_csv(..., dtype={"subject_id": "str"}).'
            )
    words = as_words(values)
    check.refuse(words.blank, NO_PATIENT, "Every row must name its patient: fill it in")
    check.refuse(words.broken, "subject_id is not Unicode text (lone surrogates)", "Decode the source again")
    check.refuse(words.strange, "subject_id is neither text nor a number", "Convert the column to text")
    return words.text.str.strip()


def are_whole_numbers(names: Iterable[str]) -> bool:
    """Whether all ids are int64 in their plain form ("17", not "017" or "1e3")."""
    for name in names:
        digits = name.removeprefix("-")
        if not digits.isascii() or not digits.isdigit() or len(digits) > _DIGITS:
            return False
        if str(int(name)) != name:
            return False
    return True


def numbers_written(names: Iterable[str], table: str, asked: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """How each patient's id that is a number is written, by its plain form.

    Args:
        names: ids of a table.
        table: its name, for messages.
        asked: what this gave for the outcomes, where the table is another: only ids of their patients matter.

    Raises:
        InputError: a number is written in two ways, such as 7, 007 and 7.0.
    """
    written = {} if asked is None else asked
    for name in names:
        found = _NUMBER.fullmatch(name)
        if found is None:
            continue
        plain = found[1]
        if (written.setdefault(plain, name) if asked is None else written.get(plain, name)) != name:
            raise InputError(
                f"{table}.subject_id writes a number otherwise than it stands elsewhere, as 007 or 7.0 and 7 are the "
                "same number, so that one patient would be taken for two. Write each patient alike in all tables."
            )
    return written


def of_one_type(
    tables: Mapping[str, pd.DataFrame], checks: Mapping[str, TableCheck], whole: bool = True
) -> dict[str, pd.DataFrame]:
    """The tables with `subject_id` as int64 if all of them are plain numbers, else as text.

    Args:
        tables: by name, the outcomes first, each with `subject_id`.
        checks: by name, take up rows without an id.
        whole: False if it is known beforehand that some id is no plain number.

    Raises:
        InputError: ids cannot be told apart, or one patient would be taken for two.
    """
    if whole and all(are_small_integers(table["subject_id"]) for table in tables.values()):
        return {
            name: table if table["subject_id"].dtype == "int64" else table.astype({"subject_id": "int64"})
            for name, table in tables.items()
        }
    names = {name: subject_names(table["subject_id"], checks[name]) for name, table in tables.items()}
    distinct = {name: pd.factorize(column) for name, column in names.items()}
    # Rows without an id are refused above; the number they get here is never looked at.
    whole = whole and all(are_whole_numbers(name or "0" for name in ids) for _, ids in distinct.values())
    if not whole:
        written = None
        for name, (_, ids) in distinct.items():
            written = numbers_written(ids, name, written)
        return {name: table.assign(subject_id=names[name]) for name, table in tables.items()}
    return {
        name: table.assign(
            subject_id=np.array([int(one or 0) for one in distinct[name][1]], np.int64)[distinct[name][0]]
        )
        for name, table in tables.items()
    }


def are_small_integers(ids: pd.Series) -> bool:
    """Whether a column is one of integers that `are_whole_numbers` would take, without writing them out."""
    if not isinstance(ids.dtype, np.dtype) or ids.dtype.kind not in "iu":
        return False
    numbers = ids.to_numpy()
    return not len(numbers) or max(-int(numbers.min()), int(numbers.max())) < 10**_DIGITS
