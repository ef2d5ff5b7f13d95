"""Cohorts as MEDS 0.4 datasets, the standard that other tools and hospitals' ETLs write.

How the five tables lie in MEDS:

| table | MEDS event |
|---|---|
| labs | `code` = analyte, `numeric_value` = value, extension column `unit` |
| notes | `code` = `NOTE` or `NOTE//kind`, `text_value` = text |
| images | `code` = `IMAGE` or `IMAGE//view`, extension columns `image_path`, `study_uid` |
| static | `time` null, `code` = `STATIC//column`, `numeric_value` or `text_value` |
| outcomes | `labels/<outcome>.parquet`, one label file an outcome |

A MEDS reader may use an event from its `time` on. So `time` holds when the event became *available*,
and, where that differs, the extension column `event_time` holds the time it describes.

Source: MEDS 0.4.1, https://github.com/Medical-Event-Data-Standard/meds (schemas, folder layout).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .checks import Excerpt
from .errors import InputError
from .excerpts import Asked
from .files import naming_folder, read_table
from .meds_events import IMAGE, NOTE, STATIC, read_events, require_shards
from .meds_labels import read_labels, require_numbers
from .outcomes import OutcomeKind
from .tables import EVENT_TABLES, REQUIRED, require_columns
from .windows import available_time, require_history

if TYPE_CHECKING:
    from .cohort import Cohort

DATA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("event_time", pa.timestamp("us")),
        pa.field("unit", pa.string()),
        pa.field("image_path", pa.string()),
        pa.field("study_uid", pa.string()),
    ]
)
LABELS = {
    "binary": pa.field("boolean_value", pa.bool_()),
    "categorical": pa.field("categorical_value", pa.string()),
    "continuous": pa.field("float_value", pa.float32()),
}
_LABEL_KEYS = [
    pa.field("subject_id", pa.int64(), nullable=False),
    pa.field("prediction_time", pa.timestamp("us"), nullable=False),
]
_SCHEMA = 1
_DTYPES = ("int64", "float32", "datetime64[us]", "str", "category")


# Writing


def write_meds(cohort: Cohort, folder: Path) -> None:
    """Write a cohort as a MEDS dataset, whole or not at all.

    Raises:
        InputError: the folder already holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already holds something. Give a new or an empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        for name in ("data", "labels", "metadata"):
            (whole / name).mkdir(parents=True)
        numbers = _subject_numbers(cohort)
        events = _events(cohort, folder.resolve())
        events = events.assign(subject_id=events["subject_id"].map(numbers))
        events = events.sort_values(["subject_id", "time"], na_position="first", kind="stable")
        pq.write_table(pa.Table.from_pandas(events, DATA, preserve_index=False), whole / "data" / "0.parquet")
        for name, kind in cohort.outcome_kinds.items():
            _write_labels(cohort, name, kind, numbers, whole / "labels" / f"{name}.parquet")
        _write_metadata(cohort, events, numbers, whole / "metadata")
        if folder.exists():
            folder.rmdir()
        shutil.move(whole, folder)


def _subject_numbers(cohort: Cohort) -> pd.Series:
    """The int64 that MEDS wants for each patient: the id itself, or, for text ids, its rank."""
    patients = np.sort(cohort.outcomes["subject_id"].unique())
    numbered = pd.api.types.is_integer_dtype(cohort.outcomes["subject_id"].dtype)
    return pd.Series(patients if numbered else np.arange(1, len(patients) + 1), index=patients, dtype="int64")


def _events(cohort: Cohort, home: Path) -> pd.DataFrame:
    parts = [pd.DataFrame({field.name: pd.Series(dtype="object") for field in DATA})]
    if cohort.labs is not None:
        labs = cohort.labs
        parts.append(_timed(labs, code=labs["code"], numeric_value=labs["value"], unit=labs.get("unit")))
    if cohort.notes is not None:
        notes = cohort.notes
        parts.append(_timed(notes, code=_coded(NOTE, notes.get("kind"), len(notes)), text_value=notes["text"]))
    if cohort.images is not None:
        images = cohort.images
        code = _coded(IMAGE, images.get("view"), len(images))
        path = images["path"].map(lambda path: _portable(path, home))
        parts.append(_timed(images, code=code, image_path=path, study_uid=images.get("study_uid")))
    if cohort.static is not None:
        for column in cohort.static.columns.drop("subject_id"):
            known = cohort.static[["subject_id", column]].dropna()
            kind = "numeric_value" if pd.api.types.is_numeric_dtype(known[column].dtype) else "text_value"
            facts = {"subject_id": known["subject_id"], "code": f"{STATIC}//{column}", kind: known[column]}
            parts.append(pd.DataFrame(facts))
    filled = [part for part in parts if len(part)]
    events = pd.concat(filled, ignore_index=True) if filled else parts[0]
    events = events.reindex(columns=DATA.names)
    # Static facts alone have no time, and no type of one either.
    return events.astype({"time": "datetime64[us]", "event_time": "datetime64[us]"})


