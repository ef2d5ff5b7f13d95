"""What an audit looks at, and what it finds: how grave, how many, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from .errors import InputError
from .words import as_words

if TYPE_CHECKING:
    from .audit_images import Pictures
    from .audit_notes import NoteGroups
    from .cohort import Cohort

Severity = Literal["invalidates", "misleads", "note"]
SEVERITIES: tuple[Severity, ...] = ("invalidates", "misleads", "note")

SHOWN = 20
"""Places that a finding lists; its count is of all."""

MANY = 0.05
"""Share of a table's rows from which it misleads to leave them out."""


@dataclass(frozen=True)
class Place:
    """Where something was found, without anything that names a patient."""

    table: str
    column: str | None = None
    """A column of the table, or what is derived from it in words ("number of labs")."""
    rows: tuple[tuple[int, ...], ...] = ()
    """Rows of the cohort's table, the first is 1; rows that belong together stand together. At most
    `SHOWN`. Of rows that the cohort refused: data rows of the table as it was given."""
    parts: tuple[str, ...] = ()
    """Parts of the division that it touches."""

    def __str__(self) -> str:
        words = self.table if self.column is None else f"{self.table}.{self.column}"
        if self.rows:
            listed = ", ".join("+".join(map(str, group)) for group in self.rows[:5])
            words += f", row{'s' * (len(self.rows) > 1 or len(self.rows[0]) > 1)} {listed}"
            words += ", ..." if len(self.rows) > 5 else ""
        return words + (f" ({', '.join(self.parts)})" if self.parts else "")


@dataclass(frozen=True)
class Finding:
    """One thing that would leak or mislead."""

    severity: Severity
    """"invalidates": a score of this data and division means nothing. "misleads": it may well mean
    something else than it seems to. "note": good to know."""
    check: str
    count: int
    """How many: patients, files, rows or columns, as `what` says."""
    where: Place
    what: str
    """What was found, as a sentence."""
    remedy: str
    """What to do, as a sentence."""

    def to_dict(self) -> dict[str, object]:
        """As plain values, fit for JSON."""
        where = {
            "table": self.where.table,
            "column": self.where.column,
            "rows": [list(group) for group in self.where.rows],
            "parts": list(self.where.parts),
        }
        told = {"severity": self.severity, "check": self.check, "count": self.count}
        return told | {"where": where, "what": self.what, "remedy": self.remedy}


@dataclass(frozen=True)
class Division:
    """Which parts (train, tuning, held out, ...) each patient of a cohort is in."""

    parts: tuple[str, ...]
    """Their names; none where the cohort is not divided."""
    member: np.ndarray
    """bool `[patient, part]`, patients in the order of their ids."""

    @classmethod
    def of(cls, cohort: Cohort, parts: Mapping[str, Cohort] | Sequence[Cohort] | pd.DataFrame | None) -> Division:
        """The division that was given, or the cohort's own `subject_splits`.

        Args:
            cohort: all patients.
            parts: cohorts by name or in the order train, valid, test; or a table of `subject_id` and `split`,
                with any words, in which a patient may stand more than once.

        Raises:
            InputError: the table lacks a column, or no part has a patient of the cohort.
        """
        if parts is None:
            if cohort.subject_splits is None:
                return cls((), np.zeros((cohort.subjects, 0), bool))
            parts = cohort.subject_splits.rename("split").rename_axis("subject_id").reset_index()
        named = _table_members(parts) if isinstance(parts, pd.DataFrame) else _cohort_members(parts)
        patients = pd.Index(as_words(pd.Series(patients_of(cohort))).text)
        member = np.stack([patients.isin(names) for names in named.values()], axis=1)
        if not member.any():
            raise InputError("The division names none of the cohort's patients. Check how both write subject_id.")
        return cls(tuple(named), member)

    def names(self, patients: np.ndarray) -> tuple[str, ...]:
        """The parts that some of these patients (positions) are in."""
        touched = self.member[patients].any(axis=0)
        return tuple(name for name, here in zip(self.parts, touched, strict=True) if here)

    def crosses(self, patients: np.ndarray) -> bool:
        """Whether what these patients (positions) share lies in more than one part."""
        return len(self.names(patients)) > 1


def require_split_columns(table: pd.DataFrame) -> None:
    """Raise `InputError` unless a table of a division has its two columns."""
    missing = [column for column in ("subject_id", "split") if column not in table.columns]
    if missing:
        raise InputError(f"The split table lacks the column {missing[0]}. It needs subject_id and split.")


def _table_members(table: pd.DataFrame) -> dict[str, pd.Series]:
    require_split_columns(table)
    ids, words = (as_words(table[column].reset_index(drop=True)) for column in ("subject_id", "split"))
    split = words.text.str.strip().mask(words.blank)
    # The customary order first, other words after it.
    order = ("train", "training", "tuning", "valid", "val", "validation", "held_out", "test")
    present = sorted(split.dropna().unique(), key=lambda word: (order.index(word) if word in order else 99, word))
    if not present:
        raise InputError("The split table names no part. Fill in its column split.")
    return {word: ids.text.str.strip()[(split == word).to_numpy(bool)] for word in present}


