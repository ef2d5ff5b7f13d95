"""The cohort: what is left out, what a sample may see, who stays."""

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


def refusal(given: dict[str, pd.DataFrame]) -> str:
    """What the error says, or nothing where the tables are accepted."""
    try:
        Cohort(**given, outcome_kinds={"days": "continuous", "died": "binary"})
    except InputError as error:
        return str(error)
    return ""


def equal(one: Cohort, other: Cohort) -> None:
    """Assert that two cohorts are the same in everything that a model could see."""
    assert one.outcome_kinds == other.outcome_kinds
    for name in ("outcomes", "labs", "notes", "images", "static"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            pd.testing.assert_frame_equal(left, right)
    for name in ("labs", "notes", "images"):
        for left, right in zip(vars(one.window(name)).values(), vars(other.window(name)).values(), strict=True):
            np.testing.assert_array_equal(left, right)


# Exclusions


def test_every_excluded_row_is_listed_once_with_its_place_and_reason_and_without_content():
    given = full()
    given["outcomes"] = outcomes([1, 2, 3], prediction_time=[NOW, NOW, SECRET])
    given["labs"] = labs(
        7.4, "high", np.inf, 7.3, 7.2, time=[NOW, SECRET, NOW, hour(-2), NOW], code=["a", "", "b", "c", SECRET]
    )
    given["notes"] = notes(SECRET, "", "ok", time=[None, NOW, NOW])
    given["images"] = images(path=[" "], time=[NOW]).loc[[0, 0]].assign(path=["", "b.png"])
    cohort = Cohort(**given, invalid="exclude")
    listed = [(e.table, e.row, e.reason) for e in cohort.exclusions]
    assert listed == [
        ("outcomes", 3, "prediction_time is not a time"),
        ("labs", 2, "time is not a time"),
        ("labs", 3, "value is infinite"),
        ("notes", 1, "time is blank"),
        ("notes", 2, "text is blank"),
        ("images", 1, "path is blank"),
    ]
    assert SECRET not in str(listed)
    assert (len(cohort), len(cohort.labs), len(cohort.notes), len(cohort.images)) == (2, 3, 1, 1)


def test_raising_names_the_first_bad_row_and_counts_its_like():
    message = r'labs, data row 2 \(and 1 more such rows\): value is blank or NaN. .* invalid="exclude"'
    with pytest.raises(InputError, match=message):
        Cohort(outcomes(), labs=labs(1, np.nan, 2, np.nan, np.inf))


def test_excluding_leaves_the_same_cohort_as_never_having_had_the_rows():
    bad = pd.concat([labs(np.nan), labs(7.0), labs(time="x"), labs(7.1)], ignore_index=True)
    equal(Cohort(outcomes(), labs=bad, invalid="exclude"), Cohort(outcomes(), labs=labs(7.0, 7.1)))


def test_a_cohort_that_nothing_was_wrong_with_excludes_nothing():
    assert Cohort(**full(), invalid="exclude").exclusions == ()


def test_another_policy_is_refused():
    with pytest.raises(InputError, match="invalid is 'ignore'; expected"):
        Cohort(outcomes(), invalid="ignore")


@pytest.mark.parametrize("table", ["outcomes", "labs", "notes", "images", "static"])
def test_messages_contain_neither_notes_nor_patients(table):
    """Each cell in turn becomes a secret that cannot be what its column needs."""
    for column in full()[table].columns:
        for value in (SECRET, f"{SECRET}\ud800", [SECRET], SECRET.encode()):
            given = full()
            cells = given[table][column].astype(object)
            cells.iloc[0] = value
            given[table][column] = cells
            assert "Quill" not in refusal(given), column


# What a sample sees


def test_an_event_at_the_prediction_time_is_in_and_a_microsecond_later_is_out():
    tick = pd.Timedelta("1us")
    table = labs(1, 2, 3, time=[NOW - tick, NOW, NOW + tick])
    assert [event.value for event in Cohort(outcomes(), labs=table).sample(0).labs] == [1.0, 2.0]
    assert (Cohort(outcomes(), labs=table).window("labs").hours <= 0).all()


def test_an_event_at_the_edge_of_the_history_is_in_and_a_microsecond_earlier_is_out():
    tick = pd.Timedelta("1us")
    table = labs(1, 2, 3, time=[hour(-48) - tick, hour(-48), NOW])
    assert [event.value for event in Cohort(outcomes(), labs=table, history=48).sample(0).labs] == [2.0, 3.0]
    assert len(Cohort(outcomes(), labs=table, history=1e300).sample(0).labs) == 3
    assert len(Cohort(outcomes(), labs=table).sample(0).labs) == 3


@pytest.mark.parametrize("history", [0, -1, np.nan, np.inf, "48"])
def test_a_history_that_is_no_positive_number_of_hours_is_refused(history):
    with pytest.raises(InputError, match=r"history is .*; expected a positive number of hours, or None"):
        Cohort(outcomes(), history=history)


def test_a_result_is_seen_when_it_became_available_and_not_before_it_happened():
    table = labs(1, 2, 3, time=hour(-5), available_at=[hour(-1), hour(1), hour(-9)])
    seen = Cohort(outcomes(), labs=table).sample(0).labs
    assert [(event.hours, event.value) for event in seen] == [(-5.0, 3.0), (-1.0, 1.0)]


def test_each_sample_of_a_patient_has_its_own_view():
    twice = pd.DataFrame({"subject_id": 1, "prediction_time": [hour(0), hour(-3)], "died": [1, 0]})
    cohort = Cohort(twice, labs=labs(1, 2, time=[hour(-4), hour(-1)]))
    assert [[event.hours for event in cohort.sample(i).labs] for i in (0, 1)] == [[-1.0], [-4.0, -1.0]]


def test_a_sample_shows_what_is_known_and_nothing_that_is_blank():
    sample = Cohort(**full()).sample(1)
    assert (sample.subject_id, sample.prediction_time) == (2, NOW)
    assert dict(sample.static) == {"age": 50.0, "sex": "f"}
    assert [note.kind for note in sample.notes] == [None, None, "admission", "admission", "ward", "ward"]
    assert [image.view for image in sample.images] == [None, "PA", "PA"]
    assert sample.labs[0]._asdict() == {"hours": -29.0, "code": "Na", "value": 7.0, "unit": "u"}
    nobody = Cohort(**full()).sample(2)
    assert (nobody.labs, nobody.notes, nobody.images, nobody.static) == ((), (), (), ())
    assert Cohort(outcomes()).sample(0).static == ()


@pytest.mark.parametrize("position", [-1, 3])
def test_a_sample_that_is_not_there_is_refused(position):
    with pytest.raises(InputError, match=f"There is no sample {position}; the cohort's samples are 0 to 2"):
        Cohort(**full()).sample(position)


def test_has_input_is_true_exactly_where_something_may_be_seen():
    given = full()
    given["notes"]["time"] = [hour(1)] * 6 + [NOW] * 6
    seen = Cohort(**given).has_input()
    assert seen.to_dict("list") == {
        "labs": [True, True, False],
        "notes": [False, True, False],
        "images": [True, True, False],
        "static": [True, True, False],
    }


events = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 10**12), st.booleans()), min_size=1, max_size=8)


