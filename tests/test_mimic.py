"""MIMIC's published files: whose risk is asked, when, what came of it, and what was known by then."""

import gzip
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError, mimic_files
from chiasm.datasets.mimic import CHARTED, PHENOTYPES, cxr_splits, read_mimic
from chiasm.datasets.mimic_files import MimicFolder
from chiasm.datasets.mimic_phenotypes import phenotypes_of
from chiasm.datasets.words import LONGEST_TEXT
from chiasm.fusion import fit, predict
from chiasm.recipes.recipe import load_recipe
from sklearn.metrics import roc_auc_score

from .denied import deny
from .mimic_hospital import Mimic, ward

DAY = pd.Timestamp
ASKED = DAY("2150-03-03 08:00:00")
LISTS = ("mimic-cxr-2.0.0-metadata", "mimic-cxr-2.0.0-split")


@pytest.fixture
def one(tmp_path) -> Mimic:
    """One patient in intensive care from 8:00 on 1 March 2150, asked about on 3 March, with nothing known."""
    hospital = Mimic(tmp_path / "physionet.org")
    hospital.add("d_labitems", itemid=50912, label="Creatinine", fluid="Blood", category="Chemistry")
    hospital.add("d_labitems", itemid=50809, label="Glucose", fluid="Blood", category="Blood Gas")
    hospital.add("d_labitems", itemid=50931, label="Glucose", fluid="Blood", category="Chemistry")
    hospital.patient(10000032)
    hospital.admission(10000032, 22595853, "2150-03-01 06:00:00", "2150-03-09 08:00:00")
    hospital.stay(10000032, 22595853, 39553978, "2150-03-01 08:00:00", "2150-03-08 08:00:00")
    return hospital


# What was known


def test_a_result_is_known_when_it_is_stored_and_reaches_back_as_far_as_the_history(one):
    for value, (drawn, stored) in enumerate(
        [
            ("2150-03-03 07:00:00", "2150-03-03 08:00:00"),  # stored at the very moment
            ("2150-03-03 07:00:00", "2150-03-03 08:00:01"),  # drawn before, stored after
            ("2150-03-01 07:00:00", "2150-03-01 08:00:00"),  # 48 hours back to the second
            ("2150-03-01 07:00:00", "2150-03-01 07:59:59"),
            ("2150-03-02 09:00:00", "2150-03-02 08:00:00"),  # a clock that was wrong: known when drawn
            ("2150-03-03 09:00:00", "2150-03-02 08:00:00"),
        ]
    ):
        one.lab(10000032, drawn, stored, value)
        one.charted(10000032, drawn, stored, 100 + value)
    sample = read_mimic(one.write()).sample(0)
    assert sample.prediction_time == ASKED
    assert [(event.hours, event.code, event.value) for event in sample.labs] == [
        (-48.0, "Creatinine (Blood, Chemistry)", 2.0),
        (-48.0, "heart rate", 102.0),
        (-23.0, "Creatinine (Blood, Chemistry)", 4.0),
        (-23.0, "heart rate", 104.0),
        (0.0, "Creatinine (Blood, Chemistry)", 0.0),
        (0.0, "heart rate", 100.0),
    ]


def test_a_result_that_was_never_stored_is_left_out_and_counted_and_a_charted_one_counts_from_its_charttime(one):
    one.lab(10000032, "2150-03-02 07:00:00", "", 1.1)
    one.lab(10000032, "2150-03-02 07:00:00", "2150-03-02 08:00:00", "")
    one.lab(10000032, "", "2150-03-02 08:00:00", 1.3)
    one.charted(10000032, "2150-03-02 07:00:00", "", 80)
    cohort = read_mimic(one.write())
    assert [(event.hours, event.value) for event in cohort.sample(0).labs] == [(-25.0, 80.0), (-24.0, np.float32(1.3))]
    assert cohort.attrition["step"].tolist()[6:8] == [
        "labevents: 3 rows seen; without a number, left out: 1; without storetime, left out: 1",
        "chartevents: 1 rows seen; without a number, left out: 0; without storetime, counted from their charttime: 1",
    ]


def test_a_code_tells_the_fluid_and_the_unit_stays_as_charted(one):
    for item in (50809, 50931):
        one.lab(10000032, "2150-03-02 07:00:00", "2150-03-02 08:00:00", 99, item=item, unit="mg/dL")
    for item in (220050, 225309, 223761, 223762, 999999):
        one.charted(10000032, "2150-03-02 07:00:00", "2150-03-02 07:00:00", 98, item=item, warning=1)
    labs = read_mimic(one.write()).labs
    assert sorted(labs["code"]) == [
        "Glucose (Blood, Blood Gas)",
        "Glucose (Blood, Chemistry)",
        *["systolic pressure, arterial line"] * 2,
        "temperature (°C)",
        "temperature (°F)",
    ]
    assert set(labs["unit"]) == {"mg/dL", "bpm"}
    assert {"heart rate", "oxygen saturation, pulse oximeter", "inspired oxygen"} <= set(CHARTED.values())
    assert set(read_mimic(one.folder, charted={999999: "mood"}).labs["code"]) >= {"mood"}
    assert "mood" not in set(read_mimic(one.folder, charted={}).labs["code"])


