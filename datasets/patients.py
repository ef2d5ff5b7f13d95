"""Whose image a DICOM file says it is, compared without showing it."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .dicom import looks_like_dicom, read_dataset, text
from .errors import UnreadableImageError
from .locations import Location, files_in, is_folder, opened
from .refusals import naming

if TYPE_CHECKING:
    import pandas as pd
    from pydicom import Dataset

Conflict = Literal["subject of several patients", "patient of several subjects", "study of several patients", "other"]
_HEADER_BYTES = 352
# As in `pixels`; a larger file is no image that could be read.
_LIMIT_BYTES = 2**30


@dataclass(frozen=True)
class PatientConflict:
    """Images whose headers contradict the table, or each other, about whose they are."""

    kind: Conflict
    """"other" where the header's Patient ID is not the table's subject."""
    rows: tuple[int, ...]
    """Positions in the images table; the first data row is 1."""


def patient_digest(dataset: Dataset, key: bytes) -> str | None:
    """A keyed hash of the Patient ID (0010,0020); None where it is absent.

    With a key that is drawn anew and thrown away, it tells whether two files are of one patient, and nothing else.
    """
    return _digest(text(dataset, "PatientID"), key)


def header_matches(path: Location, subject_id: object) -> bool | None:
    """Whether a DICOM file's Patient ID is a subject's, but for blanks, case and leading zeros.

    Only for hospitals whose table holds the patients' own identifiers; most give pseudonyms, for which
    `patient_conflicts` asks less.

    Returns:
        None where the file is no DICOM or names no patient.

    Raises:
        UnreadableImageError: the file cannot be opened, or its header not be read.
    """
    key = os.urandom(16)
    patient = _patient_and_study(path, key)[0]
    return None if patient is None else patient == _digest(subject_id, key)


def patient_conflicts(images: pd.DataFrame, *, same_identifiers: bool = False) -> tuple[PatientConflict, ...]:
    """Where the DICOM headers of a table's images contradict it about whose they are.

    Pseudonyms need not resemble the headers' identifiers, but they must correspond: all files of a subject name
    one patient, no patient is named by the files of two subjects, and a study is of one patient. Files that are
    no DICOM, name no patient, or cannot be read have no part in it.

    Args:
        images: `subject_id` and `path`; a folder stands for its first DICOM file.
        same_identifiers: the table's subjects are the headers' Patient IDs themselves, so that any other is a
            conflict. False where the table has pseudonyms.

    Returns:
        Conflicts without any identifier.

    Source: DICOM PS3.3 C.7.1.1 (Patient ID), C.7.2.1 (Study Instance UID).
    """
    key = os.urandom(16)
    subjects = [_digest(subject, key) for subject in images["subject_id"]]
    named = [_quietly_named(path, key) for path in images["path"]]
    known = [(row, subjects[row], *named[row]) for row in range(len(subjects)) if named[row][0] is not None]
    conflicts = [
        *_several("subject of several patients", [(row, subject, patient) for row, subject, patient, _ in known]),
        *_several("patient of several subjects", [(row, patient, subject) for row, subject, patient, _ in known]),
        *_several("study of several patients", [(row, study, patient) for row, _, patient, study in known if study]),
    ]
    other = tuple(row + 1 for row, subject, patient, _ in known if subject != patient)
    if same_identifiers and other:
        conflicts.append(PatientConflict("other", other))
    return tuple(conflicts)


def _several(kind: Conflict, links: Iterable[tuple[int, Hashable, Hashable]]) -> list[PatientConflict]:
    """A conflict for every one that is linked to several others, with the rows that link them."""
    others, rows = defaultdict(set), defaultdict(list)
    for row, one, other in links:
        others[one].add(other)
        rows[one].append(row + 1)
    return [PatientConflict(kind, tuple(rows[one])) for one in others if len(others[one]) > 1]


def _quietly_named(path: Location, key: bytes) -> tuple[str | None, str | None]:
    try:
        return _patient_and_study(path, key)
    except UnreadableImageError:
        return None, None


def _patient_and_study(path: Location, key: bytes) -> tuple[str | None, str | None]:
    """Hashes of the Patient ID and the Study Instance UID of a file, or of the first DICOM file in a folder."""
    with naming(path):
        for file in files_in(path) if is_folder(path) else [path]:
            with opened(file, _LIMIT_BYTES) as stream:
                head = stream.read(_HEADER_BYTES)
                stream.seek(0)
                if not looks_like_dicom(head):
                    continue
                wanted = ["PatientID", "StudyInstanceUID"]
                dataset = read_dataset(stream, _LIMIT_BYTES, wanted=wanted, pixels=False)
                return patient_digest(dataset, key), _digest(text(dataset, "StudyInstanceUID"), key)
    return None, None


def _digest(identifier: object, key: bytes) -> str | None:
    """A keyed hash of an identifier as it is compared: systems add blanks and leading zeros, and change the case."""
    plain = "" if identifier is None else "".join(str(identifier).split()).casefold().lstrip("0")
    return hashlib.blake2b(plain.encode(), key=key, digest_size=16).hexdigest() if plain else None
