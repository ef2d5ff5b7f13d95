"""Static facts of a cohort: scaled numbers, and categories with room for unseen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .batch import Static
from .cohort import Cohort
from .errors import InputError
from .lab_reader import cut, is_wild, robust_scale, tell_wild
from .prepared import Packed
from .words import as_words


class StaticReader:
    """Turns static columns into facts (column, scaled number or level); what is missing is no fact.

    A category that no training patient had becomes the column's "other" level.
    """

    def __init__(self) -> None:
        self.numbers_: dict[str, list[float]] = {}
        self.categories_: dict[str, list[str]] = {}

    @property
    def columns(self) -> list[str]:
        """Names of the columns, numbers first, in the order of `Static.column`."""
        return [*self.numbers_, *self.categories_]

    @property
    def levels(self) -> int:
        """How many levels there are over all categorical columns, "other" and "no category" included."""
        return 1 + sum(1 + len(seen) for seen in self.categories_.values())

    def fit(self, cohort: Cohort) -> None:
        """Learn scales and categories from the training patients; a column without any value is left out."""
        self.numbers_, self.categories_ = {}, {}
        if cohort.static is None:
            return
        for column in sorted(cohort.static.columns.drop("subject_id")):
            values = cohort.static[column].dropna()
            if not len(values):
                continue
            if pd.api.types.is_numeric_dtype(values.dtype):
                centre, spread, floor = robust_scale(values.to_numpy(np.float64))
                self.numbers_[column] = [centre, spread, floor]
            else:
                self.categories_[column] = sorted(values.unique())

    def pack(self, cohort: Cohort) -> Packed:
        """Every known fact of every sample; unseen categories and absent columns are counted in the remarks.

        Raises:
            InputError: a value that is no number in a column that held numbers in training.
        """
        facts = pd.DataFrame({"subject_id": cohort.outcomes["subject_id"]})
        if cohort.static is not None:
            facts = facts.merge(cohort.static, on="subject_id", how="left")
        columns, values, levels, known, remarks = [], [], [], [], []
        first_level = 1
        for number, column in enumerate(self.columns):
            seen = self.categories_.get(column)
            given = facts[column] if column in facts.columns else pd.Series(np.nan, index=facts.index)
            if column not in facts.columns:
                remarks.append(f"static: the column {column} is not there; it counts as missing")
            if seen is None:
                present = given.notna().to_numpy()
                deviations, level = self._deviations(column, given), np.zeros(len(given), int)
                value, wild = cut(deviations), int(is_wild(deviations, self.numbers_[column][2]).sum())
                if wild:
                    remarks.append(f"static: {tell_wild(wild, column)}")
            else:
                value, present = np.zeros(len(given)), given.notna().to_numpy()
                place = places_of(given, seen)
                level = first_level + 1 + place
                first_level += 1 + len(seen)
                unseen = int((present & (place < 0)).sum())
                if unseen:
                    remarks.append(f"static: {unseen} values of {column} that no training patient had")
            columns.append(np.full(len(given), number))
            values.append(value)
            levels.append(level)
            known.append(present)
        return _facts(columns, values, levels, known, len(facts), tuple(remarks))

    def _deviations(self, column: str, given: pd.Series) -> np.ndarray:
        centre, spread, floor = self.numbers_[column]
        numbers = as_numbers(column, given)
        if floor:
            numbers = np.log(np.maximum(numbers, floor))
        return (numbers - centre) / spread

    def state(self) -> dict[str, object]:
        return {"numbers_": self.numbers_, "categories_": self.categories_}

    def restore(self, state: Mapping[str, object]) -> None:
        self.numbers_ = {column: list(scale) for column, scale in state["numbers_"].items()}
        self.categories_ = {column: list(seen) for column, seen in state["categories_"].items()}


def _facts(columns: list, values: list, levels: list, known: list, samples: int, remarks: tuple[str, ...]) -> Packed:
    """Facts column by column as facts sample by sample, only the known ones."""
    shape = (len(columns), samples)
    present = np.array(known, bool).reshape(shape).T
    sample, column = np.nonzero(present)
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int64)
    arrays = {
        "column": np.array(columns, np.int64).reshape(shape).T[sample, column],
        "value": np.array(values, np.float32).reshape(shape).T[sample, column],
        "level": np.array(levels, np.int64).reshape(shape).T[sample, column],
    }
    return Packed(Static, offsets, np.arange(len(sample)), np.zeros(len(sample), np.float32), arrays, remarks=remarks)


def as_numbers(column: str, given: pd.Series) -> np.ndarray:
    """The values of a column that held numbers in training, float64 `[sample]`; NaN where they are missing.

    Raises:
        InputError: a value is no number.
    """
    numbers = pd.to_numeric(given, errors="coerce").to_numpy(np.float64)
    unreadable = int((given.notna().to_numpy() & np.isnan(numbers)).sum())
    if unreadable:
        raise InputError(
            f"static.{column} held numbers in training, and {unreadable} values here are none. "
            "Correct them, or leave them blank where they are not known."
        )
    return numbers


def places_of(given: pd.Series, seen: Sequence[str]) -> np.ndarray:
    """Which of the categories seen in training each value of a column is, int64 `[sample]`; -1 for none of them."""
    return pd.Index(seen, dtype="str").get_indexer(as_words(given).text.str.strip())