def test_the_engine_keeps_exactly_what_the_windows_of_the_cohort_show(tmp_path):
    hospital, draw = ward(tmp_path, patients=6), np.random.default_rng(3)
    for _ in range(400):
        subject = 10000032 + 7 * int(draw.integers(6))
        drawn = DAY("2150-02-26") + pd.Timedelta(minutes=int(draw.integers(9 * 1440)))
        stored = drawn + pd.Timedelta(minutes=int(draw.integers(-60, 600)))
        hospital.lab(subject, str(drawn), str(stored), round(float(draw.random()), 3))
    # A second stay that overlaps the first one's history.
    hospital.admission(10000032, 29999999, "2150-03-09 09:00:00", "2150-03-20 08:00:00")
    hospital.stay(10000032, 29999999, 39999999, "2150-03-09 10:00:00", "2150-03-18 08:00:00")
    hospital.write()
    for history in (12.5, 400, None):
        small = read_mimic(tmp_path, history=history, stays="all")
        whole = read_mimic(tmp_path, history=None, stays="all")
        whole.history = history
        whole.__dict__.pop("_windows", None)
        assert len(small) == 7
        assert [small.sample(i).labs for i in range(7)] == [whole.sample(i).labs for i in range(7)]
        seen = np.unique(small.window("labs").rows)
        assert len(seen) == len(small.labs)


def test_what_happens_later_changes_nothing_that_a_sample_sees(one):
    one.lab(10000032, "2150-03-02 07:00:00", "2150-03-02 08:00:00", 1.1)
    one.note("radiology", 10000032, 22595853, "2150-03-02 07:00:00", "2150-03-02 09:00:00", "Clear.")
    one.radiograph(10000032, 50414267, "aa-1", "21500302", "70000.0")
    before = read_mimic(one.write()).sample(0)
    one.lab(10000032, "2150-03-03 07:00:00", "2150-03-03 08:30:00", 9.9)
    one.charted(10000032, "2150-03-03 08:01:00", "2150-03-03 08:01:00", 200)
    one.note("radiology", 10000032, 22595853, "2150-03-02 07:00:00", "2150-03-03 09:00:00", "Worse.")
    one.note("discharge", 10000032, 22595853, "2150-03-09 00:00:00", "2150-03-10 09:00:00", "Died.")
    one.radiograph(10000032, 50414268, "aa-2", "21500303", "80001.0")
    one.add("diagnoses_icd", subject_id=10000032, hadm_id=22595853, seq_num=1, icd_version=10, icd_code="R6521")
    assert read_mimic(one.write(), notes=("radiology", "discharge")).sample(0) == before
    assert [len(before.labs), len(before.notes), len(before.images)] == [1, 1, 1]


def test_a_radiology_report_is_known_when_it_is_stored_or_else_charted(one):
    one.note("radiology", 10000032, "", "2150-03-02 07:00:00", "2150-03-02 10:00:00", 'Said "clear",\nthen signed.')
    one.note("radiology", 10000032, 22595853, "2150-03-02 06:00:00", "", "No storetime.")
    one.note("radiology", 10000032, 22595853, "2150-03-02 06:00:00", "2150-03-02 06:00:00", "  ")
    notes = read_mimic(one.write()).sample(0).notes
    assert [(note.hours, note.kind, note.text) for note in notes] == [
        (-26.0, "radiology", "No storetime."),
        (-22.0, "radiology", 'Said "clear",\nthen signed.'),
    ]


def test_a_discharge_summary_is_read_on_request_and_never_during_the_stay_that_it_tells_of(one):
    one.admission(10000032, 21111111, "2150-02-01 06:00:00", "2150-02-20 08:00:00")
    texts = [
        (21111111, "2150-02-20 00:00:00", "2150-02-22 10:00:00", "earlier stay"),
        (21111111, "2150-02-20 00:00:00", "", "never stored"),
        # The clocks were wrong.
        (22595853, "2150-03-02 00:00:00", "2150-03-02 10:00:00", "this stay"),
    ]
    for hadm, charted, stored, text in texts:
        one.note("discharge", 10000032, hadm, charted, stored, text)
    one.write()
    assert read_mimic(one.folder, history=None).notes is None
    both = read_mimic(one.folder, history=None, notes=("radiology", "discharge"))
    assert both.notes["text"].tolist() == ["earlier stay"]
    assert "notes: no radiology, since MIMIC-IV-Note's table is not in the folder" in both.attrition["step"].tolist()


def test_at_discharge_a_summary_counts_if_it_was_stored_by_then(one):
    one.note("discharge", 10000032, 22595853, "2150-03-09 00:00:00", "2150-03-09 07:00:00", "in time")
    one.note("discharge", 10000032, 22595853, "2150-03-09 00:00:00", "2150-03-12 07:00:00", "three days later")
    one.note("discharge", 10000032, 22595853, "2150-03-09 00:00:00", "", "midnight before discharge")
    cohort = read_mimic(one.write(), task="readmission", notes=("discharge",))
    assert cohort.notes["text"].tolist() == ["in time"]


# Radiographs


