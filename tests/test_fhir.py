"""FHIR exports: what was known when, whose stays count, and lines that are broken."""

import base64
import copy
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError
from chiasm.datasets import ndjson as lines_
from chiasm.datasets.fhir import read_fhir
from chiasm.datasets.ndjson import Export

from .denied import deny

FAR_LATER = "2031-09-01T00:00:00Z"


def patient(name="p1", **more):
    return {"resourceType": "Patient", "id": name, "gender": "female", "birthDate": "1960-07-02"} | more


def stay(name="e1", of="p1", start="2031-05-01T08:00:00Z", end="2031-05-09T12:00:00Z", left="home", kind="IMP", **more):
    period = {"start": start} | ({"end": end} if end else {})
    own = {"resourceType": "Encounter", "id": name, "status": "finished", "class": {"code": kind}, "period": period}
    system = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
    if left:
        own["hospitalization"] = {"dischargeDisposition": {"coding": [{"system": system, "code": left}]}}
    return own | {"subject": {"reference": f"Patient/{of}"}} | more


def code(loinc="2345-7", **more):
    return {"coding": [{"system": "http://loinc.org", "code": loinc} | more]}


def result(name="o1", of="p1", drawn="2031-05-02T06:00:00Z", issued="2031-05-02T07:30:00Z", value=5.5, **more):
    own = {"resourceType": "Observation", "id": name, "status": "final", "code": code()}
    own |= {"effectiveDateTime": drawn, "issued": issued, "subject": {"reference": f"Patient/{of}"}}
    if value is not None:
        own["valueQuantity"] = {"value": value, "unit": "mmol per litre", "code": "mmol/L"}
        own["valueQuantity"]["system"] = "http://unitsofmeasure.org"
    return {key: item for key, item in (own | more).items() if item is not None}


def form(text, kind="text/plain", **more):
    return {"contentType": kind, "data": base64.b64encode(text.encode()).decode()} | more


def report(name="r1", **more):
    own = {"resourceType": "DiagnosticReport", "id": name, "status": "final", "code": code("36643-5")}
    own |= {"subject": {"reference": "Patient/p1"}, "effectiveDateTime": "2031-05-02T06:00:00Z"}
    return own | {"issued": "2031-05-02T09:00:00Z", "presentedForm": [form("No effusion.")]} | more


def document(name="d1", text="Admitted with fever.", loinc="34117-2", date="2031-05-01T10:00:00Z", **more):
    own = {"resourceType": "DocumentReference", "id": name, "status": "current", "type": code(loinc), "date": date}
    own |= {"subject": {"reference": "Patient/p1"}, "content": [{"attachment": form(text)}]}
    return own | more


def condition(name="c1", recorded="2031-05-01T09:00:00Z", category="encounter-diagnosis", **more):
    own = {"resourceType": "Condition", "id": name, "subject": {"reference": "Patient/p1"}, "recordedDate": recorded}
    own["code"] = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "I50.9"}]}
    return own | {"category": [{"coding": [{"code": category}]}]} | more


def write(folder, *resources, name="export.ndjson", zipped=False):
    folder.mkdir(exist_ok=True, parents=True)
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in resources)
    (folder / name).write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return folder


def read(tmp_path, *resources, **settings):
    """A cohort of one patient's stay, unless others are given, and these resources."""
    kinds = {one["resourceType"] for one in resources}
    own = [patient()] * ("Patient" not in kinds) + [stay()] * ("Encounter" not in kinds)
    return read_fhir(write(tmp_path / "export", *own, *resources), **settings)


def known(cohort, table="labs"):
    """When each event became available, as text, by sample 0."""
    window = cohort.window(table)
    rows = getattr(cohort, table).iloc[window.rows[: window.offsets[1]]]
    return rows["available_at"].dt.strftime("%m-%d %H:%M").tolist()


def told(cohort):
    return cohort.attrition["step"].tolist()


# What was known when


def test_a_result_is_known_when_it_was_issued_and_timed_when_it_was_drawn(tmp_path):
    cohort = read(tmp_path, result(), result("o2", issued="2031-05-03T08:00:00Z"), result("o3", issued=FAR_LATER))
    assert cohort.outcomes.to_dict("list") == {
        "subject_id": ["p1"],
        "prediction_time": [pd.Timestamp("2031-05-03 08:00")],
        "died": [0],
    }
    # Issued at the very moment of the prediction is known; later is not.
    assert known(cohort) == ["05-02 07:30", "05-03 08:00"]
    row = cohort.labs.iloc[0]
    assert (row["code"], row["value"], row["unit"]) == ("2345-7", 5.5, "mmol/L")
    assert row["time"] == pd.Timestamp("2031-05-02 06:00")


def test_a_result_issued_before_it_was_drawn_counts_from_when_it_was_drawn(tmp_path):
    cohort = read(tmp_path, result(drawn="2031-05-02T09:00:00Z"), result("o2", drawn="2031-05-04T09:00:00Z"))
    assert known(cohort) == ["05-02 09:00"]
    assert cohort.early_results["labs"]["hours"].tolist() == [1.5]


def test_instants_of_any_zone_and_across_a_change_of_clocks_become_utc(tmp_path):
    # Clocks in New York went back from 2:00 EDT to 1:00 EST on 2 November 2031.
    around = [
        result("o1", drawn="2031-11-02T01:30:00-04:00", issued="2031-11-02T01:30:00-04:00"),
        result("o2", drawn="2031-11-02T01:30:00-05:00", issued="2031-11-02T01:30:00.250-05:00"),
        result("o3", drawn="2031-11-02T01:30:60Z", issued="2031-11-02T07:00:60Z"),
    ]
    cohort = read(tmp_path, stay(start="2031-11-01T00:00:00Z", end=FAR_LATER.replace("09", "12")), *around)
    assert cohort.labs["available_at"].tolist() == [
        pd.Timestamp("2031-11-02 05:30"),
        pd.Timestamp("2031-11-02 06:30:00.25"),
        pd.Timestamp("2031-11-02 07:01"),
    ]


