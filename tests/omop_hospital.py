"""A small hospital as OMOP CDM 5.4 tables, for the tests of its readers."""

from pathlib import Path

import pandas as pd

CONCEPTS = {
    3020564: ("Creatinine [Moles/volume] in Serum or Plasma", "LOINC", "14682-9"),
    3027018: ("Heart rate", "LOINC", "8867-4"),
    3024929: ("Platelets [#/volume] in Blood", "LOINC", "777-3"),
    40218805: ("SARS-CoV-2 RNA panel", "LOINC", "94531-1"),
    45884084: ("Positive", "LOINC", "LA6576-8"),
    4275495: ("Tobacco smoking behaviour", "SNOMED", "365981007"),
    4310250: ("Ex-smoker", "SNOMED", "8517006"),
    132797: ("Sepsis", "SNOMED", "91302008"),
    201826: ("Type 2 diabetes mellitus", "SNOMED", "44054006"),
    8749: ("micromole per liter", "UCUM", "umol/L"),
    8541: ("per minute", "UCUM", "/min"),
    8507: ("MALE", "Gender", "M"),
    8532: ("FEMALE", "Gender", "F"),
    8527: ("White", "Race", "5"),
    38003564: ("Not Hispanic or Latino", "Ethnicity", "Not Hispanic"),
    706391: ("Discharge summary", "LOINC", "18842-5"),
    706530: ("Progress note", "LOINC", "11506-3"),
    32817: ("EHR", "Type Concept", "OMOP4976890"),
}
INPATIENT, EMERGENCY, OUTPATIENT = 9201, 9203, 9202


def time(text: str | None) -> pd.Timestamp:
    return pd.Timestamp(text).as_unit("us") if text else pd.NaT


def day(text: str | None) -> object:
    return pd.Timestamp(text).date() if text else None


def moments(name: str, when: str | None) -> dict:
    """The two columns of a moment; a text without a time of day has a date alone."""
    return {f"{name}_date": day(when), f"{name}_datetime": time(when if when and len(when) > 10 else None)}


def visit(number: int, person: int, start: str, end: str | None, kind: int = INPATIENT, **further) -> dict:
    own = {"visit_occurrence_id": number, "person_id": person, "visit_concept_id": kind, "visit_type_concept_id": 32817}
    return own | moments("visit_start", start) | moments("visit_end", end) | {"discharged_to_concept_id": 0} | further


def measured(number: int, person: int, when: str, value: float | None, concept: int = 3020564, **further) -> dict:
    own = {"measurement_id": number, "person_id": person, "measurement_concept_id": concept}
    return (
        own
        | moments("measurement", when)
        | {"operator_concept_id": 0, "value_as_number": value, "value_as_concept_id": 0, "unit_concept_id": 8749}
        | {"visit_occurrence_id": None, "measurement_source_value": "KREA", "unit_source_value": "umol/l"}
        | further
    )


def observed(number: int, person: int, when: str, concept: int = 4275495, **further) -> dict:
    own = {"observation_id": number, "person_id": person, "observation_concept_id": concept}
    return (
        own
        | moments("observation", when)
        | {"value_as_number": None, "value_as_string": None, "value_as_concept_id": 0, "unit_concept_id": 0}
        | {"visit_occurrence_id": None, "observation_source_value": "SMOKE", "unit_source_value": None}
        | further
    )


def diagnosed(number: int, person: int, when: str, concept: int = 132797, visit: int | None = None) -> dict:
    own = {"condition_occurrence_id": number, "person_id": person, "condition_concept_id": concept}
    return own | moments("condition_start", when) | {"visit_occurrence_id": visit, "condition_source_value": "A41.9"}


def noted(number: int, person: int, when: str, text: str, kind: int = 706530, **further) -> dict:
    own = {"note_id": number, "person_id": person}
    return (
        own
        | moments("note", when)
        | {"note_type_concept_id": 32817, "note_class_concept_id": kind, "note_title": None, "note_text": text}
        | {"visit_occurrence_id": None, "note_source_value": None}
        | further
    )


def imaged(number: int, person: int, when: str, path: str | None) -> dict:
    own = {"image_occurrence_id": number, "person_id": person, "image_occurrence_date": day(when)}
    return own | {"local_path": path, "image_study_uid": f"1.2.3.{number}", "modality_concept_id": 0}


def person(number: int, year: int = 1960, month: int | None = 6, **further) -> dict:
    own = {"person_id": number, "gender_concept_id": 8507 + 25 * (number % 2), "year_of_birth": year}
    own |= {"month_of_birth": month, "day_of_birth": 15 if month else None, "race_concept_id": 8527}
    return own | {"ethnicity_concept_id": 0 if number == 2 else 38003564} | further


def died(number: int, when: str) -> dict:
    return {"person_id": number} | moments("death", when)


