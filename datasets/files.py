"""A folder of five tables, as CSV or Parquet, or a MEDS dataset: which it is, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from .checks import Excerpt
from .errors import InputError
from .excerpts import WORDS, Asked, EventRows
from .pieces import as_frame, pieces, read_parquet
from .tables import EVENT_TABLES, OPTIONAL, REQUIRED
from .times import require_one_clock
from .windows import require_history

if TYPE_CHECKING:
    from .cohort import Cohort


def read_table(path: Path) -> pd.DataFrame:
    """One CSV or Parquet table. CSV cells come as text, blank ones as missing; types are told later.

    A CSV file is UTF-8, separated by commas, with one number of cells in every row: a row that is
    cut short would otherwise read as one in which something is unknown.

    Raises:
        InputError: the file is missing, empty, not UTF-8, or not a table.
    """
    if path.suffix == ".parquet" and path.is_file():
        return read_parquet(path)
    return pa.concat_tables(pieces(path)).to_pandas()


def find_table(folder: Path, name: str) -> Path | None:
    """`name.parquet` or `name.csv` in the folder.

    Raises:
        InputError: both stand there.
    """
    found = [path for path in (folder / f"{name}.parquet", folder / f"{name}.csv") if path.is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {found[0].name} and {found[1].name}. Remove one of them.")
    return found[0] if found else None


def read_cohort(kind: type[Cohort], folder: Path, settings: Mapping[str, object]) -> Cohort:
    """Read a cohort from a folder of tables or from a MEDS dataset; see `Cohort.read`."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")
    if (folder / "data").is_dir() and (folder / "metadata").is_dir():
        from .meds import read_meds

        return read_meds(kind, folder, settings)
    paths = {name: find_table(folder, name) for name in REQUIRED}
    if paths["outcomes"] is None:
        raise InputError(
            f"{folder} has neither outcomes.csv, outcomes.parquet nor MEDS's data/ and metadata/. "
            "Put the five tables there (any but outcomes may be missing)."
        )
    history = settings.get("history")
    require_history(history)
    outcomes = read_table(paths["outcomes"])
    static = {"static": read_table(paths["static"])} if paths["static"] else {}
    with naming_folder(folder):
        asked = Asked(outcomes, history=history, invalid=settings.get("invalid", "raise"))
        events = {name: _read_events(name, paths[name], asked) for name in EVENT_TABLES if paths[name]}
        require_one_clock(asked.zones)
        return kind(asked.outcomes, **events, **static, **settings)


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Put the folder before what is said of a table in it, unless a file of it is named there."""
    try:
        yield
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise type(error)(f"{folder}: {error}") from None


def _read_events(name: str, path: Path, asked: Asked) -> Excerpt:
    """The rows of an event table that matter."""
    events, place = EventRows(name, asked, [name]), 1
    for piece in pieces(path, (*REQUIRED[name], *OPTIONAL[name]), ("subject_id", *WORDS)):
        table = as_frame(piece, path)
        if name == "images" and "path" in table.columns:
            table = table.assign(path=resolve_paths(table["path"], path.parent))
        events.take(table, 0, np.arange(place, place + len(table)))
        place += len(table)
    return events.excerpt()


def resolve_paths(paths: pd.Series, folder: Path) -> pd.Series:
    """Image paths as absolute ones; relative ones are taken from the folder of the table."""
    home = folder.resolve()

    def resolved(path: object) -> object:
        # What is no text at all is refused by the cohort.
        if not isinstance(path, (str, PathLike, Number)) or pd.isna(path) or "://" in str(path):
            return path
        return str(home / str(path))

    return paths.map(resolved)