@pytest.mark.parametrize(
    ("date", "end"),
    [("2031-05-02", "2031-05-03 12:00"), ("2031-05", "2031-06-01 12:00"), ("2031", "2032-01-01 12:00")],
)
def test_a_date_without_a_time_counts_from_where_it_ends_last_on_earth(tmp_path, date, end):
    cohort = read(tmp_path, result(drawn=date, issued=None), stay(end="2032-05-01T00:00:00Z"), after=24 * 300)
    assert cohort.labs["time"].tolist() == [pd.Timestamp(end)]


def test_a_partial_date_of_drawing_does_not_delay_a_result_that_was_issued_within_it(tmp_path):
    assert known(read(tmp_path, result(drawn="2031-05"))) == ["05-02 07:30"]


def test_results_without_issued_are_counted_and_amended_ones_left_out(tmp_path):
    plain, amended = result("o1", issued=None), result("o2", issued=None, status="amended")
    cohort = read(tmp_path, plain, amended, result("o3", status="corrected"), result("o4", issued=None, drawn=None))
    assert known(cohort) == ["05-02 06:00", "05-02 07:30"]
    assert "observations without issued taken as known when they were effective: 1" in told(cohort)
    assert "observations that may not have been known yet left out: 2" in told(cohort)


@pytest.mark.parametrize("status", ["registered", "preliminary", "cancelled", "entered-in-error", "unknown"])
def test_what_is_no_final_result_is_left_out_and_counted(tmp_path, status):
    cohort = read(tmp_path, result(status=status), report(status=status), report("r2"))
    assert cohort.modalities == ("notes", "static")
    assert len(cohort.notes) == 1
    assert {f"{kind} that are {status} left out: 1" for kind in ("observations", "reports")} <= set(told(cohort))


def test_a_measurement_over_a_period_counts_from_its_end(tmp_path):
    period = {"start": "2031-05-01T08:00:00Z", "end": "2031-05-02T08:00:00Z"}
    ongoing = {"start": "2031-05-01T10:00:00Z"}
    cohort = read(
        tmp_path,
        result("o1", drawn=None, issued=None, effectivePeriod=period),
        result("o2", drawn=None, issued=None, effectivePeriod=ongoing),
        result("o3", drawn=None, issued=None, effectiveInstant="2031-05-01T11:00:00Z"),
        result("o4", drawn=None, issued="2031-05-01T12:00:00Z", effectiveTiming={"code": {"text": "BID"}}),
    )
    assert sorted(known(cohort)) == ["05-01 10:00", "05-01 11:00", "05-01 12:00", "05-02 08:00"]


def test_a_report_is_known_when_issued_else_when_its_form_was_created_and_else_not_at_all(tmp_path):
    created = [form("From the form.", creation="2031-05-02T10:00:00+02:00")]
    conclusion = report("r3", presentedForm=[form("%PDF", "application/pdf")], conclusion=" Clear lungs. ")
    undated = report("r4")
    without = report("r2", presentedForm=created)
    del undated["issued"], without["issued"]
    cohort = read(tmp_path, report(), without, conclusion, undated, report("r5", presentedForm=[{"url": "Binary/1"}]))
    assert list(zip(known(cohort, "notes"), cohort.notes["text"], strict=True)) == [
        ("05-02 08:00", "From the form."),
        ("05-02 09:00", "Clear lungs."),
        ("05-02 09:00", "No effusion."),
    ]
    assert cohort.notes["kind"].unique().tolist() == ["36643-5"]
    assert "reports that may not have been known yet left out: 1" in told(cohort)
    assert "reports without inline text left out: 1" in told(cohort)


def test_a_document_is_known_at_the_later_of_its_date_and_its_creation(tmp_path):
    late = [{"attachment": form("Signed late.", creation="2031-05-02T00:00:00Z")}]
    undated = document("d3")
    del undated["date"]
    cohort = read(
        tmp_path,
        *(document(), document("d2", content=late), undated),
        *(document("d4", docStatus="amended"), document("d5", docStatus="amended", content=late)),
        *(document("d6", docStatus="preliminary"), document("d7", status="superseded")),
    )
    assert known(cohort, "notes") == ["05-01 10:00", "05-02 00:00", "05-02 00:00"]
    assert "documents that may not have been known yet left out: 2" in told(cohort)
    assert "documents superseded, preliminary or in error left out: 2" in told(cohort)


DISCHARGED = {"encounter": [{"reference": "Encounter/e1"}]}


@pytest.mark.parametrize(
    "summary",
    [
        document(loinc="18842-5", context=DISCHARGED),
        document(loinc="18842-5"),
        document(type={"text": "Hospital discharge summary"}, context=DISCHARGED),
        document(type={"coding": [{"code": "DS", "display": "Discharge Summary"}]}),
        report(code=code("11490-0"), encounter={"reference": "Encounter/e1"}, issued="2031-05-02T00:00:00Z"),
    ],
    ids=["by code", "without encounter", "by text", "by display", "a report"],
)
def test_a_discharge_summary_is_never_known_during_its_stay_whatever_its_date(tmp_path, summary):
    again = stay("e2", start="2031-06-01T00:00:00Z", end="2031-06-05T00:00:00Z")
    cohort = read(tmp_path, stay(), again, summary)
    assert cohort.notes["available_at"].tolist() == [pd.Timestamp("2031-05-09 12:00")]
    assert np.diff(cohort.window("notes").offsets).tolist() == [0, 1]


def test_a_discharge_summary_of_a_stay_that_goes_on_is_left_out(tmp_path):
    cohort = read(tmp_path, stay(end=None), document(loinc="18842-5"), document("d2"))
    assert len(cohort.notes) == 1


