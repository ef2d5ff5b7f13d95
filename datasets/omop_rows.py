"""Rows of OMOP tables inside the engine: when they happened, which matter, and which cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from .checks import Exclusion, Places, Policy, TableCheck
from .errors import InputError
from .omop_tables import MACROS, Part, Table, Wrong, wrong_cells

if TYPE_CHECKING:
    import duckdb

MEMORY = "2GB"
"""What the engine may hold; beyond it goes to the temporary folder."""

# A day without a time of day is an interval. On a clock without zones it ends at the next midnight. On a
# clock in UTC, the day of an unknown place begins 14 hours earlier (Kiribati) and ends 12 hours later
# (Baker Island). Midnight itself is what the model's conventions write where no time is given
# (VISIT_OCCURRENCE.visit_start_datetime), so it is a day without a time of day as well. Where a date lies
# after its datetime, the later is believed.
_MOMENT_MACROS = """
CREATE MACRO is_bare(utc, wall) AS utc IS NULL OR wall = date_trunc('day', wall);
CREATE MACRO day_of(wall, day) AS greatest(date_trunc('day', wall), date_trunc('day', day));
CREATE MACRO moment_time(utc, wall, day) AS CASE WHEN is_bare(utc, wall) THEN day_of(wall, day) ELSE utc END;
CREATE MACRO moment_first(utc, wall, day, zoned) AS CASE
    WHEN is_bare(utc, wall) THEN day_of(wall, day) - CASE WHEN zoned THEN INTERVAL 14 HOUR ELSE INTERVAL 0 HOUR END
    ELSE utc END;
CREATE MACRO moment_known(utc, wall, day, zoned) AS CASE
    WHEN is_bare(utc, wall) OR day > wall + CASE WHEN zoned THEN INTERVAL 14 HOUR ELSE INTERVAL 0 HOUR END
    THEN day_of(wall, day) + CASE WHEN zoned THEN INTERVAL 36 HOUR ELSE INTERVAL 24 HOUR END
    ELSE utc END;
"""


class Moment(NamedTuple):
    """A moment as SQL, in two steps, so that a cell is parsed once."""

    cells: dict[str, str]
    """Over the table's own columns."""
    columns: dict[str, str]
    """Over the cells, TIMESTAMP: `{name}_time`, nominal, and `{name}_first` and `{name}_known`, the interval in
    which the moment lies. Nothing that happened then is taken to be known before the latter."""


def moment(table: Table, name: str, zoned: bool) -> Moment:
    """The moment `name` of a table, such as "visit_start"; `zoned`: whether the times of the source have zones."""
    cells = {
        f"{name}_utc": table.cell(f"{name}_datetime"),
        f"{name}_wall": table.wall(f"{name}_datetime"),
        f"{name}_day": table.wall(f"{name}_date"),
    }
    known = ", ".join(cells)
    columns = {
        f"{name}_time": f"moment_time({known})",
        f"{name}_first": f"moment_first({known}, {zoned})",
        f"{name}_known": f"moment_known({known}, {zoned})",
    }
    return Moment(cells, columns)


def wrong_moments(table: Table, name: str, zoned: bool, *, optional: bool = False) -> list[Wrong]:
    """The ways in which a moment cannot be used."""
    wrongs = wrong_cells(table, [f"{name}_date", f"{name}_datetime"])
    other = "has no zone, as other times have" if zoned else "has a zone, as other times have not"
    mixed = f"{table.has_zone(f'{name}_datetime')} = {not zoned}"
    wrongs.append(Wrong(mixed, f"{name}_datetime {other}", "Give all times a zone, or none"))
    if not optional:
        blank = f"{table.blank(f'{name}_date')} AND {table.blank(f'{name}_datetime')}"
        wrongs.append(Wrong(blank, f"{name}_date is blank", "Fill in the date"))
    return wrongs


