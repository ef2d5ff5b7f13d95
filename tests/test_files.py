"""Folders of tables: what is understood, and what would silently become another cohort and is refused."""

import csv
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.audit_reading import open_folder
from chiasm.datasets.checks import Exclusion
from chiasm.datasets.files import read_table
from chiasm.datasets.pieces import pieces
from chiasm.datasets.quotation import Quotation
from hypothesis import given, settings
from hypothesis import strategies as st

OUTCOMES = "subject_id,prediction_time,died\n007,2031-05-17 08:00,0\n8,2031-05-17 08:00,1\n"
LABS = "subject_id,time,code,value,unit\n007,2031-05-17 07:00,NA,140,mmol/L\n007,2031-05-17 06:00,null,7.4,\n"
NOTES = 'subject_id,time,text\n8,2031-05-17 07:00,"NA, said she ""no""\nand slept"\n8,2031-05-17 07:30,None\n'
IMAGES = "subject_id,time,path,view\n8,2031-05-17 07:00,films/a.png,PA\n8,2031-05-17 07:00,/archive/b.dcm,\n"
STATIC = "subject_id,age,sex\n007,81,f\n8,,m\n"
FILES = {"outcomes": OUTCOMES, "labs": LABS, "notes": NOTES, "images": IMAGES, "static": STATIC}


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def assert_read(cohort: Cohort, folder: Path) -> None:
    assert cohort.outcomes["subject_id"].tolist() == ["007", "8"]
    assert cohort.outcomes["died"].tolist() == [0, 1]
    assert [(lab.code, lab.value, lab.unit) for lab in cohort.sample(0).labs] == [
        ("null", float(pd.Series([7.4], dtype="float32")[0]), None),
        ("NA", 140.0, "mmol/L"),
    ]
    assert [note.text for note in cohort.sample(1).notes] == ['NA, said she "no"\nand slept', "None"]
    assert [(image.path, image.view) for image in cohort.sample(1).images] == [
        ("/archive/b.dcm", None),
        (str(folder.resolve() / "films/a.png"), "PA"),
    ]
    assert dict(cohort.sample(0).static) == {"age": 81.0, "sex": "f"}
    assert dict(cohort.sample(1).static) == {"sex": "m"}


def test_a_folder_of_csv_files_is_a_cohort(tmp_path):
    assert_read(Cohort.read(write(tmp_path, **FILES)), tmp_path)


def test_a_folder_of_parquet_files_is_the_same_cohort(tmp_path):
    write(tmp_path, **FILES)
    for path in list(tmp_path.glob("*.csv")):
        read_table(path).to_parquet(path.with_suffix(".parquet"))
        path.unlink()
    assert_read(Cohort.read(str(tmp_path)), tmp_path)


def test_line_ends_and_byte_order_marks_of_windows_change_nothing(tmp_path):
    for name, content in FILES.items():
        quoted = content.replace("\nand slept", "~").replace("\n", "\r\n").replace("~", "\nand slept")
        write(tmp_path, **{name: quoted.encode("utf-8-sig")})
    assert_read(Cohort.read(tmp_path), tmp_path)


def test_blank_lines_and_a_missing_last_line_end_change_nothing(tmp_path):
    write(
        tmp_path,
        **{name: "\n" + content.replace("\n", "\n\n", 1).removesuffix("\n") for name, content in FILES.items()},
    )
    assert_read(Cohort.read(tmp_path), tmp_path)


def test_a_table_may_have_a_first_line_alone_with_or_without_its_end(tmp_path):
    for end in ("", "\n", "\r\n"):
        cohort = Cohort.read(write(tmp_path, outcomes=OUTCOMES, labs=LABS.splitlines()[0] + end))
        assert cohort.modalities == ()


