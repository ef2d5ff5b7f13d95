"""The code of the README does what it says."""

import os
import re
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import Cohort
from chiasm.datasets.synthetic import write_hospital
from meds import DataSchema, LabelSchema, SubjectSplitSchema

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    """A working directory with the folder that the example reads."""
    write_hospital(tmp_path / "hospital", patients=60, seed=1, image_size=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_api_example_runs_as_printed_but_for_weights_that_need_a_hub(hospital, capsys):
    example = PYTHON_BLOCKS[0]
    # No hub in tests: small networks at random take the place of published weights.
    offline = {
        'ImageEncoder("resnet50", pretrained=True)': 'ImageEncoder("test_resnet", size=64)',
        'NoteEncoder("emilyalsentzer/Bio_ClinicalBERT")': "NoteEncoder()",
        "epochs=20": "epochs=1",
    }
    for published, small in offline.items():
        assert example.count(published) == 1
        example = example.replace(published, small)
    names: dict[str, object] = {}

    exec(compile(example, "README.md", "exec"), names)
    exec(compile(PYTHON_BLOCKS[1], "README.md", "exec"), names)

    assert "AUROC" in capsys.readouterr().out
    assert list(names["risks"].columns) == ["subject_id", "prediction_time", "outcome", "risk", "status"]
    assert len(names["risks"]) == len(names["test"])
    assert os.listdir(hospital / "icu-model")
    assert set(names["table"]["modality"]) == {"image", "labs", "notes", "static"}


def test_the_readme_names_every_command_and_every_recipe():
    from chiasm.recipes.__main__ import app
    from chiasm.recipes.recipe import BUILT_IN

    for command in app.registered_commands:
        assert f"`chiasm {command.callback.__name__}" in README
    for recipe in BUILT_IN:
        assert f"`{recipe}`" in README


def test_every_further_example_of_the_readme_stands_in_a_test_that_runs_it():
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    for example in PYTHON_BLOCKS[2:]:
        assert any(example in test for test in tests), example


def test_the_five_tables_read_as_they_are_shown(tmp_path):
    (listing,) = re.findall(r"```\n(outcomes\.csv .*?)```", README, re.DOTALL)
    columns = zip(*(re.split(r"\s{2,}", line) for line in listing.splitlines()), strict=True)
    for name, *rows in columns:
        (tmp_path / name).write_text("\n".join(rows))
    cohort = Cohort.read(tmp_path)
    assert cohort.outcome_kinds == {"died": "binary"}
    assert [event.value for k in (0, 1) for event in cohort.sample(k).labs] == pytest.approx([3.4, 1.1])


MEDS_EXAMPLE = """
from chiasm.datasets import Cohort

cohort = Cohort.read("meds/", history=48)
print(cohort.outcome_kinds, cohort.attrition)
train, valid, test = cohort.split_by_table()  # by metadata/subject_splits.parquet
"""


def test_the_meds_example_reads_what_another_tool_wrote(tmp_path, monkeypatch, capsys):
    patients, asked = list(range(1, 7)), datetime(2031, 5, 17, 8)
    event = {"code": "LAB//lactate", "time": asked - timedelta(hours=3), "text_value": None}
    events = [event | {"subject_id": patient, "numeric_value": 1.0 + patient} for patient in patients]
    labels = {"subject_id": patients, "prediction_time": [asked] * 6, "boolean_value": [True, False] * 3}
    splits = {"subject_id": patients, "split": ["train"] * 3 + ["tuning"] + ["held_out"] * 2}
    times = pa.array(labels["prediction_time"], pa.timestamp("us"))
    for path, table, schema in (
        ("data/train/0.parquet", pa.Table.from_pylist(events, schema=DataSchema.schema()), DataSchema),
        ("labels/mortality.parquet", pa.table(labels | {"prediction_time": times}), LabelSchema),
        ("metadata/subject_splits.parquet", pa.table(splits), SubjectSplitSchema),
    ):
        schema.validate(table)
        (tmp_path / "meds" / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "meds" / path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(MEDS_EXAMPLE, "README.md", "exec"), names)
    assert "{'mortality': 'binary'}" in capsys.readouterr().out
    assert [len(names[part]) for part in ("train", "valid", "test")] == [3, 1, 2]
    assert [event.code for event in names["test"].sample(0).labs] == ["LAB//lactate"]
