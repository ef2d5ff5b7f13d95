"""The five tables of a cohort: what columns they have, and what a row must satisfy to enter.

Every check names the table, the data row (the first is 1), and the remedy, and never the patient or
the text. A row that fails stops the reading, or, where the caller asked for it, is left out and
listed as an `Exclusion`.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .arguments import require_table
from .checks import NO_PATIENT, Excerpt, Policy, TableCheck
from .errors import InputError
from .times import are_mostly_days, are_mostly_years, mostly_dates, parse_times
from .words import LONGEST_TEXT, UNFILLED, Words, as_words

REQUIRED = {
    "outcomes": ("subject_id", "prediction_time"),
    "labs": ("subject_id", "time", "code", "value"),
    "notes": ("subject_id", "time", "text"),
    "images": ("subject_id", "time", "path"),
    "static": ("subject_id",),
}
OPTIONAL = {
    "labs": ("unit", "available_at"),
    "notes": ("kind", "available_at"),
    "images": ("view", "study_uid", "available_at"),
}
EVENT_TABLES = ("labs", "notes", "images")
_NAMES = {column for columns in (*REQUIRED.values(), *OPTIONAL.values()) for column in columns}
TIME_COLUMNS = ("prediction_time", "time", "available_at")

# No quantity that a laboratory reports reaches this in any customary unit: the largest are cell
# counts a litre (red cells, 5e12) and viral loads (1e11 copies a litre).
LARGEST_LAB_VALUE = 1e15

_MANY_NUMBERS, _FEW_WORDS = 30, 0.1
_CODE = re.compile(r"[A-Za-z]\d[\w.]*")
"""A word that is a code, such as V27 and E849.0 of ICD-9, among codes that are numbers."""
_AMONG_NUMBERS = "Write a number (90 for 90+), or leave the cell blank; if they are codes, put a letter before each"

# What pandas calls a column of a CSV file whose header is blank.
_NAMELESS = re.compile(r"\s*$|Unnamed: \d+$")


def require_columns(table: pd.DataFrame, name: str) -> None:
    """Raise `InputError` unless the table has the columns that its kind needs, each once."""
    require_table(name, table)
    missing = [column for column in REQUIRED[name] if column not in table.columns]
    alike = [str(there) for there in table.columns if str(there).strip().lower() in missing]
    if alike:
        raise InputError(
            f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {', '.join(alike)}, which "
            "only case or blanks tell apart. Write the names of columns as here, in lower case."
        )
    if missing:
        # Where no name is known, the first line may be a patient's.
        known = any(column in str(there) for there in table.columns for column in _NAMES)
        there = ", ".join(map(str, table.columns)) if known else f"{len(table.columns)} others, if these are names"
        raise InputError(
            f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{there if len(table.columns) else 'none'}. Rename or add what is missing."
        )
    doubled = table.columns[table.columns.duplicated()]
    if len(doubled):
        raise InputError(f"{name} has the column {doubled[0]} twice. Rename or drop one of them.")
    if name in ("outcomes", "static"):
        # Every further column has a meaning here, so that a forgotten row number would become one.
        nameless = [column for column in table.columns if not isinstance(column, str) or _NAMELESS.match(column)]
        if nameless:
            raise InputError(
                f"{name} has a column without a name ({nameless[0]!r}). Name it by text, or drop it; if it is the row "
                "number that pandas writes, write the table with index=False."
            )


def no_patient_in_common(name: str) -> InputError:
    """A table has rows, and none is of a patient of the outcomes."""
    return InputError(f"No subject_id of {name} stands in outcomes. Check that both tables write patients alike.")


def as_excerpt(name: str, table: pd.DataFrame | Excerpt, policy: Policy) -> Excerpt:
    """A table as it was given, of which nothing is known to be wrong yet; an excerpt as it is.

    Raises:
        InputError: a column is missing or stands there twice.
    """
    if isinstance(table, Excerpt):
        return table
    require_columns(table, name)
    return Excerpt(table.reset_index(drop=True), TableCheck(name, len(table), policy))


def parse_lab_values(values: pd.Series, check: TableCheck) -> pd.Series:
    """Lab values as float32, refusing what is blank, not a number, infinite or impossibly large.

    Raises:
        InputError: the column holds times, durations or complex numbers.
    """
    if pd.api.types.is_datetime64_any_dtype(values.dtype) or values.dtype.kind in "mMc":
        raise InputError(f"{check.table}.value holds {values.dtype}, not numbers. Write results as plain numbers.")
    if pd.api.types.is_numeric_dtype(values.dtype):
        numbers = values.to_numpy(None if values.dtype == "float32" else "float64", na_value=np.nan)
        # Neither NaN nor infinity passes; the marks below are for a column that has something to mark.
        if max(numbers.max(initial=0), -numbers.min(initial=0)) <= LARGEST_LAB_VALUE:
            return pd.Series(numbers.astype("float32", copy=False), index=values.index, name="value", copy=False)
        blank = np.isnan(numbers)
    else:
        words = as_words(values)
        blank = words.blank
        numbers = pd.to_numeric(words.text.where(~blank), errors="coerce").to_numpy("float64")
    check.refuse(blank, "value is blank or NaN", "A measurement without a result is no row: remove it")
    check.refuse(np.isnan(numbers) & ~blank, "value is not a number", "Write the result as a plain number")
    check.refuse(np.isinf(numbers), "value is infinite", "Correct the value")
    check.refuse(
        np.isfinite(numbers) & (np.abs(numbers) > LARGEST_LAB_VALUE),
        f"value is beyond ±{LARGEST_LAB_VALUE:.0e}, which no laboratory reports",
        "Correct the value or its unit",
    )
    # What is beyond float32 is refused above and never looked at again.
    with np.errstate(over="ignore"):
        return pd.Series(numbers.astype("float32"), index=values.index, name="value")


def parse_words(values: pd.Series, check: TableCheck, column: str, *, optional: bool = False) -> pd.Series:
    """A text column; a blank is refused, or, where `optional`, missing.

    White space around a word is no part of it ("HR " is "HR"), except in notes and paths.
    """
    words = as_words(values)
    refuse_unreadable(words, check, column)
    if column == "text":
        check.refuse(
            np.asarray(pc.binary_length(pa.array(words.text))) > LONGEST_TEXT,
            f"text has more than {LONGEST_TEXT >> 20} MiB",
            "Divide it into several notes, or remove the row",
        )
    text = words.text if column in ("text", "path") else words.text.str.strip()
    if not optional:
        check.refuse(words.blank, f"{column} is blank", "Fill it in, or remove the row")
        return text
    return text.mask(words.blank)


AGE = re.compile(r"(?:anchor_|patient_)?age(?:_?(?:years?|yrs?))?(?:_at_\w+)?", re.I)
"""Names of static columns that are an age in years."""


def parse_codes(values: pd.Series, check: TableCheck, column: str) -> pd.Series:
    """A text column of many rows and few words, as a categorical; a blank is refused."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return parse_words(values, check, column).astype("category")
    # Each word is looked at once, and not once a row.
    places, words = values.cat.codes.to_numpy(), as_words(pd.Series(values.cat.categories))
    unfit = words.blank | words.broken | words.strange
    if unfit.any() or (places < 0).any():
        parse_words(values, check, column)
    elif values.cat.categories.identical(pd.Index(words.text.str.strip())):
        return values
    merged, names = pd.factorize(words.text.str.strip().mask(unfit), sort=True)
    coded = np.append(merged, -1).astype(places.dtype)[places]
    return pd.Series(pd.Categorical.from_codes(coded, names), index=values.index)