@given(events)
@settings(max_examples=15, deadline=None)
def test_whatever_becomes_available_after_the_prediction_changes_no_window(later):
    tables = full()
    before = Cohort(**tables)
    for name in ("labs", "notes", "images"):
        table = tables[name]
        extra = pd.DataFrame([table.iloc[0]] * len(later), columns=table.columns)
        extra["subject_id"] = [who for who, _, _ in later]
        moments = [NOW + pd.Timedelta(microseconds=delay) for _, delay, _ in later]
        # Either it happens later, or it happened before and is reported later.
        extra["time"] = [
            hour(-1) if reported else moment for (_, _, reported), moment in zip(later, moments, strict=True)
        ]
        extra["available_at"] = moments
        table = table.assign(available_at=table.get("available_at", pd.NaT))
        tables[name] = pd.concat([table, extra.astype(table.dtypes)], ignore_index=True)
    after = Cohort(**tables)
    for position in range(3):
        assert repr(before.sample(position)) == repr(after.sample(position))
    for name in ("labs", "notes", "images"):
        np.testing.assert_array_equal(before.window(name).offsets, after.window(name).offsets)
        np.testing.assert_array_equal(before.window(name).hours, after.window(name).hours)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_the_order_of_rows_changes_nothing(seed):
    random = np.random.default_rng(seed)
    shuffled = {name: table.iloc[random.permutation(len(table))] for name, table in full().items()}
    equal(Cohort(**full(), history=24), Cohort(**shuffled, history=24))


# Filters


def test_keeping_takes_the_samples_of_a_mask_and_logs_why():
    cohort = Cohort(**full())
    kept = cohort.keep(cohort.outcomes["days"] > 1.7, why="long stays").keep([True, False], why="the first")
    assert kept.outcomes["subject_id"].tolist() == [2]
    assert kept.labs["subject_id"].unique().tolist() == [2]
    assert kept.static["subject_id"].tolist() == [2]
    before = cohort.attrition.values.tolist()
    assert before == [["read", 3, 3], ["static: 1 rows left out, of patients who are not in outcomes", 3, 3]]
    assert kept.attrition.values.tolist() == [*before, ["long stays", 2, 2], ["the first", 1, 1]]
    assert len(cohort) == 3


