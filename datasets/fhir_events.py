"""Observations, reports, documents, conditions and imaging studies of a FHIR export, as rows of tables."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from .fhir_elements import (
    MISSING,
    NEVER,
    Span,
    all_referred,
    attached_text,
    codes,
    codings,
    instant,
    number,
    own_id,
    part,
    parts,
    period,
    referred,
    span,
    token,
    unit_of,
    updated,
)
from .fhir_stays import Reach, Rows, key_of, newest
from .ndjson import MalformedLineError

_RESULT = {"final", "amended", "corrected", "appended"}
_NO_RESULT = {"registered", "partial", "preliminary", "cancelled", "entered-in-error", "unknown"}
_CHANGED = {"amended", "corrected", "appended"}
_STUDIES = {"registered", "available", "cancelled", "entered-in-error", "unknown"}
_DOCUMENTS = {"current", "superseded", "entered-in-error"}
_OTHER_VALUES = ("valueString", "valueRange", "valueRatio", "valueSampledData", "valueTime", "valueDateTime")
_OTHER_VALUES += ("valuePeriod",)

DISCHARGE_SUMMARIES = {"18842-5", "11490-0", "28655-9", "34745-0", "34105-7", "34106-5"}
"""LOINC document types of C-CDA's discharge summary: of any author, physician, attending, nurse, hospital."""
_DISCHARGE = re.compile(
    r"discharge\s+(summar|letter|note|report|diagnos|instruct|medic)|hospital course", re.IGNORECASE
)
_DICOM_UID = re.compile(r"(?:urn:oid:)?([0-9]+(?:\.[0-9]+)+)", re.ASCII)


class _Document(NamedTuple):
    """A report or document before it is known whether a sample may see it."""

    version: tuple[int, int, int]
    patient: int
    time: int
    available: int
    text: str | None
    kind: dict
    encounters: list[str | None]