def test_a_diagnosis_of_an_encounter_is_known_only_after_it_and_of_a_problem_list_when_recorded(tmp_path):
    encounter = {"reference": "Encounter/e1"}
    again = stay("e2", start="2031-06-01T00:00:00Z", end="2031-06-05T00:00:00Z")
    undated = condition("c5", encounter=encounter)
    lost = condition("c6", category="problem-list-item")
    del undated["recordedDate"], lost["recordedDate"]
    cohort = read(
        tmp_path,
        *(stay(), again, condition(encounter=encounter), condition("c2", category="problem-list-item")),
        *(condition("c3"), condition("c4", verificationStatus={"coding": [{"code": "refuted"}]}), undated, lost),
    )
    assert known(cohort) == ["05-01 09:00"]
    after = pd.Timestamp("2031-05-09 12:00") + pd.Timedelta(1, "us")
    assert cohort.labs["available_at"].tolist() == [pd.Timestamp("2031-05-01 09:00"), after, after, after]
    assert cohort.labs["code"].unique().tolist() == ["condition: http://hl7.org/fhir/sid/icd-10|I50.9"]
    assert cohort.labs["value"].tolist() == [1] * 4
    assert "conditions refuted, in error or without a code left out: 1" in told(cohort)
    assert "conditions that may not have been known yet left out: 1" in told(cohort)
    # Predicted at discharge, the stay's own diagnoses are still not known.
    discharge = read(tmp_path, stay(), condition(encounter=encounter), result(), task="readmission")
    assert known(discharge) == ["05-02 07:30"]


def test_a_part_of_a_stay_ends_with_the_stay_for_diagnoses_and_is_no_stay_of_its_own(tmp_path):
    ward = stay("w1", end="2031-05-02T08:00:00Z", kind="ACUTE", partOf={"reference": "Encounter/e1"})
    cohort = read(tmp_path, ward, stay(), condition(encounter={"reference": "Encounter/w1"}), result(), after=72)
    assert len(cohort) == 1
    assert known(cohort) == ["05-02 07:30"]


# Answers and their codes


def test_components_booleans_integers_and_coded_answers_are_rows_and_words_are_not(tmp_path):
    pressure = result("o1", value=None, code=code("85354-9"))
    pressure["component"] = [
        {"code": code("8480-6"), "valueQuantity": {"value": 120, "unit": "mmHg"}},
        {"code": code("8462-4"), "valueQuantity": {"value": 80, "code": "mm[Hg]"}},
        {"code": code("8867-4"), "dataAbsentReason": {"text": "not done"}},
    ]
    answer = {"coding": [{"system": "http://snomed.info/sct", "code": "266919005", "display": "Never smoked"}]}
    scale = {"coding": [{"system": "http://hospital/codes", "code": "GCS"}]}
    local = {"coding": [{"system": "http://hospital/", "code": "K7"}, {"system": "http://loinc.org", "code": "2823-3"}]}
    cohort = read(
        tmp_path,
        pressure,
        result("o2", value=None, valueInteger=15, code=scale),
        result("o3", value=None, valueBoolean=False, code={"text": " Ventilated "}),
        result("o4", value=None, valueCodeableConcept=answer, code=code("72166-2")),
        result("o5", value=None, valueString="haemolysed"),
        result("o6", value=None, valueCodeableConcept={"text": "a word"}),
        result("o7", code=local, valueQuantity={"value": 3, "comparator": "<"}),
        result("o8", value=None, valueInteger=None),
    )
    rows = cohort.labs[["code", "value", "unit"]].astype(object).where(cohort.labs.notna(), None)
    assert sorted(rows.itertuples(index=False, name=None)) == [
        ("2823-3", 3, None),
        ("72166-2: http://snomed.info/sct|266919005", 1, None),
        ("8462-4", 80, "mm[Hg]"),
        ("8480-6", 120, "mmHg"),
        ("Ventilated", 0, None),
        ("http://hospital/codes|GCS", 15, None),
    ]
    steps = told(cohort)
    assert "answers in words, ranges or waves left out: 2" in steps
    assert "numbers with < or > taken as they stand: 1" in steps
    assert "observations without a number or a coded answer left out: 3" in steps


def test_text_in_html_loses_its_markup_and_plain_text_is_preferred(tmp_path):
    page = (
        "<html><head><title>t</title><style>p {}</style></head><body><!-- <b>hidden</b> --><p>Fever &amp; cough</p>"
        "<script>if (a < b) x()</script>Creatinine < 2<br>since <b>Monday</b></body></html>"
    )
    cohort = read(
        tmp_path,
        document("d1", content=[{"attachment": form(page, "text/html; charset=utf-8")}]),
        document("d2", content=[{"attachment": form("<p>x", "text/html")}, {"attachment": form("plain")}]),
        document("d3", content=[{"attachment": {"contentType": "text/plain; charset=ISO-8859-1", "data": "9mRlbQ=="}}]),
    )
    assert sorted(cohort.notes["text"]) == ["Fever & cough\nCreatinine < 2\nsince Monday", "plain", "ödem"]


# Whose stays


