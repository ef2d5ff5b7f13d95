"""`chiasm audit`: what it reads, prints and writes, and how it ends."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import Cohort, audit_links
from chiasm.recipes.__main__ import main

from .hospital_tables import Tables, clean_tables, divided, write_pictures

RECIPE = """
from dataclasses import dataclass
from chiasm.datasets import Cohort
from chiasm.recipes.recipe import Card

CARD = Card(outcome="died", data="tables", cost="none", score="none")

@dataclass(frozen=True)
class Settings:
    seed: int = 0

def read(data, settings):
    return Cohort.read(data)

def divide(cohort, settings):
    return cohort.split((0.6, 0.2, 0.2), seed=settings.seed)

def model(cohort, settings):
    raise NotImplementedError

def training(settings):
    return {}

def sources(data, cohort):
    return {"ward": ["A" if died else "B" for died in cohort.outcomes["died"]]}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Tables:
    """Clean tables of forty patients."""
    pictures = write_pictures(tmp_path_factory.mktemp("pictures"), 40)
    return clean_tables(pictures, patients=40)


@pytest.fixture
def tables(whole) -> Tables:
    return {name: rows.copy() for name, rows in whole.items()}


def write(folder: Path, tables: Tables, split: pd.DataFrame | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        rows.to_csv(folder / f"{name}.csv", index=False)
    if split is not None:
        split.to_csv(folder / "splits.csv", index=False)
    return folder


def chiasm_audit(*words: object) -> int:
    """Run the command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chiasm", "audit", *map(str, words)])
        patch.delenv("CHIASM_VERBOSE", raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def findings(folder: Path, *words: object, code: int = 0) -> dict[str, dict]:
    """What an audit of a folder writes as JSON, by check."""
    out = folder.parent / "audit.json"
    assert chiasm_audit(folder, "--json", out, *words) == code
    return {finding["check"]: finding for finding in json.loads(out.read_text())["findings"]}


# How it ends, what it prints and writes


def test_clean_data_end_with_nothing_grave_and_exit_code_0(tables, tmp_path, capsys):
    found = findings(write(tmp_path / "data", tables, divided(tables)))
    assert {finding["severity"] for finding in found.values()} == {"note"}
    printed = capsys.readouterr().out
    assert "40 patients, 40 samples, parts train, held_out" in printed
    assert "Rows are those of the cohort's tables, counted from 1: cohort.notes.iloc[row - 1]." in printed


def test_the_tables_whose_rows_are_listed_are_named_last(tables, tmp_path, capsys):
    tables["labs"].loc[:2, "time"] = "1890-01-01"
    findings(write(tmp_path / "data", tables))
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "Rows are those of the cohort's tables, counted from 1: cohort.labs.iloc[row - 1], cohort.notes" in printed
    assert "cohort.images" not in printed
    assert "rows of the files" not in printed
    tables["labs"].loc[4, "value"] = np.nan
    findings(write(tmp_path / "data", tables))
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "Of rows that are refused they are rows of the files, counted from 1" in printed


def test_what_invalidates_a_result_ends_in_exit_code_1_and_stands_in_table_and_json(tables, tmp_path, capsys):
    split = divided(tables)
    split = pd.concat([split, split.head(3).assign(split=split["split"].iloc[0][::-1])])
    found = findings(write(tmp_path / "data", tables, split), code=1)["patients in two parts"]
    assert found["severity"] == "invalidates"
    assert found["count"] == 3
    assert len(found["where"]["rows"]) == 3
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["invalidates"] is True
    assert len(told["checked"]) + len(told["not_checked"]) > 15
    printed = capsys.readouterr().out
    for word in ("invalidates", "patients in two", "outcomes.subject_id", "→ Divide by patient"):
        assert word in printed
    shown = printed + json.dumps(told)
    assert not [who for who in tables["outcomes"]["subject_id"] if who in shown]
    assert not [text for text in tables["notes"]["text"] if text in shown]


def test_what_cannot_be_looked_at_is_told(tables, tmp_path, capsys):
    del tables["images"], tables["labs"]
    assert chiasm_audit(write(tmp_path / "data", tables)) == 0
    printed = capsys.readouterr().out
    assert "not checked: the division: patients in two parts, or in none (no division was given)" in printed
    assert "not checked: units (there are no labs)" in printed


def test_one_patient_is_audited_and_nothing_is_said_of_what_predicts(tables, tmp_path, capsys):
    one = tables["outcomes"]["subject_id"].iloc[0]
    own = {name: rows[rows["subject_id"] == one] for name, rows in tables.items()}
    assert chiasm_audit(write(tmp_path / "data", own)) == 0
    assert "too few patients with, or without, the outcome" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("{tmp}/nowhere",), "There is no folder .*nowhere. Check the path"),
        (("{tmp}/data/labs.csv",), "There is no folder .*labs.csv"),
        (("{tmp}",), "has neither outcomes.csv nor outcomes.parquet, nor MEDS's data/ and metadata/"),
        (("{tmp}/data", "--set", "seed=1"), "--set is for the settings of a recipe"),
        (("{tmp}/data", "--json", "{tmp}"), "is a folder. Give --json the path of a file"),
        (("{tmp}/data", "--json", "{tmp}/no/audit.json"), "There is no folder .*no for audit.json"),
        (("{tmp}/data", "--recipe", "no-such"), "There is no recipe 'no-such'"),
    ],
)
def test_a_command_that_cannot_be_followed_ends_in_one_line(words, told, tables, tmp_path, capsys):
    write(tmp_path / "data", {"outcomes": tables["outcomes"], "labs": tables["labs"]})
    assert chiasm_audit(*(word.replace("{tmp}", str(tmp_path)) for word in words)) == 2
    assert_one_line(capsys, told)


def assert_one_line(capsys, told: str) -> None:
    errors = capsys.readouterr().err.strip()
    assert len(errors.splitlines()) == 1
    with pytest.raises(ValueError, match=told):
        raise ValueError(errors)


def without_column(rows: pd.DataFrame) -> str:
    return rows.drop(columns="subject_id").to_csv(index=False)


def column_twice(rows: pd.DataFrame) -> str:
    return pd.concat([rows, rows[["subject_id"]]], axis=1).to_csv(index=False)


BROKEN = {
    "of nothing": (lambda _: "", "is empty"),
    "of bytes": (lambda _: b"\xff\xfe\x00\x01", "is not UTF-8"),
    "without subject_id": (without_column, "lacks the column subject_id"),
    "with a column twice": (column_twice, "has the column subject_id twice"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("table", ["outcomes", "labs", "notes", "images", "static"])
def test_a_table_that_cannot_be_used_at_all_ends_in_one_line(table, how, tables, tmp_path, capsys):
    broken, told = BROKEN[how]
    folder = write(tmp_path / "data", tables)
    text = broken(tables[table])
    (folder / f"{table}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert chiasm_audit(folder) == 2
    assert_one_line(capsys, told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda split: split.assign(subject_id="nobody"), "names none of the cohort's patients"),
        (lambda split: split.assign(split=None), "The split table names no part"),
        (lambda split: split.rename(columns={"split": "fold"}), "splits.csv: The split table lacks the column split"),
    ],
)
def test_a_table_of_splits_that_divides_nothing_ends_in_one_line(change, told, tables, tmp_path, capsys):
    folder = write(tmp_path / "data", {"outcomes": tables["outcomes"]}, change(divided(tables)))
    assert chiasm_audit(folder) == 2
    assert_one_line(capsys, told)


# What a cohort would refuse is a finding


def test_rows_that_repeat_or_contradict_are_found_and_the_first_is_kept(tables, tmp_path):
    again = tables["static"].head(2).assign(weight=[1.0, 2.0])
    tables["static"] = pd.concat([tables["static"], again])
    tables["outcomes"] = pd.concat([tables["outcomes"], tables["outcomes"].head(3)])
    found = findings(write(tmp_path / "data", tables))
    assert (found["patients twice"]["count"], found["samples twice"]["count"]) == (2, 3)
    assert "2 further rows of static against the first" in found["patients twice"]["what"]
    assert "3 further rows of outcomes like the first" in found["samples twice"]["what"]
    assert found["patients twice"]["where"]["rows"] == [[len(tables["static"]) - 1], [len(tables["static"])]]


def test_rows_that_a_cohort_refuses_are_counted_and_mislead_where_they_are_many(tables, tmp_path):
    tables["labs"] = tables["labs"].astype({"value": object})
    tables["labs"].loc[3, "value"] = "haemolysed"
    tables["notes"].loc[: len(tables["notes"]) // 2, "text"] = ""
    out = tmp_path / "audit.json"
    assert chiasm_audit(write(tmp_path / "data", tables), "--json", out) == 0
    refused = [one for one in json.loads(out.read_text())["findings"] if one["check"] == "rows that are refused"]
    assert {(one["where"]["table"], one["severity"]) for one in refused} == {("labs", "note"), ("notes", "misleads")}
    assert "haemolysed" not in out.read_text()


def test_dates_of_birth_and_death_are_no_facts_and_tell_what_cannot_be(tables, tmp_path):
    first = tables["labs"].groupby("subject_id")["time"].min().dt.normalize()
    who = tables["static"]["subject_id"]
    tables["static"]["date_of_birth"] = (who.map(first) - pd.Timedelta(days=20_000)).dt.date
    tables["static"]["date_of_death"] = None
    tables["static"].loc[5, "date_of_death"] = who.map(first)[5] - pd.Timedelta(days=3)
    tables["static"].loc[6, "date_of_birth"] = who.map(first)[6] + pd.Timedelta(days=1)
    found = findings(write(tmp_path / "data", tables))
    assert found["dates that are no input"]["severity"] == "note"
    assert {"events before birth", "events after death", "predictions after death"} <= set(found)
    assert found["predictions after death"]["count"] == 1


def test_dates_as_people_write_them_are_no_facts_either(tables, tmp_path):
    tables["static"]["died_on"] = None
    tables["static"].loc[[3, 5], "died_on"] = ["17.05.2031", "3.6.2031"]
    found = findings(write(tmp_path / "data", tables))
    assert found["dates that are no input"]["count"] == 2
    assert found["dates that are no input"]["where"]["column"] == "died_on"


def test_images_that_cannot_be_read_are_found_without_their_paths(tables, tmp_path, capsys):
    images = tables["images"]
    (tmp_path / "cut.png").write_bytes(Path(images["path"][0]).read_bytes()[:200])
    images["path"] = images["path"].astype(object)
    images.loc[:3, "path"] = [str(tmp_path / "cut.png"), "gone.png", str(tmp_path), np.nan]
    found = findings(write(tmp_path / "data", tables))
    assert found["unreadable images"]["count"] == 3
    assert found["unreadable images"]["severity"] == "misleads"
    assert "cut.png" not in capsys.readouterr().out


def test_an_image_of_an_unknown_protocol_ends_in_one_line(tables, tmp_path, capsys):
    tables["images"].loc[0, "path"] = "nope://bucket/image.png"
    assert chiasm_audit(write(tmp_path / "data", tables)) == 2
    assert_one_line(capsys, "nope:// is no protocol that fsspec knows")


def test_ids_that_are_numbers_are_those_of_the_splits(tables, tmp_path):
    numbers = {name: rows.assign(subject_id=rows["subject_id"].str[1:].astype(int)) for name, rows in tables.items()}
    folder = write(tmp_path / "data", numbers)
    split = divided(numbers).assign(split="train").iloc[:-4]
    split.astype({"subject_id": float}).to_parquet(folder / "splits.parquet")
    assert findings(folder)["patients in no part"]["count"] == 4


# MEDS and recipes


def test_deaths_that_a_meds_dataset_states_are_known(tables, tmp_path):
    folder = tmp_path / "meds"
    Cohort(**tables).write(folder)
    (shard,) = (folder / "data").rglob("*.parquet")
    events = pq.read_table(shard).to_pandas()
    subject = events["subject_id"].iloc[-1]
    before = events["time"].min() - pd.Timedelta(days=9)
    death = {"subject_id": [subject], "time": [before], "code": ["MEDS_DEATH"]}
    schema = pq.read_schema(shard)
    added = pd.concat([events, pd.DataFrame(death)]).sort_values(["subject_id", "time"], na_position="first")
    pq.write_table(pa.Table.from_pandas(added, schema=schema, preserve_index=False), shard)
    assert "predictions after death" in findings(folder)


def test_a_recipe_is_audited_as_it_reads_and_divides_with_its_sources(tables, tmp_path, capsys):
    (tmp_path / "own.py").write_text(RECIPE)
    folder = write(tmp_path / "data", {name: tables[name] for name in ("outcomes", "labs")})
    found = findings(folder, "--recipe", tmp_path / "own.py", "--set", "seed=3", code=1)
    assert found["source predicts"]["where"]["column"] == "ward"
    assert "parts train, valid, held out" in capsys.readouterr().out


def test_headers_are_compared_with_ids_where_that_is_asked_for(tables, tmp_path, monkeypatch):
    asked = []

    def conflicts(_: pd.DataFrame, *, same_identifiers: bool) -> tuple:
        asked.append(same_identifiers)
        return ()

    monkeypatch.setattr(audit_links, "patient_conflicts", conflicts)
    folder = write(tmp_path / "data", {name: tables[name] for name in ("outcomes", "images")})
    assert chiasm_audit(folder) == 0
    assert chiasm_audit(folder, "--same-identifiers") == 0
    assert asked == [False, True]
