"""MIMIC-CXR's radiographs, as DICOM or as JPG: when each was taken, and the published division of patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from .checks import Exclusion, Policy, TableCheck
from .errors import UnreadableImageError
from .mimic_events import SEEN
from .mimic_files import MimicFolder
from .parallel import in_parallel
from .refusals import refusing

__all__ = ["cxr_splits"]

_METADATA, _RECORDS, _SPLIT = "mimic-cxr-2.0.0-metadata", "cxr-record-list", "mimic-cxr-2.0.0-split"
_WORDS = {"train": "train", "validate": "tuning", "test": "held_out"}
# A subject_id: a header that names another one is of another patient.
_SUBJECT = r"1\d{7}"
_DIGITS = r"^(\d+)"


def cxr_splits(folder: str | Path) -> pd.DataFrame:
    """The division of patients that MIMIC-CXR-JPG publishes, for `Cohort.with_splits`.

    Args:
        folder: as for `read_mimic`; holds `mimic-cxr-2.0.0-split.csv.gz`.

    Returns:
        `subject_id` and `split` in MEDS's words: train, tuning (validate) and held_out (test), one row
        a patient. Patients without radiographs do not stand there.

    Raises:
        InputError: the file is not there or cannot be read.

    Example:
        >>> cohort = read_mimic("physionet.org").with_splits(cxr_splits("physionet.org"))
        >>> train, valid, test = cohort.split_by_table()
    """
    with MimicFolder(Path(folder)) as source:
        table = source.frame(f'SELECT DISTINCT subject_id, split FROM "{_SPLIT}" ORDER BY ALL', _SPLIT)
    return table.assign(split=table["split"].map(_WORDS).fillna(table["split"]))


def read_radiographs(source: MimicFolder, invalid: Policy) -> tuple[pd.DataFrame | None, tuple[Exclusion, ...], str]:
    """The radiographs that some sample sees.

    JPG files are taken where MIMIC-CXR-JPG's `files/` is there, else the DICOM files. Moments come from
    MIMIC-CXR-JPG's metadata where they are there, else from the headers of the DICOM files.

    Args:
        source: the opened folder, whose engine was told the samples.
        invalid: what to do about an image that is listed and not there, or has no moment.

    Returns:
        `subject_id`, `time`, `path`, `view`, `study_uid`, or None without MIMIC-CXR; what was left out;
        and what was read, in words.

    Raises:
        InputError: a listed image cannot be used, and `invalid` is "raise".
    """
    in_jpg = _METADATA in source and (source.path(_METADATA).parent / "files").is_dir()
    if not in_jpg and _RECORDS not in source:
        return None, (), "images: none, since MIMIC-CXR's image files are not in the folder"
    listed = _METADATA if _METADATA in source else _RECORDS
    table = source.frame(f'FROM "{listed}"', listed)
    check = TableCheck(str(source.path(listed)), len(table), invalid)
    subjects = source.frame("SELECT DISTINCT subject_id FROM samples")["subject_id"]
    wanted = table["subject_id"].isin(subjects).to_numpy()
    table = table.assign(path=_jpg_paths(source, table) if in_jpg else _dicom_paths(source, table))
    if listed == _METADATA:
        # A number in the table: 00:04:05 is published as 405.0.
        clock = table["StudyTime"].str.extract(_DIGITS, expand=False).str.zfill(6)
        table = table.assign(time=_moments(table["StudyDate"], clock, table["StudyTime"]), view=table["ViewPosition"])
        wanted = _timely(source, table, wanted, check)
    lost = np.zeros(len(table), bool)
    lost[wanted] = [not Path(path).is_file() for path in table["path"][wanted]]
    check.refuse(lost, "its image file is not there", "Download it")
    wanted = wanted & ~lost
    if listed == _RECORDS:
        table = table.assign(**_headers(table, wanted, check))
        wanted = _timely(source, table, wanted, check)
    _, left_out = check.settle(table)
    seen = table[wanted & check.usable]
    images = seen[["subject_id", "time", "path", "view"]].assign(study_uid=_whole(seen["study_id"]))
    return images, left_out, f"images: {len(images)} {'JPG' if in_jpg else 'DICOM'} files"


def _jpg_paths(source: MimicFolder, table: pd.DataFrame) -> pd.Series:
    """files/p10/p10000032/s50414267/<dicom_id>.jpg beside the metadata."""
    home = source.path(_METADATA).parent.resolve() / "files"
    ids = zip(_whole(table["subject_id"]), _whole(table["study_id"]), table["dicom_id"], strict=True)
    paths = [f"{home}/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg" for subject, study, dicom in ids]
    return pd.Series(paths, index=table.index, dtype="str")


def _whole(ids: pd.Series) -> pd.Series:
    """Ids as text; a blank elsewhere in a column makes its whole numbers floats."""
    return ids.astype("Int64").astype("str")


def _dicom_paths(source: MimicFolder, table: pd.DataFrame) -> pd.Series:
    """As the record list has them, from its own folder."""
    records = source.frame(f'SELECT dicom_id, path FROM "{_RECORDS}"', _RECORDS)
    path = table["dicom_id"].map(records.drop_duplicates("dicom_id").set_index("dicom_id")["path"])
    return f"{source.path(_RECORDS).parent.resolve()}/" + path.fillna("a path that the record list lacks")


def _moments(date: pd.Series, clock: pd.Series, time: pd.Series) -> pd.Series:
    """Moments from StudyDate (YYYYMMDD), six digits of the clock and the fraction in StudyTime; NaT for none."""
    day = date.str.removesuffix(".0").str.strip()
    fraction = time.str.extract(r"\.(\d{1,6})", expand=False).fillna("0")
    written = day.where(day.str.fullmatch(r"\d{8}", na=False)) + clock.where(clock.str.fullmatch(r"\d{6}", na=False))
    return pd.to_datetime(written + "." + fraction, format="%Y%m%d%H%M%S.%f", errors="coerce").astype("datetime64[us]")


def _timely(source: MimicFolder, table: pd.DataFrame, wanted: np.ndarray, check: TableCheck) -> np.ndarray:
    """Which of the wanted radiographs some sample sees; those without a moment are noted in `check`."""
    nameless = wanted & table["time"].isna().to_numpy()
    check.refuse(nameless, "StudyDate and StudyTime are no date and time of day", "Restore the published file")
    rows = np.flatnonzero(wanted & ~nameless)
    candidates = table.iloc[rows][["subject_id", "time"]].assign(row=rows)
    source.engine.register("candidates", pa.Table.from_pandas(candidates, preserve_index=False))
    events = "SELECT row, subject_id, time AS charttime, time AS storetime FROM candidates"
    seen = source.frame(f"SELECT row FROM ({events}) e {SEEN}")
    timely = np.zeros(len(table), bool)
    timely[seen["row"]] = True
    return timely


def _headers(table: pd.DataFrame, wanted: np.ndarray, check: TableCheck) -> dict[str, pd.Series]:
    """Moment and view of the wanted DICOM files, from their headers; what is wrong with one is noted in `check`."""
    items = [(int(row), table["path"].iloc[row]) for row in np.flatnonzero(wanted)]
    headers = [header for chunk in in_parallel(_read_headers, items, "headers") for header in chunk]
    columns = ["row", "reason", "patient", "date", "time", "view"]
    told = pd.DataFrame(headers, columns=columns).set_index("row").reindex(table.index).astype("str").fillna("")
    check.refuse((told["reason"] != "").to_numpy(), "its image file has no DICOM header", "Bring the file anew")
    other = told["patient"].str.fullmatch(_SUBJECT) & (told["patient"] != _whole(table["subject_id"]))
    check.refuse(other.to_numpy(), "the header of its image file is of another patient", "Bring the file anew")
    # DICOM may leave out seconds and minutes (PS3.5 6.2, TM).
    clock = told["time"].str.extract(_DIGITS, expand=False).str.ljust(6, "0")
    return {"time": _moments(told["date"], clock, told["time"]), "view": told["view"].mask(told["view"] == "")}


def _read_headers(items: list[tuple[int, str]]) -> list[tuple[int, str, str, str, str, str]]:
    """Of each file: its row, why it cannot be read ("" if it can), PatientID, StudyDate, StudyTime, ViewPosition."""
    import pydicom

    tags = ["PatientID", "StudyDate", "StudyTime", "ViewPosition"]
    read = []
    for row, path in items:
        try:
            with refusing("no DICOM header"):
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
                read.append((row, "", *(str(header.get(tag) or "") for tag in tags)))
        except UnreadableImageError as error:
            read.append((row, str(error), "", "", "", ""))
    return read