def test_a_radiograph_is_linked_by_its_date_and_its_time_of_day_whose_leading_zeros_are_lost(one):
    clocks = {"aa-1": "70405.25", "aa-2": "213014.53100000002", "aa-3": "0", "aa-4": "405.0"}
    for number, (name, clock) in enumerate(clocks.items()):
        one.radiograph(10000032, 50414267 + number, name, "21500302", clock)
    one.radiograph(10000032, 50414299, "aa-9", "21500303", "80000.5")  # half a second too late
    images = read_mimic(one.write()).images.set_index("study_uid")
    assert images["time"].to_dict() == {
        "50414267": DAY("2150-03-02 07:04:05.25"),
        "50414268": DAY("2150-03-02 21:30:14.531"),
        "50414269": DAY("2150-03-02 00:00:00"),
        "50414270": DAY("2150-03-02 00:04:05"),
    }
    assert set(images["view"]) == {"AP"}
    assert images.loc["50414267", "path"].endswith("mimic-cxr-jpg/2.1.0/files/p10/p10000032/s50414267/aa-1.jpg")


def test_dicom_files_tell_their_moment_themselves(one):
    one.dicom(10000032, 50414267, "aa-1", "21500302", "070405.25")
    one.dicom(10000032, 50414268, "aa-2", "21500302", "0904")
    one.dicom(10000032, 50414269, "aa-3", "21500304", "090400")
    one.dicom(10000999, 50414270, "aa-4", "21500302", "090400")
    cohort = read_mimic(one.write())
    assert [(image.hours, image.view) for image in cohort.sample(0).images] == [
        (pytest.approx(-24.931875, abs=1e-5), "PA"),
        (pytest.approx(-22.93333, abs=1e-5), "PA"),
    ]
    assert cohort.keep_readable_images().exclusions == ()


def test_dicom_files_take_moment_and_view_from_the_published_metadata_where_it_is_there(one):
    one.dicom(10000032, 50414267, "aa-1", "19000101", "")
    own = {"dicom_id": "aa-1", "subject_id": 10000032, "study_id": 50414267}
    one.add(LISTS[0], **own, ViewPosition="LATERAL", StudyDate="21500302", StudyTime="70405.0")
    images = read_mimic(one.write()).images
    assert images["time"].tolist() == [DAY("2150-03-02 07:04:05")]
    assert images["view"].tolist() == ["LATERAL"]
    assert images["path"].iloc[0].endswith("mimic-cxr/2.1.0/files/p10/p10000032/s50414267/aa-1.dcm")


def _without_file(hospital: Mimic) -> str:
    hospital.radiograph(10000032, 50414267, "aa-1", "21500302", "70405.0")
    shutil.rmtree(hospital.folder / "mimic-cxr-jpg/2.1.0/files/p10")
    return "its image file is not there"


def _without_moment(hospital: Mimic) -> str:
    hospital.radiograph(10000032, 50414267, "aa-1", "21500302", "256061.0")
    return "StudyDate and StudyTime are no date and time of day"


def _of_another(hospital: Mimic) -> str:
    hospital.dicom(10000032, 50414267, "aa-1", "21500302", "070405", header_patient=10000999)
    return "the header of its image file is of another patient"


def _headless(hospital: Mimic) -> str:
    hospital.dicom(10000032, 50414267, "aa-1", "21500302", "070405")
    next(hospital.folder.rglob("aa-1.dcm")).write_bytes(b"Jane Doe, born 1 January")
    return "its image file has no DICOM header"


@pytest.mark.parametrize("spoil", [_without_file, _without_moment, _of_another, _headless])
def test_an_image_that_cannot_be_used_is_an_error_or_where_asked_a_listed_exclusion(one, spoil):
    reason = spoil(one)
    one.write()
    with pytest.raises(
        InputError, match=rf"(metadata|record-list)\.csv\.gz, data row 1: {reason}\..*invalid=.exclude."
    ) as told:
        read_mimic(one.folder)
    assert "Jane" not in str(told.value)
    cohort = read_mimic(one.folder, invalid="exclude")
    assert not len(cohort.images)
    assert [(row.row, row.reason) for row in cohort.exclusions] == [(1, reason)]


def test_image_lists_without_image_files_give_no_images(one):
    one.radiograph(10000032, 50414267, "aa-1", "21500302", "70405.0")
    shutil.rmtree(one.folder / "mimic-cxr-jpg/2.1.0/files")
    cohort = read_mimic(one.write())
    assert cohort.images is None
    assert cohort.attrition["step"].iloc[-1] == "images: none, since MIMIC-CXR's image files are not in the folder"


def test_the_published_division_of_patients_can_be_followed(tmp_path):
    cohort = read_mimic(ward(tmp_path).write()).with_splits(cxr_splits(tmp_path))
    assert [len(part) for part in cohort.split_by_table()] == [12, 4, 4]


# Whose risk, when, and what came of it


def test_death_is_asked_of_those_still_there_and_may_happen_after_intensive_care(one):
    one.patient(10000084)
    one.admission(10000084, 23052089, "2180-01-01 06:00:00", "2180-02-09 08:00:00", died="2180-02-09 07:30:00")
    one.stay(10000084, 23052089, 30000001, "2180-01-01 08:00:00", "2180-01-04 08:00:00")
    one.patient(10000117)
    one.admission(10000117, 22927623, "2110-01-01 06:00:00", "2110-02-09 08:00:00")
    one.stay(10000117, 22927623, 30000002, "2110-01-01 08:00:00", "2110-01-03 08:00:00")  # leaves at 48 h
    cohort = read_mimic(one.write())
    assert cohort.outcomes.set_index("subject_id")["died"].to_dict() == {10000032: 0.0, 10000084: 1.0}
    assert cohort.attrition.iloc[:5].values.tolist() == [
        ["stays in intensive care in the source", 3, 3],
        ["18 years or older", 3, 3],
        ["first stay in intensive care of the patient", 3, 3],
        ["with a start, and an end that is not before it", 3, 3],
        ["still there and alive 48 h after the start", 2, 2],
    ]


