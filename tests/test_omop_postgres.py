"""The same stays out of a live database: a real PostgreSQL, which the tests start, stop and start again."""

import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError, omop_database
from chiasm.datasets.omop import read_omop

from .omop_hospital import died, hospital, measured, person, visit, write

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install chiasm[database]")
pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: pip install chiasm[database]")

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
if not (BINARIES and (BINARIES[-1] / "initdb").is_file()):
    pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql", allow_module_level=True)

TYPES = {"vocabulary_id": "varchar(20)", "value_as_number": "numeric", "note_text": "text", "local_path": "text"}


def type_of(column: str) -> str:
    """The type that OMOP CDM 5.4 gives a column in PostgreSQL."""
    if column in TYPES:
        return TYPES[column]
    endings = {"_id": "integer", "_birth": "integer", "_date": "date", "_datetime": "timestamp"}
    return next(
        (kind for ending, kind in endings.items() if column.endswith(ending)), TYPES.get(column, "varchar(255)")
    )


@dataclass
class Server:
    """A PostgreSQL of the tests' own, in a folder of its own, reached through a socket there."""

    folder: Path
    user: str | None = None
    process: subprocess.Popen | None = field(default=None)

    def __post_init__(self) -> None:
        data = str(self.folder / "data")
        options = ["--auth=trust", "--username=chiasm", "--no-sync", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            [BINARIES[-1] / "initdb", "--pgdata", data, *options], user=self.user, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://chiasm@/postgres?host={self.folder}"

    def connect(self) -> "psycopg.Connection":
        return psycopg.connect(host=str(self.folder), user="chiasm", dbname="postgres", autocommit=True)

    def start(self) -> None:
        settings = ["listen_addresses=", "fsync=off", "max_wal_size=64MB", "shared_buffers=16MB"]
        command = [BINARIES[-1] / "postgres", "-D", self.folder / "data", "-k", self.folder]
        command += [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, user=self.user, stdout=log, stderr=log)
        for _ in range(1200):
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(60)

    def fill(self, schema: str, tables: dict[str, pd.DataFrame], **types: str) -> None:
        """Put tables into a schema, with the types of the model but for `types`."""
        with self.connect() as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
            for name, table in tables.items():
                columns = ", ".join(f"{column} {types.get(column, type_of(column))}" for column in table.columns)
                connection.execute(f"CREATE TABLE {schema}.{name} ({columns})")
                rows = io.StringIO()
                table.to_csv(rows, index=False, header=False)
                with connection.cursor().copy(f"COPY {schema}.{name} FROM STDIN (FORMAT csv)") as copy:
                    copy.write(rows.getvalue())


@pytest.fixture(scope="module")
def server():
    folder = Path(tempfile.mkdtemp(prefix="chiasm-pg-", dir="/tmp"))
    user = None
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        user = "postgres"
        shutil.chown(folder, user)
    own = Server(folder, user)
    try:
        own.start()
        own.fill("cdm", hospital())
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder)


@pytest.fixture
def small_parts(monkeypatch):
    """Few persons a query and few rows a fetch, so that a small hospital takes many."""
    monkeypatch.setattr(omop_database, "KEYS_A_PART", 2)
    monkeypatch.setattr(omop_database, "ROWS_A_FETCH", 3)


