"""A folder of five tables, as CSV or Parquet, or a MEDS dataset: which it is, and how it is read."""

from __future__ import annotations

import re
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
from .standards import refuse_other_standards
from .tables import EVENT_TABLES, OPTIONAL, REQUIRED, require_columns
from .times import require_one_clock
from .windows import require_history

if TYPE_CHECKING:
    from .cohort import Cohort

_ENDINGS = ("csv", "parquet")
TABULAR = tuple(
    f".{ending}{packed}"
    for ending in (
        *(*_ENDINGS, "tsv", "tab", "txt", "dat", "pq", "parq", "xlsx", "xls", "xlsm", "xlsb", "ods", "feather"),
        *("arrow", "orc", "json", "jsonl", "ndjson", "sas7bdat", "xpt", "dta", "sav", "rds", "rda", "pkl", "pickle"),
    )
    for packed in ("", ".gz", ".bz2", ".xz", ".zst", ".zip")
)
"""What a table of a hospital may be written as: the ends of files' names, in lower case."""
_OTHER_NAMES = {"labs": ("laboratory", "laboratories"), "images": ("imaging",)}


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


def find_tables(folder: Path) -> dict[str, Path | None]:
    """Where each of the five tables lies in a folder; None for one that is not there.

    Raises:
        InputError: a table stands there twice; or is not there, and a file of another format or with a name that is
            nearly its own is: it would be passed over, and nobody would know.
    """
    paths = {name: find_table(folder, name) for name in REQUIRED}
    lost = [name for name, path in paths.items() if path is None]
    for entry in sorted(folder.iterdir()):
        stem, _, endings = entry.name.partition(".")
        # What begins so is a program's own.
        if entry.name.startswith((".", "~$")):
            continue
        is_table = f".{endings.lower()}".endswith(TABULAR) and (entry.is_file() or endings.lower() in _ENDINGS)
        name = next((name for name in lost if is_table and is_nearly(stem, name)), None)
        if name is not None:
            raise InputError(
                f"{folder} has no {name}.csv or {name}.parquet, but {entry.name}, which is not read. If it is that "
                f"table, write it as one CSV or Parquet file of that name; if not, move it to another folder."
            )
    return paths


def is_nearly(stem: str, name: str) -> bool:
    """Whether a file's name is that of a table but for case, marks, numbers, or one letter more, less or exchanged."""
    whole = "".join(letter for letter in stem.lower() if letter.isalpha())
    own = re.sub(r"(?:tables?|data|copy|results?|final|new|export|file)+$", "", whole) or whole
    if {own, whole} & {name, *_OTHER_NAMES.get(name, ())}:
        return True
    if abs(len(own) - len(name)) > 1:
        return False
    swapped = {name[:k] + name[k + 1] + name[k] + name[k + 2 :] for k in range(len(name) - 1)}
    shorter = {name[:k] + name[k + 1 :] for k in range(len(name))}
    longer = {own[:k] + own[k + 1 :] for k in range(len(own))}
    return own in swapped | shorter or name in longer


def find_table(folder: Path, name: str) -> Path | None:
    """`name.parquet` or `name.csv` in the folder.

    Raises:
        InputError: both stand there.
    """
    found = [path for path in (folder / f"{name}.parquet", folder / f"{name}.csv") if path.is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {found[0].name} and {found[1].name}. Remove one of them.")
    return found[0] if found else None


def read_cohort(kind: type[Cohort], folder: Path, settings: Mapping[str, object], *, labelled: bool = True) -> Cohort:
    """Read a cohort from a folder of tables or from a MEDS dataset; see `Cohort.read`.

    Args:
        kind: the class.
        folder: of the tables.
        settings: arguments of the class.
        labelled: whether to read outcomes. Of patients to predict for they may be blank, or anything.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")
    if (folder / "data").is_dir() and (folder / "metadata").is_dir():
        from .meds import read_meds

        return read_meds(kind, folder, settings, labelled=labelled)
    refuse_other_standards(folder)
    paths = find_tables(folder)
    if paths["outcomes"] is None:
        raise InputError(
            f"{folder} has neither outcomes.csv, outcomes.parquet nor MEDS's data/ and metadata/. "
            "Put the five tables there (any but outcomes may be missing)."
        )
    history = settings.get("history")
    require_history(history)
    outcomes = read_table(paths["outcomes"])
    if not labelled:
        with naming_folder(folder):
            require_columns(outcomes, "outcomes")
        outcomes = outcomes[[*REQUIRED["outcomes"]]]
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