def _timed(table: pd.DataFrame, **columns: pd.Series | None) -> pd.DataFrame:
    available = available_time(table)
    described = table["time"].where(table["time"] != available)
    given = {name: values for name, values in columns.items() if values is not None}
    return pd.DataFrame({"subject_id": table["subject_id"], "time": available, "event_time": described} | given)


def _coded(prefix: str, detail: pd.Series | None, rows: int) -> pd.Series:
    if detail is None:
        return pd.Series(prefix, index=range(rows), dtype="str")
    return (prefix + "//" + detail).fillna(prefix)


def _portable(path: str, home: Path) -> str:
    """The path relative to the dataset where the file lies inside it, and absolute otherwise."""
    if "://" in path:
        return path
    whole = Path(path).absolute()
    return str(whole.relative_to(home)) if whole.is_relative_to(home) else str(whole)


def _write_labels(cohort: Cohort, name: str, kind: OutcomeKind, numbers: pd.Series, path: Path) -> None:
    if not re.fullmatch(r"[^/\\\x00-\x1f\ud800-\udfff]{1,200}", name):
        raise InputError(f"The outcome {name!r} cannot be a file name. Rename the column.")
    values = cohort.outcomes[name]
    if kind == "binary":
        values = (values == 1).where(values.notna(), None)
    field = LABELS[kind]
    frame = pd.DataFrame(
        {
            "subject_id": cohort.outcomes["subject_id"].map(numbers),
            "prediction_time": cohort.outcomes["prediction_time"],
            field.name: values,
        }
    )
    # A label file has no blanks: a sample whose outcome is unknown has no label.
    frame = frame.dropna(subset=field.name)
    pq.write_table(pa.Table.from_pandas(frame, pa.schema([*_LABEL_KEYS, field]), preserve_index=False), path)


