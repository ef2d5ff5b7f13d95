"""The tables of a cohort: which cells are understood, and which are refused with their row and remedy."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = pd.Timestamp("2031-05-17 08:00")
SECRET = "Mrs Xanthippe Quill"


def outcomes(ids=(1, 2, 3), **columns) -> pd.DataFrame:
    return pd.DataFrame({"subject_id": list(ids), "prediction_time": NOW, "died": [0, 1, 0][: len(ids)]} | columns)


def hour(offset: float) -> pd.Timestamp:
    return NOW + pd.Timedelta(hours=offset)


def labs(*values, **columns) -> pd.DataFrame:
    """One row a value, of patient 1, an hour before the prediction."""
    values = values or (1.0,)
    return pd.DataFrame({"subject_id": 1, "time": hour(-1), "code": "pH", "value": list(values)} | columns)


def notes(*texts, **columns) -> pd.DataFrame:
    return pd.DataFrame({"subject_id": 1, "time": hour(-1), "text": list(texts)} | columns)


def images(**columns) -> pd.DataFrame:
    return pd.DataFrame({"subject_id": [1], "time": [hour(-1)], "path": ["a.png"]} | columns)


def full() -> dict[str, pd.DataFrame]:
    """Three patients, of whom the first two have everything, in many rows that tie."""
    rows = [
        {"subject_id": who, "time": hour(-h), "code": code, "value": value, "unit": unit, "available_at": hour(1 - h)}
        for who in (1, 2)
        for h in (1, 5, 5, 30)
        for code in ("pH", "Na")
        for value, unit in ((7.0, "u"), (7.5, None), (7.5, "v"))
    ]
    stories = [
        {"subject_id": who, "time": hour(-h), "text": text, "kind": kind}
        for who in (1, 2)
        for h in (2, 2)
        for text, kind in (("fever", "admission"), ("fever", "ward"), ("cough", None))
    ]
    pictures = [
        {"subject_id": who, "time": hour(-3), "path": "a.png", "view": view, "study_uid": uid}
        for who in (1, 2)
        for view, uid in (("PA", "1.2"), ("PA", "1.3"), (None, None))
    ]
    return {
        "outcomes": outcomes(stage=["mild", "severe", None], days=[1.5, 2.0, 3.0]),
        "labs": pd.DataFrame(rows),
        "notes": pd.DataFrame(stories),
        "images": pd.DataFrame(pictures),
        "static": pd.DataFrame({"subject_id": [2, 1, 3], "age": [50.0, None, None], "sex": ["f", "m", None]}),
    }


# Tables and columns


def test_a_cohort_counts_its_patients_samples_inputs_and_outcomes():
    cohort = Cohort(**full())
    assert (cohort.subjects, len(cohort), cohort.modalities) == (3, 3, ("labs", "notes", "images", "static"))
    assert repr(cohort) == (
        "Cohort(3 patients, 3 samples; inputs: labs, notes, images, static; "
        "outcomes: died (binary), stage (categorical), days (continuous))"
    )
    assert repr(Cohort(outcomes())).startswith("Cohort(3 patients, 3 samples; inputs: none;")


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("outcomes", "prediction_time"),
        ("labs", "subject_id"),
        ("labs", "value"),
        ("labs", "code"),
        ("notes", "text"),
        ("images", "path"),
        ("static", "subject_id"),
    ],
)
def test_a_missing_column_is_named(table, column):
    given = full()
    given[table] = given[table].drop(columns=column)
    with pytest.raises(InputError, match=f"{table} lacks the column {column}; it has"):
        Cohort(**given)


@pytest.mark.parametrize("table", ["outcomes", "labs", "static"])
def test_a_doubled_column_is_refused(table):
    given = full()
    given[table] = pd.concat([given[table], given[table].iloc[:, 1:2]], axis=1)
    with pytest.raises(InputError, match=rf"{table} has the column \w+ twice"):
        Cohort(**given)


@pytest.mark.parametrize("name", ["Unnamed: 0", 0, "", " "])
@pytest.mark.parametrize("table", ["outcomes", "static"])
def test_a_forgotten_row_number_does_not_become_an_outcome_or_a_fact(table, name):
    given = full()
    given[table][name] = range(3)
    with pytest.raises(InputError, match=f"{table} has a column without a name"):
        Cohort(**given)


def test_what_is_no_table_is_refused():
    with pytest.raises(InputError, match="labs is a dict; expected a pandas DataFrame"):
        Cohort(outcomes(), labs={"subject_id": [1]})


def test_columns_without_a_meaning_are_not_carried_in_event_tables():
    assert "ward" not in Cohort(outcomes(), labs=labs(ward="7B")).labs.columns


def test_the_given_tables_are_not_changed():
    given = full()
    before = {name: table.copy(deep=True) for name, table in given.items()}
    Cohort(**given)
    for name, table in given.items():
        pd.testing.assert_frame_equal(table, before[name])


@pytest.mark.parametrize("invalid", ["raise", "exclude"])
def test_outcomes_without_rows_are_refused(invalid):
    with pytest.raises(InputError, match=r"outcomes has no rows that can be used \(of 0\)"):
        Cohort(outcomes().iloc[:0].drop(columns="died"), invalid=invalid)


def test_an_event_table_without_rows_is_a_modality_that_nobody_has():
    given = {name: table.iloc[:0] for name, table in full().items()} | {"outcomes": outcomes()}
    cohort = Cohort(**given)
    assert cohort.modalities == ()
    assert not cohort.has_input().to_numpy().any()


# Patient ids


@pytest.mark.parametrize(
    ("ids", "others"),
    [
        ([1, 2, 3], [1]),
        (["1", "2", "3"], [1]),
        ([1, 2, 3], [" 1 "]),
        ([1.0, 2.0, 3.0], ["1"]),
        (pd.Series([1, 2, 3], dtype="category"), [1]),
        (pd.Series([1, 2, 3], dtype="Int64"), [1.0]),
        (pd.Series([1, "2", 3.0], dtype=object), ["1"]),
        (pd.Series([1, 2, 3], dtype="uint8"), pd.array([1], "Float64")),
    ],
)
def test_plain_numbers_are_the_same_patient_however_they_are_typed(ids, others):
    cohort = Cohort(outcomes(ids), labs=labs(subject_id=others))
    assert cohort.outcomes["subject_id"].tolist() == [1, 2, 3]
    assert cohort.outcomes["subject_id"].dtype == cohort.labs["subject_id"].dtype == "int64"
    assert cohort.has_input()["labs"].tolist() == [True, False, False]


@pytest.mark.parametrize("odd", ["007", "1e3", "+5", "-0", "A7", "１２", "1234567890123456789"])
def test_ids_that_are_no_plain_numbers_stay_text_in_all_tables(odd):
    cohort = Cohort(outcomes([1, 2, odd]), labs=labs())
    assert set(cohort.outcomes["subject_id"]) == {"1", "2", odd}
    assert cohort.labs["subject_id"].tolist() == ["1"]


@pytest.mark.parametrize("other", ["007", "7.0", "+7", "07."])
def test_a_patient_s_number_is_written_in_one_way(other):
    """Else one patient would be two, in two parts of a division, or would lack what is written otherwise."""
    told = "subject_id writes a number otherwise than it stands elsewhere"
    with pytest.raises(InputError, match=f"outcomes.{told}"):
        Cohort(outcomes(["7", "8", other]))
    for table in ("labs", "static"):
        given = {"labs": labs(1, 2, subject_id=[8, other]), "static": pd.DataFrame({"subject_id": [8, other], "x": 1})}
        with pytest.raises(InputError, match=f"{table}.{told}"):
            Cohort(outcomes([7, 8, 9]), **{table: given[table]})


def test_negative_and_large_ids_stay_exact():
    assert Cohort(outcomes([-5, 2**59 + 1, 3])).outcomes["subject_id"].tolist() == [-5, 3, 2**59 + 1]


@pytest.mark.parametrize("ids", [[1.5, 2.0, 3.0], [1.0, 2.0, 2.0**53], [1.0, 2.0, np.inf], np.float32([1, 2, 2**24])])
def test_floats_that_could_confuse_patients_are_refused(ids):
    with pytest.raises(InputError, match=r"outcomes.subject_id holds floats that are fractions or too large"):
        Cohort(outcomes(ids))


@pytest.mark.parametrize("blank", [None, np.nan, "", "  ", pd.NA])
def test_a_blank_id_is_refused_or_excluded(blank):
    with pytest.raises(InputError, match="outcomes, data row 2: subject_id is blank"):
        Cohort(outcomes([1, blank, 3]))
    cohort = Cohort(outcomes([1, blank, 3]), invalid="exclude")
    assert [(e.table, e.row, e.reason) for e in cohort.exclusions] == [("outcomes", 2, "subject_id is blank")]
    assert cohort.outcomes["subject_id"].tolist() == [1, 3]


def test_ids_that_are_no_text_are_refused():
    with pytest.raises(InputError, match="data row 2: subject_id is neither text nor a number"):
        Cohort(outcomes([1, b"2", 3]))
    with pytest.raises(InputError, match=r"data row 3: subject_id is not Unicode text \(lone surrogates\)"):
        Cohort(outcomes([1, 2, "\ud800"]))


@pytest.mark.parametrize("table", ["labs", "notes", "images", "static"])
def test_tables_that_share_no_patient_with_outcomes_are_refused(table):
    given = full()
    given[table]["subject_id"] += 1000
    with pytest.raises(InputError, match=f"No subject_id of {table} stands in outcomes"):
        Cohort(**given)


def test_patients_of_whom_nothing_is_predicted_are_left_out():
    cohort = Cohort(outcomes(), labs=labs(1, 2, subject_id=[1, 99]))
    assert cohort.labs["subject_id"].tolist() == [1]


# Times


@pytest.mark.parametrize(
    "time",
    [
        "2031-05-17 07:00",
        "2031-05-17T07:00:00",
        " 2031-05-17 07:00:00.000 ",
        "20310517T070000",
        "2031/05/17 07:00",
        "2031-05-17T07",
        datetime.datetime(2031, 5, 17, 7),
        pd.Timestamp("2031-05-17 07:00"),
        np.datetime64("2031-05-17T07:00", "s"),
    ],
)
@pytest.mark.parametrize("dtype", [None, object])
def test_a_time_is_read_from_text_and_from_every_kind_of_datetime(time, dtype):
    cohort = Cohort(outcomes(), labs=labs(time=pd.Series([time], dtype=dtype)))
    assert cohort.labs["time"].tolist() == [pd.Timestamp("2031-05-17 07:00")]
    assert cohort.labs["time"].dtype == "datetime64[us]"


@pytest.mark.parametrize("day", ["2031-05-17", datetime.date(2031, 5, 17)])
def test_a_date_alone_is_its_first_moment(day):
    cohort = Cohort(outcomes(), labs=labs(time=pd.Series([day], dtype=object)))
    assert cohort.labs["time"].tolist() == [pd.Timestamp("2031-05-17")]


@pytest.mark.parametrize(
    "time",
    [
        "yesterday",
        "17.05.2031",
        "2031",
        "1440",
        "2031-05",
        "20310517",
        "1700000000",
        "48.5",
        "2031-13-01",
        "2031-02-30",
        "2031-05-17 24:30",
        "2031-05-17 08:30:00 UTC",
        "2031-W20-1",
        SECRET,
        "２０31-05-17",
        "2031-05-17x",
        datetime.time(8, 30),
        b"2031-05-17",
        "\ud800",
        [1],
        1440,
        pd.Timedelta("1h"),
    ],
)
def test_what_is_no_whole_time_is_refused(time):
    with pytest.raises(InputError, match=r"labs, data row 2: time is not a time. Write times as 2031-05-17") as caught:
        Cohort(outcomes(), labs=labs(1, 2, time=pd.Series([NOW, time], dtype=object)))
    assert SECRET not in str(caught.value)


def test_numbers_are_no_times():
    for values in ([5, 6], [5.0, np.nan], [True, False]):
        with pytest.raises(InputError, match=r"labs.time holds numbers, not times"):
            Cohort(outcomes(), labs=labs(1, 2, time=values))
    with pytest.raises(
        InputError, match=r'Convert them first.* format="%Y%m%d"\), if 20310517 is the 17th of May 2031'
    ):
        Cohort(outcomes(), labs=labs(1, 2, time=[20310517, 20310516.0]))


@pytest.mark.parametrize("blank", [None, pd.NaT, "", " "])
def test_a_blank_time_is_refused_and_a_blank_available_at_is_the_time(blank):
    column = pd.Series([hour(-2), blank], dtype=object)
    with pytest.raises(InputError, match=r"labs, data row 2: time is blank. Fill in the time"):
        Cohort(outcomes(), labs=labs(1, 2, time=column))
    cohort = Cohort(outcomes(), labs=labs(1, 2, time=hour(-3), available_at=column))
    assert cohort.labs["available_at"].tolist() == [hour(-3), hour(-2)]
    assert Cohort(outcomes(), labs=labs(available_at=np.nan)).labs["available_at"].tolist() == [hour(-1)]


def test_a_blank_time_among_datetimes_is_refused():
    with pytest.raises(InputError, match=r"labs, data row 2: time is blank"):
        Cohort(outcomes(), labs=labs(1, 2, time=pd.Series([NOW, pd.NaT])))


ZONED = [
    "2031-05-17T09:00+02:00",
    "2031-05-17 07:00Z",
    "2031-05-17T07:00:00.5+0000",
    "2031-05-17 02:00-05",
    "20310517T07Z",
]


@pytest.mark.parametrize("time", ZONED)
def test_times_with_a_zone_become_utc(time):
    aware = outcomes().assign(prediction_time="2031-05-17T08:00Z")
    cohort = Cohort(aware, labs=labs(time=time))
    assert cohort.labs["time"].dt.floor("1s").tolist() == [pd.Timestamp("2031-05-17 07:00")]
    typed = Cohort(aware, labs=labs(time=pd.Series([pd.Timestamp(time)]).dt.tz_convert("Asia/Tokyo")))
    assert typed.labs["time"].equals(cohort.labs["time"])


@pytest.mark.parametrize("time", ZONED)
def test_times_with_and_without_a_zone_are_not_compared(time):
    with pytest.raises(InputError, match=r"labs.time mixes times with a zone \(1 rows\) and without \(1 rows\)"):
        Cohort(outcomes(), labs=labs(1, 2, time=["2031-05-17 07:00", time]))
    with pytest.raises(InputError, match=r"labs.time has time zones and outcomes.prediction_time has none"):
        Cohort(outcomes(), labs=labs(time=time))


@pytest.mark.parametrize("year", ["2180", "1801", "9998"])
@pytest.mark.parametrize("typed", [False, True])
def test_shifted_years_keep_their_hours(year, typed):
    times = pd.Series([f"{year}-05-17 07:00", f"{year}-05-17 08:00"])
    times = times.astype("datetime64[us]") if typed else times
    cohort = Cohort(outcomes([1], prediction_time=times[1:].to_list()), labs=labs(time=times[:1]))
    assert cohort.window("labs").hours.tolist() == [-1.0]


def test_a_time_beyond_the_calendar_is_refused():
    times = pd.Series(np.array(["400000-01-01"], "datetime64[s]"))
    with pytest.raises(InputError, match=r"labs.time has a time that microseconds cannot count"):
        Cohort(outcomes(), labs=labs(time=times))


# Values and words


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "value is blank or NaN"),
        (None, "value is blank or NaN"),
        (" ", "value is blank or NaN"),
        (np.inf, "value is infinite"),
        ("-inf", "value is infinite"),
        ("1e400", "value is infinite"),
        (10**400, "value is infinite"),
        (1e16, r"value is beyond ±1e\+15"),
        (-1e38, r"value is beyond ±1e\+15"),
        ("1e38", r"value is beyond ±1e\+15"),
        (SECRET, "value is not a number"),
        ("<0.1", "value is not a number"),
        ("3,5", "value is not a number"),
        ("nan", "value is not a number"),
        ("0x10", "value is not a number"),
        (True, "value is not a number"),
        (NOW, "value is not a number"),
        (b"5", "value is not a number"),
        ([5], "value is not a number"),
        ("\ud800", "value is not a number"),
    ],
)
def test_a_lab_value_that_is_no_possible_number_is_refused(value, reason):
    given = labs(1.0, 2.0, value=pd.Series([1.0, value], dtype=object))
    with pytest.raises(InputError, match=f"labs, data row 2: {reason}") as caught:
        Cohort(outcomes(), labs=given)
    assert SECRET not in str(caught.value)
    assert Cohort(outcomes(), labs=given, invalid="exclude").labs["value"].tolist() == [1.0]


@pytest.mark.parametrize(
    "values",
    [
        ["7.5", " 8 "],
        [7.5, 8],
        pd.array([7.5, 8], "Float64"),
        pd.Series([7.5, 8], dtype="category"),
        [decimal.Decimal("7.5"), 8],
        pd.Series(["7.5", "8.0"], dtype=object),
        np.float16([7.5, 8]),
    ],
)
def test_lab_values_are_read_from_every_type_of_number(values):
    assert Cohort(outcomes(), labs=labs(1, 2, value=values)).labs["value"].tolist() == [7.5, 8.0]


@pytest.mark.parametrize("values", [[NOW], [pd.Timedelta("1h")], [1 + 2j], pd.DatetimeIndex([NOW], tz="UTC")])
def test_times_and_durations_are_no_lab_values(values):
    with pytest.raises(InputError, match=r"labs.value holds .*, not numbers"):
        Cohort(outcomes(), labs=labs(value=values))


def test_the_largest_lab_value_may_enter():
    assert Cohort(outcomes(), labs=labs(1e15, -1e15, 1e-60)).labs["value"].tolist() == [
        -float(np.float32(1e15)),
        0.0,
        float(np.float32(1e15)),
    ]


@pytest.mark.parametrize("code", [None, "", " "])
def test_a_blank_code_is_refused(code):
    with pytest.raises(InputError, match=r"labs, data row 2: code is blank. Fill it in, or remove the row"):
        Cohort(outcomes(), labs=labs(1, 2, code=["pH", code]))


def test_codes_are_the_same_word_with_and_without_space_and_decimal_point():
    codes = pd.Series(["HR ", " HR", 51221, 51221.0, "51221"], dtype=object)
    assert Cohort(outcomes(), labs=labs(*range(5), code=codes)).labs["code"].value_counts().to_dict() == {
        "51221": 3,
        "HR": 2,
    }
    floats = Cohort(outcomes(), labs=labs(1, 2, code=[51221.0, 220045.0])).labs["code"]
    assert floats.tolist() == ["220045", "51221"]


def test_na_is_a_code_and_a_unit_like_any_other():
    cohort = Cohort(outcomes(), labs=labs(code="NA", unit="nan"))
    assert (cohort.labs["code"].item(), cohort.labs["unit"].item()) == ("NA", "nan")


@pytest.mark.parametrize("text", ["\ud800", "fever \udfff"])
@pytest.mark.parametrize("dtype", [object, pd.StringDtype("python")])
def test_text_with_lone_surrogates_is_refused(text, dtype):
    with pytest.raises(InputError, match="notes, data row 2: text has code points that are not Unicode text"):
        Cohort(outcomes(), notes=notes("fever", "x", text=pd.Series(["fever", text], dtype=dtype)))


def test_a_note_that_no_file_may_have_is_refused():
    long = pd.Series(["fever", "x" * (1 + (16 << 20))])
    with pytest.raises(InputError, match=r"notes, data row 2: text has more than 16 MiB. Divide it into several"):
        Cohort(outcomes(), notes=notes("fever", "x", text=long))
    assert len(Cohort(outcomes(), notes=notes("fever", "x", text=long.str[1:])).notes) == 2


@pytest.mark.parametrize("text", [b"fever", ["fever"], {"a": 1}, np.array(["a"]), object()])
def test_what_is_no_text_does_not_become_a_note(text):
    column = pd.Series(["fever", None], dtype=object)
    column[1] = text
    with pytest.raises(InputError, match="notes, data row 2: text is neither text nor a number"):
        Cohort(outcomes(), notes=notes("fever", "x", text=column))


@pytest.mark.parametrize("text", [None, "", " \n\t "])
def test_a_blank_note_is_refused(text):
    with pytest.raises(InputError, match="notes, data row 2: text is blank"):
        Cohort(outcomes(), notes=notes("fever", text))


def test_notes_keep_every_character():
    texts = ["  fever\r\n\x00\x07 ", "é 漢字 🩺 \u202e", "a" * 1_000_000, "NA"]
    assert sorted(Cohort(outcomes(), notes=notes(*texts)).notes["text"]) == sorted(texts)


def test_an_image_path_may_be_a_path_object(tmp_path):
    cohort = Cohort(outcomes(), images=images(path=pd.Series([tmp_path / "a.png"], dtype=object)))
    assert cohort.images["path"].tolist() == [str(tmp_path / "a.png")]


# Static facts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        (["1.5", " 2 ", None], [1.5, 2.0, np.nan]),
        ([True, False, True], [1.0, 0.0, 1.0]),
        (pd.array([True, None, False], "boolean"), [1.0, np.nan, 0.0]),
        (["True", "false", ""], [1.0, 0.0, np.nan]),
        (pd.Series([True, None, False], dtype=object), [1.0, np.nan, 0.0]),
        (pd.array([1, None, 2], "Int64"), [1, np.nan, 2]),
    ],
)
def test_static_numbers_and_truth_values_become_numbers(values, expected):
    static = Cohort(outcomes(), static=pd.DataFrame({"subject_id": [1, 2, 3], "x": values, "y": 0})).static
    assert static["x"].dtype == "float32"
    np.testing.assert_array_equal(static["x"], np.float32(expected))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["f", " m ", ""], ["f", "m", None]),
        (["1", "x", "2"], ["1", "x", "2"]),
        (["007", "8", "9"], ["007", "8", "9"]),
        (pd.Categorical([1, 2, 1]), ["1", "2", "1"]),
        (["NA", "nan", "None"], ["NA", "nan", "None"]),
        (pd.Categorical([1.0, None, 2.0]), ["1", None, "2"]),
        ([None, None, None], [None, None, None]),
    ],
)
def test_static_words_and_codes_become_categories(values, expected):
    static = Cohort(outcomes(), static=pd.DataFrame({"subject_id": [1, 2, 3], "x": values, "y": 0})).static
    assert static["x"].dtype == "str"
    assert static["x"].astype(object).where(static["x"].notna(), None).tolist() == expected


def test_a_row_that_states_nothing_is_no_fact():
    table = pd.DataFrame({"subject_id": [1, 2], "age": [50, None], "sex": ["f", " "]})
    cohort = Cohort(outcomes(), static=table)
    assert cohort.static["subject_id"].tolist() == [1]
    assert cohort.has_input()["static"].tolist() == [True, False, False]
    assert Cohort(outcomes(), static=table[["subject_id"]]).modalities == ()


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "."])
def test_a_word_for_nothing_among_static_facts_is_refused_and_makes_no_categories_of_numbers(word):
    table = pd.DataFrame({"subject_id": [1, 2, 3], "age": ["50", word, "61.5"]})
    with pytest.raises(InputError, match=r"static, data row 2: age says NA or the like. Leave the cell blank"):
        Cohort(outcomes(), static=table)
    cohort = Cohort(outcomes(), static=table, invalid="exclude")
    assert [(e.table, e.row) for e in cohort.exclusions] == [("static", 2)]
    assert cohort.static["age"].tolist() == [50, 61.5]


@pytest.mark.parametrize(("column", "word"), [("age", "90+"), ("age", "unknown"), ("bmi", "< 15"), ("bmi", "24,5")])
def test_a_word_among_numbers_makes_no_category_of_each_of_them(column, word):
    ids = list(range(40))
    table = pd.DataFrame({"subject_id": ids, column: [*(f"{20 + one / 2}" for one in ids[1:]), word]})
    asked = pd.DataFrame({"subject_id": ids, "prediction_time": NOW, "died": 0})
    with pytest.raises(InputError, match=f"static, data row 40: {column} is a word, where nearly all are numbers"):
        Cohort(asked, static=table)
    cohort = Cohort(asked, static=table, invalid="exclude")
    assert [(e.table, e.row) for e in cohort.exclusions] == [("static", 40)]
    assert cohort.static[column].dtype == "float32"


def test_words_among_few_numbers_are_classes_and_so_are_spans_of_age():
    static = pd.DataFrame({"subject_id": [1, 2, 3], "visits": ["0", "1", "2+"], "age": ["18-40", "41-65", "> 65"]})
    kept = Cohort(outcomes(), static=static).static
    assert kept["visits"].tolist() == ["0", "1", "2+"]
    assert kept["age"].tolist() == ["18-40", "41-65", "> 65"]


def test_an_age_with_a_leading_zero_is_a_number():
    static = pd.DataFrame({"subject_id": [1, 2, 3], "age": ["05", "61", "007"]})
    assert Cohort(outcomes(), static=static).static["age"].tolist() == [5, 61, 7]


@pytest.mark.parametrize(("number", "word"), [("0{}", "V27"), ("0{}", "27b"), ("{}.1", "V27.0"), ("{}", "E849")])
def test_codes_among_numbers_are_classes_whatever_their_number(number, word):
    ids = list(range(40))
    table = pd.DataFrame({"subject_id": ids, "diagnosis": [number.format(100 + one) for one in ids[1:]] + [word]})
    asked = pd.DataFrame({"subject_id": ids, "prediction_time": NOW, "died": 0})
    assert Cohort(asked, static=table).static["diagnosis"].nunique() == 40


def test_a_second_static_row_of_a_patient_is_refused():
    with pytest.raises(InputError, match=r"static, data row 3: a second row for the same patient \(1 such rows\)"):
        Cohort(outcomes(), static=pd.DataFrame({"subject_id": [1, 2, "1"], "age": [50, 60, 70]}))


def test_a_static_row_that_stands_twice_is_left_out_and_listed_where_that_was_asked_for():
    twice = pd.DataFrame({"subject_id": [1, 2, "1"], "age": [50, 60, "50.0"], "sex": ["f", "m", " f"]})
    with pytest.raises(
        InputError, match=r"static, data row 3: the same row stands there twice. Keep one row a patient"
    ):
        Cohort(outcomes(), static=twice)
    cohort = Cohort(outcomes(), static=twice, invalid="exclude")
    assert cohort.static["age"].tolist() == [50, 60]
    assert [(one.table, one.row) for one in cohort.exclusions] == [("static", 3)]
    with pytest.raises(InputError, match=r"static, data row 3: a second row for the same patient"):
        Cohort(outcomes(), static=twice.assign(age=[50, 60, 51]), invalid="exclude")


@pytest.mark.parametrize("value", [np.inf, -np.inf, "inf", 1e39, "1e400"])
def test_an_infinite_fact_is_refused_or_excluded(value):
    table = pd.DataFrame({"subject_id": [1, 2], "age": pd.Series([50, value], dtype=object)})
    with pytest.raises(InputError, match=r"static, data row 2: age is infinite. Correct the number"):
        Cohort(outcomes(), static=table)
    cohort = Cohort(outcomes(), static=table, invalid="exclude")
    assert [(e.table, e.row) for e in cohort.exclusions] == [("static", 2)]
    assert cohort.static["subject_id"].tolist() == [1]


@pytest.mark.parametrize("value", [1.1e15, "-1e38"])
def test_a_fact_that_would_drown_all_others_is_refused(value):
    table = pd.DataFrame({"subject_id": [1, 2], "age": pd.Series([50, value], dtype=object)})
    with pytest.raises(InputError, match=r"static, data row 2: age is beyond ±1e\+15. Correct the number"):
        Cohort(outcomes(), static=table)


@pytest.mark.parametrize(
    "values",
    [
        *([NOW], ["1961-02-03"], [datetime.date(1961, 2, 3)], pd.DatetimeIndex([NOW], tz="UTC"), ["1961-02-03 10:00"]),
        *(["17.05.1950"], ["5/17/50"], ["17-05-1950 08:30"], ["17-May-1950"], ["17MAY1950"], ["May 17, 1950"]),
        *(["3. Sept. 1950"], ["5/17/1950 8:30 PM"], [19500517], [19500517.0], ["19500517"]),
    ],
)
def test_a_date_is_no_static_fact(values):
    with pytest.raises(InputError, match=r"static.born holds dates. .* of a birth give the age .* so drop such"):
        Cohort(outcomes(), static=pd.DataFrame({"subject_id": [1], "born": values}))


def test_a_column_of_dates_with_a_word_or_a_blank_among_them_makes_no_category_a_patient():
    died = ["2031-05-19", None, "alive", "2031-06-01"]
    with pytest.raises(InputError, match=r"static.dod holds dates. .* tell what is to be predicted, so drop"):
        Cohort(outcomes([1, 2, 3, 4][:3]), static=pd.DataFrame({"subject_id": [1, 2, 3, 4], "dod": died}))


@pytest.mark.parametrize("values", [["1950"], ["50"], ["3.5"], ["0+"], ["1/2"], ["maybe"], ["12-34"], ["May 4"]])
def test_what_only_looks_like_a_part_of_a_date_is_a_fact(values):
    assert len(Cohort(outcomes(), static=pd.DataFrame({"subject_id": [1], "fact": values})).static) == 1


@pytest.mark.parametrize("name", ["age", "Age", "anchor_age", "age_years", "age_at_admission"])
@pytest.mark.parametrize("values", [[1950, 1961, np.nan], ["1950", "1961", "34"]])
def test_a_year_of_birth_is_no_age(name, values):
    facts = pd.DataFrame({"subject_id": [1, 2, 3], name: values})
    with pytest.raises(InputError, match=rf"static.{name} holds years, such as 1950, and no ages. Give the age at the"):
        Cohort(outcomes([1, 2, 3]), static=facts)


@pytest.mark.parametrize(
    ("name", "values"),
    [("age", [1950, 61, 34]), ("weight_g", [1950, 2010, 1880]), ("code", [19500517, 87654321, 12345678])],
)
def test_numbers_that_only_happen_to_look_like_years_or_days_are_facts(name, values):
    facts = pd.DataFrame({"subject_id": [1, 2, 3], name: values})
    assert Cohort(outcomes([1, 2, 3]), static=facts).static[name].tolist() == pytest.approx(values)


def test_what_is_no_text_does_not_become_a_category():
    with pytest.raises(InputError, match="static, data row 1: site is neither text nor a number"):
        Cohort(outcomes(), static=pd.DataFrame({"subject_id": [1, 2], "site": [b"A", "B"]}))


# Anything at all

cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(categories=None), max_size=6),
    st.sampled_from(
        ["1", "2031-05-17", "2031-05-17T08:00Z", "NaT", "inf", "1e999", "9999-12-31 23:59:59.999999999", "-0"]
    ),
    st.binary(max_size=3),
    st.datetimes(),
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=2),
    st.just(pd.NaT),
    st.just(pd.NA),
)


@given(st.data(), st.sampled_from(["raise", "exclude"]))
@settings(max_examples=60, deadline=None)
def test_whatever_the_cells_hold_the_answer_is_a_cohort_or_an_input_error(data, invalid):
    given_tables = full()
    name = data.draw(st.sampled_from(sorted(given_tables)))
    column = data.draw(st.sampled_from(sorted(given_tables[name].columns)))
    values = given_tables[name][column].astype(object).tolist()
    for place in data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)):
        values[place] = data.draw(cells)
    typed = pd.Series(values, dtype=object)
    given_tables[name][column] = typed.infer_objects() if data.draw(st.booleans()) else typed
    try:
        cohort = Cohort(**given_tables, invalid=invalid, history=data.draw(st.sampled_from([None, 5])))
    except InputError:
        return
    for position in range(len(cohort)):
        sample = cohort.sample(position)
        hours = [event.hours for event in (*sample.labs, *sample.notes, *sample.images)]
        assert all(-np.inf < hour <= 0 for hour in hours)
        assert all(np.isfinite(event.value) for event in sample.labs)
