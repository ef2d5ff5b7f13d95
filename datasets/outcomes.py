"""What is to be predicted: the kind of each outcome column, and outcomes as numbers with a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .checks import TableCheck
from .errors import InputError
from .times import mostly_dates
from .words import UNFILLED, as_words

KINDS = ("binary", "categorical", "continuous")
_MOST_CODES = 10
"""Different whole numbers of an outcome, at most, that may be codes: stages, or 0 and 1 with 9 for unknown."""
_LEAST_OF_A_CODE = 10
"""Samples that each of them has on average: few patients have few different durations, too."""
_TRUTH = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}


class OutcomeKind(str):
    """`"binary"`, `"categorical"` or `"continuous"`; a categorical one also knows its classes.

    It is a string, so that `kinds["died"] == "binary"` reads as it should.
    """

    classes: tuple[str, ...]

    def __new__(cls, kind: str, classes: Sequence[str] = ()) -> OutcomeKind:
        if kind not in KINDS:
            raise InputError(f"The outcome kind is {str(kind)!r}; expected one of {', '.join(KINDS)}.")
        if (kind == "categorical") != bool(classes):
            raise InputError(
                f"A {kind} outcome came with the classes {tuple(classes)}; a categorical outcome needs its "
                'classes, OutcomeKind("categorical", ["mild", "severe"]), and no other kind has any.'
            )
        self = super().__new__(cls, kind)
        self.classes = tuple(map(str, classes))
        if len(set(self.classes)) != len(self.classes):
            raise InputError(f"The classes of a categorical outcome repeat: {self.classes}.")
        return self

    def __reduce__(self) -> tuple:
        return OutcomeKind, (str(self), self.classes)

    def describe(self) -> dict[str, object]:
        """Its arguments, as plain JSON values."""
        return {"kind": str(self), "classes": list(self.classes)}

    @property
    def logits(self) -> int:
        """How many numbers a model gives for this outcome: one, or one a class."""
        return max(1, len(self.classes))

    def columns(self, name: str) -> tuple[str, ...]:
        """The outcome's rows in a table of risks: `died`, or `stage=mild`, `stage=severe`."""
        return tuple(f"{name}={label}" for label in self.classes) or (name,)


def infer_kind(values: pd.Series, name: str, wanted: str | None = None) -> OutcomeKind:
    """The kind of one outcome column, from its values unless `wanted` says it.

    Truth values and 0/1 are binary, words are categorical, other numbers are continuous. Categories of pandas
    may be words and numbers together.

    Raises:
        InputError: no value at all to infer from, a word that stands for a blank, words among numbers, or values
            that the wanted kind cannot have.
    """
    if isinstance(wanted, OutcomeKind) and wanted.classes:
        return wanted
    words = _words(values)
    known = sorted(set(words.dropna()))
    if wanted is None:
        if not known:
            raise InputError(
                f"outcomes.{name} is blank throughout, so its kind cannot be told. "
                f'Give it: Cohort(..., outcome_kinds={{"{name}": "binary"}}), or drop the column, which '
                "predict does not need."
            )
        unfilled = next((word for word in known if word.lower() in UNFILLED), None)
        if unfilled is not None:
            raise InputError(
                f"outcomes.{name} has cells that say {unfilled!r}. Leave them blank if the outcome is unknown there; "
                f'if it is a class, say so: outcome_kinds={{"{name}": "categorical"}}.'
            )
        if mostly_dates(pd.Series(known)):
            raise InputError(
                f"outcomes.{name} holds dates, each of which would be a class. Give what is asked: whether it "
                "happened, or a duration."
            )
        if all(word.lower() in _TRUTH for word in known):
            wanted = "binary"
        else:
            numeric = set(pd.Series(known)[pd.to_numeric(pd.Series(known), errors="coerce").notna()])
            if 0 < len(numeric) < len(known) and not isinstance(values.dtype, pd.CategoricalDtype):
                raise _mixed(words.dropna(), numeric, name)
            wanted = "continuous" if numeric == set(known) else "categorical"
    if wanted == "categorical":
        if len(known) < 2:
            raise InputError(f"outcomes.{name} is categorical but has fewer than two classes.")
        return OutcomeKind("categorical", known)
    return OutcomeKind(wanted)


def _mixed(words: pd.Series, numeric: set[str], name: str) -> InputError:
    """Some cells of an outcome are numbers and some are words; the first of the fewer is named by its row."""
    number = words.isin(numeric)
    few, strange, others = ("a number", number, "words")
    if number.sum() >= len(words) / 2:
        few, strange, others = ("a word", ~number, "numbers")
    more = int(strange.sum()) - 1
    also = f" (and {more} more such rows)" if more else ""
    return InputError(
        f"outcomes, data row {int(words.index[strange][0]) + 1}{also}: {name} is {few}, where {len(words) - 1 - more} "
        f"rows hold {others}, so that its kind cannot be told. Correct the cell, or leave it blank if the outcome is "
        f'unknown; or give the kind that is meant: outcome_kinds={{"{name}": "categorical"}}, or "continuous".'
    )