@pytest.mark.parametrize(("of_outcomes", "of_labs"), [("8", "008"), ("008", "8"), ("8", "8.0"), ("08", "8")])
def test_a_patient_s_number_is_written_in_one_way_in_all_files(tmp_path, of_outcomes, of_labs):
    outcomes = OUTCOMES.replace("\n8,", f"\n{of_outcomes},")
    labs = f"{LABS}{of_labs},2031-05-17 07:00,NA,140,mmol/L\n"
    with pytest.raises(InputError, match=r"labs\.subject_id writes a number otherwise than it stands elsewhere"):
        Cohort.read(write(tmp_path, outcomes=outcomes, labs=labs))


@pytest.mark.parametrize("of_outcomes", ["8", "P8"])
def test_how_others_than_the_patients_are_numbered_is_not_asked(tmp_path, of_outcomes):
    """Laboratories keep tests under 0, 00 and 000."""
    outcomes = OUTCOMES.replace("\n007,", "\n7,").replace("\n8,", f"\n{of_outcomes},")
    rest = "0,2031-05-17 07:00,NA,140,\n00,2031-05-17 07:00,NA,140,\n"
    cohort = Cohort.read(write(tmp_path, outcomes=outcomes, labs=LABS.replace("\n007,", "\n7,") + rest))
    assert len(cohort.labs) == LABS.count("\n") - 1
    given = {name: read_table(tmp_path / f"{name}.csv") for name in ("outcomes", "labs")}
    assert len(Cohort(given.pop("outcomes"), **given).labs) == len(cohort.labs)


def test_settings_of_a_cohort_may_be_given(tmp_path):
    write(tmp_path, **FILES | {"labs": LABS + "007,never,Na,1,\n"})
    cohort = Cohort.read(tmp_path, history=1, invalid="exclude", outcome_kinds={"died": "continuous"})
    assert cohort.outcome_kinds == {"died": "continuous"}
    assert [(e.table, e.row) for e in cohort.exclusions] == [("labs", 3)]
    assert len(cohort.sample(0).labs) == 1


def test_a_large_table_is_read_whole(tmp_path):
    rows = "".join(f"8,2031-05-17 07:00,{'word ' * 400_000}{k}\n" for k in range(4))
    cohort = Cohort.read(write(tmp_path, outcomes=OUTCOMES, notes="subject_id,time,text\n" + rows))
    assert [len(note.text) for note in cohort.sample(1).notes] == [2_000_001] * 4


def test_a_row_that_the_reader_cannot_take_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.datasets.pieces._BLOCK_BYTES", 64)
    table = "subject_id,time,text\n8,2031-05-17 07:00," + "Quill " * 99
    with pytest.raises(InputError, match=r"notes.csv cannot be read as a csv file. Write it anew"):
        Cohort.read(write(tmp_path, outcomes=OUTCOMES, notes=table))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_cell_longer_than_any_note_is_refused_by_its_place(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("chiasm.datasets.pieces.LONGEST_TEXT", 100)
    monkeypatch.setattr("chiasm.datasets.pieces.PIECE_ROWS", 3)
    write(tmp_path, outcomes=OUTCOMES)
    longest = pd.Series(["é" * 50, "a", "x" * 99, "b", "é" * 51, "c"])
    table = pa.table({"subject_id": ["8"] * 6, "time": ["2031-05-17"] * 6, "text": pa.array(longest).cast(kind)})
    pq.write_table(table, tmp_path / "notes.parquet")
    with pytest.raises(InputError, match=r"notes.parquet, data row 5: text has a text of 102 bytes, and the most for"):
        Cohort.read(tmp_path)
    static = table.drop_columns("time").slice(2)
    pq.write_table(static, tmp_path / "static.parquet")
    with pytest.raises(InputError, match=r"static.parquet, data row 3: text has a text of 102 bytes.* remove the row"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False}, {"row_group_size": 700}], ids=str)
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("different", [3, 5000])
def test_a_piece_of_a_parquet_file_has_few_bytes_however_long_its_texts(
    tmp_path, monkeypatch, settings, kind, different
):
    monkeypatch.setattr("chiasm.datasets.pieces.PIECE_BYTES", 100_000)
    texts = [f"{k % different:05d}" * 60 for k in range(5000)]
    path = tmp_path / "notes.parquet"
    pq.write_table(pa.table({"row": np.arange(5000), "text": pa.array(texts).cast(kind)}), path, **settings)
    read = list(pieces(path))
    assert max(piece.cast(pa.schema([("row", pa.int64()), ("text", pa.string())])).nbytes for piece in read) <= 120_000
    assert len(read) < 100
    assert pa.concat_tables([piece.select(["row"]) for piece in read])["row"].to_pylist() == list(range(5000))
    assert [text for piece in read for text in piece["text"].cast(pa.string()).to_pylist()] == texts


