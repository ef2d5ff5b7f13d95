"""Divisions: a patient is in one part, and the division depends on nothing that it should not."""

import datetime

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from hypothesis import given, settings
from hypothesis import strategies as st

START = pd.Timestamp("2031-01-01")


def cohort(patients: int = 10, samples: int = 2, text: bool = False, **columns) -> Cohort:
    """Patients who each have samples on consecutive days; patient k begins on day k."""
    who = np.repeat(np.arange(patients), samples)
    day = who + np.tile(np.arange(samples), patients)
    table = pd.DataFrame({"subject_id": who, "prediction_time": START + pd.to_timedelta(day, unit="D")})
    table["died"] = who % 2
    if text:
        table["subject_id"] = "p" + table["subject_id"].astype("str")
    static = pd.DataFrame({"subject_id": table["subject_id"].unique()} | columns) if columns else None
    return Cohort(table, static=static)


def patients(part: Cohort) -> set:
    return set(part.outcomes["subject_id"])


def assert_divided(whole: Cohort, parts: tuple[Cohort, ...], everyone: bool = True) -> None:
    for k, one in enumerate(parts):
        assert len(one)
        for other in parts[k + 1 :]:
            assert not patients(one) & patients(other)
    assert set().union(*map(patients, parts)) == patients(whole) or not everyone


sizes = {"patients": st.integers(3, 40), "samples": st.integers(1, 3), "text": st.booleans()}


