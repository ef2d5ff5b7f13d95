"""Patients and stays of a FHIR export: who was in hospital, from when to when, and who died there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from .errors import InputError
from .fhir_elements import MISSING, codings, own_id, part, parts, period, referred, span, updated
from .ndjson import MalformedLineError
from .stays import LONGEST_STAY

INPATIENT = ("IMP", "ACUTE", "NONAC")
"""Encounter classes of stays in hospital (HL7 v3 ActCode): inpatient, and its two kinds, acute and not."""

_HELD = {"arrived", "triaged", "in-progress", "onleave", "finished"}
_NOT_HELD = {"planned", "cancelled", "entered-in-error", "unknown"}
_SEXES = ("male", "female", "other", "unknown")
_DIED = {
    ("http://terminology.hl7.org/CodeSystem/discharge-disposition", "exp"),
    ("http://www.nubc.org/patient-discharge", "20"),
    ("https://www.nubc.org/CodeSystem/PatDischargeStatus", "20"),
    ("http://terminology.hl7.org/CodeSystem/v2-0112", "20"),
    ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-discharge-disposition", "DIED"),
}
"""Discharge dispositions that say: died in hospital. `exp` counts without a system too."""
_UNSTATED, _NO, _YES = -1, 0, 1
TRANSFER = pd.Timedelta(hours=1)
"""An encounter that begins at most this long after another's end goes on from it."""
_YEAR = 365.2425 * 86_400_000_000


