"""Outcomes: the kind of each, what it may hold, and how it becomes numbers."""

import re

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError, OutcomeKind
from chiasm.datasets.outcomes import encode_outcomes

NOW = pd.Timestamp("2031-05-17 08:00")


def outcomes(ids=(1, 2, 3), **columns) -> pd.DataFrame:
    return pd.DataFrame({"subject_id": list(ids), "prediction_time": NOW, "died": [0, 1, 0][: len(ids)]} | columns)


def test_a_sample_stands_once():
    with pytest.raises(
        InputError, match=r"outcomes, data row 3: the same patient and prediction_time stand there twice"
    ):
        Cohort(outcomes([1, 2, "1"]))
    later = outcomes([1, 2, 1]).assign(prediction_time=[NOW, NOW, NOW + pd.Timedelta("1h")])
    assert (Cohort(later).subjects, len(Cohort(later))) == (2, 3)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 0], "binary"),
        ([True, False, None], "binary"),
        (["0", "1", ""], "binary"),
        ([0.0, np.nan, 1.0], "binary"),
        (["TRUE", "false", "1"], "binary"),
        ([1, 1, 1], "binary"),
        ([0, 1, 2], "continuous"),
        (["1.5", "2", None], "continuous"),
        ([-0.5, 1e30, 3], "continuous"),
        (["mild", "severe", "mild"], "categorical"),
        (["yes", "no", None], "categorical"),
        (pd.Categorical(["b", "a", "b"]), "categorical"),
        (pd.Categorical(["1", "2", "x"]), "categorical"),
    ],
)
def test_the_kind_of_an_outcome_is_inferred_from_its_values(values, kind):
    assert Cohort(outcomes(y=values)).outcome_kinds["y"] == kind


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["1", "2", "x"], r"outcomes, data row 3: y is a word, where 2 rows hold numbers"),
        ([0, "unknown", 1], r"outcomes, data row 2: y is a word, where 2 rows hold numbers"),
        (["480", "V27", "J18"], r"outcomes, data row 1: y is a number, where 2 rows hold words"),
        (["yes", None, "1"], r"outcomes, data row 1: y is a word, where 1 rows hold numbers"),
    ],
)
def test_words_among_numbers_are_no_classes_unless_they_are_said_to_be(values, told):
    for policy in ("raise", "exclude"):
        with pytest.raises(InputError, match=rf"{told}, so that its kind cannot be told. Correct the cell"):
            Cohort(outcomes(y=values), invalid=policy)
    classes = Cohort(outcomes(y=values), outcome_kinds={"y": "categorical"}).outcome_kinds["y"].classes
    assert set(classes) == {str(value) for value in values if value is not None}


def test_a_word_among_numbers_of_a_kind_that_was_given_is_left_out_and_listed():
    cohort = Cohort(outcomes(y=["0", "1", "x"]), outcome_kinds={"y": "binary"}, invalid="exclude")
    assert [(one.table, one.row) for one in cohort.exclusions] == [("outcomes", 3)]


def test_a_row_that_stands_twice_is_left_out_and_listed_where_that_was_asked_for():
    twice = outcomes([1, 2, 1], stage=["mild", "severe", "mild"], died=[0, 1, 0.0])
    with pytest.raises(InputError, match=r"data row 3: the same .* stand there twice, with the same outcomes. Keep"):
        Cohort(twice)
    cohort = Cohort(twice, invalid="exclude")
    assert cohort.outcomes["subject_id"].tolist() == [1, 2]
    assert [(one.table, one.row) for one in cohort.exclusions] == [("outcomes", 3)]
    # Which of two outcomes is right, nobody can tell who leaves rows out.
    with pytest.raises(InputError, match=r"data row 3: .* twice, with other outcomes \(1 such rows\). Find out which"):
        Cohort(twice.assign(died=[0, 1, 1]), invalid="exclude")


@pytest.mark.parametrize(("codes", "listed"), [([0, 1, 9], "0, 1, 9"), ([-1, 0, 1, 2], "-1, 0, 1, 2"), ([3], "3")])
def test_few_whole_numbers_are_taken_for_numbers_and_that_is_told(codes, listed):
    """Else 9 for unknown would be nine times as dead."""
    outcomes = pd.DataFrame({"subject_id": range(40), "prediction_time": NOW, "died": (codes * 40)[:40]})
    cohort = Cohort(outcomes)
    assert cohort.outcome_kinds["died"] == "continuous"
    assert cohort.attrition["step"].tolist()[1:] == [
        f"outcomes: died is only {listed}, taken for a number; if these are classes, or one stands for unknown, give "
        "outcome_kinds, or leave its cells blank"
    ]
    assert cohort.split((0.5, 0.5), seed=0)[0].attrition["step"].str.contains("taken for a number").sum() == 1
    assert len(Cohort(outcomes, outcome_kinds={"died": "continuous"}).attrition) == 1


@pytest.mark.parametrize("values", [np.arange(40) % 11, np.arange(40) % 3 / 2, np.arange(3)])
def test_durations_are_numbers_without_a_word(values):
    outcomes = pd.DataFrame({"subject_id": range(len(values)), "prediction_time": NOW, "days": values})
    assert Cohort(outcomes).attrition["step"].tolist() == ["read"]