def test_a_cell_of_a_csv_file_longer_than_any_note_is_refused_by_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.datasets.pieces._BLOCK_BYTES", 300)
    monkeypatch.setattr("chiasm.datasets.pieces.LONGEST_TEXT", 100)
    rows = "".join(f"8,2031-05-17 07:00,{'x' * length}\n" for length in (100, 100, 100, 100, 101, 3))
    with pytest.raises(InputError, match=r"notes.csv, data row 5: text has a text of 101 bytes, and the most for one"):
        Cohort.read(write(tmp_path, outcomes=OUTCOMES, notes="subject_id,time,text\n" + rows))


def test_urls_of_images_stay_as_they_are(tmp_path):
    table = "subject_id,time,path\n8,2031-05-17 07:00,s3://bucket/a.png\n"
    assert Cohort.read(write(tmp_path, outcomes=OUTCOMES, images=table)).images["path"].tolist() == [
        "s3://bucket/a.png"
    ]


def test_a_blank_image_path_does_not_become_the_folder(tmp_path):
    table = "subject_id,time,path\n8,2031-05-17 07:00,\n"
    with pytest.raises(InputError, match="images, data row 1: path is blank"):
        Cohort.read(write(tmp_path, outcomes=OUTCOMES, images=table))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "outcomes.csv is empty. It needs a first line of column names"),
        (b"\r\n\n", "outcomes.csv is empty"),
        (
            OUTCOMES.replace("007", "Ren\xe9").encode("latin-1"),
            r"outcomes.csv is not UTF-8 \(byte \d+\). Save it as UTF-8",
        ),
        (OUTCOMES.encode("utf-16"), r"outcomes.csv is not UTF-8 \(byte 0\)"),
        (OUTCOMES.replace(",died", ",d\xe9c\xe9d\xe9").encode("latin-1"), "outcomes.csv is not UTF-8"),
        (OUTCOMES.encode() + b"\xef\n", rf"outcomes.csv is not UTF-8 \(byte {len(OUTCOMES)}\)"),
        ('"' + OUTCOMES, "outcomes.csv has a quotation mark that is never closed|cannot be read as a csv file"),
        (OUTCOMES + "Quill\n", r"outcomes.csv, data row 3: 1 cells, but the first line names 3 columns"),
        (OUTCOMES + "Quill,2031-05-17\n", "outcomes.csv, data row 3: 2 cells"),
        (OUTCOMES + "Quill,2031-05-17,1,\n", "outcomes.csv, data row 3: 4 cells"),
        (OUTCOMES.replace(",0\n", ",0,\n").replace(",1\n", ",1,\n"), "outcomes.csv, data row 1: 4 cells"),
        (OUTCOMES + '9,2031-05-17,"1\n10,2031-05-17,0\n', "outcomes.csv has a quotation mark that is never closed"),
        (
            OUTCOMES.replace(",", ";"),
            "outcomes.csv is not separated by commas",
        ),
        (OUTCOMES.replace("died", "subject_id"), "outcomes has the column subject_id twice"),
        ("," + OUTCOMES.replace("\n", "\n0,", 2), "outcomes has a column without a name .* index=False"),
        ("subject_id,prediction_time,died\n", "outcomes has no rows that can be used"),
    ],
)
def test_a_file_that_is_no_table_is_refused_without_its_content(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        Cohort.read(write(tmp_path, outcomes=content))
    assert "Quill" not in str(caught.value)


def test_outcomes_without_rows_are_told_before_whose_labs_there_are(tmp_path):
    header, labs = OUTCOMES.splitlines()[0] + "\n", "subject_id,time,code,value\n8,2031-05-17 07:00,HR,80\n"
    with pytest.raises(InputError, match=r"outcomes has no rows that can be used \(of 0\)"):
        Cohort.read(write(tmp_path, outcomes=header, labs=labs))


def test_a_quotation_mark_inside_a_cell_is_a_character(tmp_path):
    table = "subject_id,time,text\n8,2031-05-17 07:00,5'10\" tall\n"
    assert Cohort.read(write(tmp_path, outcomes=OUTCOMES, notes=table)).notes["text"].tolist() == ["5'10\" tall"]


@pytest.mark.parametrize(
    "text",
    ['"open\n9,2031-05-17 07:00,x\n10,2031-05-17 07:00,"y', '"he said "no" to me"', '"open\n9,2031-05-17 07:00,y" z'],
)
def test_a_quotation_mark_that_is_not_closed_swallows_no_rows_up_to_the_next(tmp_path, text):
    notes = f"subject_id,time,text\n8,2031-05-17 07:00,{text}\n"
    with pytest.raises(
        InputError, match=r"notes\.csv, line [234]: a quotation mark ends a text that goes on, or one be"
    ):
        Cohort.read(write(tmp_path, outcomes=OUTCOMES, notes=notes))


@settings(max_examples=500)
@given(st.text('a",\n', max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_quotation_marks_are_those_of_csv_however_the_bytes_come(text, cuts):
    try:
        list(csv.reader(io.StringIO(text, newline=""), strict=True))
        well = True
    except csv.Error:
        well = False
    quotation, cuts = Quotation("notes.csv"), sorted([0, *cuts, len(text)])
    try:
        for start, end in itertools.pairwise(cuts):
            quotation.take(text[start:end].encode())
        quotation.end()
        assert well
    except InputError:
        assert not well


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_that_is_still_being_written_is_refused(tmp_path, ending):
    path = tmp_path / f"labs.{ending}"
    if ending == "csv":
        path.write_text(LABS)
    else:
        pd.read_csv(io.StringIO(LABS)).to_parquet(path)
    read = pieces(path)
    next(read)
    with path.open("ab") as file:
        file.write(b"8,2031-05-17 07:00,NA,140,mmol/L\n")
    with pytest.raises(InputError, match=rf"labs\.{ending} changed while it was read. Wait until it is written"):
        list(read)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        Cohort.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has neither outcomes.csv, outcomes.parquet nor MEDS's data/ and metadata/"):
        Cohort.read(tmp_path)
    with pytest.raises(InputError, match=r"There is no file .*labs.csv"):
        read_table(tmp_path / "labs.csv")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "lab.csv",
            "Labs.xlsx",
            "labs.tsv",
            "labs.csv.gz",
            "LABS.CSV.zip",
            "lbas.parquet",
            "laboratory.csv",
            "labss.csv",
        ),
        *("lab_results.csv", "labs (1).csv", "labs_2031.json", "notes.txt", "note.csv", "Image.csv", "statics.feather"),
    ],
)
def test_a_table_under_nearly_its_name_or_in_another_format_is_not_passed_over(tmp_path, name):
    (write(tmp_path, outcomes=OUTCOMES) / name).write_bytes(b"x")
    told = (
        rf"has no (labs|notes|images|static).csv or \1.parquet, but {re.escape(name)}, which is not read. If it is that"
    )
    with pytest.raises(InputError, match=told):
        Cohort.read(tmp_path)


