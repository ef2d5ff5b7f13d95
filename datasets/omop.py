"""The OMOP common data model: stays in hospital from a folder of its tables, or from a live database."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from .checks import Policy
from .cohort import Cohort
from .errors import InputError
from .files import resolve_paths
from .omop_database import Database
from .omop_events import (
    count_strangers,
    empty_rows,
    image_events,
    know_people,
    lab_events,
    name_concepts,
    note_events,
    take_rows,
    used_concepts,
)
from .omop_files import Folder
from .omop_rows import Engine, zone_of
from .omop_stays import (
    HOSPITAL_VISITS,
    join_visits,
    static_facts,
    stays_table,
    take_deaths,
    take_people,
    take_visits,
)
from .omop_tables import Table
from .stays import Predictions, Task, predictions, told_of_doubt

__all__ = ["HOSPITAL_VISITS", "read_omop"]

EVENTS = ("measurement", "observation", "condition_occurrence", "note", "image_occurrence")
_NOBODY = np.zeros(0, np.int64)


class Source(Protocol):
    """Where the tables are."""

    where: str

    def prepare(self, connection: object) -> None:
        """Let the engine read them."""

    def people(self, kinds: Sequence[int]) -> np.ndarray:
        """The persons who have visits of some kinds, int64, as far as the source selects and not the engine."""

    def table(self, name: str, keys: np.ndarray, until: np.ndarray | None = None) -> Table | None:
        """A table, or None where there is none. It may have more rows than are asked for.

        Args:
            name: of the table.
            keys: int64, the persons (of `concept`: the concepts) whose rows will be looked at.
            until: datetime64 `[key]`: rows dated later will not be looked at; None for all.
        """


def read_omop(
    source: str | Path,
    *,
    task: Task = "mortality",
    after: float = 48.0,
    history: float | None = None,
    visits: Sequence[int] = HOSPITAL_VISITS,
    schema: str | None = None,
    cache: str | Path | None = None,
    invalid: Policy = "raise",
) -> Cohort:
    """Read stays in hospital from OMOP CDM 5.4, and what is predicted of each: see `stays.predictions`.

    Tables: person, visit_occurrence and death must be there; measurement, observation,
    condition_occurrence, note, image_occurrence (of the imaging extension, MI-CDM) and concept may be
    missing. Joins and filters run in an engine (DuckDB) with at most 2 GB; only events that some
    sample may see come into memory.

    - A stay is a visit of one of the kinds in `visits`, joined with those that overlap it or begin
      within an hour of its end (emergency room to ward). A visit of type 32220 ("still patient"),
      without an end, or with one more than 5 years after its start (2099-12-31), goes on.
    - `outcomes`: a death in the table death within a stay, or a visit discharged to 4216643
      ("patient died"), is a death in hospital.
    - `labs`: numbers of measurement and observation. The code is the concept's name, or its number
      where there is no table concept, or the source value where there is no concept; the unit is the
      UCUM symbol, or else the source's. A negative number stays (base excess, axes, sedation scales).
      A result "< 5" or "> 5" is taken as 5, and counted in `attrition`.
    - `labs` also has codes, of the value 1: "condition: NAME", "observation: NAME" and
      "QUESTION: ANSWER" for results that are concepts. Codes are written for the bill after discharge
      and dated back, so they count from 24 h after the end of the visit that they name and of every
      stay in whose time they lie: they tell of earlier stays, never of the one that is predicted.
      Answers in free text are left out.
    - `notes`: all, at their own time. Those that look back on a stay (discharge summaries and what is
      called after discharge, death or autopsy) count from its end.
    - `images`: local_path, relative ones from the folder. Images without one are left out.
    - `static`: `age` in completed years at the beginning of the first predicted stay, `gender`, `race`,
      `ethnicity`. Death, drugs, procedures and costs are no inputs.

    Times: the model states when something was measured, not when the result was there, so that
    `available_at` is later than `time` only where the following rules make it so; a result that
    carries the time of the draw is known too early. A date without a time of day, and midnight, which
    the model's conventions write in its place, count from the end of the day; a stay that ended or a
    patient who died on such a day is taken to be gone from the day's beginning. With zones, times are
    UTC and a day without a time of day is the day in every zone. Without zones, hours are those of
    the local clock, also where it changes.

    Args:
        source: a folder with a Parquet or CSV file (comma or tab) a table, or a folder of such files a
            table, in upper or lower case, or the URL of such a folder (s3://); or SQLAlchemy's URL of a
            database (`pip install "chiasm[database]"`).
        task: "mortality", "length-of-stay" or "readmission".
        after: hours from the beginning of a stay to the prediction; not for "readmission".
        history: hours before the prediction that inputs, codes as well, reach back; None for all.
        visits: concepts of visit_concept_id that are stays.
        schema: of the database's tables; None for its default.
        cache: a folder where what was fetched from a database is kept, so that a reading that was cut
            off goes on. It holds patients' data, as they were then; remove it to read anew.
        invalid: "raise" stops at the first row that cannot be used; "exclude" leaves such rows out and
            lists them in `exclusions`. Rows that no sample could see are not looked at.

    Returns:
        `subject_id` is person_id. `attrition` counts the stays that do not qualify and what was left out.

    Raises:
        InputError: a table is missing, laid out otherwise or unreadable; a row cannot be used; a
            database cannot be reached or goes away.

    Example:
        >>> cohort = read_omop("omop/", task="mortality", after=48, history=48)
        >>> cohort = read_omop("postgresql+psycopg://me@host/omop", schema="cdm", cache="omop-cache/")

    Source: OMOP CDM 5.4, https://ohdsi.github.io/CommonDataModel/cdm54.html; Park et al., Development
        of Medical Imaging Data Standardization for Imaging-Based Observational Research, J Imaging
        Inform Med 37 (2024). Where we differ: a midnight is not believed to be a time.
    """
    if history is not None and not (isinstance(history, Real) and 0 < history < math.inf):
        raise InputError(f"history is {history}; expected a positive number of hours, or None for all.")
    if not visits or not all(isinstance(kind, Integral) for kind in visits):
        raise InputError(f"visits is {visits!r}; expected concept numbers such as (9201, 262).")
    with _opened(source, schema, cache) as tables, Engine(invalid) as engine:
        tables.prepare(engine.connection)
        told, zoned = _predicted(engine, tables, sorted({*map(int, visits)}), task, after)
        inputs, counted = _inputs(engine, tables, told, zoned, history)
        absent = [name for name in (*EVENTS, "concept") if tables.table(name, _NOBODY) is None]
    # The engine's memory is free again.
    kind = "continuous" if task == "length-of-stay" else "binary"
    kinds = dict.fromkeys(told.outcomes.columns.drop(["subject_id", "prediction_time"]), kind)
    cohort = Cohort(told.outcomes, **inputs, history=history, outcome_kinds=kinds, invalid=invalid)
    cohort.exclusions = (*engine.exclusions, *cohort.exclusions)
    cohort = cohort.with_earlier_steps(told.steps)
    for name in absent:
        cohort = cohort.noted(f"no table {name} in the source")
    for what, count in counted.items():
        if count:
            cohort = cohort.noted(f"{what}: {count}")
    return cohort


@contextmanager
def _opened(source: str | Path, schema: str | None, cache: str | Path | None) -> Iterator[Source]:
    from fsspec import available_protocols

    protocol, found, _ = str(source).partition("://")
    if found and protocol not in available_protocols():
        with Database(str(source), schema, cache) as database:
            yield database
        return
    if schema is not None or cache is not None:
        raise InputError(f"schema and cache are for a database; {source} is a folder. Leave them out.")
    yield Folder(str(source))


def _needed(source: Source, name: str, keys: np.ndarray) -> Table:
    table = source.table(name, keys)
    if table is None:
        also = "; one without rows says that nobody died" if name == "death" else ""
        raise InputError(f"{source.where} has no table {name}. Put it there{also}.")
    return table


def _predicted(
    engine: Engine, source: Source, kinds: Sequence[int], task: Task, after: float
) -> tuple[Predictions, bool]:
    """What is predicted of which stays, and whether the source's times have zones."""
    people = source.people(kinds)
    visits, deaths = (_needed(source, name, people) for name in ("visit_occurrence", "death"))
    events = [source.table(name, _NOBODY) for name in EVENTS]
    zoned = zone_of(engine, [visits, deaths, *filter(None, events)])
    take_visits(engine, visits, zoned)
    join_visits(engine, "stays", kinds)
    join_visits(engine, "episodes", sorted({*kinds, *HOSPITAL_VISITS}))
    take_deaths(engine, deaths, zoned)
    told = predictions(stays_table(engine), task, after=after)
    if task == "length-of-stay":
        # A stay ends at its end, or at the last moment at which the patient can have died.
        left = told.stays[["end", "died_last"]].min(axis=1)
        known = told.outcomes["remaining_days"].notna()
        told.outcomes["remaining_days"] = ((left - told.outcomes["prediction_time"]) / pd.Timedelta(days=1)).where(
            known
        )
    named = ", ".join(map(str, kinds))
    counts = (f"SELECT count({what}) FROM visits WHERE kind IN ({named})" for what in ("DISTINCT person_id", "*"))
    first = (f"visits of the kinds {named}", *(engine.number(count) for count in counts))
    doubted = engine.number(f"SELECT count(*) FROM visits WHERE doubted AND kind IN ({named})")
    doubt = [(told_of_doubt(doubted), *first[1:])] if doubted else []
    return Predictions(told.outcomes, (first, *doubt, *told.steps), told.stays), zoned


def _inputs(
    engine: Engine, source: Source, told: Predictions, zoned: bool, history: float | None
) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """The cohort's input tables, and how many rows were left out of them."""
    moments = {"person_id": told.outcomes["subject_id"], "moment": told.outcomes["prediction_time"]}
    engine.connection.register("told", pd.DataFrame(moments | {"start": told.stays["start"]}))
    engine.run("CREATE TABLE samples AS SELECT * FROM told")
    engine.connection.unregister("told")
    first_and_last = "min(start) AS start, max(moment) AS last"
    engine.run(f"CREATE TABLE asked AS SELECT person_id, {first_and_last} FROM samples GROUP BY person_id")
    # In this order the people of one query of a database are asked about at about the same time.
    asked = engine.frame("SELECT person_id, last FROM asked ORDER BY last, person_id")
    people, last = asked["person_id"].to_numpy(), asked["last"].to_numpy()
    take_people(engine, _needed(source, "person", people))
    strangers: dict[str, int] = {}
    # A database is asked about known persons alone.
    if isinstance(source, Folder):
        know_people(engine, _needed(source, "person", people))
    for name in EVENTS:
        table = source.table(name, people, last)
        if table is None:
            empty_rows(engine, name)
        else:
            take_rows(engine, table, zoned)
            if isinstance(source, Folder):
                what = f"rows of {name} left out whose person_id is neither in person nor in visit_occurrence"
                strangers[what] = count_strangers(engine, table)
    name_concepts(engine, source.table("concept", used_concepts(engine)))
    labs, counted = lab_events(engine, history)
    images, without = image_events(engine, history)
    if isinstance(source, Folder) and source.local:
        images["path"] = resolve_paths(images["path"], Path(source.where))
    notes = note_events(engine, history)
    return {
        "labs": labs,
        "notes": notes,
        "images": images,
        "static": static_facts(engine),
    }, counted | without | strangers