def test_the_remaining_days_are_asked_a_day_into_the_stay_or_when_the_caller_says(one):
    one.write()
    for after, moment, days in ((None, "2150-03-02 08:00", 6.0), (48, "2150-03-03 08:00", 5.0)):
        outcomes = read_mimic(one.folder, task="length-of-stay", after=after).outcomes
        assert outcomes["prediction_time"].tolist() == [DAY(moment)]
        assert outcomes["remaining_days"].tolist() == [days]


def test_a_patient_who_comes_back_within_thirty_days_was_readmitted(one):
    one.admission(10000032, 22595854, "2150-04-08 08:00:00", "2150-04-10 08:00:00")  # 30 days to the minute
    one.admission(10000032, 22595855, "2150-06-01 08:00:00", "2150-06-03 08:00:00", died="2150-06-03 08:00:00")
    one.patient(10000084)
    one.admission(10000084, 23052089, "2160-01-01 06:00:00", "2160-02-09 08:00:00")
    one.write()
    every = read_mimic(one.folder, task="readmission", stays="all")
    assert every.outcomes[["subject_id", "readmitted"]].values.tolist()[:2] == [[10000032, 1.0], [10000032, 0.0]]
    first = read_mimic(one.folder, task="readmission")
    assert first.outcomes["prediction_time"].tolist() == [DAY("2150-03-09 08:00"), DAY("2160-02-09 08:00")]
    assert first.attrition.iloc[:7].values.tolist() == [
        ["admissions in the source", 2, 4],
        ["with a start, and an end that is not before it", 2, 4],
        ["ended", 2, 4],
        ["left alive, one stay a patient and end", 2, 3],
        ["18 years or older", 2, 3],
        ["first admission of the patient", 2, 2],
        ["read", 2, 2],
    ]


def test_phenotypes_are_asked_at_the_end_of_the_stay_and_unknown_without_any_code(one):
    codes = [(9, "5849 "), (10, "J18.9"), (10, "Z0000")]
    for number, (version, code) in enumerate(codes):
        cells = {"seq_num": number, "icd_code": code, "icd_version": version}
        one.add("diagnoses_icd", subject_id=10000032, hadm_id=22595853, **cells)
    one.patient(10000084)
    one.admission(10000084, 23052089, "2150-03-01 06:00:00", "2150-03-09 08:00:00")
    one.stay(10000084, 23052089, 30000001, "2150-03-01 08:00:00", "2150-03-01 12:00:00")
    one.write()
    cohort = read_mimic(one.folder, task="phenotypes")
    assert list(cohort.outcome_kinds) == list(PHENOTYPES)
    assert len(PHENOTYPES) == 25
    known, unknown = (cohort.outcomes.iloc[row] for row in (0, 1))
    assert known["prediction_time"] == DAY("2150-03-08 08:00")
    assert [name for name in PHENOTYPES if known[name]] == ["acute_renal_failure", "pneumonia"]
    assert unknown[list(PHENOTYPES)].isna().all()
    early = read_mimic(one.folder, task="phenotypes", after=24).outcomes
    assert early["prediction_time"].tolist() == [DAY("2150-03-02 08:00")]


def test_a_stand_in_for_the_end_of_a_stay_is_no_end(one):
    one.patient(10000084)
    one.admission(10000084, 23052089, "2150-03-01 06:00:00", "2199-12-31 00:00:00")
    one.stay(10000084, 23052089, 30000001, "2150-03-01 08:00:00", "2199-12-31 00:00:00")
    cells = {"seq_num": 1, "icd_code": "J18.9", "icd_version": 10}
    one.add("diagnoses_icd", subject_id=10000032, hadm_id=22595853, **cells)
    one.write()
    for task in ("phenotypes", "readmission"):
        cohort = read_mimic(one.folder, task=task)
        assert cohort.outcomes["subject_id"].tolist() == [10000032]
        assert [
            "ends more than 5 years after the start taken as not known: 1",
            2,
            2,
        ] in cohort.attrition.values.tolist()
        # Nobody was followed up until 2199.
        assert task == "phenotypes" or cohort.outcomes["readmitted"].isna().all()