class Events:
    """Takes up resources of the patients of whom something is predicted; gives the tables.

    Versions of a resource are told apart among those that some sample may see.

    Args:
        numbers: patient id to number, as `Register.numbers`.
        stays: which events a sample may see, and when stays end.
    """

    def __init__(self, numbers: Mapping[str, int], stays: Reach) -> None:
        self.told: Counter[str] = Counter()
        """How many resources or answers were left out, or read with a caveat, by what was the matter."""
        self._numbers = numbers
        self._stays = stays
        self._turn = 0
        self._words: dict[str, int] = {}
        self._labs = Rows("key", "updated", "turn", "patient", "time", "available_at", "code", "unit")
        self._values = array("d")
        self._notes = Rows("key", "updated", "turn", "patient", "time", "available_at", "kind")
        self._texts: list[str] = []
        self._studies = Rows("key", "updated", "turn", "patient", "time", "uid")

    # What each resource gives. Of patients of whom nothing is predicted, nothing further is looked at.

    def take_observation(self, resource: dict) -> None:
        """Take up the answers of an Observation and of its components as labs.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        patient = self._patient(resource, "observations")
        if patient is None:
            return
        version = self._version("Observation", resource)
        status = _status(resource, _RESULT | _NO_RESULT)
        drawn, issued = _effective(resource), instant(resource, "issued")
        time = _drawn(drawn, issued)
        available = time if issued == MISSING else issued
        answers, remarks = _answers(resource)
        if status not in _RESULT:
            self._withdraw_lab(version, patient, f"observations that are {status} left out")
        elif issued == MISSING and (drawn is NEVER or status in _CHANGED):
            # Only issued could tell when the amended value appeared.
            self._withdraw_lab(version, patient, "observations that may not have been known yet left out")
        elif self._stays.is_seen(patient, max(time, available)):
            if not answers:
                self._withdraw_lab(version, patient, "observations without a number or a coded answer left out")
            elif issued == MISSING:
                remarks.append("observations without issued taken as known when they were effective")
            self.told.update(remarks)
            for code, value, unit in answers:
                self._labs.append(*version, patient, time, available, self._word(code), self._word(unit))
                self._values.append(value)

    def take_condition(self, resource: dict) -> None:
        """Take up a Condition as a lab of value 1 with the code `condition: CODE`.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        patient = self._patient(resource, "conditions")
        if patient is None:
            return
        version = self._version("Condition", resource)
        refuted, kinds = codes(resource, "verificationStatus"), codes(resource, "category")
        code, available = token(part(resource, "code", dict) or {}), instant(resource, "recordedDate")
        encounter = referred(resource, "encounter", "Encounter")
        if "encounter-diagnosis" in kinds or (encounter is not None and "problem-list-item" not in kinds):
            # The codes of a stay are settled when it ends or later, whatever date they carry.
            end = self._stays.end_after(patient, [encounter], available)
            available = MISSING if end == MISSING else end + 1
        if code is None or refuted & {"entered-in-error", "refuted"}:
            self._withdraw_lab(version, patient, "conditions refuted, in error or without a code left out")
        elif available == MISSING:
            self._withdraw_lab(version, patient, "conditions that may not have been known yet left out")
        elif self._stays.is_seen(patient, available):
            place = (patient, available, available)
            self._labs.append(*version, *place, self._word(f"condition: {code}"), self._word(None))
            self._values.append(1.0)

    def take_report(self, resource: dict) -> None:
        """Take up the text of a DiagnosticReport as a note: its presentedForm, else its conclusion.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        patient = self._patient(resource, "reports")
        if patient is None:
            return
        version = self._version("DiagnosticReport", resource)
        status = _status(resource, _RESULT | _NO_RESULT)
        text, created = attached_text(parts(resource, "presentedForm"))
        text = text or (part(resource, "conclusion", str) or "").strip() or None
        issued = instant(resource, "issued")
        available = created if issued == MISSING else issued
        time = _drawn(_effective(resource), available)
        kind, encounters = part(resource, "code", dict) or {}, [referred(resource, "encounter", "Encounter")]
        if status not in _RESULT:
            self._withdraw_note(version, patient, f"reports that are {status} left out")
        else:
            self._note(_Document(version, patient, time, available, text, kind, encounters), "reports")

    def take_document(self, resource: dict) -> None:
        """Take up the inline text of a DocumentReference as a note.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        patient = self._patient(resource, "documents")
        if patient is None:
            return
        version = self._version("DocumentReference", resource)
        status, inner = _status(resource, _DOCUMENTS), part(resource, "docStatus", str) or "final"
        text, created = attached_text([part(one, "attachment", dict) or {} for one in parts(resource, "content")])
        available = max(instant(resource, "date"), created)
        if inner in _CHANGED and created == MISSING:
            # The date is that of the first version.
            available = MISSING
        kind = part(resource, "type", dict) or {}
        encounters = all_referred(part(resource, "context", dict) or {}, "encounter", "Encounter")
        if status != "current" or inner not in _RESULT:
            self._withdraw_note(version, patient, "documents superseded, preliminary or in error left out")
        else:
            self._note(_Document(version, patient, available, available, text, kind, encounters), "documents")

    def take_study(self, resource: dict) -> None:
        """Take up when an ImagingStudy began.

        Raises:
            MalformedLineError: an element is not what R4 says it is; nothing was taken.
        """
        patient = self._patient(resource, "imaging studies")
        if patient is None:
            return
        version = self._version("ImagingStudy", resource)
        status = _status(resource, _STUDIES)
        started = max(instant(one, "started") for one in [resource, *parts(resource, "series")])
        found = [_DICOM_UID.fullmatch(part(one, "value", str) or "") for one in parts(resource, "identifier")]
        uid = next((uid[1] for uid in found if uid), None)
        if status != "available" or uid is None or started == MISSING:
            self.told["imaging studies without images, a UID or a time left out"] += 1
            self._studies.append(*version, patient, MISSING, self._word(None))
        elif self._stays.is_seen(patient, started):
            self._studies.append(*version, patient, started, self._word(uid))

    # Taking

    def _version(self, kind: str, resource: dict) -> tuple[int, int, int]:
        self._turn += 1
        return key_of(kind, own_id(resource)), updated(resource), self._turn

    def _patient(self, resource: dict, what: str) -> int | None:
        """The number of the patient, if something is predicted of this one. Who is nobody of the export is counted."""
        name = referred(resource, "subject", "Patient")
        if name is None:
            self.told[f"{what} that refer to no Patient by its id left out"] += 1
        elif name not in self._numbers:
            self.told[f"{what} whose patient is not among those of the export left out"] += 1
        patient = self._numbers.get(name)
        return patient if self._stays.is_ours(patient) else None

    def _word(self, word: str | None) -> int:
        """A word as a number, so that each is kept once; -1 for none."""
        return -1 if word is None else self._words.setdefault(word, len(self._words))

    def _withdraw_lab(self, version: tuple[int, int, int], patient: int, why: str) -> None:
        """Keep that this version has no answer, so that an older one does not stand in for it."""
        self.told[why] += 1
        self._labs.append(*version, patient, MISSING, MISSING, self._word(None), self._word(None))
        self._values.append(np.nan)

    def _withdraw_note(self, version: tuple[int, int, int], patient: int, why: str) -> None:
        self.told[why] += 1
        self._notes.append(*version, patient, MISSING, MISSING, self._word(None))
        self._texts.append("")

    def _note(self, note: _Document, what: str) -> None:
        available = note.available
        if available != MISSING and _is_discharge_summary(note.kind):
            available = self._stays.end_after(note.patient, note.encounters, available)
        if note.text is None:
            self._withdraw_note(note.version, note.patient, f"{what} without inline text left out")
        elif available == MISSING:
            self._withdraw_note(note.version, note.patient, f"{what} that may not have been known yet left out")
        elif self._stays.is_seen(note.patient, max(note.time, available)):
            kind = self._word(token(note.kind))
            self._notes.append(*note.version, note.patient, note.time, available, kind)
            self._texts.append(note.text)

    # Tables

    def labs(self, names: pd.Series) -> pd.DataFrame:
        """Labs as a Cohort takes them; `names` are the patients' ids by number."""
        own = self._settled(self._labs, names, value=np.array(self._values))
        return own.assign(code=self._spelled(own["code"]), unit=self._spelled(own["unit"]))

    def notes(self, names: pd.Series) -> pd.DataFrame:
        """Notes as a Cohort takes them."""
        own = self._settled(self._notes, names, text=np.array(self._texts, object))
        return own.assign(kind=self._spelled(own["kind"]))

    def studies(self, names: pd.Series) -> pd.DataFrame:
        """`subject_id`, `time` and `study_uid` of each imaging study."""
        own = self._settled(self._studies, names)
        return own.assign(study_uid=self._spelled(own["uid"])).drop(columns="uid")

    def _settled(self, rows: Rows, names: pd.Series, **more: np.ndarray) -> pd.DataFrame:
        """The newest version of each resource, without those that were withdrawn."""
        own = newest(rows.frame().assign(**more))
        own = own[own["time"] != MISSING].reset_index(drop=True)
        own = own.assign(subject_id=names.take(own["patient"]).array)
        times = {name: own[name].to_numpy().view("datetime64[us]") for name in ("time", "available_at") if name in own}
        return own.assign(**times).drop(columns=["key", "updated", "turn", "patient"])

    def _spelled(self, numbers: pd.Series) -> pd.Categorical:
        return pd.Categorical.from_codes(numbers, list(self._words)).remove_unused_categories()


