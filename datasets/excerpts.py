"""Excerpts of event tables: out of files of any size, the rows that matter to some sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from .checks import Excerpt, Places, Policy, TableCheck
from .subject_ids import are_small_integers, are_whole_numbers, numbers_written, subject_names
from .tables import no_patient_in_common, parse_rows, require_columns
from .times import mixed_zones, parse_times
from .windows import available_time, bisect_runs, reach, runs

# Columns of many rows and few words.
WORDS = ("code", "unit", "kind", "view")
_TIMES = ("time", "available_at")


class Identified(NamedTuple):
    """The patients of some rows; `names` are their ids as text where some id is no plain number, else int64."""

    names: np.ndarray
    number: np.ndarray
    """int64 `[row]`: a position in `names`; -1 where the id is missing."""
    whole: bool
    """Whether all ids are plain numbers."""


class Asked:
    """Of whom something is predicted, and when: what decides which rows of event tables matter.

    With a history, those matter that some sample sees. Without, all of the patients' rows do.

    Args:
        outcomes: `subject_id`, `prediction_time` and further columns.
        history: hours before the prediction time that inputs reach back; None for all there is, and for what
            became known later.
        invalid: "raise" or "exclude", of rows that cannot be used.

    Raises:
        InputError: a column is missing or cannot be used as a whole.
    """

    def __init__(self, outcomes: pd.DataFrame, *, history: float | None, invalid: Policy) -> None:
        require_columns(outcomes, "outcomes")
        self.invalid = invalid
        check = TableCheck("outcomes", len(outcomes), invalid)
        patients = _identified(outcomes["subject_id"], check)
        moments, zoned = parse_times(outcomes["prediction_time"], check, "prediction_time")
        self.zones: dict[str, bool] = {"outcomes.prediction_time": zoned} if moments.notna().any() else {}
        """Whether a column of times had zones, by its name."""
        self.outcomes = Excerpt(outcomes.assign(prediction_time=moments.array), check, patients.whole)
        number, moments = patients.number[check.usable], moments.to_numpy()[check.usable].view("int64")
        order = np.lexsort((moments, number))
        known, counts = np.unique(number, return_counts=True)
        self._moments = moments[order]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._back = reach(history)
        names = pd.Index(patients.names)[known]
        # The same patient may be a number here and text there: what counts is how it is written.
        self._numbers = pd.Index(names) if patients.names.dtype == np.int64 else _numbers_among(names)
        self._names = pd.Index(names.astype("str"))

    def numbered(self, patients: Identified) -> np.ndarray:
        """int64 `[row]`: whose rows these are, as this object numbers patients; -1 for all others."""
        if patients.names.dtype == np.int64:
            own = self._numbers.get_indexer(patients.names)
        else:
            own = self._names.get_indexer(pd.Index(patients.names))
        return np.append(own, -1)[patients.number]

    def require_one_writing(self, patients: Identified, table: str) -> None:
        """Raise `InputError` where a table writes the number of a patient of the outcomes otherwise than these do."""
        if patients.names.dtype != np.int64 or not self.outcomes.whole_numbers:
            numbers_written(map(str, patients.names), table, self._written)

    @cached_property
    def _written(self) -> Mapping[str, str]:
        return numbers_written(self._names, "outcomes")

    def are_ours(self, ids: np.ndarray) -> np.ndarray:
        """bool `[row]`: whether something is predicted of these patients (int64)."""
        return self._numbers.get_indexer(ids) >= 0

    def matter(self, patient: np.ndarray, available: np.ndarray) -> np.ndarray:
        """bool `[row]`: which rows matter, by the patient's number and int64 microseconds."""
        ours = patient >= 0
        if self._back is None:
            return ours
        rows = np.flatnonzero(ours)
        low, high = self._starts[patient[rows]], self._starts[patient[rows] + 1]
        # The first prediction that does not come before the event became available.
        first = bisect_runs(self._moments, low, high, available[rows], "left")
        seen = first < high
        rows, first = rows[seen], first[seen]
        ours[:] = False
        ours[rows[self._moments[first] - self._back <= available[rows]]] = True
        return ours


def _numbers_among(names: pd.Index) -> pd.Index:
    """Those ids of text that are plain numbers at their places, and numbers that no id can be at the others."""
    places = -(2**62) - np.arange(len(names))
    numbers = (int(name) if are_whole_numbers([name]) else place for name, place in zip(names, places, strict=True))
    return pd.Index(np.fromiter(numbers, np.int64, len(names)))


