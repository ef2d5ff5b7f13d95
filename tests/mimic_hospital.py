"""A folder in the published layout of MIMIC-IV 3.1, MIMIC-IV-Note 2.2, MIMIC-CXR 2.1.0 and MIMIC-CXR-JPG 2.1.0.

No row is of a real patient. `HEADERS` are the tables' published first lines.
"""

import csv
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

_NOTE = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"
HEADERS = {
    "mimiciv/3.1/hosp/patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "mimiciv/3.1/hosp/admissions": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admit_provider_id,"
    "admission_location,discharge_location,insurance,language,marital_status,race,edregtime,edouttime,"
    "hospital_expire_flag",
    "mimiciv/3.1/hosp/d_labitems": "itemid,label,fluid,category",
    "mimiciv/3.1/hosp/labevents": "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,"
    "storetime,value,valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments",
    "mimiciv/3.1/hosp/diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version",
    "mimiciv/3.1/icu/icustays": "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
    "mimiciv/3.1/icu/chartevents": "subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,valuenum,"
    "valueuom,warning",
    "mimic-iv-note/2.2/note/radiology": _NOTE,
    "mimic-iv-note/2.2/note/discharge": _NOTE,
    "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-metadata": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,"
    "ViewPosition,Rows,Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning",
    "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-split": "dicom_id,study_id,subject_id,split",
    "mimic-cxr/2.1.0/cxr-record-list": "subject_id,study_id,dicom_id,path",
}
PLACES = {Path(place).name: place for place in HEADERS}


