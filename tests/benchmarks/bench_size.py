"""Lab tables of MIMIC's size: how long a cohort takes to read out of them, and in how much memory.

    python tests/benchmarks/bench_size.py labs --rows 120000000 --folder DIR     # five tables, labs as Parquet
    python tests/benchmarks/bench_size.py csv --rows 12000000 --folder DIR       # five tables, labs as CSV
    python tests/benchmarks/bench_size.py meds --rows 120000000 --folder DIR     # MEDS, a shard for 2,000 patients
    python tests/benchmarks/bench_size.py mimic --rows 120000000 --folder DIR    # labevents.csv.gz as published

Generates the table, patient by patient in bounded memory, unless the folder has it, and reads a cohort of 50,000
stays with a history of 48 hours in a process of its own. Prints its wall time, its processor time and its largest
resident memory (VmHWM). Tables of 120 million rows take 2 to 5 GB of disk.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

PATIENTS, STAYS, HISTORY = 300_000, 50_000, 48.0
CODES, UNITS = 800, ["mg/dL", "mmol/L", "K/uL", "%"]
# MIMIC's own numbers begin here.
FIRST = 10_000_000
_PIECE_PATIENTS = 2000
_DAY = 86_400_000_000


def pieces(rows: int) -> Iterator[pa.Table]:
    """Results of patients in turn: a third of them within three days of the prediction, if there is one."""
    random = np.random.default_rng(0)
    each = rows // PATIENTS
    codes = pa.array([f"LAB//{50_800 + k}" for k in range(CODES)])
    for first in range(0, PATIENTS, _PIECE_PATIENTS):
        patient = np.repeat(np.arange(first, first + _PIECE_PATIENTS), each)
        days = np.where(
            random.random(len(patient)) < 1 / 3,
            random.uniform(-3, 1, len(patient)),
            random.uniform(-900, 900, len(patient)),
        )
        drawn = admission(patient) + (2 * _DAY + days * _DAY).astype(np.int64)
        order = np.lexsort((drawn, patient))
        drawn = drawn[order]
        code = (random.pareto(1.2, len(patient)) * 8).astype(np.int64) % CODES
        # A fifth of the codes has no unit.
        kind = code % (len(UNITS) + 1)
        unit = pa.DictionaryArray.from_arrays(pa.array(kind.astype(np.int32), mask=kind == len(UNITS)), pa.array(UNITS))
        known = drawn + random.integers(600, 18_000, len(patient)) * 1_000_000
        yield pa.table(
            {
                "subject_id": FIRST + patient,
                "time": pa.array(drawn).cast(pa.timestamp("us")),
                "code": pa.DictionaryArray.from_arrays(code.astype(np.int32), codes),
                "value": np.round(random.lognormal(2, 1, len(patient)), 1),
                "unit": unit,
                "available_at": pa.array(known).cast(pa.timestamp("us")),
            }
        )


def admission(patient: np.ndarray) -> np.ndarray:
    """int64 microseconds: between the years 2110 and 2200, as MIMIC's shifted dates."""
    return (140 * 365 + patient * 7919 % 32_000) * _DAY