@pytest.mark.parametrize("read", [Cohort.read, open_folder])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("person.csv", "measurement.csv", "note.csv"), 'looks like OMOP, .* read_omop\\(".*"\\).write'),
        (("PERSON.parquet", "VISIT_OCCURRENCE.parquet"), "looks like OMOP"),
        (("Patient.ndjson", "Observation.000.ndjson"), "looks like a bulk export of FHIR, .* chiasm.datasets.fhir"),
        (("patients.csv.gz", "labevents.csv.gz"), "looks like MIMIC-IV, .* read_mimic"),
        (("hosp/patients.csv.gz", "note/discharge.csv.gz"), "looks like MIMIC-IV, .* then chiasm audit mine"),
        (("files/mimiciv/3.1/hosp/patients.csv.gz",), "looks like MIMIC-IV"),
    ],
)
def test_a_folder_of_another_standard_is_told_with_what_reads_it(tmp_path, read, files, told):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=told):
        read(tmp_path)


def test_five_tables_among_files_of_another_standard_are_read(tmp_path):
    write(tmp_path, outcomes=OUTCOMES)
    for name in ("person.csv", "measurement.csv", "Patient.ndjson", "patients.csv"):
        (tmp_path / name).write_bytes(b"x")
    assert Cohort.read(tmp_path).subjects == open_folder(tmp_path).cohort.subjects