def refuse_unreadable(words: Words, check: TableCheck, column: str) -> None:
    """Refuse the rows whose cell is no text."""
    check.refuse(
        words.broken,
        f"{column} has code points that are not Unicode text (lone surrogates)",
        'Decode the source again, for instance with errors="replace"',
    )
    check.refuse(
        words.strange, f"{column} is neither text nor a number", "Convert it to text (decode bytes, join lists)"
    )


def _excuse_blank_rows(table: pd.DataFrame, check: TableCheck) -> None:
    """Tell rows in which nothing stands, as spreadsheets leave them, from those that lack their patient."""
    rows = np.flatnonzero(check.refused_for(NO_PATIENT))
    for column in table.columns.drop("subject_id"):
        rows = rows[as_words(table[column].iloc[rows]).blank]
    if len(rows):
        check.excuse(rows)


def parse_rows(table: pd.DataFrame, check: TableCheck, zones: dict[str, bool]) -> pd.DataFrame:
    """One table with its columns in their types; rows that cannot be used are noted in `check`.

    Args:
        table: has `subject_id` in its final type.
        check: collects the rows that cannot be used.
        zones: takes up whether each time column had zones.

    Raises:
        InputError: a whole column cannot be used.
    """
    name = check.table
    _excuse_blank_rows(table, check)
    if name == "static":
        return parse_static(table, check)
    columns: dict[str, pd.Series] = {"subject_id": table["subject_id"]}
    kept = table.columns.drop("subject_id")
    if name != "outcomes":
        kept = [column for column in REQUIRED[name] + OPTIONAL[name] if column in kept]
    for column in kept:
        values, optional = table[column], column in OPTIONAL.get(name, ())
        if column in TIME_COLUMNS and (name != "outcomes" or column == "prediction_time"):
            columns[column], zoned = parse_times(values, check, column, optional=optional)
            if columns[column].notna().any():
                zones[f"{name}.{column}"] = zoned
        elif name == "labs" and column == "value":
            columns[column] = parse_lab_values(values, check)
        elif name == "labs" and column == "code":
            columns[column] = parse_codes(values, check, column)
        elif name != "outcomes":
            columns[column] = parse_words(values, check, column, optional=optional)
        else:
            columns[column] = values
    return pd.DataFrame(columns, copy=False)