@dataclass
class Engine:
    """DuckDB with a bound on its memory and a temporary folder that goes with it.

    Args:
        invalid: "raise" or "exclude", for rows that cannot be used.
    """

    invalid: Policy
    exclusions: list[Exclusion] = field(default_factory=list)

    def __enter__(self) -> Engine:
        import duckdb

        self._folder = TemporaryDirectory(prefix="chiasm-omop-")
        self.connection: duckdb.DuckDBPyConnection = duckdb.connect(
            f"{self._folder.name}/rows.duckdb",
            config={
                "memory_limit": MEMORY,
                "temp_directory": f"{self._folder.name}/spilled",
                "preserve_insertion_order": "false",
                # All that is needed is built in; nothing is fetched.
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        # In a transaction that is never committed, tables go to the file compressed and nothing waits for the disk.
        self.connection.execute(f"BEGIN; {MACROS} {_MOMENT_MACROS}")
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._folder.cleanup()

    def run(self, sql: str, *tables: Table) -> duckdb.DuckDBPyConnection:
        """Execute SQL that reads from these tables.

        Raises:
            InputError: a file cannot be read, or the temporary folder is full.
        """
        with self._explaining(tables):
            return self.connection.execute(sql)

    @contextmanager
    def _explaining(self, tables: Sequence[Table] = ()) -> Iterator[None]:
        """Turn DuckDB's failures into an error that names the file. What DuckDB says is dropped: it quotes rows."""
        import duckdb

        try:
            yield
        except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.InterruptException):
            raise
        except duckdb.Error as error:
            if not isinstance(error, duckdb.OutOfMemoryException) and "No space left" not in str(error):
                raise _unreadable(str(error), tables) from None
            raise InputError(
                f"The rows that are selected need more than {MEMORY} of memory and the free space of the temporary "
                f"folder {self._folder.name}. Set TMPDIR to a folder on a larger disk, or give a shorter history."
            ) from None

    def frame(self, sql: str, categories: Sequence[str] = (), order: str = "") -> pd.DataFrame:
        """The result of SQL over rows that were taken before.

        Args:
            sql: the query.
            categories: columns of text that repeats, which become categorical.
            order: columns to sort by.
        """
        if categories:
            self.run(f"CREATE OR REPLACE TABLE words AS SELECT DISTINCT {', '.join(categories)} FROM ({sql})")
            for column in categories:
                words = f"SELECT DISTINCT {column} FROM words WHERE {column} IS NOT NULL ORDER BY {column}"
                self.run(f"CREATE OR REPLACE TYPE {column}_word AS ENUM ({words})")
            columns = ", ".join(f"CAST({column} AS {column}_word) AS {column}" for column in categories)
            sql = f"SELECT * REPLACE ({columns}) FROM ({sql})"
        with self._explaining():
            result = self.connection.sql(f"{sql} ORDER BY {order}" if order else sql)
            return result.to_arrow_table().to_pandas(split_blocks=True, self_destruct=True)

    def number(self, sql: str) -> int:
        """The one number that SQL over rows that were taken before gives."""
        return int(self.run(sql).fetchall()[0][0] or 0)

    def take(self, name: str, query: RowQuery) -> None:
        """Make a table `name` of the rows that matter; those that cannot be used are refused or listed.

        Raises:
            InputError: a row cannot be used and the policy is to raise, with its file, row and reason.
        """
        self.run(f"CREATE TABLE {name} AS {query.sql(query.table.rows)}", query.table)
        if self.number(f"SELECT count(*) FROM {name} WHERE wrong IS NOT NULL"):
            self._refuse(query)
            self.run(f"DELETE FROM {name} WHERE wrong IS NOT NULL")
        self.run(f"ALTER TABLE {name} DROP COLUMN wrong")

    def _refuse(self, query: RowQuery) -> None:
        """Find the rows again, one part after the other, this time with their numbers."""
        found = []
        with self._in_the_order_of_files():
            for number, part in enumerate(query.table.parts):
                rows = f"(SELECT *, {part.row} AS row_of_part FROM {part.rows})"
                bad = f"SELECT row_of_part, wrong FROM ({query.sql(rows)}) WHERE wrong IS NOT NULL ORDER BY row_of_part"
                found += [(number, *row) for row in self.run(bad, query.table).fetchall()]
        file, row, reason = (np.array(column) for column in zip(*found, strict=True))
        places = Places(tuple(part.label for part in query.table.parts), file, row)
        check = TableCheck(query.table.name, len(found), self.invalid, places)
        for wrong in query.wrong:
            check.refuse(reason == wrong.reason, wrong.reason, wrong.remedy)
        self.exclusions += check.settle(pd.DataFrame(index=range(len(found))))[1]

    @contextmanager
    def _in_the_order_of_files(self) -> Iterator[None]:
        """The numbers of rows are those of the file only if one thread reads it from its beginning."""
        self.connection.execute("SET threads = 1; SET preserve_insertion_order = true")
        yield
        self.connection.execute("RESET threads; SET preserve_insertion_order = false")

    def places_of_one(self, table: Table, taken: str) -> str:
        """Where the rows of one person stand who has several in the engine's table `taken`, in words."""
        several = f"SELECT person_id FROM {taken} GROUP BY person_id HAVING count(*) > 1"
        person = self.number(f"{several} ORDER BY person_id LIMIT 1")
        places: list[str] = []
        with self._in_the_order_of_files():
            for part in table.parts:
                rows = f"(SELECT {table.cell('person_id')} AS person_id, {part.row} AS row_of_part FROM {part.rows})"
                own = f"SELECT row_of_part FROM {rows} WHERE person_id = {person} ORDER BY row_of_part"
                places += [f"{part.label}, data row {row}" for (row,) in self.run(own, table).fetchall()]
        return " and ".join(places[:3])


@dataclass(frozen=True)
class RowQuery:
    """Which rows of a table matter, and their columns in their types."""

    table: Table
    columns: Mapping[str, str]
    """SQL over the table's own columns, by the name that it gets."""
    wrong: Sequence[Wrong]
    """Ways in which a row cannot be used, over the table's own columns; the first that holds counts."""
    moments: Sequence[Moment] = ()
    matters: str = "true"
    """SQL over the new columns: whether a row is looked at."""
    beside: str = ""
    """A join of another table of the engine."""

    def sql(self, rows: str) -> str:
        """The rows that matter, from `rows`, and `wrong`: why a row cannot be used."""
        cases = " ".join(f"WHEN {one.condition} THEN '{one.reason}'" for one in self.wrong)
        columns = {**self.columns, "wrong": f"CASE {cases} END"}
        if rows != self.table.rows:
            columns["row_of_part"] = "row_of_part"
        cells, derived = dict(columns), dict(zip(columns, columns, strict=True))
        for one in self.moments:
            cells |= one.cells
            derived |= one.columns
        parsed = f"SELECT {_named(cells)} FROM {rows}"
        return f"SELECT own.* FROM (SELECT {_named(derived)} FROM ({parsed})) AS own {self.beside} WHERE {self.matters}"


def _named(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{expression} AS {name}" for name, expression in columns.items())


def whole_cells(table: Table, *columns: str) -> dict[str, str]:
    """Columns in the type of their role, under their own names."""
    return {column: table.cell(column) for column in columns}


def zone_of(engine: Engine, tables: Sequence[Table]) -> bool:
    """Whether the times of a source have zones, from the first time of each column.

    Raises:
        InputError: one column's times have, and another's have not.
    """
    columns = [(table, column) for table in tables for column in table.kinds if column.endswith("_datetime")]
    seen: dict[bool, str] = {}
    for table, column in columns:
        first = f"SELECT {table.has_zone(column)} FROM {table.rows} WHERE {table.has_zone(column)} IS NOT NULL LIMIT 1"
        for (zoned,) in engine.run(first, table).fetchall():
            seen.setdefault(zoned, f"{table.parts[0].label}: {column}")
    if len(seen) > 1:
        raise InputError(
            f"{seen[True]} has time zones and {seen[False]} has none, so the two cannot be compared. "
            "Give all times a zone, or none."
        )
    return True in seen or (not seen and any(table.kinds[column] == "zoned" for table, column in columns))


def _unreadable(said: str, tables: Sequence[Table]) -> InputError:
    """What is known of a file that the engine could not read, without its content."""
    parts = [part for table in tables for part in table.parts]
    kept = next((part.kept_in for part in parts if part.kept_in and part.kept_in in said), None)
    if kept is not None:
        return InputError(f"{kept} is damaged. Remove it: it is fetched anew.")
    part = next((part for part in parts if part.label in said), parts[0] if parts else Part("the rows", ""))
    label = part.label
    if "unicode" in said or "utf-8" in said.split("Original Line")[-1].lower():
        return InputError(f"{label} is not UTF-8. Save it as UTF-8.")
    line = re.search(r"CSV Error on Line: (\d+)", said)
    cells = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", said)
    if line and cells:
        marks = "tabs" if part.separator == "\t" else "commas"
        return InputError(
            f"{label}, line {line[1]}: {cells[2]} cells, but the first line names {cells[1]} columns. Correct the row, "
            f"and put text that has {marks} or line ends in quotation marks."
        )
    if line and "unterminated quote" in said:
        return InputError(f"{label}, line {line[1]}: a quotation mark is not closed. Close it, or double it.")
    if line and "Maximum line size" in said:
        return InputError(f"{label}, line {line[1]}: longer than 32 MB, or a quotation mark is not closed.")
    if "state machine" in said:
        return InputError(f"{label} mixes line ends (CR, LF, CR LF), or is no CSV file. Write it anew.")
    return InputError(f"{label} cannot be read. Write it anew.")