def test_who_died_is_told_by_the_disposition_or_a_death_within_the_stay(tmp_path):
    people = [
        (patient("a"), stay("ea", "a", left="exp")),
        (patient("b", deceasedDateTime="2031-05-05T01:00:00Z"), stay("eb", "b", left=None)),
        (patient("c", deceasedDateTime="2031-05-20T01:00:00Z"), stay("ec", "c", left=None)),
        (patient("d", deceasedDateTime="2031-05-09"), stay("ed", "d", left=None)),  # The day of discharge.
        (patient("e", deceasedDateTime="2031-05-05"), stay("ee", "e", left=None)),  # A day within the stay.
        (patient("f", deceasedBoolean=True), stay("ef", "f", left=None)),
        (patient("g", deceasedBoolean=True), stay("eg", "g", left="home")),
        (patient("h"), stay("eh", "h", left=None)),
        (patient("i"), stay("ei", "i", left=None, end=None)),
        (patient("j", deceasedDateTime="2031-05-02T01:00:00Z"), stay("ej", "j", left="exp")),  # Before the question.
    ]
    cohort = read(tmp_path, *(one for pair in people for one in pair))
    died = cohort.outcomes.set_index("subject_id")["died"]
    assert died[["a", "b", "c", "e", "g", "h"]].tolist() == [1, 1, 0, 1, 0, 0]
    assert died[["d", "f", "i"]].isna().all()
    assert "j" not in died.index
    assert cohort.attrition["step"][:3].tolist() == [
        "stays in the source",
        "with a start, and an end that is not before it",
        "still there and alive 48 h after the start",
    ]


@pytest.mark.parametrize(
    ("system", "expired"),
    [
        ("http://www.nubc.org/patient-discharge", "20"),
        ("http://terminology.hl7.org/CodeSystem/v2-0112", "20"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-discharge-disposition", "DIED"),
        ("", "exp"),
    ],
)
def test_death_is_told_in_the_code_systems_that_hospitals_use(tmp_path, system, expired):
    left = {"dischargeDisposition": {"coding": [{"system": system, "code": expired}]}}
    assert read(tmp_path, stay(hospitalization=left)).outcomes["died"].tolist() == [1]


def test_only_encounters_of_the_classes_asked_for_that_took_place_are_stays(tmp_path):
    others = [
        *(stay("e2", "p1", kind="AMB"), stay("e3", "p1", kind="EMER"), stay("e4", "p1", status="cancelled")),
        stay("e5", "p1", status="planned"),
    ]
    assert len(read(tmp_path, stay(), *others)) == 1
    cohort = read(tmp_path, stay(), stay("e3", kind="EMER", start="2031-02-01T00:00:00Z"), classes=("EMER",))
    assert cohort.outcomes["prediction_time"].tolist() == [pd.Timestamp("2031-02-03")]


def test_the_other_tasks_are_asked_as_of_any_source(tmp_path):
    again = stay("e2", start="2031-05-20T00:00:00Z", end="2031-08-01T00:00:00Z")
    cohort = read(tmp_path, stay(), again, task="readmission")
    assert cohort.outcomes["readmitted"].fillna(-1).tolist() == [1, -1]
    days = read(tmp_path, stay(), task="length-of-stay", after=24).outcomes["remaining_days"]
    assert days.tolist() == pytest.approx([7 + 4 / 24])


def test_a_stay_whose_dates_have_no_time_counts_as_the_source_allows_without_looking_ahead(tmp_path):
    cohort = read(tmp_path, stay(start="2031-05-01", end="2031-05-09"), task="length-of-stay")
    # From 12:00 UTC on the 2nd, where the 1st ends last, to 10:00 UTC on the 8th, where the 9th begins first.
    assert cohort.outcomes["prediction_time"].tolist() == [pd.Timestamp("2031-05-04 12:00")]
    assert cohort.outcomes["remaining_days"].tolist() == pytest.approx([3 + 22 / 24])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2031-05-03T08:00:00Z", "2031-05-03T08:45:00Z"),  # moved to another ward
        ("2031-05-09T12:00:00Z", "2031-05-03T08:45:00Z"),  # two that overlap
        ("2031-05-09T12:00:00Z", "2031-05-01T08:00:00Z"),  # one that stands there twice
        ("2031-05-03", "2031-05-03"),
    ],
)
def test_encounters_that_overlap_or_follow_within_the_hour_are_one_stay(tmp_path, first, second):
    stays = [stay(end=first, left="other-hcf"), stay("e2", start=second, end="2031-05-09T12:00:00Z", kind="NONAC")]
    back = read(
        tmp_path / "back",
        *stays,
        stay("e3", start="2031-05-20T00:00:00Z", end="2031-05-25T00:00:00Z"),
        task="readmission",
    )
    assert back.outcomes["prediction_time"].dt.day.tolist()[0] == 9
    assert back.outcomes["readmitted"].iloc[0] == 1
    assert "encounters that overlap another stay or go on from it joined with it: 1" in told(back)
    stays[1]["hospitalization"]["dischargeDisposition"]["coding"][0]["code"] = "exp"
    assert read(tmp_path / "dead", *stays).outcomes["died"].tolist() == [1]


@pytest.mark.parametrize("kind", ["replaced-by", "replaces"])
def test_a_patient_whom_another_replaces_is_that_one(tmp_path, kind):
    """Else one person would be two, in two parts of a division."""
    people = [patient("p1", gender="male"), patient("p2"), patient("p3", gender="male", birthDate="1950-07-02")]
    links = {"p2": "p3", "p3": "p1"} if kind == "replaced-by" else {"p3": "p2", "p1": "p3"}
    for one in people:
        if one["id"] in links:
            one["link"] = [{"other": {"reference": f"Patient/{links[one['id']]}"}, "type": kind}]
    stays = [stay(), stay("e2", of="p2", start="2031-06-01T08:00:00Z", end="2031-06-09T12:00:00Z")]
    cohort = read(tmp_path, *people[::-1], *stays, result(of="p3", value=7))
    assert cohort.outcomes["subject_id"].tolist() == ["p1", "p1"]
    assert cohort.static[["subject_id", "sex"]].values.tolist() == [["p1", "male"]]
    assert cohort.static["age"].round().tolist() == [71]
    assert cohort.labs["subject_id"].tolist() == ["p1"]
    assert "patients whom another replaces (Patient.link) taken as that one: 2" in told(cohort)