def parse_static(table: pd.DataFrame, check: TableCheck) -> pd.DataFrame:
    """Static columns as float32 (numbers, truth values) or text (categories); a blank is missing.

    Raises:
        InputError: two rows for one patient that differ, or a column of dates.
    """
    columns = {"subject_id": table["subject_id"]}
    for column in table.columns.drop("subject_id"):
        columns[column] = _static_column(table[column], check, column)
    parsed = pd.DataFrame(columns)
    check.refuse(check.repeated(parsed), "the same row stands there twice", "Keep one row a patient")
    doubled = table["subject_id"].duplicated().to_numpy() & check.usable
    if doubled.any():
        raise InputError(
            f"static, data row {int(np.flatnonzero(doubled)[0]) + 1}: a second row for the same patient "
            f"({int(doubled.sum())} such rows). Keep one row a patient; what changes in time belongs in labs."
        )
    return parsed


def _static_column(values: pd.Series, check: TableCheck, column: str) -> pd.Series:
    if pd.api.types.is_numeric_dtype(values.dtype) and values.dtype.kind in "iuf" and values.notna().any():
        return _fact_numbers(pd.Series(values.to_numpy("float64", na_value=np.nan), index=values.index), check, column)
    words = as_words(values)
    refuse_unreadable(words, check, column)
    text, filled = words.text.str.strip(), ~words.blank & ~words.broken & ~words.strange
    if pd.api.types.is_datetime64_any_dtype(values.dtype) or mostly_dates(text[filled]):
        raise _dates(column)
    if isinstance(values.dtype, pd.CategoricalDtype) or not filled.any():
        return text.where(filled)
    truth = text[filled].str.lower()
    if truth.isin(["true", "false"]).all():
        return truth.eq("true").astype("float32").reindex(values.index)
    unfilled = truth.isin(UNFILLED).reindex(values.index, fill_value=False).to_numpy()
    numbers = pd.to_numeric(text.where(filled & ~unfilled), errors="coerce")
    words_there = numbers.isna().to_numpy() & filled & ~unfilled
    # 007 is a code, and so are its like, unless it is an age: as a number it would not be told from 7.
    is_coded = AGE.fullmatch(column) is None and (
        text[filled].str.match(r"[+-]?0\d").any()
        or (words_there.any() and text[words_there].str.fullmatch(_CODE).all())
    )
    if numbers.isna().all() or is_coded:
        return text.where(filled)
    if words_there.any():
        if not _is_mostly_numbers(column, numbers[filled & ~unfilled]):
            return text.where(filled)
        check.refuse(words_there, f"{column} is a word, where nearly all are numbers", _AMONG_NUMBERS)
    # One NA among numbers would make a category of every age.
    check.refuse(filled & unfilled, f"{column} says NA or the like", "Leave the cell blank if nothing is known")
    return _fact_numbers(numbers, check, column)