def equal(one, other):
    for name in ("outcomes", "labs", "notes", "images", "static", "attrition"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The hospital as CSV files, and the cohort that they give."""
    folder = write(hospital(), tmp_path_factory.mktemp("omop"))
    return folder, read_omop(folder)


@pytest.mark.usefixtures("small_parts")
def test_the_cohort_is_that_of_the_files(server, files, tmp_path):
    folder, cohort = files
    equal(read_omop(server.url, schema="cdm"), cohort)
    equal(read_omop(write(hospital(), tmp_path, "parquet")), cohort)
    settings = {"task": "readmission", "history": 500}
    equal(read_omop(server.url, schema="cdm", **settings), read_omop(folder, **settings))


def test_only_rows_of_those_asked_about_up_to_about_the_prediction_are_fetched_and_only_once(
    server, files, tmp_path, monkeypatch
):
    read_omop(server.url, schema="cdm", cache=tmp_path / "cache")
    fetched = pd.concat([pd.read_parquet(path) for path in (tmp_path / "cache").glob("measurement-*.parquet")])
    assert set(fetched["person_id"]) == {1, 2, 3, 4}
    assert fetched["measurement_date"].max() == pd.Timestamp("2180-03-19").date()
    monkeypatch.delattr(omop_database.Database, "_write_part")
    equal(read_omop(server.url, schema="cdm", cache=tmp_path / "cache"), files[1])


def interrupting(monkeypatch, interrupt, after):
    """Have something happen, once, before one of the parts is fetched; counts those that were."""
    write_part, written, pending = omop_database.Database._write_part, [], [interrupt]

    def write_and_count(self, path, *rest):
        if len(written) == after and pending:
            pending.pop()()
        write_part(self, path, *rest)
        written.append(path.name)

    monkeypatch.setattr(omop_database.Database, "_write_part", write_and_count)
    return written


@pytest.mark.usefixtures("small_parts")
def test_a_database_that_goes_away_half_way_is_read_on_when_it_is_back(server, files, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    written = interrupting(monkeypatch, lambda: server.stop(signal.SIGQUIT), after=10)
    try:
        with pytest.raises(
            InputError,
            match=r"The database .* went away while the table measurement was read \(part 2 of 2; OperationalError\). "
            rf"What was read is kept in {cache}: call again with the same arguments to go on from there",
        ):
            read_omop(server.url, schema="cdm", cache=cache)
        before = list(written)
        with pytest.raises(InputError, match=r"The database .* cannot be opened: .*. Check the URL"):
            read_omop(server.url, schema="cdm", cache=cache)
    finally:
        server.start()
    equal(read_omop(server.url, schema="cdm", cache=cache), files[1])
    assert len(before) == 10
    assert len(set(written)) == len(written) > 10


@pytest.mark.usefixtures("small_parts")
def test_a_connection_that_is_cut_in_the_middle_of_a_part_leaves_nothing_of_it(server, tmp_path, monkeypatch):
    server.fill(
        "many", hospital() | {"measurement": pd.DataFrame([measured(k, 1, "2020-01-02", k) for k in range(50)])}
    )
    whole = read_omop(server.url, schema="many")
    as_arrow, cut = omop_database.Database._as_arrow, []

    def cut_once(self, rows, schema, name):
        if name == "measurement" and not cut:
            with server.connect() as other:
                own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                cut.extend(other.execute(f"{own} AND backend_type = 'client backend'").fetchall())
        return as_arrow(self, rows, schema, name)

    monkeypatch.setattr(omop_database.Database, "_as_arrow", cut_once)
    with pytest.raises(InputError, match=r"went away while the table measurement was read .*AdminShutdown"):
        read_omop(server.url, schema="many", cache=tmp_path / "cache")
    assert len(cut) == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]
    equal(read_omop(server.url, schema="many", cache=tmp_path / "cache"), whole)
    cut.clear()
    with pytest.raises(InputError, match=r'Call again with cache="FOLDER": a reading that is cut off then goes on'):
        read_omop(server.url, schema="many")


def test_times_with_zones_and_dates_as_text_are_those_of_the_files(server, tmp_path):
    tables = {name: hospital()[name] for name in ("person", "visit_occurrence", "death", "measurement")}
    for table in tables.values():
        for column in table.columns[table.columns.str.endswith("_datetime")]:
            table[column] = pd.to_datetime(table[column]).dt.tz_localize("Europe/Berlin")
    zoned = {f"{name}_datetime": "timestamptz" for name in ("visit_start", "visit_end", "death", "measurement")}
    server.fill("zoned", tables, **zoned, measurement_date="text")
    with server.connect() as connection:
        # As Parquet says of these columns.
        connection.execute("ALTER DATABASE postgres SET timezone = 'Europe/Berlin'")
    try:
        live = read_omop(server.url, schema="zoned")
    finally:
        with server.connect() as connection:
            connection.execute("ALTER DATABASE postgres RESET timezone")
    equal(live, read_omop(write(tables, tmp_path / "omop", "parquet")))
    assert live.outcomes["prediction_time"].iloc[0] == pd.Timestamp("2020-01-03 07:00")


def test_a_row_that_cannot_be_used_is_named_by_its_number(server):
    tables = hospital()
    tables["note"].loc[2, "note_text"] = " "
    tables["note"].loc[2, "note_datetime"] = pd.Timestamp("2020-01-02 10:00")
    tables["note"].loc[2, "note_date"] = pd.Timestamp("2020-01-02").date()
    tables["note"]["note_id"] += 800
    server.fill("blank", tables)
    message = r"the table blank.note \(rows by note_id\), data row 803: note_text is blank"
    with pytest.raises(InputError, match=message):
        read_omop(server.url, schema="blank")
    (left_out,) = read_omop(server.url, schema="blank", invalid="exclude").exclusions
    assert (left_out.row, left_out.reason) == (803, "note_text is blank")


def test_a_table_of_another_layout_is_refused_before_anything_is_fetched(server):
    tables = hospital() | {"measurement": hospital()["observation"]}
    server.fill("other", tables)
    with pytest.raises(InputError, match=r"the table other.measurement lacks the columns measurement_concept_id, meas"):
        read_omop(server.url, schema="other")
    server.fill("other", hospital(), note_date="bytea")
    with pytest.raises(InputError, match=r"the table other.note: note_date holds binary, expected dates or times"):
        read_omop(server.url, schema="other")
    server.fill("other", hospital(), person_id="varchar")
    with pytest.raises(InputError, match=r"other.visit_occurrence: person_id is no integer column, so its rows cannot"):
        read_omop(server.url, schema="other")


def test_what_the_database_does_not_give_is_said_without_its_content(server):
    server.fill("late", hospital() | {"death": pd.DataFrame([died(2, "2020-02-04")]).assign(death_date="infinity")})
    message = r"The database .* does not give the table death \(DataError\). Check the schema, the rights of the user"
    with pytest.raises(InputError, match=message) as caught:
        read_omop(server.url, schema="late")
    assert "infinity" not in str(caught.value)
    with pytest.raises(InputError, match=r"\(schema nowhere\) has no table visit_occurrence. Put it there"):
        read_omop(server.url, schema="nowhere")


def test_a_cache_that_cannot_be_a_folder_is_refused(server, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"The folder .*cache cannot be made \(File exists\). Give another one"):
        read_omop(server.url, schema="cdm", cache=tmp_path / "cache")


def test_ten_thousand_rows_of_many_patients_are_those_of_the_files(server, tmp_path, monkeypatch):
    monkeypatch.setattr(omop_database, "KEYS_A_PART", 40)
    random = np.random.default_rng(3)
    people, rows = np.arange(1, 201), 10_000
    start = pd.Timestamp("2021-01-01") + pd.to_timedelta(random.integers(0, 500_000, len(people)), unit="min")
    end = start + pd.to_timedelta(random.integers(1, 9_000, len(people)), unit="min")
    stays = zip(people, start, end, strict=True)
    who = random.integers(0, len(people), rows)
    when = start[who] + pd.to_timedelta(random.integers(-2_000, 9_000, rows), unit="min")
    tables = {
        "person": pd.DataFrame([person(int(number)) for number in people]),
        "visit_occurrence": pd.DataFrame([visit(int(n), int(n), str(a), str(b)) for n, a, b in stays]),
        "death": pd.DataFrame([died(int(n), str(end[n - 1])[: 10 if n % 2 else None]) for n in people[::7]]),
        "measurement": pd.DataFrame(
            {
                "measurement_id": np.arange(rows),
                "person_id": people[who],
                "measurement_concept_id": random.integers(1, 9, rows),
                "measurement_date": when.date,
                "measurement_datetime": when.where(random.random(rows) < 0.9),
                "value_as_number": random.normal(100, 30, rows).round(2),
            }
        ),
    }
    server.fill("random", tables)
    live = read_omop(server.url, schema="random")
    equal(live, read_omop(write(tables, tmp_path / "omop", "parquet")))
    assert len(live) > 50
