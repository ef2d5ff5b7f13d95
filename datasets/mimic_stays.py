"""Whose risk is asked in MIMIC-IV, when, and what came of it."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from .errors import InputError
from .mimic_files import DEMOGRAPHICS, MimicFolder
from .mimic_phenotypes import PHENOTYPES, phenotypes_of
from .stays import Predictions, predictions, told_of_doubt, with_believed_ends

Task = Literal["mortality", "phenotypes", "length-of-stay", "readmission"]
Stays = Literal["first", "single-unit", "all"]

AFTER: dict[Task, float | None] = {"mortality": 48.0, "phenotypes": None, "length-of-stay": 24.0, "readmission": None}
"""Hours from the start of a stay at which each question is asked; None for its end."""

KINDS: dict[Task, dict[str, str]] = {
    "mortality": {"died": "binary"},
    "phenotypes": dict.fromkeys(PHENOTYPES, "binary"),
    "length-of-stay": {"remaining_days": "continuous"},
    "readmission": {"readmitted": "binary"},
}
"""The outcomes of each task, with their kinds."""

ADULT = 18
"""Years. MIMIC-IV has adults only, so that this filter keeps all of the published data."""

_KEYS = {"patients": "subject_id", "admissions": "hadm_id", "icustays": "stay_id"}

# Age counts from the anchor: the year in which the patient was `anchor_age` years old.
_OF_ADMISSION = f"""
    a.hadm_id, CASE a.hospital_expire_flag WHEN 1 THEN true WHEN 0 THEN false END AS died,
    a.deathtime AS died_at, a.admission_type,
    p.gender AS sex, p.anchor_age + year(a.admittime) - p.anchor_year AS age, {", ".join(DEMOGRAPHICS)}
"""
_ADMISSIONS = f"""
    SELECT a.subject_id, a.admittime AS start, a.dischtime AS "end", {_OF_ADMISSION}
    FROM admissions a LEFT JOIN patients p ON p.subject_id = a.subject_id
"""
_ICU_STAYS = f"""
    SELECT i.subject_id, i.stay_id, i.intime AS start, i.outtime AS "end", i.first_careunit AS care_unit,
           i.last_careunit, {_OF_ADMISSION.replace("a.hadm_id", "i.hadm_id")}
    FROM icustays i LEFT JOIN admissions a ON a.hadm_id = i.hadm_id LEFT JOIN patients p ON p.subject_id = i.subject_id