def _is_mostly_numbers(column: str, numbers: pd.Series) -> bool:
    """Whether a static column is one of numbers although some of its filled cells (NaN here) are words, such as 90+.

    Ages are; and so are columns of many different numbers and few words. As categories each number would be one of
    its own, of few patients, and new to most others.
    """
    words = int(numbers.isna().sum())
    many = numbers.nunique() > _MANY_NUMBERS and words <= _FEW_WORDS * len(numbers)
    return 0 < words < len(numbers) and (many or (AGE.fullmatch(column) is not None and words < len(numbers) / 2))


def _fact_numbers(numbers: pd.Series, check: TableCheck, column: str) -> pd.Series:
    """A static column of numbers, which are no dates written as numbers, nor years where ages should be."""
    if are_mostly_days(numbers):
        raise _dates(column)
    if AGE.fullmatch(column) and are_mostly_years(numbers):
        raise InputError(f"static.{column} holds years, such as 1950, and no ages. Give the age at the prediction.")
    return _finite(numbers, check, column)


def _dates(column: str) -> InputError:
    return InputError(
        f"static.{column} holds dates. A date is no static fact: of a birth give the age in years in its place; "
        "dates of death, discharge and the like tell what is to be predicted, so drop such a column."
    )


def _finite(numbers: pd.Series, check: TableCheck, column: str) -> pd.Series:
    with np.errstate(over="ignore"):
        numbers = numbers.astype("float32")
    check.refuse(np.isinf(numbers.to_numpy()), f"{column} is infinite", "Correct the number or leave it blank")
    beyond = (numbers.abs() > LARGEST_LAB_VALUE).to_numpy(bool)
    check.refuse(beyond, f"{column} is beyond ±{LARGEST_LAB_VALUE:.0e}", "Correct the number or leave it blank")
    return numbers


def sorted_samples(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Samples by patient and prediction time.

    Raises:
        InputError: two rows are one sample.
    """
    doubled = outcomes.duplicated(["subject_id", "prediction_time"])
    if doubled.any():
        row = int(outcomes.index[doubled][0]) + 1
        raise InputError(
            f"outcomes, data row {row}: the same patient and prediction_time stand there twice, with other outcomes "
            f"({int(doubled.sum())} such rows). Find out which is right, and keep one row a sample."
        )
    return outcomes.sort_values(["subject_id", "prediction_time"], ignore_index=True)


def sorted_facts(static: pd.DataFrame | None) -> pd.DataFrame | None:
    """Facts by patient; a row in which nothing is known states nothing and goes."""
    if static is None:
        return None
    stated = static.drop(columns="subject_id").notna().any(axis=1)
    return static[stated].sort_values("subject_id", ignore_index=True)
