"""Mutated tables give a cohort of finite numbers or a refusal: no crash, hang, foreign exception or flood of memory.

By hand, `python -m tests.test_fuzz_tables 10000` reads so many mutants in one process and prints what came of them;
a second number is that of the first mutant, so that several processes may share the work.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.fhir import read_fhir
from chiasm.datasets.outcomes import encode_outcomes
from chiasm.datasets.physionet2012 import read_physionet2012

from .mutant_watch import Watch, by_hand

SECRET = "SECRET"
MOST_BYTES = 2**28
"""The largest that reading may take beside what was there before; the mutants have some kilobytes."""
MOST_SECONDS = 5
"""Of one processor, which other programs do not change."""
Files = dict[str, bytes]
"""A folder: the content of each file by its path."""


# Whole folders


def tables() -> dict[str, pd.DataFrame]:
    now, patients = pd.Timestamp("2031-05-17 08:00"), np.arange(1, 9)
    every = np.repeat(patients, 6)
    hours = pd.to_timedelta(np.tile([-30, -9.5, -3, -1, 0, 2], 8), "h")
    labs = pd.DataFrame({"subject_id": every, "time": now + hours, "code": np.tile(["pH", "NA", "HR"], 16)})
    labs = labs.assign(value=np.linspace(-2, 300, 48), unit=np.tile([None, "mmol/L"], 24))
    labs["available_at"] = (labs["time"] + pd.Timedelta("30min")).where(every % 2 == 0)
    text = [f'{SECRET}, said she\n"no" {number}' for number in range(8)]
    notes = pd.DataFrame({"subject_id": patients, "time": now - pd.Timedelta("2h"), "text": text, "kind": "ward"})
    images = pd.DataFrame({"subject_id": patients, "time": now - pd.Timedelta("1h"), "path": "films/a.png"})
    static = pd.DataFrame({"subject_id": patients, "age": patients * 9.5, "sex": ["f", "m"] * 4, "smokes": [True] * 8})
    outcomes = pd.DataFrame({"subject_id": patients, "prediction_time": now, "died": patients % 2})
    outcomes = outcomes.assign(stage=["mild", None, "severe", "mild"] * 2, days=patients / 4)
    images = images.assign(view="PA", study_uid="1.2.3")
    return {"outcomes": outcomes, "labs": labs, "notes": notes, "images": images, "static": static}


def csv_files() -> Files:
    return {f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables().items()}


def parquet(table: pa.Table, **settings: object) -> bytes:
    data = io.BytesIO()
    pq.write_table(table, data, **settings)
    return data.getvalue()


def parquet_files() -> Files:
    settings = {"outcomes": {}, "labs": {"row_group_size": 20, "compression": "zstd"}, "notes": {"compression": "gzip"}}
    settings |= {"images": {"use_dictionary": False, "data_page_version": "2.0"}, "static": {"compression": None}}
    own = {name: pa.Table.from_pandas(table, preserve_index=False) for name, table in tables().items()}
    return {f"{name}.parquet": parquet(table, **settings[name]) for name, table in own.items()}


def meds_files() -> Files:
    """As chiasm writes it."""
    with tempfile.TemporaryDirectory() as scratch:
        Cohort(**tables()).write(Path(scratch) / "dataset")
        return files_of(Path(scratch) / "dataset")


def foreign_meds_files() -> Files:
    """In shards, as others write it."""
    events, files = tables(), {}
    labs = events["labs"].rename(columns={"value": "numeric_value"}).drop(columns=["unit", "available_at"])
    notes = events["notes"].rename(columns={"text": "text_value"}).assign(code="NOTE//ward").drop(columns="kind")
    facts = events["static"][["subject_id"]].assign(time=pd.NaT, code="GENDER//F", numeric_value=None)
    whole = pd.concat([facts.astype({"time": "datetime64[us]"}), labs, notes]).astype({"numeric_value": "float32"})
    for shard in (0, 1):
        own = whole[whole["subject_id"] % 2 == shard].sort_values(["subject_id", "time"], na_position="first")
        files[f"data/train/{shard}.parquet"] = parquet(pa.Table.from_pandas(own, preserve_index=False))
    label = events["outcomes"][["subject_id", "prediction_time"]].assign(boolean_value=[True, False] * 4)
    files["labels/died.parquet"] = parquet(pa.Table.from_pandas(label, preserve_index=False))
    splits = pa.table({"subject_id": np.arange(1, 9), "split": ["train"] * 8})
    return files | {"metadata/subject_splits.parquet": parquet(splits)}


def ndjson_files() -> Files:
    lines = []
    coded = {"coding": [{"system": "http://loinc.org", "code": "2345-7"}], "text": SECRET}
    for patient in range(1, 5):
        subject = {"subject": {"reference": f"Patient/p{patient}"}}
        moment = {"effectiveDateTime": "2031-05-02T06:00:00Z", "issued": "2031-05-02T07:30:00Z", "status": "final"}
        lines += [{"resourceType": "Patient", "id": f"p{patient}", "gender": "female", "birthDate": "1960-07"}]
        left = {"hospitalization": {"dischargeDisposition": {"coding": [{"code": "exp" if patient == 1 else "home"}]}}}
        period = {"start": "2031-05-01T08:00:00Z", "end": "2031-05-09T12:00:00+02:00"}
        stay = {"resourceType": "Encounter", "id": f"e{patient}", "status": "finished", "class": {"code": "IMP"}}
        lines += [stay | subject | left | {"period": period}]
        for number, value in enumerate((5.5, 7)):
            result = {"resourceType": "Observation", "id": f"o{patient}-{number}", "code": coded} | subject | moment
            result["valueQuantity"] = {"value": value, "code": "mmol/L", "system": "http://unitsofmeasure.org"}
            part = {"code": {"text": "part"}, "valueCodeableConcept": coded}
            lines += [result | {"component": [part]} if number else result]
        text = {"contentType": "text/plain", "data": base64.b64encode(SECRET.encode()).decode()}
        report = {"resourceType": "DiagnosticReport", "id": f"r{patient}", "code": coded, "presentedForm": [text]}
        lines += [report | subject | moment]
        document = {"resourceType": "DocumentReference", "id": f"d{patient}", "status": "current", "type": coded}
        lines += [document | subject | {"date": "2031-05-01T10:00:00Z", "content": [{"attachment": text}]}]
        condition = {"resourceType": "Condition", "id": f"c{patient}", "recordedDate": "2031-05-01", "code": coded}
        lines += [condition | subject]
    half = len(lines) // 2
    own = [b"".join(json.dumps(line).encode() + b"\n" for line in some) for some in (lines[:half], lines[half:])]
    return {"a.ndjson": own[0], "b.ndjson.gz": gzip.compress(own[1], mtime=0)}


def series_files() -> Files:
    """As the PhysioNet challenge of 2012 was published."""
    head = "Time,Parameter,Value\n00:00,RecordID,{}\n00:00,Age,70\n00:00,Gender,1\n00:00,Height,-1\n00:00,Weight,80\n"
    rows = "00:07,HR,73\n10:30,pH,7.35\n47:55,Temp,36.6\n48:00,Weight,81.5\n"
    files = {f"set-a/{record}.txt": (head.format(record) + rows).encode() for record in (132539, 132540, 132541)}
    outcomes = "RecordID,SAPS-I,In-hospital_death\n132539,6,0\n132540,16,1\n132541,21,0\n"
    return files | {"Outcomes-a.txt": outcomes.encode()}


SOURCES: dict[str, tuple[Callable[[], Files], Callable[[Path], Cohort]]] = {
    "csv": (csv_files, lambda folder: Cohort.read(folder, history=24)),
    "csv, exclude": (csv_files, lambda folder: Cohort.read(folder, invalid="exclude")),
    "parquet": (parquet_files, lambda folder: Cohort.read(folder)),
    "parquet, exclude": (parquet_files, lambda folder: Cohort.read(folder, invalid="exclude", history=24)),
    "meds": (meds_files, lambda folder: Cohort.read(folder)),
    "meds of others": (foreign_meds_files, lambda folder: Cohort.read(folder, invalid="exclude", history=24)),
    "ndjson": (ndjson_files, lambda folder: read_fhir(folder)),
    "ndjson, exclude": (ndjson_files, lambda folder: read_fhir(folder, invalid="exclude", history=48)),
    "series": (series_files, lambda folder: read_physionet2012(folder)),
}


def files_of(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Mutations

WORDS = (
    *("", " ", "nan", "NaN", "null", "None", "inf", "-Infinity", "1e400", "-1e308", "1e16", "0x1p4", "1_000", "１２"),
    *("0000-00-00", "2031-02-30", "9999-12-31 23:59:59.999999", "10000-01-01", "0001-01-01", "1677-09-21", "1e9"),
    *("2180-06-01 08:00", "1899-12-31", "2031-05-17T08:00Z", "2031-05-17 08:00+14:00", "2031-05-17 24:00", "08:00"),
    *("2031-03-30 02:30 Europe/Berlin", "9" * 400, "-0", "007", "1.0", "TRUE", "true", "3,4", "é", "\u202e", "\ufeff"),
    *("a\x00b", '"', '""', '"a', "'", "\t", ";", "\r", "x" * 70_000, "=1+1", "s3://", "//", "../../etc", "\ud800"),
)
LEAVES = (
    *(None, True, False, 0, -1, 1e308, 10**400, "", "x", SECRET, [], {}, [None], [[]], [{}], {"reference": 3}, "2031"),
    *("2031-02-30", "0000-00-00", "9999-12-31T23:59:60Z", "2031-05-02T07:30:00", "2031-05-02T07:30:00+99:99", "\ud800"),
    *("#x", "Patient/", "urn:uuid:x", {"value": "1"}, {"coding": [{"code": 1}]}, "A" * 100_000, "final", "unknown"),
)


def of_bytes(data: bytes, own: random.Random) -> bytes:
    """Bytes changed, copied, removed, added or cut off, often near the end, where Parquet describes itself."""
    changed = bytearray(data or b"\0")
    for _ in range(own.choice((1, 1, 2, 4, 16))):
        at = own.randrange(len(changed))
        if own.random() < 0.5:
            at = max(0, len(changed) - 1 - own.randrange(min(len(changed), own.choice((12, 200, 2000)))))
        kind = own.randrange(6)
        if kind == 0:
            changed[at] = own.randrange(256)
        elif kind == 1:
            changed[at : at + 4] = struct.pack("<I", own.choice((0, 1, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF)))
        elif kind == 2:
            changed[at : at + 8] = changed[(other := own.randrange(len(changed))) : other + 8]
        elif kind == 3:
            # Varints of the largest numbers, as in Parquet's footer.
            changed[at:at] = own.choice((own.randbytes(own.randrange(1, 9)), b"\xfe\xff\xff\xff\x0f", b"\xff" * 9))
        elif kind == 4:
            del changed[at : at + own.choice((1, 2, 100, len(changed)))]
            changed = changed or bytearray(b"\0")
        else:
            changed[at] ^= 1 << own.randrange(8)
    return bytes(changed)


def of_lines(data: bytes, own: random.Random) -> bytes:
    """Cells, rows, line ends and encodings of a CSV file."""
    text = data.decode()
    kind = own.randrange(10)
    if kind < 5:
        lines = [line.split(",") for line in text.split("\n")]
        for _ in range(own.choice((1, 1, 3))):
            row = own.choice(lines)
            row[own.randrange(len(row))] = own.choice(WORDS)
        return "\n".join(map(",".join, lines)).encode(errors="surrogatepass")
    lines = text.splitlines(keepends=True)
    at = own.randrange(len(lines))
    if kind == 5:
        lines[at] = own.choice((lines[at][:-1] + ",\n", lines[at].split(",", 1)[-1], "", "\n", lines[at] * 2, ",\n"))
    if kind == 6:
        lines = lines[1:] if own.random() < 0.3 else own.sample(lines, len(lines))
    text = "".join(lines)
    if kind == 7:
        text = text.replace("\n", own.choice(("\r", "\r\n", "\n\n", "\x0b", "\u2028")))
    if kind == 8:
        text = text.replace(",", own.choice((";", "\t", "|", ",,")))
    encoding = own.choice(("utf-16", "utf-8-sig", "utf-32", "cp037")) if kind == 9 else "utf-8"
    return text.encode(encoding)


def column(rows: int, own: random.Random) -> pa.Array:
    """A column of some type that no table should have, or of values at the edge of one that it may have."""
    kinds = (
        lambda: pa.array([[1, None]] * rows),
        lambda: pa.array([{"a": {"b": own.random()}}] * rows),
        lambda: pa.array([b"\xff\xfe"] * rows),
        lambda: pa.array([Decimal("1.5")] * rows),
        lambda: pa.array([own.choice((np.nan, np.inf, -np.inf, 1e300, 5e-324)) for _ in range(rows)]),
        lambda: pa.array([own.choice((None, 1.5, 2.0**53)) for _ in range(rows)]),
        lambda: pa.array([own.choice((0, 2**63 - 1, -(2**63))) for _ in range(rows)], pa.timestamp("us")),
        lambda: pa.array([own.choice((0, 2**62, None)) for _ in range(rows)], pa.timestamp("ms")),
        lambda: pa.array([own.randrange(2**60) for _ in range(rows)], pa.timestamp("ns", "Europe/Berlin")),
        lambda: pa.array([own.randrange(-(2**31), 2**31) for _ in range(rows)], pa.date32()),
        lambda: pa.array([5] * rows, own.choice((pa.duration("us"), pa.time64("us"), pa.uint64(), pa.int8()))),
        lambda: pa.nulls(rows),
        lambda: pa.array([own.choice(("a", None, SECRET)) for _ in range(rows)]).dictionary_encode(),
        lambda: pa.array([own.choice(WORDS[:-1]) for _ in range(rows)], pa.large_string()),
        lambda: pa.array([own.choice((True, False, None)) for _ in range(rows)]),
        lambda: pa.MapArray.from_arrays(range(rows + 1), ["k"] * rows, [1] * rows),
        lambda: pa.array([1.5] * rows, pa.float16()),
    )
    return own.choice(kinds)()


def of_columns(data: bytes, own: random.Random) -> bytes:
    """A Parquet file of another schema."""
    table = pq.read_table(io.BytesIO(data))
    at, kind = own.randrange(table.num_columns), own.randrange(6)
    name = table.column_names[at]
    if kind < 3:
        table = table.set_column(at, name, column(table.num_rows, own))
    elif kind == 3:
        table = table.drop_columns([name])
    elif kind == 4:
        table = table.append_column(own.choice((name, "", "Unnamed: 0", "x.y")), column(table.num_rows, own))
    else:
        table = own.choice((table.slice(0, 0), pa.concat_tables([table] * 2), table.select([]), table.slice(1, 3)))
    return parquet(table, row_group_size=own.choice((1, 5, 100)), store_schema=own.random() < 0.7)


def bomb(data: bytes, own: random.Random) -> bytes:
    """A small Parquet file of many rows, all alike, or of one long text."""
    table = pq.read_table(io.BytesIO(data)).slice(0, 1)
    if own.random() < 0.5:
        table = table.take(pa.array(np.zeros(own.choice((10**5, 3 * 10**6)), np.int64)))
        return parquet(table, compression="zstd")
    texts = [field.name for field in table.schema if field.type in (pa.string(), pa.large_string())]
    if not texts:
        return parquet(table.slice(0, 0))
    at = table.column_names.index(own.choice(texts))
    long = pa.array(["x" * own.choice((10**6, 5 * 10**7))], pa.large_string())
    return parquet(table.set_column(at, table.column_names[at], long), compression="zstd")


def of_json(data: bytes, own: random.Random) -> bytes:
    """Elements of a resource, or whole lines."""
    lines = data.splitlines(keepends=True)
    at, kind = own.randrange(len(lines)), own.randrange(8)
    if kind < 5:
        resource = json.loads(lines[at])
        for _ in range(own.choice((1, 1, 3))):
            replace_leaf(resource, own)
        lines[at] = json.dumps(resource).encode() + b"\n"
    elif kind == 5:
        deep = own.choice((50, 990, 5000, 200_000))
        inner = own.choice((b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"[" * deep))
        lines[at] = lines[at].rstrip(b"}\n") + b', "deep": ' + inner + b"}\n"
    elif kind == 6:
        lines[at] = own.choice((b"\n", b"{}\n", b"[]\n", b"null\n", b"{\xff}\n", lines[at] * 2, b"\xef\xbb\xbf"))
    else:
        return own.choice((b"", data.rstrip(b"\n"), data.replace(b"\n", b"\r\n"), data.decode().encode("utf-16")))
    return b"".join(lines)


def replace_leaf(node: dict | list, own: random.Random) -> None:
    """Put something else at a random place in nested lists and objects, or remove what is there."""
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        place = own.choice(places)
        if not isinstance(node[place], (dict, list)) or own.random() < 0.3:
            break
        node = node[place]
    if own.random() < 0.2:
        del node[place]
    else:
        node[place] = own.choice(LEAVES)


def mutated(files: Files, own: random.Random) -> Files:
    """One file of a folder changed; now and then removed, or exchanged with another."""
    name = own.choice(sorted(files))
    if own.random() < 0.02:
        return {other: data for other, data in files.items() if other != name}
    if own.random() < 0.02:
        return files | {name: files[own.choice(sorted(files))]}
    data, zipped = files[name], name.endswith(".gz")
    if zipped and own.random() < 0.8:
        return files | {name: gzip.compress(changed(name[:-3], gzip.decompress(data), own), mtime=0)}
    return files | {name: changed(name, data, own)}


def changed(name: str, data: bytes, own: random.Random) -> bytes:
    kinds = {"parquet": (of_columns, of_columns, bomb), "csv": (of_lines,) * 3, "txt": (of_lines,) * 2}
    kinds |= {"ndjson": (of_json,) * 3}
    # Most changes of bytes in a compressed or hashed place are refused alike.
    chosen = own.choice((*kinds.get(name.rsplit(".", 1)[-1], ()), of_bytes))
    return chosen(data, own)


def mutants(count: int, first: int) -> Iterator[tuple[int, str, Files]]:
    """So many mutants of all sources in turn, each with its number and the name of its source."""
    whole = {name: files() for name, (files, _) in SOURCES.items()}
    for number in range(first, first + count):
        name = list(SOURCES)[number % len(SOURCES)]
        yield number, name, mutated(whole[name], random.Random(number))


def outcome(read: Callable[[Path], Cohort], folder: Path) -> str:
    """What came of a mutant: read, refused, or what is wrong with how it was taken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cohort = read(folder)
    except InputError as error:
        message = str(error)
        named = str(folder) in message and len(message) > len(str(folder)) + 20 and len(message) < 1500
        return "refused" if named and "\n" not in message and SECRET not in message.upper() else f"said {message!r}"
    values, known = encode_outcomes(cohort.outcomes, cohort.outcome_kinds)
    numbers = [values[known], *([] if cohort.labs is None else [cohort.labs["value"].to_numpy()])]
    if cohort.static is not None:
        numbers += [column.dropna().to_numpy() for _, column in cohort.static.select_dtypes("number").items()]
    if not all(np.isfinite(some).all() for some in numbers):
        return "a number that is not finite"
    for table in ("labs", "notes", "images"):
        hours = cohort.window(table).hours
        if not (np.isfinite(hours).all() and hours.max(initial=0) <= 0):
            return f"{table} at an impossible hour"
    repr((cohort.sample(0), cohort.exclusions[:9]))
    return "read"


def run(count: int, scratch: Path, first: int = 0, *, report: bool = False) -> Watch:
    """Read mutants one after the other, from the first that is asked for."""
    watch = Watch(MOST_SECONDS, MOST_BYTES, report)
    folder = scratch / "mutant"
    for number, name, files in mutants(count, first):
        shutil.rmtree(folder, ignore_errors=True)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        watch.take(number, name, partial(outcome, SOURCES[name][1], folder))
    return watch


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
def test_mutated_tables_give_finite_numbers_or_a_refusal(tmp_path: Path):
    run(180, tmp_path).require_sound(refused=60)


if __name__ == "__main__":
    by_hand(partial(run, report=True))
