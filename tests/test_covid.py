"""The COVID-19 image collection: a sample a patient and image day, and nothing from after that day."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError
from chiasm.datasets.covid import DAY_ZERO, covid_sources, read_covid
from chiasm.datasets.leakage import remove_outcome_text
from PIL import Image

DATA = Path(os.environ.get("CHIASM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "covid"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the image collection is not there (CHIASM_DATA)")

COLUMNS = """
    patientid offset sex age finding survival intubated went_icu needed_supplemental_O2 extubated temperature
    pO2_saturation leukocyte_count neutrophil_count lymphocyte_count view modality date location filename image url
    doi license clinical_notes other_notes
"""
RADIOPAEDIA = "https://www.radiopaedia.org/cases/1"
HANNOVER = "https://github.com/ml-workgroup/covid-19-image-repository"


def row(patient, day, icu, **others):
    return {"patientid": patient, "offset": day, "went_icu": icu, "view": "PA", "modality": "X-ray"} | others


ROWS = [
    row("5", "0", "Y", sex="F", age="60", url=RADIOPAEDIA, temperature="38.5", finding="COVID-19"),
    row("5", "0", "Y", sex="F", age="60", url=RADIOPAEDIA, temperature="38.5", view="L"),
    row("5", "9", "Y", sex="F", age="60", url=RADIOPAEDIA, view="AP Supine", survival="N", intubated="Y"),
    row("7b", "-3", "N", sex="M", age="?", url=HANNOVER, pO2_saturation="130", location="Hannover"),
    row("8", "2", "", sex="M"),
    row("9", "", "N", pO2_saturation="97", url=RADIOPAEDIA),
    row("9", "?", "N"),
]


def write(folder, rows):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([dict.fromkeys(COLUMNS.split(), "") | given for given in rows])
    table["image"] = [f"images/{number}.jpg" for number in range(len(table))]
    for name in table["image"]:
        Image.fromarray(np.zeros((4, 4), "uint8")).save(folder / name)
    table.to_csv(folder / "metadata.csv", index=False)
    return folder


def notes_of(folder, *texts_by_day, **settings):
    rows = [row("1", str(day), "Y", clinical_notes=text) for day, text in texts_by_day]
    notes = read_covid(write(folder, rows), **settings).notes
    return {(time - DAY_ZERO).days: text for time, text in zip(notes["time"], notes["text"], strict=True)}


def test_each_patient_and_image_day_is_a_sample_that_sees_what_came_up_to_it(tmp_path):
    cohort = read_covid(write(tmp_path, ROWS))
    days = (cohort.outcomes["prediction_time"] - DAY_ZERO).dt.days
    icu = cohort.outcomes["icu"].fillna(-1)
    assert list(zip(cohort.outcomes["subject_id"], days, icu, strict=True)) == [
        ("5", 0, 1),
        ("5", 9, 1),
        ("7b", -3, 0),
        ("8", 2, -1),
        ("9", 0, 0),
    ]
    assert cohort.outcome_kinds == {"icu": "binary"}
    assert [sorted(image.view for image in cohort.sample(i).images) for i in (0, 1)] == [
        ["L", "PA"],
        ["AP Supine", "L", "PA"],
    ]
    assert [image.hours for image in cohort.sample(1).images] == [-216, -216, 0]
    assert all(Path(path).is_absolute() for path in cohort.images["path"])


def test_measurements_stand_once_a_day_with_units_and_pressures_are_no_percentages(tmp_path):
    labs = read_covid(write(tmp_path, ROWS)).labs
    rows = labs[["subject_id", "code", "value", "unit"]].itertuples(index=False, name=None)
    assert list(rows) == [
        ("5", "temperature", 38.5, "Cel"),
        ("7b", "pO2", 130, "mm[Hg]"),
        ("9", "pO2_saturation", 97, "%"),
    ]


def test_static_facts_are_sex_and_age_alone_and_blank_where_rows_disagree(tmp_path):
    rows = [*ROWS, row("9", "", "N", sex="F"), row("9", "", "N", sex="M")]
    cohort = read_covid(write(tmp_path, rows))
    assert cohort.static.columns.tolist() == ["subject_id", "sex", "age"]
    assert [dict(cohort.sample(i).static) for i in (1, 2, 4)] == [{"sex": "F", "age": 60}, {"sex": "M"}, {}]


def test_who_and_what_is_left_out_stands_in_the_attrition(tmp_path):
    attrition = read_covid(write(tmp_path, ROWS)).attrition
    assert attrition["step"].tolist()[::2][:2] == ["read", "images of unknown day left out: 1"]
    assert attrition["step"][1] == "static: 1 rows left out, of patients who are not in outcomes"
    # Nobody is left out for want of a known outcome: to predict it is what the reader is for.
    assert attrition.iloc[0, 1:].tolist() == attrition.iloc[-1, 1:].tolist() == [4, 5]


def test_an_undated_image_beside_dated_ones_is_left_out(tmp_path):
    cohort = read_covid(write(tmp_path, [row("1", "", "Y"), row("1", "4", "Y"), row("2", "?", "N"), row("2", "", "N")]))
    assert cohort.outcomes.groupby("subject_id").size().to_dict() == {1: 1, 2: 1}
    assert [Path(path).name for path in cohort.images["path"]] == ["1.jpg", "2.jpg"]


def test_a_case_that_was_published_twice_is_one_patient(tmp_path):
    cohort = read_covid(write(tmp_path, [row("97", "0", "Y"), row("178", "1", "Y"), row("3", "0", "N")]))
    assert cohort.outcomes.groupby("subject_id").size().to_dict() == {3: 1, 97: 2}


@pytest.mark.parametrize("word", ["", "?", "Not visible", "Would have been stated"])
def test_intensive_care_is_known_only_where_it_is_stated(word, tmp_path):
    cohort = read_covid(write(tmp_path, [row("1", "0", word), row("2", "0", "Y"), row("3", "0", "N")]))
    assert cohort.outcomes["icu"].fillna(-1).tolist() == [-1, 1, 0]


def test_a_patient_whose_rows_contradict_each_other_has_no_known_outcome(tmp_path):
    others = [row("2", "0", "Y"), row("3", "0", "N")]
    cohort = read_covid(write(tmp_path, [row("1", "0", "Y"), row("1", "2", "N"), *others]))
    assert cohort.outcomes["icu"].fillna(-1).tolist() == [-1, -1, 1, 0]


def test_a_collection_of_which_no_outcome_is_known_can_be_read(tmp_path):
    cohort = read_covid(write(tmp_path, [row("1", "0", ""), row("2", "0", "")]))
    assert cohort.outcome_kinds == {"icu": "binary"}
    assert cohort.outcomes["icu"].isna().all()


def test_notes_lose_what_the_day_cannot_have_known(tmp_path):
    texts = [
        (-4, "Came with fever on a Monday. Lungs clear."),
        (0, "Came with fever on a Monday. Opacities on day 0 and day 6. Admitted to the ICU. Hazy lungs."),
        (6, "Came with fever on a Monday. Opacities on day 0 and day 6. Discussion: a rare case.\nIt ended badly."),
    ]
    assert notes_of(tmp_path / "cleaned", *texts) == {
        -4: "Lungs clear.",
        0: "Came with fever on a Monday. Hazy lungs.",
        6: "Came with fever on a Monday. Opacities on day 0 and day 6.",
    }
    assert notes_of(tmp_path / "published", *texts, keep_outcome_text=True) == dict(texts)


def test_a_note_of_which_nothing_is_left_is_absent(tmp_path):
    rows = [row("1", "0", "Y", clinical_notes="Intubated."), row("2", "0", "N", clinical_notes="Cough.", sex="F")]
    cohort = read_covid(write(tmp_path, rows))
    assert cohort.has_input()["notes"].tolist() == [False, True]
    assert any("1 of 2 sentences tell the outcome" in step for step in cohort.attrition["step"])


def test_sources_are_given_apart_and_row_by_row(tmp_path):
    sources = covid_sources(write(tmp_path, ROWS))
    assert sources.columns.tolist() == ["subject_id", "path", "source", "location", "finding", "view", "modality"]
    assert sources["source"].fillna("").tolist() == ["radiopaedia.org"] * 3 + ["github.com", "", "radiopaedia.org", ""]
    cohort = read_covid(tmp_path)
    assert set(cohort.images["path"]) <= set(sources["path"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": "soon"}, "data row 2: offset is not a number"),
        ({"age": "inf"}, "data row 2: age is not a number"),
        ({"temperature": "high"}, "data row 2: temperature is not a number"),
        ({"went_icu": "perhaps"}, "data row 2: went_icu is not Y or N"),
        ({"patientid": " "}, "data row 2: patientid is blank"),
    ],
)
def test_a_value_that_the_collection_does_not_use_is_named_by_row(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_covid(write(tmp_path, [row("1", "0", "Y"), row("2", "0", "N") | change]))


def test_a_missing_image_column_or_table_is_named(tmp_path):
    write(tmp_path, ROWS)
    (tmp_path / "images/1.jpg").unlink()
    (tmp_path / "images/3.jpg").unlink()
    with pytest.raises(InputError, match=r"data row 2 \(and 1 more such rows\): the image file is not there"):
        read_covid(tmp_path)
    path = tmp_path / "metadata.csv"
    pd.read_csv(path).drop(columns="went_icu").to_csv(path, index=False)
    with pytest.raises(InputError, match="lacks the column went_icu"):
        covid_sources(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="There is no file"):
        read_covid(tmp_path)


@needs_data
def test_the_collection_gives_the_patients_whose_intensive_care_is_stated():
    cohort = read_covid(DATA)
    table = pd.read_csv(DATA / "metadata.csv", dtype=str)
    stated = table[table["went_icu"].isin(["Y", "N"])].groupby("patientid")["went_icu"].first()
    assert cohort.subjects > 60
    cohort = cohort.keep(cohort.outcomes["icu"].notna().to_numpy(), why="stated")
    icu = cohort.outcomes.groupby("subject_id")["icu"].first()
    assert icu.map({1.0: "Y", 0.0: "N"}).to_dict() == stated.to_dict()
    assert (cohort.subjects, int(icu.sum()), len(cohort)) == (60, 34, 116)
    assert not cohort.outcomes.duplicated(["subject_id", "prediction_time"]).any()
    assert cohort.labs.loc[cohort.labs["code"] == "pO2_saturation", "value"].max() <= 100


@needs_data
def test_notes_of_patients_with_intensive_care_keep_no_phrase_that_tells_of_it():
    # Plain substrings, read off the published notes by hand: the list knows nothing of the expressions.
    telling = """
        to icu|intensive|intubat|ventilation|ventilated|endotracheal|et tube|tracheal cannula|tracheostomy|jugular
        gastric tube|extracorporeal|died|discharged|recover|evolution|favourable course|supportive care|deteriorat
        necessitated|treated in|7th day
    """.strip()
    table = pd.read_csv(DATA / "metadata.csv", dtype=str)
    published = table.loc[table["went_icu"] == "Y", "clinical_notes"].dropna()
    left, report = remove_outcome_text(published)
    of_the_cohort = read_covid(DATA).notes["text"]
    for words in re.split(r"\||\s*\n\s*", telling):
        assert published.str.lower().str.contains(words, regex=False).any(), words
        assert not left.str.lower().str.contains(words, regex=False).any(), words
        assert not of_the_cohort.str.lower().str.contains(words, regex=False).any(), words
    assert report.share_of_characters < 0.3