class Rows:
    """Rows of whole numbers, 8 bytes each, appended one by one: what is kept of millions of resources."""

    def __init__(self, *names: str) -> None:
        self._columns = {name: array("q") for name in names}

    def append(self, *values: int) -> None:
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def frame(self) -> pd.DataFrame:
        """The rows as int64 columns; a time that is not stated is `MISSING`."""
        return pd.DataFrame({name: np.array(column, "int64") for name, column in self._columns.items()})


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the newest version of each resource: the last by `updated`, then in the order of reading.

    Args:
        rows: `key` tells resources apart, `updated` and `turn` their versions; a version may have several rows.
    """
    order = np.lexsort([rows["turn"], rows["updated"], rows["key"]])
    key = rows["key"].to_numpy()[order]
    last = order[np.flatnonzero(np.append(key[1:] != key[:-1], True))] if len(rows) else order
    return rows[rows["turn"].isin(rows["turn"].to_numpy()[last])].reset_index(drop=True)


def key_of(kind: str, name: str) -> int:
    """64 bits that stand for a resource: among ten million, two are alike with a chance of 3 in a million."""
    return hash((kind, name))


class Register:
    """Takes up Patient and Encounter resources; gives the stays.

    Args:
        classes: the Encounter classes that are stays.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.numbers: dict[str, int] = {}
        """Patient id to a number from 0, in the order in which patients were met."""
        self.without_patient = 0
        """How many Encounters that took place name no Patient, as `encounters` left them out."""
        self.joined = 0
        """How many Encounters go on from another, as `stays` joined them."""
        self.merged = 0
        """How many patients are another, as `merge` found."""
        self._links: list[tuple[int, int]] = []
        self._classes: dict[str, int] = {}
        self._wanted = tuple(classes)
        self._patients = Rows("key", "updated", "turn", "patient", "birth", "died", "died_first", "died_last", "sex")
        self._encounters = Rows(
            *("key", "updated", "turn", "patient", "start", "end_first", "end_last", "whole", "kind", "held", "died")
        )

    def take_patient(self, resource: dict) -> None:
        """Take up a Patient.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        name, version = own_id(resource), updated(resource)
        birth = span(resource, "birthDate")
        death = span(resource, "deceasedDateTime")
        deceased = part(resource, "deceasedBoolean", bool)
        sex = part(resource, "gender", str) or "unknown"
        if sex not in _SEXES:
            raise MalformedLineError(f"gender is none of {', '.join(_SEXES)}")
        links = [(part(one, "type", str), referred(one, "other", "Patient")) for one in parts(resource, "link")]
        died = _YES if death.last != MISSING else _UNSTATED if deceased is None else int(deceased)
        middle = MISSING if birth.last == MISSING else (birth.first + birth.last) // 2
        number, turn = self._number(name), len(self._patients)
        self._patients.append(key_of("Patient", name), version, turn, number, middle, died, *death, _SEXES.index(sex))
        for kind, other in links:
            if other is not None and kind in ("replaced-by", "replaces"):
                pair = number, self._number(other)
                self._links.append(pair if kind == "replaced-by" else pair[::-1])

    def take_encounter(self, resource: dict) -> None:
        """Take up an Encounter.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        name, version = own_id(resource), updated(resource)
        status = part(resource, "status", str)
        if status not in _HELD | _NOT_HELD:
            raise MalformedLineError("status is missing, or none that an Encounter has")
        kind = (part(part(resource, "class", dict) or {}, "code", str) or "").strip()
        start, end = period(resource, "period")
        whole = referred(resource, "partOf", "Encounter")
        died = _disposition(part(resource, "hospitalization", dict) or {})
        patient = referred(resource, "subject", "Patient")
        number = MISSING if patient is None else self._number(patient)
        self._encounters.append(
            *(key_of("Encounter", name), version, len(self._encounters), number),
            *(start.last, end.first, end.last, MISSING if whole is None else key_of("Encounter", whole)),
            *(self._classes.setdefault(kind, len(self._classes)), status in _HELD, died),
        )

    def _number(self, patient: str) -> int:
        return self.numbers.setdefault(patient, len(self.numbers))

    def merge(self) -> None:
        """Give a patient whom another replaces the other's number: hospitals merge records that were one person's."""
        whose = list(range(len(self.numbers)))

        def last(number: int) -> int:
            while whose[number] != number:
                number = whose[number]
            return number

        for one, other in self._links:
            whose[last(one)] = last(other)
        self._whose = np.array([last(number) for number in whose], np.int64)
        self.numbers = {name: int(self._whose[number]) for name, number in self.numbers.items()}
        self.merged = int((self._whose != np.arange(len(whose))).sum())

    def patients(self) -> pd.DataFrame:
        """One row a Patient: `patient`, `sex`, `birth`, `died` (-1 unstated, 0, 1), `died_first`, `died_last`."""
        own = newest(self._patients.frame())
        # The record that stayed speaks before those that were merged into it.
        whose = self._whose[own["patient"]]
        own = own.assign(patient=whose).iloc[np.argsort(own["patient"] != whose, kind="stable")]
        own = own.drop_duplicates("patient", ignore_index=True)
        sexes = pd.Series([None if sex == "unknown" else sex for sex in _SEXES], dtype="str")
        own["sex"] = sexes.take(own["sex"]).array
        return _timed(own, "birth", "died_first", "died_last")

    def encounters(self) -> pd.DataFrame:
        """One row an Encounter that took place, of any class; see `stays` for the columns."""
        own = newest(self._encounters.frame())
        own = own[own["held"] == 1]
        self.without_patient = int((own["patient"] == MISSING).sum())
        own = own[own["patient"] != MISSING]
        own = own.assign(patient=self._whose[own["patient"]])
        return _timed(own, "start", "end_first", "end_last").reset_index(drop=True)

    def stays(self, encounters: pd.DataFrame, patients: pd.DataFrame) -> pd.DataFrame:
        """The stays, with what `predictions` needs.

        A date without a time of day is read against the stay: it starts at the last moment that the
        source allows, ends and sees the patient die at the first. So whoever counts as present was.

        Raises:
            InputError: there is no stay.
        """
        wanted = [self._classes[kind] for kind in self._wanted if kind in self._classes]
        own = encounters[encounters["kind"].isin(wanted)]
        # An encounter within a stay (a ward, an intensive care unit) is a part of it, not another.
        own = own[~own["whole"].isin(own["key"]) | (own["whole"] == own["key"])].reset_index(drop=True)
        if not len(own):
            raise InputError(
                f"The export has no Encounter of class {', '.join(self._wanted)} that took place; its classes are "
                f"{self._told_classes(encounters)}. Choose others: read_fhir(..., classes=...)."
            )
        encounters = len(own)
        own = _joined(own)
        self.joined = encounters - len(own)
        own = own.merge(
            patients[["patient", "died", "died_first", "died_last"]], "left", "patient", suffixes=("_here", "")
        )
        return pd.DataFrame(
            {
                "subject_id": own["patient"],
                "start": own["start"],
                "end": own["end_first"],
                "died": _died(own),
                "died_at": own["died_first"],
                "end_last": own["end_last"],
            }
        )

    def require_deaths(self, encounters: pd.DataFrame, patients: pd.DataFrame) -> None:
        """Raise `InputError` where no patient and no stay says anything about death."""
        if not (patients["died"].ge(0).any() or encounters["died"].ge(0).any()):
            raise InputError(
                "Nothing in the export says who died: no Encounter has a dischargeDisposition, and no Patient has "
                "deceasedBoolean or deceasedDateTime. Export one of them, or choose another task."
            )

    def _told_classes(self, encounters: pd.DataFrame) -> str:
        names = list(self._classes)
        counts = encounters["kind"].value_counts()
        told = [f"{names[kind]} ({count})" for kind, count in counts.items() if names[kind].isalnum()]
        return ", ".join(told[:20]) or "none"


def _joined(own: pd.DataFrame) -> pd.DataFrame:
    """Encounters of a patient that overlap, or begin within the hour of another's end, as one stay.

    Its end is the last one, and unknown where one goes on; who died in one of them died in it, and else the one that
    ends last says. One without a start, or with an end before it, stays alone.
    """
    own = own.sort_values(["patient", "start", "end_last"], ignore_index=True)
    odd = own["start"].isna() | (own["end_last"] < own["start"])
    goes_on = own["end_first"].isna() | (own["end_first"] - own["start"] > LONGEST_STAY)
    # Of an end on a day, its last moment; what begins on that day may go on from it.
    reach = (own["end_first"] + TRANSFER).where(own["end_first"] == own["end_last"], own["end_last"])
    reach = reach.mask(goes_on, own["start"]).mask(odd)
    before = reach.groupby(own["patient"]).cummax().groupby(own["patient"]).ffill().groupby(own["patient"]).shift()
    stay = (~odd & ~(own["start"] <= before)).cumsum().where(~odd, -1 - own.index)
    last = own.sort_values("end_last", kind="stable").groupby(stay.rename("stay"))
    stays = last[["patient", "died"]].last().assign(start=last["start"].min())
    open_ = last["end_last"].count() < last.size()
    stays["end_first"], stays["end_last"] = (last[name].max().mask(open_) for name in ("end_first", "end_last"))
    stays["died"] = stays["died"].mask(last["died"].max() == _YES, _YES)
    return stays.sort_values(["patient", "start"]).reset_index(drop=True)