def hospital() -> dict[str, pd.DataFrame]:
    """Six patients.

    1 comes through the emergency room, stays five days and lives; 2 dies in hospital on the fourth
    day; 3 has two stays, the second two weeks after the first, in the year 2180; 4 has dates alone, in
    1895; 5 leaves within 48 hours; 6 was never in hospital.
    """
    rows = {
        "person": [
            person(1),
            person(2, 1940),
            person(3, 2100),
            person(4, 1850, None),
            person(5),
            person(6),
        ],
        "visit_occurrence": [
            visit(10, 1, "2020-01-01 08:00", "2020-01-01 12:00", EMERGENCY),
            visit(11, 1, "2020-01-01 12:30", "2020-01-06 10:00"),
            visit(12, 1, "2019-06-01 09:00", "2019-06-01 09:30", OUTPATIENT),
            visit(20, 2, "2020-02-01 06:00", "2020-02-04 18:15"),
            visit(30, 3, "2180-03-01 07:00", "2180-03-04 07:00"),
            visit(31, 3, "2180-03-18 07:00", "2180-03-21 08:00"),
            visit(40, 4, "1895-05-01", "1895-05-09"),
            visit(50, 5, "2020-01-01 08:00", "2020-01-02 08:00"),
            visit(60, 6, "2020-01-01 08:00", "2020-01-01 08:20", OUTPATIENT),
        ],
        "death": [died(2, "2020-02-04 18:00"), died(4, "1896-01-01")],
        "measurement": [
            measured(1, 1, "2020-01-01 08:30", 80.0, visit_occurrence_id=10),
            measured(2, 1, "2020-01-03 07:59", 95.5, visit_occurrence_id=11),
            measured(3, 1, "2020-01-03 08:01", 110.0, visit_occurrence_id=11),
            measured(4, 1, "2020-01-02", 88.0, 3027018, unit_concept_id=8541),
            measured(5, 1, "2020-01-03", 89.0, 3027018, unit_concept_id=8541),
            measured(6, 2, "2020-02-01 07:00", 5.0, operator_concept_id=4171756),
            measured(7, 2, "2020-02-02 07:00", -3.5, 0, measurement_source_value="BE", unit_concept_id=0),
            measured(8, 2, "2020-02-02 07:00", 1.0, 0, measurement_source_value=None),
            measured(9, 2, "2020-01-20 07:00", None, 40218805, value_as_concept_id=45884084),
            measured(10, 2, "2020-02-02 07:00", None),
            measured(11, 3, "2180-03-02 00:00", 70.0),
            measured(12, 3, "2180-03-19 07:00", 75.0),
            measured(13, 4, "1895-05-02", 60.0),
            measured(14, 4, "1895-05-03", 61.0),
            measured(15, 5, "2020-01-01 09:00", 62.0),
            measured(16, 6, "2020-01-01 08:00", 63.0),
        ],
        "observation": [
            observed(1, 1, "2019-06-01", value_as_concept_id=4310250, visit_occurrence_id=12),
            observed(2, 1, "2020-01-02 10:00", 3024929, value_as_number=250.0, unit_source_value="10*9/L"),
            observed(3, 2, "2020-02-01 10:00"),
            observed(4, 3, "2180-03-02 10:00", value_as_string="free text"),
            observed(5, 3, "2180-02-01", 201826),
        ],
        "condition_occurrence": [
            diagnosed(1, 1, "2019-06-01", 201826, 12),
            diagnosed(2, 1, "2020-01-01 12:30", 132797, 11),
            diagnosed(3, 1, "2020-01-01"),
            diagnosed(4, 3, "2180-03-01", 132797, 30),
        ],
        "note": [
            noted(1, 1, "2020-01-02 10:00", "Better today."),
            noted(2, 1, "2020-01-02", "Left alive.", 706391, visit_occurrence_id=11),
            noted(3, 1, "2020-01-04 10:00", "Goes home."),
            noted(4, 3, "2180-03-02 10:00", "Will return, in two weeks.", 706391, visit_occurrence_id=30),
            noted(5, 3, "2180-03-03", 'A "quoted" note,\nof two lines.'),
        ],
        "image_occurrence": [
            imaged(1, 1, "2020-01-02", "/archive/a.dcm"),
            imaged(2, 1, "2020-01-03", "/archive/b.dcm"),
            imaged(3, 1, "2020-01-01", None),
        ],
        "concept": [
            {"concept_id": number, "concept_name": name, "vocabulary_id": vocabulary, "concept_code": code}
            for number, (name, vocabulary, code) in CONCEPTS.items()
        ],
    }
    tables = {name: pd.DataFrame(own) for name, own in rows.items()}
    whole = ("visit_occurrence_id", "month_of_birth", "day_of_birth")
    return {
        name: table.astype({column: "Int64" for column in whole if column in table.columns})
        for name, table in tables.items()
    }


def write(tables: dict[str, pd.DataFrame], folder: Path, ending: str = "csv", upper: bool = False) -> Path:
    """Write tables as files of one format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        path = folder / f"{name.upper() if upper else name}.{ending}"
        if ending == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
    return folder
