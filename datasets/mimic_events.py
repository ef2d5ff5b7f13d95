"""What MIMIC knows of a patient by a moment: lab results, charted vital signs, notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .mimic_files import MimicFolder
from .windows import reach

CHARTED: dict[int, str] = {
    220045: "heart rate",
    220050: "systolic pressure, arterial line",
    225309: "systolic pressure, arterial line",
    220051: "diastolic pressure, arterial line",
    225310: "diastolic pressure, arterial line",
    220052: "mean pressure, arterial line",
    225312: "mean pressure, arterial line",
    220179: "systolic pressure, cuff",
    220180: "diastolic pressure, cuff",
    220181: "mean pressure, cuff",
    220210: "respiratory rate",
    224690: "respiratory rate, total on the ventilator",
    220277: "oxygen saturation, pulse oximeter",
    223761: "temperature (°F)",
    223762: "temperature (°C)",
    220739: "Glasgow coma scale, eyes",
    223900: "Glasgow coma scale, verbal",
    223901: "Glasgow coma scale, motor",
    223835: "inspired oxygen",
    225664: "glucose, finger stick",
    220621: "glucose, serum, charted",
    226537: "glucose, whole blood, charted",
    226512: "weight on admission (kg)",
    226531: "weight on admission (lb)",
    224639: "weight of the day (kg)",
}
"""What is read of chartevents: `itemid` and the code that it gets; items of one code are one analyte.

Units, where the code does not say: beats and breaths a minute, mmHg, % (saturation, inspired oxygen;
a few entries of the latter are fractions), mg/dL; they stand in `unit`, as charted. The verbal score of
an intubated patient is charted as 1. What is measured by a line and by a cuff, or by the laboratory
and at the bedside, differs, and stays apart.

Source: the d_items table's labels; which items are the vital signs: the vital-sign and Glasgow
coma scale concepts of the MIMIC Code Repository, https://github.com/MIT-LCP/mimic-code
"""

_LAB_CODES = """
    SELECT itemid, coalesce(trim(label), 'item ' || itemid) || ' (' || concat_ws(', ', fluid, category) || ')' AS code
    FROM d_labitems
"""
# When a row became known: never before the moment that it describes.
_KNOWN = "greatest(e.charttime, coalesce(e.storetime, e.charttime))"
SEEN = f"SEMI JOIN samples s ON e.subject_id = s.subject_id AND {_KNOWN} BETWEEN s.since AND s.prediction_time"
"""What of a table `e` (subject_id, charttime, storetime) some sample sees, as the cohort's windows have it."""

_MEASUREMENTS = pa.schema(
    {
        "subject_id": pa.int64(),
        "time": pa.timestamp("us"),
        "code": pa.int32(),
        "value": pa.float32(),
        "unit": pa.dictionary(pa.int32(), pa.string()),
        "available_at": pa.timestamp("us"),
    }
)


def set_samples(source: MimicFolder, outcomes: pd.DataFrame, hadm_id: pd.Series, history: float | None) -> None:
    """Tell the engine whose events are wanted, from when until when, as the table `samples`.

    Args:
        source: the opened folder.
        outcomes: `subject_id` and `prediction_time`.
        hadm_id: the hospital admission of each of its rows.
        history: hours before the prediction time that inputs reach back; None for all.
    """
    back = reach(math.inf if history is None else history)
    since = outcomes["prediction_time"].to_numpy("datetime64[us]") - np.timedelta64(back, "us")
    samples = outcomes[["subject_id", "prediction_time"]].assign(hadm_id=hadm_id, since=since)
    source.engine.register("given", pa.Table.from_pandas(samples, preserve_index=False))
    source.engine.execute("CREATE OR REPLACE TABLE samples AS FROM given")
    source.engine.unregister("given")