def _disposition(hospitalization: dict) -> int:
    concept = part(hospitalization, "dischargeDisposition", dict) or {}
    found = {(system, code) for system, code, _ in codings(concept)}
    return _UNSTATED if not found else _YES if found & _DIED or ("", "exp") in found else _NO


def _died(stays: pd.DataFrame) -> pd.Series:
    """Whether the patient died in the stay: boolean, missing where the export does not tell."""
    start, first, last = stays["start"], stays["died_first"], stays["died_last"]
    ended = stays["end_last"].notna()
    within = ended & (first >= start) & (last <= stays["end_first"])
    outside = ended & ((last < start) | (first > stays["end_last"]))
    # Patient without deceased[x] means alive, as far as its source knows; true without a date tells not when.
    alive = ended & (stays["died"].isin([_UNSTATED, _NO]))
    died = pd.Series(pd.NA, index=stays.index, dtype="boolean")
    died[outside | alive | (ended & (stays["died_here"] == _NO))] = False
    died[within | (stays["died_here"] == _YES)] = True
    return died


def _timed(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The same rows with these columns as times; the smallest int64 is NaT."""
    return rows.assign(**{name: rows[name].to_numpy().view("datetime64[us]") for name in names})


def facts(outcomes: pd.DataFrame, patients: pd.DataFrame) -> pd.DataFrame:
    """Static facts: `subject_id`, `sex`, and `age` in years at the first prediction.

    Args:
        outcomes: `subject_id` (the number of the patient) and `prediction_time`.
        patients: as `Register.patients`. A date of birth that is a year alone counts from its middle.
    """
    first = outcomes.groupby("subject_id", as_index=False)["prediction_time"].min()
    own = first.merge(patients[["patient", "birth", "sex"]], "left", left_on="subject_id", right_on="patient")
    age = (own["prediction_time"] - own["birth"]) / pd.Timedelta(1, "us") / _YEAR
    return pd.DataFrame({"subject_id": own["subject_id"], "age": age.where(age >= 0).round(2), "sex": own["sex"]})


class Reach:
    """What events must know of each patient: how far the inputs of samples reach, and when stays end.

    Args:
        seen: `patient`, and the `first` and `last` moment at which an input of some sample may have become available.
        stays: `subject_id`, `start` and `end_last`, as `Register.stays`.
        encounters: `key`, `patient` and `end_last`, as `Register.encounters`.
    """

    def __init__(self, seen: pd.DataFrame, stays: pd.DataFrame, encounters: pd.DataFrame) -> None:
        patients = set(seen["patient"])
        self._seen = {patient: tuple(span) for patient, *span in _numbers(seen, "patient", "first", "last")}
        self._stays: dict[int, list[tuple[int, int]]] = {}
        for patient, start, end in _numbers(stays, "subject_id", "start", "end_last"):
            if patient in patients:
                self._stays.setdefault(patient, []).append((start, end))
        ours = encounters[encounters["patient"].isin(patients)]
        self._ends = dict(_numbers(ours, "key", "end_last"))

    def is_ours(self, patient: int | None) -> bool:
        """Whether something is predicted of this patient."""
        return patient in self._seen

    def is_seen(self, patient: int, available: int) -> bool:
        """Whether a sample of the patient may see what became available at this moment."""
        first, last = self._seen[patient]
        return first <= available <= last

    def end_after(self, patient: int, encounters: list[str | None], moment: int) -> int:
        """When these encounters and the stays around this moment have ended: `MISSING` where one goes on.

        Where there are none, the moment itself.
        """
        keys = [key_of("Encounter", name) for name in encounters if name is not None]
        ends = [self._ends[key] for key in keys if key in self._ends]
        ends += [
            end
            for start, end in self._stays.get(patient, ())
            if MISSING < start <= moment and (end == MISSING or moment <= end)
        ]
        return MISSING if MISSING in ends else max([moment, *ends])


def _numbers(rows: pd.DataFrame, *names: str) -> Iterator[tuple[int, ...]]:
    """Rows as whole numbers; times are microseconds, and NaT is `MISSING`."""
    columns = [rows[name].to_numpy() for name in names]
    whole = [
        (column.astype("datetime64[us]") if column.dtype.kind == "M" else column).astype("int64") for column in columns
    ]
    return zip(*(column.tolist() for column in whole), strict=True)