def test_outcomes_in_another_format_or_in_parts_are_named(tmp_path):
    (tmp_path / "outcomes.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has no outcomes.csv or outcomes.parquet, but outcomes.xlsx, which is not"):
        Cohort.read(tmp_path)
    (tmp_path / "outcomes.xlsx").unlink()
    (tmp_path / "outcomes.parquet").mkdir()
    with pytest.raises(InputError, match=r"but outcomes.parquet, which is not read. .* write it as one CSV or Parquet"):
        Cohort.read(tmp_path)


def test_files_that_are_something_else_and_copies_of_a_table_are_left_alone(tmp_path):
    write(tmp_path, **FILES)
    others = (
        "README.txt",
        "labels.csv",
        "truth.csv",
        "splits.csv",
        "labs.xlsx",
        "lab.csv",
        "hospital.json",
        ".labs.csv",
    )
    for name in (*others, "notes.md", "codes.csv", "~$static.xlsx"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "images").mkdir()
    assert_read(Cohort.read(tmp_path), tmp_path)
    bare = write(tmp_path / "bare", outcomes=OUTCOMES)
    for name in ("images", "notes"):
        (bare / name).mkdir()
    for name in (
        "~$labs.xlsx",
        "nodes.csv",
        "statins.csv",
        "slabs.png",
        "codes.csv",
        "labels.csv",
        "README.txt",
        "labs.md",
    ):
        (bare / name).write_bytes(b"x")
    assert Cohort.read(bare).modalities == ()


def test_a_table_that_stands_there_twice_is_refused(tmp_path):
    write(tmp_path, outcomes=OUTCOMES)
    read_table(tmp_path / "outcomes.csv").to_parquet(tmp_path / "outcomes.parquet")
    with pytest.raises(InputError, match=r"has both outcomes.parquet and outcomes.csv. Remove one of them"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"subject_id,died\n1,0\n"])
def test_a_broken_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "outcomes.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"outcomes.parquet cannot be read as a parquet file. Write it anew"):
        Cohort.read(tmp_path)


def test_doubled_columns_of_a_parquet_file_are_refused(tmp_path):
    day = pa.array(["2031-05-17"])
    table = pa.Table.from_arrays([pa.array([1]), day, day], names=["subject_id", "prediction_time", "prediction_time"])
    pq.write_table(table, tmp_path / "outcomes.parquet")
    with pytest.raises(InputError, match="outcomes has the column prediction_time twice"):
        Cohort.read(tmp_path)


