"""Stays, and what was known of them, out of OMOP tables in files."""

import contextlib
import errno
import gzip
import shutil
import sqlite3
import sys
import traceback

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import InputError, omop_database, omop_files
from chiasm.datasets.omop import read_omop
from chiasm.datasets.words import LONGEST_TEXT

from .denied import deny
from .omop_hospital import (
    diagnosed,
    died,
    hospital,
    imaged,
    measured,
    noted,
    observed,
    person,
    visit,
    write,
)

CREATININE = "Creatinine [Moles/volume] in Serum or Plasma"


def read(tables, folder, ending="csv", **settings):
    """The cohort of these tables, written as files."""
    shutil.rmtree(folder, ignore_errors=True)
    return read_omop(write(tables, folder, ending), **settings)


def only(*names):
    """The three tables that must be there, and these."""
    return {name: hospital()[name] for name in ("person", "visit_occurrence", "death", *names)}


def adding(name, *rows):
    """The hospital with further rows in a table, or with others that its own have not."""
    tables = hospital()
    tables[name] = pd.concat([tables[name], pd.DataFrame(list(rows))], ignore_index=True)
    return tables


def seen(cohort):
    """What each sample sees, by patient and time of prediction."""
    samples = [cohort.sample(position) for position in range(len(cohort))]
    return {(sample.subject_id, str(sample.prediction_time)): sample for sample in samples}


def codes(sample):
    return [event.code for event in sample.labs]