def _identified(ids: pd.Series, check: TableCheck) -> Identified:
    """Who the rows are of; a row without an id is refused."""
    if are_small_integers(ids):
        rows = ids.to_numpy()
        # Rows mostly come patient by patient.
        starts, lengths = runs(rows)
        number, names = pd.factorize(rows[starts])
        return Identified(names.astype(np.int64), np.repeat(number, lengths), True)
    names = subject_names(ids, check)
    number, distinct = pd.factorize(names.where(names != ""))
    if are_whole_numbers(distinct):
        return Identified(np.array([int(one) for one in distinct], np.int64), number, True)
    return Identified(distinct.to_numpy(object), number, False)


def _texts(values: pd.Series) -> pa.Array:
    texts = pa.array(values)
    return (texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts).cast(pa.large_string())


class EventRows:
    """Takes the rows of one event table piece by piece, and keeps those that matter and those that are wrong.

    Each piece is checked as a whole table is, so that no row goes unchecked because it matters to nobody.

    Args:
        name: "labs", "notes" or "images".
        asked: says which rows matter.
        files: what messages call each file that the rows come from.
    """

    def __init__(self, name: str, asked: Asked, files: Iterable[str]) -> None:
        self.name, self.rows = name, 0
        self._asked, self._files = asked, tuple(files)
        self._usable, self._ours, self._strangers = False, False, 0
        self._words: dict[str, dict[str, int]] = {}
        self._columns: dict[str, list[np.ndarray | pa.Array]] = {}
        self._checks: list[TableCheck] = []
        self._whole = True

    def take(self, table: pd.DataFrame, file: int, places: np.ndarray) -> None:
        """Take some rows.

        Args:
            table: with the columns of the event table.
            file: its number among the files.
            places: int64 `[row]`, where they stand in it; the first data row is 1.

        Raises:
            InputError: a whole column cannot be used.
        """
        require_columns(table, self.name)
        where = Places(self._files, np.full(len(table), file, np.int32), places)
        check = TableCheck(self.name, len(table), self._asked.invalid, where)
        patients = _identified(table["subject_id"], check)
        zones: dict[str, bool] = {}
        parsed = parse_rows(table, check, zones)
        for column, zoned in zones.items():
            if self._asked.zones.setdefault(column, zoned) != zoned:
                raise mixed_zones(column)
        self._whole &= patients.whole
        self.rows += len(table)
        number = self._asked.numbered(patients)
        self._asked.require_one_writing(patients, self.name)
        self._usable |= bool(check.usable.any())
        ours = number[check.usable] >= 0
        self._ours |= bool(ours.any())
        self._strangers += int((~ours).sum())
        matter = self._asked.matter(number, available_time(parsed).to_numpy("datetime64[us]").view("int64"))
        kept = np.flatnonzero(matter | ~check.usable)
        self._checks.append(check.take(kept))
        # A row without an id is refused; what it gets here is never looked at.
        self._keep("subject_id", np.append(patients.names, 0 if patients.whole else "")[patients.number[kept]])
        for column in parsed.columns.drop("subject_id"):
            self._keep(column, self._compact(parsed[column].iloc[kept], column))

    def _keep(self, column: str, values: np.ndarray | pa.Array) -> None:
        self._columns.setdefault(column, []).append(values)

    def _compact(self, values: pd.Series, column: str) -> np.ndarray | pa.Array:
        """A column in as little room as will do; of words, their numbers."""
        if column not in WORDS:
            return values.to_numpy() if column in (*_TIMES, "value") else _texts(values)
        number, words = pd.factorize(values)
        known = self._words.setdefault(column, {})
        return np.array([*(known.setdefault(word, len(known)) for word in words), -1], np.int32)[number]

    def excerpt(self) -> Excerpt:
        """The rows that were kept; this object gives them up.

        Raises:
            InputError: no row is of a patient of the outcomes.
        """
        check = TableCheck.joined(self._checks)
        # What is wrong with rows is told before whose they are.
        asked = self._asked.outcomes.check.usable.any()
        if asked and self._usable and not self._ours and not check.fatal.any():
            raise no_patient_in_common(self.name)
        columns = {column: self._joined(column) for column in list(self._columns)}
        return Excerpt(pd.DataFrame(columns, copy=False), check, self._whole, self._strangers)

    def _joined(self, column: str) -> object:
        parts = self._columns.pop(column)
        if column == "subject_id":
            # Where some piece has other ids than plain numbers, all are text.
            return (
                np.concatenate(parts)
                if self._whole
                else pd.array([str(name) for part in parts for name in part], "str")
            )
        if isinstance(parts[0], np.ndarray) and column not in WORDS:
            return np.concatenate(parts)
        if column not in WORDS:
            return pd.Series(pa.chunked_array(parts).to_pandas(), dtype="str").array
        number, words = np.concatenate(parts), list(self._words.pop(column, {}))
        return pd.Categorical.from_codes(number, words)
