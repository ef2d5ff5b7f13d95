"""Stays out of OMOP visits: which visits are one stay, who died in it, and what each patient is like."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .errors import InputError
from .omop_rows import Engine, RowQuery, moment, whole_cells, wrong_moments
from .omop_tables import Table, Wrong, wrong_cells
from .stays import LONGEST_STAY

INPATIENT, EMERGENCY, EMERGENCY_AND_INPATIENT = 9201, 9203, 262
HOSPITAL_VISITS = (INPATIENT, EMERGENCY, EMERGENCY_AND_INPATIENT)
"""Concepts of the domain Visit: inpatient, emergency room, emergency room and inpatient."""

PATIENT_DIED = 4216643
"""The concept of discharged_to_concept_id."""

STILL_PATIENT = 32220
"""The concept of visit_type_concept_id where visit_end_date is the day on which the data were written."""

TRANSFER = "INTERVAL 1 HOUR"
"""A visit that begins at most this long after another's end goes on from it (emergency room to ward)."""

# The last moment of an interval is still its own, the next midnight not.
_INSTANT = "INTERVAL 1 MICROSECOND"


def take_visits(engine: Engine, table: Table, zoned: bool) -> None:
    """Make the engine's table `visits`, of all kinds."""
    whole = ["visit_occurrence_id", "person_id", "visit_concept_id", "visit_type_concept_id"]
    whole += ["discharged_to_concept_id", "discharge_to_concept_id"]
    moments = [moment(table, name, zoned) for name in ("visit_start", "visit_end")]
    wrong = [Wrong(table.blank(column), f"{column} is blank", "Fill it in, or remove the row") for column in whole[:2]]
    wrong += wrong_cells(table, whole)
    wrong += wrong_moments(table, "visit_start", zoned) + wrong_moments(table, "visit_end", zoned, optional=True)
    engine.take("cells", RowQuery(table, whole_cells(table, *whole), wrong, moments))
    engine.run(
        f"""
        CREATE TABLE visits AS SELECT
            person_id, visit_occurrence_id, visit_concept_id AS kind,
            visit_start_time AS start, visit_start_first AS start_first,
            CASE WHEN open THEN NULL
                WHEN visit_end_known > visit_start_time THEN greatest(visit_end_first, visit_start_time)
                ELSE visit_end_first END AS stop,
            CASE WHEN NOT open THEN visit_end_known END AS stop_known,
            CASE WHEN open THEN NULL
                WHEN visit_end_known > visit_end_first THEN visit_end_known - {_INSTANT}
                ELSE visit_end_known END AS stop_last,
            NOT open AND visit_end_known > visit_end_first AS stop_bare,
            coalesce({PATIENT_DIED} IN (discharged_to_concept_id, discharge_to_concept_id), false) AS died, doubted
        FROM (SELECT *, visit_end_time IS NULL OR doubted
                OR coalesce(visit_type_concept_id = {STILL_PATIENT}, false) AS open
            FROM (SELECT *, coalesce(visit_end_time > visit_start_time + INTERVAL {LONGEST_STAY.days} DAY, false)
                AS doubted FROM cells))
        """
    )
    engine.run("DROP TABLE cells")


def join_visits(engine: Engine, name: str, kinds: Sequence[int]) -> None:
    """Make the engine's table `name` of the visits of some kinds, joined where one goes on from another."""
    chosen = ", ".join(map(str, kinds))
    engine.run(
        f"""
        CREATE TABLE {name} AS
        WITH reached AS (
            SELECT *, max(CASE WHEN stop IS NULL THEN start WHEN stop_bare THEN stop_last ELSE stop + {TRANSFER} END)
                OVER (PARTITION BY person_id ORDER BY start, visit_occurrence_id
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reach
            FROM visits WHERE kind IN ({chosen})
        ), numbered AS (
            SELECT *, count(*) FILTER (reach IS NULL OR start > reach)
                OVER (PARTITION BY person_id ORDER BY start, visit_occurrence_id
                ROWS UNBOUNDED PRECEDING) AS stay
            FROM reached
        )
        SELECT person_id, min(start) AS start, min(start_first) AS start_first,
            CASE WHEN bool_and(stop IS NOT NULL) THEN max(stop) END AS stop,
            CASE WHEN bool_and(stop IS NOT NULL) THEN max(stop_last) END AS stop_last,
            CASE WHEN bool_and(stop IS NOT NULL) THEN max(stop_known) END AS stop_known,
            bool_or(died) AS died
        FROM numbered GROUP BY person_id, stay
        """
    )