class Measurements:
    """Lab results, vital signs and facts of the stay, gathered into one table `labs`."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._batches: list[pa.RecordBatch] = []
        self.remarks: list[str] = []
        """What was read and what was left out, in words."""

    def read_labs(self, source: MimicFolder) -> None:
        """Every numeric result of labevents that some sample sees; code = label (fluid, category).

        A result without `storetime` is left out: nobody knows when it became known.
        """
        source.require_once("d_labitems", "itemid")
        items = source.frame(_LAB_CODES, "d_labitems")
        self._read(source, "labevents", dict(zip(items["itemid"], items["code"], strict=True)), unstored=False)

    def read_charted(self, source: MimicFolder, charted: Mapping[int, str]) -> None:
        """The chosen items of chartevents; an entry without `storetime` was known when it was charted."""
        self._read(source, "chartevents", charted, unstored=True)

    def add(self, facts: pd.DataFrame) -> None:
        """Further rows: `subject_id`, `time`, `code`, `value`, `unit`."""
        rows = facts.assign(code=[self._number(code) for code in facts["code"]], available_at=facts["time"])
        self._batches += pa.Table.from_pandas(rows, _MEASUREMENTS, preserve_index=False, safe=False).to_batches()

    def table(self) -> pd.DataFrame:
        """All of them; this object gives them up, since they may be many."""
        table = pa.Table.from_batches(self._batches, _MEASUREMENTS).unify_dictionaries()
        self._batches = []
        frame = table.to_pandas(split_blocks=True, self_destruct=True)
        return frame.assign(code=pd.Categorical.from_codes(frame["code"], list(self._codes)))

    def _number(self, code: str) -> int:
        return self._codes.setdefault(code, len(self._codes))

    def _read(self, source: MimicFolder, table: str, codes: Mapping[int, str], *, unstored: bool) -> None:
        numbered = {"itemid": list(codes), "code": [self._number(code) for code in codes.values()]}
        source.engine.register("codes", pa.table(numbered))
        query = f"""
            SELECT e.subject_id, coalesce(e.charttime, e.storetime) AS time, c.code,
                   e.valuenum AS value, e.valueuom AS unit, e.storetime AS available_at
            FROM {table} e JOIN codes c ON e.itemid = c.itemid {SEEN}
        """
        rows = wordless = unknown = 0
        for batch in source.batches(query, table):
            stored = batch["available_at"].is_valid()
            numeric = batch["value"].is_valid()
            kept = numeric if unstored else pc.and_(numeric, stored)
            rows += batch.num_rows
            wordless += batch.num_rows - numeric.true_count
            unknown += pc.and_not(numeric, stored).true_count
            batch = batch.filter(kept)
            # A number that float32 cannot hold becomes infinite, and the cohort refuses it.
            columns = [batch[field.name].cast(field.type, safe=False) for field in _MEASUREMENTS]
            self._batches.append(pa.record_batch(columns, _MEASUREMENTS))
        how = "counted from their charttime" if unstored else "left out"
        self.remarks.append(
            f"{table}: {rows} rows seen; without a number, left out: {wordless}; without storetime, {how}: {unknown}"
        )


def read_notes(source: MimicFolder, kinds: Sequence[str], *, during_stay: bool) -> pd.DataFrame | None:
    """The radiology reports and discharge summaries that some sample sees.

    A report without `storetime` counts from its charttime. A summary without one is left out: its
    charttime is midnight of the day of discharge, before the stay that it tells of has ended.

    Args:
        source: the opened folder, whose engine was told the samples.
        kinds: of "radiology", "discharge".
        during_stay: whether the question is asked during the stay; then no summary of that very stay is
            let in, whatever its clock says.
    """
    parts = []
    for kind in kinds:
        further = "AND e.storetime IS NOT NULL" if kind == "discharge" else ""
        if kind == "discharge" and during_stay:
            further += f" AND NOT EXISTS (FROM samples t WHERE t.hadm_id = e.hadm_id AND {_KNOWN} <= t.prediction_time)"
        query = f"""
            SELECT e.subject_id, e.charttime AS time, e.text, '{kind}' AS kind, e.storetime AS available_at
            FROM {kind} e {SEEN} WHERE trim(e.text) <> '' {further}
        """
        parts.append(source.frame(query, kind))
    return pd.concat(parts, ignore_index=True) if parts else None