@pytest.mark.parametrize(
    ("version", "code", "phenotype"),
    [
        # One known code and one neighbour that belongs elsewhere, from AHRQ's files.
        (9, "41071", "acute_myocardial_infarction"),
        (9, "412", "coronary_atherosclerosis"),
        (9, "42731", "cardiac_dysrhythmias"),
        (9, "4275", None),
        (9, "40391", "hypertension_with_complications"),
        (9, "4019", "essential_hypertension"),
        (9, "25000", "diabetes_without_complication"),
        (9, "25002", "diabetes_with_complications"),
        (9, "78552", "shock"),
        (9, "99592", "septicemia"),
        (9, "5696", "complications_of_care"),
        (9, "56960", None),
        (9, "V4511", "chronic_kidney_disease"),
        (10, "A419", "septicemia"),
        (10, "R6521", "shock"),
        (10, "J9601", "respiratory_failure"),
        (10, "I469", None),
        (10, "I214", "acute_myocardial_infarction"),
        (10, "E119", "diabetes_without_complication"),
        (10, "E1122", "diabetes_with_complications"),
        (10, "I10", "essential_hypertension"),
        (10, "N179", "acute_renal_failure"),
        # ICD-9 428 is heart failure, and ICD-10 has no such code.
        (9, "4280", "congestive_heart_failure"),
        (10, "4280", None),
        (10, None, None),
    ],
)
def test_a_code_falls_in_its_category(version, code, phenotype):
    table = phenotypes_of(pd.DataFrame({"hadm_id": [1], "icd_code": [code], "icd_version": [version]}))
    assert [name for name in PHENOTYPES if table.loc[1, name]] == ([phenotype] if phenotype else [])


def test_the_first_stay_is_the_first_even_if_nobody_can_be_asked_of_it(one):
    one.stay(10000032, 22595853, 30000005, "2150-03-08 20:00:00", "2150-03-09 07:00:00")
    one.patient(10000084)
    one.admission(10000084, 23052089, "2150-01-01 08:00:00", "2150-01-02 08:00:00")
    one.stay(10000084, 23052089, 30000001, "2150-01-01 08:00:00", "2150-01-02 08:00:00")
    one.admission(10000084, 23052090, "2150-05-01 08:00:00", "2150-05-09 08:00:00")
    one.stay(10000084, 23052090, 30000003, "2150-05-01 08:00:00", "2150-05-05 08:00:00", last="SICU")
    one.patient(10000117, age=17)
    one.admission(10000117, 22927623, "2150-01-01 06:00:00", "2150-02-09 08:00:00")
    one.stay(10000117, 22927623, 30000004, "2150-01-01 08:00:00", "2150-01-08 08:00:00")
    one.write()
    asked = {which: read_mimic(one.folder, stays=which).attrition for which in ("first", "all")}
    assert asked["first"].iloc[:5]["samples"].tolist() == [5, 4, 2, 2, 1]
    assert asked["all"].iloc[:4]["samples"].tolist() == [5, 4, 4, 2]
    with pytest.raises(InputError, match="No stay of 1 qualifies"):
        # One admission has two stays, one a transfer, one patient is a child; the last stays a day.
        read_mimic(one.folder, stays="single-unit")
    only = read_mimic(one.folder, stays="single-unit", task="phenotypes").attrition
    assert only.iloc[:5]["samples"].tolist() == [5, 4, 2, 1, 1]


def test_age_counts_from_the_anchor_and_facts_of_the_stay_are_static_where_there_is_one_stay_a_patient(one):
    one.rows["patients"][0] |= {"anchor_age": 91, "anchor_year": 2148}
    static = read_mimic(one.write(), demographics=("race", "marital_status")).static
    assert static.iloc[0].dropna().to_dict() == {
        "subject_id": 10000032,
        "sex": "F",
        "age": 93.0,
        "admission_type": "EW EMER.",
        "care_unit": "MICU",
        "race": "WHITE",
    }


def test_facts_of_the_stay_are_known_at_each_question_where_a_patient_may_have_several(one):
    one.admission(10000032, 22595854, "2153-04-01 08:00:00", "2153-04-10 08:00:00", admission_type="URGENT")
    one.stay(10000032, 22595854, 30000009, "2153-04-01 08:00:00", "2153-04-08 08:00:00", unit="SICU")
    cohort = read_mimic(one.write(), stays="all")
    assert cohort.static.to_dict("records") == [{"subject_id": 10000032, "sex": "F"}]
    told = [[(event.hours, event.code, event.value, event.unit) for event in cohort.sample(i).labs] for i in (0, 1)]
    assert told == [
        [
            (0.0, "admission_type: EW EMER.", 1.0, None),
            (0.0, "age", 60.0, "years"),
            (0.0, "care_unit: MICU", 1.0, None),
        ],
        [(0.0, "admission_type: URGENT", 1.0, None), (0.0, "age", 63.0, "years"), (0.0, "care_unit: SICU", 1.0, None)],
    ]


# Files

README_EXAMPLE = """
from chiasm.datasets import Cohort
from chiasm.datasets.mimic import cxr_splits, read_mimic

cohort = read_mimic("physionet.org", task="mortality")
print(cohort.attrition)  # who was left at each step, and what of each table was left out
cohort = cohort.with_splits(cxr_splits("physionet.org"))  # the division that MIMIC-CXR-JPG publishes
cohort.write("mimic-meds")  # reading once suffices
train, valid, test = Cohort.read("mimic-meds", history=48).split_by_table()
"""


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    ward(tmp_path / "physionet.org").write()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(README_EXAMPLE, "README.md", "exec"), names)
    assert "still there and alive 48 h after the start" in capsys.readouterr().out
    assert [len(names[part]) for part in ("train", "valid", "test")] == [12, 4, 4]
    assert names["train"].sample(1).labs == names["cohort"].sample(1).labs