def take_deaths(engine: Engine, table: Table, zoned: bool) -> None:
    """Make the engine's table `deaths` of those who have stays.

    Raises:
        InputError: a person died twice, at different times.
    """
    when = moment(table, "death", zoned)
    wrong = [Wrong(table.blank("person_id"), "person_id is blank", "Fill it in, or remove the row")]
    wrong += wrong_cells(table, ["person_id"]) + wrong_moments(table, "death", zoned)
    ours = "person_id IS NULL OR person_id IN (SELECT person_id FROM stays)"
    engine.take("death_rows", RowQuery(table, whole_cells(table, "person_id"), wrong, [when], ours))
    engine.run("CREATE TABLE deaths AS SELECT DISTINCT * FROM death_rows")
    doubled = engine.number("SELECT count(*) - count(DISTINCT person_id) FROM deaths")
    if doubled:
        raise InputError(
            f"{engine.places_of_one(table, 'deaths')} are of one person, of whom they state different deaths "
            f"({doubled} such rows). Keep one row a person."
        )


def stays_table(engine: Engine) -> pd.DataFrame:
    """The stays as `stays.predictions` wants them, and `died_last`: the latest moment at which a death can have been.

    A death on a day of the stay is a death in hospital. A patient who died on a day, it is not known
    when, counts as dead from its beginning: who may not be alive is asked nothing.
    """
    stays = engine.frame(
        f"""
        SELECT s.person_id AS subject_id, s.start, s.stop AS "end",
            CASE WHEN s.stop IS NULL THEN NULL
                ELSE s.died OR coalesce(d.death_first <= s.stop_last
                    AND (d.death_known > s.start OR d.death_first >= s.start), false) END AS died,
            d.death_first AS died_at,
            CASE WHEN d.death_known > d.death_first THEN d.death_known - {_INSTANT} ELSE d.death_known END AS died_last
        FROM stays AS s LEFT JOIN deaths AS d USING (person_id)
        ORDER BY s.person_id, s.start
        """
    )
    # Of a patient who left dead and has no row in death, the end of the stay is known.
    dead = stays["died"].astype("boolean").fillna(False)
    times = {name: stays[name].where(~(dead & stays[name].isna()), stays["end"]) for name in ("died_at", "died_last")}
    return stays.assign(**times)


def take_people(engine: Engine, table: Table) -> None:
    """Make the engine's table `people` of those in `asked`: concepts, and the day of birth as far as it is known.

    Raises:
        InputError: a person stands there twice.
    """
    whole = ["person_id", "gender_concept_id", "race_concept_id", "ethnicity_concept_id"]
    birth = ["year_of_birth", "month_of_birth", "day_of_birth"]
    columns = whole_cells(table, *whole, *birth) | {"born": table.wall("birth_datetime")}
    wrong = [Wrong(table.blank("person_id"), "person_id is blank", "Fill it in, or remove the row")]
    wrong += wrong_cells(table, [*whole, *birth, "birth_datetime"])
    # Where only the year is known, the middle of it; where the month is, the middle of that.
    stated = (
        f"TRY(make_date({table.cell('year_of_birth')}, coalesce({table.cell('month_of_birth')}, 7), "
        f"coalesce({table.cell('day_of_birth')}, CASE WHEN {table.cell('month_of_birth')} IS NULL THEN 1 ELSE 15 END)))"
    )
    columns["stated"] = stated
    impossible = f"NOT ({table.blank('year_of_birth')}) AND {stated} IS NULL"
    wrong.append(Wrong(impossible, "year, month and day of birth are no date", "Correct them"))
    ours = "person_id IS NULL OR person_id IN (SELECT person_id FROM asked)"
    engine.take("people", RowQuery(table, columns, wrong, (), ours))
    doubled = engine.number("SELECT count(*) - count(DISTINCT person_id) FROM people")
    if doubled:
        raise InputError(
            f"{engine.places_of_one(table, 'people')} are of one person ({doubled} such rows). Keep one row a person."
        )


def static_facts(engine: Engine) -> pd.DataFrame:
    """Age at the beginning of the first predicted stay, in completed years, and who each patient is.

    A patient whose birth lies after that has no age. What no concept names is blank.
    """
    facts = engine.frame(
        """
        SELECT p.person_id AS subject_id, year_of_birth,
            date_diff('year', CAST(coalesce(born, stated) AS DATE), CAST(a.start AS DATE)) AS years,
            month_of_birth IS NULL AND born IS NULL AS rough,
            strftime(CAST(a.start AS DATE), '%m%d') < strftime(CAST(coalesce(born, stated) AS DATE), '%m%d') AS before,
            g.label AS gender, r.label AS race, e.label AS ethnicity
        FROM people AS p JOIN asked AS a USING (person_id)
        LEFT JOIN named AS g ON g.concept_id = p.gender_concept_id
        LEFT JOIN named AS r ON r.concept_id = p.race_concept_id
        LEFT JOIN named AS e ON e.concept_id = p.ethnicity_concept_id
        ORDER BY subject_id
        """
    )
    age = facts["years"] - facts["before"].astype("Int64")
    # Of a newborn of whom only the year of birth is known, the middle of the year may lie ahead.
    age = age.mask((age == -1) & (facts["years"] == 0) & facts["rough"], 0).mask(lambda years: years < 0)
    words = {name: facts[name].astype("category") for name in ("gender", "race", "ethnicity")}
    return pd.DataFrame({"subject_id": facts["subject_id"], "age": age.astype("Float64"), **words})