"""
_DIAGNOSES = "SELECT hadm_id, icd_code, icd_version FROM diagnoses_icd SEMI JOIN asked USING (hadm_id)"


def tables_of(task: Task) -> tuple[str, ...]:
    """The tables that `ask` reads."""
    own = {"readmission": (), "phenotypes": ("icustays", "diagnoses_icd")}
    return ("patients", "admissions", *own.get(task, ("icustays",)))


def ask(source: MimicFolder, task: Task, after: float | None, which: Stays) -> Predictions:
    """The samples of a task with their outcomes; see `read_mimic`.

    Args:
        source: the opened folder.
        task: what is asked.
        after: hours from the start of a stay to the question; None for its end.
        which: the stays that are kept.

    Returns:
        Samples, steps for the attrition log, and the stay of each sample: `hadm_id`, `age` (years),
        `sex`, `admission_type`, `care_unit` (not for "readmission") and the demographics beside the times.

    Raises:
        InputError: a table cannot be read, or no stay qualifies.
    """
    for table in tables_of(task):
        if table in _KEYS:
            source.require_once(table, _KEYS[table])
    if task == "readmission":
        return _readmissions(source, which)
    stays = source.frame(_ICU_STAYS, "icustays", "admissions", "patients")
    steps = [("stays in intensive care in the source", *_counted(stays))]
    for step, kept in _filters(stays, which, "stay in intensive care"):
        stays = stays[kept.reindex(stays.index)]
        steps.append((step, *_counted(stays)))
        if not len(stays):
            raise InputError(f"No stay is left after the filter {step!r}. Check the tables, or keep other stays.")
    told = _at_the_end(stays) if after is None else predictions(stays, _shared(task), after=after)
    outcomes = told.outcomes
    if task == "phenotypes":
        keys = outcomes[["subject_id", "prediction_time"]]
        outcomes = pd.concat([keys, _phenotypes(source, told.stays["hadm_id"])], axis=1)
    return Predictions(outcomes, (*steps, *told.steps[1:]), told.stays)


def _shared(task: Task) -> Literal["mortality", "length-of-stay"]:
    """The shared task that has the same samples."""
    return "length-of-stay" if task == "length-of-stay" else "mortality"


def _filters(stays: pd.DataFrame, which: Stays, noun: str) -> list[tuple[str, pd.Series]]:
    """Steps in words, and whom each keeps (bool `[stay]`)."""
    filters = [(f"{ADULT} years or older", stays["age"] >= ADULT)]
    if which == "first":
        earliest = stays.sort_values(["subject_id", "start", "hadm_id"]).drop_duplicates("subject_id").index
        filters.append((f"first {noun} of the patient", pd.Series(stays.index.isin(earliest), stays.index)))
    elif which == "single-unit":
        alone = ~stays["hadm_id"].duplicated(keep=False)
        filters.append((f"the only {noun} of its admission", alone))
        filters.append(("no transfer between units", stays["care_unit"] == stays["last_careunit"]))
    return filters


def _readmissions(source: MimicFolder, which: Stays) -> Predictions:
    """All admissions tell who came back; then the filters say of whom it is asked."""
    admissions = source.frame(_ADMISSIONS, "admissions", "patients")
    filters = _filters(admissions, which, "admission")
    kept = pd.concat([mask for _, mask in filters], axis=1, keys=range(len(filters)))
    told = predictions(admissions.join(kept), "readmission")
    outcomes, stays = told.outcomes, told.stays
    steps = [("admissions in the source", *told.steps[0][1:]), *told.steps[1:]]
    for number, (step, _) in enumerate(filters):
        mask = stays[number].to_numpy(bool)
        outcomes, stays = outcomes[mask].reset_index(drop=True), stays[mask].reset_index(drop=True)
        steps.append((step, *_counted(stays)))
    if not len(stays):
        raise InputError("No admission is left that the patient survived. Check the tables, or keep other stays.")
    return Predictions(outcomes, tuple(steps), stays)


def _at_the_end(stays: pd.DataFrame) -> Predictions:
    """Samples at the end of each stay, however it ended; no outcome yet."""
    stays, doubted = with_believed_ends(stays)
    ended = stays[stays["start"].notna() & (stays["end"] >= stays["start"])].drop_duplicates(["subject_id", "end"])
    if not len(ended):
        raise InputError("No stay has a start and an end that is not before it. Check intime and outtime of icustays.")
    doubt = [(told_of_doubt(doubted), *_counted(stays))] if doubted else []
    steps = (("", *_counted(stays)), *doubt, ("with a start, and an end that is not before it", *_counted(ended)))
    ended = ended.reset_index(drop=True)
    outcomes = pd.DataFrame({"subject_id": ended["subject_id"], "prediction_time": ended["end"]})
    return Predictions(outcomes, steps, ended)


def _phenotypes(source: MimicFolder, hadm_id: pd.Series) -> pd.DataFrame:
    """The phenotypes of each sample's admission; unknown where it has no diagnosis at all."""
    import pyarrow as pa

    source.engine.register("asked", pa.table({"hadm_id": hadm_id.to_numpy()}))
    billed = phenotypes_of(source.frame(_DIAGNOSES, "diagnoses_icd"))
    return billed.reindex(hadm_id).reset_index(drop=True)


def _counted(stays: pd.DataFrame) -> tuple[int, int]:
    return int(stays["subject_id"].nunique()), len(stays)