def test_csv_and_parquet_copies_under_other_folder_names_read_alike(tmp_path):
    hospital = ward(tmp_path / "gz")
    published = read_mimic(hospital.write())
    hospital.folder = tmp_path / "csv"
    shutil.copytree(tmp_path / "gz/mimic-cxr-jpg/2.1.0/files", tmp_path / "csv/mimic-cxr-jpg/2.1.0/files")
    hospital.write(".csv")
    (tmp_path / "csv/mimiciv/3.1").rename(tmp_path / "csv/mimiciv/mine [2]")
    hospital.folder = tmp_path / "parquet"
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet/mimic-cxr-jpg").symlink_to(tmp_path / "gz/mimic-cxr-jpg")
    for table in hospital.rows:
        if table not in LISTS and (hospital.rows[table] or table.endswith("s")):
            hospital.write_table(table, ".parquet")
    for copy in ("csv", "parquet"):
        other = read_mimic(tmp_path / copy)
        for table in ("outcomes", "labs", "notes", "static"):
            pd.testing.assert_frame_equal(getattr(other, table), getattr(published, table))
        assert other.images["time"].equals(published.images["time"])


def test_of_several_copies_in_one_folder_the_quickest_is_read(one):
    one.lab(10000032, "2150-03-02 07:00:00", "2150-03-02 08:00:00", 1.1)
    one.write()
    one.rows["labevents"][0]["valuenum"] = 2.5
    one.write_table("labevents", ".parquet")
    assert read_mimic(one.folder).labs["value"].tolist() == [2.5]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _instead(text: str):
    """A way to spoil a file: other text in its place."""
    return lambda path: path.write_bytes(gzip.compress(text.encode()))


def _rows(line: str):
    """A way to spoil a file: another row under its first line."""
    return lambda path: _instead(f"{gzip.decompress(path.read_bytes()).decode().splitlines()[0]}\n{line}\n")(path)


def _gone(path):
    path.unlink()


_LAB = "1,10000032,,1,50912,,{},2150-03-02 08:00:00,Jane,1.1,mg/dL,,,,,"


@pytest.mark.parametrize(
    ("table", "spoil", "message"),
    [
        ("labevents", _cut, r"/labevents\.csv\.gz cannot be read: it is damaged or cut short"),
        ("labevents", _rows(_LAB.format("2150-13-02")), r"/labevents\.csv\.gz, line 2: charttime is not a time"),
        ("labevents", _rows(_LAB.format("")[:-3]), r"/labevents\.csv\.gz, line 2: the row is not as the first line"),
        ("icustays", _rows("Jane,1,1,A,A,,,"), r"/icustays\.csv\.gz, line 2: subject_id is not a whole number"),
        ("patients", lambda path: path.write_bytes(b"Jane"), r"/patients\.csv\.gz cannot be read: BadGzipFile"),
        (
            "patients",
            _instead("subject_id,sex\n"),
            r"/patients\.csv\.gz lacks the column gender; it has subject_id, sex",
        ),
        ("patients", _instead(""), r"/patients\.csv\.gz lacks the column subject_id; it has none"),
        ("patients", _instead("subject_id;gender\n"), r"/patients\.csv\.gz is separated by semicolons, not by commas"),
        ("d_labitems", _gone, r"There is no d_labitems\.csv\.gz .* It belongs to MIMIC-IV hosp"),
        ("icustays", _gone, r"There is no icustays\.csv\.gz .* It belongs to MIMIC-IV icu"),
    ],
    ids=range(10),
)
def test_a_file_that_cannot_be_used_is_named_and_not_quoted(one, table, spoil, message):
    one.lab(10000032, "2150-03-02 07:00:00", "2150-03-02 08:00:00", 1.1)
    one.write()
    spoil(next(one.folder.rglob(f"{table}.csv.gz")))
    with pytest.raises(InputError, match=message) as told:
        read_mimic(one.folder)
    assert "Jane" not in str(told.value)
    assert "10000032" not in str(told.value)
    assert told.value.__cause__ is None


def test_a_row_that_is_broken_far_down_the_file_is_named_and_not_quoted(one):
    good = _LAB.format("2150-03-02 07:00:00") + "\n"
    path = one.write() / "mimiciv/3.1/hosp/labevents.csv.gz"
    first = gzip.decompress(path.read_bytes()).decode().strip() + "\n"
    path.write_bytes(gzip.compress((first + 300_000 * good + "1,Jane\n").encode(), 1))
    with pytest.raises(InputError, match=r"/labevents\.csv\.gz, line 300002: ") as told:
        read_mimic(one.folder)
    assert "Jane" not in str(told.value)
    assert told.value.__suppress_context__


def test_a_parquet_file_that_is_none_is_named(one):
    one.write()
    path = one.write_table("labevents", ".parquet")
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match=r"labevents\.parquet cannot be read: ArrowInvalid"):
        read_mimic(one.folder)


def test_a_parquet_file_whose_times_are_none_is_named(one):
    one.write()
    path = one.write_table("labevents", ".parquet")
    columns = pd.read_parquet(path).columns
    pd.DataFrame([{"subject_id": 10000032, "charttime": "Jane"}], columns=columns).to_parquet(path)
    with pytest.raises(InputError, match=r"labevents\.parquet cannot be read") as told:
        read_mimic(one.folder)
    assert "Jane" not in str(told.value)