def infer_kinds(outcomes: pd.DataFrame, wanted: Mapping[str, str]) -> dict[str, OutcomeKind]:
    """The kind of every outcome column, from its values unless `wanted` says it.

    Raises:
        InputError: `wanted` names no column, or a kind cannot be told; see `infer_kind`.
    """
    if not isinstance(wanted, Mapping):
        raise InputError(
            f'outcome_kinds is a {type(wanted).__name__}; expected a kind by outcome, such as {{"died": "binary"}}.'
        )
    names = outcomes.columns.drop(["subject_id", "prediction_time"])
    unknown = sorted(map(str, set(wanted) - set(names)))
    if unknown:
        raise InputError(f"outcome_kinds names {unknown[0]}, but outcomes has {', '.join(names) or 'no such column'}.")
    return {name: infer_kind(outcomes[name], name, wanted.get(name)) for name in names}


def told_as_numbers(outcomes: pd.DataFrame, kinds: Mapping[str, OutcomeKind], wanted: Mapping[str, str]) -> list[str]:
    """Sentences on outcomes that nobody said to be continuous, and whose few whole numbers may be codes."""
    told = []
    for name in [name for name, kind in kinds.items() if kind == "continuous" and name not in wanted]:
        numbers = outcomes[name].dropna()
        codes = np.unique(numbers)
        if len(codes) <= _MOST_CODES and len(numbers) >= _LEAST_OF_A_CODE * len(codes) and (codes % 1 == 0).all():
            listed = ", ".join(f"{code:.0f}" for code in codes)
            told.append(
                f"outcomes: {name} is only {listed}, taken for a number; if these are classes, or one stands for "
                "unknown, give outcome_kinds, or leave its cells blank"
            )
    return told


def encode_outcome(values: pd.Series, name: str, kind: OutcomeKind) -> np.ndarray:
    """One outcome as float32 `[sample]`: 0/1, class number, or value; NaN where it is unknown.

    Raises:
        InputError: a value that the kind cannot have, with its column and row.
    """
    numbers, wrong = _encoded(values, kind)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0]) + 1
        raise InputError(f"outcomes, data row {row}: {_expectation(name, kind)}. {_remedy(name)}.")
    return numbers


def typed_outcomes(outcomes: pd.DataFrame, kinds: Mapping[str, OutcomeKind], check: TableCheck) -> pd.DataFrame:
    """The outcomes table with each column in the type of its kind: text for classes, else float32.

    A value that the kind cannot have is noted in `check`, and a row that says of a sample again what was said.
    """
    columns = {}
    for name, kind in kinds.items():
        numbers, wrong = _encoded(outcomes[name], kind)
        check.refuse(wrong, _expectation(name, kind), _remedy(name))
        columns[name] = _words(outcomes[name]) if kind == "categorical" else numbers
    typed = outcomes.assign(**columns)
    reason = "the same patient and prediction_time stand there twice, with the same outcomes"
    check.refuse(check.repeated(typed), reason, "Keep one row a sample")
    return typed


def _encoded(values: pd.Series, kind: OutcomeKind) -> tuple[np.ndarray, np.ndarray]:
    """float32 `[row]`, NaN where unknown, and bool `[row]`, True where the value does not fit the kind."""
    cells = as_words(values)
    words = _words(values)
    if kind == "categorical":
        numbers = words.map({label: float(k) for k, label in enumerate(kind.classes)})
    elif kind == "binary":
        numbers = words.str.lower().map(_TRUTH)
    else:
        numbers = pd.to_numeric(words, errors="coerce")
    with np.errstate(over="ignore"):
        numbers = numbers.to_numpy("float64", na_value=np.nan).astype("float32")
    return numbers, (~np.isfinite(numbers) & words.notna().to_numpy(bool)) | cells.broken | cells.strange


def _expectation(name: str, kind: OutcomeKind) -> str:
    if kind == "categorical":
        return f"{name} is categorical, so it must be one of the classes {', '.join(kind.classes)}, or blank"
    expected = "0 or 1" if kind == "binary" else "a finite number"
    return f"{name} is {kind}, so it must be {expected}, or blank where unknown"


def _remedy(name: str) -> str:
    return f'Correct the value, or give the kind that is meant: outcome_kinds={{"{name}": ...}}'


def encode_outcomes(outcomes: pd.DataFrame, kinds: Mapping[str, OutcomeKind]) -> tuple[np.ndarray, np.ndarray]:
    """All outcomes as numbers.

    Returns:
        Values float32 `[sample, outcome]`, zero where unknown, and a mask bool `[sample, outcome]`
        that is True where the outcome is known.

    Raises:
        InputError: a column is missing, or a value does not fit its kind.
    """
    missing = [name for name in kinds if name not in outcomes.columns]
    if missing:
        raise InputError(f"outcomes lacks the column {missing[0]}, which the model predicts. Add it.")
    columns = [encode_outcome(outcomes[name], name, kind) for name, kind in kinds.items()]
    values = np.stack(columns, axis=1) if columns else np.zeros((len(outcomes), 0), np.float32)
    known = ~np.isnan(values)
    return np.where(known, values, np.float32(0)), known


def _words(values: pd.Series) -> pd.Series:
    """Values as trimmed text; missing where blank or unreadable."""
    words = as_words(values)
    return words.text.str.strip().mask(words.blank | words.broken | words.strange)
