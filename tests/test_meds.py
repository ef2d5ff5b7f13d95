"""MEDS: what is written is MEDS and reads as the same cohort; what others wrote is read for what it says."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.datasets import meds as chiasm_meds
from meds import CodeMetadataSchema, DataSchema, DatasetMetadataSchema, LabelSchema, SubjectSplitSchema

from .denied import deny

NOW = pd.Timestamp("2031-05-17 08:00")
TABLES = ("labs", "notes", "images", "static")


def hour(offset: float) -> pd.Timestamp:
    return NOW + pd.Timedelta(hours=offset)


def tables(ids=(1, 2, 3, 4)) -> dict[str, pd.DataFrame]:
    """Patients with two samples each, unknown outcomes, late results, and gaps in every optional column."""
    a, b, c, d = ids
    outcomes = pd.DataFrame(
        {
            "subject_id": [a, a, b, c, d],
            "prediction_time": [NOW, hour(24), NOW, NOW, NOW],
            "died": [0, 1, None, 1, 0],
            "stage": ["mild", None, "severe", "mild", "2"],
            "days": [1.5, 0.1, 3, None, 1e30],
            "never": pd.Series([None] * 5, dtype=object),
        }
    )
    labs = pd.DataFrame(
        {
            "subject_id": [a, a, b, b, a],
            "time": [hour(-5), hour(-5), hour(-1), hour(2), "2031-05-17 07:59:59.999999"],
            "code": ["pH", "NA", "pH", "NOTE", "STATIC//x"],
            "value": [7.4, 140.1, 1e15, -3, 0],
            "unit": [None, "mmol/L", "", "u", "v"],
            "available_at": [hour(-1), None, hour(-3), hour(5), hour(30)],
        }
    )
    notes = pd.DataFrame(
        {
            "subject_id": [a, b, b],
            "time": [hour(-2), hour(-2), hour(-3)],
            "text": ["no", "Fever, cough.\n" * 3, "漢字 \x00 🩺"],
            "kind": ["ward//night", None, "x"],
        }
    )
    images = pd.DataFrame(
        {
            "subject_id": [c, b],
            "time": [hour(-2), hour(-3)],
            "path": ["/films/a.png", "s3://bucket/b.dcm"],
            "view": ["PA", None],
            "study_uid": [None, "1.2.3"],
            "available_at": [hour(-1), None],
        }
    )
    static = pd.DataFrame(
        {
            "subject_id": [d, a, b, c],
            "age": [50.5, None, 70, None],
            "sex": ["f", "m", None, None],
            "ward//bed": pd.Categorical(["1", "2", "1", None]),
            "empty": None,
        }
    )
    return {"outcomes": outcomes, "labs": labs, "notes": notes, "images": images, "static": static}


def cohort(ids=(1, 2, 3, 4), only=TABLES, **settings) -> Cohort:
    given = {name: table for name, table in tables(ids).items() if name in ("outcomes", *only)}
    return Cohort(**given, outcome_kinds={"never": "binary", "stage": "categorical"}, **settings)


def equal(one: Cohort, other: Cohort) -> None:
    assert one.outcome_kinds == other.outcome_kinds
    assert [kind.classes for kind in one.outcome_kinds.values()] == [k.classes for k in other.outcome_kinds.values()]
    assert one.history == other.history
    for name in ("outcomes", *TABLES):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            pd.testing.assert_frame_equal(left, right)
    for position in range(len(one)):
        assert repr(one.sample(position)) == repr(other.sample(position))


def validate(folder: Path) -> None:
    """Hold every file of a dataset against the schemas of the meds package."""
    data = [pq.read_table(path) for path in (folder / "data").rglob("*.parquet")]
    for table in data:
        DataSchema.validate(DataSchema.align(table))
        assert table.schema.field("time").type == pa.timestamp("us")
        frame = table.to_pandas()
        assert frame["subject_id"].is_monotonic_increasing
        for _, own in frame.groupby("subject_id"):
            assert own["time"].is_monotonic_increasing or own["time"].dropna().is_monotonic_increasing
            assert not own["time"].isna().to_numpy()[own["time"].isna().sum() :].any()
    for path in (folder / "labels").rglob("*.parquet"):
        LabelSchema.validate(pq.read_table(path))
    codes = pq.read_table(folder / "metadata" / "codes.parquet")
    CodeMetadataSchema.validate(codes)
    assert set(codes["code"].to_pylist()) == {code for table in data for code in table["code"].to_pylist()}
    DatasetMetadataSchema.validate(json.loads((folder / "metadata" / "dataset.json").read_text()))
    if (folder / "metadata" / "subject_splits.parquet").exists():
        SubjectSplitSchema.validate(pq.read_table(folder / "metadata" / "subject_splits.parquet"))


# What chiasm writes


IDS = [(1, 2, 3, 4), (-7, 0, 5, 2**59 + 1), ("007", "8", "A", "é 漢"), (10**18, 1, 2, 3)]
SUBSETS = [some for count in range(4) for some in itertools.combinations(TABLES, count)]


@pytest.mark.parametrize(("ids", "only"), [*((ids, TABLES) for ids in IDS), *((IDS[0], some) for some in SUBSETS)])
def test_a_cohort_is_read_as_it_was_written_and_the_files_are_meds(tmp_path, ids, only):
    written = cohort(ids, only)
    written.write(tmp_path / "new" / "dataset")
    validate(tmp_path / "new" / "dataset")
    equal(Cohort.read(tmp_path / "new" / "dataset"), written)


def test_a_cohort_without_outcome_columns_or_with_empty_tables_is_read_as_it_was_written(tmp_path):
    given = tables()
    given["outcomes"] = given["outcomes"][["subject_id", "prediction_time"]]
    given = {name: table if name == "outcomes" else table.iloc[:0] for name, table in given.items()}
    written = Cohort(**given)
    written.write(tmp_path / "dataset")
    validate(tmp_path / "dataset")
    equal(Cohort.read(tmp_path / "dataset"), written)


def test_tables_without_their_optional_columns_are_read_as_they_were_written(tmp_path):
    optional = ["unit", "kind", "view", "study_uid", "available_at"]
    given = {name: table.drop(columns=optional, errors="ignore") for name, table in tables().items()}
    written = Cohort(**given, outcome_kinds={"never": "binary", "stage": "categorical"})
    written.write(tmp_path / "dataset")
    validate(tmp_path / "dataset")
    equal(Cohort.read(tmp_path / "dataset"), written)


def test_text_ids_stay_text_even_where_those_left_look_like_numbers(tmp_path):
    written = cohort(("1", "2", "3", "x")).keep([True, True, True, True, False], why="numbers")
    assert written.outcomes["subject_id"].tolist() == ["1", "1", "2", "3"]
    written.write(tmp_path / "dataset")
    equal(Cohort.read(tmp_path / "dataset"), written)


@pytest.mark.parametrize("ids", [(1, 2, 3, 4), ("a", "b", "c", "d")])
def test_divisions_history_and_settings_come_back(tmp_path, ids):
    written = cohort(ids, history=3.5)
    written.subject_splits = pd.Series(["train", "tuning", "held_out", "train"], index=ids)
    written.write(tmp_path / "dataset")
    validate(tmp_path / "dataset")
    read = Cohort.read(tmp_path / "dataset")
    assert read.history == 3.5
    assert read.subject_splits.to_dict() == dict(zip(ids, ["train", "tuning", "held_out", "train"], strict=True))
    for one, other in zip(read.split_by_table(), written.split_by_table(), strict=True):
        pd.testing.assert_frame_equal(one.outcomes, other.outcomes)
    again = Cohort.read(tmp_path / "dataset", history=None, outcome_kinds={"died": "continuous"})
    assert again.history is None
    assert again.outcome_kinds["died"] == "continuous"


def test_no_time_in_meds_lies_before_availability(tmp_path):
    cohort().write(tmp_path / "dataset")
    events = pq.read_table(tmp_path / "dataset" / "data" / "0.parquet").to_pandas()
    labs = events[events["numeric_value"].notna() & events["time"].notna()]
    of_value = labs.set_index(labs["numeric_value"].round(1))["time"]
    assert of_value[7.4] == hour(-1)
    assert of_value[140.1] == hour(-5)
    assert of_value[-3] == hour(5)
    # An available_at before the event is not believed.
    assert of_value.loc[of_value.index > 1e14].item() == hour(-1)
    described = events["event_time"].dropna()
    assert (described < events["time"][described.index]).all()


def test_an_unknown_outcome_has_no_label(tmp_path):
    cohort().write(tmp_path / "dataset")
    labels = {
        path.stem: pq.read_table(path).to_pandas() for path in (tmp_path / "dataset" / "labels").glob("*.parquet")
    }
    assert {name: len(table) for name, table in labels.items()} == {"died": 4, "stage": 4, "days": 4, "never": 0}
    assert labels["died"]["boolean_value"].tolist() == [False, True, True, False]
    assert labels["stage"]["categorical_value"].tolist() == ["mild", "severe", "mild", "2"]


def test_images_move_with_the_dataset_that_holds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "dataset"
    table = tables()["images"].assign(path=[str(home / "films" / "a.png"), "b.png"])
    Cohort(tables()["outcomes"].drop(columns=["never", "stage"]), images=table).write("dataset")
    home.rename(tmp_path / "moved")
    paths = Cohort.read(tmp_path / "moved").images["path"]
    assert sorted(paths) == [str(tmp_path / "b.png"), str(tmp_path / "moved" / "films" / "a.png")]


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for path in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(InputError, match=r"already holds something. Give a new or an empty folder"):
            cohort().write(path)
    (tmp_path / "empty").mkdir()
    cohort().write(tmp_path / "empty")
    equal(Cohort.read(tmp_path / "empty"), cohort())


def test_nothing_half_written_remains_when_writing_fails(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    for step in ("_write_labels", "_write_metadata"):
        with monkeypatch.context() as patch:
            patch.setattr(chiasm_meds, step, full)
            with pytest.raises(OSError, match="No space left"):
                cohort().write(tmp_path / "dataset")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a/b", "..\\x", "line\nbreak", "x" * 201])
def test_an_outcome_that_cannot_name_a_file_is_refused(tmp_path, name):
    given = tables()["outcomes"][["subject_id", "prediction_time", "died"]].rename(columns={"died": name})
    with pytest.raises(InputError, match=r"The outcome .* cannot be a file name. Rename the column"):
        Cohort(given).write(tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []


# What others wrote


def event(
    subject: int, time: pd.Timestamp | None, code: str, number: float | None = None, text: str | None = None
) -> dict:
    return {"subject_id": subject, "time": time, "code": code, "numeric_value": number, "text_value": text}


BORN = pd.Timestamp("1950-02-03")
SHARDS = {
    "train/0": [
        event(1, None, "GENDER//F"),
        event(1, None, "HEIGHT", 170.0),
        event(1, None, "RACE", None, "unknown"),
        event(1, BORN, "MEDS_BIRTH"),
        event(1, hour(-30), "LAB//50912//mg/dL", 1.1),
        event(1, hour(-2), "LAB//50912//mg/dL", 1.3, "1.3 mg/dL high"),
        event(1, hour(-2), "NOTE//discharge", None, "Fine."),
        event(1, hour(-1), "CULTURE", None, "POSITIVE"),
        event(1, hour(-1), "RADIOLOGY", None, "No effusion seen."),
        event(1, hour(1), "LAB//50912//mg/dL", 9.9),
    ],
    "train/1": [event(2, None, "GENDER//M"), event(2, None, "DIABETES"), event(2, hour(-3), "HR", 80.0)],
    "held_out/0": [event(3, None, "GENDER//F"), event(3, hour(-3), "HR", float("nan")), event(3, hour(2), "HR", 70.0)],
}


def write_foreign(folder: Path, shards: dict[str, list[dict]] | None = None) -> Path:
    for name, rows in (SHARDS if shards is None else shards).items():
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, schema=DataSchema.schema())
        DataSchema.validate(table)
        pq.write_table(table, path)
    (folder / "metadata").mkdir(parents=True)
    splits = pa.table({"subject_id": [1, 2, 3, 9], "split": ["train", "train", "held_out", "tuning"]})
    pq.write_table(splits, folder / "metadata" / "subject_splits.parquet")
    (folder / "labels").mkdir()
    return folder


def write_labels(folder: Path, name: str, **values: list) -> None:
    columns = {"subject_id": pa.array([1, 2, 3]), "prediction_time": pa.array([NOW] * 3, pa.timestamp("us"))}
    types = {field.name: field.type for field in LabelSchema.schema()}
    columns |= {column: pa.array(cells, types[column]) for column, cells in values.items()}
    path = folder / "labels" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_a_dataset_of_other_writing_is_read(tmp_path):
    write_labels(write_foreign(tmp_path), "mortality", boolean_value=[True, False, False])
    read = Cohort.read(tmp_path, history=24)
    assert read.outcome_kinds == {"mortality": "binary"}
    first = read.sample(0)
    assert [(lab.hours, lab.code, lab.value) for lab in first.labs] == [(-2.0, "LAB//50912//mg/dL", np.float32(1.3))]
    assert [(note.text, note.kind) for note in first.notes] == [("Fine.", "discharge"), ("No effusion seen.", None)]
    assert dict(first.static) == {"GENDER": "F", "HEIGHT": 170.0, "RACE": "unknown"}
    assert dict(read.sample(1).static) == {"GENDER": "M", "DIABETES": "present"}
    assert read.has_input()["labs"].tolist() == [True, True, False]
    assert read.images is None
    assert read.subject_splits.to_dict() == {1: "train", 2: "train", 3: "held_out", 9: "tuning"}


def test_images_of_another_writer_are_read(tmp_path):
    write_labels(write_foreign(tmp_path), "died", boolean_value=[True, False, False])
    path = tmp_path / "data" / "train" / "1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("image_path", pa.array([None, None, "films/a.png"])), path)
    read = Cohort.read(tmp_path)
    assert [(image.path, image.hours) for image in read.sample(1).images] == [(str(tmp_path / "films" / "a.png"), -3.0)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"boolean_value": [True, True, True]}, "binary"),
        ({"float_value": [0.0, 1.0, 1.0]}, "continuous"),
        ({"integer_value": [0, 1, 1]}, "binary"),
        ({"integer_value": [0, 1, 2]}, "continuous"),
        ({"categorical_value": ["a", "b", "b"]}, "categorical"),
        ({"categorical_value": ["480", "V27", "480"]}, "categorical"),
        ({"boolean_value": [None] * 3, "float_value": [0.5, 1.0, None], "integer_value": [None] * 3}, "continuous"),
    ],
)
def test_the_column_of_a_label_file_declares_the_kind(tmp_path, values, kind):
    write_labels(write_foreign(tmp_path), "y", **values)
    assert Cohort.read(tmp_path).outcome_kinds == {"y": kind}


def test_labels_in_shards_and_of_several_outcomes_are_joined(tmp_path):
    write_foreign(tmp_path)
    write_labels(tmp_path, "died", boolean_value=[True, False, False])
    write_labels(tmp_path, "days/train/0", float_value=[1.0, 2.0, 3.0])
    later = pq.read_table(tmp_path / "labels/days/train/0.parquet").to_pandas().iloc[:1]
    later["prediction_time"] += pd.Timedelta("1h")
    pq.write_table(pa.Table.from_pandas(later), tmp_path / "labels/days/1.parquet")
    read = Cohort.read(tmp_path)
    assert read.outcomes["days"].tolist() == [1.0, 1.0, 2.0, 3.0]
    assert read.outcomes["died"].isna().tolist() == [False, True, False, False]


def test_an_impossible_value_of_another_writer_is_refused_or_excluded(tmp_path):
    shards = SHARDS | {"train/1": [event(2, hour(-3), "HR", float("inf")), event(2, hour(-2), "HR", 80.0)]}
    write_labels(write_foreign(tmp_path, shards), "died", boolean_value=[True, False, False])
    with pytest.raises(InputError, match=r"data.train.1.parquet, data row 1: value is infinite"):
        Cohort.read(tmp_path)
    read = Cohort.read(tmp_path, invalid="exclude")
    assert [event.value for event in read.sample(1).labs] == [80.0]


def test_a_dataset_that_is_none_is_refused(tmp_path):
    for name in ("data", "metadata"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"data has no .parquet file"):
        Cohort.read(tmp_path)
    for name, content in SHARDS.items():
        path = tmp_path / "data" / f"{name.replace('/', '-')}.parquet"
        pq.write_table(pa.Table.from_pylist(content, schema=DataSchema.schema()), path)
    with pytest.raises(InputError, match=r"has no label files. Put what is to be predicted into labels/NAME.parquet"):
        Cohort.read(tmp_path)
    pq.write_table(pa.table({"subject_id": [1], "time": [NOW]}), path)
    with pytest.raises(InputError, match=r"lacks the column code, which MEDS 0.4 requires"):
        Cohort.read(tmp_path)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"cannot be read as a parquet file. Write it anew"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize(
    "columns", [{"subject_id": [1], "boolean_value": [True]}, {"subject_id": [1], "prediction_time": [NOW]}]
)
def test_a_label_file_that_is_none_is_refused(tmp_path, columns):
    pq.write_table(pa.table(columns), write_foreign(tmp_path) / "labels" / "died.parquet")
    with pytest.raises(InputError, match=r"died.parquet is no MEDS label file: it needs subject_id, prediction_time"):
        Cohort.read(tmp_path)


def test_a_damaged_dataset_of_ours_is_refused(tmp_path):
    cohort(("a", "b", "c", "d")).write(tmp_path / "dataset")
    metadata = tmp_path / "dataset" / "metadata"
    (metadata / "subject_ids.parquet").rename(tmp_path / "ids")
    with pytest.raises(InputError, match=r"There is no file .*subject_ids.parquet"):
        Cohort.read(tmp_path / "dataset")
    (tmp_path / "dataset" / "labels" / "died.parquet").unlink()
    with pytest.raises(InputError, match=r"labels lacks died.parquet, which metadata/chiasm.json names"):
        Cohort.read(tmp_path / "dataset")
    for content in ('{"schema": 2, "outcomes": {}, "tables": {}}', "[]", '{"schema": 1}'):
        (metadata / "chiasm.json").write_text(content)
        with pytest.raises(InputError, match=r"chiasm.json is not of schema 1, which this version reads"):
            Cohort.read(tmp_path / "dataset")
    (metadata / "chiasm.json").write_text("{")
    with pytest.raises(InputError, match=r"chiasm.json is not JSON"):
        Cohort.read(tmp_path / "dataset")


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("code", [1, 2, 3], r"1\.parquet: code is int64, and text in MEDS 0\.4\. Write the shard anew"),
        (
            "time",
            pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
            r"time is timestamp\[us, tz=UTC\], and timestamps with",
        ),
        ("code", ["HR", "x" * 20_000, "HR"], r"1\.parquet: code has a text of 20000 bytes, where a word is expected"),
        ("subject_id", ["1", "2", "3"], r"subject_id is string, and whole numbers in MEDS"),
        ("subject_id", pa.array([1, 2**64 - 1, 3], pa.uint64()), r"subject_id has values that cannot be whole numbers"),
        ("numeric_value", [[1.0]] * 3, r"numeric_value is list<.*>, and numbers in MEDS"),
        ("subject_id", [None, 2, 2], r"1\.parquet, data row 1: subject_id is blank. Write the shard anew"),
    ],
)
def test_events_of_other_types_than_meds_has_are_refused(tmp_path, column, cells, message):
    write_labels(write_foreign(tmp_path), "died", boolean_value=[True, False, False])
    path = tmp_path / "data" / "train" / "1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(cells)), path)
    with pytest.raises(InputError, match=message):
        Cohort.read(tmp_path)


def test_a_column_of_events_that_stands_there_twice_is_refused(tmp_path):
    write_labels(write_foreign(tmp_path), "died", boolean_value=[True, False, False])
    path = tmp_path / "data" / "train" / "1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("code", table["code"]), path)
    with pytest.raises(InputError, match=r"1\.parquet: code is there twice, and text in MEDS 0\.4"):
        Cohort.read(tmp_path)


def test_facts_of_strangers_alone_are_refused(tmp_path):
    shards = {"0": [event(7, None, "GENDER//F"), event(1, hour(-1), "HR", 80.0)]}
    write_labels(write_foreign(tmp_path, shards), "died", boolean_value=[True, False, False])
    with pytest.raises(InputError, match="No subject_id of static stands in outcomes"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"subject_id": ["a"]}, "subject_id is missing, or not whole numbers without a blank"),
        ({"prediction_time": ["2031-05-17"]}, "is not of MEDS's types, timestamp.us. without a zone and int64"),
        ({"subject_id": [1, 1], "prediction_time": [NOW, NOW], "boolean_value": [True, False]}, "stand there twice"),
        ({"float_value": [1.0], "twice": [1.0]}, "is no MEDS label file: .* each once"),
        (
            {"boolean_value": [{"coded": True}]},
            "a label is a list or has fields; expected one truth value, number or word",
        ),
    ],
)
def test_labels_of_other_types_than_meds_has_are_refused(tmp_path, columns, message):
    table = pa.table({"subject_id": [1], "prediction_time": [NOW], "boolean_value": [True]} | columns)
    table = table.rename_columns(["float_value" if name == "twice" else name for name in table.column_names])
    path = write_foreign(tmp_path) / "labels" / "died.parquet"
    pq.write_table(table, path)
    with pytest.raises(InputError, match=message) as told:
        Cohort.read(tmp_path)
    assert str(told.value).startswith(str(path))


def test_the_same_sample_in_two_shards_of_labels_is_refused(tmp_path):
    write_foreign(tmp_path)
    write_labels(tmp_path, "died/0", boolean_value=[True, False, False])
    write_labels(tmp_path, "died/1", boolean_value=[True, False, False])
    with pytest.raises(InputError, match=r"labels/died/1.parquet, data row 1: the same patient .* \(3 such rows\)"):
        Cohort.read(tmp_path)
    once = Cohort.read(tmp_path, invalid="exclude")
    assert len(once) == 3
    assert [(own.table, own.row) for own in once.exclusions] == [("labels/died/1.parquet", row) for row in (1, 2, 3)]
    assert {own.reason for own in once.exclusions} == {
        "the same patient and prediction_time stand there twice, with the same outcome"
    }
    # Which of two outcomes is right, nobody can tell but who wrote them.
    write_labels(tmp_path, "died/1", boolean_value=[True, True, False])
    with pytest.raises(
        InputError, match=r"died/1.parquet, data row 2: .* \(1 such rows with other values\)\. Keep.*sample\.$"
    ):
        Cohort.read(tmp_path, invalid="exclude")


def test_notes_of_chiasm_that_contradict_the_dataset_are_refused(tmp_path):
    cohort(("a", "b", "c", "d")).write(tmp_path / "dataset")
    path = tmp_path / "dataset" / "metadata" / "chiasm.json"
    layout = json.loads(path.read_text())
    for tables_ in ([], {"films": {}}, {"labs": []}, {"labs": {"code": 3}}, {"labs": {"code": "object"}}):
        path.write_text(json.dumps(layout | {"tables": tables_}))
        with pytest.raises(InputError, match=r"chiasm\.json is not of schema 1"):
            Cohort.read(tmp_path / "dataset")
    columns = layout["tables"]["static"] | {"sex": "float32"}
    path.write_text(json.dumps(layout | {"tables": {"static": columns}}))
    with pytest.raises(InputError, match=r"static is not of the types that metadata/chiasm\.json names"):
        Cohort.read(tmp_path / "dataset")
    path.write_text(json.dumps(layout))
    ids = tmp_path / "dataset" / "metadata" / "subject_ids.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(ids)] * 2), ids)
    with pytest.raises(InputError, match=r"subject_ids\.parquet is damaged: it needs one original_id for each"):
        Cohort.read(tmp_path / "dataset")


@pytest.mark.parametrize("history", [1, 24])
def test_events_in_pieces_are_seen_as_those_of_the_whole(tmp_path, monkeypatch, history):
    written = cohort(history=history)
    written.write(tmp_path / "dataset")
    monkeypatch.setattr("chiasm.datasets.pieces.PIECE_ROWS", 2)
    read = Cohort.read(tmp_path / "dataset", history=history)
    for position in range(len(written)):
        assert repr(read.sample(position)) == repr(written.sample(position))
    assert len(read.labs) == len(np.unique(written.window("labs").rows))


def test_a_shard_that_would_be_passed_over_is_named(tmp_path, monkeypatch):
    cohort().write(tmp_path / "meds")
    path = next((tmp_path / "meds" / "data").rglob("*.parquet"))
    for name in ("1.PARQUET", "1.csv", "1.parquet.gz"):
        other = path.with_name(name)
        other.write_bytes(path.read_bytes())
        with pytest.raises(InputError, match=f"{name} is not read: the events of a MEDS dataset lie in files that end"):
            Cohort.read(tmp_path / "meds")
        other.unlink()
    (path.parent / "more").mkdir()
    deny(monkeypatch, path.parent / "more")
    with pytest.raises(InputError, match=r"more cannot be listed \(PermissionError\)\. Check its permissions"):
        Cohort.read(tmp_path / "meds")


def test_shards_in_a_folder_that_is_linked_are_read_and_each_once(tmp_path):
    whole = cohort()
    whole.write(tmp_path / "meds")
    data = tmp_path / "meds" / "data"
    data.rename(tmp_path / "elsewhere")
    data.mkdir()
    for name in ("linked", "again"):
        (data / name).symlink_to(tmp_path / "elsewhere")
    read = Cohort.read(tmp_path / "meds")
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(read, name), getattr(whole, name))