def test_bytes_and_lists_of_a_parquet_file_do_not_become_notes(tmp_path):
    write(tmp_path, outcomes=OUTCOMES)
    for text in (b"fever", ["fever"]):
        pd.DataFrame({"subject_id": ["8"], "time": ["2031-05-17"], "text": [text]}).to_parquet(
            tmp_path / "notes.parquet"
        )
        with pytest.raises(InputError, match="notes, data row 1: text is neither text nor a number"):
            Cohort.read(tmp_path)
    (tmp_path / "notes.parquet").unlink()
    pd.DataFrame({"subject_id": ["8"], "time": ["2031-05-17"], "path": [["a", "b"]]}).to_parquet(
        tmp_path / "images.parquet"
    )
    with pytest.raises(InputError, match="images, data row 1: path is neither text nor a number"):
        Cohort.read(tmp_path)


def test_doubled_columns_of_an_event_table_are_refused_whatever_they_hold(tmp_path):
    write(tmp_path, outcomes=OUTCOMES)
    images = pa.table({"subject_id": ["8"], "time": ["2031-05-17"], "path": ["a.png"]})
    paths = pa.MapArray.from_arrays([0, 1], ["k"], [1])
    pq.write_table(images.append_column("path", paths), tmp_path / "images.parquet")
    with pytest.raises(InputError, match=r"images\.parquet has the column path twice. Rename or drop one of them"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_table_with_other_marks_than_commas_is_refused_by_what_it_lacks(tmp_path, mark):
    write(tmp_path, outcomes=OUTCOMES, labs=LABS.replace(",", mark))
    with pytest.raises(InputError, match=r"labs\.csv is not separated by commas. Save it with commas"):
        Cohort.read(tmp_path)


def test_a_table_of_which_no_column_is_known_says_how_columns_are_called(tmp_path):
    write(tmp_path, outcomes=OUTCOMES, labs=LABS.split("\n", 1)[1])
    with pytest.raises(InputError, match=r"labs\.csv names none of the columns .*value.*a line of these names"):
        Cohort.read(tmp_path)


@pytest.mark.parametrize("line", ["   ", ",", ' , "" ', "{commas}", " {commas} "])
@pytest.mark.parametrize("name", FILES)
def test_blank_lines_below_a_table_are_left_out_and_counted(tmp_path, name, line):
    commas = "," * FILES[name].split("\n", 1)[0].count(",")
    write(tmp_path, **FILES | {name: FILES[name] + 3 * (line.format(commas=commas) + "\n")})
    for invalid in ("raise", "exclude"):
        cohort = Cohort.read(tmp_path, invalid=invalid)
        assert cohort.exclusions == tuple(Exclusion(name, row, "the row is blank") for row in (3, 4, 5))
        assert_read(cohort, tmp_path)
    found = [one for one in open_folder(tmp_path).found if one.check == "rows that are refused"]
    assert [(one.severity, one.count, one.remedy[:8]) for one in found] == [("note", 3, "Nothing:")]


def test_a_blank_row_hides_no_other_that_is_wrong(tmp_path):
    blank = LABS + ",,,,\n"
    with pytest.raises(InputError, match=r"labs, data row 4: subject_id is blank. Every row must name its patient"):
        Cohort.read(write(tmp_path, **FILES | {"labs": blank + ",2031-05-17 07:00,NA,140,\n"}))
    with pytest.raises(InputError, match="No subject_id of labs stands in outcomes"):
        Cohort.read(write(tmp_path, **FILES | {"labs": blank.replace("007,", "9,")}))
    with pytest.raises(InputError, match="outcomes has no rows that can be used"):
        Cohort.read(write(tmp_path, outcomes=OUTCOMES.split("\n")[0] + "\n,,\n"))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("name", FILES)
def test_columns_in_upper_case_are_told_by_the_names_that_they_have(tmp_path, name, ending):
    first, rest = FILES[name].split("\n", 1)
    write(tmp_path, **{"outcomes": OUTCOMES, name: f"{first.upper()}\n{rest}"})
    if ending == "parquet":
        pd.read_csv(tmp_path / f"{name}.csv", dtype="str").to_parquet(tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").unlink()
    for read in (Cohort.read, open_folder):
        with pytest.raises(InputError, match=rf"{name} lacks .*; it has SUBJECT_ID.*which only case or blanks tell"):
            read(tmp_path)