@given(**sizes, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_patient_is_in_one_part_whatever_the_division_goes_by(seed, **size):
    half = size["patients"] // 2
    whole = cohort(**size, site=np.arange(size["patients"]) % 3)
    assert_divided(whole, whole.split((0.5, 0.5), seed=seed))
    assert_divided(whole, whole.split_by_time(START + pd.Timedelta(days=half)), everyone=False)
    assert_divided(whole, whole.split_by_site("site", [0], [1, 2]))
    names = sorted(patients(whole))
    words = np.array(["train", "tuning", "held_out"])[np.arange(len(names)) % 3]
    assert_divided(whole, whole.split_by_table(pd.DataFrame({"subject_id": names, "split": words})))
    count = min(3, half) if half > 1 else 0
    if count:
        folds = list(whole.folds(count, seed=seed))
        assert_divided(whole, tuple(fold for _, fold in folds))
        for rest, fold in folds:
            assert_divided(whole, (rest, fold))


@given(st.integers(0, 1000), st.permutations(range(20)))
@settings(max_examples=20, deadline=None)
def test_a_division_depends_on_patients_and_seed_and_not_on_the_order_of_rows(seed, order):
    whole = cohort()
    shuffled = Cohort(whole.outcomes.iloc[list(order)])
    for one, other in zip(
        whole.split((0.6, 0.2, 0.2), seed=seed), shuffled.split((0.6, 0.2, 0.2), seed=seed), strict=True
    ):
        pd.testing.assert_frame_equal(one.outcomes, other.outcomes)
    for one, other in zip(whole.folds(3, seed=seed), shuffled.folds(3, seed=seed), strict=True):
        pd.testing.assert_frame_equal(one[1].outcomes, other[1].outcomes)


def test_another_seed_divides_otherwise():
    whole = cohort(40)
    assert len({frozenset(patients(whole.split((0.5, 0.5), seed=seed)[0])) for seed in range(5)}) == 5
    assert len({frozenset(patients(next(iter(whole.folds(2, seed=seed)))[0])) for seed in range(5)}) == 5


def test_parts_have_their_share_of_the_patients_and_log_their_name():
    parts = cohort(100, 1).split((0.7, 0.1, 0.2), seed=3)
    assert [part.subjects for part in parts] == [70, 10, 20]
    assert [part.attrition["step"].iloc[-1] for part in parts] == ["split: train", "split: valid", "split: test"]
    assert [part.attrition["step"].iloc[-1] for part in cohort().split((0.5, 0.5))] == ["split: train", "split: test"]
    four = cohort().split((0.25,) * 4)
    assert [part.attrition["step"].iloc[-1] for part in four] == [f"split: part {k}" for k in (1, 2, 3, 4)]


def test_shares_that_miss_one_by_rounding_lose_nobody():
    whole = cohort(3000, 1)
    assert_divided(whole, whole.split((0.5, 0.4999995)))


@pytest.mark.parametrize("shares", [(0.7, 0.2), (0.5, 0.6), (1.0,), 0.8, (), (1.5, -0.5), (0.0, 1.0), (np.nan, 1.0)])
def test_fractions_that_do_not_divide_a_whole_are_refused(shares):
    with pytest.raises(InputError, match=r"The fractions are .*; expected two or more positive ones that add up to 1"):
        cohort().split(shares)


@pytest.mark.parametrize("seed", [-1, 2**32, "0", None, 0.5])
def test_a_seed_that_is_no_seed_is_refused(seed):
    for divide in (lambda: cohort().split(seed=seed), lambda: list(cohort().folds(2, seed=seed))):
        with pytest.raises(InputError, match=r"The seed is .*; expected a whole number"):
            divide()


def test_too_few_patients_for_a_part_are_refused():
    with pytest.raises(InputError, match=r"The part 'test' of the split would have no patient \(of 2 in all\)"):
        cohort(2).split((0.6, 0.2, 0.2))


# By time


def test_a_patient_belongs_to_the_period_of_the_first_prediction():
    # Patient k predicts on days k and k + 1; day 3 is the first of the second period.
    first, second = cohort(5).split_by_time("2031-01-04")
    assert (patients(first), patients(second)) == ({0, 1, 2}, {3, 4})
    assert len(first) == 5
    assert (
        first.outcomes["prediction_time"].max() < pd.Timestamp("2031-01-04") <= second.outcomes["prediction_time"].min()
    )
    steps = first.attrition["step"].tolist()
    assert steps == ["read", "predictions in the patient's own period", "split: train"]
    assert first.attrition["samples"].tolist() == [10, 9, 5]


@pytest.mark.parametrize(
    "dates",
    [
        ("2031-01-04", "2031-01-07"),
        (datetime.date(2031, 1, 4), np.datetime64("2031-01-07")),
        (pd.Timestamp("2031-01-04T02:00+02:00"), "2031-01-07"),
    ],
)
def test_dates_of_a_split_may_be_text_or_dates(dates):
    assert [sorted(patients(part)) for part in cohort(8, 1).split_by_time(*dates)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("date", [2031, None, pd.NaT, "next year", "05/06/2031", 1.5])
def test_what_is_no_date_is_refused(date):
    with pytest.raises(InputError, match=r"A date of the split is .*\. Write it as 2031-05-17"):
        cohort().split_by_time(date)


@pytest.mark.parametrize("dates", [(), ("2031-01-04", "2031-01-04"), ("2031-01-05", "2031-01-04")])
def test_dates_that_do_not_ascend_are_refused(dates):
    with pytest.raises(InputError, match=r"The dates of the split are .*; expected some, ascending"):
        cohort().split_by_time(*dates)


def test_a_period_without_patients_is_refused():
    with pytest.raises(InputError, match="The part 'test' of the split would have no patient"):
        cohort().split_by_time("2040-01-01")


# By site


def test_sites_are_divided_however_their_names_are_typed():
    sites = ["A", "B", "C", "A"]
    parts = cohort(4, site=sites).split_by_site("site", "A", ["B", "C"])
    assert [patients(part) for part in parts] == [{0, 3}, {1, 2}]
    numbered = cohort(4, site=[1, 2, 3, 1])
    for one, others in (([1], [2, 3]), (["1"], ("2", 3.0)), (1, [2, 3])):
        assert [patients(part) for part in numbered.split_by_site("site", one, others)] == [{0, 3}, {1, 2}]


def test_a_division_by_sites_names_every_site_once():
    whole = cohort(4, site=["A", "B", "C", None], age=50)
    with pytest.raises(InputError, match="There is no static column 'ward' to split by; there is: site, age"):
        whole.split_by_site("ward", ["A"], ["B"])
    with pytest.raises(InputError, match="There is no static column 'subject_id' to split by"):
        whole.split_by_site("subject_id", ["A"], ["B"])
    with pytest.raises(InputError, match="There is no static column 'site' to split by; there is: none"):
        cohort().split_by_site("site", ["A"], ["B"])
    with pytest.raises(InputError, match="The site 'A' stands in the split twice"):
        whole.split_by_site("site", ["A"], ["B", "A"])
    with pytest.raises(InputError, match="No patient has the site 'D' of the split"):
        whole.split_by_site("site", ["A"], ["B", "D"])
    with pytest.raises(InputError, match=r"4 samples have a site that no part of the split names \(C\)"):
        whole.split_by_site("site", ["A"], ["B"])
    with pytest.raises(InputError, match=r"2 samples have a site that no part of the split names \(blank\)"):
        whole.split_by_site("site", ["A"], ["B", "C"])


# By table


def table(ids, *words: str) -> pd.DataFrame:
    return pd.DataFrame({"subject_id": pd.Series(ids), "split": pd.Series(words)})


@pytest.mark.parametrize("ids", [[0, 1, 2], ["0", " 1", "2 "], [0.0, 1.0, 2.0]])
def test_a_table_divides_in_the_words_of_meds(ids):
    whole = cohort(4)
    parts = whole.split_by_table(table(ids, "held_out", "train", "tuning").set_index(pd.Index([7, 8, 9])))
    assert [patients(part) for part in parts] == [{1}, {2}, {0}]
    assert parts[0].attrition["step"].tolist() == ["read", "patients whom the split names", "split: train"]


def test_text_ids_are_divided_by_a_table_too():
    parts = cohort(3, text=True).split_by_table(table(["p0", "p1", "p2", "p9"], "train", "tuning", "held_out", "train"))
    assert [patients(part) for part in parts] == [{"p0"}, {"p1"}, {"p2"}]


def test_a_row_that_repeats_is_no_contradiction():
    three = table([0, 1, 2, 2], "train", "tuning", "held_out", "held_out")
    assert [patients(part) for part in cohort(3).split_by_table(three)] == [{0}, {1}, {2}]


@pytest.mark.parametrize(
    ("given_table", "message"),
    [
        (table([0, 1, 2], "train", "test", "held_out"), "The split table has test; expected the words train, tuning"),
        (table([0, 1, 2], "train", None, "held_out"), "The split table has a blank; expected the words"),
        (
            table([0, 1, 0], "train", "tuning", "held_out"),
            r"1 patients stand in more than one split \(first: data row 3",
        ),
        (table([7, 8, 9], "train", "tuning", "held_out"), "The split names none of the cohort's patients"),
        (table([0, 1, 2], "train", "tuning", "tuning"), "The part 'held_out' of the split would have no patient"),
        (
            table([0, "x", 2], "train", "tuning", "held_out"),
            "split table, data row 2: subject_id is not a whole number",
        ),
        (table([0, None, 2], "train", "tuning", "held_out"), "split table, data row 2: subject_id is blank"),
        (table([0, 1.5, 2], "train", "tuning", "held_out"), "split table.subject_id holds floats that are fractions"),
        (table([0, 1, 2], "train", "Quill", "held_out"), "The split table has other words; expected the words"),
        (pd.DataFrame({"subject_id": [1]}), "The split table lacks the column split"),
        (pd.DataFrame([[1, "train", "train"]], columns=["subject_id", "split", "split"]), "split table has a column"),
        (None, "The cohort came without subject_splits"),
    ],
)
def test_a_table_that_does_not_divide_is_refused(given_table, message):
    with pytest.raises(InputError, match=message):
        cohort(3).split_by_table(given_table)


def test_a_cohort_may_carry_its_division():
    words = table([0, 1, 2, 9], "train", "tuning", "held_out", "train")
    whole = cohort(3)
    divided = whole.with_splits(words)
    assert divided.subject_splits.to_dict() == {0: "train", 1: "tuning", 2: "held_out", 9: "train"}
    assert [patients(part) for part in divided.split_by_table()] == [{0}, {1}, {2}]
    assert whole.subject_splits is None


# Folds


def test_each_patient_is_in_one_fold_and_classes_are_spread():
    whole = cohort(30)
    folds = list(whole.folds(5, seed=1))
    assert [fold.subjects for _, fold in folds] == [6] * 5
    assert [fold.outcomes["died"].mean() for _, fold in folds] == [0.5] * 5
    assert folds[1][0].attrition["step"].iloc[-1] == "all but fold 2 of 5"
    assert folds[1][1].attrition["step"].iloc[-1] == "fold 2 of 5"


def test_continuous_and_partly_unknown_outcomes_are_divided_unstratified():
    whole = cohort(9, 1)
    for died in (np.arange(9) / 7, [0, 1, None] * 3):
        folds = list(Cohort(whole.outcomes.assign(died=died)).folds(3))
        assert [fold.subjects for _, fold in folds] == [3, 3, 3]


@pytest.mark.parametrize("count", [0, 1, 11, 2.5])
def test_fewer_patients_than_folds_are_refused(count):
    with pytest.raises(InputError, match=r"folds were asked of 10 patients. Give 2 to 10 folds"):
        list(cohort().folds(count))


def test_fewer_patients_of_a_class_than_folds_are_refused():
    whole = cohort(10)
    rare = Cohort(whole.outcomes.assign(died=whole.outcomes["subject_id"] < 2))
    with pytest.raises(InputError, match="3 folds were asked, but one outcome class has only 2 patients"):
        list(rare.folds(3))


def test_windows_of_a_part_are_those_of_the_whole():
    whole = cohort(6)
    times = [START + pd.Timedelta(days=k) for k in range(6)]
    labs = pd.DataFrame({"subject_id": range(6), "time": times, "code": "a", "value": np.arange(6)})
    whole = Cohort(whole.outcomes, labs=labs)
    seen = {(sample.subject_id, sample.prediction_time): sample for sample in map(whole.sample, range(len(whole)))}
    for part in whole.split((0.5, 0.5)):
        for sample in map(part.sample, range(len(part))):
            assert sample == seen[sample.subject_id, sample.prediction_time]