def test_records_that_replace_each_other_end_the_reading_nowhere(tmp_path):
    other = [{"other": {"reference": "Patient/p2"}, "type": "replaced-by"}]
    people = [patient(link=other), patient("p2", link=[other[0] | {"other": {"reference": "Patient/p1"}}])]
    assert read(tmp_path, *people, stay(), stay("e2", of="p2")).subjects == 1
    seen = [{"other": {"reference": "Patient/p2"}, "type": "seealso"}]
    assert read(tmp_path / "also", patient(link=seen), patient("p2"), stay(), stay("e2", of="p2")).subjects == 2


def test_encounters_with_an_hour_between_them_and_those_that_cannot_be_are_not_joined(tmp_path):
    stays = [stay(end="2031-05-03T08:00:00Z"), stay("e2", start="2031-05-03T09:00:01Z")]
    stays += [stay("e3", start="2031-05-02T08:00:00Z", end="2031-05-01T08:00:00Z")]
    stays += [stay("e4", of="p2", end=None), stay("e5", of="p2", start="2031-06-01T08:00:00Z", end="2031-06-09")]
    back = read(tmp_path, patient(), patient("p2"), *stays, task="readmission")
    assert not any("joined" in step for step in told(back))
    assert back.outcomes.groupby("subject_id").size().to_dict() == {"p1": 2, "p2": 1}


def test_a_stand_in_for_the_end_of_a_stay_is_no_end(tmp_path):
    people = [patient(), patient("p2", deceasedDateTime="2032-01-01T00:00:00Z")]
    stays = [stay(), stay("e2", of="p2", end="2099-12-31T00:00:00Z", left=None)]
    back = read(tmp_path / "back", *people, *stays, task="readmission")
    assert back.outcomes["subject_id"].tolist() == ["p1"]
    assert back.outcomes["readmitted"].isna().all()
    assert "ends more than 5 years after the start taken as not known: 1" in told(back)
    dead = read(tmp_path / "dead", *people, *stays).outcomes.set_index("subject_id")["died"]
    assert dead["p1"] == 0
    assert pd.isna(dead["p2"])


def test_sex_and_age_are_static_and_unknown_is_missing(tmp_path):
    cohort = read(
        tmp_path,
        *(patient(), patient("p2", birthDate="1931", gender="unknown"), patient("p3", birthDate="2040-01-01")),
        *(stay(), stay("e2", "p2"), stay("e3", "p3")),
    )
    facts = cohort.static.set_index("subject_id")
    # 25,872 days from 2 July 1960 to 3 May 2031; 36,281 from the middle of 1931.
    assert facts["age"].tolist()[:2] == pytest.approx([25_872 / 365.2425, 36_466 / 365.2425], abs=0.01)
    assert np.isnan(facts.loc["p3", "age"])
    assert facts["sex"].fillna("?").tolist() == ["female", "?", "female"]


def test_history_bounds_what_is_kept_and_patients_of_whom_nothing_is_asked_are_not_looked_at(tmp_path):
    old = result("o2", drawn="2030-01-01T00:00:00Z", issued="2030-01-01T00:00:00Z")
    stranger = result("o3", of="p9", status="nonsense")
    assert len(read(tmp_path, result(), old, stranger).labs) == 2
    cohort = read(tmp_path, result(), old, stranger, history=48)
    assert (len(cohort.labs), cohort.history) == (1, 48)


# Versions, references, files


def test_the_version_updated_last_counts_even_where_it_takes_the_result_back(tmp_path):
    def version(name, value, updated, **more):
        return result(name, value=value, meta={"lastUpdated": updated}, **more)

    june, july = "2031-06-01T00:00:00Z", "2031-07-01T00:00:00Z"
    cohort = read(
        tmp_path,
        *(version("o1", 2, july), version("o1", 1, june)),
        *(version("o2", 3, june), version("o2", 4, july, status="entered-in-error")),
        *(result("o3", value=5), result("o3", value=6)),
        *(patient(gender="male", meta={"lastUpdated": july}), patient(meta={"lastUpdated": june})),
        *(stay(left="exp", meta={"lastUpdated": july}), stay(meta={"lastUpdated": june})),
        *(document(text="old"), document(text="new"), document("d2"), document("d2", status="entered-in-error")),
    )
    assert cohort.labs["value"].tolist() == [2, 6]
    assert cohort.static["sex"].tolist() == ["male"]
    assert cohort.outcomes["died"].tolist() == [1]
    assert cohort.notes["text"].tolist() == ["new"]


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("Patient/p1", True),
        ("https://hospital.example/fhir/Patient/p1", True),
        ("https://hospital.example/fhir/Patient/p1/_history/3", True),
        ("urn:uuid:p1", True),
        ("#p1", False),
        ("Group/p1", False),
        ("Patient/p2", False),
    ],
)
def test_references_are_relative_absolute_or_by_uuid(tmp_path, reference, found):
    cohort = read(tmp_path, result(subject={"reference": reference}))
    assert (cohort.labs is not None) == found


IDENTIFIED = {"subject": {"identifier": {"value": "7"}}}
EVENTS = {
    "observations": result,
    "conditions": condition,
    "reports": report,
    "documents": document,
    "imaging studies": lambda name, **more: study(name, **more),
}


def test_events_whose_patient_cannot_be_found_are_left_out_and_counted(tmp_path):
    lost = [event("lost", **IDENTIFIED) for event in EVENTS.values()]
    lost += [event("strange", subject={"reference": "Patient/p9"}) for event in EVENTS.values()]
    (tmp_path / "images").mkdir()
    cohort = read(tmp_path, *lost, stay(), stay("e2", **IDENTIFIED), images=tmp_path / "images")
    assert (cohort.labs, cohort.notes, cohort.images) == (None, None, None)
    for what in EVENTS:
        assert f"{what} that refer to no Patient by its id left out: 1" in told(cohort)
        assert f"{what} whose patient is not among those of the export left out: 1" in told(cohort)
    assert "encounters that refer to no Patient by its id left out: 1" in told(cohort)


