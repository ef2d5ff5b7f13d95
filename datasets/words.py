"""Cells of any type as text: the one place that decides how a cell is written."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real

import numpy as np
import pandas as pd

UNFILLED = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "null", "."})
"""What statistical programs and databases write where nothing is known, in lower case."""

LONGEST_TEXT = 16 << 20
"""Bytes of UTF-8 in one cell: more than any note has, and little enough to be copied ten times, which reading does."""


@dataclass(frozen=True)
class Words:
    """A column as text, and what of it is no text."""

    text: pd.Series
    """str, "" where the cell is missing or has no text."""
    blank: np.ndarray
    """bool `[row]`: missing, empty or white space."""
    broken: np.ndarray
    """bool `[row]`: code points that no encoding can write (lone surrogates)."""
    strange: np.ndarray
    """bool `[row]`: neither text, number, truth value, time nor path (bytes, a list)."""

    def take(self, places: np.ndarray, index: pd.Index) -> Words:
        """The words at these places, -1 for a missing cell, as a column with this index."""
        text = pd.Series(self.text.array.take(places, allow_fill=True), index=index).fillna("")
        return Words(text, *(np.append(of, at_end)[places] for of, at_end in self._marks()))

    def _marks(self) -> tuple[tuple[np.ndarray, bool], ...]:
        return (self.blank, True), (self.broken, False), (self.strange, False)


def as_words(values: pd.Series) -> Words:
    """Each cell as text. 51221.0 is written 51221: a blank elsewhere in a column makes its integers floats."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return as_words(pd.Series(values.cat.categories)).take(values.cat.codes.to_numpy(), values.index)
    missing = values.isna().to_numpy(bool)
    none = np.zeros(len(values), bool)
    if pd.api.types.is_numeric_dtype(values.dtype) or _is_all_text(values):
        try:
            text = _plain_text(values, missing)
            return Words(text, missing | (text.str.strip() == "").to_numpy(bool), none, none)
        except UnicodeEncodeError:
            # At least one cell is broken; which ones is found below.
            pass
    cells = [None if gone else _word(cell) for cell, gone in zip(values.astype(object), missing, strict=True)]
    strange = np.fromiter((cell is None for cell in cells), bool, len(cells)) & ~missing
    broken = np.fromiter((cell is not None and not _is_unicode(cell) for cell in cells), bool, len(cells))
    cells = ["" if cell is None or bad else cell for cell, bad in zip(cells, broken, strict=True)]
    text = pd.Series(cells, index=values.index, dtype="str", name=values.name)
    blank = (text.str.strip() == "").to_numpy(bool) & ~broken & ~strange
    return Words(text, blank, broken, strange)


def as_codes(values: pd.Series) -> pd.Series:
    """Words of which there are few, as a categorical: sorted categories, each of which some row has."""
    values = values.astype("category")
    places, categories = values.cat.codes.to_numpy(), values.cat.categories
    # A missing word is at place -1.
    used = np.bincount(places + 1, minlength=len(categories) + 1)[1:] > 0
    if used.all() and categories.is_monotonic_increasing:
        return values
    return values.cat.set_categories(categories[used].sort_values())


def _is_all_text(values: pd.Series) -> bool:
    if values.dtype == object:
        return pd.api.types.infer_dtype(values, skipna=True) in ("string", "empty")
    return pd.api.types.is_string_dtype(values.dtype)


def _plain_text(values: pd.Series, missing: np.ndarray) -> pd.Series:
    if not pd.api.types.is_numeric_dtype(values.dtype):
        return values.astype(object).where(~missing, "").astype("str") if missing.any() else values.astype("str")
    # Numbers repeat (patients, codes): each is written once.
    code, distinct = pd.factorize(values)
    written = pd.array([_word(number) or "" for number in distinct], dtype="str").take(code, allow_fill=True)
    return pd.Series(written, index=values.index, name=values.name).fillna("")


def _word(cell: object) -> str | None:
    if isinstance(cell, str):
        return str(cell)
    if isinstance(cell, (bool, np.bool_, Decimal)):
        return str(cell)
    if isinstance(cell, Integral):
        return str(int(cell))
    if isinstance(cell, Real):
        return str(int(cell)) if np.isfinite(cell) and cell == int(cell) and abs(cell) < 2**53 else str(cell)
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    if isinstance(cell, np.datetime64):
        return str(cell)
    if isinstance(cell, os.PathLike):
        path = os.fspath(cell)
        return path if isinstance(path, str) else None
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
