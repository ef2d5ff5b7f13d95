"""OMOP tables in a live database: fetched in small parts, each kept as a file, so that a reading can go on.

The database selects the patients and the days; what it gives is written as Parquet, and the engine reads
that as it reads a folder. A part that has been fetched is never fetched again: when the database goes
away half-way, the next call with the same cache begins where this one stopped.
"""

from __future__ import annotations

import hashlib
import json
import zoneinfo
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .disk import naming_full_disk, reach_disk
from .errors import InputError
from .omop_tables import LAYOUTS, Part, Table, literal, of_parts
from .progress import progress_bar

if TYPE_CHECKING:
    import sqlalchemy as sa

KEYS_A_PART = 500
"""Persons or concepts of one query; databases take 1,000 (Oracle), 2,100 (SQL Server) or more values in a list."""

ROWS_A_FETCH = 20_000
"""Rows that are held at a time."""

INSTALL = 'Run pip install "chiasm[database]"'


@dataclass(frozen=True)
class _Remote:
    """A table of the database: its columns that are used, as SQLAlchemy and as Arrow type them."""

    table: sa.TableClause
    columns: dict[str, sa.Column]
    schema: pa.Schema


class Database:
    """The tables of a database, of which parts are fetched when they are asked for.

    Args:
        source: SQLAlchemy's URL, such as "postgresql+psycopg://user@host/database".
        schema: that of the tables; None for the database's own default.
        cache: the folder in which parts are kept; None for one that goes with the reading.

    Raises:
        InputError: SQLAlchemy or the driver is not installed, or the URL is none.
    """

    def __init__(self, source: str, schema: str | None, cache: str | Path | None) -> None:
        try:
            import sqlalchemy
        except ImportError as error:
            raise InputError(f"Reading a database needs SQLAlchemy. {INSTALL}.") from error
        try:
            url = sqlalchemy.make_url(source)
            # The values of queries, which are patients, stay out of what SQLAlchemy says.
            self.engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, hide_parameters=True)
        except sqlalchemy.exc.NoSuchModuleError:
            raise InputError(
                f"SQLAlchemy knows no database {url.drivername}. Check the beginning of the URL; that of PostgreSQL is "
                "postgresql+psycopg://."
            ) from None
        except (sqlalchemy.exc.ArgumentError, ValueError):
            # A ValueError quotes what stands for the port, which may be the end of a password.
            raise InputError(
                "The source has :// but is no URL of a database. Write it as postgresql+psycopg://user@host/database."
            ) from None
        except ImportError as error:
            raise InputError(f"The driver of {url.drivername} is not installed. {INSTALL}, or that driver.") from error
        shown = url.set(query={}).render_as_string(hide_password=True)
        self.where = shown if schema is None else f"{shown} (schema {schema})"
        self._about = [url.set(password=None).render_as_string(), schema]
        self._schema = schema
        self._temporary = TemporaryDirectory(prefix="chiasm-omop-") if cache is None else None
        self._cache = Path(cache or self._temporary.name)
        self._remotes: dict[str, _Remote | None] = {}
        self._zone = "UTC"
        self._names: dict[str, str] = {}

    def __enter__(self) -> Database:
        from sqlalchemy import exc

        try:
            self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._look()
        except OSError as error:
            raise InputError(
                f"The folder {self._cache} cannot be made ({error.strerror}). Give another one."
            ) from error
        except exc.SQLAlchemyError as error:
            self._tidy()
            # No patient is in what a database says at its door.
            said = first_words(getattr(error, "orig", None) or error, self.engine.url)
            raise InputError(f"The database {self.where} cannot be opened: {said}. Check the URL.") from None
        return self

    def _look(self) -> None:
        """Which tables there are, and the zone in which the database writes times with zones."""
        import sqlalchemy

        with self.engine.connect() as connection:
            look = sqlalchemy.inspect(connection)
            for form in (*map(str.upper, LAYOUTS), *LAYOUTS):
                if look.has_table(form, schema=self._schema):
                    self._names[form.lower()] = form
            if self.engine.dialect.name == "postgresql":
                zone = connection.exec_driver_sql("SHOW TimeZone").scalar()
                self._zone = zone if zone in zoneinfo.available_timezones() else "UTC"

    def _tidy(self) -> None:
        self.engine.dispose()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __exit__(self, *_: object) -> None:
        self._tidy()

    def prepare(self, connection: object) -> None:
        """Nothing: the engine reads Parquet files."""

    def people(self, kinds: Sequence[int]) -> np.ndarray:
        """The persons who have visits of some kinds, int64, ascending."""
        import sqlalchemy

        remote = self._remote("visit_occurrence")
        if remote is None:
            return np.zeros(0, np.int64)
        person, kind = (remote.columns[name] for name in ("person_id", "visit_concept_id"))
        query = sqlalchemy.select(person).where(kind.in_(list(kinds)), person.is_not(None)).distinct()
        path = self._cache / self._part_name("people", [sorted(kinds)], np.zeros(0))
        self._fetch([(path, query)], pa.schema([remote.schema.field("person_id")]), "visit_occurrence")
        try:
            return np.sort(pq.read_table(path)["person_id"].to_numpy())
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} is damaged. Remove it: it is fetched anew.") from error

    def table(self, name: str, keys: np.ndarray, until: np.ndarray | None = None) -> Table | None:
        """A table as far as it is asked for, or None where there is none; see `omop.Source`.

        Raises:
            InputError: the table is not laid out as it should be, or the database went away.
        """
        remote = self._remote(name)
        if remote is None:
            return None
        key = LAYOUTS[name].key
        label, row = self._label(name), {}
        if key in remote.columns:
            label, row = f"{label} (rows by {key})", {"row": key}
        if not len(keys):
            nothing = ", ".join(f"NULL::VARCHAR AS {column}" for column in remote.columns)
            return of_parts(name, [Part(label, "")], f"(SELECT {nothing} LIMIT 0)", [remote.schema])
        paths, queries = [], []
        for start in range(0, len(keys), KEYS_A_PART):
            block = keys[start : start + KEYS_A_PART]
            last = None if until is None else pd.Timestamp(until[start : start + KEYS_A_PART].max())
            about = [name, list(remote.columns), last, self._zone]
            paths.append(self._cache / self._part_name(name, about, block))
            queries.append(self._query(remote, name, block, last))
        self._fetch(list(zip(paths, queries, strict=True)), remote.schema, name)
        parts = [Part(label, f"read_parquet({literal(str(path))})", kept_in=str(path), **row) for path in paths]
        every = ", ".join(literal(str(path)) for path in paths)
        return of_parts(name, parts, f"read_parquet([{every}])", [remote.schema] * len(parts))

    def _label(self, name: str) -> str:
        return f"the table {name}" if self._schema is None else f"the table {self._schema}.{name}"

    def _part_name(self, name: str, about: Sequence[object], keys: np.ndarray) -> str:
        """A name that says, as a hash, exactly what a part holds."""
        words = json.dumps([self._about, about], default=str).encode()
        return f"{name}-{hashlib.sha256(words + keys.tobytes()).hexdigest()[:32]}.parquet"

    def _remote(self, name: str) -> _Remote | None:
        """The table as the database describes it, or None where it has none."""
        import sqlalchemy

        if name not in self._remotes and name in self._names:
            with self._talking(name), self.engine.connect() as connection:
                described = sqlalchemy.inspect(connection).get_columns(self._names[name], self._schema)
            used = [*LAYOUTS[name].columns, LAYOUTS[name].key]
            described = [one for one in described if one["name"].lower() in used]
            columns = {one["name"].lower(): sqlalchemy.Column(one["name"], one["type"]) for one in described}
            table = sqlalchemy.table(self._names[name], *columns.values(), schema=self._schema)
            schema = pa.schema([(column, self._arrow_type(one.type)) for column, one in columns.items()])
            self._remotes[name] = _Remote(table, columns, schema)
            # Before anything is fetched.
            of_parts(name, [Part(self._label(name), "")], "", [schema])
            self._require_whole(schema, name)
        return self._remotes.get(name)

    def _arrow_type(self, type_: sa.types.TypeEngine) -> pa.DataType:
        from sqlalchemy import types

        if isinstance(type_, types.DateTime):
            return pa.timestamp("us", self._zone if type_.timezone else None)
        known = ((types.Date, pa.date32()), (types.Integer, pa.int64()), (types.Numeric, pa.float64()))
        known += ((types.Float, pa.float64()),)
        known += ((types.Boolean, pa.bool_()), (types.String, pa.large_string()), (types.Uuid, pa.binary()))
        return next((arrow for kind, arrow in known if isinstance(type_, kind)), pa.binary())

    def _require_whole(self, schema: pa.Schema, name: str) -> None:
        key = _key(name)
        if not pa.types.is_integer(schema.field(key).type):
            raise InputError(
                f"{self._label(name)}: {key} is no integer column, so its rows cannot be asked for. "
                "Make it one, as OMOP CDM 5.4 has it."
            )

    def _query(self, remote: _Remote, name: str, keys: np.ndarray, until: pd.Timestamp | None) -> sa.Select:
        """The rows of some persons or concepts, dated up to a day; numbers as floats, which the driver gives faster."""
        import sqlalchemy
        from sqlalchemy import types

        wanted = [
            sqlalchemy.cast(one, types.Double).label(column) if isinstance(one.type, types.Numeric) else one
            for column, one in remote.columns.items()
        ]
        query = sqlalchemy.select(*wanted).where(remote.columns[_key(name)].in_(keys.tolist()))
        date = next((remote.columns.get(f"{moment}_date") for moment in LAYOUTS[name].moments), None)
        if until is not None and date is not None and isinstance(date.type, types.Date):
            # A clock in UTC shows the date up to 14 hours later than the place does.
            query = query.where((date <= (until + pd.Timedelta(days=1)).date()) | date.is_(None))
        return query

    def _fetch(self, parts: Sequence[tuple[Path, sa.Select]], schema: pa.Schema, name: str) -> None:
        """Write the parts that are not there yet, each whole or not at all."""
        missing = [(path, query) for path, query in parts if not path.is_file()]
        if not missing:
            return
        done = len(parts) - len(missing)
        with progress_bar(f"fetching {name}", len(parts)) as advance:
            advance(done)
            for path, query in missing:
                with self._talking(name, done, len(parts)), naming_full_disk(self._cache, f"the table {name}"):
                    self._write_part(path, query, schema, name)
                done += 1
                advance(1)

    def _write_part(self, path: Path, query: sa.Select, schema: pa.Schema, name: str) -> None:
        scratch = path.with_name(f".{path.name}-{token_hex(4)}")
        try:
            with scratch.open("wb") as file:
                with pq.ParquetWriter(file, schema) as writer, self.engine.connect() as connection:
                    connection.execution_options(stream_results=True, yield_per=ROWS_A_FETCH)
                    with connection.execute(query) as result:
                        for rows in result.partitions():
                            writer.write_table(self._as_arrow(rows, schema, name))
                if self._temporary is None:
                    reach_disk(file)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def _as_arrow(self, rows: Sequence[tuple], schema: pa.Schema, name: str) -> pa.Table:
        cells = []
        for field, values in zip(schema, zip(*rows, strict=True), strict=True):
            try:
                cells.append(pa.array(values, field.type))
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                raise InputError(
                    f"{self._label(name)}: {field.name} has a value that is not of the column's type ({field.type}). "
                    "Correct the table."
                ) from None
        return pa.Table.from_arrays(cells, schema=schema)

    @contextmanager
    def _talking(self, name: str, done: int = 0, parts: int = 1) -> Iterator[None]:
        """Turn what SQLAlchemy raises into an error that says what is kept and how to go on."""
        from sqlalchemy import exc

        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError) as error:
            kept = (
                f"What was read is kept in {self._cache}: call again with the same arguments to go on from there"
                if self._temporary is None
                else 'Call again with cache="FOLDER": a reading that is cut off then goes on where it stopped'
            )
            raise InputError(
                f"The database {self.where} went away while the table {name} was read (part {done + 1} of {parts}; "
                f"{type(error.orig).__name__}). {kept}."
            ) from None
        except InputError:
            raise
        # A ValueError is what SQLAlchemy lets through where a driver gives text that is no date.
        except (exc.SQLAlchemyError, ValueError) as error:
            raise InputError(
                f"The database {self.where} does not give the table {name} ({type(error).__name__}). Check the schema, "
                "the rights of the user, and that its times are from the years 1 to 9999."
            ) from None


def first_words(error: BaseException, url: sa.URL) -> str:
    """The first line of what a database said, without the password, whatever driver said it."""
    said = str(error).strip().split("\n")[0]
    return said.replace(str(url.password), "***") if url.password else said


def _key(name: str) -> str:
    """The column by which the rows of a table are asked for."""
    return "concept_id" if name == "concept" else "person_id"