def test_a_stay_whose_patient_has_no_resource_is_told(tmp_path):
    cohort = read(tmp_path, patient(), stay(), stay("e2", of="p9"))
    assert cohort.outcomes["subject_id"].tolist() == ["p1", "p9"]
    assert "samples whose patient has no Patient in the export, without sex and age: 1" in told(cohort)


def test_events_of_patients_of_whom_nothing_is_asked_are_not_called_lost(tmp_path):
    cohort = read(tmp_path, patient(), patient("p2"), result(), result("o2", of="p2"))
    assert not [step for step in told(cohort) if "atient" in step and "left out" in step]


def test_the_lines_tell_what_they_are_not_the_names_of_files_and_gzip_is_read(tmp_path):
    folder = write(tmp_path / "a", patient(), result(), name="Observation.000.ndjson.gz", zipped=True)
    write(folder, "\ufeff" + json.dumps(stay()), "", "  ", json.dumps({"id": "m", "resourceType": "Medication"}))
    write(folder, '{"resourceType":"Claim", broken but never looked at', name="Claim.ndjson")
    whole = read_fhir(folder)
    assert (len(whole), len(whole.labs)) == (1, 1)


@pytest.mark.parametrize(
    "name",
    [
        *("Observation.json", "Observation.jsonl", "Observation.NDJSON", "Observation.ndjson.bz2", "observations.csv"),
        *("MimicObservationLabevents.json", "part-0.jsonl", "Observation/part-0.ndjson", "Observation.000.json.gz"),
    ],
)
def test_resources_under_a_name_that_is_not_read_are_refused(tmp_path, name):
    folder = write(tmp_path / "export", patient(), stay())
    write((folder / name).parent, result(), name=name.split("/")[-1])
    with pytest.raises(InputError, match=rf"export has {name.split('/')[0]}, which is not read: only \*.ndjson and"):
        read_fhir(folder)


def test_files_beside_the_export_may_be_there(tmp_path):
    folder = write(tmp_path / "export", patient(), stay(), result())
    for name in ("manifest.json", "README.txt", ".Observation.json", "Medication.json", "patients.md"):
        (folder / name).touch()
    (folder / "1.2.3").mkdir()
    (folder / "1.2.3" / "Observation.json").touch()
    (folder / "documents").mkdir()
    assert len(read_fhir(folder).labs) == 1


def test_a_kind_of_resource_that_is_not_there_stands_in_the_attrition_log(tmp_path):
    absent = [step for step in told(read(tmp_path, result(), report())) if step.startswith("no ")]
    assert absent == ["no Condition in the export", "no DocumentReference in the export"]


def test_numbered_patients_become_numbers_and_text_stays_text(tmp_path):
    cohort = read(tmp_path, patient("12"), stay(of="12"), result(of="12"))
    assert cohort.outcomes["subject_id"].tolist() == [12]
    assert read(tmp_path, patient("012"), stay(of="012")).outcomes["subject_id"].tolist() == ["012"]


# Images