def outcomes() -> pd.DataFrame:
    """One stay of every sixth patient, predicted 48 hours after its start."""
    patient = np.arange(0, PATIENTS, PATIENTS // STAYS)
    moment = pd.Series(admission(patient) + 2 * _DAY).astype("datetime64[us]")
    return pd.DataFrame({"subject_id": FIRST + patient, "prediction_time": moment, "died": patient % 9 == 0})


def write_labs(folder: Path, rows: int) -> None:
    with pq.ParquetWriter(folder / "labs.parquet", next(pieces(PATIENTS)).schema, compression="snappy") as file:
        for piece in pieces(rows):
            file.write_table(piece)
    outcomes().to_parquet(folder / "outcomes.parquet", index=False)


def write_csv(folder: Path, rows: int) -> None:
    with (folder / "labs.csv").open("wb") as file:
        for number, piece in enumerate(pieces(rows)):
            pa_csv.write_csv(plain(piece), file, pa_csv.WriteOptions(include_header=not number, quoting_style="needed"))
    outcomes().to_csv(folder / "outcomes.csv", index=False)


def plain(piece: pa.Table) -> pa.Table:
    """Times to the second and words written out."""
    kinds = {"time": pa.timestamp("s"), "available_at": pa.timestamp("s"), "code": pa.string(), "unit": pa.string()}
    columns = {
        name: piece[name].cast(kinds[name], safe=False) if name in kinds else piece[name] for name in piece.column_names
    }
    return pa.table(columns)


def write_meds(folder: Path, rows: int) -> None:
    for name in ("data/train", "labels", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, piece in enumerate(pieces(rows)):
        nothing = pa.nulls(len(piece))
        shard = {
            "subject_id": piece["subject_id"],
            "time": piece["available_at"],
            "code": piece["code"].cast(pa.string()),
        }
        shard |= {"numeric_value": piece["value"].cast(pa.float32()), "text_value": nothing.cast(pa.large_string())}
        shard |= {"event_time": piece["time"], "unit": piece["unit"].cast(pa.string())}
        pq.write_table(pa.table(shard), folder / "data" / "train" / f"{number}.parquet")
    labels = outcomes().rename(columns={"died": "boolean_value"})
    labels.to_parquet(folder / "labels" / "died.parquet", index=False)


def write_mimic(folder: Path, rows: int) -> None:
    """`hosp` and `icu` in the published layout; labevents.csv.gz by the fastest compression."""
    for name in ("hosp", "icu"):
        (folder / name).mkdir(parents=True)
    patient = np.arange(PATIENTS)
    ids = FIRST + patient
    start = pd.Series(admission(patient)).astype("datetime64[us]")
    end = start + pd.Timedelta("5D")
    stays = patient % (PATIENTS // STAYS) == 0
    people = {"subject_id": ids, "gender": "F", "anchor_age": 60, "anchor_year": start.dt.year}
    admissions = {"subject_id": ids, "hadm_id": 20_000_000 + patient, "admittime": start, "dischtime": end}
    admissions |= {"deathtime": None, "admission_type": "URGENT", "insurance": None, "language": None}
    admissions |= {"marital_status": None, "race": None, "hospital_expire_flag": (patient % 9 == 0).astype(int)}
    units = {"subject_id": ids, "hadm_id": 20_000_000 + patient, "stay_id": 30_000_000 + patient}
    units |= {"first_careunit": "MICU", "last_careunit": "MICU", "intime": start, "outtime": end}
    items = {"itemid": 50_800 + np.arange(CODES), "label": [f"lab {k}" for k in range(CODES)]}
    items |= {"fluid": "Blood", "category": "Chemistry"}
    pd.DataFrame(people).to_csv(folder / "hosp" / "patients.csv.gz", index=False)
    pd.DataFrame(admissions).to_csv(folder / "hosp" / "admissions.csv.gz", index=False)
    pd.DataFrame(items).to_csv(folder / "hosp" / "d_labitems.csv.gz", index=False)
    pd.DataFrame(units)[stays].to_csv(folder / "icu" / "icustays.csv.gz", index=False)
    row = 1
    with gzip.open(folder / "hosp" / "labevents.csv.gz", "wb", compresslevel=1) as file:
        for number, piece in enumerate(pieces(rows)):
            own, count = plain(piece), len(piece)
            text = own["value"].cast(pa.string())
            blank = pa.nulls(count, pa.string())
            item = 50_800 + piece["code"].combine_chunks().indices.to_numpy()
            columns = {"labevent_id": np.arange(row, row + count), "subject_id": own["subject_id"], "hadm_id": blank}
            columns |= {"specimen_id": np.arange(row, row + count), "itemid": item, "order_provider_id": blank}
            columns |= {"charttime": own["time"], "storetime": own["available_at"], "value": text}
            columns |= {"valuenum": own["value"], "valueuom": own["unit"], "ref_range_lower": blank}
            columns |= {"ref_range_upper": blank, "flag": blank, "priority": blank, "comments": blank}
            pa_csv.write_csv(
                pa.table(columns), file, pa_csv.WriteOptions(include_header=not number, quoting_style="needed")
            )
            row += count


def read(kind: str, folder: Path, history: float | None) -> None:
    """Read, and say what it took."""
    from chiasm.datasets import Cohort
    from chiasm.datasets.mimic import read_mimic

    began = time.perf_counter()
    cohort = (
        read_mimic(folder, history=history, charted={}, notes=())
        if kind == "mimic"
        else Cohort.read(folder, history=history)
    )
    told = {"samples": len(cohort), "labs kept": len(cohort.labs), "seen": int(cohort.window("labs").offsets[-1])}
    told |= {"wall s": round(time.perf_counter() - began, 1), "processor s": round(time.process_time(), 1)}
    print(json.dumps(told | {"GB at most": round(peak_bytes() / 1e9, 2)}))


def peak_bytes() -> int:
    """The largest resident memory of this process. (What getrusage says counts that of its parent, too.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


_WRITE = {"labs": write_labs, "csv": write_csv, "meds": write_meds, "mimic": write_mimic}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(_WRITE))
    parser.add_argument("--rows", type=int, default=12_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the table is or is to be written")
    parser.add_argument(
        "--whole", action="store_true", help="without a history, so that all of the patients' rows stay"
    )
    parser.add_argument("--read", action="store_true", help="read only, in this process")
    given = parser.parse_args()
    folder, history = given.folder / f"{given.kind}-{given.rows}", None if given.whole else HISTORY
    if given.read:
        read(given.kind, folder, history)
        return
    if not folder.is_dir():
        folder.mkdir(parents=True)
        began = time.perf_counter()
        _WRITE[given.kind](folder, given.rows)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"written in {time.perf_counter() - began:.0f} s: {size / 1e9:.2f} GB", flush=True)
    subprocess.run([sys.executable, *sys.argv, "--read"], check=True)


if __name__ == "__main__":
    main()
