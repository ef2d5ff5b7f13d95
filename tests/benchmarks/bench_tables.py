"""PhysioNet 2012 from its text files to arrays, beside a plain pass of pyarrow and numpy.

    python tests/benchmarks/bench_tables.py --data DIR      # set-a and set-b as Parquet

Writes the published text files anew from Parquet, and reads them by `read_physionet2012` and `prepare` in turn with
a plain pass that knows the data and checks nothing. Prints medians of wall and of processor time and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

_DESCRIPTORS = ["Age", "Gender", "Height", "Weight", "ICUType"]
_NUMBERS = [0, 2, 3]


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
    """Text files to what `prepare` gives, with as little as will do.

    Where each sample's events begin, hour, code, scaled value and time step of each event; facts in standard
    deviations or as classes, blank ones marked; deaths.
    """
    words = pa.dictionary(pa.int32(), pa.string())
    columns = {"time": words, "code": words, "value": pa.float32()}
    number = {code: k for k, code in enumerate(codes)}
    parts = []
    for letter in "ab":
        home = f"{folder}/set-{letter}"
        texts = []
        for name in sorted(os.listdir(home)):
            with open(f"{home}/{name}", "rb", 0) as file:
                texts.append(file.read())
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
        facts[facts == -1] = np.nan
        known = ~np.isnan(facts)
        facts[:, _NUMBERS] = (facts[:, _NUMBERS] - np.nanmean(facts[:, _NUMBERS], 0)) / np.nanstd(facts[:, _NUMBERS], 0)
        facts[~known] = 0
        hours, sample = (minutes[keep] / 60 - 48).astype(np.float32), sample[keep]
        offsets = np.searchsorted(sample, np.arange(len(texts) + 1))
        begins = np.diff(np.floor(hours), prepend=0) != 0
        begins[offsets[:-1][np.diff(offsets) > 0]] = True
        step = np.cumsum(begins)
        step -= np.repeat(step[np.minimum(offsets[:-1], len(step) - 1)], np.diff(offsets))
        died = csv.read_csv(folder / f"Outcomes-{letter}.txt")["In-hospital_death"].to_numpy()
        parts.append((offsets, hours, kept, scaled, step, facts, known, died))
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
    parser.add_argument("--data", type=Path, default=Path("physionet2012"))
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    print(json.dumps(series(given.data, given.repeats), indent=1))
