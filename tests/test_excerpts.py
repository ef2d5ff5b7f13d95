"""Event tables read piece by piece: nothing is seen, refused or counted otherwise than of whole tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.datasets import pieces as pieces_
from chiasm.datasets.files import read_table

NOW = pd.Timestamp("2031-05-17 08:00")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces_, "PIECE_ROWS", 7)
    monkeypatch.setattr(pieces_, "_BLOCK_BYTES", 512)
    monkeypatch.setattr(pieces_, "_DECODED_BYTES", 50)


def drawn(seed: int, ids: list) -> dict[str, pd.DataFrame]:
    """Tables in no order, of patients with several predictions, some of whom are not asked about."""
    random = np.random.default_rng(seed)
    asked = [*ids[:4], ids[0], ids[1]]
    hours = pd.to_timedelta([0, 5, -40, 300, 30, 6], "h")
    outcomes = pd.DataFrame({"subject_id": asked, "prediction_time": NOW + hours, "died": [0, 1] * 3})
    count = 60
    labs = pd.DataFrame({"subject_id": random.choice(np.array(ids, object), count)}).infer_objects()
    labs["time"] = NOW + pd.to_timedelta(random.integers(-60, 60, count), "h")
    late = pd.to_timedelta(random.integers(-3, 20, count), "h")
    labs["available_at"] = (labs["time"] + late).where(random.random(count) < 0.7)
    labs["code"] = random.choice(["pH", "HR", " K ", "NA"], count)
    labs["value"], labs["unit"] = random.normal(size=count), random.choice(["mmol/L", None], count)
    labs["note"] = "ignored"
    notes = labs[["subject_id", "time"]].assign(text=[f"said\n{k}" for k in range(count)], kind=labs["unit"])
    images = labs[["subject_id", "time", "available_at"]].assign(path=[f"/{k}.png" for k in range(count)])
    return {"outcomes": outcomes, "labs": labs, "notes": notes, "images": images}


def write(folder: Path, tables: dict[str, pd.DataFrame], kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        if kind == "csv":
            table.to_csv(folder / f"{name}.csv", index=False)
        else:
            table.to_parquet(folder / f"{name}.parquet", index=False, row_group_size=11)
    return folder


def seen(cohort: Cohort) -> str:
    return repr([cohort.sample(position) for position in range(len(cohort))])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("history", [None, 24.5])
@pytest.mark.parametrize(("seed", "ids"), [(0, [1, 2, 3, 4, 5, 6]), (1, ["007", "9", "b", "é", "x", "8"])])
def test_samples_see_of_a_folder_what_they_see_of_whole_tables(tmp_path, seed, ids, history, kind):
    tables = drawn(seed, ids)
    read = Cohort.read(write(tmp_path, tables, kind), history=history)
    assert seen(read) == seen(Cohort(**tables, history=history))
    if history is not None:
        assert {*read.window("labs").rows} == {*range(len(read.labs))}


@pytest.mark.parametrize("others", ["b", "007"])
def test_ids_are_text_where_one_of_a_patient_of_whom_nothing_is_asked_is(tmp_path, others):
    tables = drawn(2, [1, 2, 3, 4, 5, 6])
    tables["labs"] = tables["labs"].astype({"subject_id": "str"})
    tables["labs"].loc[50:, "subject_id"] = others
    read = Cohort.read(write(tmp_path, tables, "csv"), history=5)
    assert read.outcomes["subject_id"].tolist() == ["1", "1", "2", "2", "3", "4"]
    assert seen(read) == seen(Cohort(**tables, history=5))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_that_cannot_be_used_are_the_same_as_of_whole_tables(tmp_path, kind):
    tables = drawn(3, [1, 2, 3, 4, 5, 6])
    labs = tables["labs"].astype({"value": "str", "time": "str"})
    labs.loc[[3, 44], "value"], labs.loc[[4, 58], "time"], labs.loc[9, "code"] = "high", "soon", None
    labs.loc[[10, 33], "value"] = "1e300"
    # Of a patient of whom nothing is asked, too.
    labs.loc[3, "subject_id"] = 6
    tables["labs"] = labs
    write(tmp_path, tables, kind)
    whole = Cohort(**tables, invalid="exclude", history=5)
    read = Cohort.read(tmp_path, invalid="exclude", history=5)
    assert [one.row for one in whole.exclusions] == [4, 5, 10, 11, 34, 45, 59]
    assert read.exclusions == whole.exclusions
    assert seen(read) == seen(whole)
    with pytest.raises(InputError) as told:
        Cohort(**tables)
    with pytest.raises(InputError) as said:
        Cohort.read(tmp_path)
    assert str(said.value) == f"{tmp_path}: {told.value}"


def test_rows_without_a_patient_are_refused_wherever_they_stand(tmp_path):
    tables = drawn(4, [1, 2, 3, 4, 5, 6])
    tables["labs"]["subject_id"] = tables["labs"]["subject_id"].astype("Int64")
    tables["labs"].loc[[20, 40], "subject_id"] = pd.NA
    with pytest.raises(InputError, match=r"labs, data row 21 \(and 1 more such rows\): subject_id is blank"):
        Cohort.read(write(tmp_path, tables, "csv"))
    read = Cohort.read(write(tmp_path, tables, "csv"), invalid="exclude")
    assert [(one.table, one.row) for one in read.exclusions] == [("labs", 21), ("labs", 41)]


@pytest.mark.parametrize("history", [None, 5])
def test_tables_of_other_patients_alone_are_refused(tmp_path, history):
    tables = drawn(5, [1, 2, 3, 4, 5, 6])
    tables["labs"]["subject_id"] += 100
    with pytest.raises(InputError, match="No subject_id of labs stands in outcomes"):
        Cohort.read(write(tmp_path, tables, "csv"), history=history)


def test_times_with_and_without_a_zone_are_not_compared_across_pieces_and_tables(tmp_path):
    tables = drawn(6, [1, 2, 3, 4, 5, 6])
    zoned = tables["labs"]["time"].astype("str") + "Z"
    # From a row on with which a piece begins.
    local = tables["labs"]["time"].astype("str").where(np.arange(60) < 35, zoned)
    with pytest.raises(InputError, match=r"labs\.time mixes times with a zone and without, which cannot be ordered"):
        Cohort.read(write(tmp_path / "mixed", tables | {"labs": tables["labs"].assign(time=local)}, "parquet"))
    labs = tables["labs"].drop(columns="available_at").assign(time=zoned)
    with pytest.raises(InputError, match=r"labs\.time has time zones and outcomes\.prediction_time has none"):
        Cohort.read(write(tmp_path, tables | {"labs": labs}, "csv"))
    tables["outcomes"]["prediction_time"] = tables["outcomes"]["prediction_time"].dt.tz_localize("UTC")
    own = {"outcomes": tables["outcomes"], "labs": labs}
    assert seen(Cohort.read(write(tmp_path / "zoned", own, "csv"), history=5)) == seen(Cohort(**own, history=5))


def test_a_quotation_mark_that_swallows_rows_is_found_in_any_piece(tmp_path):
    write(tmp_path, drawn(7, [1, 2, 3, 4, 5, 6]), "csv")
    path = tmp_path / "labs.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], '1,2031-05-17 08:00,,pH,1,,"x\n']))
    with pytest.raises(InputError, match=r"labs.csv has a quotation mark that is never closed"):
        Cohort.read(tmp_path)
    path.write_text("".join([*lines[:40], "1,2\n", *lines[40:]]))
    with pytest.raises(InputError, match=r"labs.csv, data row 40: 2 cells, but the first line names 7 columns"):
        Cohort.read(tmp_path)
    data = "".join(lines).encode()
    path.write_bytes(data[:1500] + b"\xe9" + data[1500:])
    with pytest.raises(InputError, match=r"labs.csv is not UTF-8 \(byte 1500\)"):
        Cohort.read(tmp_path)


def test_a_character_between_two_reads_of_a_file_is_whole(tmp_path):
    table = pd.DataFrame({"text": ["é漢🩺" * 41] * 40})
    table.to_csv(tmp_path / "some.csv", index=False)
    assert read_table(tmp_path / "some.csv")["text"].tolist() == table["text"].tolist()
    (tmp_path / "some.csv").write_bytes(b"text\n" + "é".encode()[:1])
    with pytest.raises(InputError, match=r"some.csv is not UTF-8 \(byte 5\)"):
        read_table(tmp_path / "some.csv")


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "outcomes.parquet"
    pq.write_table(pa.table({"subject_id": np.zeros(3_000_000, np.int8)}), path)
    with pytest.raises(InputError, match=r"outcomes.parquet says that it has 3000000 rows, in \d+ bytes"):
        Cohort.read(tmp_path)
    pq.write_table(pa.table({"subject_id": ["x" * 70_000_000]}), path, compression="zstd")
    with pytest.raises(InputError, match=r"outcomes.parquet says that its \d+ bytes become \d+. Write it anew"):
        Cohort.read(tmp_path)


def test_texts_of_a_parquet_file_that_are_no_utf_8_are_refused(tmp_path):
    write(tmp_path, drawn(8, [1, 2, 3, 4, 5, 6]), "csv")
    for name, texts in {"labs": ["mmol/L"], "notes": ["Quill"]}.items():
        (tmp_path / f"{name}.csv").unlink()
        table = pa.table(
            {"subject_id": [1], "time": [NOW], "code": ["K"], "value": [1.0], "unit": texts, "text": texts}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="none", use_dictionary=False)
        data = (tmp_path / f"{name}.parquet").read_bytes()
        (tmp_path / f"{name}.parquet").write_bytes(data.replace(texts[0].encode(), b"\xff" * len(texts[0])))
        with pytest.raises(InputError, match=rf"{name}.parquet cannot be read as a parquet file"):
            Cohort.read(tmp_path)
        (tmp_path / f"{name}.parquet").unlink()


def test_a_first_line_of_a_patient_is_not_shown(tmp_path):
    (tmp_path / "outcomes.csv").write_text("17,2031-05-17,Quill\n18,2031-05-18,x\n")
    with pytest.raises(InputError, match=r"outcomes lacks the columns .*; it has 3 others, if these are names") as told:
        Cohort.read(tmp_path)
    assert "Quill" not in str(told.value)