def test_a_mask_that_does_not_fit_is_refused():
    cohort = Cohort(**full())
    for mask in ([True], [1, 0, 1], np.ones((3, 1), bool), pd.Series([True, None, False], dtype="boolean")):
        with pytest.raises(
            InputError, match=r"The mask of the filter 'x' has shape .*; expected one truth value for each"
        ):
            cohort.keep(mask, why="x")
    with pytest.raises(InputError, match=r"The filter 'x' leaves no sample of 3. Loosen it"):
        cohort.keep([False] * 3, why="x")
    with pytest.raises(InputError, match=r"The mask of the filter 'x' has rows other than those of cohort.outcomes"):
        cohort.keep((cohort.outcomes["days"] > 1.7).iloc[::-1], why="x")


def test_keeping_those_with_input_leaves_out_those_of_whom_nothing_is_known():
    kept = Cohort(**full()).keep_with_input()
    assert kept.outcomes["subject_id"].tolist() == [1, 2]
    assert kept.attrition["step"].iloc[-1] == "something known before the prediction time"


def test_tables_can_be_changed_and_the_windows_follow():
    cohort = Cohort(**full())
    few = cohort.with_tables("no early labs", labs=cohort.labs[cohort.labs["time"] >= hour(-1)][::-1], notes=None)
    assert few.has_input()["notes"].tolist() == [False] * 3
    assert np.diff(few.window("labs").offsets).tolist() == [6, 6, 0]
    assert few.attrition["step"].tolist() == [*cohort.attrition["step"], "no early labs"]
    assert np.diff(cohort.window("labs").offsets).tolist() == [24, 24, 0]
    with pytest.raises(InputError, match="Unknown table outcomes; expected labs, notes, images or static"):
        cohort.with_tables("x", outcomes=None)


@pytest.mark.parametrize("history", [None, 24])
def test_rows_of_patients_without_an_outcome_are_counted(tmp_path, history):
    ids = ["007", "8", "9"]
    outcomes = pd.DataFrame({"subject_id": ids, "prediction_time": "2031-05-17 08:00", "died": [0, 1, 0]})
    labs = pd.DataFrame({"subject_id": ["6", "6", "8", "9"], "time": "2031-05-17 07:00", "code": "Na", "value": 140.0})
    static = pd.DataFrame({"subject_id": ["007", "8", "9", "10"], "age": [50, 60, 70, 80]})
    for name, table in (("outcomes", outcomes), ("labs", labs), ("static", static)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    told = [
        ["read", 3, 3],
        ["labs: 2 rows left out, of patients who are not in outcomes", 3, 3],
        ["static: 1 rows left out, of patients who are not in outcomes", 3, 3],
    ]
    assert Cohort(outcomes, labs=labs, static=static, history=history).attrition.values.tolist() == told
    assert Cohort.read(tmp_path, history=history).attrition.values.tolist() == told


def test_rows_of_strangers_do_not_shift_the_windows_of_others():
    cohort = Cohort(**full())
    strangers = cohort.labs.assign(subject_id=-5)
    more = cohort.with_tables("x", labs=pd.concat([strangers, cohort.labs]), static=cohort.static[::-1])
    pd.testing.assert_frame_equal(more.labs, cohort.labs)
    np.testing.assert_array_equal(more.window("labs").rows, cohort.window("labs").rows)
    pd.testing.assert_frame_equal(more.static, cohort.static)


def test_patients_can_be_renamed_in_order():
    cohort = Cohort(**full())
    named = cohort.rename_subjects(pd.Series({1: "a", 2: "b", 3: "c", 4: "d"}))
    assert named.outcomes["subject_id"].tolist() == ["a", "b", "c"]
    assert named.sample(1).labs == cohort.sample(1).labs
    for names in ({1: "a", 2: "b"}, {1: "a", 2: "a", 3: "b"}, {1: "b", 2: "a", 3: "c"}):
        with pytest.raises(InputError, match="The new patient ids must be one for each patient"):
            cohort.rename_subjects(pd.Series(names))
    for names in ([1], {1: "a"}, None, pd.Series(["a", "b"], index=[1, 1])):
        with pytest.raises(InputError, match=r"came as a \w+; expected a pandas Series with each patient's id once"):
            cohort.rename_subjects(names)


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    from PIL import Image

    Image.fromarray(np.eye(64, dtype=np.uint8) * 200).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    table = pd.DataFrame(
        {"subject_id": [1, 2], "time": hour(-1), "path": [str(tmp_path / "bad.png"), str(tmp_path / "good.png")]}
    )
    kept = Cohort(outcomes(), images=table).keep_readable_images()
    assert kept.images["path"].tolist() == [str(tmp_path / "good.png")]
    assert [(e.table, e.row) for e in kept.exclusions] == [("images", 1)]
    assert kept.attrition["step"].iloc[-1] == "unreadable images left out: 1"
    assert Cohort(outcomes()).keep_readable_images().images is None


def test_a_part_may_lack_a_modality_that_the_whole_has():
    cohort = Cohort(outcomes(), labs=labs())
    first, rest = cohort.keep([True, False, False], why="first"), cohort.keep([False, True, True], why="rest")
    assert (first.modalities, rest.modalities) == (("labs",), ())
    assert np.diff(rest.window("labs").offsets).tolist() == [0, 0]
