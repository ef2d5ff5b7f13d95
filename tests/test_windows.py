"""Sorting and windows, held against what a plain loop over patients and events gives."""

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort
from chiasm.datasets.lab_reader import LabReader
from chiasm.datasets.windows import (
    Window,
    available_time,
    bisect_runs,
    of_patients,
    sorted_events,
    subject_runs,
    visible_events,
)
from hypothesis import given, settings
from hypothesis import strategies as st

START = pd.Timestamp("2180-03-01")


def drawn(seed: int, rows: int, text_ids: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events that tie in everything, and samples, some of patients without events."""
    random = np.random.default_rng(seed)

    def times(count: int) -> np.ndarray:
        return (START + pd.to_timedelta(random.integers(0, 6, count), "h")).astype("datetime64[us]")

    def ids(count: int) -> np.ndarray:
        numbers = random.integers(-2, 5, count)
        return np.char.add("p", numbers.astype("U")) if text_ids else numbers

    events = pd.DataFrame(
        {
            "subject_id": ids(rows),
            "time": times(rows),
            "code": pd.Categorical(random.choice(["pH", "Na", "é", "Z"], rows), ["pH", "absent", "é", "Na", "Z"]),
            "value": random.integers(-1, 2, rows).astype("float32"),
            "unit": random.choice(np.array(["u", "v", None], object), rows),
            "available_at": times(rows),
        }
    )
    samples = pd.DataFrame({"subject_id": ids(9), "prediction_time": times(9)})
    return events, samples.sort_values(["subject_id", "prediction_time"], ignore_index=True)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_events_are_sorted_as_by_all_their_cells(seed, rows, text_ids):
    events, _ = drawn(seed, rows, text_ids)
    events["available_at"] = events[["time", "available_at"]].max(axis=1)
    keys = ["subject_id", "available_at", "time", "code", "value", "unit"]
    cells = events[keys].astype(object).fillna({"unit": ""}).values.tolist()
    expected = sorted(tuple(row) for row in cells)
    found = sorted_events(events)
    assert [tuple(row) for row in found[keys].astype(object).fillna({"unit": ""}).values.tolist()] == expected
    assert found["code"].cat.categories.tolist() == sorted(events["code"].unique())
    again = sorted_events(found)
    pd.testing.assert_frame_equal(again, found)


def test_times_that_lie_too_far_apart_for_one_number_are_sorted_too():
    far = np.array(["0001-01-01", "9999-12-31", "2000-01-01"] * 2, "datetime64[us]")
    events = pd.DataFrame({"subject_id": [10**17, 10**17, 10**17, -5, -5, -5], "time": far, "text": list("abcdef")})
    assert sorted_events(events)["text"].tolist() == ["d", "f", "e", "a", "c", "b"]


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.booleans(), st.sampled_from([None, 1.0, 2.5]))
@settings(max_examples=60, deadline=None)
def test_each_sample_sees_what_a_loop_over_its_events_finds(seed, rows, text_ids, history):
    events, samples = drawn(seed, rows, text_ids)
    events = sorted_events(events)
    window = visible_events(events, samples, history)
    available = available_time(events)
    for place, sample in samples.iterrows():
        hours = (available - sample["prediction_time"]) / pd.Timedelta("1h")
        seen = (events["subject_id"] == sample["subject_id"]) & (hours <= 0)
        seen &= hours >= -(history or np.inf)
        span = slice(window.offsets[place], window.offsets[place + 1])
        assert window.rows[span].tolist() == np.flatnonzero(seen).tolist()
        np.testing.assert_array_equal(window.hours[span], hours[seen].astype("float32"))


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6), st.integers(-1, 10))
@settings(max_examples=60, deadline=None)
def test_bisection_of_runs_is_that_of_each_run(runs, sought):
    runs = [sorted(run) for run in runs]
    ends = np.cumsum([len(run) for run in runs])
    starts = ends - [len(run) for run in runs]
    cells = np.array([cell for run in runs for cell in run], int)
    for side in ("left", "right"):
        found = bisect_runs(cells, starts, ends, np.full(len(runs), sought), side)
        expected = [start + np.searchsorted(run, sought, side) for start, run in zip(starts, runs, strict=True)]
        assert found.tolist() == expected


@pytest.mark.parametrize("ids", [[1, 1, 2, 5, 5], ["a", "a", "b", "é", "é"]])
def test_the_runs_of_a_column_are_its_patients(ids):
    patients, starts = subject_runs(pd.Series(ids))
    assert (patients.tolist(), starts.tolist()) == ([ids[0], ids[2], ids[3]], [0, 2, 3, 5])
    patients, starts = subject_runs(pd.Series(ids[:0]))
    assert (len(patients), starts.tolist()) == (0, [0])


def test_codes_that_no_row_has_any_more_are_no_categories():
    table = pd.DataFrame({"subject_id": [1, 2], "time": START, "code": ["pH", "Na"], "value": 7.0})
    outcomes = pd.DataFrame({"subject_id": [1, 2], "prediction_time": START, "died": [0, 1]})
    labs = Cohort(outcomes, labs=table).keep([True, False], why="the first").labs
    assert labs["code"].value_counts().to_dict() == {"pH": 1}
    assert of_patients(labs, pd.Index([1])) is labs


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 24.0]), st.sampled_from([1, 2, 256]))
@settings(max_examples=40, deadline=None)
def test_time_steps_are_those_that_a_loop_counts(seed, resolution, steps):
    random = np.random.default_rng(seed)
    hours = [np.sort(-random.uniform(0, 5, random.integers(0, 9))).astype("float32") for _ in range(5)]
    offsets = np.cumsum([0, *map(len, hours)])
    window = Window(offsets, np.arange(offsets[-1]), np.concatenate(hours))
    step, early = LabReader(resolution=resolution, steps=steps)._time_steps(window)
    for own, start, end in zip(hours, offsets, offsets[1:], strict=False):
        bins = [int(np.floor(float(hour) / resolution)) for hour in own]
        number = [sorted(set(bins)).index(one) - max(0, len(set(bins)) - steps) for one in bins]
        assert step[start:end].tolist() == number
        assert early[start:end].tolist() == [one < 0 for one in number]
