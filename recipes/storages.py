"""Where a search keeps its trials: SQLite, PostgreSQL and what else SQLAlchemy reaches, opened for several workers."""

from __future__ import annotations

import random
import time
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ..datasets.errors import InputError
from ..datasets.omop_database import INSTALL, first_words

WAIT_S = 60
"""Seconds that SQLite waits for another worker to be done with writing, which takes milliseconds."""
_TRIES = 6
_FORM = "Write it as postgresql+psycopg://user@host/database, or as sqlite:///file.db"


def file_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return sqlalchemy.URL.create("sqlite", database=str(path.resolve())).render_as_string(hide_password=False)


def open_storage(url: str) -> tuple[RDBStorage, str]:
    """Optuna's storage of a URL, and how it is called in messages: without password.

    Raises:
        InputError: it is no URL, a driver is missing, or the database does not answer.
    """
    try:
        parts = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        # SQLAlchemy's own words may have a part of the password.
        raise InputError(f"--storage is no URL of a database. {_FORM}.") from None
    where = parts.set(query={}).render_as_string(hide_password=True)
    # No connection is kept: between two looks a database may have been started again.
    settings: dict[str, object] = {"hide_parameters": True, "poolclass": sqlalchemy.NullPool}
    on_file = parts.get_backend_name() == "sqlite"
    if on_file:
        where = parts.database or ""
        if where in ("", ":memory:"):
            raise InputError(f"--storage is in memory, and would keep nothing. {_FORM}.")
        settings["connect_args"] = {"timeout": WAIT_S}
    # Optuna takes braces for fields to be filled in.
    written = parts.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    try:
        storage = _opened(written, settings)
    except NoSuchModuleError:
        raise InputError(f"SQLAlchemy knows no database {parts.drivername}. {_FORM}.") from None
    except ImportError:
        raise InputError(
            f"The driver of {parts.drivername} is not installed. {INSTALL} and begin the URL with "
            "postgresql+psycopg://, or install that driver."
        ) from None
    except RuntimeError:
        raise InputError(
            f"The storage {where} was made by another version of Optuna. Give another one, or bring it up to date "
            "with optuna storage upgrade."
        ) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        said = first_words(getattr(cause, "orig", None) or cause, parts)
        raise InputError(f"The storage {where} cannot be opened: {said}. Check the URL, and that it runs.") from None
    if on_file:
        _take_turns(storage.engine)
    return storage, where


def _opened(url: str, settings: dict[str, object]) -> RDBStorage:
    """The storage; its tables are made if they are not there, which other workers may be doing, too."""
    for left in reversed(range(_TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=settings)
        except (SQLAlchemyError, StorageInternalError) as error:
            told = f"{error} {error.__cause__}"
            if not left or not any(word in told for word in ("already exists", "IntegrityError", "locked")):
                raise
            time.sleep(0.2 + 0.3 * random.random())
    raise AssertionError("the last try returns or raises")


def _take_turns(engine: sqlalchemy.Engine) -> None:
    """Begin every transaction as one that writes, so that what is read in it is not out of date when it writes."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def _leave_beginning_to_us(connection: object, _: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
