"""Whose image a file says it is can be compared with the table without being shown."""

from pathlib import Path

import pandas as pd
import pydicom
import pytest
from chiasm.datasets.errors import UnreadableImageError
from chiasm.datasets.patients import PatientConflict, header_matches, patient_conflicts
from pydicom.dataset import Dataset, FileMetaDataset


def written(folder: Path, name: str, patient: str | None, study: str | None = None) -> str:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    for keyword, value in (("PatientID", patient), ("StudyInstanceUID", study)):
        if value is not None:
            setattr(dataset, keyword, value)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


@pytest.mark.parametrize(
    ("patient", "subject", "same"),
    [
        ("4711", 4711, True),
        ("0004711", "4711", True),
        (" ab 12", "AB12", True),
        ("4712", 4711, False),
        ("", 4711, None),
        (None, 4711, None),
    ],
)
def test_a_header_is_compared_but_for_blanks_case_and_zeros(
    tmp_path: Path, patient: str | None, subject: object, same: bool | None
):
    assert header_matches(written(tmp_path, "a.dcm", patient), subject) is same


def test_what_is_no_dicom_names_nobody_and_what_is_not_there_is_an_error(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG and so on")
    assert header_matches(tmp_path / "a.png", 1) is None
    with pytest.raises(UnreadableImageError, match=r"absent\.dcm: there is no such file"):
        header_matches(tmp_path / "absent.dcm", 1)


def table(*rows: tuple[object, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["subject_id", "path"])


def test_pseudonyms_that_correspond_are_no_conflict(tmp_path: Path):
    images = table(
        (1, written(tmp_path, "a.dcm", "Doe", "1.1")),
        (1, written(tmp_path, "b.dcm", "DOE", "1.2")),
        (2, written(tmp_path, "c.dcm", "Roe", "1.3")),
        (3, written(tmp_path, "d.dcm", None, "1.3")),
        (3, str(tmp_path / "absent.dcm")),
    )
    assert patient_conflicts(images) == ()
    (conflict,) = patient_conflicts(images, same_identifiers=True)
    assert conflict == PatientConflict("other", (1, 2, 3))


def test_conflicts_are_found_by_their_rows(tmp_path: Path):
    written(tmp_path, "series/2.dcm", "Roe", "1.9")
    (tmp_path / "series/1.txt").write_text("no DICOM")
    images = table(
        (1, written(tmp_path, "a.dcm", "Doe", "1.1")),
        (1, written(tmp_path, "b.dcm", "Roe", "1.2")),
        (2, str(tmp_path / "series")),
        (3, written(tmp_path, "d.dcm", "Poe", "1.1")),
        (4, written(tmp_path, "e.dcm", "Moe", "1.5")),
    )
    found = patient_conflicts(images)
    assert set(found) == {
        PatientConflict("subject of several patients", (1, 2)),
        PatientConflict("patient of several subjects", (2, 3)),
        PatientConflict("study of several patients", (1, 4)),
    }
    assert not any(name in repr(found) for name in ("Doe", "Roe", "Poe"))


def test_equal_identifiers_are_no_conflict_even_where_they_must_be_equal(tmp_path: Path):
    images = table(("17", written(tmp_path, "a.dcm", "0017")), ("18", written(tmp_path, "b.dcm", "18")))
    assert patient_conflicts(images, same_identifiers=True) == ()
