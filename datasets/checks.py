"""What is wrong with the rows of a table: collected, then raised or listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from .errors import InputError

Policy = Literal["raise", "exclude"]

NO_PATIENT = "subject_id is blank"
BLANK_ROW = "the row is blank"


@dataclass(frozen=True)
class Exclusion:
    """One row that was left out because the caller asked for `invalid="exclude"`, or because nothing stands in it."""

    table: str
    """Its name, or, of a table in several files, the file's."""
    row: int
    """Position in the table or file as it was given; the first data row is 1. Of an image that could
    not be read: position in the cohort's sorted `images`."""
    reason: str


@dataclass(frozen=True)
class Places:
    """Where the rows of a table stand: which are some rows of one or more files."""

    files: tuple[str, ...]
    """What messages call each file."""
    file: np.ndarray
    """int `[row]`: its number in `files`."""
    row: np.ndarray
    """int64 `[row]`: its position in that file; the first data row is 1."""

    def take(self, rows: np.ndarray) -> Places:
        """The places of these rows (positions or a mask)."""
        return Places(self.files, self.file[rows], self.row[rows])

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """The places of tables laid one below the other."""
        first = np.cumsum([0, *(len(part.files) for part in parts)])
        return cls(
            tuple(name for part in parts for name in part.files),
            np.concatenate([part.file + before for part, before in zip(parts, first, strict=False)]),
            np.concatenate([part.row for part in parts]),
        )


class TableCheck:
    """Collects what is wrong with the rows of one table, and raises or excludes at the end.

    Args:
        table: its name for messages.
        rows: how many it has.
        policy: whether a row that cannot be used is raised or left out.
        places: where the rows stand, if not in a table of this name, one after the other.
    """

    def __init__(self, table: str, rows: int, policy: Policy, places: Places | None = None) -> None:
        self.table, self.rows, self.policy, self.places = table, rows, policy, places
        self.remedies: dict[str, str] = {}
        """By reason, in the order in which they came up."""
        self.cause = np.zeros(rows, np.int16)
        """`[row]`: the number of the reason in `remedies`, from 1; 0 for a row that nothing is wrong with."""

    def refuse(self, rows: np.ndarray, reason: str, remedy: str) -> None:
        """Mark rows (a boolean array) as unusable for one reason; the first reason of a row stays."""
        if not rows.any():
            return
        self.remedies.setdefault(reason, remedy)
        self.cause[rows & self.usable] = list(self.remedies).index(reason) + 1

    def excuse(self, rows: np.ndarray) -> None:
        """Mark rows (positions) as blank: they are left out and listed, and never raised."""
        self.remedies.setdefault(BLANK_ROW, "Remove it")
        self.cause[rows] = list(self.remedies).index(BLANK_ROW) + 1

    def refused_for(self, *reasons: str) -> np.ndarray:
        """bool `[row]`: which rows are unusable for one of these reasons."""
        return np.isin(self.cause, [number for number, one in enumerate(self.remedies, 1) if one in reasons])

    @property
    def fatal(self) -> np.ndarray:
        """bool `[row]`: which rows stop the reading under this policy."""
        if self.policy == "exclude":
            return np.zeros(self.rows, bool)
        return ~self.usable & ~self.refused_for(BLANK_ROW)

    @property
    def usable(self) -> np.ndarray:
        """bool `[row]`: True where nothing is wrong so far."""
        return self.cause == 0

    def repeated(self, table: pd.DataFrame) -> np.ndarray:
        """bool `[row]`: which usable rows of the table are wholly alike to a usable one before them."""
        rows = np.flatnonzero(self.usable)
        alike = np.zeros(len(table), bool)
        alike[rows] = table.iloc[rows].duplicated().to_numpy()
        return alike

    def take(self, rows: np.ndarray) -> TableCheck:
        """The same check of only these rows (positions)."""
        taken = TableCheck(self.table, len(rows), self.policy, self.places and self.places.take(rows))
        taken.remedies, taken.cause = self.remedies, self.cause[rows]
        return taken

    def settle(self, table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
        """Return the rows that may enter and the list of those that were left out.

        Raises:
            InputError: a row is unusable and the policy is to raise.
        """
        usable = self.usable
        if usable.all():
            return table, ()
        bad, reasons = np.flatnonzero(~usable), list(self.remedies)
        fatal = np.flatnonzero(self.fatal)
        if len(fatal):
            name, row = self._place(fatal[0])
            cause = self.cause[fatal[0]]
            more = int((self.cause == cause).sum()) - 1
            also = f" (and {more} more such rows)" if more else ""
            reason = reasons[cause - 1]
            raise InputError(
                f"{name}, data row {row}{also}: {reason}. {self.remedies[reason]}, or leave such "
                'rows out and listed with invalid="exclude".'
            )
        listed = tuple(Exclusion(*self._place(row), reasons[self.cause[row] - 1]) for row in bad)
        return table[usable], listed

    def _place(self, row: int) -> tuple[str, int]:
        if self.places is None:
            return self.table, int(row) + 1
        return self.places.files[self.places.file[row]], int(self.places.row[row])

    @classmethod
    def joined(cls, parts: Sequence[TableCheck]) -> TableCheck:
        """The check of tables laid one below the other; each has places."""
        places = Places.joined([part.places for part in parts])
        whole = cls(parts[0].table, len(places.row), parts[0].policy, places)
        start = 0
        for part in parts:
            for number, (reason, remedy) in enumerate(part.remedies.items(), 1):
                whole.remedies.setdefault(reason, remedy)
                here = whole.cause[start : start + part.rows]
                here[part.cause == number] = list(whole.remedies).index(reason) + 1
            start += part.rows
        return whole


@dataclass(frozen=True)
class Excerpt:
    """Some rows of a table, those that matter, taken from where the whole stands."""

    table: pd.DataFrame
    check: TableCheck
    """What is wrong with these rows so far, and where they stand."""
    whole_numbers: bool = True
    """False if some patient of the whole, here or not, has an id that is no plain number."""
    strangers: int = 0
    """Rows that are not here, since nothing is predicted of their patients."""
