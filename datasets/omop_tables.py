"""The tables of the OMOP common data model that are read, their columns, and each column as SQL.

A column's type differs from hospital to hospital (a date as text, an id as a float beside blanks), so
every column has a *role* here, and is brought into the role's type inside the engine, DuckDB. A cell
that cannot be is noted with a reason and never becomes a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from .errors import InputError
from .tables import LARGEST_LAB_VALUE
from .words import LONGEST_TEXT

Role = Literal["whole", "number", "words", "time"]


class Layout(NamedTuple):
    """What a table must have, what is used of it where it is there, and its moments."""

    required: dict[str, Role]
    optional: dict[str, Role] = {}  # noqa: RUF012 (a NamedTuple's default, never changed)
    moments: tuple[str, ...] = ()
    """Of each, `{moment}_date`, `{moment}_datetime` or both must be there."""
    key: str = ""
    """The number of a row; never one that names a patient."""

    @property
    def columns(self) -> dict[str, Role]:
        """Every column that is used, with its role."""
        times = {f"{moment}_{kind}": "time" for moment in self.moments for kind in ("date", "datetime")}
        return {**self.required, **self.optional, **times}


def _whole(*names: str) -> dict[str, Role]:
    return dict.fromkeys(names, "whole")


def _words(*names: str) -> dict[str, Role]:
    return dict.fromkeys(names, "words")


LAYOUTS: dict[str, Layout] = {
    "person": Layout(
        _whole("person_id", "gender_concept_id", "year_of_birth", "race_concept_id", "ethnicity_concept_id"),
        {**_whole("month_of_birth", "day_of_birth"), "birth_datetime": "time"},
    ),
    "visit_occurrence": Layout(
        _whole("visit_occurrence_id", "person_id", "visit_concept_id"),
        # The second name is that of version 5.3.
        _whole("visit_type_concept_id", "discharged_to_concept_id", "discharge_to_concept_id"),
        ("visit_start", "visit_end"),
        "visit_occurrence_id",
    ),
    "death": Layout(_whole("person_id"), {}, ("death",)),
    "measurement": Layout(
        {**_whole("person_id", "measurement_concept_id"), "value_as_number": "number"},
        _whole("visit_occurrence_id", "operator_concept_id", "value_as_concept_id", "unit_concept_id")
        | _words("measurement_source_value", "unit_source_value"),
        ("measurement",),
        "measurement_id",
    ),
    "observation": Layout(
        _whole("person_id", "observation_concept_id"),
        {"value_as_number": "number", **_whole("visit_occurrence_id", "value_as_concept_id", "unit_concept_id")}
        | _words("observation_source_value", "value_as_string", "unit_source_value"),
        ("observation",),
        "observation_id",
    ),
    "condition_occurrence": Layout(
        _whole("person_id", "condition_concept_id"),
        {**_whole("visit_occurrence_id"), **_words("condition_source_value")},
        ("condition_start",),
        "condition_occurrence_id",
    ),
    "note": Layout(
        {"person_id": "whole", "note_text": "words"},
        _whole("visit_occurrence_id", "note_class_concept_id", "note_type_concept_id")
        | _words("note_title", "note_source_value"),
        ("note",),
        "note_id",
    ),
    "image_occurrence": Layout(
        {"person_id": "whole", "local_path": "words"},
        _words("image_study_uid"),
        ("image_occurrence",),
        "image_occurrence_id",
    ),
    "concept": Layout(
        {"concept_id": "whole", "concept_name": "words"},
        _words("vocabulary_id", "concept_code"),
    ),
}

Kind = Literal["whole", "real", "text", "date", "clock", "zoned", "empty"]
"""What a column holds: integers, other numbers, text, days, times without and with a zone, nothing."""

FITTING: dict[Role, tuple[Kind, ...]] = {
    "whole": ("whole", "real", "text", "empty"),
    "number": ("whole", "real", "text", "empty"),
    "words": ("text", "whole", "real", "empty"),
    "time": ("date", "clock", "zoned", "text", "empty"),
}
_EXPECTED = {"whole": "whole numbers", "number": "numbers", "words": "text", "time": "dates or times"}


def kind_of(type_: pa.DataType) -> Kind | None:
    """What a column of an Arrow type holds; None for what no column of the model can."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_timestamp(type_):
        return "zoned" if type_.tz else "clock"
    kinds = {
        "whole": (pa.types.is_integer,),
        "real": (pa.types.is_floating, pa.types.is_decimal),
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "date": (pa.types.is_date,),
        "empty": (pa.types.is_null,),
    }
    return next((kind for kind, tests in kinds.items() if any(test(type_) for test in tests)), None)


