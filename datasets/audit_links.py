"""Whose image it is: what studies and DICOM headers say of the patient, where the table says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from .audit_findings import Finding, Material, Place, Severity, Shared, counted, row_groups
from .patients import Conflict, patient_conflicts

STOOD_IN = 10
"""Patients from which one identifier, if it stands for `STOOD_IN_SHARE` of all, is a word such as "ANONYMOUS"
that stands in for many rather than one patient's own."""
STOOD_IN_SHARE = 0.05

BY_FILE = 0.5
"""Share of the patients with several images whose headers name several patients, from which headers have
a pseudonym a file or a visit, as some releases do."""

_FEWEST = 3
_SAID: dict[Conflict, tuple[str, str, str]] = {
    "subject of several patients": (
        "subject_id",
        "subject_ids",
        "The images of {} name more than one patient in their headers",
    ),
    "patient of several subjects": (
        "subject_id",
        "subject_ids",
        "The images of {} name a patient in their headers whom others name as well",
    ),
    "study of several patients": ("study stands", "studies stand", "{} for more than one patient in the headers"),
    "other": ("image names", "images name", "{} another patient in the header than subject_id"),
}
_LINKS = "Check how files were linked to patients: correct subject_id or path of the rows that stand together."
_PSEUDONYMS = "Nothing, if headers have a pseudonym a file or a visit; else check how files were linked to patients."


def check_links(material: Material) -> Iterator[Finding]:
    """Studies of two patients, and images whose headers name another patient than the table."""
    yield from _studies(material)
    yield from _headers(material)


def _studies(material: Material) -> Iterator[Finding]:
    images = material.cohort.images
    if "study_uid" not in images.columns:
        return
    rows = pd.DataFrame({"study": images["study_uid"], "patient": material.positions("images")}).dropna()
    rows = rows[rows.groupby("study")["patient"].transform("nunique") > 1]
    groups = [Shared(np.unique(own["patient"]), own.index.to_numpy()) for _, own in rows.groupby("study")]
    real = [group for group in groups if not _stands_in(group, material)]
    for severity, some, parts in material.shared(real):
        yield Finding(
            _at_least_misleads(severity),
            "studies of two patients",
            len(some),
            Place("images", "study_uid", row_groups(some), parts),
            f"{counted(len(some), 'study stands', 'studies stand')} for more than one patient.",
            "A study is of one patient: correct subject_id or study_uid, and check how images were linked.",
        )
    if len(real) < len(groups):
        yield _stood_in([group for group in groups if _stands_in(group, material)], "study_uid", "study_uid")


def _headers(material: Material) -> Iterator[Finding]:
    images, patient = material.cohort.images, material.positions("images")
    conflicts: dict[Conflict, list[Shared]] = {}
    for conflict in patient_conflicts(images, same_identifiers=material.same_identifiers):
        rows = np.array(conflict.rows) - 1
        conflicts.setdefault(conflict.kind, []).append(Shared(np.unique(patient[rows]), rows))
    named = conflicts.get("patient of several subjects", [])
    stand_ins = [group for group in named if _stands_in(group, material)]
    if stand_ins:
        yield _stood_in(stand_ins, "path", "Patient ID of the headers")
        conflicts["patient of several subjects"] = [group for group in named if not _stands_in(group, material)]
    by_file = not named and _by_file(conflicts.get("subject of several patients", []), patient)
    for kind, groups in conflicts.items():
        one, many, words = _SAID[kind]
        for severity, some, parts in _parted(kind, groups, material):
            # Within one subject, what differs from file to file is no link to another.
            only_names = by_file and kind != "other" and all(len(group.patients) == 1 for group in some)
            subjects = len(np.unique(np.concatenate([group.patients for group in some])))
            yield Finding(
                "note" if only_names else _at_least_misleads(severity),
                "patients of DICOM headers",
                subjects if one == "subject_id" else len(some),
                Place("images", "path", row_groups(some), parts),
                f"{words.format(counted(subjects if one == 'subject_id' else len(some), one, many))}.",
                _PSEUDONYMS if only_names else _LINKS,
            )


def _parted(
    kind: Conflict, groups: Sequence[Shared], material: Material
) -> Iterator[tuple[Severity, list[Shared], tuple[str, ...]]]:
    if kind != "other":
        yield from material.shared(groups)
        return
    # Whose they are is not known, so neither is whether they cross parts. Each row stands alone.
    patient = material.positions("images")
    rows = np.concatenate([group.rows for group in groups])
    parts = material.division.names(patient[rows]) if material.division.parts else ()
    yield "misleads", [Shared(patient[[row]], np.array([row])) for row in rows], parts


def _at_least_misleads(severity: Severity) -> Severity:
    return "misleads" if severity == "note" else severity


def _stands_in(group: Shared, material: Material) -> bool:
    """Whether what a group shares is a word for many, such as "ANONYMOUS", rather than one patient's or study's."""
    having = len(np.unique(material.positions("images")))
    everyone = len(group.patients) == having >= _FEWEST
    return everyone or len(group.patients) > max(STOOD_IN, STOOD_IN_SHARE * having)


def _stood_in(groups: list[Shared], column: str, what: str) -> Finding:
    patients = len(np.unique(np.concatenate([group.patients for group in groups])))
    return Finding(
        "note",
        "identifiers that stand for many",
        patients,
        Place("images", column, row_groups(groups)),
        f"The same {what} stands in images of {counted(patients, 'patient')}: it is taken for a word like ANONYMOUS.",
        "Nothing, if it was put there when the files were made anonymous; else check how images were linked.",
    )


def _by_file(groups: list[Shared], patient: np.ndarray) -> bool:
    """Whether most patients with several images have headers that name several patients."""
    several = int((np.bincount(patient) > 1).sum())
    return len(groups) >= max(_FEWEST, BY_FILE * several)