def _write_metadata(cohort: Cohort, events: pd.DataFrame, numbers: pd.Series, folder: Path) -> None:
    dataset = {
        "dataset_name": "chiasm cohort",
        "meds_version": "0.4.1",
        "etl_name": "chiasm",
        "additional_value_modality_columns": ["image_path"],
        "code_modifier_columns": ["unit"],
        "other_extension_columns": ["event_time", "study_uid"],
    }
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=2), encoding="utf-8")
    codes = pd.DataFrame({"code": np.sort(events["code"].unique())}).assign(description=None, parent_codes=None)
    schema = pa.schema([("code", pa.string()), ("description", pa.string()), ("parent_codes", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pandas(codes, schema, preserve_index=False), folder / "codes.parquet")
    if cohort.subject_splits is not None:
        named = cohort.subject_splits[cohort.subject_splits.index.isin(numbers.index)]
        split = pd.DataFrame({"subject_id": named.index.map(numbers), "split": named.to_numpy()})
        schema = pa.schema([_LABEL_KEYS[0], pa.field("split", pa.string(), nullable=False)])
        pq.write_table(pa.Table.from_pandas(split, schema, preserve_index=False), folder / "subject_splits.parquet")
    ours = {
        "schema": _SCHEMA,
        "history": cohort.history,
        "text_ids": not pd.api.types.is_integer_dtype(cohort.outcomes["subject_id"].dtype),
        "outcomes": {
            name: {"kind": str(kind), "classes": list(kind.classes)} for name, kind in cohort.outcome_kinds.items()
        },
        "tables": {
            name: {column: str(dtype) for column, dtype in getattr(cohort, name).dtypes.items()}
            for name in ("labs", "notes", "images", "static")
            if getattr(cohort, name) is not None
        },
    }
    (folder / "chiasm.json").write_text(json.dumps(ours, indent=2), encoding="utf-8")
    ids = pd.DataFrame({"subject_id": numbers.to_numpy(), "original_id": numbers.index.astype("str")})
    ids.to_parquet(folder / "subject_ids.parquet", index=False)
    keys = cohort.outcomes[["subject_id", "prediction_time"]]
    keys.assign(subject_id=keys["subject_id"].map(numbers)).to_parquet(folder / "samples.parquet", index=False)


# Reading


def read_meds(kind: type[Cohort], folder: Path, settings: Mapping[str, object], *, labelled: bool = True) -> Cohort:
    """Read a MEDS dataset, of chiasm's or of any other writing.

    In a dataset of other writing, numbers become labs; text whose code is `NOTE` or `NOTE//...`, and
    text that has a space in it and no number beside it, becomes notes; events with `image_path` become
    images; events without a time become static facts, the last one where a patient has a code twice.
    Events that carry neither number, text nor image are not read. Outcomes are the label files
    `labels/NAME.parquet` or `labels/NAME/*.parquet`.

    Raises:
        InputError: a file is missing or of another schema.
    """
    cohort, division = read_undivided(kind, folder, settings, labelled=labelled), read_division(folder)
    with naming_folder(folder):
        return cohort if division is None else cohort.with_splits(division)


def read_division(folder: Path) -> pd.DataFrame | None:
    """`subject_id` and `split` as a dataset states them, ids as in its cohort; None where it is not divided."""
    path = folder / "metadata" / "subject_splits.parquet"
    if not path.is_file():
        return None
    division = read_table(path)
    if not _read_layout(folder / "metadata" / "chiasm.json").get("text_ids") or "subject_id" not in division.columns:
        return division
    require_numbers(path, division)
    return division.assign(subject_id=division["subject_id"].map(_original_ids(folder)))


def _original_ids(folder: Path) -> pd.Series:
    path = folder / "metadata" / "subject_ids.parquet"
    table = read_table(path)
    require_numbers(path, table)
    if "original_id" not in table.columns or table["subject_id"].duplicated().any():
        raise InputError(f"{path} is damaged: it needs one original_id for each subject_id. Write the cohort anew.")
    return table.set_index("subject_id")["original_id"]


def read_undivided(
    kind: type[Cohort], folder: Path, settings: Mapping[str, object], *, labelled: bool = True
) -> Cohort:
    """`read_meds`, whatever the dataset says of its division."""
    require_history(settings.get("history"))
    shards = require_shards(folder)
    known = _read_layout(folder / "metadata" / "chiasm.json")
    with naming_folder(folder):
        invalid = settings.get("invalid", "raise")
        outcomes, kinds, left_out = read_labels(folder, known.get("outcomes"), invalid)
        if not labelled:
            outcomes, kinds = outcomes[[*REQUIRED["outcomes"]]], {}
        asked = Asked(outcomes, history=settings.get("history"), invalid=invalid)
        tables = read_events(folder, shards, asked)
        if known:
            tables = _restored(tables, known["tables"])
        chosen = {"history": known.get("history"), **settings}
        chosen["outcome_kinds"] = kinds | dict(chosen.get("outcome_kinds") or {})
        cohort = kind(asked.outcomes, **tables, **chosen)
        cohort.exclusions = (*left_out, *cohort.exclusions)
        return cohort.rename_subjects(_original_ids(folder)) if known.get("text_ids") else cohort


def _read_layout(path: Path) -> dict:
    """What chiasm noted beside a dataset that it wrote; nothing for a dataset of other writing."""
    if not path.is_file():
        return {}
    try:
        layout = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON. Write the cohort anew, or remove the file.") from error
    if not isinstance(layout, dict) or layout.get("schema") != _SCHEMA or not _is_layout(layout):
        raise InputError(f"{path} is not of schema {_SCHEMA}, which this version reads. Write the cohort anew.")
    return layout


def _is_layout(layout: Mapping[str, object]) -> bool:
    """Whether this is what `_write_metadata` notes."""
    outcomes, tables = layout.get("outcomes"), layout.get("tables")
    if not isinstance(outcomes, dict) or not isinstance(tables, dict) or not set(tables) <= {*EVENT_TABLES, "static"}:
        return False
    if not all(isinstance(one, dict) for one in (*outcomes.values(), *tables.values())):
        return False
    told = all(isinstance(one.get("kind"), str) and isinstance(one.get("classes"), list) for one in outcomes.values())
    return told and all(dtype in _DTYPES for columns in tables.values() for dtype in columns.values())


def _restored(tables: Mapping[str, Excerpt | pd.DataFrame | None], layout: Mapping[str, Mapping[str, str]]) -> dict:
    """Tables with exactly the columns and types they had when chiasm wrote them."""
    restored: dict[str, Excerpt | pd.DataFrame] = {}
    for name, columns in layout.items():
        given = tables[name]
        table = given.table if isinstance(given, Excerpt) else given
        if table is None:
            table = pd.DataFrame({"subject_id": pd.Series(dtype="int64")})
        table = table.reindex(columns=list(columns))
        require_columns(table, name)
        # Categories stay categories, even where all of them look like numbers.
        dtypes = {
            column: "category" if (name, dtype) == ("static", "str") else dtype for column, dtype in columns.items()
        }
        try:
            table = table.astype({column: dtype for column, dtype in dtypes.items() if column != "subject_id"})
        except (TypeError, ValueError):
            raise InputError(
                f"{name} is not of the types that metadata/chiasm.json names ({', '.join(columns)}). Write the cohort "
                "anew, or remove that file."
            ) from None
        restored[name] = replace(given, table=table) if isinstance(given, Excerpt) else table
    return restored