# Elements of results


def _status(resource: dict, known: set[str]) -> str:
    status = part(resource, "status", str)
    if status not in known:
        raise MalformedLineError(f"status is missing, or none of {', '.join(sorted(known))}")
    return status


def _effective(resource: dict) -> Span:
    """When a result was drawn or measured; of a period, its end."""
    for name in ("effectiveDateTime", "effectiveInstant"):
        if name in resource:
            return span(resource, name)
    start, end = period(resource, "effectivePeriod")
    return start if end is NEVER else end


def _drawn(drawn: Span, issued: int) -> int:
    """One moment for `drawn`: the last that it allows, where possible not after the result was issued."""
    if drawn is NEVER or drawn.first <= issued < drawn.last:
        return issued
    return drawn.last


def _answers(resource: dict) -> tuple[list[tuple[str, float, str | None]], list[str]]:
    """Code, value and unit of each answer, and what is to be told of the others."""
    answers, remarks = [], []
    for element in [resource, *parts(resource, "component")]:
        code = token(part(element, "code", dict) or {})
        if code is None:
            raise MalformedLineError("the code of an observation or component is missing")
        quantity, concept = part(element, "valueQuantity", dict), part(element, "valueCodeableConcept", dict)
        truth = part(element, "valueBoolean", bool)
        value = number(quantity, "value") if quantity else number(element, "valueInteger")
        if value is not None:
            answers.append((code, value, unit_of(quantity or {})))
            if quantity and part(quantity, "comparator", str):
                remarks.append("numbers with < or > taken as they stand")
        elif truth is not None:
            answers.append((code, float(truth), None))
        elif concept and codings(concept):
            answers.append((f"{code}: {token(concept)}", 1.0, None))
        elif concept or any(name in element for name in _OTHER_VALUES):
            remarks.append("answers in words, ranges or waves left out")
    return answers, remarks


def _is_discharge_summary(kind: dict) -> bool:
    coded = codings(kind)
    named = [display for _, _, display in coded] + [part(kind, "text", str) or ""]
    return any(code in DISCHARGE_SUMMARIES for _, code, _ in coded) or any(map(_DISCHARGE.search, named))