class Mimic:
    """Rows of the published tables, to be written into a folder; cells that are not given are blank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, object]]] = {table: [] for table in PLACES}

    def add(self, table: str, **cells: object) -> None:
        strange = set(cells) - set(HEADERS[PLACES[table]].split(","))
        assert not strange, f"{table} has no column {strange}"
        self.rows[table].append(cells)

    def patient(self, subject: int, *, age: int = 60, year: int = 2150, gender: str = "F") -> None:
        self.add("patients", subject_id=subject, gender=gender, anchor_age=age, anchor_year=year)

    def admission(self, subject: int, hadm: int, start: str, end: str, *, died: str = "", **more: object) -> None:
        cells = {"admission_type": "EW EMER.", "insurance": "Medicare", "language": "English", "race": "WHITE"}
        cells |= {"admittime": start, "dischtime": end, "deathtime": died, "hospital_expire_flag": int(bool(died))}
        self.add("admissions", subject_id=subject, hadm_id=hadm, **(cells | more))

    def stay(self, subject: int, hadm: int, stay: int, start: str, end: str, *, unit="MICU", last="") -> None:
        cells = {"first_careunit": unit, "last_careunit": last or unit, "intime": start, "outtime": end}
        self.add("icustays", subject_id=subject, hadm_id=hadm, stay_id=stay, **cells)

    def lab(self, subject: int, charted: str, stored: str, value: object, *, item: int = 50912, unit="mg/dL") -> None:
        cells = {"charttime": charted, "storetime": stored, "value": value, "valuenum": value, "valueuom": unit}
        self.add("labevents", subject_id=subject, itemid=item, **cells)

    def charted(self, subject: int, charted: str, stored: str, value: float, *, item=220045, warning=0) -> None:
        cells = {"charttime": charted, "storetime": stored, "value": value, "valuenum": value, "warning": warning}
        self.add("chartevents", subject_id=subject, itemid=item, valueuom="bpm", **cells)

    def note(self, kind: str, subject: int, hadm: object, charted: str, stored: str, text: str) -> None:
        cells = {"note_type": {"radiology": "RR", "discharge": "DS"}[kind], "charttime": charted, "storetime": stored}
        self.add(kind, subject_id=subject, hadm_id=hadm, text=text, **cells)

    def radiograph(self, subject: int, study: int, name: str, date: str, time: str, *, split="train", bright=0) -> None:
        """A JPG with its lines in the metadata and in the split."""
        own = {"dicom_id": name, "subject_id": subject, "study_id": study}
        self.add("mimic-cxr-2.0.0-metadata", **own, ViewPosition="AP", StudyDate=date, StudyTime=time)
        self.add("mimic-cxr-2.0.0-split", **own, split=split)
        path = self.folder / "mimic-cxr-jpg/2.1.0" / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(study).integers(0, 60, (64, 64)) + bright
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    def dicom(self, subject: int, study: int, name: str, date: str, time: str, *, header_patient: object = "") -> None:
        """A DICOM file with its line in the record list."""
        path = f"files/p{str(subject)[:2]}/p{subject}/s{study}/{name}.dcm"
        self.add("cxr-record-list", subject_id=subject, study_id=study, dicom_id=name, path=path)
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(entropy_srcs=[name])
        image.PatientID = str(header_patient or subject)
        image.StudyDate, image.StudyTime, image.ViewPosition = date, time, "PA"
        image.Modality, image.PhotometricInterpretation, image.SamplesPerPixel = "DX", "MONOCHROME2", 1
        image.Rows = image.Columns = 64
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PixelData = np.arange(64 * 64, dtype="<u2").tobytes()
        target = self.folder / "mimic-cxr/2.1.0" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(target, enforce_file_format=True)

    def write(self, ending: str = ".csv.gz") -> Path:
        """Write every table of hosp and icu, and those of the other modules that have rows."""
        for name, place in PLACES.items():
            if self.rows[name] or place.startswith("mimiciv/"):
                self.write_table(name, ending)
        return self.folder

    def write_table(self, name: str, ending: str = ".csv.gz") -> Path:
        columns = HEADERS[PLACES[name]].split(",")
        path = self.folder / f"{PLACES[name]}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".parquet":
            frame = pd.DataFrame(self.rows[name], columns=columns).replace("", None)
            for column in columns:
                if column.endswith("time") and column != "StudyTime":
                    frame[column] = pd.to_datetime(frame[column], format="ISO8601")
            frame.to_parquet(path, index=False)
            return path
        with gzip.open(path, "wt", newline="") if ending == ".csv.gz" else path.open("w", newline="") as file:
            lines = csv.DictWriter(file, columns)
            lines.writeheader()
            lines.writerows(self.rows[name])
        return path


def ward(folder: Path, patients: int = 20) -> Mimic:
    """Patients in intensive care, every second of whom dies and shows it in all four modalities."""
    hospital = Mimic(folder)
    hospital.add("d_labitems", itemid=50912, label="Creatinine", fluid="Blood", category="Chemistry")
    draw = np.random.default_rng(0)
    for number in range(patients):
        subject, hadm, ill = 10000032 + 7 * number, 22595853 + number, number % 2
        hospital.patient(subject, age=40 + 30 * ill + number % 5, gender="FM"[number // 2 % 2])
        died = "2150-03-09 08:00:00" if ill else ""
        hospital.admission(subject, hadm, "2150-03-01 06:00:00", "2150-03-09 08:00:00", died=died)
        hospital.stay(subject, hadm, 39553978 + number, "2150-03-01 08:00:00", "2150-03-08 08:00:00")
        hospital.add("diagnoses_icd", subject_id=subject, hadm_id=hadm, seq_num=1, icd_version=10, icd_code="A419")
        for hour in range(9, 24, 3):
            moment = f"2150-03-01 {hour:02d}:00:00"
            hospital.lab(subject, moment, f"2150-03-01 {hour:02d}:40:00", round(0.8 + 3 * ill + draw.random(), 1))
            hospital.charted(subject, moment, moment, 70 + 40 * ill + int(draw.integers(9)))
        text = "FINDINGS: diffuse bilateral opacities." if ill else "FINDINGS: clear lungs."
        hospital.note("radiology", subject, hadm, "2150-03-01 10:00:00", "2150-03-01 11:30:00", text)
        split = "test" if number >= patients - 4 else "validate" if number >= patients - 8 else "train"
        name = f"cf82ba73-{number:04d}"
        hospital.radiograph(subject, 50414267 + number, name, "21500301", "94500.5", split=split, bright=150 * ill)
    return hospital
