"""What is predicted of stays: who qualifies, when, and what came of it."""

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError
from chiasm.datasets.stays import predictions


def stays(*rows) -> pd.DataFrame:
    """Rows of patient, start, end, died, died_at."""
    table = pd.DataFrame(rows, columns=["subject_id", "start", "end", "died", "died_at"])
    for column in ("start", "end", "died_at"):
        table[column] = pd.to_datetime(table[column], format="ISO8601").astype("datetime64[us]")
    return table.astype({"died": "boolean"})


def test_only_those_still_there_and_alive_are_asked_whether_they_will_die():
    told = predictions(
        stays(
            (1, "2020-01-01 08:00", "2020-01-05", False, None),
            (2, "2020-01-01 08:00", "2020-01-02", False, None),
            (3, "2020-01-01 08:00", "2020-01-06", True, "2020-01-03 08:00"),
            (4, "2020-01-01 08:00", "2020-01-06", True, "2020-01-03 08:01"),
            (5, "2020-01-01 08:00", None, None, None),
            (6, "2020-01-05", "2020-01-01", False, None),
        ),
        "mortality",
        after=48,
    )
    assert told.outcomes["subject_id"].tolist() == [1, 4, 5]
    assert told.outcomes["prediction_time"].unique().tolist() == [pd.Timestamp("2020-01-03 08:00")]
    assert told.outcomes["died"].tolist()[:2] == [0, 1]
    assert pd.isna(told.outcomes["died"].iloc[2])
    assert [step[1] for step in told.steps] == [6, 5, 3]


def test_the_remaining_days_end_with_discharge_or_death_and_are_unknown_while_the_stay_goes_on():
    told = predictions(
        stays(
            (1, "2020-01-01", "2020-01-05", False, None),
            (2, "2020-01-01", "2020-01-06", True, "2020-01-04 12:00"),
            (3, "2020-01-01", None, None, None),
        ),
        "length-of-stay",
        after=24,
    )
    assert told.outcomes["remaining_days"].tolist()[:2] == [3.0, 2.5]
    assert np.isnan(told.outcomes["remaining_days"].iloc[2])


def test_a_patient_is_readmitted_when_the_next_stay_begins_within_thirty_days_and_unknown_where_the_data_end():
    told = predictions(
        stays(
            (1, "2020-01-01", "2020-01-10", False, None),
            (1, "2020-02-09", "2020-02-10", False, None),
            (2, "2020-01-01", "2020-01-10", False, None),
            (2, "2020-02-10", "2020-02-11", False, None),
            (3, "2020-01-01", "2020-01-10", True, "2020-01-10"),
            (4, "2020-01-01", "2020-01-10", False, None),
            (4, "2020-01-05", "2020-01-06", False, None),
        ),
        "readmission",
    ).outcomes.set_index(["subject_id", "prediction_time"])["readmitted"]
    day = pd.Timestamp
    assert told[1, day("2020-01-10")] == 1  # Thirty days to the day.
    assert pd.isna(told[1, day("2020-02-10")])
    assert told[2, day("2020-01-10")] == 0
    assert pd.isna(told[2, day("2020-02-11")])
    assert 3 not in told.index
    assert told[4, day("2020-01-10")] == 0  # A stay inside another is no return.


@pytest.mark.parametrize("stand_in", ["2099-12-31", "9999-12-31", "2025-01-02"])
def test_an_end_beyond_belief_is_none_and_moves_nobody_s_follow_up(stand_in):
    rows = [(1, "2020-01-01", "2020-01-10", False, None), (2, "2020-01-01", stand_in, False, None)]
    told = predictions(stays(*rows), "readmission")
    assert told.outcomes["subject_id"].tolist() == [1]
    assert pd.isna(told.outcomes["readmitted"].iloc[0])
    assert ("ends more than 5 years after the start taken as not known: 1", 2, 2) in told.steps
    days = predictions(stays(*rows), "length-of-stay").outcomes["remaining_days"]
    assert days.tolist()[0] == 7
    assert np.isnan(days.iloc[1])
    assert predictions(stays(*rows), "mortality").outcomes["died"].isna().tolist() == [False, True]


@pytest.mark.parametrize("end", ["2099-12-31", "2100-01-08", None])
def test_a_start_beyond_belief_moves_nobody_s_follow_up(end):
    years = [2015 + patient % 6 for patient in range(30)]
    rows = [(patient, f"{year}-01-01", f"{year}-01-10", False, None) for patient, year in enumerate(years)]
    sound = predictions(stays(*rows), "readmission").outcomes
    told = predictions(stays(*rows, (31, "2099-12-31", end, False, None)), "readmission")
    pd.testing.assert_frame_equal(told.outcomes[told.outcomes["subject_id"] < 31], sound)
    assert sound["readmitted"].isna().sum() == 5  # Those of the last year.
    alone = 1 + (end is not None)
    step = f"starts and ends after 5 years in which nobody came or went taken for no follow-up: {alone}"
    assert step in [step for step, *_ in told.steps]


def test_many_stays_after_years_without_any_are_the_source_s_own():
    rows = [(patient, "2005-01-01", "2005-01-10", False, None) for patient in range(6)]
    rows += [(patient, "2015-01-01", "2015-01-10", False, None) for patient in range(6, 8)]
    told = predictions(stays(*rows), "readmission")
    assert told.outcomes["readmitted"].isna().tolist() == [False] * 6 + [True] * 2
    assert not any("taken for no follow-up" in step for step, *_ in told.steps)


def test_a_stay_of_years_that_can_be_is_believed():
    told = predictions(stays((1, "2020-01-01", "2024-12-30", False, None)), "length-of-stay")
    assert told.outcomes["remaining_days"].tolist() == [1823]
    assert len(told.steps) == 3


def test_a_death_many_years_later_does_not_end_a_stay_without_an_end():
    told = predictions(stays((1, "2020-01-01", None, None, "2030-01-01")), "length-of-stay")
    assert told.outcomes["remaining_days"].isna().tolist() == [True]


def test_a_source_without_a_stay_that_can_be_says_so():
    for rows in ([], [(1, "2020-01-05", "2020-01-01", False, None)]):
        with pytest.raises(InputError, match=r"No stay of \d qualifies for the task 'readmission'"):
            predictions(stays(*rows), "readmission")


@pytest.mark.parametrize(
    ("task", "after", "message"),
    [
        ("death", 48, "task is 'death'; expected one of mortality, length-of-stay, readmission"),
        ("mortality", 0, "after is 0; expected a positive number of hours"),
        ("mortality", 9999, "No stay of 1 qualifies for the task 'mortality' with a prediction 9999 h after its start"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(task, after, message):
    with pytest.raises(InputError, match=message):
        predictions(stays((1, "2020-01-01", "2020-01-05", False, None)), task, after=after)