def study(name="i1", uid="1.2.3", **more):
    own = {"resourceType": "ImagingStudy", "id": name, "status": "available", "subject": {"reference": "Patient/p1"}}
    own |= {"started": "2031-05-02T10:00:00Z", "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}]}
    return own | more


def test_images_are_the_files_below_a_folder_named_by_their_study(tmp_path):
    files = tmp_path / "pacs" / "p1" / "1.2.3" / "series"
    files.mkdir(parents=True)
    for name in ("b.dcm", "a.dcm", ".hidden", "DICOMDIR"):
        (files / name).touch()
    later = study("i2", "1.2.4", series=[{"started": FAR_LATER}])
    cohort = read(
        tmp_path,
        *(study(), later, study("i3", "1.2.5"), study("i4", "1.2.6", status="cancelled"), study("i5", "no uid")),
        images=tmp_path / "pacs",
    )
    assert cohort.images["path"].tolist() == [str(files / "a.dcm"), str(files / "b.dcm")]
    assert cohort.images["study_uid"].unique().tolist() == ["1.2.3"]
    assert cohort.images["time"].unique().tolist() == [pd.Timestamp("2031-05-02 10:00")]
    assert "imaging studies without files left out: 1" in told(cohort)
    assert "imaging studies without images, a UID or a time left out: 2" in told(cohort)


def test_images_of_a_study_are_found_through_links(tmp_path):
    files = tmp_path / "disk" / "of studies"
    files.mkdir(parents=True)
    (files / "a.dcm").touch()
    (tmp_path / "pacs").mkdir()
    (tmp_path / "pacs" / "1.2.3").symlink_to(files)
    assert read(tmp_path, study(), images=tmp_path / "pacs").images["path"].tolist() == [str(files / "a.dcm")]


def test_a_folder_of_images_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    study = {"resourceType": "ImagingStudy", "id": "s1", "status": "available", "started": "2031-05-02T06:00:00Z"}
    study |= {"subject": {"reference": "Patient/p1"}, "identifier": [{"value": "urn:oid:1.2.3"}]}
    (tmp_path / "films" / "1.2.3").mkdir(parents=True)
    deny(monkeypatch, tmp_path / "films" / "1.2.3")
    with pytest.raises(InputError, match=r"1\.2\.3 cannot be listed \(PermissionError\)\. Check its permissions"):
        read(tmp_path, study, images=tmp_path / "films")


def test_images_may_be_named_by_a_table(tmp_path):
    table = pd.DataFrame({"study_uid": ["1.2.3", "9"], "path": ["x.png", "y.png"]})
    assert read(tmp_path, study(), images=table).images["path"].tolist() == ["x.png"]
    assert read(tmp_path, study()).images is None
    with pytest.raises(InputError, match="table of images lacks the column path; it needs study_uid and path"):
        read(tmp_path, study(), images=table[["study_uid"]])
    with pytest.raises(InputError, match=r"There is no folder .* of images"):
        read(tmp_path, study(), images=tmp_path / "nowhere")


# Bad input


def bad(resource, path, value):
    """The resource with another value at a path of keys and positions."""
    changed = copy.deepcopy(resource)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"resourceType": "Observation", "id" "o1"}', r"it is not JSON \(character 38\)"),
        ('["resourceType", "Observation"]', "it is not a JSON object"),
        ('{"id": "o1"}', "it has no resourceType"),
        ('{"resourceType": "Bundle", "entry": []}', "it is a Bundle, whose resources should stand one a line"),
        ('{"resourceType": 7}', "it has no resourceType"),
        ('{"resourceType": "Observation", "a": ' + "[" * 9999 + "]" * 9999 + "}", "it is nested too deeply"),
        ('{"resourceType": "Observation", "a": NaN}', "it has NaN or Infinity, which are no JSON"),
        ('{"resourceType": "Observation", "a": ' + "9" * 5000 + "}", "it has a number of thousands of digits"),
        (r'{"resourceType": "Observation", "a": "\ud800"}', "it has code points that are not Unicode text"),
        (bad(result(), ["valueQuantity"], 5), "valueQuantity is not an object"),
        (bad(result(), ["valueQuantity", "value"], "5"), "value is not a number"),
        (bad(result(), ["valueQuantity", "value"], True), "value is not a number"),
        (bad(result(), ["valueQuantity", "value"], 1e16), r"value is beyond ±1e\+15, which no laboratory reports"),
        (bad(result(), ["valueQuantity", "value"], 10**400), r"value is beyond ±1e\+15"),
        (result(value=None, valueBoolean="yes"), "valueBoolean is not true or false"),
        (bad(result(), ["subject"], "Patient/p1"), "subject is not an object"),
        (bad(result(), ["id"], "a b"), "its id is missing, or no FHIR id"),
        (bad(result(), ["status"], "done"), "status is missing, or none of amended, "),
        (result(status=None), "status is missing"),
        (result(code=None), "the code of an observation or component is missing"),
        (result(component=[5]), "component holds something that is not an object"),
        (result(component={}), "component is not a list"),
        (bad(result(), ["effectiveDateTime"], "2031-05-02T06:00:00"), "effectiveDateTime is no time of FHIR"),
        (
            bad(result(), ["issued"], "2031-02-30T06:00:00Z"),
            "issued is no time of FHIR between the years 1800 and",
        ),
        (bad(result(), ["issued"], "9999-12-31"), "issued is no time of FHIR"),
        (bad(result(), ["issued"], "9999-12-31T00:00:00Z"), "issued is no time of FHIR"),
        (bad(document(), ["content", 0, "attachment", "data"], "%%%"), "an attachment's data are not base64"),
        (bad(document(), ["content", 0, "attachment", "data"], "9mRlbQ=="), ".* its text is not in its charset"),
        (
            document(content=[{"attachment": form("x", "text/plain; charset=utf-7")}]),
            "an attachment is in a charset other than UTF-8, ASCII, ISO-8859-1 and Windows-1252",
        ),
        (patient("p7", gender="F"), "gender is none of male, female, other, unknown"),
        (stay("e7", **{"class": [{"coding": []}]}), "class is not an object"),
        (stay("e7", status="done"), "status is missing, or none that an Encounter has"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_or_left_out_and_listed(tmp_path, line, reason):
    folder = write(tmp_path / "export", patient(), stay(), line, result("o2"))
    with pytest.raises(InputError, match=rf"export.ndjson, line 3: {reason}.*Correct the line .*invalid=\"exclude\""):
        read_fhir(folder)
    cohort = read_fhir(folder, invalid="exclude")
    assert [(one.table, one.row) for one in cohort.exclusions] == [("export.ndjson", 3)]
    assert "lines that cannot be used left out: 1" in told(cohort)
    assert len(cohort.labs) == 1


def test_text_that_is_not_utf8_is_named_by_its_byte(tmp_path):
    folder = write(tmp_path, patient(), stay())
    (folder / "more.ndjson").write_bytes(b'{"resourceType": "Condition", "x": "\xff"}')
    with pytest.raises(InputError, match=r"more.ndjson, line 1: it is not UTF-8 \(byte 37\)"):
        read_fhir(folder)


def test_a_line_too_long_or_of_too_many_parts_is_refused_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(lines_, "MOST_PARTS", 1000)
    long = '{"resourceType": "Observation", "a": "' + "x" * (3 << 20) + '"}'
    parts = '{"resourceType": "Observation", "a": [' + "{}," * 1000 + "{}]}"
    folder = write(tmp_path / "export", patient(), stay(), long, parts, result())
    with pytest.raises(InputError, match="line 3: it is longer than 1 MiB"):
        read_fhir(folder)
    cohort = read_fhir(folder, invalid="exclude")
    assert [one.reason for one in cohort.exclusions] == [
        "it is longer than 1 MiB",
        "it has more than 1000 lists and objects",
    ]
    assert len(cohort.labs) == 1


def test_files_that_are_no_ndjson_at_all_end_even_where_lines_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_, "MOST_LISTED", 20)
    folder = write(tmp_path, json.dumps(patient(), indent=0), "{\n" * 30)
    with pytest.raises(InputError, match=r"With it more than 20 lines cannot be used: .* is no bulk export of FHIR R4"):
        read_fhir(folder, invalid="exclude")


def test_a_broken_line_one_million_is_named(tmp_path):
    line = b'{"resourceType": "Claim"}\n'
    folder = write(tmp_path, patient(), stay())
    with (folder / "more.ndjson").open("wb") as file:
        file.write(line * 999_999 + b'{"resourceType": "Patient" "id": "p2"}\n')
    with pytest.raises(InputError, match=r"more.ndjson, line 1000000: it is not JSON \(character 28\)"):
        read_fhir(folder)


