"""A folder of tables or a MEDS dataset, read for an audit: what a cohort refuses is a finding, not an end."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds

from .audit_findings import MANY, SHOWN, Finding, Place, counted, require_split_columns, single_rows
from .checks import BLANK_ROW, TableCheck
from .cohort import Cohort
from .errors import InputError
from .files import find_table, find_tables, read_table, resolve_paths
from .meds import read_division, read_undivided
from .meds_events import shards_in
from .refusals import naming
from .standards import refuse_other_standards
from .subject_ids import subject_names
from .tables import EVENT_TABLES, REQUIRED, require_columns
from .times import mostly_dates, parse_times
from .words import as_words

_BIRTH = re.compile(r"birth|\bdob\b|^dob|born", re.I)
_DEATH = re.compile(r"death|dead|died|deceased|\bdod\b|^dod", re.I)
_SPLITS = ("splits", "subject_splits")


@dataclass
class Opened:
    """A cohort and what else its folder says, for `audit`."""

    cohort: Cohort
    division: pd.DataFrame | None = None
    """`subject_id` and `split`, where the folder has such a table."""
    births: pd.Series | None = None
    deaths: pd.Series | None = None
    found: list[Finding] = field(default_factory=list)
    """What the cohort would have refused."""


def open_folder(folder: Path) -> Opened:
    """Read a folder of five tables, with `splits.csv` (or .parquet) if there is one, or a MEDS dataset.

    Raises:
        InputError: there is no such folder, or a whole table cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")
    if (folder / "data").is_dir() and (folder / "metadata").is_dir():
        cohort = read_undivided(Cohort, folder, {"invalid": "exclude"})
        births, deaths = (_meds_times(folder, cohort, code) for code in ("MEDS_BIRTH", "MEDS_DEATH"))
        return Opened(cohort, read_division(folder), births, deaths, _refused(cohort))
    refuse_other_standards(folder)
    paths = find_tables(folder)
    if paths["outcomes"] is None:
        raise InputError(f"{folder} has neither outcomes.csv nor outcomes.parquet, nor MEDS's data/ and metadata/.")
    tables = {name: read_table(path) for name, path in paths.items() if path is not None}
    for name, table in tables.items():
        require_columns(table, name)
    if "images" in tables:
        tables["images"] = tables["images"].assign(path=resolve_paths(tables["images"]["path"], folder))
    opened = _open_tables(tables)
    division = next((path for name in _SPLITS if (path := find_table(folder, name)) is not None), None)
    if division is not None:
        opened.division = read_table(division)
        with naming(division):
            require_split_columns(opened.division)
    return opened


def _open_tables(tables: dict[str, pd.DataFrame]) -> Opened:
    found, times = [], {}
    for name in ("static", "outcomes"):
        if name in tables:
            tables[name], dated = _without_dates(tables[name], name)
            for column, (moments, count) in dated.items():
                found.append(_dated(name, column, count))
                kind = "death" if _DEATH.search(column) else "birth" if _BIRTH.search(column) else None
                times.setdefault(kind, moments)
            tables[name], doubled = _without_doubles(tables[name], name)
            found += doubled
    cohort = Cohort(**tables, invalid="exclude")
    births, deaths = (_of_cohort(times.get(kind), cohort) for kind in ("birth", "death"))
    return Opened(cohort, None, births, deaths, found + _refused(cohort))


def _without_dates(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, dict[str, tuple[pd.Series, int]]]:
    """The table without its columns of dates, and those, by patient id as text, with how many cells have one.

    Of dates that are not in ISO 8601 it is not known which number is the month: they are counted alone.
    """
    dated = {}
    subjects = as_words(table["subject_id"]).text.str.strip()
    for column in table.columns.drop(["subject_id", *(["prediction_time"] if name == "outcomes" else [])]):
        values, words = table[column], as_words(table[column])
        filled = ~(words.blank | words.broken | words.strange)
        if pd.api.types.is_datetime64_any_dtype(values.dtype) or mostly_dates(words.text.str.strip()[filled]):
            moments, _ = parse_times(values, TableCheck(name, len(table), "exclude"), column, optional=True)
            moments = moments.set_axis(subjects)
            dated[str(column)] = moments[~moments.index.duplicated()].dropna(), int(filled.sum())
    return table.drop(columns=list(dated)), dated