@dataclass(frozen=True)
class Part:
    """A file of a table, or what was read of a database's table."""

    label: str
    """Its name for messages."""
    rows: str
    """The rows, as SQL that can stand after FROM."""
    row: str = "row_number() OVER ()"
    """The number of a row, from 1, as SQL."""
    kept_in: str = ""
    """The file in which a part that was fetched is kept."""
    separator: str = ","
    """What stands between the cells of a text file."""


@dataclass(frozen=True)
class Table:
    """A table whose columns have been checked, and its cells as SQL in the type of their role."""

    name: str
    parts: tuple[Part, ...]
    rows: str
    """The rows of all parts, as SQL that can stand after FROM."""
    kinds: dict[str, Kind]
    zones: dict[str, str]
    """The time zone that a column of kind "zoned" is written in."""

    def cell(self, column: str) -> str:
        """A cell in its role's type: BIGINT, DOUBLE, VARCHAR or, of a time, TIMESTAMP in UTC; NULL if it cannot be."""
        role, kind = LAYOUTS[self.name].columns[column], self.kinds.get(column, "empty")
        if kind == "empty":
            return {"whole": "NULL::BIGINT", "number": "NULL::DOUBLE", "words": "NULL::VARCHAR"}.get(
                role, "NULL::TIMESTAMP"
            )
        name = quoted(column)
        if role == "whole":
            return {"whole": f"TRY_CAST({name} AS BIGINT)", "real": f"whole_real({name})"}.get(kind, f"whole({name})")
        if role == "number":
            return f"number({name})" if kind == "text" else f"not_nan({name})"
        if role == "words":
            return f"words(CAST({name} AS VARCHAR))"
        return {"text": f"utc({name})", "zoned": f"timezone('UTC', {name})"}.get(kind, f"CAST({name} AS TIMESTAMP)")

    def wall(self, column: str) -> str:
        """A time as the clock on the wall showed it, TIMESTAMP."""
        kind = self.kinds.get(column, "empty")
        if kind == "zoned":
            return f"timezone({literal(self.zones[column])}, {quoted(column)})"
        return f"wall({quoted(column)})" if kind == "text" else self.cell(column)

    def has_zone(self, column: str) -> str:
        """Whether a cell that holds a time has a zone, BOOLEAN; NULL where it holds none."""
        kind = self.kinds.get(column, "empty")
        if kind == "text":
            return f"has_zone({quoted(column)})"
        return f"CASE WHEN {quoted(column)} IS NOT NULL THEN {kind == 'zoned'} END" if kind != "empty" else "NULL"

    def blank(self, column: str) -> str:
        """Whether a cell is empty, BOOLEAN."""
        kind = self.kinds.get(column, "empty")
        if kind == "empty":
            return "true"
        return f"blank({quoted(column)})" if kind in ("text", "real") else f"{quoted(column)} IS NULL"


# What cells become, in the engine. A number is written as Arrow and pandas write it; NaN, which pandas
# writes for what is missing, is a blank. A day and a time are ISO 8601, as elsewhere in chiasm; DuckDB's
# own cast to TIMESTAMP reads the clock and leaves the zone, that to TIMESTAMPTZ minds it.
_MOMENT = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?"
_ZONED = r"\d{4}-\d{2}-\d{2}[T ].*(Z|[+-]\d{2}(:?\d{2})?)"
MACROS = rf"""
CREATE MACRO blank(cell) AS cell IS NULL OR trim(CAST(cell AS VARCHAR), E' \t\r\n') IN ('', 'nan', 'NaN', 'NAN');
CREATE MACRO words(cell) AS CASE WHEN strlen(cell) <= {LONGEST_TEXT} AND trim(cell, E' \t\r\n') <> '' THEN cell END;
CREATE MACRO whole(cell) AS CASE WHEN regexp_full_match(trim(cell), '[+-]?\d{{1,18}}(\.0*)?')
    THEN TRY_CAST(regexp_extract(trim(cell), '[+-]?\d+') AS BIGINT) END;
CREATE MACRO whole_real(cell) AS CASE WHEN cell = trunc(cell) AND abs(cell) < 9007199254740992
    THEN TRY_CAST(cell AS BIGINT) END;
CREATE MACRO not_nan(cell) AS CASE WHEN NOT isnan(CAST(cell AS DOUBLE)) THEN CAST(cell AS DOUBLE) END;
CREATE MACRO number(cell) AS CASE WHEN regexp_full_match(trim(cell), '[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?')
    THEN TRY_CAST(trim(cell) AS DOUBLE) END;
CREATE MACRO wall(cell) AS CASE WHEN regexp_full_match(trim(cell), '{_MOMENT}')
    THEN TRY_CAST(trim(cell) AS TIMESTAMP) END;
CREATE MACRO has_zone(cell) AS CASE WHEN NOT blank(cell) THEN regexp_full_match(trim(cell), '{_ZONED}') END;
CREATE MACRO utc(cell) AS CASE WHEN NOT has_zone(cell) THEN wall(cell) WHEN wall(cell) IS NOT NULL
    THEN timezone('UTC', TRY_CAST(trim(cell) AS TIMESTAMPTZ)) END;
"""


