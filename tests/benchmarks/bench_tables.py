"""Tables at size, beside what the same machine can do: PhysioNet 2012 from text files, and 120 million lab rows.

    python tests/benchmarks/bench_tables.py series --data DIR      # set-a and set-b as Parquet
    python tests/benchmarks/bench_tables.py labs --rows 120000000

`series` writes the published text files anew from Parquet, and reads them by `read_physionet2012` and `prepare`
in turn with a plain pass of pyarrow and numpy that knows the data and checks nothing. `labs` generates a lab
table and reads it by `Cohort.read` in a process of its own, whose largest resident memory is taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

_DESCRIPTORS = ["Age", "Gender", "Height", "Weight", "ICUType"]


def write_texts(source: Path, folder: Path) -> None:
    """The challenge's sets in their published layout, from `set-X/events.parquet` and `outcomes.parquet`."""
    for letter in "ab":
        home = folder / f"set-{letter}"
        home.mkdir(parents=True)
        events = pq.read_table(source / home.name / "events.parquet").to_pandas()
        hours, minutes = divmod(events["minutes"], 60)
        clock = hours.map("{:02d}".format) + ":" + minutes.map("{:02d}".format)
        lines = clock + "," + events["parameter"].astype("str") + "," + events["value"].map("{:g}".format)
        for record, own in lines.groupby(events["record_id"], sort=False):
            text = "\n".join(["Time,Parameter,Value", f"00:00,RecordID,{record}", *own])
            (home / f"{record}.txt").write_text(text + "\n")
        outcomes = pq.read_table(source / home.name / "outcomes.parquet").to_pandas()
        outcomes = outcomes.rename(columns={"record_id": "RecordID", "in_hospital_death": "In-hospital_death"})
        outcomes.to_csv(folder / f"Outcomes-{letter}.txt", index=False)


def plain_pass(folder: Path, codes: list[str], centre: np.ndarray, spread: np.ndarray, floor: np.ndarray) -> list:
    """Text files to arrays (events: sample, hour, code, scaled value; facts; deaths) with as little as will do."""
    words = pa.dictionary(pa.int32(), pa.string())
    columns = {"time": words, "code": words, "value": pa.float32()}
    number = {code: k for k, code in enumerate(codes)}
    parts = []
    for letter in "ab":
        texts = [path.read_bytes() for path in sorted((folder / f"set-{letter}").glob("*.txt"))]
        lines = np.array([text.count(b"\n") for text in texts]) - 1
        rows = b"".join(text[text.index(b"\n") + 1 :] for text in texts)
        table = csv.read_csv(
            pa.py_buffer(rows),
            csv.ReadOptions(column_names=list(columns)),
            convert_options=csv.ConvertOptions(column_types=columns),
        )
        table = table.unify_dictionaries().combine_chunks()
        clock, name = (table[column].chunk(0) for column in ("time", "code"))
        value, sample = table["value"].to_numpy(), np.repeat(np.arange(len(texts)), lines)
        minutes = np.array([60 * int(cell[:-3]) + int(cell[-2:]) for cell in clock.dictionary.to_pylist()])
        minutes, names = minutes[clock.indices.to_numpy()], name.dictionary.to_pylist()
        code = np.array([number.get(word, -1) for word in names])[name.indices.to_numpy()]
        fact = np.array([_DESCRIPTORS.index(word) if word in _DESCRIPTORS else -1 for word in names])
        fact = np.where(minutes == 0, fact[name.indices.to_numpy()], -1)
        keep = (code >= 0) & (fact < 0) & (value != -1) & (minutes <= 2880)
        kept, scaled = code[keep], value[keep].astype(np.float64)
        logarithmic = floor[kept] > 0
        scaled[logarithmic] = np.log(np.maximum(scaled[logarithmic], floor[kept[logarithmic]]))
        scaled = np.clip((scaled - centre[kept]) / spread[kept], -6, 6).astype(np.float32)
        facts = np.full((len(texts), len(_DESCRIPTORS)), np.nan, np.float32)
        facts[sample[fact >= 0], fact[fact >= 0]] = value[fact >= 0]
        hours = (minutes[keep] / 60 - 48).astype(np.float32)
        died = csv.read_csv(folder / f"Outcomes-{letter}.txt")["In-hospital_death"].to_numpy()
        parts.append((sample[keep], hours, kept, scaled, facts, died))
    return parts


def series(data: Path, repeats: int) -> dict[str, float]:
    from chiasm.datasets.lab_reader import LabReader
    from chiasm.datasets.physionet2012 import read_physionet2012
    from chiasm.datasets.prepared import prepare
    from chiasm.datasets.static_reader import StaticReader

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "challenge"
        write_texts(data, folder)
        readers = {"labs": LabReader(), "static": StaticReader()}
        cohort = read_physionet2012(folder, sets=("a", "b"))
        for reader in readers.values():
            reader.fit(cohort)
        labs = readers["labs"]

        def ours() -> None:
            cohort = read_physionet2012(folder, sets=("a", "b"))
            prepare(cohort, readers, cohort.outcome_kinds)

        def plain() -> None:
            plain_pass(folder, labs.codes_, labs.centre_, labs.spread_, labs.floor_)

        spent: dict[str, list[float]] = {"ours": [], "plain": [], "ours, CPU": [], "plain, CPU": []}
        for _ in range(repeats):
            for name, run in (("ours", ours), ("plain", plain)):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent[name].append(time.perf_counter() - wall)
                spent[f"{name}, CPU"].append(time.process_time() - cpu)
    medians = {name: round(statistics.median(of), 3) for name, of in spent.items()}
    ratios = {f"ratio{kind}": round(medians[f"ours{kind}"] / medians[f"plain{kind}"], 2) for kind in ("", ", CPU")}
    least = round(min(spent["ours, CPU"]) / min(spent["plain, CPU"]), 2)
    return medians | ratios | {"ratio, CPU, of the least": least}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["series", "labs"])
    parser.add_argument("--data", type=Path, default=Path("physionet2012"))
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    print(json.dumps(series(given.data, given.repeats), indent=1))