def equal(one, other):
    for name in ("outcomes", "labs", "notes", "images", "static", "attrition"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert one.exclusions == other.exclusions


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The hospital as it stands, read from CSV files."""
    return read(hospital(), tmp_path_factory.mktemp("hospital") / "omop")


FIRST, SECOND = (1, "2020-01-03 08:00:00"), (2, "2020-02-03 06:00:00")
EARLIER, LATER = (3, "2180-03-03 07:00:00"), (3, "2180-03-20 07:00:00")
DATES_ALONE = (4, "1895-05-03 00:00:00")


# The whole


def test_each_sample_sees_what_was_known_by_then(cohort):
    samples = seen(cohort)
    assert cohort.outcomes["died"].tolist() == [0, 1, 0, 0, 0]
    assert [(event.hours, event.code, event.value, event.unit) for event in samples[FIRST].labs] == [
        (-5158.5, "Tobacco smoking behaviour: Ex-smoker", 1, None),
        (-5158.5, "condition: Type 2 diabetes mellitus", 1, None),
        (-47.5, CREATININE, 80, "umol/L"),
        (-22, "Platelets [#/volume] in Blood", 250, "10*9/L"),
        (-8, "Heart rate", 88, "/min"),
        (np.float32(-1 / 60), CREATININE, 95.5, "umol/L"),
    ]
    assert [(event.hours, event.text, event.kind) for event in samples[FIRST].notes] == [
        (-22, "Better today.", "Progress note")
    ]
    assert [(event.hours, event.path, event.study_uid) for event in samples[FIRST].images] == [
        (-8, "/archive/a.dcm", "1.2.3.1")
    ]
    assert samples[FIRST].static == (
        ("age", 59),
        ("gender", "FEMALE"),
        ("race", "White"),
        ("ethnicity", "Not Hispanic or Latino"),
    )
    assert [(event.hours, event.code, event.value) for event in samples[SECOND].labs] == [
        (-335, "SARS-CoV-2 RNA panel: Positive", 1),
        (-47, CREATININE, 5),
        (-23, "BE", -3.5),
    ]
    assert samples[SECOND].static == (("age", 79), ("gender", "MALE"), ("race", "White"))
    assert codes(samples[EARLIER]) == ["observation: Type 2 diabetes mellitus", CREATININE]
    assert samples[EARLIER].notes == ()
    assert codes(samples[LATER])[2:] == ["condition: Sepsis", CREATININE]
    assert [note.text for note in samples[LATER].notes] == [
        'A "quoted" note,\nof two lines.',
        "Will return, in two weeks.",
    ]
    assert [(event.hours, event.value) for event in samples[DATES_ALONE].labs] == [(0, 60)]
    assert dict(samples[DATES_ALONE].static)["age"] == 44


def test_the_attrition_log_tells_who_was_left_and_which_rows_were_left_out(cohort):
    assert cohort.attrition.values.tolist() == [
        ["visits of the kinds 262, 9201, 9203", 5, 7],
        ["stays in the source", 5, 6],
        ["with a start, and an end that is not before it", 5, 6],
        ["still there and alive 48 h after the start", 4, 5],
        ["read", 4, 5],
        ["rows without a number or a coded result left out: 2", 4, 5],
        ["rows without a code left out: 1", 4, 5],
        ["results below or above a limit, taken at the limit: 1", 4, 5],
        ["images without a local path left out: 1", 4, 5],
    ]


def in_parts(tables, folder):
    """Every table as a folder of parts, one of them in another order of columns."""
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        half = len(table) // 2
        table[:half].to_csv(folder / name / "part-0.csv", index=False)
        table[half:][table.columns[::-1]].to_csv(folder / name / "part-1.csv", index=False)
    return folder


def compressed(tables, folder):
    write(tables, folder, upper=True)
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return folder


def in_memory(tables, folder):
    from fsspec import filesystem

    where = f"memory://{folder.name}"
    for path in write(tables, folder).iterdir():
        filesystem("memory").pipe(f"{where}/{path.name}", path.read_bytes())
    return where


def with_tabs(tables, folder):
    """As the vocabularies are handed out: tabs, no quotation marks, capitals."""
    write({name: table for name, table in tables.items() if name != "concept"}, folder)
    tables["concept"].to_csv(folder / "CONCEPT.csv", sep="\t", index=False)
    return folder


def with_windows_lines(tables, folder):
    folder.mkdir()
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\r\n", encoding="utf-8-sig")
    return folder


def spark_parquet(tables, folder):
    for name, table in tables.items():
        (folder / f"{name}.parquet").mkdir(parents=True)
        (folder / f"{name}.parquet" / "_SUCCESS").touch()
        table.to_parquet(folder / f"{name}.parquet" / "part-00000-x.parquet", index=False)
    return folder


def as_text(tables, folder):
    folder.mkdir()
    for name, table in tables.items():
        words = table.astype(object).where(table.notna(), None).map(str, na_action="ignore").astype("str")
        words.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


def plain_parquet(tables, folder):
    return write(tables, folder, "parquet")


WAYS = (plain_parquet, in_parts, compressed, in_memory, with_tabs, with_windows_lines, spark_parquet, as_text)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_cohort_is_the_same_however_the_tables_are_written(tmp_path, cohort, way):
    equal(read_omop(way(hospital(), tmp_path / "other")), cohort)


def test_quotation_marks_hold_a_text_together_also_where_tabs_separate(tmp_path):
    told = ['He said "no"\tand left,\nit is written', '"quoted"', "plain"]
    tables = only() | {"note": pd.DataFrame([noted(n, 1, "2020-01-02", text) for n, text in enumerate(told)])}
    tables["concept"] = hospital()["concept"]
    for name, table in tables.items():
        (tmp_path / "omop").mkdir(exist_ok=True)
        table.to_csv(tmp_path / "omop" / f"{name}.csv", sep="\t", index=False)
    # ATHENA's quotation marks are letters.
    concepts = tmp_path / "omop" / "CONCEPT.csv"
    (tmp_path / "omop" / "concept.csv").rename(concepts)
    concepts.write_text(concepts.read_text().replace("Progress note", 'The "progress" note'))
    notes = read_omop(tmp_path / "omop").notes
    assert sorted(notes["text"]) == sorted(told)
    assert set(notes["kind"]) == {'The "progress" note'}


def test_a_path_with_signs_of_patterns_and_quotes_is_a_path(tmp_path):
    tables = only()
    for ending in ("csv", "parquet"):
        assert len(read(tables, tmp_path / "we[i]rd *'name'", ending)) == 5


def test_only_three_tables_must_be_there(tmp_path):
    tables = only()
    cohort = read(tables, tmp_path / "omop")
    assert len(cohort) == 5
    assert cohort.modalities == ("static",)
    assert cohort.static["gender"].tolist() == ["8532", "8507", "8532", "8507"]


def test_a_table_that_may_be_missing_and_is_stands_in_the_attrition_log(tmp_path, cohort):
    steps = read(only("observation", "note"), tmp_path / "omop").attrition["step"].tolist()
    absent = ("measurement", "condition_occurrence", "image_occurrence", "concept")
    assert [step for step in steps if "no table" in step] == [f"no table {name} in the source" for name in absent]
    assert not cohort.attrition["step"].str.contains("no table").any()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_of_persons_that_nobody_knows_are_counted(tmp_path, cohort, ending):
    tables = hospital()
    strange = [measured(90, 99, "2020-01-02 09:00", 100.0), measured(91, 98, "2020-01-02 09:00", 100.0)]
    tables["measurement"] = pd.concat([tables["measurement"], pd.DataFrame(strange)], ignore_index=True)
    # Of one who has visits and is not in person, something is predicted.
    tables["person"] = tables["person"][1:]
    steps = read(tables, tmp_path / "omop", ending).attrition["step"].tolist()
    assert [step for step in steps if "person_id" in step] == [
        "rows of measurement left out whose person_id is neither in person nor in visit_occurrence: 2"
    ]
    assert not cohort.attrition["step"].str.contains("person_id").any()


def test_without_names_the_numbers_of_concepts_are_the_codes(tmp_path):
    tables = hospital()
    del tables["concept"]
    sample = seen(read(tables, tmp_path / "omop"))[FIRST]
    assert [(event.code, event.unit) for event in sample.labs] == [
        ("4275495: 4310250", None),
        ("condition: 201826", None),
        ("3020564", "umol/l"),
        ("3024929", "10*9/L"),
        ("3027018", "umol/l"),
        ("3020564", "umol/l"),
    ]


# Nothing from the future


LATE_EVENTS = {
    "measurement": [
        measured(90, 1, "2020-01-03 08:00:01", 1.0),
        # Of the day of the prediction, it is not known when; and of a later date than its time.
        measured(91, 1, "2020-01-03", 2.0),
        measured(92, 1, "2020-01-03 00:00", 3.0),
        measured(93, 1, "2020-01-02 10:00", 4.0) | {"measurement_date": pd.Timestamp("2020-01-03").date()},
        # A code, and a row that is broken and later.
        measured(94, 1, "2020-01-02 10:00", None, 40218805, value_as_concept_id=45884084),
        measured(95, 1, "2020-01-04 10:00", np.inf),
    ],
    "observation": [
        observed(90, 1, "2020-01-04 10:00", value_as_number=1.0),
        observed(91, 1, "2020-01-02 10:00"),
        # A group of the bill, dated to admission.
        observed(92, 1, "2020-01-01 12:30", value_as_concept_id=4310250, visit_occurrence_id=11),
    ],
    "condition_occurrence": [
        diagnosed(90, 1, "2020-01-01 08:00", 201826, 11),
        diagnosed(91, 1, "2020-01-01 08:00", 201826),
        diagnosed(92, 1, "2020-01-01", 201826),
        diagnosed(93, 1, "2020-01-01 09:00", 201826, 10),
        diagnosed(94, 1, "2019-12-24", 201826, 11),
        diagnosed(95, 1, "2020-05-01", 201826),
    ],
    "note": [
        noted(90, 1, "2020-01-03 09:00", "Worse."),
        noted(91, 1, "2020-01-03", "Worse."),
        # Summaries, by class, title, type and source, dated to the stay's beginning.
        noted(92, 1, "2020-01-01 12:30", "He left.", 706391),
        noted(93, 1, "2020-01-02 09:00", "He left.", note_title="DISCHARGE"),
        noted(94, 1, "2020-01-02 09:00", "He left.", 0, note_type_concept_id=44814637),
        noted(95, 1, "2020-01-02 09:00", "He died.", 0, note_source_value="Death note"),
    ],
    "image_occurrence": [imaged(90, 1, "2020-01-03", "/archive/c.dcm")],
}
LATE_DEATH = {"death": [died(1, "2020-01-04 10:00")]}
LATE_VISITS = {
    "visit_occurrence": [
        visit(90, 1, "2020-02-01 08:00", "2020-02-02 08:00"),
        visit(91, 1, "2020-01-05 08:00", None),
        visit(92, 6, "2019-12-31 08:00", "2020-01-20 08:00"),
    ]
}


@pytest.mark.parametrize("late", [LATE_EVENTS, LATE_DEATH, LATE_VISITS], ids=["events", "death", "visits"])
def test_what_is_later_than_the_prediction_changes_nothing_that_a_sample_sees(tmp_path, cohort, late):
    tables = hospital()
    for name, rows in late.items():
        tables[name] = pd.concat([tables[name], pd.DataFrame(rows)], ignore_index=True)
    before, after = seen(cohort), seen(read(tables, tmp_path / "omop"))
    assert {key: after[key] for key in before} == before


def test_only_events_that_some_sample_may_see_are_taken(tmp_path, cohort):
    recent = read(hospital(), tmp_path / "omop", "parquet", history=24)
    for taken in (cohort, recent):
        for table in ("labs", "notes", "images"):
            assert sorted(set(taken.window(table).rows)) == list(range(len(getattr(taken, table))))
    assert [len(taken.labs) for taken in (cohort, recent)] == [14, 7]


def test_a_stay_that_goes_on_keeps_its_codes_and_summaries_to_itself(tmp_path):
    tables = hospital()
    tables["visit_occurrence"] = pd.DataFrame([visit(1, 1, "2020-01-01 08:00", None)])
    tables["condition_occurrence"] = pd.DataFrame(
        [diagnosed(1, 1, "2020-01-01"), diagnosed(2, 1, "2019-12-31", 201826)]
    )
    tables["note"] = pd.DataFrame([noted(1, 1, "2020-01-01 09:00", "Summary.", 706391)])
    cohort = read(tables, tmp_path / "omop", after=900)
    (sample,) = seen(cohort).values()
    assert np.isnan(cohort.outcomes["died"]).all()
    assert "condition: Sepsis" not in codes(sample)
    assert "condition: Type 2 diabetes mellitus" in codes(sample)
    assert sample.notes == ()


# The questions


def test_the_days_that_remain_count_to_the_end_or_to_the_death(tmp_path):
    tables = adding("death", died(1, "2020-01-06"))
    told = read(tables, tmp_path / "omop", task="length-of-stay").outcomes.set_index("subject_id")["remaining_days"]
    assert told[1] == pytest.approx(3 + 2 / 24)  # He died on the day on which he left: not after he left.
    assert told[2] == pytest.approx(1.5)
    assert told[3].tolist() == pytest.approx([1, 1 + 1 / 24])
    assert told[4] == 6  # Dates alone: from the beginning of a day to the beginning of a day.


def test_a_death_is_one_in_hospital_up_to_the_end_of_the_stay_and_to_the_end_of_its_day_if_the_hour_is_unknown(
    tmp_path,
):
    deaths = {
        11: ("2020-01-06", 1),
        12: ("2020-01-06 10:00", 1),
        13: ("2020-01-06 10:01", 0),
        14: ("2020-01-07", 0),
        15: ("2020-01-05", 1),
        # On the day of the prediction: may this patient still have been alive?
        16: ("2020-01-03", None),
        17: ("2020-01-03 08:01", 1),
        18: ("2020-01-03 08:00", None),
    }
    stays = [visit(number, number, "2020-01-01 08:00", "2020-01-06 10:00") for number in deaths]
    # Of these, the hours of the stay are not known.
    deaths |= {21: ("2020-01-06", 1), 22: ("2020-01-07", 0), 23: ("2020-01-07 00:01", 0), 24: ("2020-01-06 23:59", 1)}
    stays += [visit(number, number, "2020-01-01", "2020-01-06") for number in range(21, 25)]
    tables = {
        "person": pd.DataFrame([person(1)]),
        "visit_occurrence": pd.DataFrame(stays),
        "death": pd.DataFrame([died(number, when) for number, (when, _) in deaths.items()]),
    }
    told = read(tables, tmp_path / "omop").outcomes
    expected = {number: outcome for number, (_, outcome) in deaths.items() if outcome is not None}
    assert dict(zip(told["subject_id"], told["died"], strict=True)) == expected


def test_a_visit_that_was_left_dead_is_a_death_in_hospital_without_a_row_in_death(tmp_path):
    tables = only()
    visits = tables["visit_occurrence"]
    visits.loc[visits["visit_occurrence_id"] == 11, "discharged_to_concept_id"] = 4216643
    assert read(tables, tmp_path / "omop").outcomes["died"].tolist() == [1, 1, 0, 0, 0]
    # As version 5.3 calls it.
    tables["visit_occurrence"] = visits.rename(columns={"discharged_to_concept_id": "discharge_to_concept_id"})
    assert 1 not in read(tables, tmp_path / "omop", task="readmission").outcomes["subject_id"].tolist()


def test_a_return_within_thirty_days_is_a_readmission_and_a_transfer_is_none(tmp_path):
    cohort = read(hospital(), tmp_path / "omop", task="readmission")
    told = cohort.outcomes.set_index(["subject_id", "prediction_time"])["readmitted"]
    time = pd.Timestamp
    assert told[1, time("2020-01-06 10:00")] == 0  # The emergency room was the beginning of this stay.
    assert told[3, time("2180-03-04 07:00")] == 1
    assert np.isnan(told[3, time("2180-03-21 08:00")])
    assert told[4, time("1895-05-09")] == 0
    assert 2 not in cohort.outcomes["subject_id"].tolist()
    # Asked at the end, the note that was written before it is known, and the codes are not.
    sample = seen(cohort)[3, "2180-03-04 07:00:00"]
    assert [note.text for note in sample.notes][-1] == "Will return, in two weeks."
    assert "condition: Sepsis" not in codes(sample)


def test_visits_are_one_stay_when_they_overlap_or_follow_within_the_hour(tmp_path):
    first, on_days = ("2020-01-01 08:00", "2020-01-05 10:00"), ("2020-01-01", "2020-01-05")
    cases = {
        11: (1, [first, ("2020-01-05 11:00", "2020-01-07")]),
        12: (2, [first, ("2020-01-05 11:01", "2020-01-07")]),
        13: (1, [first, ("2020-01-02", "2020-01-03"), ("2020-01-05 09:00", "2020-01-07")]),
        14: (1, [on_days, ("2020-01-05", "2020-01-07")]),
        15: (2, [on_days, ("2020-01-06", "2020-01-07")]),
        16: (2, [("2020-01-01 08:00", None), ("2021-01-01", "2021-01-05")]),
    }
    visits = [(person, *span) for person, (_, spans) in cases.items() for span in spans]
    tables = {name: hospital()[name] for name in ("person", "death")}
    tables["visit_occurrence"] = pd.DataFrame([visit(number, *one) for number, one in enumerate(visits)])
    told = read(tables, tmp_path / "omop", task="length-of-stay", after=1).outcomes
    assert told["subject_id"].value_counts().to_dict() == {person: stays for person, (stays, _) in cases.items()}


def test_the_kinds_of_visits_that_are_stays_can_be_chosen(tmp_path):
    cohort = read(hospital(), tmp_path / "omop", visits=(9201,))
    assert cohort.outcomes["prediction_time"].iloc[0] == pd.Timestamp("2020-01-03 12:30")
    assert cohort.attrition["step"].iloc[0] == "visits of the kinds 9201"
    # The emergency room is no stay now, and what was coded there is still none of this stay's inputs.
    assert "condition: Sepsis" not in codes(cohort.sample(0))


def test_a_visit_of_one_still_in_hospital_has_no_end_although_a_date_is_written(tmp_path):
    tables = only()
    visits = tables["visit_occurrence"]
    visits.loc[visits["visit_occurrence_id"] == 11, "visit_type_concept_id"] = 32220
    told = read(tables, tmp_path / "omop").outcomes["died"]
    assert np.isnan(told[0])
    assert told[1:].notna().all()


# Who they are


@pytest.mark.parametrize("stand_in", ["2099-12-31", "9999-12-31 23:59"])
def test_a_stand_in_for_the_end_of_a_visit_is_no_end(tmp_path, stand_in):
    tables = only()
    tables["visit_occurrence"] = pd.DataFrame(
        [
            visit(10, 1, "2020-01-01 08:00", "2020-01-06 10:00"),
            visit(20, 2, "2020-01-01 08:00", stand_in),
            visit(21, 2, "2020-01-20 08:00", "2020-01-24 08:00"),
            visit(30, 3, "2020-01-01 08:00", stand_in, discharged_to_concept_id=4216643),
        ]
    )
    tables["death"] = pd.DataFrame([died(6, "2020-02-03")])
    days = read(tables, tmp_path / "omop", task="length-of-stay")
    # Neither does it swallow the stay after it.
    assert days.outcomes["subject_id"].tolist() == [1, 2, 2, 3]
    assert days.outcomes["remaining_days"].isna().tolist() == [False, True, False, True]
    assert ["ends more than 5 years after the start taken as not known: 2", 3, 4] in days.attrition.to_numpy().tolist()
    back = read(tables, tmp_path / "omop", task="readmission").outcomes
    assert back["subject_id"].tolist() == [1, 2]
    assert back["readmitted"].isna().all()


def test_age_is_that_at_the_first_predicted_stay_as_exactly_as_birth_is_known(tmp_path):
    cases = [
        ("2020-06-14", person(1, 1960), 59),
        ("2020-06-15", person(2, 1960), 60),
        # The middle of the year is 1 July, that of a month its 15th day.
        ("2020-06-30", person(3, 1960, None), 59),
        ("2020-07-01", person(4, 1960, None), 60),
        ("2020-03-14", person(5, 1960, 3, day_of_birth=None), 59),
        ("2020-03-15", person(6, 1960, 3, day_of_birth=None), 60),
        ("2020-06-15", person(7, 1960, birth_datetime="1960-08-01 10:00"), 59),
        ("2020-03-01", person(8, 2020, None), 0),
        ("2020-02-28", person(9, 2000, 2, day_of_birth=29), 19),
        ("1895-01-01", person(10, 1700, 1, day_of_birth=1), 195),
        # Born after the stay began: there is no such age.
        ("2020-06-14", person(11, 2020), None),
        ("2020-06-14", person(12, 2021), None),
    ]
    tables = {
        "person": pd.DataFrame([row for _, row, _ in cases]).astype(
            {"month_of_birth": "Int64", "day_of_birth": "Int64"}
        ),
        "visit_occurrence": pd.DataFrame([visit(k, k, f"{day} 08:00", None) for k, (day, *_) in enumerate(cases, 1)]),
        "death": hospital()["death"].head(0),
    }
    ages = read(tables, tmp_path / "omop").static["age"]
    assert [None if np.isnan(age) else age for age in ages] == [age for *_, age in cases]


def test_a_patient_without_a_row_in_person_has_no_static_facts(tmp_path):
    tables = only("measurement")
    tables["person"] = pd.DataFrame([person(2)])
    assert seen(read(tables, tmp_path / "omop"))[FIRST].static == ()


# Clocks


def zoned(tables, zone="America/New_York"):
    """All times with the zone of a place, the dates as they are there."""
    for table in tables.values():
        for column in table.columns[table.columns.str.endswith("_datetime")]:
            table[column] = pd.to_datetime(table[column]).dt.tz_localize(zone)
    return tables


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_times_with_zones_are_utc_and_a_day_is_the_day_in_every_zone(tmp_path, ending):
    tables = only("measurement", "concept")
    tables["measurement"] = pd.DataFrame(
        [
            measured(1, 1, "2020-01-02 10:00", 1.0),
            measured(2, 1, "2020-01-01", 2.0),
            measured(3, 1, "2020-01-02", 3.0),
            measured(4, 1, "2020-01-01 00:00", 4.0),
        ]
    )
    sample = seen(read(zoned(tables), tmp_path / "omop", ending))[1, "2020-01-03 13:00:00"]
    # The first of January ends at noon of the second, UTC, in the last zone of the world.
    assert [(event.hours, event.value) for event in sample.labs] == [(-25, 2), (-25, 4), (-22, 1), (-1, 3)]


def test_an_hour_that_the_clock_shows_twice_is_two_hours(tmp_path):
    tables = only("measurement")
    tables["visit_occurrence"] = pd.DataFrame([visit(1, 1, "2021-11-05 08:00", "2021-11-09")]).assign(
        visit_start_datetime="2021-11-05 08:00:00-04:00", visit_end_datetime="2021-11-09T08:00:00-05:00"
    )
    tables["death"] = tables["death"].head(0)
    times = ["2021-11-07 01:30:00-04", "2021-11-07 01:30:00-0500", "2021-11-07 06:59:00Z", "2021-11-07T11:30:00+05:30"]
    rows = [measured(k, 1, "2021-11-07", float(k)) | {"measurement_datetime": time} for k, time in enumerate(times)]
    tables["measurement"] = pd.DataFrame(rows)
    (sample,) = seen(read(tables, tmp_path / "omop")).values()
    assert sample.prediction_time == pd.Timestamp("2021-11-07 12:00")
    assert [(round(event.hours, 3), event.value) for event in sample.labs] == [
        (-6.5, 0),
        (-6, 3),
        (-5.5, 1),
        (-5.017, 2),
    ]


def test_on_a_clock_without_zones_hours_are_those_that_it_shows(tmp_path):
    tables = {name: hospital()[name] for name in ("person", "death")}
    tables["visit_occurrence"] = pd.DataFrame([visit(1, 1, "2021-11-05 08:00", "2021-11-09 08:00")])
    tables["measurement"] = pd.DataFrame([measured(1, 1, "2021-11-07 01:30", 1.0)])
    (sample,) = seen(read(tables, tmp_path / "omop")).values()
    assert sample.labs[0].hours == -6.5


def test_dates_are_enough_where_another_table_has_zones(tmp_path):
    tables = only("measurement")
    tables["visit_occurrence"] = pd.DataFrame([visit(1, 1, "2020-01-01", "2020-01-09")])
    tables["death"] = tables["death"].head(0)
    tables["measurement"] = pd.DataFrame([measured(1, 1, "2020-01-02 10:00", 1.0), measured(2, 1, "2020-01-01", 2.0)])
    (sample,) = seen(read(zoned(tables), tmp_path / "omop", "parquet")).values()
    assert [(event.hours, event.value) for event in sample.labs] == [(-12, 2), (-9, 1)]


# What cannot be used


def refused(tables, folder, message, ending="csv", **settings):
    with pytest.raises(InputError, match=message):
        read(tables, folder, ending, **settings)


BAD_ROWS = {
    "measurement_date is not a time": (
        "measurement",
        measured(90, 1, "2020-01-02", 1.0) | {"measurement_date": "02.01.2020"},
    ),
    "measurement_datetime is not a time": (
        "measurement",
        measured(90, 1, "2020-01-02", 1.0) | {"measurement_datetime": "2020-01-02 25:00:00"},
    ),
    "measurement_datetime has a zone, as other times have not": (
        "measurement",
        measured(90, 1, "2020-01-02", 1.0) | {"measurement_datetime": "2020-01-02 10:00:00+01:00"},
    ),
    "measurement_date is blank": ("measurement", measured(90, 1, None, 1.0)),
    "value_as_number is not a number": ("measurement", measured(90, 1, "2020-01-02", "high")),
    "value_as_number is infinite or beyond ±1e+15, which no laboratory reports": (
        "measurement",
        measured(90, 1, "2020-01-02", "1e16"),
    ),
    "measurement_concept_id is not a whole number": ("measurement", measured(90, 1, "2020-01-02", 1.0, "KREA")),
    "unit_concept_id is not a whole number": ("measurement", measured(90, 1, "2020-01-02", 1.0, unit_concept_id=1.5)),
    "person_id is not a whole number": ("measurement", measured(90, "P1", "2020-01-02", 1.0)),
    "person_id is blank": ("measurement", measured(90, None, "2020-01-02", 1.0)),
    "condition_start_date is not a time": (
        "condition_occurrence",
        diagnosed(90, 1, "2019-01-02") | {"condition_start_date": "2019"},
    ),
    "note_text has more than 16 MiB": ("note", noted(90, 1, "2020-01-02", "x" * (LONGEST_TEXT + 1))),
    "note_text is blank": ("note", noted(90, 1, "2020-01-02", " ")),
    "image_occurrence_date is blank": ("image_occurrence", imaged(90, 1, None, "/archive/c.dcm")),
    "visit_start_date is blank": ("visit_occurrence", visit(90, 1, None, "2020-01-02")),
    "visit_end_date is not a time": (
        "visit_occurrence",
        visit(90, 1, "2020-01-01", "2020-01-02") | {"visit_end_date": "2020-02-30"},
    ),
    "visit_occurrence_id is blank": ("visit_occurrence", visit(None, 1, "2021-01-01", "2021-01-02")),
    "death_date is not a time": ("death", died(1, "2020-01-09") | {"death_date": "January"}),
    "year, month and day of birth are no date": ("person", person(3, 1960, 13)),
}


def test_rows_that_cannot_be_used_are_listed_with_their_file_and_place(tmp_path, cohort):
    tables, expected = hospital(), []
    for reason, (name, row) in BAD_ROWS.items():
        tables[name] = pd.concat([tables[name].astype(object), pd.DataFrame([row]).astype(object)], ignore_index=True)
        expected.append((str(tmp_path / "omop" / f"{name}.csv"), len(tables[name]), reason))
    left_out = read(tables, tmp_path / "omop", invalid="exclude")
    assert sorted((one.table, one.row, one.reason) for one in left_out.exclusions) == sorted(expected)
    assert seen(left_out) == seen(cohort)


@pytest.mark.parametrize("reason", ["measurement_date is not a time", "death_date is not a time"])
def test_a_row_that_cannot_be_used_is_refused_with_its_file_and_place(tmp_path, reason):
    name, row = BAD_ROWS[reason]
    tables = adding(name, row)
    where = f"{tmp_path / 'omop' / name}.csv, data row {len(tables[name])}"
    refused(tables, tmp_path / "omop", rf'{where}: {reason}. Write times as .*, or leave such rows out .*"exclude"')


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_bad_rows_are_found_in_their_part_and_counted(tmp_path, ending):
    tables = only("measurement")
    measurement = tables.pop("measurement")
    write(tables, tmp_path / "omop", ending)
    for part in range(3):
        table = measurement.copy()
        table["measurement_id"] += 100 * part
        if part:
            table.loc[[1, 6], "value_as_number"] = 2e15
        write({f"part-{part}": table}, tmp_path / "omop" / "measurement", ending)
    place = tmp_path / "omop" / "measurement" / f"part-1.{ending}"
    with pytest.raises(InputError, match=rf"{place}, data row 2 \(and 3 more such rows\): value_as_number is infinite"):
        read_omop(tmp_path / "omop")
    cohort = read_omop(tmp_path / "omop", invalid="exclude")
    assert [(one.table[-len(ending) - 2 :], one.row) for one in cohort.exclusions] == [
        (f"1.{ending}", 2),
        (f"1.{ending}", 7),
        (f"2.{ending}", 2),
        (f"2.{ending}", 7),
    ]


def test_what_no_sample_could_see_is_not_looked_at(tmp_path, cohort):
    broken = [measured(90, 6, "2020-01-02", "high"), measured(91, 1, "2020-01-09", "high")]
    tables = hospital()
    tables["measurement"] = pd.concat([tables["measurement"].astype(object), pd.DataFrame(broken).astype(object)])
    equal(read(tables, tmp_path / "omop"), cohort)


def test_persons_and_deaths_stand_there_once(tmp_path):
    message = r"person.csv, data row 1 and .*person.csv, data row 7 are of one person \(1 such rows\). Keep one row a"
    refused(adding("person", person(1)), tmp_path / "omop", message)
    tables = adding("death", died(2, "2020-02-03 18:00"))
    message = r"death.csv, data row \d and .*death.csv, data row \d are of one person, of whom they state different"
    refused(tables, tmp_path / "omop", message)
    assert len(read(adding("death", died(2, "2020-02-04 18:00")), tmp_path / "omop")) == 5  # The same, twice.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history": 0}, "history is 0; expected a positive number of hours, or None for all"),
        ({"history": "48"}, "history is 48; expected a positive number of hours"),
        ({"visits": ()}, r"visits is \(\); expected concept numbers such as \(9201, 262\)"),
        ({"visits": ("inpatient",)}, "expected concept numbers"),
        ({"schema": "cdm"}, "schema and cache are for a database; .*omop is a folder. Leave them out"),
        ({"cache": "x"}, "schema and cache are for a database"),
        ({"invalid": "drop"}, "invalid is 'drop'; expected"),
        ({"task": "death"}, "task is 'death'; expected one of"),
        ({"visits": (1,)}, "No stay of 0 qualifies for the task 'mortality'"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(tmp_path, settings, message):
    refused(only(), tmp_path / "omop", message, **settings)


@pytest.mark.parametrize("name", ["person", "visit_occurrence", "death"])
def test_a_table_that_must_be_there_is_asked_for(tmp_path, name):
    tables = only()
    del tables[name]
    refused(tables, tmp_path / "omop", rf"omop has no table {name}\. Put it there")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere. Check the path"):
        read_omop(tmp_path / "nowhere")


def test_a_table_that_stands_there_twice_is_refused(tmp_path):
    write(only("note"), tmp_path / "omop")
    write({"NOTE": hospital()["note"]}, tmp_path / "omop", "parquet")
    with pytest.raises(InputError, match=r"has the table note more than once, also as .*note.csv. Remove one of them"):
        read_omop(tmp_path / "omop")


@pytest.mark.parametrize(
    "name", ["measurement.tsv", "MEASUREMENT.txt", "measurement.csv.bz2", "measurements.csv", "measurement_2.csv"]
)
def test_a_table_under_a_name_or_in_a_form_that_is_not_read_is_refused(tmp_path, name):
    folder = write(only("measurement", "observation"), tmp_path / "omop")
    (folder / "measurement.csv").rename(folder / name)
    message = rf"omop/{name} is not read: the table measurement is measurement.csv, .* If it is that table, write it so"
    with pytest.raises(InputError, match=message):
        read_omop(folder)


def test_a_folder_of_parts_is_read_whole_or_not_at_all(tmp_path):
    folder = write(only("measurement"), tmp_path / "omop")
    parts = write({"part-0": hospital()["measurement"]}, folder / "measurements")
    (folder / "measurement.csv").unlink()
    with pytest.raises(InputError, match=r"omop/measurements is not read: the table measurement is"):
        read_omop(folder)
    parts = parts.rename(folder / "measurement")
    (parts / "part-1.tsv").touch()
    with pytest.raises(InputError, match=r"part-1.tsv stands among the files of the table measurement and is not read"):
        read_omop(folder)


def test_parts_that_are_linked_are_read_and_each_once(tmp_path, cohort):
    folder = write(hospital(), tmp_path / "omop")
    (folder / "measurement").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "measurement.csv").rename(tmp_path / "elsewhere" / "part-0.csv")
    for name in ("linked", "again"):
        (folder / "measurement" / name).symlink_to(tmp_path / "elsewhere")
    (folder / "measurement" / "loop").symlink_to(folder / "measurement")
    pd.testing.assert_frame_equal(read_omop(folder).labs, cohort.labs)


def test_a_folder_of_parts_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    folder = write(hospital(), tmp_path / "omop")
    inner = folder / "measurement" / "later"
    inner.mkdir(parents=True)
    shutil.copy(folder / "measurement.csv", inner / "part-1.csv")
    (folder / "measurement.csv").rename(folder / "measurement" / "part-0.csv")
    deny(monkeypatch, inner)
    with pytest.raises(InputError, match=r"later cannot be listed \(PermissionError\)\. Check its permissions"):
        read_omop(folder)


def test_files_beside_the_tables_and_other_tables_of_the_model_may_be_there(tmp_path, cohort):
    folder = write(hospital(), tmp_path / "omop")
    others = ("observation_period", "note_nlp", "concept_ancestor", "visit_detail", "cdm_source", "metadata", "cost")
    for name in (*(f"{other}.csv" for other in others), "README.txt", ".measurement.csv.swp", "measurement.md"):
        (folder / name).touch()
    (folder / "notes").mkdir()
    (folder / "notes" / "of the export.md").touch()
    equal(read_omop(folder), cohort)


def test_a_folder_of_parts_has_parts_of_one_format(tmp_path):
    tables = only("note")
    note = tables.pop("note")
    write(tables, tmp_path / "omop")
    (tmp_path / "omop" / "note").mkdir()
    with pytest.raises(InputError, match=r"note has no Parquet or CSV file. Put the parts of the table note there"):
        read_omop(tmp_path / "omop")
    for ending in ("csv", "parquet"):
        write({"a": note}, tmp_path / "omop" / "note", ending)
    with pytest.raises(InputError, match=r"note has both Parquet and CSV files. Remove one of them"):
        read_omop(tmp_path / "omop")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_another_layout_is_refused_with_its_file_and_columns(tmp_path, ending):
    tables = only() | {"measurement": hospital()["observation"]}
    message = f"measurement.{ending} lacks the columns measurement_concept_id, measurement_date of the OMOP table"
    refused(tables, tmp_path / "omop", message, ending)
    tables["measurement"] = hospital()["measurement"].drop(columns="value_as_number")
    refused(tables, tmp_path / "omop", f"measurement.{ending} lacks the column value_as_number of the OMOP", ending)
    tables["measurement"] = hospital()["measurement"].assign(PERSON_ID=1)
    refused(tables, tmp_path / "omop", f"measurement.{ending} has the column person_id twice. Rename or drop", ending)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("value_as_number", pd.Timestamp("2020-01-01"), "value_as_number holds timestamp.*, expected numbers"),
        ("measurement_date", 20200101, "measurement_date holds int64, expected dates or times. Convert the column"),
        ("person_id", b"1", "person_id holds binary, expected whole numbers"),
        ("unit_source_value", True, "unit_source_value holds bool, expected text"),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path, column, values, message):
    tables = only("measurement")
    tables["measurement"] = tables["measurement"].assign(**{column: values})
    refused(tables, tmp_path / "omop", f"measurement.parquet: {message}", "parquet")


def test_parts_of_a_table_have_columns_of_one_type(tmp_path):
    tables = only("note")
    note = tables.pop("note")
    write(tables, tmp_path / "omop", "parquet")
    write({"a": note, "b": note.astype({"note_date": "str"})}, tmp_path / "omop" / "note", "parquet")
    with pytest.raises(InputError, match=r"b.parquet: note_date is of another type here \(text\) than in .*a.parquet"):
        read_omop(tmp_path / "omop")
    here, there = (zoned({"note": note.copy()}, zone)["note"] for zone in ("Europe/Berlin", "UTC"))
    write({"a": here, "b": there}, tmp_path / "omop" / "note", "parquet")
    with pytest.raises(InputError, match=r"b.parquet: note_datetime has another time zone \(UTC\) than in .*a.parquet"):
        read_omop(tmp_path / "omop")


def test_clocks_with_and_without_zones_are_not_compared(tmp_path):
    tables = only("note")
    tables["note"] = zoned({"note": tables["note"]})["note"]
    message = "note.csv: note_datetime has time zones and .*visit_start_datetime has none, so the two cannot"
    refused(tables, tmp_path / "omop", message)
    refused(tables, tmp_path / "omop", message.replace("csv", "parquet"), "parquet")
    tables = zoned(only("note"))
    tables["note"] = hospital()["note"]
    tables["note"]["note_datetime"] = [None, "2020-01-02 10:00:00", None, None, None]
    refused(tables, tmp_path / "omop", "visit_start_datetime has time zones and .*note.csv: note_datetime has none")


BROKEN_TEXT = {
    "is not UTF-8": "note_text,é\n".encode("latin-1"),
    "is empty. It needs a first line of column names": b"",
    "line 3: 2 cells, but the first line names 3 columns": b"person_id,note_date,note_text\n1,2020-01-02,x\n1,2\n",
    "line 2: 4 cells, but the first line names 3": b"person_id,note_date,note_text\n1,2020-01-02,x,9\n",
    "2 cells, .* text that has tabs or line ends": b"person_id\tnote_date\tnote_text\n1\t2020-01-02\tx\n1\t2\n",
    "4 cells, but .* text that has commas or line ends in": b"person_id,note_date,note_text\n1,2020-01-02,x,9\n",
    "is separated by semicolons. Save it with commas or tabs": b"person_id;note_date;note_text\n1;2020-01-02;x\n",
    "is separated by vertical bars. Save it with commas": b"person_id|note_date|note_text\n1|2020-01-02|x\n",
    "line 2: a quotation mark is not closed": b'person_id,note_date,note_text\n1,2020-01-02,"x\n1,2020-01-02,y\n',
    "mixes line ends": b"person_id,note_date,note_text\n1,2020-01-02,x\r\n1,2020-01-02,y\n",
    "is not UTF-8. Save it as UTF-8": "person_id,note_date,note_text\n1,2020-01-02,Œdème\n".encode("cp1252"),
    "is not UTF-8 \\(byte 0\\)": "person_id,note_date,note_text\n".encode("utf-16"),
}


@pytest.mark.parametrize("message", BROKEN_TEXT)
def test_a_text_file_that_cannot_be_read_is_refused_and_never_quoted(tmp_path, message):
    write(only("note"), tmp_path / "omop")
    (tmp_path / "omop" / "note.csv").write_bytes(BROKEN_TEXT[message])
    with pytest.raises(InputError, match=message) as caught:
        read_omop(tmp_path / "omop")
    assert str(caught.value).startswith(str(tmp_path / "omop" / "note.csv"))
    assert "2020-01-02" not in str(caught.value)
    assert not [line for line in traceback.format_exception(caught.value) if "2020-01-02" in line]


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(omop_files, "LONGEST_LINE", 1000)
    tables = adding("note", noted(90, 1, "2020-01-02", "long " * 100_000))
    refused(tables, tmp_path / "omop", "note.csv, line 7: longer than 32 MB, or a quotation mark is not closed")


def test_a_parquet_file_that_is_none_or_is_damaged_is_refused(tmp_path):
    path = write(only("measurement"), tmp_path / "omop", "parquet") / "measurement.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"measurement.parquet cannot be read as a Parquet file. Write it anew"):
        read_omop(tmp_path / "omop")
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(whole[:4] + bytes(footer - 4) + whole[footer:])
    with pytest.raises(InputError, match=r"measurement.parquet cannot be read. Write it anew"):
        read_omop(tmp_path / "omop")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    write(only("note"), tmp_path / "omop")
    (tmp_path / "omop" / "note.csv").unlink()
    (tmp_path / "omop" / "note.csv.gz").write_bytes(b"no archive at all")
    with pytest.raises(InputError, match=r"note.csv.gz cannot be read \(BadGzipFile\). Write it anew"):
        read_omop(tmp_path / "omop")


def test_a_temporary_folder_without_room_is_named(tmp_path, monkeypatch):
    from chiasm.datasets import omop_rows

    monkeypatch.setattr(omop_rows, "MEMORY", "20MB")
    rows = 400_000
    tables = only()
    tables["measurement"] = pd.DataFrame(
        {
            "person_id": 1,
            "measurement_concept_id": np.arange(rows),
            "measurement_datetime": pd.Timestamp("2020-01-02 10:00"),
            "value_as_number": np.random.default_rng(0).random(rows),
        }
    )
    refused(
        tables,
        tmp_path / "omop",
        "need more than 20MB of memory and the free space of the temporary folder .*. Set TMPDIR",
        "parquet",
    )


def test_a_part_of_a_table_without_values_may_have_no_type(tmp_path, cohort):
    tables = hospital()
    write(tables, tmp_path / "omop", "parquet")
    arrow = pa.Table.from_pandas(tables["note"], preserve_index=False)
    column = arrow.schema.get_field_index("note_title")
    pq.write_table(arrow.set_column(column, "note_title", pa.nulls(len(arrow))), tmp_path / "omop" / "note.parquet")
    equal(read_omop(tmp_path / "omop"), cohort)


# Databases, as far as no server is needed


@pytest.mark.parametrize(
    ("source", "missing", "message"),
    [
        ("postgresql+psycopg://me@host/omop", "sqlalchemy", r'needs SQLAlchemy. Run pip install "chiasm\[database\]"'),
        (
            "postgresql+psycopg://me@host/omop",
            "psycopg",
            r'driver of postgresql\+psycopg is not installed. Run pip install "chiasm\[database\]", or that driver',
        ),
        (
            "postgres://me:secret@host/omop",
            None,
            r"SQLAlchemy knows no database postgres. Check .* that of PostgreSQL is postgresql\+psycopg://",
        ),
        ("post gres://me:secret@host/omop", None, "is no URL of a database. Write it as postgresql"),
        ("postgresql+psycopg://me:top@host:22secret/omop", None, "is no URL of a database. Write it as postgresql"),
        ("postgresql+psycopg://me:top#secret:1@host:port/omop", None, "is no URL of a database. Write it as"),
    ],
)
def test_a_database_that_cannot_be_spoken_to_says_what_is_missing(monkeypatch, source, missing, message):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: pip install chiasm[database]")
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=message) as caught:
        read_omop(source)
    assert "secret" not in str(caught.value)


def test_what_a_driver_says_is_told_without_the_password():
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: pip install chiasm[database]")
    error = OSError("cannot connect as me:secret@host\nin line 2")
    for url, told in (("x://me:secret@host", "me:***@host"), ("x://me@host", "me:secret@host")):
        assert omop_database.first_words(error, sqlalchemy.make_url(url)) == f"cannot connect as {told}"


@pytest.fixture
def sqlite(tmp_path):
    """The hospital in a database without a server, and its URL."""
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: pip install chiasm[database]")
    url = f"sqlite:///{tmp_path / 'omop.sqlite'}"
    engine = sqlalchemy.create_engine(url)
    for name, table in hospital().items():
        days = {column: sqlalchemy.Date() for column in table.columns if column.endswith("_date")}
        table.to_sql(name, engine, index=False, dtype=days)
    engine.dispose()
    return url


def test_another_database_gives_the_same_cohort(sqlite, cohort):
    equal(read_omop(sqlite), cohort)


def test_a_cell_that_is_not_of_its_columns_type_is_refused_without_its_content(sqlite, tmp_path):
    def change(sql):
        with contextlib.closing(sqlite3.connect(tmp_path / "omop.sqlite")) as connection, connection:
            connection.execute(sql)

    change("UPDATE measurement SET measurement_concept_id = 'Smith' WHERE measurement_id = 1")
    with pytest.raises(
        InputError, match="table measurement: measurement_concept_id has a value that is not of"
    ) as caught:
        read_omop(sqlite)
    assert not [line for line in traceback.format_exception(caught.value) if "Smith" in line]
    change("UPDATE death SET death_date = 'Smith'")
    with pytest.raises(InputError, match=r"does not give the table death \(ValueError\). Check the schema") as caught:
        read_omop(sqlite)
    assert not [line for line in traceback.format_exception(caught.value) if "Smith" in line]


def test_a_damaged_file_of_the_cache_is_named(sqlite, tmp_path):
    read_omop(sqlite, cache=tmp_path / "cache")
    for name in ("people", "note"):
        (part,) = (tmp_path / "cache").glob(f"{name}-*")
        part.write_bytes(b"PAR1")
        with pytest.raises(InputError, match=rf"{part} is damaged. Remove it: it is fetched anew"):
            read_omop(sqlite, cache=tmp_path / "cache")
        part.unlink()
    assert len(read_omop(sqlite, cache=tmp_path / "cache")) == 5


def test_a_full_disk_is_named_and_leaves_no_half_written_file(sqlite, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(omop_database, "reach_disk", fail)
    with pytest.raises(InputError, match=r"The disk of .*cache is full, and the table visit_occurrence could not be"):
        read_omop(sqlite, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


# The worked example

EXAMPLE = """
from chiasm.datasets.omop import read_omop

cohort = read_omop("omop/", task="mortality", after=48)  # death in hospital, asked 48 h after admission
cohort = read_omop("postgresql+psycopg://me@host/omop", cache="omop-cache/")  # kept, so that a reading cut off goes on
print(cohort.attrition)  # who was left, and which rows were left out
print(cohort.sample(0).labs)  # what was known of one patient then: results, and codes of earlier stays
"""


def test_the_example_of_the_readme_runs_on_files_and_on_a_database(sqlite, cohort, tmp_path, monkeypatch, capsys):
    write(hospital(), tmp_path / "omop", "csv")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    # Without a server, a database in a file takes its place.
    exec(compile(EXAMPLE.replace("postgresql+psycopg://me@host/omop", sqlite), "README.md", "exec"), names)
    equal(names["cohort"], cohort)
    printed = capsys.readouterr().out
    assert "still there and alive 48 h after the start" in printed
    assert CREATININE in printed
    assert list((tmp_path / "omop-cache").iterdir())