class Wrong(NamedTuple):
    """A condition (SQL) under which a row cannot be used, the reason and what to do."""

    condition: str
    reason: str
    remedy: str


def wrong_cells(table: Table, columns: Sequence[str]) -> list[Wrong]:
    """The ways in which these cells can fail their role; a blank is none of them."""
    wrongs = []
    for column in columns:
        role = LAYOUTS[table.name].columns[column]
        filled = f"NOT ({table.blank(column)})"
        if role == "whole":
            wrongs.append(
                Wrong(f"{filled} AND {table.cell(column)} IS NULL", f"{column} is not a whole number", "Correct it")
            )
        elif role == "number":
            number = table.cell(column)
            wrongs.append(Wrong(f"{filled} AND {number} IS NULL", f"{column} is not a number", "Correct the value"))
            impossible = f"NOT (abs({number}) <= {LARGEST_LAB_VALUE})"
            why = f"{column} is infinite or beyond ±{LARGEST_LAB_VALUE:.0e}, which no laboratory reports"
            wrongs.append(Wrong(impossible, why, "Correct the value or its unit"))
        elif role == "words" and table.kinds.get(column) == "text":
            # Here, in the engine, and not where it has been copied out of it.
            too_long = f"strlen({quoted(column)}) > {LONGEST_TEXT}"
            wrongs.append(Wrong(too_long, f"{column} has more than {LONGEST_TEXT >> 20} MiB", "Divide it into rows"))
        elif role == "time":
            remedy = "Write times as 2031-05-17 08:30:00 (ISO 8601)"
            wrongs.append(Wrong(f"{filled} AND {table.cell(column)} IS NULL", f"{column} is not a time", remedy))
    return wrongs


def require_layout(name: str, label: str, columns: dict[str, Kind | None], described: dict[str, str]) -> dict:
    """The kinds of the columns of one part that are used, by their names in lower case.

    Args:
        name: the table.
        label: the part's name for messages.
        columns: what each column of the part holds.
        described: the type of each column, for messages.

    Raises:
        InputError: a column is missing, stands there twice, or holds what its role cannot be.
    """
    layout = LAYOUTS[name]
    names = [column.lower() for column in columns]
    doubled = sorted({column for column in names if names.count(column) > 1})
    if doubled:
        raise InputError(f"{label} has the column {doubled[0]} twice. Rename or drop one of them.")
    missing = [column for column in layout.required if column not in names]
    missing += [
        f"{moment}_date" for moment in layout.moments if not {f"{moment}_date", f"{moment}_datetime"} & set(names)
    ]
    if missing:
        raise InputError(
            f"{label} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} of the OMOP table {name}; it has "
            f"{', '.join(columns) or 'none'}. Write it as OMOP CDM 5.4 does."
        )
    for column, kind in columns.items():
        role = layout.columns.get(column.lower())
        if role is not None and kind not in FITTING[role]:
            raise InputError(
                f"{label}: {column} holds {described[column]}, expected {_EXPECTED[role]}. Convert the column."
            )
    return {column.lower(): kind for column, kind in columns.items() if column.lower() in layout.columns}


def of_parts(name: str, parts: Sequence[Part], rows: str, schemas: Sequence[pa.Schema]) -> Table:
    """A table of parts that have these Arrow schemas.

    Raises:
        InputError: a part is not laid out as the table should be, or two parts are laid out differently.
    """
    kinds: dict[str, Kind] = {}
    zones: dict[str, str] = {}
    for part, schema in zip(parts, schemas, strict=True):
        own = {field.name: kind_of(field.type) for field in schema}
        own = require_layout(name, part.label, own, {field.name: str(field.type) for field in schema})
        for column, kind in own.items():
            # A part in which a column has no value says nothing of its type.
            if kinds.setdefault(column, kind) == "empty":
                kinds[column] = kind
            if kind not in (kinds[column], "empty"):
                raise InputError(
                    f"{part.label}: {column} is of another type here ({kind}) than in {parts[0].label} "
                    f"({kinds[column]}). Write all parts of the table alike."
                )
        for field in schema:
            column = field.name.lower()
            if own.get(column) == "zoned" and zones.setdefault(column, field.type.tz) != field.type.tz:
                raise InputError(
                    f"{part.label}: {column} has another time zone ({field.type.tz}) than in {parts[0].label} "
                    f"({zones[column]}). Write all parts of the table alike."
                )
    return Table(name, tuple(parts), rows, kinds, zones)


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"