def test_a_note_of_a_parquet_file_that_is_longer_than_any_is_named(one):
    one.note("radiology", 10000032, 20000001, "2150-01-01 08:00", "2150-01-01 09:00", "x" * (LONGEST_TEXT + 1))
    one.write()
    one.write_table("radiology", ".parquet")
    with pytest.raises(InputError, match=r"radiology\.parquet: text has a text of more than 16 MiB. Restore") as told:
        read_mimic(one.folder)
    assert "xxx" not in str(told.value)


def test_an_infinite_result_is_refused_as_in_every_cohort(one):
    one.lab(10000032, "2150-03-02 07:00:00", "2150-03-02 08:00:00", 1e39)
    one.write()
    with pytest.raises(InputError, match="labs, data row 1: value is infinite"):
        read_mimic(one.folder)
    assert [row.reason for row in read_mimic(one.folder, invalid="exclude").exclusions] == ["value is infinite"]


def test_two_versions_in_one_folder_are_not_mixed(one):
    one.write()
    shutil.copytree(one.folder / "mimiciv/3.1", one.folder / "mimiciv/2.2")
    with pytest.raises(
        InputError, match=r"patients is there more than once, in .*/hosp, .*/hosp\. Give a folder with one"
    ):
        read_mimic(one.folder)


def test_a_key_that_stands_twice_is_refused(one):
    """Else one of two patients, deaths or labels is taken, whichever comes first."""
    again = {
        "patients": {"subject_id": 10000032, "gender": "M", "anchor_age": 20, "anchor_year": 2150},
        "admissions": one.rows["admissions"][0] | {"hospital_expire_flag": 1},
        "icustays": one.rows["icustays"][0] | {"outtime": "2150-03-04 08:00:00"},
        "d_labitems": {"itemid": 50912, "label": "Creatinin", "fluid": "Urine"},
    }
    for table, row in again.items():
        one.add(table, **row)
        with pytest.raises(InputError, match=rf"{table}\.csv\.gz: the \w+ of a row stands there again \(1 such rows\)"):
            read_mimic(one.write())
        one.rows[table].pop()
    assert len(read_mimic(one.write())) == 1


def test_a_flag_of_death_that_is_neither_yes_nor_no_leaves_it_unknown(one):
    one.rows["admissions"][0]["hospital_expire_flag"] = 9
    assert read_mimic(one.write()).outcomes["died"].isna().tolist() == [True]