def _dated(table: str, column: str, count: int) -> Finding:
    return Finding(
        "note",
        "dates that are no input",
        count,
        Place(table, column),
        f"{table}.{column} holds dates; a cohort refuses them as facts or outcomes. The audit took it out.",
        "Drop the column: of a birth give the age in years at the prediction; what is known only after it (death, "
        "discharge) is no input at all.",
    )


def _without_doubles(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[Finding]]:
    """The table with one row a patient (static) or sample (outcomes), and a finding if it had more."""
    check = TableCheck(name, len(table), "exclude")
    keys = pd.DataFrame({"subject_id": subject_names(table["subject_id"], check)})
    if name == "outcomes":
        keys["prediction_time"], _ = parse_times(table["prediction_time"], check, "prediction_time")
    doubled = keys.duplicated().to_numpy() & check.usable
    if not doubled.any():
        return table, []
    one = "patient" if name == "static" else "sample"
    copies = table.assign(**keys).duplicated().to_numpy()[doubled].all()
    finding = Finding(
        "misleads",
        f"{one}s twice",
        int(doubled.sum()),
        Place(name, "subject_id", single_rows(np.flatnonzero(doubled))),
        f"{counted(int(doubled.sum()), 'further row')} of {name} {'like' if copies else 'against'} the first of "
        f"the same {one}; a cohort refuses that. The audit kept the first.",
        f"Find out which is right, and keep one row a {one}.",
    )
    return table[~doubled], [finding]


def _refused(cohort: Cohort) -> list[Finding]:
    """The rows that the cohort left out, by table and reason."""
    listed = Counter((one.table, one.reason) for one in cohort.exclusions)
    findings = []
    for (table, reason), count in listed.items():
        rows = [one.row for one in cohort.exclusions if (one.table, one.reason) == (table, reason)]
        # What MEDS refuses is of a file, and its rows stand in all tables of events.
        tables = (table,) if table in REQUIRED else (*EVENT_TABLES, "static")
        kept = sum(len(own) for name in tables if (own := getattr(cohort, name)) is not None)
        share, blank = count / (count + kept), reason == BLANK_ROW
        findings.append(
            Finding(
                "misleads" if share > MANY and not blank else "note",
                "rows that are refused",
                count,
                Place(table, None, tuple((row,) for row in rows[:SHOWN])),
                f"{counted(count, 'row')} ({100 * share:.1f} %): {reason}.",
                "Nothing: they are left out in any case."
                if blank
                else 'Correct them in the source, or leave them out, listed, with invalid="exclude".',
            )
        )
    return findings


def _of_cohort(times: pd.Series | None, cohort: Cohort) -> pd.Series | None:
    """Times by patient id in the cohort's type; patients whom it does not have are dropped."""
    if times is None or times.empty:
        return None
    names = pd.Series(cohort.outcomes["subject_id"].unique())
    of_name = names.set_axis(as_words(names).text)
    known = times[times.index.isin(of_name.index)]
    return known.set_axis(of_name[known.index].array)


def _meds_times(folder: Path, cohort: Cohort, code: str) -> pd.Series | None:
    """When the events of a code (or `code//...`) happened, by patient: they have no value, so they are no labs."""
    shards = [str(path) for path in shards_in(folder)]
    wanted = pc.starts_with(ds.field("code"), code)
    events = ds.dataset(shards, format="parquet").to_table(columns=["subject_id", "time"], filter=wanted).to_pandas()
    if events["time"].notna().sum() == 0:
        return None
    times = events.dropna().groupby("subject_id")["time"].agg("min" if code == "MEDS_BIRTH" else "max")
    ids = folder / "metadata" / "subject_ids.parquet"
    if not pd.api.types.is_integer_dtype(cohort.outcomes["subject_id"].dtype) and ids.is_file():
        names = read_table(ids).set_index("subject_id")["original_id"]
        times = times.set_axis(names.reindex(times.index).array)
    return _of_cohort(times.set_axis(times.index.astype("str")), cohort)