def _cohort_members(parts: Mapping[str, Cohort] | Sequence[Cohort]) -> dict[str, pd.Series]:
    if not isinstance(parts, Mapping):
        parts = tuple(parts)
        customary = {2: ("train", "test"), 3: ("train", "valid", "test")}
        names = customary.get(len(parts), tuple(f"part {k + 1}" for k in range(len(parts))))
        parts = dict(zip(names, parts, strict=True))
    if not parts:
        raise InputError("The division has no part. Give its cohorts, or leave it out.")
    return {name: as_words(part.outcomes["subject_id"]).text for name, part in parts.items()}


class Shared(NamedTuple):
    """Something that several patients share."""

    patients: np.ndarray
    """int64, positions of the patients."""
    rows: np.ndarray
    """int64, positions of the rows where it stands, in the table that it is of."""


def patients_of(cohort: Cohort) -> np.ndarray:
    """The patients of a cohort in the order that positions of patients refer to."""
    return np.sort(cohort.outcomes["subject_id"].unique())


@dataclass(frozen=True)
class Material:
    """What the checks of an audit look at."""

    cohort: Cohort
    division: Division
    sources: Mapping[str, pd.Series] = field(default_factory=dict)
    """What should not predict the outcome, one value a sample, by name."""
    births: pd.Series | None = None
    """Time of birth by patient id, where the source has it."""
    deaths: pd.Series | None = None
    """Time of death by patient id, where the source has it."""
    same_identifiers: bool = False
    """Whether patient ids are the Patient IDs of DICOM headers themselves, rather than pseudonyms."""

    @cached_property
    def patients(self) -> pd.Index:
        return pd.Index(patients_of(self.cohort))

    @cached_property
    def sample_patient(self) -> np.ndarray:
        """int64 `[sample]`: position of the patient."""
        return self.patients.get_indexer(self.cohort.outcomes["subject_id"])

    @cached_property
    def pictures(self) -> Pictures:
        """Every image file of the cohort, looked at once."""
        from .audit_images import look_at

        return look_at(self.cohort, self.positions("images"))

    @cached_property
    def picture_groups(self) -> tuple[list[Shared], list[Shared]]:
        """Images of several patients: of the same bytes, and of the same picture."""
        from .audit_images import shared_pictures

        return shared_pictures(self.pictures)

    @cached_property
    def note_groups(self) -> NoteGroups:
        """Long notes that patients share."""
        from .audit_notes import shared_notes

        return shared_notes(self.cohort.notes, self.positions("notes"))

    def positions(self, table: str) -> np.ndarray:
        """int64 `[row]`: position of the patient of each row of a table."""
        rows = getattr(self.cohort, table)
        return np.zeros(0, np.int64) if rows is None else self.patients.get_indexer(rows["subject_id"])

    def samples_of(self, patients: Iterable[int]) -> tuple[int, ...]:
        """Rows of `outcomes` (from 1), the first of each patient (position)."""
        first = np.searchsorted(self.sample_patient, list(patients))
        return tuple(int(row) + 1 for row in first)

    def shared(self, groups: Sequence[Shared]) -> Iterator[tuple[Severity, list[Shared], tuple[str, ...]]]:
        """What patients share, sorted by how grave that is; with the parts that it touches.

        What lies in two parts is learned in one and asked in the other. Without a division, a random
        one would put it there. Within one part it only counts twice.
        """
        if not self.division.parts:
            if groups:
                yield "misleads", list(groups), ()
            return
        for severity, wanted in (("invalidates", True), ("note", False)):
            chosen = [group for group in groups if self.division.crosses(group.patients) == wanted]
            if chosen:
                yield severity, chosen, self.division.names(np.concatenate([group.patients for group in chosen]))


def single_rows(rows: np.ndarray | pd.Index) -> tuple[tuple[int, ...], ...]:
    """Positions from 0 as the rows of a `Place`, each alone."""
    return tuple((int(row) + 1,) for row in rows[:SHOWN])


def row_groups(groups: Sequence[Shared]) -> tuple[tuple[int, ...], ...]:
    """The rows of a `Place`, together as they are grouped."""
    return tuple(tuple(int(row) + 1 for row in group.rows[:SHOWN]) for group in groups[:SHOWN])


def counted(number: int, one: str, many: str | None = None) -> str:
    """ "1 patient", "2 patients"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def linked(pairs: np.ndarray) -> list[np.ndarray]:
    """Groups of numbers that pairs (int64 `[pair, 2]`) link together, each sorted."""
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.setdefault(one, one) != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for left, right in pairs.tolist():
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for one in sorted(parent):
        groups.setdefault(root(one), []).append(one)
    return [np.array(group) for group in groups.values()]