def test_an_export_that_is_still_being_written_is_refused(tmp_path):
    export = Export(write(tmp_path / "export", patient(), stay()), invalid="raise")

    def grow(_: dict) -> None:
        with (tmp_path / "export" / "export.ndjson").open("a") as file:
            file.write("\n")

    with pytest.raises(InputError, match=r"export\.ndjson changed while it was read. Wait until it is written"):
        export.read({"Patient": grow})


def test_a_compressed_file_that_was_cut_short_is_refused(tmp_path):
    folder = write(tmp_path, patient(), stay(), *(result(f"o{k}") for k in range(400)), name="a.ndjson.gz", zipped=True)
    whole = (folder / "a.ndjson.gz").read_bytes()
    (folder / "a.ndjson.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a.ndjson.gz cannot be read after line \d+ \(EOFError\).* cut short"):
        read_fhir(folder, invalid="exclude")


@pytest.mark.parametrize(
    ("resources", "settings", "message"),
    [
        ([stay()], {}, r"has no Patient resource; it holds Encounter \(1\). Put the files of one bulk export"),
        ([patient()], {}, r"has no Encounter resource; it holds Patient \(1\)"),
        (
            [patient(), stay(kind="AMB")],
            {},
            r"no Encounter of class IMP, ACUTE, NONAC .* its classes are AMB \(1\)",
        ),
        ([patient(), stay(left=None)], {}, "Nothing in the export says who died: no Encounter has"),
        ([patient(), stay()], {"classes": "IMP"}, r"classes is 'IMP'; expected a list of Encounter classes"),
        ([patient(), stay()], {"task": "death"}, "task is 'death'; expected one of mortality"),
        (
            [patient(), stay()],
            {"after": 999},
            "No stay of 1 qualifies for the task 'mortality' with a",
        ),
        ([patient(), stay()], {"history": -1}, "history is -1; expected a positive number of hours"),
        ([patient(), stay()], {"invalid": "skip"}, 'invalid is \'skip\'; expected "raise" or "exclude"'),
    ],
)
def test_an_export_or_a_setting_that_cannot_be_used_is_refused(tmp_path, resources, settings, message):
    with pytest.raises(InputError, match=message):
        read_fhir(write(tmp_path, *resources), **settings)


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*/nowhere. Check the path"):
        read_fhir(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no .ndjson or .ndjson.gz file"):
        read_fhir(tmp_path)


def test_no_message_shows_what_a_patient_s_line_says(tmp_path):
    folder = write(
        tmp_path, patient("secret-id"), stay(of="secret-id"), bad(result(of="secret-id"), ["issued"], "secret")
    )
    with pytest.raises(InputError) as caught:
        read_fhir(folder)
    assert "secret" not in str(caught.value)


def places(element, path=()):
    """Every path into a resource, to each key and position."""
    pairs = element.items() if isinstance(element, dict) else enumerate(element) if isinstance(element, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_elements_of_every_wrong_type_are_refused_by_name_and_never_otherwise(tmp_path):
    pressure = result("o9", component=[{"code": code("8480-6"), "valueQuantity": {"value": 1, "unit": "mmHg"}}])
    whole = [
        *(patient(deceasedDateTime="2031-05-05"), stay(), pressure, report(), document(context=DISCHARGED)),
        *(condition(encounter={"reference": "Encounter/e1"}), study(series=[{"started": "2031-05-02"}])),
        result("o8", value=None, valueCodeableConcept=code()),
    ]
    values = [
        5,
        -1.5,
        1e999,
        10**30,
        True,
        None,
        "",
        "x",
        "2031-05",
        [],
        [[]],
        [None],
        ["x"],
        {},
        {"x": {}},
        [{"code": 5}],
    ]
    changed = [
        bad(one | {"id": f"{one['id']}-new"}, path, value) for one in whole for path in places(one) for value in values
    ]
    lines = [json.dumps(one).replace("Infinity", "1e999") for one in changed]
    images = pd.DataFrame({"study_uid": ["1.2.3"], "path": ["x.png"]})
    cohort = read_fhir(write(tmp_path, *whole, *lines), images=images, invalid="exclude")
    assert len(lines) > 2000
    assert 0.3 < len(cohort.exclusions) / len(lines) < 0.9
    assert np.isfinite(cohort.labs["value"]).all()
    reasons = {one.reason for one in cohort.exclusions}
    assert {"valueQuantity is not an object", "period is not an object", "subject is not an object"} <= reasons


# The worked example


EXAMPLE = """
from chiasm.datasets.fhir import read_fhir
from chiasm.datasets.units import harmonise_units

cohort = read_fhir("export/", task="mortality", after=48)
print(cohort.attrition)  # who was left, what was left out, and results whose availability is a guess
cohort, report = harmonise_units(cohort, to={"glucose": "mmol/L"})  # one unit a code, by known conversions only
print(report[report["done"] == "converted"])
"""


def test_the_worked_example_runs(tmp_path, monkeypatch, capsys):
    people = [f"p{k}" for k in range(20)]
    write(tmp_path / "export", *(patient(one) for one in people), name="Patient.ndjson")
    write(tmp_path / "export", *(stay(f"e-{one}", one, left="exp" if one == "p3" else "home") for one in people))
    conventional = result("o-0", "p0", valueQuantity={"value": 90.078, "unit": "mg/dL"})
    results = [conventional, *(result(f"o-{one}", one, value=5.0) for one in people)]
    write(tmp_path / "export", *results, name="Observation.ndjson.gz", zipped=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(EXAMPLE, "example", "exec"), names)
    assert len(names["cohort"]) == 20
    # 90.078 mg/dL of glucose, 180.156 g/mol.
    assert names["cohort"].labs["value"].unique().tolist() == pytest.approx([5.0])
    assert "converted  mmol/L" in capsys.readouterr().out
