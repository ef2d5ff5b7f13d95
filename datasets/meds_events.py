"""Events of a MEDS dataset, shard by shard: which of them are labs, notes, images and static facts.

Source: MEDS 0.4.1, https://github.com/Medical-Event-Data-Standard/meds (DataSchema).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .checks import Excerpt
from .errors import InputError
from .excerpts import Asked, EventRows
from .files import TABULAR, resolve_paths
from .locations import walked
from .pieces import pieces
from .tables import EVENT_TABLES, no_patient_in_common

STATIC, NOTE, IMAGE = "STATIC", "NOTE", "IMAGE"
REQUIRED = ("subject_id", "time", "code")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_clock(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.tz is None


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


# What a column may be, how that is called, and what it becomes.
_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], str, pa.DataType]] = {
    "subject_id": (pa.types.is_integer, "whole numbers", pa.int64()),
    "time": (_is_clock, "timestamps without a zone", pa.timestamp("us")),
    "code": (_is_text, "text", pa.dictionary(pa.int32(), pa.string())),
    "numeric_value": (_is_number, "numbers", pa.float64()),
    "text_value": (_is_text, "text", pa.large_string()),
    "event_time": (_is_clock, "timestamps without a zone", pa.timestamp("us")),
    "unit": (_is_text, "text", pa.dictionary(pa.int32(), pa.string())),
    "image_path": (_is_text, "text", pa.large_string()),
    "study_uid": (_is_text, "text", pa.large_string()),
}
_CODED = ("code", "unit")
# JSON and text beside the shards are notes of programs.
_OTHER_FORMS = tuple(ending for ending in TABULAR if not re.match(r"\.(json|txt|dat|pkl|pickle)", ending))
# Bytes. Codes become columns and categories, and are kept several times.
_LONGEST_WORD = 10_000


def shards_in(folder: Path) -> list[Path]:
    """The Parquet files of `data/`, at any depth.

    Raises:
        InputError: a folder cannot be listed, or a table in it has another form or name, and would be passed over.
    """
    home = folder / "data"
    files = [Path(place, name) for place, _, names in walked(home) for name in names]
    for path in files:
        name = path.name
        if name.lower().endswith(_OTHER_FORMS) and not name.endswith(".parquet") and not name.startswith("."):
            raise InputError(
                f"{path} is not read: the events of a MEDS dataset lie in files that end in .parquet. Write it so, or "
                "move it elsewhere."
            )
    return sorted(path for path in files if path.name.endswith(".parquet"))


def require_shards(folder: Path) -> list[Path]:
    """The shards of a dataset, each with columns of the types that MEDS says.

    Raises:
        InputError: there is none, or one is no Parquet file or lacks a column.
    """
    shards = shards_in(folder)
    if not shards:
        raise InputError(f"{folder / 'data'} has no .parquet file. A MEDS dataset keeps its events there.")
    for path in shards:
        schema = next(pieces(path)).schema
        missing = [name for name in REQUIRED if name not in schema.names]
        if missing:
            raise InputError(f"{path} lacks the column {missing[0]}, which MEDS 0.4 requires.")
        for name in {*schema.names} & {*_KINDS}:
            is_right, called, _ = _KINDS[name]
            found = schema.field(name).type if schema.names.count(name) == 1 else "there twice"
            if found == "there twice" or not (is_right(found) or pa.types.is_null(found)):
                raise InputError(f"{path}: {name} is {found}, and {called} in MEDS 0.4. Write the shard anew.")
    return shards


def read_events(folder: Path, shards: Sequence[Path], asked: Asked) -> dict[str, Excerpt | pd.DataFrame | None]:
    """The four input tables: of the events what matters, and the static facts of the patients.

    Raises:
        InputError: a shard cannot be read, or has static facts of nobody or of strangers alone.
    """
    files = [str(path.relative_to(folder)) for path in shards]
    gathered = {name: EventRows(name, asked, files) for name in EVENT_TABLES}
    facts, strangers = [], False
    for number, path in enumerate(shards):
        first = 1
        for piece in pieces(path, tuple(_KINDS), _CODED):
            events = _typed(piece, path)
            masks = _masks(events)
            for name in EVENT_TABLES:
                if masks[name].any():
                    rows = np.flatnonzero(masks[name])
                    gathered[name].take(_AS_TABLE[name](events.take(rows), folder), number, first + rows)
            stated = events.filter(pa.array(masks["static"])).select(
                ["subject_id", "code", "numeric_value", "text_value"]
            )
            if stated["subject_id"].null_count:
                row = first + int(np.flatnonzero(masks["static"])[stated["subject_id"].is_null().index(True).as_py()])
                raise InputError(f"{path}, data row {row}: subject_id is blank. Write the shard anew.")
            ours = asked.are_ours(stated["subject_id"].to_numpy())
            strangers |= not ours.all()
            facts.append(stated.filter(pa.array(ours)).to_pandas())
            first += len(piece)
    static = pd.concat(facts, ignore_index=True)
    if strangers and not len(static):
        raise no_patient_in_common("static")
    tables = {name: events.excerpt() if events.rows else None for name, events in gathered.items()}
    return tables | {"static": _static_table(static) if len(static) else None}


def _typed(piece: pa.Table, path: Path) -> pa.Table:
    """All columns that are used, in their types; those that a shard does not have are missing throughout."""
    columns = {}
    for name, (_, called, kind) in _KINDS.items():
        column = piece[name] if name in piece.column_names else pa.nulls(len(piece))
        try:
            if name in _CODED and not pa.types.is_dictionary(column.type):
                columns[name] = column.cast(pa.string()).dictionary_encode()
            elif pa.types.is_floating(column.type):
                # Not all of what float64 holds is a number of float32; the cohort looks at it.
                columns[name] = column
            else:
                columns[name] = column.cast(kind)
        except pa.ArrowInvalid:
            raise InputError(f"{path}: {name} has values that cannot be {called} of {kind}. Correct them.") from None
    events = pa.table(columns).unify_dictionaries().combine_chunks()
    for name in _CODED:
        longest = pc.max(pc.binary_length(events[name].chunk(0).dictionary)).as_py() if len(events) else 0
        if (longest or 0) > _LONGEST_WORD:
            raise InputError(f"{path}: {name} has a text of {longest} bytes, where a word is expected. Correct it.")
    return events


def _masks(events: pa.Table) -> dict[str, np.ndarray]:
    """bool `[row]`, which events are of which table; those that carry nothing are of none."""

    def true(mask: pa.ChunkedArray) -> np.ndarray:
        return mask.fill_null(False).to_numpy()

    static, text = true(events["time"].is_null()), true(events["text_value"].is_valid())
    image = ~static & true(events["image_path"].is_valid())
    number = true(events["numeric_value"].is_valid()) & ~true(pc.is_nan(events["numeric_value"]))
    note = np.zeros(len(events), bool)
    rows = np.flatnonzero(text & ~static & ~image)
    if len(rows):
        own = events.take(rows)
        # "5.1 mmol/L" beside 5.1 is a number and how it was printed.
        prose = ~number[rows] & true(pc.match_substring(own["text_value"], " "))
        note[rows] = prose | _coded_note(own)
    return {"static": static, "images": image, "notes": note, "labs": number & ~static & ~image & ~note}


def _coded_note(events: pa.Table) -> np.ndarray:
    return pc.match_substring_regex(events["code"].cast(pa.string()), rf"^{NOTE}(//|$)").fill_null(False).to_numpy()


def _timed(events: pa.Table, **columns: str) -> pd.DataFrame:
    """`subject_id`, `time`, `available_at` and further columns under their names in a cohort.

    An event may be used from its `time` on; the time that it describes is in `event_time` where that is another.
    """
    table = events.select(["subject_id", "time", "event_time", *columns]).rename_columns(
        ["subject_id", "time", "event_time", *columns.values()]
    )
    own = table.to_pandas()
    described = own.pop("event_time")
    known = own["time"].where(described.notna())
    return own.assign(time=described.where(described.notna(), own["time"]), available_at=known)


def _labs(events: pa.Table, _: Path) -> pd.DataFrame:
    return _timed(events, code="code", numeric_value="value", unit="unit")


def _notes(events: pa.Table, _: Path) -> pd.DataFrame:
    notes = _timed(events, code="kind", text_value="text")
    return notes.assign(kind=_detail(notes["kind"]).where(_coded_note(events)))


def _images(events: pa.Table, folder: Path) -> pd.DataFrame:
    images = _timed(events, code="view", image_path="path", study_uid="study_uid")
    return images.assign(view=_detail(images["view"]), path=resolve_paths(images["path"], folder))


_AS_TABLE = {"labs": _labs, "notes": _notes, "images": _images}


def _words(codes: pd.Series) -> pd.Series:
    """Text, also where all of it is missing."""
    return pd.Series(codes.to_numpy(object), index=codes.index, dtype="str")


def _detail(codes: pd.Series) -> pd.Series:
    """What stands behind the first `//`; missing where there is none."""
    return _words(codes).str.extract(r"//((?s:.*))", expand=False)


def _static_table(facts: pd.DataFrame) -> pd.DataFrame:
    """Facts without a time as one row a patient; a code such as `GENDER//F` alone is a category."""
    column = _words(facts["code"]).str.removeprefix(f"{STATIC}//")
    bare = facts["numeric_value"].isna() & facts["text_value"].isna()
    category = _detail(column).where(bare)
    column = column.where(~bare, column.str.extract(r"^((?s:.*?))(?://|\Z)", expand=False))
    value = facts["numeric_value"].astype(object).where(facts["numeric_value"].notna(), facts["text_value"])
    value = value.where(~bare, category.fillna("present"))
    long = pd.DataFrame({"subject_id": facts["subject_id"], "column": column, "value": value})
    wide = long.drop_duplicates(["subject_id", "column"], keep="last")
    return wide.pivot(index="subject_id", columns="column", values="value").rename_axis(columns=None).reset_index()