@pytest.mark.parametrize("name", ["labevents_2.csv.gz", "LABEVENTS.CSV", "labevents.tsv", "labevents (1).csv.gz"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_table_under_a_name_that_is_not_read_is_not_passed_over(one, name, alone):
    path = one.write() / "mimiciv/3.1/hosp/labevents.csv.gz"
    shutil.copy(path, path.with_name(name))
    if alone:
        path.unlink()
    told = f"{re.escape(name)} is not read: the table labevents is labevents.csv.gz, labevents.csv or labevents.parquet"
    with pytest.raises(InputError, match=told):
        read_mimic(one.folder)


def test_files_that_are_named_by_numbers_are_held_against_no_table(one, monkeypatch):
    """MIMIC-IV-ECG has 800,000 waveforms."""
    asked = []
    monkeypatch.setattr(mimic_files, "is_nearly", lambda stem, _: asked.append(stem))
    for name in ("40689238.dat", "41420867_0001.dat", "notes.txt"):
        (one.write() / name).write_bytes(b"")
    assert len(read_mimic(one.folder)) == 1
    assert set(asked) == {"notes"}


def test_the_list_of_images_is_told_by_its_name_too(one):
    (one.write() / "mimic-cxr-2.0.0-metadata (1).csv.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"\(1\)\.csv\.gz is not read: the table mimic-cxr-2\.0\.0-metadata is"):
        read_mimic(one.folder)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(one, monkeypatch):
    one.note("radiology", 10000032, 22595853, "2150-03-01 10:00:00", "2150-03-01 11:30:00", "FINDINGS: clear lungs.")
    deny(monkeypatch, one.write() / "mimic-iv-note/2.2/note")
    with pytest.raises(InputError, match=r"note cannot be listed \(PermissionError\)\. Check its permissions"):
        read_mimic(one.folder)


def test_a_folder_that_the_system_keeps_on_a_disk_may_be_listed_by_nobody(one, monkeypatch):
    (one.write() / "lost+found").mkdir()
    deny(monkeypatch, one.folder / "lost+found")
    assert len(read_mimic(one.folder)) == 1


def test_tables_of_other_databases_beside_the_modules_are_none_of_them(one):
    for name in ("mimiciii/1.4/PATIENTS.csv.gz", "mimiciii/1.4/D_LABITEMS.csv.gz", "eicu-crd/2.0/patient.csv.gz"):
        (one.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (one.folder / name).write_bytes(b"")
    assert len(read_mimic(one.write())) == 1


def test_the_other_published_files_are_none_of_the_tables(one):
    """Those of MIMIC-IV 3.1, -ED, -Note, -ECG, -CXR and -CXR-JPG of which nothing is read."""
    hosp = "d_hcpcs d_icd_diagnoses d_icd_procedures drgcodes emar emar_detail hcpcsevents microbiologyevents omr"
    hosp += " pharmacy poe poe_detail prescriptions procedures_icd provider services transfers"
    icu = "caregiver d_items datetimeevents ingredientevents inputevents outputevents procedureevents"
    rest = "diagnosis edstays medrecon pyxis triage vitalsign radiology_detail discharge_detail record_list"
    rest += " machine_measurements cxr-study-list cxr-provider-list mimic-cxr-2.0.0-chexpert mimic-cxr-2.0.0-negbio"
    rest += " mimic-cxr-2.1.0-test-set-labeled demo_subject_id"
    for name in f"{hosp} {icu} {rest}".split():
        (one.folder / "mimiciv/3.1/icu").mkdir(parents=True, exist_ok=True)
        (one.folder / "mimiciv/3.1/icu" / f"{name}.csv.gz").write_bytes(b"")
    (one.folder / "mimiciv/3.1/icu/._labevents.csv.gz").write_bytes(b"")
    assert len(read_mimic(one.write())) == 1


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        read_mimic(tmp_path / "nowhere")


def test_too_little_memory_and_disk_is_said(tmp_path):
    with MimicFolder(tmp_path) as source:
        source.engine.execute("SET memory_limit = '20MB'; SET max_temp_directory_size = '0KB'")
        with pytest.raises(InputError, match="The engine needs more than 1500MB of memory and the disk at"):
            source.frame("SELECT list(i) FROM range(3000000) t(i)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "death"}, "task has 'death'; expected 'mortality', 'phenotypes', 'length-of-stay', 'readmission'"),
        ({"stays": "some"}, "stays has 'some'; expected 'first', 'single-unit', 'all'"),
        ({"notes": "radiology "}, "notes has 'radiology '; expected 'radiology', 'discharge'"),
        ({"demographics": ("religion",)}, "demographics has 'religion'; expected 'insurance'"),
        ({"invalid": "ignore"}, "invalid has 'ignore'; expected 'raise', 'exclude'"),
        ({"history": 0}, "history is 0; expected a positive number of hours, or None for all"),
        ({"after": -1}, "after is -1; expected a positive number of hours"),
        ({"task": "readmission", "after": 24}, 'after is 24, but "readmission" is asked at discharge'),
        ({"task": "readmission", "stays": "single-unit"}, 'stays is "single-unit", which is for stays in intensive'),
        ({"after": 999}, "No stay of 1 qualifies for the task 'mortality' with a prediction 999 h after its start"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(one, settings, message):
    one.write()
    with pytest.raises(InputError, match=message):
        read_mimic(one.folder, **settings)


def test_when_nobody_is_left_the_filter_is_named(one):
    one.rows["patients"][0]["anchor_age"] = 12
    one.write()
    with pytest.raises(InputError, match="No stay is left after the filter '18 years or older'"):
        read_mimic(one.folder)
    with pytest.raises(InputError, match="No admission is left that the patient survived"):
        read_mimic(one.folder, task="readmission")
    one.rows["patients"][0]["anchor_age"] = 60
    one.rows["icustays"][0]["outtime"] = ""
    one.write()
    with pytest.raises(InputError, match="No stay has a start and an end that is not before it"):
        read_mimic(one.folder, task="phenotypes")


# The recipe

_SMALL = ["image_model=test_resnet", "size=64", "width=32"]


def test_the_recipe_learns_a_handful_of_patients_by_heart_from_all_four_modalities(tmp_path):
    recipe = load_recipe("mimic-iv", _SMALL)
    cohort = recipe.read(ward(tmp_path).write())
    assert cohort.modalities == ("labs", "notes", "images", "static")
    train, valid, test = recipe.divide(cohort)
    assert len(train) + len(valid) + len(test) == 20
    model = recipe.model(train)
    arguments = recipe.training() | {"epochs": 20, "learning_rate": 3e-3, "average": 0.0, "batch_size": 8}
    fit(model, train, None, **arguments, progress=False)
    assert roc_auc_score(train.outcomes["died"], predict(model, train)["risk"]) > 0.95


def test_the_recipe_asks_the_other_questions_without_images_and_notes(tmp_path):
    hospital = ward(tmp_path)
    shutil.rmtree(tmp_path / "mimic-cxr-jpg")
    for table in (*LISTS, "radiology"):
        hospital.rows[table].clear()
    hospital.write()
    recipe = load_recipe("mimic-iv", [*_SMALL, "task=phenotypes", "history=none", "stays=all"])
    cohort = recipe.read(tmp_path)
    assert cohort.modalities == ("labs", "static")
    model = recipe.model(recipe.divide(cohort)[0])
    assert len(model.outcomes) == 25


def test_the_recipe_follows_the_published_division_and_skips_missing_images(tmp_path):
    ward(tmp_path).write()
    next(tmp_path.rglob("*.jpg")).unlink()
    with pytest.raises(InputError, match="its image file is not there"):
        load_recipe("mimic-iv", _SMALL).read(tmp_path)
    recipe = load_recipe("mimic-iv", [*_SMALL, "cxr_split=true", "skip_missing=true"])
    assert [len(part) for part in recipe.divide(recipe.read(tmp_path))] == [12, 4, 4]
