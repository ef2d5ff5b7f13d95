"""What is wrong with the rows of a table: collected, then raised or listed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from .errors import InputError

Policy = Literal["raise", "exclude"]


@dataclass(frozen=True)
class Exclusion:
    """One row that was left out because the caller asked for `invalid="exclude"`."""

    table: str
    row: int
    """Position in the table as it was given; the first data row is 1. Of an image that could not be
    read: position in the cohort's sorted `images`."""
    reason: str


@dataclass
class TableCheck:
    """Collects what is wrong with the rows of one table, and raises or excludes at the end."""

    table: str
    rows: int
    policy: Policy
    bad: dict[int, str] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)

    def refuse(self, rows: np.ndarray, reason: str, remedy: str) -> None:
        """Mark rows (a boolean array) as unusable for one reason."""
        for row in np.flatnonzero(rows):
            self.bad.setdefault(int(row), reason)
        self.remedies.setdefault(reason, remedy)

    @property
    def usable(self) -> np.ndarray:
        """bool `[row]`: True where nothing is wrong so far."""
        usable = np.ones(self.rows, bool)
        usable[list(self.bad)] = False
        return usable

    def settle(self, table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
        """Return the rows that may enter and the list of those that were left out.

        Raises:
            InputError: a row is unusable and the policy is to raise.
        """
        if not self.bad:
            return table, ()
        if self.policy == "raise":
            row, reason = min(self.bad.items())
            more = sum(1 for other in self.bad.values() if other == reason) - 1
            also = f" (and {more} more such rows)" if more else ""
            raise InputError(
                f"{self.table}, data row {row + 1}{also}: {reason}. {self.remedies[reason]}, or leave such "
                'rows out and listed with invalid="exclude".'
            )
        listed = tuple(Exclusion(self.table, row + 1, why) for row, why in sorted(self.bad.items()))
        return table[self.usable], listed
