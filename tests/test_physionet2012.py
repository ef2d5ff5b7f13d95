"""Stays of the PhysioNet Challenge 2012: both published layouts give one cohort, and nothing is made up."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError
from chiasm.datasets.physionet2012 import read_physionet2012

DATA = Path(os.environ.get("CHIASM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "physionet2012"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the challenge's data is not there (CHIASM_DATA)")

ADMISSION = pd.Timestamp("2000-01-01")
COMPLETE = [
    (0, "Age", 54),
    (0, "Gender", 0),
    (0, "Height", 162.6),
    (0, "ICUType", 4),
    (0, "Weight", 87),
    (0, "Weight", 86.5),
    (7, "HR", 73),
    (7, "HR", 77),
    (61, "Temp", 35.1),
    (2880, "Urine", 900),
    (2881, "MechVent", 1),
]
ONLY_DESCRIPTORS = [(0, "Age", 90), (0, "Gender", -1), (0, "Height", -1), (0, "ICUType", 1), (0, "Weight", -1)]


def write_texts(folder, stays, deaths, *, letter="a", end="\n"):
    home = folder / f"set-{letter}"
    home.mkdir(parents=True)
    for record, events in stays.items():
        rows = [(0, "RecordID", record), *events]
        lines = [f"{minutes // 60:02d}:{minutes % 60:02d},{name},{value}" for minutes, name, value in rows]
        text = end.join(["Time,Parameter,Value", *lines]) + end
        (home / f"{record}.txt").write_bytes(text.encode())
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    rows = [f"{record},6,1,5,-1,{died}" for record, died in deaths.items()]
    (folder / f"Outcomes-{letter}.txt").write_text("\n".join([header, *rows]) + "\n")
    return folder


def write_parquet(folder, stays, deaths, *, letter="a"):
    home = folder / f"set-{letter}"
    home.mkdir(parents=True)
    rows = [(record, *event) for record, events in stays.items() for event in events]
    events = pd.DataFrame(rows, columns=["record_id", "minutes", "parameter", "value"])
    types = {"record_id": "int32", "minutes": "int32", "parameter": "category", "value": "float32"}
    events.astype(types).to_parquet(home / "events.parquet")
    outcomes = pd.DataFrame({"record_id": list(deaths), "in_hospital_death": list(deaths.values())})
    outcomes.to_parquet(home / "outcomes.parquet")
    return folder


def assert_equal(one, other):
    for table in ("outcomes", "labs", "static"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))


@pytest.fixture(params=[write_texts, write_parquet], ids=["text", "parquet"])
def write(request):
    return request.param


def test_a_stay_becomes_one_sample_48_hours_after_admission(write, tmp_path):
    cohort = read_physionet2012(write(tmp_path, {17: COMPLETE, 18: ONLY_DESCRIPTORS}, {17: 1, 18: 0}))
    assert cohort.outcomes.to_dict("list") == {
        "subject_id": [17, 18],
        "prediction_time": [ADMISSION + pd.Timedelta("48h")] * 2,
        "died": [1, 0],
    }
    assert (cohort.outcome_kinds["died"], cohort.history) == ("binary", 48)
    assert cohort.labs["value"].dtype == np.float32
    first = cohort.sample(0)
    assert [(round(event.hours * 60), event.code, round(event.value, 1)) for event in first.labs] == [
        (-2880, "Weight", 86.5),
        (-2873, "HR", 73.0),
        (-2873, "HR", 77.0),
        (-2819, "Temp", 35.1),
        (0, "Urine", 900.0),
    ]
    assert (cohort.labs["code"] == "MechVent").sum() == 1


def test_descriptors_are_static_facts_and_the_first_weight_at_admission_is_one_of_them(write, tmp_path):
    cohort = read_physionet2012(write(tmp_path, {17: COMPLETE, 18: ONLY_DESCRIPTORS}, {17: 1, 18: 0}))
    complete, empty = (dict(cohort.sample(position).static) for position in (0, 1))
    assert complete.pop("height") == pytest.approx(162.6)
    assert complete == {"age": 54, "gender": "female", "weight": 87, "icu_type": "Surgical ICU"}
    assert empty == {"age": 90, "icu_type": "Coronary Care Unit"}
    assert cohort.has_input()["labs"].tolist() == [True, False]


def test_what_is_left_out_is_counted_and_the_rest_stays_as_published(write, tmp_path):
    odd = [
        (0, "Age", 60),
        (0, "Height", 1.8),
        (0, "Weight", 70),
        (5, "", 3),
        (6, "Weight", 0),
        (7, "Temp", -17.8),
        (8, "pH", 735),
        (8, "pH", 7.35),
        (9, "HR", -1),
        (10, "Urine", 11000),
        (11, "WBC", 12500),
    ]
    cohort = read_physionet2012(write(tmp_path, {1: odd}, {1: 0, 2: 1}))
    assert cohort.labs["code"].tolist() == ["pH", "Urine", "WBC"]
    assert dict(cohort.sample(0).static) == {"age": 60, "weight": 70}
    assert cohort.attrition["step"].tolist() == [
        "read",
        "outcomes without a record left out: 1",
        "rows with a blank parameter left out: 1",
        "readings of -1 in a series left out: 1",
        "impossible values of Height left out: 1",
        "impossible values of Weight left out: 1",
        "impossible values of Temp left out: 1",
        "impossible values of pH left out: 1",
    ]


def test_a_missing_parameter_name_in_parquet_counts_as_blank(tmp_path):
    write_parquet(tmp_path, {1: [(0, "Age", 60), (1, None, 3)]}, {1: 0})
    assert "rows with a blank parameter left out: 1" in read_physionet2012(tmp_path).attrition["step"].tolist()


def test_text_and_parquet_of_the_same_stays_give_equal_cohorts(tmp_path):
    stays, deaths = {17: COMPLETE, 18: ONLY_DESCRIPTORS}, {17: 1, 18: 0}
    parquet = read_physionet2012(write_parquet(tmp_path / "parquet", stays, deaths))
    assert_equal(read_physionet2012(write_texts(tmp_path / "unix", stays, deaths)), parquet)
    assert_equal(read_physionet2012(write_texts(tmp_path / "windows", stays, deaths, end="\r\n")), parquet)


def test_outcomes_may_lie_in_the_set_and_layouts_may_mix_between_sets(tmp_path):
    write_texts(tmp_path, {1: COMPLETE}, {1: 0})
    (tmp_path / "Outcomes-a.txt").rename(tmp_path / "set-a" / "Outcomes-a.txt")
    write_parquet(tmp_path, {2: COMPLETE, 3: [(0, "Age", 40), (9, "Lactate", 2)]}, {2: 1, 3: 0}, letter="b")
    cohort = read_physionet2012(tmp_path, sets=("a", "b"))
    assert cohort.outcomes["died"].tolist() == [0, 1, 0]
    assert cohort.labs["code"].nunique() == 6
    assert read_physionet2012(tmp_path, sets=("b",)).subjects == 2


@pytest.mark.parametrize("sets", [(), ("a", "a"), ("d",)])
def test_sets_are_a_b_c_each_once(sets, tmp_path):
    with pytest.raises(InputError, match="expected one or more of a, b, c, each once"):
        read_physionet2012(tmp_path, sets=sets)


def test_a_set_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_texts(tmp_path, {1: COMPLETE}, {1: 0})
    with pytest.raises(InputError, match=r"no folder .*set-c; .* holds set-a"):
        read_physionet2012(tmp_path, sets=("c",))


def test_an_empty_set_and_one_in_both_layouts_are_refused(tmp_path):
    (tmp_path / "set-b").mkdir()
    with pytest.raises(InputError, match=r"neither events\.parquet nor record files"):
        read_physionet2012(tmp_path, sets=("b",))
    write_texts(tmp_path, {1: COMPLETE}, {1: 0})
    (tmp_path / "set-a" / "events.parquet").touch()
    with pytest.raises(InputError, match=r"both events\.parquet and text files"):
        read_physionet2012(tmp_path)


def test_a_record_in_two_sets_is_refused(tmp_path):
    write_texts(tmp_path, {1: COMPLETE}, {1: 0})
    write_texts(tmp_path, {1: COMPLETE}, {1: 0}, letter="b")
    with pytest.raises(InputError, match="1 records stand in more than one of the sets a, b"):
        read_physionet2012(tmp_path, sets=("a", "b"))


def test_a_record_without_outcome_and_outcomes_without_any_record_are_refused(write, tmp_path):
    with pytest.raises(InputError, match=r"1 of 2 records of .*set-a have no row in the outcomes"):
        read_physionet2012(write(tmp_path / "more", {1: COMPLETE, 2: COMPLETE}, {1: 0}))
    with pytest.raises(InputError, match="No record of the sets a has an outcome"):
        read_physionet2012(write(tmp_path / "none", {1: []}, {1: 0}))


def test_missing_and_malformed_outcomes_are_named(write, tmp_path):
    folder = write(tmp_path, {1: COMPLETE}, {1: 0})
    path = next(path for path in (folder / "Outcomes-a.txt", folder / "set-a/outcomes.parquet") if path.is_file())
    for rows, message in [
        ([("1", "0"), ("1", "0")], "data row 2: the record stands there twice"),
        ([("1", "0"), ("2", "maybe")], "data row 2: expected a record number and 0 or 1"),
        ([("x", "1")], "data row 1: expected a record number"),
    ]:
        names = ["RecordID", "In-hospital_death"] if path.suffix == ".txt" else ["record_id", "in_hospital_death"]
        table = pd.DataFrame(rows, columns=names)
        table.to_csv(path, index=False) if path.suffix == ".txt" else table.to_parquet(path)
        with pytest.raises(InputError, match=message):
            read_physionet2012(folder)
    table = table.iloc[:, :1]
    table.to_csv(path, index=False) if path.suffix == ".txt" else table.to_parquet(path)
    with pytest.raises(InputError, match=r"lacks the column [iI]n-?_?hospital_death"):
        read_physionet2012(folder)
    path.unlink()
    with pytest.raises(InputError, match="The outcomes are missing: there is no file"):
        read_physionet2012(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("00:10,HR", "found 2 cells"),
        ("00:10,HR,73,bpm", "found 4 cells"),
        ("", "found 1 cells"),
        ("0:10,HR,73", r"the time is not hours and minutes since admission \(HH:MM\)"),
        ("00:60,HR,73", "the time is not hours"),
        ("2000-01-01,HR,73", "the time is not hours"),
        ("00:10,Mrs Roe,73", "the parameter is not a plain name"),
        ('00:10,"HR",73', "the parameter is not a plain name"),
        ("00:10,HR,high", "the value is not a finite number"),
        ("00:10,HR,", "the value is not a finite number"),
        ("00:10,HR,nan", "the value is not a finite number"),
        ("00:10,HR,1e999", "the value is not a finite number"),
        ("00:10,HR,73\r00:11,HR,74", "found 5 cells"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line_without_its_content(line, problem, tmp_path):
    write_texts(tmp_path, {1: COMPLETE, 2: COMPLETE}, {1: 0, 2: 0})
    path = tmp_path / "set-a" / "2.txt"
    path.write_bytes(path.read_bytes() + f"{line}\n00:12,HR,80\n".encode())
    with pytest.raises(InputError, match=rf"2\.txt, line 14: .*{problem}") as caught:
        read_physionet2012(tmp_path)
    assert "Roe" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"Time,Parameter,Value\n", b"Hour,What,Value\n00:00,RecordID,2\n", b"\xff\xfe"]
)
def test_a_file_without_header_or_lines_is_named(content, tmp_path):
    write_texts(tmp_path, {1: COMPLETE, 2: COMPLETE}, {1: 0, 2: 0})
    (tmp_path / "set-a" / "2.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"2\.txt, line 1: expected the header Time,Parameter,Value"):
        read_physionet2012(tmp_path)


@pytest.mark.parametrize("stated", ["", "00:00,RecordID,3\n", "00:00,RecordID,2\n00:00,RecordID,2\n"])
def test_a_file_must_state_its_name_as_record_number_once(stated, tmp_path):
    write_texts(tmp_path, {1: COMPLETE, 2: COMPLETE}, {1: 0, 2: 0})
    (tmp_path / "set-a" / "2.txt").write_text(f"Time,Parameter,Value\n{stated}00:00,Age,50\n")
    with pytest.raises(InputError, match=r"2\.txt does not state its own name as RecordID"):
        read_physionet2012(tmp_path)


def test_a_record_file_that_cannot_be_read_is_named(tmp_path):
    write_texts(tmp_path, {1: COMPLETE}, {1: 0})
    (tmp_path / "set-a" / "2.txt").mkdir()
    with pytest.raises(InputError, match=r"2\.txt cannot be read"):
        read_physionet2012(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="minutes"), "lacks the column minutes"),
        (lambda table: table.assign(minutes=-1), "minutes must be whole numbers from 0"),
        (lambda table: table.assign(minutes=0.5), "minutes must be whole numbers from 0"),
        (lambda table: table.assign(record_id="one"), "record_id must be whole numbers"),
        (lambda table: table.assign(value=np.nan), "data row 1: value is not a finite number"),
        (lambda table: table.assign(value="high"), "data row 1: value is not a finite number"),
    ],
)
def test_malformed_parquet_is_named_by_column(change, message, tmp_path):
    write_parquet(tmp_path, {1: COMPLETE}, {1: 0})
    path = tmp_path / "set-a" / "events.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(InputError, match=message):
        read_physionet2012(tmp_path)


def test_contradicting_and_unknown_descriptors_are_refused(write, tmp_path):
    with pytest.raises(InputError, match="1 records state Age more than once"):
        read_physionet2012(write(tmp_path / "twice", {1: [(0, "Age", 50), (0, "Age", 51)]}, {1: 0}))
    with pytest.raises(InputError, match="A Gender is 2; expected one of 0, 1, or -1"):
        read_physionet2012(write(tmp_path / "gender", {1: [(0, "Age", 50), (0, "Gender", 2)]}, {1: 0}))


@needs_data
def test_the_published_sample_equals_the_same_stays_of_the_parquet_set():
    raw = read_physionet2012(DATA / "raw_sample")
    whole = read_physionet2012(DATA)
    assert raw.subjects == 21
    assert (whole.subjects, whole.outcomes["died"].sum()) == (4000, 554)
    same = whole.keep(whole.outcomes["subject_id"].isin(raw.outcomes["subject_id"]).to_numpy(), why="of the sample")
    assert_equal(raw, same)
    without_series = ~raw.has_input()["labs"]
    assert raw.outcomes.loc[without_series, "subject_id"].tolist() == [140501, 140936]
    assert raw.has_input()["static"].all()


@needs_data
def test_no_outcome_and_no_missing_code_is_among_the_inputs():
    cohort = read_physionet2012(DATA, sets=("b",))
    assert (cohort.subjects, cohort.outcomes["died"].sum()) == (4000, 568)
    assert cohort.labs["code"].nunique() == 37
    assert not (cohort.labs["value"] == -1).any()
    assert cohort.static.columns.tolist() == ["subject_id", "age", "gender", "height", "weight", "icu_type"]
    assert cohort.static.select_dtypes("number").min().min() > 0
    assert cohort.static["gender"].isna().sum() == 5