def test_the_kind_of_an_outcome_can_be_given():
    cohort = Cohort(outcomes(stage=[1, 2, 1]), outcome_kinds={"stage": "categorical", "died": "continuous"})
    assert cohort.outcome_kinds == {"died": "continuous", "stage": "categorical"}
    assert cohort.outcome_kinds["stage"].classes == ("1", "2")
    assert cohort.outcomes["stage"].tolist() == ["1", "2", "1"]
    ordered = OutcomeKind("categorical", ["severe", "mild"])
    cohort = Cohort(outcomes(stage=["mild", "severe", None]), outcome_kinds={"stage": ordered})
    values, known = encode_outcomes(cohort.outcomes, cohort.outcome_kinds)
    np.testing.assert_array_equal(values, [[0, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(known, [[1, 1], [1, 1], [1, 0]])


def test_classes_are_named_alike_whether_or_not_one_is_unknown():
    kinds = {"stage": "categorical"}
    whole, gaps = (Cohort(outcomes(stage=v), outcome_kinds=kinds) for v in ([1, 2, 1], [1, 2, None]))
    assert whole.outcome_kinds["stage"].classes == gaps.outcome_kinds["stage"].classes == ("1", "2")


def test_an_outcome_that_is_blank_throughout_needs_its_kind():
    with pytest.raises(InputError, match=r"outcomes.y is blank throughout, so its kind cannot be told"):
        Cohort(outcomes(y=None))
    cohort = Cohort(outcomes(y=None), outcome_kinds={"y": "binary"})
    assert cohort.outcomes["y"].isna().all()


@pytest.mark.parametrize("word", ["NA", "NaN", "#N/A", "null", "."])
def test_a_word_that_programs_write_for_a_blank_is_no_class_unless_it_is_said_to_be(word):
    with pytest.raises(InputError, match=rf"outcomes.y has cells that say '{re.escape(word)}'. Leave them blank"):
        Cohort(outcomes(y=["0", "1", word]))
    assert Cohort(outcomes(y=["0", "1", word]), outcome_kinds={"y": "categorical"}).outcomes["y"].iloc[2] == word


@pytest.mark.parametrize("dates", [["2031-05-18", "2031-06-01", None], [NOW, NOW + pd.Timedelta("1D"), pd.NaT]])
def test_dates_are_no_classes(dates):
    with pytest.raises(InputError, match=r"outcomes.died_on holds dates, each of which would be a class. Give what"):
        Cohort(outcomes(died_on=dates))


def test_times_that_are_none_are_told_before_the_kinds_of_outcomes():
    with pytest.raises(InputError, match=r"data row 1 \(and 2 more such rows\): prediction_time is not a time"):
        Cohort(outcomes().assign(prediction_time="2024-03-01 12:00 CET"))


def test_a_cohort_may_have_no_outcome_to_predict_with():
    assert Cohort(outcomes().drop(columns="died")).outcome_kinds == {}


def test_kinds_of_what_is_not_there_or_does_not_exist_are_refused():
    with pytest.raises(InputError, match="outcome_kinds names alive, but outcomes has died"):
        Cohort(outcomes(), outcome_kinds={"alive": "binary"})
    with pytest.raises(InputError, match="The outcome kind is 'survival'; expected one of binary"):
        Cohort(outcomes(), outcome_kinds={"died": "survival"})
    with pytest.raises(InputError, match=r"outcomes.y is categorical but has fewer than two classes"):
        Cohort(outcomes(y="yes"))
    with pytest.raises(InputError, match="A binary outcome came with the classes"):
        OutcomeKind("binary", ["a"])
    with pytest.raises(InputError, match="The classes of a categorical outcome repeat"):
        OutcomeKind("categorical", ["a", "a"])
    with pytest.raises(InputError, match="outcomes lacks the column y, which the model predicts"):
        encode_outcomes(outcomes(), {"y": OutcomeKind("binary")})


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 1, 7], "binary", "y is binary, so it must be 0 or 1"),
        ([0, 1, "x"], "continuous", "y is continuous, so it must be a finite number"),
        ([0, 1, np.inf], "continuous", "y is continuous, so it must be a finite number"),
        ([0, 1, 1e39], "continuous", "y is continuous, so it must be a finite number"),
        ([0, 2, "inf"], None, "y is continuous, so it must be a finite number"),
        (
            ["a", "b", "c"],
            OutcomeKind("categorical", ["a", "b"]),
            "y is categorical, so it must be one of the classes a, b",
        ),
        ([0, 1, b"1"], "binary", "y is binary"),
        (["a", "b", "\ud800"], "categorical", "y is categorical"),
    ],
)
def test_a_value_that_its_kind_cannot_have_is_refused_with_the_row_as_it_was_given(values, kind, expected):
    table = outcomes([9, 8, 7], y=pd.Series(values, dtype=object))
    kinds = {"y": kind} if kind else {}
    with pytest.raises(InputError, match=f"outcomes, data row 3: {expected}"):
        Cohort(table, outcome_kinds=kinds)
    cohort = Cohort(table, outcome_kinds=kinds, invalid="exclude")
    assert [(e.table, e.row) for e in cohort.exclusions] == [("outcomes", 3)]
    assert cohort.outcomes["subject_id"].tolist() == [8, 9]


def test_outcomes_of_another_cohort_are_held_against_the_kind_of_the_model():
    with pytest.raises(InputError, match="outcomes, data row 2: died is categorical"):
        encode_outcomes(outcomes(), {"died": OutcomeKind("categorical", ["0", "2"])})


def test_a_kind_is_a_string_that_survives_pickling():
    import pickle

    kind = pickle.loads(pickle.dumps(OutcomeKind("categorical", ["mild", "severe"])))
    assert (kind, kind.classes, kind.logits) == ("categorical", ("mild", "severe"), 2)
    assert kind.columns("stage") == ("stage=mild", "stage=severe")
    assert (OutcomeKind("binary").logits, OutcomeKind("binary").columns("died")) == (1, ("died",))
